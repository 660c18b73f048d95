# ruff: noqa: N802 (the driver's names)
"""Streams and events (driver API sections "Stream Management" and "Event Management")."""

from __future__ import annotations

from typing import Any

from cuda.bindings.driver import CUcontext, CUevent, CUevent_flags, CUstream, CUstream_flags

from .devices import GREATEST_PRIORITY, LEAST_PRIORITY
from .errors import fail
from .graph import Capture, Node
from .process import Context, Process, api, integer, process, unsigned
from .queue import (
    Operation,
    Stream,
    complete,
    drop_destroyed,
    enqueue,
    finish,
    finish_all,
    forbid_in_capture,
    forbid_legacy,
    poll,
)
from .queue import stream_of as resolve_stream


class Event:
    """An event: the operation, or the nodes of a capture, that it was recorded after."""

    def __init__(self, context: Context, flags: int) -> None:
        self.handle = 0
        self.context = context
        self.timing = not flags & CUevent_flags.CU_EVENT_DISABLE_TIMING
        self.operation: Operation | None = None
        self.capture: Capture | None = None
        self.nodes: list[Node] = []


def _create(flags: Any, priority: Any) -> CUstream:
    state = process()
    if unsigned(flags, 32) not in (CUstream_flags.CU_STREAM_DEFAULT, CUstream_flags.CU_STREAM_NON_BLOCKING):
        raise fail("INVALID_VALUE")
    clamped = max(GREATEST_PRIORITY, min(LEAST_PRIORITY, integer(priority)))
    return CUstream(state.register(Stream(state.current(), integer(flags), clamped)))


@api(1)
def cuStreamCreate(Flags: Any) -> CUstream:
    """Create a stream."""
    return _create(Flags, 0)


@api(1)
def cuStreamCreateWithPriority(flags: Any, priority: Any) -> CUstream:
    """Create a stream; the priority is kept, clamped to the range, and changes nothing."""
    return _create(flags, priority)


@api()
def cuStreamDestroy(hStream: Any) -> None:
    """Destroy a stream; what is queued in it still runs."""
    state = process()
    stream = state.resolve(hStream, Stream)
    if stream.capture is not None:
        stream.capture.invalidated = True
    stream.destroyed = True
    state.forget(stream)
    drop_destroyed(state, stream.context)


def _refuse_captured(stream: Stream) -> None:
    if stream.capture is not None:
        stream.capture.invalidated = True
        raise fail("STREAM_CAPTURE_UNSUPPORTED")


@api()
def cuStreamSynchronize(hStream: Any) -> None:
    """Wait for a stream: this is where its work runs."""
    state = process()
    stream = resolve_stream(state, hStream)
    _refuse_captured(stream)
    forbid_legacy(state, stream)
    forbid_in_capture(state)
    finish(state, stream)
    stream.context.pool.trim(stream.context.pool.release_threshold)


@api()
def cuStreamQuery(hStream: Any) -> None:
    """Tell whether a stream is done; each unsuccessful query makes one step, so that polling comes to an end."""
    state = process()
    stream = resolve_stream(state, hStream)
    _refuse_captured(stream)
    forbid_legacy(state, stream)
    for each in [*stream.peers(), stream] if stream.legacy else [stream]:
        if each.queue and not poll(state, each.queue[-1]):
            raise fail("NOT_READY")
    finish(state, stream)


@api()
def cuCtxSynchronize() -> None:
    """Wait for everything in the current context."""
    state = process()
    forbid_in_capture(state)
    finish_all(state, state.current())


@api(1)
def cuStreamGetCtx(hStream: Any) -> CUcontext:
    """Return the context of a stream."""
    return CUcontext(resolve_stream(process(), hStream).context.handle)


@api(1)
def cuStreamGetFlags(hStream: Any) -> int:
    """Return the flags of a stream."""
    return resolve_stream(process(), hStream).flags


@api(1)
def cuStreamGetPriority(hStream: Any) -> int:
    """Return the priority of a stream."""
    return resolve_stream(process(), hStream).priority


@api(1)
def cuStreamGetId(hStream: Any) -> int:
    """Return a number that no other stream of the process has."""
    return resolve_stream(process(), hStream).number


@api()
def cuStreamWaitEvent(hStream: Any, hEvent: Any, Flags: Any) -> None:
    """Make later work of a stream wait for what an event was last recorded after."""
    state = process()
    stream, event = resolve_stream(state, hStream), state.resolve(hEvent, Event)
    if event.capture is not None:
        _join(stream, event)
        return
    if event.operation is None:
        return
    if stream.capture is not None:
        stream.capture.invalidated = True
        raise fail("STREAM_CAPTURE_ISOLATION")
    enqueue(state, stream, lambda: None, after=[event.operation])


def _join(stream: Stream, event: Event) -> None:
    """Make a stream part of the capture in which an event was recorded."""
    capture = event.capture
    assert capture is not None
    if capture.invalidated:
        raise fail("STREAM_CAPTURE_INVALIDATED")
    if capture.finished:
        raise fail("INVALID_VALUE")
    if stream.legacy:
        capture.invalidated = True
        raise fail("STREAM_CAPTURE_IMPLICIT")
    if stream.capture is not None and stream.capture is not capture:
        stream.capture.invalidated = capture.invalidated = True
        raise fail("STREAM_CAPTURE_MERGE")
    if stream.capture is None:
        stream.capture = capture
        stream.tail = []
        capture.streams.append(stream)
    stream.tail = list(dict.fromkeys([*stream.tail, *event.nodes]))


@api(1)
def cuEventCreate(Flags: Any) -> CUevent:
    """Create an event."""
    state = process()
    if unsigned(Flags, 32) & ~7:
        raise fail("INVALID_VALUE")
    return CUevent(state.register(Event(state.current(), integer(Flags))))


@api()
def cuEventDestroy(hEvent: Any) -> None:
    """Destroy an event; work that waits for it still does."""
    state = process()
    state.forget(state.resolve(hEvent, Event))


def _record(hEvent: Any, hStream: Any) -> None:
    state = process()
    event, stream = state.resolve(hEvent, Event), resolve_stream(state, hStream)
    if stream.capture is not None:
        if stream.capture.invalidated:
            raise fail("STREAM_CAPTURE_INVALIDATED")
        event.capture, event.nodes, event.operation = stream.capture, list(stream.tail), None
        return
    event.operation = enqueue(state, stream, lambda: None)
    event.capture, event.nodes = None, []


@api()
def cuEventRecord(hEvent: Any, hStream: Any) -> None:
    """Record an event after all that is in a stream now."""
    _record(hEvent, hStream)


@api()
def cuEventRecordWithFlags(hEvent: Any, hStream: Any, flags: Any) -> None:
    """Record an event; only the default flags are emulated."""
    if unsigned(flags, 32):
        raise fail("NOT_SUPPORTED")
    _record(hEvent, hStream)


def _recorded(state: Process, hEvent: Any) -> Event:
    event = state.resolve(hEvent, Event)
    if event.capture is not None:
        event.capture.invalidated = True
        raise fail("CAPTURED_EVENT")
    return event


@api()
def cuEventSynchronize(hEvent: Any) -> None:
    """Wait for an event; one that was never recorded is complete."""
    state = process()
    event = _recorded(state, hEvent)
    forbid_in_capture(state)
    if event.operation is not None:
        complete(state, event.operation)


@api()
def cuEventQuery(hEvent: Any) -> None:
    """Tell whether an event is complete; each unsuccessful query makes one step."""
    state = process()
    event = _recorded(state, hEvent)
    forbid_in_capture(state)
    if event.operation is not None and not poll(state, event.operation):
        raise fail("NOT_READY")


@api(1)
def cuEventElapsedTime(hStart: Any, hEnd: Any) -> float:
    """Return milliseconds of the host's clock that the emulation took from one event to the other.

    It says how long the emulation took, and nothing about a GPU.
    """
    state = process()
    start, end = _recorded(state, hStart), _recorded(state, hEnd)
    if not (start.timing and end.timing) or start.operation is None or end.operation is None:
        raise fail("INVALID_HANDLE")
    if not (poll(state, start.operation) and poll(state, end.operation)):
        raise fail("NOT_READY")
    return (end.operation.finished - start.operation.finished) * 1e3
