"""A problem on a GPU, ready to launch: its kernels chosen and loaded, its parameters packed but for the pointers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import abi, plan
from .dispatch import select
from .errors import InvalidArgument
from .problem import Problem
from .runtime import Device, HandleError, Launch, Stream

SIDES = {
    "alibi_slopes": "terms.alibi_slopes",
    "bias": "terms.bias.data",
    "sinks": "fwd.sinks",
    "seqused_k": "fwd.sequences.seqused_k",
    "cu_seqlens_q": "fwd.sequences.cu_seqlens_q",
    "cu_seqlens_k": "fwd.sequences.cu_seqlens_k",
}
"""The small inputs in the order of :attr:`Prepared.sides`, and their pointers in the parameters."""


def _word(name: str) -> int:
    """Which 8 bytes of the parameters hold a pointer: of all structs, for each begins with the shorter ones."""
    offset, _ = abi.FLASH_FWD_SCORED_PARAMS.offsets[name]
    return offset // 8


_Q, _K, _V, _O, _LSE = (_word(f"fwd.{name}.data") for name in ("q", "k", "v", "o", "lse"))


class Prepared:
    """A problem on a GPU. Any number of threads may queue it at once.

    Parameters
    ----------
    problem : Problem
        What to compute.
    device : Device
        Where.
    impl : str
        As in :func:`flashcore_drv.attention`.
    low_bits : mapping of str to int
        The last 4 bits of the addresses of small inputs, which choose how a kernel reads them; 0 where not named.
    dependent_launch : bool
        As in :func:`flashcore_drv.plan_attention`.

    Attributes
    ----------
    kernels : tuple of KernelSpec
        What runs.
    sides : tuple of str
        The small inputs that the problem has.
    dependent : bool
        Whether it begins before the kernel before it has ended.
    fused : bool
        Whether it is one kernel, which needs no memory of the call's own: the rest here is for these.
    ready : dict of tuple of int to Launch
        Launches on arrays by their addresses: q, k, v, o, lse where the problem has one, and the small inputs.
    fire : function of Launch and int
        Queues one of these launches in a ``CUstream``.
    launch : Launch or None
        What they are copies of; None where there is no query.
    extents : tuple of int
        Bytes from the first to past the last of each array that it was prepared for.
    recent : bool
        Whether it was used since the cache looked.
    """

    def __init__(
        self,
        problem: Problem,
        device: Device,
        impl: str,
        low_bits: Mapping[str, int],
        dependent_launch: bool = False,
    ) -> None:
        self.problem, self.device = problem, device
        self.kernels = select(problem, device.arch, impl, device)
        self.fused = len(self.kernels) == 1
        self.dependent = dependent_launch and all(spec.waits for spec in self.kernels)
        self.extents: tuple[int, ...] = ()
        self.recent = False
        there = {
            "alibi_slopes": problem.alibi_batch_stride is not None,
            "bias": problem.bias is not None,
            "sinks": problem.sinks,
            "seqused_k": problem.seqused_k,
            "cu_seqlens_q": problem.varlen is not None,
            "cu_seqlens_k": problem.varlen is not None,
        }
        self.sides = tuple(name for name in SIDES if there[name])
        self._side_words = tuple(_word(SIDES[name]) for name in self.sides)
        self.launch: Launch | None = None
        if self.fused:
            pointers = {name: low_bits.get(name, 0) for name in ("q", "k", "v", "o", *self.sides)}
            for launch in plan.plan_flash(device, self.kernels[0], problem, pointers, self.dependent):
                self.launch = launch
        self.ready: dict[tuple[int, ...], Launch] = {}
        self.fire: Callable[[Any, int | None], None] = _nothing if self.launch is None else self.launch.queue_function()

    def aim(self, q: int, k: int, v: int, o: int, lse: int, sides: Sequence[int]) -> Launch | None:
        """The fused kernel's launch on arrays at these addresses, `lse` where there is one; None without queries.

        It is never changed again, so that any number of threads may queue it with `fire`. `ready` keeps it.
        """
        key = (q, k, v, o, lse, *sides) if self.problem.return_lse else (q, k, v, o, *sides)
        made = self.ready.get(key)
        if made is not None or self.launch is None:
            return made
        made = self.launch.twin()
        words = made.words
        words[_Q], words[_K], words[_V], words[_O] = q, k, v, o
        made.place_maps((q, k, v))
        if lse:
            words[_LSE] = lse
        for at, address in zip(self._side_words, sides):
            words[at] = address
        if len(self.ready) >= _MOST_READY:
            self.ready.clear()
        self.ready[key] = made
        return made

    @property
    def pointer_words(self) -> tuple[int, ...]:
        """The words of the launch's parameters that depend on addresses."""
        mapped = () if self.launch is None else self.launch.map_words
        return (_Q, _K, _V, _O, *((_LSE,) if self.problem.return_lse else ()), *self._side_words, *mapped)


_MOST_READY = 128  # launches of half a KB, of one problem


def _nothing(launch: None, stream: int | None) -> None:
    """Queue what has no query."""


def stream_handle(device: Device, stream: object) -> int:
    """The ``CUstream`` that a caller means, see :meth:`Stream.of`. Raises InvalidArgument."""
    if stream is None:
        return 0
    if stream.__class__ is int and stream >= 0:
        return stream
    if stream.__class__ is Stream and stream.device is device:
        return stream.handle
    try:
        return Stream.of(device, stream).handle if isinstance(stream, Stream) else Stream.number(stream)
    except HandleError as error:
        raise InvalidArgument(str(error)) from None


def stream_number(stream: object) -> int:
    """The same where the GPU is not known yet. Raises HandleError for a stream that was closed."""
    if isinstance(stream, Stream):
        return stream.handle
    try:
        return Stream.number(stream)
    except HandleError as error:
        raise InvalidArgument(str(error)) from None
