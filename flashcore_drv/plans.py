"""Attention that is planned once and called many times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arguments import check_output
from .dtypes import BF16, F32, DType
from .errors import InvalidArgument
from .interop import ArrayView, view_of
from .interop.arrays import view_of_memory
from .operands import NewArray, one_device
from .prepared import Prepared, stream_handle
from .problem import Problem
from .runtime import Device, DeviceArray, HandleError
from .runtime.memory import contiguous_strides


@dataclass(frozen=True)
class ArraySpec:
    """What an array will be, for a plan.

    Attributes
    ----------
    shape : tuple of int
        Elements along each dimension.
    dtype : numpy.dtype, or what makes one
        Element type; "bfloat16" too.
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
            dtype = BF16.to_numpy() if like.dtype == BF16.numpy_name else np.dtype(like.dtype)
        except TypeError:
            raise InvalidArgument(f"{name} has dtype {like.dtype!r}; allowed: a NumPy dtype, or 'bfloat16'") from None
        return Expected(name, shape, strides, dtype, like.alignment % 16), None
    view = view_of(like, name)
    address = view.gpu_address % 16
    return Expected(name, view.shape, view.strides, view.dtype, address, view.writeable), view.device


class Plan:
    """Attention of one problem on one GPU; made by :func:`plan_attention` and :func:`plan_attention_varlen`.

    A call stores pointers and launches. It allocates nothing and waits for nothing, so it can be captured into a
    graph, and any number of threads may make it at once. It takes the least time where the GPU's primary context is
    current, as CuPy and PyTorch leave it; elsewhere make calls inside ``with plan.device.active():``.

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
    """

    def __init__(self, problem: Problem, device: Device, impl: str, arguments: Sequence[Expected]) -> None:
        found = {x.name: x for x in arguments}
        low_bits = {"o" if name == "out" else name: x.address for name, x in found.items()}
        self._prepared = Prepared(problem, device, impl, low_bits)
        self.problem, self.device, self.sides = problem, device, self._prepared.sides
        self.kernel = self._prepared.kernels[0].stem
        self._expected = found
        if problem.return_lse:
            shape = problem.lse_shape
            self._expected["lse"] = Expected("lse", shape, contiguous_strides(shape), F32.to_numpy(), 0)
        self._unaligned = 15 if problem.aligned else problem.dtype.itemsize - 1
        self._may_be_null = {name for name, x in self._expected.items() if 0 in x.shape}
        self._return_lse = problem.return_lse

    def __call__(
        self,
        q: Any,
        k: Any,
        v: Any,
        out: Any,
        lse: Any = None,
        *,
        stream: Any = None,
        check: bool = False,
        **sides: Any,
    ) -> None:
        """Queue the attention of these arrays.

        Checked every time, because it costs next to nothing: that no pointer is NULL, that each is aligned as the plan
        was told, that `lse` and the small inputs are given if and only if the plan has them, that a DeviceArray was
        not freed, and what the driver says of the launch. Not checked without `check`: shapes, dtypes, strides and
        the GPU that an array is on, whether it is read-only, whether outputs overlap each other or an input, and
        whether an address is device memory, in its allocation. With any of these wrong the kernel reads and writes
        what it should not, and the context may be lost. Lengths and cu_seqlens are clamped by the kernel as in
        :func:`attention`, to the lengths that the plan was made for, and may change from call to call.

        Parameters
        ----------
        q, k, v, out : DeviceArray, object with ``__cuda_array_interface__``, or int
            Arrays on the GPU that are laid out as planned, or the addresses of their first elements. The producer
            stream of an array is not waited for.
        lse : likewise, float32 [batch, num_heads, seqlen_q], packed [num_heads, total_q]; C-contiguous
            With `return_lse`, and only then.
        stream : optional
            As in :func:`attention`. An int handle and a Stream take the least time.
        check : bool
            Check all of that. Of an address: that the planned array there lies within one allocation on the GPU.
        **sides
            alibi_slopes, bias, sinks, seqused_k, cu_seqlens_q, cu_seqlens_k: those that were planned, each an array on
            the GPU or an address.

        Raises
        ------
        InvalidArgument
            The argument, its value and what is allowed; before anything reaches the GPU.
        DriverError
            If the launch fails.
        """
        if check:
            self._check(q, k, v, out, lse, sides)
        try:  # without a call for what is most usual
            q = q.address if q.__class__ is DeviceArray else q if q.__class__ is int else address_of(q, "q")
            k = k.address if k.__class__ is DeviceArray else k if k.__class__ is int else address_of(k, "k")
            v = v.address if v.__class__ is DeviceArray else v if v.__class__ is int else address_of(v, "v")
            out = (
                out.address if out.__class__ is DeviceArray else out if out.__class__ is int else address_of(out, "out")
            )
        except HandleError:
            q, k, v, out = (address_of(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v"), (out, "out")))
        if (q | k | v | out) & self._unaligned or not (q and k and v and out):
            self._refuse(q=q, k=k, v=v, out=out)
        lse = 0 if lse is None and not self._return_lse else self._lse(lse)
        small = self._small(sides) if sides or self.sides else ()
        handle = stream_handle(self.device, stream)
        try:
            self._prepared.queue(q, k, v, out, lse, small, handle)
        except OverflowError:  # from the parameter block
            addresses = {"q": q, "k": k, "v": v, "out": out, "lse": lse, **dict(zip(self.sides, small))}
            wrong = [f"{name}={a:#x}" for name, a in addresses.items() if not 0 <= a < 1 << 64]
            raise InvalidArgument(f"{', '.join(wrong)}; allowed: addresses of 64 bits") from None

    def _lse(self, lse: Any) -> int:
        if not self._return_lse:
            raise InvalidArgument("lse is given; allowed: None, the plan was made without return_lse")
        if lse is None:
            raise InvalidArgument("lse is None; allowed: an array, the plan was made with return_lse=True")
        address = address_of(lse, "lse")
        self._refuse(lse=address)
        return address

    def _small(self, given: Mapping[str, Any]) -> list[int]:
        """The addresses of the small inputs, in the order of `sides`."""
        if given.keys() != set(self.sides):
            found, planned = (", ".join(names) or "none" for names in (given, self.sides))
            raise InvalidArgument(f"small inputs are {found}; allowed: those that were planned, {planned}")
        addresses = [address_of(given[name], name) for name in self.sides]
        self._refuse(**dict(zip(self.sides, addresses)))
        return addresses

    def _refuse(self, **addresses: int) -> None:
        """Raise InvalidArgument for an address that is NULL or not as aligned as planned."""
        for name, address in addresses.items():
            if address == 0 and name not in self._may_be_null:
                raise InvalidArgument(f"{name} has a null pointer; allowed: device memory")
            alignment = self._alignment(name)
            if address % alignment:
                raise InvalidArgument(f"{name} is at {address:#x}; allowed by the plan: a multiple of {alignment}")

    def _alignment(self, name: str) -> int:
        """Bytes that an argument's address must be a multiple of."""
        if name in ("q", "k", "v", "out"):
            return self._unaligned + 1
        x = self._expected[name]
        if name != "bias":
            return x.dtype.itemsize
        pair = 2 * x.dtype.itemsize  # that the kernel may read at once
        return pair if x.address % pair == 0 else x.dtype.itemsize

    def _check(self, q: Any, k: Any, v: Any, out: Any, lse: Any, sides: Mapping[str, Any]) -> None:
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
        kinds: dict[str, DType] = {"out": self.problem.dtype, "lse": F32}
        for i, x in enumerate(outputs):
            check_output(x, x.shape, kinds[x.name], (*inputs, *outputs[:i]))

    def _view(self, x: Any, name: str) -> ArrayView:
        if isinstance(x, (int, np.integer)):
            wanted = self._expected[name]
            return view_of_memory(name, wanted.shape, wanted.strides, wanted.dtype, int(x))
        return view_of(x, name)

    def __repr__(self) -> str:
        return f"<Plan of {self.kernel} on {self.device}>"


def address_of(array: Any, name: str) -> int:
    """The address of an array on the GPU, or an address as it is. Raises InvalidArgument."""
    if isinstance(array, DeviceArray):
        try:
            return array.address
        except HandleError as error:
            raise InvalidArgument(f"{name}: {error}") from None
    if isinstance(array, (int, np.integer)):
        return int(array)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise InvalidArgument(
            f"{name} is a {type(array).__module__}.{type(array).__qualname__}; allowed: flashcore_drv.DeviceArray, "
            "an object with __cuda_array_interface__, or an address"
        )
    return int(interface["data"][0])


def expected_output(out: Any, q: Expected, v: Expected) -> tuple[Expected, Device | None]:
    """What `out` tells; where it is None, a C-contiguous array."""
    if out is not None:
        return expected(out, "out")
    x = NewArray("out", q.shape[:-1] + v.shape[-1:], q.dtype)
    return Expected(x.name, x.shape, x.strides, x.dtype, 0), None
