"""Our fused kernels on the tensors of a case, family by family."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import flashcore_drv as fc
from flashcore_drv.dispatch import IMPLS
from flashcore_drv.runtime import Device, DeviceArray, Graph, Stream

from .cases import Case, Tensors, head_of
from .measure import Sample, Timer
from .results import OURS, SM_90

SM_80_IMPL = "flash_sm80" if "flash_sm80" in IMPLS else "flash"
"""`impl` of the family for compute capability 8.0 and later; "flash" is it as long as there is no other."""


def impls(device: Device) -> dict[str, str]:
    """`impl` of each of our families that the GPU can run and the package knows, by the member of a row."""
    hopper = {SM_90: "flash_sm90"} if device.arch == 90 and "flash_sm90" in IMPLS else {}
    return {OURS: SM_80_IMPL} | hopper


def member_of(stem: str) -> str:
    """The member of a row that a kernel belongs in."""
    return SM_90 if stem.startswith("flash_fwd_tma") else OURS


def plan_of(tensors: Tensors, out: DeviceArray, impl: str) -> tuple[fc.Plan, dict[str, Any]]:
    """A plan for a case, and what a call takes beside q, k, v and out. Raises Unsupported."""
    case, arrays = tensors.case, [tensors.device[name] for name in "qkv"]
    if case.lengths is None:
        return fc.plan_attention(*arrays, causal=case.causal, layout="bhsd", out=out, impl=impl), {}
    offsets = DeviceArray.from_numpy(cu_seqlens(case), out.device)
    chosen = {"impl": impl} if "impl" in inspect.signature(fc.plan_attention_varlen).parameters else {}
    plan = fc.plan_attention_varlen(
        *arrays, offsets, offsets, case.seqlen_q, case.seqlen_q, causal=case.causal, out=out, **chosen
    )
    return plan, {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}


class Ours:
    """What ``attention()`` launches for a case with one of our families, planned once.

    Parameters
    ----------
    sets : sequence of Tensors
        Inputs that launches go through in turns; all write the same output.
    member : str
        The family, of :func:`impls`.

    Attributes
    ----------
    stem : str
        The kernel.

    Raises
    ------
    Unsupported
        If the family does not take the case.
    """

    def __init__(self, sets: Sequence[Tensors], device: Device, stream: Stream, member: str = OURS) -> None:
        self.case, self.device, self.stream = sets[0].case, device, stream
        self.out = DeviceArray.empty(self.case.shapes["o"], self.case.dtype.to_numpy(), device)
        self.out.fill_bytes(0xFF)  # NaN, so that what is not written shows
        device.synchronize()
        impl = impls(device)[member]
        plan, sides = plan_of(sets[0], self.out, impl)
        self.stem: str = plan.kernel
        if member_of(self.stem) != member:
            raise fc.Unsupported(f"impl={impl!r} takes {self.stem}")
        self.launches: list[Callable[[], None]] = [
            functools.partial(plan, *(x.device[name] for name in "qkv"), self.out, stream=stream, **sides) for x in sets
        ]
        self._host: Any = None

    def member_by_itself(self, tensors: Tensors) -> str:
        """The family that ``attention()`` takes for the case when nobody names one."""
        return member_of(plan_of(tensors, self.out, "auto")[0].kernel)

    def launch(self) -> None:
        """Queue one launch."""
        with self.device.active():
            self.launches[0]()

    def fetch(self) -> Any:
        """The output of one launch on the host."""
        self.launch()
        self._host = self.out.to_numpy(stream=self.stream)
        return self._host

    def rows(self, batch: int, head: int, where: slice) -> Any:
        """Some rows of the output that was fetched."""
        return head_of(self.case, self._host, batch, head)[where]

    def graph(self, repeat: int) -> Graph:
        """A graph of `repeat` launches, through all sets in turns."""
        with Graph.capture(self.stream) as graph:
            for i in range(repeat):
                self.launches[i % len(self.launches)]()
        return graph

    def sample(self, timer: Timer, repeat: int) -> Sample:
        """The measurement of a graph of `repeat` launches."""
        return timer(self.graph(repeat).replay, repeat)


def cu_seqlens(case: Case) -> Any:
    """Where the sequences of a packed case start and end, int32 [batch + 1]."""
    return np.cumsum((0, *(case.lengths or ())), dtype=np.int32)
