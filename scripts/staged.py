"""Unfused attention whose intermediate results stay in memory, for the scripts that check and time its stages."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from flashcore_drv import unfused
from flashcore_drv.dispatch import select
from flashcore_drv.dtypes import F32
from flashcore_drv.problem import Problem
from flashcore_drv.runtime import Device, DeviceArray, Event, Graph, Stream

STAGES = ("qk", "softmax", "pv")
WARM_UP = 3  # replays that are not counted

Replay = Callable[[Stream], None]


class StagedAttention:
    """The stages of one problem on a device, with everything between them kept.

    Parameters
    ----------
    problem : Problem
        Made from contiguous `inputs`.
    inputs : list of numpy.ndarray
        q, k and v.
    device : Device
        Where.

    Attributes
    ----------
    arrays : dict of str to DeviceArray
        q, k, v, s, p, o, lse; rows of s and p are padded to a multiple of 8. Outputs are NaN before the first run.
    """

    def __init__(self, problem: Problem, inputs: list[Any], device: Device, impl: str = "unfused") -> None:
        self.problem, self.device = problem, device
        self.kernels = select(problem, device.arch, impl)
        self.stream = Stream(device)
        element = problem.dtype.to_numpy()
        scores, probabilities = unfused.workspace(problem)
        self.arrays = {name: DeviceArray.from_numpy(x, device) for name, x in zip("qkv", inputs)}
        outputs = {
            "s": ((*scores.shape[:3], scores.row_stride), F32.to_numpy()),
            "p": ((*probabilities.shape[:3], probabilities.row_stride), element),
            "o": (inputs[0].shape, element),
            "lse": (problem.q.shape[:3], F32.to_numpy()),
        }
        for name, (shape, dtype) in outputs.items():
            self.arrays[name] = DeviceArray.empty(shape, dtype, device)
            self.arrays[name].fill_bytes(0xFF)
        device.synchronize()
        addresses = {name: x.address for name, x in self.arrays.items()}
        self.launches = dict(zip(STAGES, unfused.plan_attention(problem, self.kernels, device, addresses)))
        self.stems = dict(zip(STAGES, (spec.stem for spec in self.kernels)))

    def launch(self, stages: tuple[str, ...] = STAGES) -> None:
        """Queue stages once."""
        with self.device.active():
            for stage in stages:
                self.launches[stage](self.stream)

    def results(self) -> dict[str, Any]:
        """S, P, O and lse on the host; O in the layout of q, the others [batch, heads, rows, cols]."""
        self.stream.synchronize()
        found = {name: self.arrays[name].to_numpy() for name in ("s", "p", "o", "lse")}
        for name in "sp":
            found[name] = found[name][..., : self.problem.seqlen_k]
        return found

    def graph(self, repeat: int, stages: tuple[str, ...] = STAGES) -> Graph:
        """A graph of `repeat` times these stages."""
        with Graph.capture(self.stream) as graph:
            for _ in range(repeat):
                self.launch(stages)
        return graph

    def bytes_moved(self, stage: str) -> int:
        """Bytes that a stage reads once and writes once."""
        problem = self.problem
        scores = problem.batch * problem.num_heads * problem.seqlen_q * problem.seqlen_k
        s, p = 4 * scores, problem.dtype.itemsize * scores
        q, k, v, o = (self.arrays[name].nbytes for name in "qkvo")
        return {"qk": q + k + s, "softmax": s + p, "pv": p + v + o}[stage]


def interleaved_us(candidates: dict[str, Replay], stream: Stream, repeat: int, rounds: int) -> dict[str, list[float]]:
    """GPU microseconds a launch for every candidate, in turns: `rounds` samples each.

    Parameters
    ----------
    candidates : dict of str to function of a stream
        Each queues `repeat` launches in the stream, from a graph.
    """
    start, end = Event(stream.device), Event(stream.device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(WARM_UP + rounds):
        for name, replay in candidates.items():
            start.record(stream)
            replay(stream)
            end.record(stream)
            end.synchronize()
            if turn >= WARM_UP:
                times[name].append(end.elapsed_us(start) / repeat)
    start.close()
    end.close()
    return times


def spread(samples: list[float]) -> tuple[float, list[float]]:
    """Median, and the 5th and 95th percentile."""
    low, *_, high = statistics.quantiles(samples, n=20)
    return statistics.median(samples), [low, high]
