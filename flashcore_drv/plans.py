"""Attention that is planned once and called many times."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arguments import check_output
from .dtypes import F32, DType, named
from .errors import InvalidArgument
from .interop import ArrayView, address_of, on_gpu, refuse_immutable, view_of
from .interop.arrays import view_of_memory
from .operands import NewArray, one_device
from .prepared import Prepared, stream_handle
from .problem import Problem
from .runtime import Aimed, Device, DeviceArray, Launch, Stream, driver
from .runtime.memory import contiguous_strides


@dataclass(frozen=True)
class ArraySpec:
    """What an array will be, for a plan.

    Attributes
    ----------
    shape : tuple of int
        Elements along each dimension.
    dtype : numpy.dtype, or what makes one
        Element type; "bfloat16" too, with the package ml_dtypes.
    strides : tuple of int, optional
        Distance of neighbours, in elements; by default C-contiguous.
    alignment : int
        The address will be a multiple of this many bytes, a power of 2.
    """

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    strides: tuple[int, ...] | None = None
    alignment: int = 16


@dataclass(frozen=True)
class Expected:
    """An array as a plan has it: no memory, so it overlaps nothing, and an address that is as aligned as it will be."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    writeable: bool = True
    span: tuple[int, int] = (0, 0)
    host_values: None = None

    @property
    def gpu_address(self) -> int:
        """The address."""
        return self.address

    @property
    def layout(self) -> tuple[Any, ...]:
        """What an array in its place must have: dtype, shape, and strides along dimensions of more than 1."""
        return layout_of(self)


def layout_of(x: Expected | ArrayView) -> tuple[Any, ...]:
    """Dtype, shape, and strides along dimensions of more than 1."""
    return x.dtype, x.shape, tuple(s for n, s in zip(x.shape, x.strides) if n > 1)


def expected(like: Any, name: str) -> tuple[Expected, Device | None]:
    """What an array or an :class:`ArraySpec` tells, and the GPU that it is on. Raises InvalidArgument."""
    if isinstance(like, ArraySpec):
        if like.alignment < 1 or like.alignment & (like.alignment - 1):
            raise InvalidArgument(f"{name} has alignment={like.alignment!r}; allowed: a power of 2")
        shape = tuple(int(n) for n in like.shape)
        strides = contiguous_strides(shape) if like.strides is None else tuple(int(s) for s in like.strides)
        if len(strides) != len(shape):
            raise InvalidArgument(f"{name} has shape {shape} and strides {strides}; allowed: one for each dimension")
        try:
            dtype = named(like.dtype)
        except TypeError:
            raise InvalidArgument(
                f"{name} has dtype {like.dtype!r}; allowed: a NumPy dtype, or the name of one of ml_dtypes'"
            ) from None
        return Expected(name, shape, strides, dtype, like.alignment % 16), None
    view = view_of(like, name)
    address = view.gpu_address % 16
    return Expected(name, view.shape, view.strides, view.dtype, address, view.writeable), view.device


class Plan(functools.partial[None]):
    """Attention of one problem on one GPU; made by :func:`plan_attention` and :func:`plan_attention_varlen`.

    ::

        plan(q, k, v, out, lse=None, *, stream=None, check=False, **sides)

    queues the attention of these arrays. It allocates nothing on the GPU and waits for nothing, so it can be captured
    into a graph, and any number of threads may call at once. It takes the least time where the GPU's primary context is
    current, as CuPy and PyTorch leave it (elsewhere make calls inside ``with plan.device.active():``), and for
    addresses that it has seen together before, of which it remembers 128.

    Checked every time, because it costs next to nothing: that no pointer is NULL, that each is aligned as the plan was
    told, that `lse` and the small inputs are given if and only if the plan has them, that a DeviceArray was not freed,
    that another library's array was in device memory when its address was first seen, and what the driver says of the
    launch. Not checked without `check`: shapes, dtypes, strides and the GPU that an array is on, whether it is
    read-only, whether outputs overlap each other or an input, and whether an int is the address of device memory, in
    its allocation. With any of these wrong the kernel reads and writes what it should not, and the context may be lost.
    Lengths and cu_seqlens are clamped by the kernel as in :func:`attention`, to the lengths that the plan was made for,
    and may change from call to call.

    Parameters of a call
    --------------------
    q, k, v, out : DeviceArray, other library's array, or int
        Arrays on the GPU that are laid out as planned, or the addresses of their first elements. What produces them in
        another stream is not waited for. `out` may not be an array of JAX, whose arrays never change.
    lse : likewise, float32 [batch, num_heads, seqlen_q], packed [num_heads, total_q]; C-contiguous
        With `return_lse`, and only then.
    stream : optional
        As in :func:`attention`. An int handle and a Stream take the least time.
    check : bool
        Check all of that. Of an address: that the planned array there lies within one allocation on the GPU.
    **sides
        alibi_slopes, bias, sinks, seqused_k, cu_seqlens_q, cu_seqlens_k: those that were planned, each an array on the
        GPU or an address.

    It raises InvalidArgument with the argument, its value and what is allowed, before anything reaches the GPU, and
    DriverError if the launch fails.

    Attributes
    ----------
    problem : Problem
        What it computes.
    device : Device
        Where.
    kernel : str
        The kernel that it launches.
    sides : tuple of str
        The small inputs that a call takes.
    dependent_launch : bool
        Whether that was asked for and this kernel can.
    """

    # A partial of a function, because to call an instance of a class with a __call__ takes 0.05 µs more.

    problem: Problem
    device: Device
    kernel: str
    sides: tuple[str, ...]
    dependent_launch: bool
    _rules: _Rules

    def __new__(
        cls,
        problem: Problem,
        device: Device,
        impl: str,
        arguments: Sequence[Expected],
        dependent_launch: bool = False,
    ) -> Plan:
        """Prepare the problem; `arguments` are all arrays but lse."""
        rules = _Rules(problem, device, impl, arguments, dependent_launch)
        plan = super().__new__(cls, _checker(rules) if rules.prepared.launch is None else _caller(rules))
        plan._rules = rules
        plan.problem, plan.device, plan.sides = problem, device, rules.prepared.sides
        plan.kernel = rules.prepared.kernels[0].stem
        plan.dependent_launch = rules.prepared.dependent
        return plan

    def aim(self, q: Any, k: Any, v: Any, out: Any, lse: Any = None, *, check: bool = False, **sides: Any) -> Aimed:
        """What a call with these arrays would launch, for :meth:`flashcore_drv.Graph.update`."""
        launch = self._rules.aim(q, k, v, out, lse, sides, check)
        return Aimed(launch, self._rules.prepared.pointer_words)

    def __repr__(self) -> str:
        return f"<Plan of {self.kernel} on {self.device}>"


def _caller(rules: _Rules) -> Callable[..., None]:
    """The function that a plan is.

    What it needs it has in cells of its own, and it makes the launch itself, as :meth:`Launch.queue_function` does: a
    call of a function is 1 % of a launch.
    """
    device, find, Ours, OurStream = rules.device, address_of, DeviceArray, Stream
    module, launch = driver.module(), rules.prepared.launch
    assert launch is not None
    success, function = module.CUresult.CUDA_SUCCESS, launch.kernel.handle
    calls, known = rules.calls, rules.calls.get

    def call(q: Any, k: Any, v: Any, out: Any, lse: Any = None, *, stream: Any = None, **more: Any) -> None:
        kind = q.__class__
        try:
            where = (
                stream.key
                if stream.__class__ is OurStream
                else stream
                if stream is None or stream.__class__ is int
                else stream_handle(device, stream)
            )
            if kind is Ours:
                hit = known((q.address_or_none, k.address_or_none, v.address_or_none, out.address_or_none, where))
            elif kind is int:
                hit = known((q, k, v, out, where))
            else:
                hit = known((find(q, "q"), find(k, "k"), find(v, "v"), find(out, "out"), where))
        except (AttributeError, TypeError):  # the others are of another kind
            hit = None
        if hit is None or more or lse is not None:
            anew(q, k, v, out, lse, stream, **more)
            return
        config, table, _ = hit
        status = module.cuLaunchKernelEx(config, function, table, 0)[0]
        if status is not success:
            driver.retry(device, status, "cuLaunchKernelEx", config, function, table, 0)

    def anew(q: Any, k: Any, v: Any, out: Any, lse: Any, stream: Any, check: bool = False, **sides: Any) -> None:
        aimed = rules.aim(q, k, v, out, lse, sides, check)
        handle = stream_handle(device, stream)
        rules.prepared.fire(aimed, handle)
        config = launch.configs.get(handle)  # which another thread may have cleared
        if aimed is not None and config is not None and lse is None and not sides:
            if len(calls) >= _MOST_CALLS:
                calls.clear()
            places = address_of(q, "q"), address_of(k, "k"), address_of(v, "v"), address_of(out, "out")
            where = stream.key if isinstance(stream, Stream) else None if stream is None else handle
            key = (*places, where)
            calls[key] = config, aimed.table, aimed

    return call


_MOST_CALLS = 128  # that a plan remembers
_RULES: weakref.WeakSet[_Rules] = weakref.WeakSet()


def _after_fork() -> None:
    """Let no plan know a call again: it would not look whether it is in a process that must not make it."""
    for rules in _RULES:
        rules.calls.clear()


os.register_at_fork(after_in_child=_after_fork)


def _checker(rules: _Rules) -> Callable[..., None]:
    """The function that a plan without queries is."""

    def call(
        q: Any, k: Any, v: Any, out: Any, lse: Any = None, *, stream: Any = None, check: bool = False, **sides: Any
    ) -> None:
        rules.aim(q, k, v, out, lse, sides, check)
        stream_handle(rules.device, stream)

    return call


class _Rules:
    """What a plan wants of the arrays of a call."""

    def __init__(
        self, problem: Problem, device: Device, impl: str, arguments: Sequence[Expected], dependent_launch: bool
    ) -> None:
        found = {x.name: x for x in arguments}
        low_bits = {"o" if name == "out" else name: x.address for name, x in found.items()}
        self.prepared = Prepared(problem, device, impl, low_bits, dependent_launch)
        self.device, self.return_lse, self._dtype = device, problem.return_lse, problem.dtype
        self.calls: dict[Any, tuple[Any, int, Launch]] = {}  # by the addresses of q, k, v and out, and the stream
        _RULES.add(self)
        self._expected = found
        if problem.return_lse:
            shape = problem.lse_shape
            self._expected["lse"] = Expected("lse", shape, contiguous_strides(shape), F32.to_numpy(), 0)
        self._unaligned = 15 if problem.aligned else problem.dtype.itemsize - 1
        self._may_be_null = {name for name, x in self._expected.items() if 0 in x.shape}

    def aim(self, q: Any, k: Any, v: Any, out: Any, lse: Any, sides: Mapping[str, Any], check: bool) -> Launch | None:
        """The launch on these arrays, or addresses. Raises InvalidArgument for what is checked every time.

        What was checked before, of arrays at the same addresses, is not looked at again without `check`.
        """
        names = self.prepared.sides
        if not check and len(sides) == len(names) and (lse is not None) is self.return_lse:
            try:
                key = [address_of(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v"), (out, "out"))]
                key += [address_of(lse, "lse")] if self.return_lse else []
                key += [address_of(sides[name], name) for name in names]
            except KeyError:
                key = []  # said below
            launch = self.prepared.ready.get(tuple(key))
            if launch is not None:
                return launch
        if check:
            self.check(q, k, v, out, lse, sides)
        if (lse is None) == self.return_lse:
            if lse is None:
                raise InvalidArgument("lse is None; allowed: an array, the plan was made with return_lse=True")
            raise InvalidArgument("lse is given; allowed: None, the plan was made without return_lse")
        if sides.keys() != set(names):
            found, planned = (", ".join(x) or "none" for x in (sides, names))
            raise InvalidArgument(f"small inputs are {found}; allowed: those that were planned, {planned}")
        arrays = {"q": q, "k": k, "v": v, "out": out, **({} if lse is None else {"lse": lse}), **sides}
        for name in ("out", "lse"):
            refuse_immutable(arrays.get(name), name)
        places = {name: on_gpu(x, name) for name, x in arrays.items()}
        if wrong := [f"{name}={a:#x}" for name, a in places.items() if not 0 <= a < 1 << 64]:
            raise InvalidArgument(f"{', '.join(wrong)}; allowed: addresses of 64 bits")
        for name, address in places.items():
            if address == 0 and name not in self._may_be_null:
                raise InvalidArgument(f"{name} has a null pointer; allowed: device memory")
            alignment = self._alignment(name)
            if address % alignment:
                raise InvalidArgument(f"{name} is at {address:#x}; allowed by the plan: a multiple of {alignment}")
        usual = places["q"], places["k"], places["v"], places["out"]
        return self.prepared.aim(*usual, places.get("lse", 0), [places[name] for name in names])

    def _alignment(self, name: str) -> int:
        """Bytes that an argument's address must be a multiple of."""
        if name in ("q", "k", "v", "out"):
            return self._unaligned + 1
        x = self._expected[name]
        if name != "bias":
            return x.dtype.itemsize
        pair = 2 * x.dtype.itemsize  # that the kernel may read at once
        return pair if x.address % pair == 0 else x.dtype.itemsize

    def check(self, q: Any, k: Any, v: Any, out: Any, lse: Any, sides: Mapping[str, Any]) -> None:
        """Raise InvalidArgument for what attention() would refuse of these arrays, and for what was not planned."""
        given = {"q": q, "k": k, "v": v, "out": out, **({} if lse is None else {"lse": lse}), **sides}
        views = {name: self._view(x, name) for name, x in given.items() if name in self._expected}
        for name, x in views.items():
            for what, found, wanted in zip(("dtype", "shape", "strides"), layout_of(x), self._expected[name].layout):
                if found != wanted:
                    found, wanted = (getattr(y, what) for y in (x, self._expected[name]))
                    raise InvalidArgument(f"{name} has {what} {found}; planned: {wanted}")
        place = one_device(list(views.values()))
        if place != self.device:
            raise InvalidArgument(f"q is on {place or 'the host'}; planned: {self.device}")
        outputs = [views[name] for name in ("out", "lse") if name in views]
        inputs = [x for name, x in views.items() if name not in ("out", "lse")]
        kinds: dict[str, DType] = {"out": self._dtype, "lse": F32}
        for i, x in enumerate(outputs):
            check_output(x, x.shape, kinds[x.name], (*inputs, *outputs[:i]))

    def _view(self, x: Any, name: str) -> ArrayView:
        if isinstance(x, (int, np.integer)):
            wanted = self._expected[name]
            return view_of_memory(name, wanted.shape, wanted.strides, wanted.dtype, int(x))
        return view_of(x, name)


def expected_output(out: Any, q: Expected, v: Expected) -> tuple[Expected, Device | None]:
    """What `out` tells; where it is None, a C-contiguous array."""
    if out is not None:
        return expected(out, "out")
    x = NewArray("out", q.shape[:-1] + v.shape[-1:], q.dtype)
    return Expected(x.name, x.shape, x.strides, x.dtype, 0), None
