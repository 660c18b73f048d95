"""Streams and events."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from . import driver
from .device import Device
from .errors import HandleError

DEFAULT_STREAMS = (0, 1, 2)
"""The legacy default stream, twice, and that of the thread."""


def from_collector(release: Callable[..., None], *args: Any) -> None:
    """Give a resource back for the garbage collector: it warns, for there is nobody to raise to, and goes on."""
    try:
        release(*args)
    except Exception as error:
        warnings.warn(f"not given back to the driver: {error}", ResourceWarning, stacklevel=2)


@contextlib.contextmanager
def outside_of_captures() -> Iterator[None]:
    """What is given back has no part in a capture of this thread, and does not end it: it may be by the collector."""
    mode = driver.module().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = driver.call("cuThreadExchangeStreamCaptureMode", mode)
    try:
        yield
    finally:
        driver.call("cuThreadExchangeStreamCaptureMode", before)


def _destroy(device: Device, handle: int) -> None:
    with outside_of_captures(), device.active():
        driver.call("cuStreamDestroy", handle)


class Stream:
    """An order of work on a GPU.

    Parameters
    ----------
    device : Device
        The GPU.
    handle : int, optional
        A ``CUstream`` of somebody else, not owned (0 is the legacy default stream). By default a new one is made that
        does not wait for the legacy default stream; it is destroyed with this object.

    Attributes
    ----------
    raw : int or None
        The ``CUstream``; None after :meth:`close`. For where the check of `handle` takes too much time.
    key : object
        Alike for objects of the same open stream only, and unlike every int that is no such stream.
    """

    __slots__ = ("__weakref__", "_finalizer", "_owned", "device", "key", "raw")

    def __init__(self, device: Device, handle: int | None = None) -> None:
        self.device = device
        self._owned = handle is None
        self.raw: int | None = handle
        if handle is None:
            flags = driver.module().CUstream_flags.CU_STREAM_NON_BLOCKING
            with device.active():
                self.raw = int(driver.call("cuStreamCreate", int(flags)))
            self._finalizer = weakref.finalize(self, from_collector, _destroy, device, self.raw)
            self._finalizer.atexit = False  # the driver gives everything back at exit
        self.key: object = (self.raw, device.ordinal) if self.raw in DEFAULT_STREAMS else self.raw

    @property
    def handle(self) -> int:
        """The ``CUstream`` as an integer. Raises HandleError after :meth:`close`."""
        if self.raw is None:
            raise HandleError("stream: used after close()")
        return self.raw

    @property
    def lasting(self) -> bool:
        """Whether the stream is sure to exist: a default stream, or one that this object owns and has not closed.

        A stream of somebody else may be destroyed at any time, and the driver crashes on the handle of one that was.
        """
        return self.raw in DEFAULT_STREAMS or (self._owned and self.raw is not None)

    def synchronize(self) -> None:
        """Wait for all work in the stream."""
        with self.device.active():
            driver.call("cuStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Let work that is queued from now on wait for `event`."""
        with self.device.active():
            driver.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def close(self) -> None:
        """Destroy the stream, once its work is done, if this object made it. A second call does nothing."""
        handle, self.raw, self.key = self.raw, None, "closed"
        if self._owned and handle is not None and self._finalizer.detach() is not None:
            _destroy(self.device, handle)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def of(device: Device, stream: object) -> Stream:
        """The stream that a caller means.

        Parameters
        ----------
        device : Device
            The GPU that the work runs on.
        stream : None, int, Stream, or an object with ``__cuda_stream__``, ``cuda_stream`` or ``ptr``
            None is the legacy default stream; an int is a ``CUstream``.

        Raises
        ------
        HandleError
            If it is none of these or belongs to another GPU.
        """
        if isinstance(stream, Stream):
            if stream.device != device:
                raise HandleError(f"stream belongs to {stream.device}, the arrays are on {device}")
            return stream
        return Stream(device, Stream.number(stream))

    @staticmethod
    def number(stream: object) -> int:
        """The ``CUstream`` that a caller means, on whatever GPU; as :meth:`of`."""
        if stream.__class__ is int and stream >= 0:
            return stream
        handle: Any = stream
        if stream is None:
            return 0
        if isinstance(stream, Stream):
            return stream.handle
        if hasattr(stream, "__cuda_stream__"):
            protocol = stream.__cuda_stream__
            _, handle = protocol() if callable(protocol) else protocol
        else:
            handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
        if isinstance(handle, bool) or not isinstance(handle, int) or handle < 0:
            raise HandleError(
                f"stream={stream!r} is not a stream; allowed: None, an int handle, flashcore_drv.runtime.Stream, "
                "or an object with __cuda_stream__, cuda_stream or ptr"
            )
        return handle

    def __cuda_stream__(self) -> tuple[int, int]:
        """(0, the ``CUstream``): the protocol by which others take this stream."""
        return 0, self.handle


class Event:
    """A point in a stream, with its time."""

    def __init__(self, device: Device) -> None:
        self.device = device
        with device.active():
            self._made = driver.call("cuEventCreate", 0)
        self._handle: int | None = int(self._made)

    @property
    def handle(self) -> int:
        """The ``CUevent`` as an integer. Raises HandleError after :meth:`close`."""
        if self._handle is None:
            raise HandleError("event: used after close()")
        return self._handle

    def record(self, stream: Stream) -> None:
        """Mark the point in `stream` after the work queued so far."""
        with self.device.active():
            driver.call("cuEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the point is reached."""
        with self.device.active():
            driver.call("cuEventSynchronize", self.handle)

    def elapsed_us(self, start: Event) -> float:
        """Microseconds of GPU time from `start` to this event, both reached (resolution about 0.5 µs)."""
        with self.device.active():
            return float(driver.call("cuEventElapsedTime", start.handle, self.handle)) * 1000

    def close(self) -> None:
        """Destroy the event. A second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with self.device.active():
                driver.call("cuEventDestroy", handle)
