"""Work that is recorded once and replayed with one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from . import driver
from .device import Device
from .errors import HandleError
from .stream import Stream


class Graph:
    """Recorded work of a stream.

    >>> with Graph.capture(stream) as graph:
    ...     launch(stream)
    >>> graph.replay(stream)
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._executable: Any = None

    @staticmethod
    @contextlib.contextmanager
    def capture(stream: Stream) -> Iterator[Graph]:
        """Record what the body queues in `stream` instead of running it; not the legacy default stream."""
        graph = Graph(stream.device)
        mode = driver.module().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with stream.device.active():
            driver.call("cuStreamBeginCapture", stream.handle, mode)
            complete = False
            try:
                yield graph
                complete = True
            finally:
                recorded = driver.call("cuStreamEndCapture", stream.handle)
                try:
                    if complete:
                        graph._executable = driver.call("cuGraphInstantiate", recorded, 0)
                finally:
                    driver.call("cuGraphDestroy", recorded)

    def replay(self, stream: Stream) -> None:
        """Queue the recorded work. Raises HandleError before the end of the capture and after :meth:`close`."""
        if self._executable is None:
            raise HandleError("graph: replayed before its capture ended, or after close()")
        with self.device.active():
            driver.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Destroy the graph. A second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            with self.device.active():
                driver.call("cuGraphExecDestroy", executable)
