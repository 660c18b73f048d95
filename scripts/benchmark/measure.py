"""Timing: candidates in turns in one process, GPU time by events around graph replays, medians with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from flashcore_drv.runtime import Event, Stream

WARM_UP = 2  # rounds that are not counted
REPLAY_US = 400.0  # least length of a replay: ten times what the host needs to queue one

Replay = Callable[[Stream], None]
"""Queues some launches in a stream, from a graph."""

Sample = Callable[[], float]
"""One measurement of a candidate: microseconds a launch."""

Timer = Callable[[Replay, int], Sample]
"""Makes the measurement of a replay of so many launches."""


Name = TypeVar("Name", bound=Hashable)


class EventTimer:
    """GPU time between two events in a stream.

    Every timed replay follows an uncounted one of the same graph. So the GPU is at work while the host queues the
    timed one, whose host time does not show, however long it is for a peer, and the L2 is in the state in which the
    candidate itself leaves it. Then the GPU rests as long as it worked: without a rest it meets its power limit, and
    the clocks that a candidate gets depend on what ran before it.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.start, self.end = Event(stream.device), Event(stream.device)

    def __call__(self, replay: Replay, repeat: int) -> Sample:
        """The measurement of a replay of `repeat` launches."""

        def sample() -> float:
            replay(self.stream)
            self.start.record(self.stream)
            replay(self.stream)
            self.end.record(self.stream)
            self.end.synchronize()
            us = self.end.elapsed_us(self.start)
            time.sleep(2 * us / 1e6)
            return us / repeat

        return sample


def clock_sample(work: Callable[[], None], repeat: int) -> Sample:
    """Wall time of `work`, which makes `repeat` launches and waits for them: for what no graph of ours can hold."""

    def sample() -> float:
        start = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - start) / 1000 / repeat

    return sample


def interleaved(samples: Mapping[Name, Sample], rounds: int, warm_up: int = WARM_UP) -> dict[Name, list[float]]:
    """`rounds` measurements of every candidate, in turns; each round starts with the next one.

    Taking turns lets clocks and temperature act on all alike; moving the start keeps a candidate from always following
    the same other one.
    """
    names = list(samples)
    times: dict[Name, list[float]] = {name: [] for name in names}
    for turn in range(warm_up + rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            us = samples[name]()
            if turn >= warm_up:
                times[name].append(us)
    return times


def spread(values: Sequence[float]) -> tuple[float, list[float]]:
    """Median, and the 5th and 95th percentile."""
    low, median, high = (float(x) for x in np.percentile(values, (5, 50, 95)))
    return median, [low, high]


def as_members(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The members `name` and `name`_5_95 of a row, to 6 digits."""
    median, around = spread(values)
    return {name: rounded(median), f"{name}_5_95": [rounded(x) for x in around]}


def rounded(value: float) -> float:
    """To the 6 digits that a measurement may have."""
    return float(f"{value:.6g}")


def paired(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Ratios within each round."""
    return [a / b for a, b in zip(theirs, ours)]


def repeat_for(us: float, replay_us: float) -> int:
    """Launches in a graph that takes about `replay_us`, and at least REPLAY_US."""
    return max(1, round(max(replay_us, REPLAY_US) / max(us, 0.5)))
