"""Attention part by part, for the scripts that check and time it: unfused stages, all of these, the fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flashcore_drv import Unsupported, unfused
from flashcore_drv.dispatch import select
from flashcore_drv.dtypes import F32
from flashcore_drv.plan import plan_flash
from flashcore_drv.problem import Problem
from flashcore_drv.runtime import Device, DeviceArray, Graph, Stream

STAGES = ("qk", "softmax", "pv")


class StagedAttention:
    """The parts of one problem on a device, with everything between them kept.

    Parameters
    ----------
    problem : Problem
        Made from contiguous `inputs`.
    inputs : list of numpy.ndarray
        q, k and v.
    device : Device
        Where.
    impl : str
        As in attention(); "auto": unfused and fused, as far as they are built for the problem.

    Attributes
    ----------
    parts : dict of str to sequence of functions of a stream
        What queues "qk", "softmax", "pv", "unfused" (these three) and "flash".
    outputs : dict of str to str
        The array that a part makes.
    stems : dict of str to str
        The kernel of a part that is one kernel.
    """

    def __init__(self, problem: Problem, inputs: list[Any], device: Device, impl: str = "auto") -> None:
        self.problem, self.device, self.stream = problem, device, Stream(device)
        self.arrays = {name: DeviceArray.from_numpy(x, device) for name, x in zip("qkv", inputs)}
        self.parts: dict[str, Sequence[Callable[[Stream], object]]] = {}
        self.outputs: dict[str, str] = {}
        self.stems: dict[str, str] = {}
        if impl in ("auto", "unfused"):
            try:
                self._add_unfused(inputs[0].shape)
            except Unsupported:
                if impl == "unfused":
                    raise
        if impl != "unfused":
            self._add_flash(inputs[0].shape, "flash" if impl == "auto" else impl)

    def _output(self, name: str, shape: tuple[int, ...], dtype: Any) -> int:
        """Address of a new array that is NaN, so that what a kernel leaves out shows."""
        self.arrays[name] = DeviceArray.empty(shape, dtype, self.device)
        self.arrays[name].fill_bytes(0xFF)
        self.device.synchronize()
        return self.arrays[name].address

    def _inputs(self) -> dict[str, int]:
        return {name: self.arrays[name].address for name in "qkv"}

    def _add_unfused(self, shape: tuple[int, ...]) -> None:
        kernels = select(self.problem, self.device.arch, "unfused")
        scores, probabilities = unfused.workspace(self.problem)
        element = self.problem.dtype.to_numpy()
        addresses = self._inputs() | {
            "s": self._output("s", (*scores.shape[:3], scores.row_stride), F32.to_numpy()),
            "p": self._output("p", (*probabilities.shape[:3], probabilities.row_stride), element),
            "o": self._output("o", shape, element),
            "lse": self._output("lse", self.problem.q.shape[:3], F32.to_numpy()),
        }
        launches = unfused.plan_attention(self.problem, kernels, self.device, addresses)
        self.parts |= {stage: [launch] for stage, launch in zip(STAGES, launches)} | {"unfused": launches}
        self.stems |= {stage: spec.stem for stage, spec in zip(STAGES, kernels)}
        self.outputs |= {"qk": "s", "softmax": "p", "pv": "o", "unfused": "o"}

    def _add_flash(self, shape: tuple[int, ...], impl: str) -> None:
        (kernel,) = select(self.problem, self.device.arch, impl, self.device)
        addresses = self._inputs() | {
            "o": self._output("flash o", shape, self.problem.dtype.to_numpy()),
            "lse": self._output("flash lse", self.problem.q.shape[:3], F32.to_numpy()),
        }
        self.parts["flash"] = plan_flash(self.device, kernel, self.problem, addresses)
        self.stems["flash"] = kernel.stem
        self.outputs["flash"] = "flash o"

    def launch(self, part: str) -> None:
        """Queue a part once."""
        with self.device.active():
            for launch in self.parts[part]:
                launch(self.stream)

    def compute(self) -> dict[str, Any]:
        """Run everything once; all outputs on the host: O in the layout of q, the others [batch, heads, rows, cols]."""
        for part in ("unfused", "flash"):
            if part in self.parts:
                self.launch(part)
        self.stream.synchronize()
        found = {name: x.to_numpy() for name, x in self.arrays.items() if name not in "qkv"}
        for name in found.keys() & {"s", "p"}:
            found[name] = found[name][..., : self.problem.seqlen_k]
        return found

    def graph(self, repeat: int, part: str) -> Graph:
        """A graph of `repeat` times a part."""
        with Graph.capture(self.stream) as graph:
            for _ in range(repeat):
                self.launch(part)
        return graph

    def work(self, part: str) -> tuple[int, int]:
        """Floating-point operations of a part, and the bytes that it must move: inputs read once, outputs written."""
        problem = self.problem
        if part in ("unfused", "flash"):
            return problem.flops, problem.min_bytes
        scores = problem.batch * problem.num_heads * problem.seqlen_q * problem.seqlen_k
        s, p = 4 * scores, problem.dtype.itemsize * scores
        q, k, v, o = (self.arrays[name].nbytes for name in "qkvo")
        return {
            "qk": (problem.flops // 2, q + k + s),
            "softmax": (0, s + p),
            "pv": (problem.flops // 2, p + v + o),
        }[part]
