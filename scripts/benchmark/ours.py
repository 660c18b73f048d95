"""Our fused kernel on the tensors of a case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import flashcore_drv as fc
from flashcore_drv.dispatch import select
from flashcore_drv.interop import view_of
from flashcore_drv.plan import plan_flash
from flashcore_drv.runtime import Device, DeviceArray, Graph, Stream
from flashcore_drv.validation import make_problem

from .cases import Case, Tensors, head_of
from .measure import Sample, Timer


class Ours:
    """What ``attention()`` launches for a case: the kernel that dispatch takes, planned once.

    Parameters
    ----------
    sets : sequence of Tensors
        Inputs that launches go through in turns; all write the same output.

    Attributes
    ----------
    stem : str or None
        The kernel; None for packed sequences, whose kernel the public function chooses.
    """

    def __init__(self, sets: Sequence[Tensors], device: Device, stream: Stream) -> None:
        self.case, self.device, self.stream = sets[0].case, device, stream
        self.out = DeviceArray.empty(self.case.shapes["o"], self.case.dtype.to_numpy(), device)
        self.out.fill_bytes(0xFF)  # NaN, so that what is not written shows
        device.synchronize()
        self.stem: str | None = None
        make = self._dense if self.case.lengths is None else self._packed
        self.launches: list[Callable[[], None]] = [make(x) for x in sets]
        self._host: Any = None

    def _dense(self, tensors: Tensors) -> Callable[[], None]:
        arrays = tensors.device | {"o": self.out}
        problem = make_problem(
            *(view_of(arrays[name], name) for name in "qkvo"), causal=self.case.causal, layout="bhsd"
        )
        (kernel,) = select(problem, self.device.arch, "flash", self.device)
        self.stem = kernel.stem
        addresses = {name: x.address for name, x in arrays.items()}
        (launch,) = plan_flash(self.device, kernel, problem, addresses)
        return lambda: launch(self.stream)

    def _packed(self, tensors: Tensors) -> Callable[[], None]:
        offsets = DeviceArray.from_numpy(cu_seqlens(self.case), self.device)
        longest = self.case.seqlen_q
        q, k, v = (tensors.device[name] for name in "qkv")
        return lambda: fc.attention_varlen(
            q, k, v, offsets, offsets, longest, longest, causal=self.case.causal, out=self.out, stream=self.stream
        )

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
