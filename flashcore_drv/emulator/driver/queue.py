"""Streams as queues, and the order in which their work runs.

Work waits in its stream until something waits for it. Then operations run one at a time: each after the one before it
in its stream and after everything that it depends on (events, the legacy stream, an earlier launch of the same graph).

Every operation carries a vector clock: how far into each stream its past reaches. So the use of stream-ordered memory
by work that does not come after its allocation is found whatever the order of execution was.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from cuda.bindings.driver import CUstream_flags, CUstreamCaptureMode

from ..errors import EmulationError
from .errors import Failure, fail
from .failures import account, result_of
from .process import Context, Process, integer

if TYPE_CHECKING:
    from .graph import Capture, Node
    from .work import Work

QUEUE_DEPTH = 1024
"""Operations that a stream holds before the caller has to wait, as the driver's launch queue does."""

_numbers = itertools.count(1)


class Operation:
    """Work in a stream."""

    __slots__ = ("after", "clock", "done", "finished", "run", "stream")

    def __init__(self, stream: Stream, run: Callable[[], None], after: list[Operation], clock: dict[int, int]) -> None:
        self.stream, self.run, self.after, self.clock = stream, run, after, clock
        self.done = False
        self.finished = 0.0


class Stream:
    """A stream: a queue of operations, and its part in a capture.

    Attributes
    ----------
    blocking : bool
        Whether it is ordered with the legacy stream.
    clock : dict of int to int
        The clock of the operation queued last.
    tail : list of Node
        While it is captured: the nodes that the next one will depend on.
    """

    def __init__(self, context: Context, flags: int, priority: int) -> None:
        self.handle = 0
        self.context, self.flags, self.priority = context, flags, priority
        self.blocking = not flags & CUstream_flags.CU_STREAM_NON_BLOCKING
        self.number = next(_numbers)
        self.position = 0
        self.queue: deque[Operation] = deque()
        self.clock: dict[int, int] = {}
        self.capture: Capture | None = None
        self.tail: list[Node] = []
        self.destroyed = False
        context.streams.append(self)

    @property
    def legacy(self) -> bool:
        """Whether it is the legacy default stream."""
        return self is self.context.legacy

    def peers(self) -> Iterator[Stream]:
        """Yield the streams whose work so far comes before whatever is queued here next."""
        legacy = self.context.legacy
        if self.legacy:
            yield from (stream for stream in self.context.streams if stream.blocking and stream is not self)
        elif self.blocking and legacy is not None:
            yield legacy

    def abandon(self) -> None:
        """Drop all queued work."""
        for operation in self.queue:
            operation.done = True
        self.queue.clear()


def stream_of(state: Process, handle: Any) -> Stream:
    """Return the stream of a handle: 0 and 1 are the legacy default stream, 2 is the calling thread's own."""
    context = state.current()
    value = integer(handle)
    if value in (0, 1):
        if context.legacy is None:
            context.legacy = Stream(context, 0, 0)
        return context.legacy
    if value == 2:
        thread = threading.get_ident()
        if thread not in context.per_thread:
            context.per_thread[thread] = Stream(context, 0, 0)
        return context.per_thread[thread]
    return state.resolve(value, Stream)


def forbid_legacy(state: Process, stream: Stream) -> None:
    """Refuse work on the legacy stream while a stream that is ordered with it is captured."""
    if not stream.legacy:
        return
    captures = [capture for capture in state.captures if any(s.blocking for s in capture.streams)]
    for capture in captures:
        capture.invalidated = True
    if captures:
        raise fail("STREAM_CAPTURE_IMPLICIT")


def forbid_in_capture(state: Process) -> None:
    """Refuse a call that might synchronise, as the mode of the captures in progress asks for."""
    modes = CUstreamCaptureMode
    if state.thread.capture_mode == modes.CU_STREAM_CAPTURE_MODE_RELAXED:
        return
    everyone = state.thread.capture_mode == modes.CU_STREAM_CAPTURE_MODE_GLOBAL
    thread = threading.get_ident()
    captures = [
        capture
        for capture in state.captures
        if (capture.thread == thread and capture.mode != modes.CU_STREAM_CAPTURE_MODE_RELAXED)
        or (everyone and capture.mode == modes.CU_STREAM_CAPTURE_MODE_GLOBAL)
    ]
    for capture in captures:
        capture.invalidated = True
    if captures:
        raise fail("STREAM_CAPTURE_UNSUPPORTED")


def submit(state: Process, stream: Stream, work: Work) -> Operation | None:
    """Put work into a stream, or into the graph into which the stream is captured (then there is no operation)."""
    if work.context is not stream.context:
        raise fail("INVALID_HANDLE")
    if stream.capture is not None:
        if stream.capture.invalidated:
            raise fail("STREAM_CAPTURE_INVALIDATED")
        stream.tail = [stream.capture.graph.add(state, work, stream.tail)]
        return None
    return enqueue(state, stream, lambda: work.run(state), touches=work.touches)


def enqueue(
    state: Process,
    stream: Stream,
    run: Callable[[], None],
    after: Iterable[Operation] = (),
    touches: Iterable[int] = (),
) -> Operation:
    """Queue an operation.

    Parameters
    ----------
    run : callable
        What to do when its turn comes.
    after : iterable of Operation
        What it has to wait for beside its stream's order.
    touches : iterable of int
        Device addresses that it was given.
    """
    forbid_legacy(state, stream)
    before = list(after)
    clock = _merged(state.host_clock, stream.clock, *(operation.clock for operation in before))
    for peer in stream.peers():
        clock = _merged(clock, peer.clock)
        if peer.queue:
            before.append(peer.queue[-1])
    stream.position += 1
    clock[stream.number] = stream.position
    early = _early_use(state, clock, touches)
    if early is not None:
        run = functools.partial(account, early)
    operation = Operation(stream, run, [each for each in before if not each.done], clock)
    stream.clock = clock
    stream.queue.append(operation)
    if len(stream.queue) > QUEUE_DEPTH:
        complete(state, stream.queue[0])
    if state.seed:
        for _ in range(state.random.randrange(3)):
            _advance(state, None)
    return operation


def complete(state: Process, operation: Operation) -> None:
    """Run operations until this one is done; afterwards the host knows of its past.

    Raises
    ------
    Failure
        If its context has failed, by this operation or another.
    """
    while not operation.done:
        _advance(state, operation)
    _learn(state, operation.clock)
    if operation.stream.context.error is not None:
        raise Failure(operation.stream.context.error)


def finish(state: Process, stream: Stream) -> None:
    """Run all that is queued in a stream."""
    for peer in stream.peers() if stream.legacy else ():
        finish(state, peer)
    if stream.queue:
        complete(state, stream.queue[-1])
    _learn(state, stream.clock)


def finish_all(state: Process, context: Context) -> None:
    """Run all that is queued in a context."""
    for stream in list(context.streams):
        finish(state, stream)
    drop_destroyed(state, context)
    context.pool.trim(context.pool.release_threshold)


def drop_destroyed(state: Process, context: Context) -> None:
    """Forget streams that were destroyed and are empty."""
    gone = {stream.number for stream in context.streams if stream.destroyed and not stream.queue}
    if not gone:
        return
    context.streams = [stream for stream in context.streams if stream.number not in gone]
    state.host_clock = _without(state.host_clock, gone)
    for stream in context.streams:
        stream.clock = _without(stream.clock, gone)
    for allocation in state.allocations.values():
        if allocation.born is not None and allocation.born[0] in gone:
            allocation.born = None


def poll(state: Process, operation: Operation) -> bool:
    """Tell whether an operation is done, and if it is not, make one step towards it."""
    if operation.done:
        _learn(state, operation.clock)
        return True
    _advance(state, operation)
    if operation.stream.context.error is not None:
        raise Failure(operation.stream.context.error)
    return False


def _learn(state: Process, clock: dict[int, int]) -> None:
    state.host_clock = _merged(state.host_clock, clock)


def _merged(*clocks: dict[int, int]) -> dict[int, int]:
    merged = dict(clocks[0])
    for clock in clocks[1:]:
        for number, position in clock.items():
            if merged.get(number, 0) < position:
                merged[number] = position
    return merged


def _without(clock: dict[int, int], gone: set[int]) -> dict[int, int]:
    return {number: position for number, position in clock.items() if number not in gone}


def _advance(state: Process, target: Operation | None) -> None:
    """Run one operation that may run: with a seed any of them, else the first that ``target`` needs."""
    if state.seed:
        heads = [s.queue[0] for context in state.contexts for s in context.streams if s.queue]
        ready = [head for head in heads if all(each.done for each in head.after)]
        if not ready:
            return
        _execute(state, state.random.choice(ready))
        return
    assert target is not None
    head = target.stream.queue[0]
    while (waits_for := next((each for each in head.after if not each.done), None)) is not None:
        head = waits_for.stream.queue[0]
    _execute(state, head)


def _execute(state: Process, operation: Operation) -> None:
    operation.stream.queue.popleft()
    try:
        operation.run()
    except EmulationError as error:
        state.corrupt(operation.stream.context, result_of(error), error)
    finally:
        operation.done, operation.finished = True, time.perf_counter()
        operation.after, operation.run = [], _nothing


def _nothing() -> None:
    """What an operation that has run still has to do."""


def _early_use(state: Process, clock: dict[int, int], touches: Iterable[int]) -> str | None:
    """Say which memory is used by work in whose past its allocation is not."""
    for address in touches:
        allocation = state.owner(address)
        if allocation is None:
            continue
        if allocation.born is not None and clock.get(allocation.born[0], 0) < allocation.born[1]:
            return (
                f"{allocation} is used in a stream that does not come after the stream in which it was allocated: "
                "record an event there and wait for it here"
            )
    return None
