"""Work that is recorded once and replayed with one call."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import driver
from .device import Device
from .errors import DriverError, HandleError
from .hostmemory import words_at
from .module import Launch
from .stream import DEFAULT_STREAMS, Stream, from_collector, outside_of_captures


@dataclass(frozen=True)
class Aimed:
    """A launch on certain arrays.

    Attributes
    ----------
    launch : Launch or None
        The launch; None where nothing is to be done.
    pointer_words : tuple of int
        The words of its parameters that depend on the arrays: all others are alike in every such launch.
    """

    launch: Launch | None
    pointer_words: tuple[int, ...]


class Plan(Protocol):
    """What makes launches of one kernel that differ in nothing but the arrays."""

    def aim(self, *arrays: Any, **options: Any) -> Aimed:
        """The launch on these arrays."""


class Graph:
    """Recorded work of a stream.

    >>> with Graph.capture(stream) as graph:
    ...     plan(q, k, v, out, stream=stream)
    >>> graph.replay(stream)
    >>> graph.update(plan, q, k, v, another_out)
    >>> graph.replay(stream)

    A graph is not locked: replays and updates of one graph by several threads at once must be kept apart.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._driver = driver.module()
        self._success = self._driver.CUresult.CUDA_SUCCESS
        self._recorded: Any = None
        self._finalizer: Any = None
        self._nodes: weakref.WeakKeyDictionary[Plan, list[tuple[Any, Any]]] = weakref.WeakKeyDictionary()
        self._executable: Any = None

    @staticmethod
    def capture(stream: Stream) -> Capture:
        """Record what is queued in `stream` in a ``with`` instead of running it; not the legacy default stream."""
        return Capture(stream)

    def replay(self, stream: Stream) -> None:
        """Queue the recorded work.

        Raises
        ------
        HandleError
            Before the end of the capture and after :meth:`close`.
        DriverError
            If the driver fails.
        """
        executable, handle = self._executable, stream.raw
        if executable is None:
            raise HandleError("graph: replayed before its capture ended, or after close()")
        if driver.forked:
            raise driver.fork_refusal()
        if handle is None or handle <= _LAST_DEFAULT:  # closed; and of default streams, each context has its own
            with self.device.active():
                driver.call("cuGraphLaunch", executable, stream.handle)
            return
        status = self._driver.cuGraphLaunch(executable, handle)[0]
        if status is not self._success:
            driver.retry(self.device, status, "cuGraphLaunch", executable, handle)

    def update(self, plan: Plan, *arrays: Any, call: int = 0, **options: Any) -> None:
        """Let a captured call of a plan have other arrays in replays from now on; what is queued keeps its own.

        Parameters
        ----------
        plan : Plan
            What was called.
        *arrays, **options
            What the call would be made with now, but for `stream`; `check` too.
        call : int
            Which of the plan's captured calls, in the order in which they were made.

        Raises
        ------
        HandleError
            If the plan was not called that often during the capture; before its end, and after :meth:`close`.
        InvalidArgument
            As the call.
        DriverError
            If the driver fails.
        """
        if self._executable is None:
            raise HandleError("graph: updated before its capture ended, or after close()")
        aimed = plan.aim(*arrays, **options)
        launch = aimed.launch
        if launch is None:
            return
        nodes = self._nodes.get(plan)
        if nodes is None:
            nodes = self._nodes[plan] = self._launches(launch, aimed.pointer_words)
        if not 0 <= call < len(nodes):
            raise HandleError(f"graph: {plan!r} was captured {len(nodes)} times; call={call} is not one of them")
        node, params = nodes[call]
        params.kernelParams = launch.table
        with self.device.active():
            driver.call("cuGraphExecKernelNodeSetParams", self._executable, node, params)

    def _launches(self, launch: Launch, pointer_words: Sequence[int]) -> list[tuple[Any, Any]]:
        """The captured launches, in the order in which they were made, that differ from this one in pointers at most.

        Each is a node and its parameters. Those of the graph stay what they were: what is updated is the executable.
        """
        kind = self._driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
        alike = np.ones(len(launch.words), bool)
        alike[list(pointer_words)] = False
        wanted = np.frombuffer(launch.words, np.int64)[alike]
        found = []
        with self.device.active():
            for node in self._in_order():
                if driver.call("cuGraphNodeGetType", node) == kind:
                    params = driver.call("cuGraphKernelNodeGetParams", node)
                    grid = params.gridDimX, params.gridDimY
                    if int(params.func) == int(launch.kernel.handle) and grid == (launch.blocks, launch.groups):
                        words = words_at(int(words_at(int(params.kernelParams), 1)[0]), len(launch.words))
                        if np.array_equal(words[alike], wanted):
                            found.append((node, params))
        return found

    def _in_order(self) -> Iterator[Any]:
        """The nodes of the graph, each after those that it depends on."""
        _, count = driver.call("cuGraphGetNodes", self._recorded, 0)
        nodes, _ = driver.call("cuGraphGetNodes", self._recorded, count)
        count = driver.call("cuGraphGetEdges", self._recorded, 0)[-1]
        before, after, *_ = driver.call("cuGraphGetEdges", self._recorded, count)
        waits: dict[int, set[int]] = {int(x): set() for x in nodes}
        for x, y in zip(before, after):
            waits[int(y)].add(int(x))
        handles = {int(x): x for x in nodes}
        while waits:
            free = [x for x, others in waits.items() if not others & waits.keys()]
            for x in free:
                del waits[x]
                yield handles[x]

    def _recorded_as(self, recorded: Any) -> None:
        """Take what a capture recorded."""
        try:
            self._executable = driver.call("cuGraphInstantiate", recorded, 0)
        except BaseException:
            driver.call("cuGraphDestroy", recorded)
            raise
        self._recorded = recorded
        self._finalizer = weakref.finalize(self, from_collector, _destroy, self.device, self._executable, recorded)
        self._finalizer.atexit = False  # the driver gives everything back at exit

    def close(self) -> None:
        """Destroy the graph. A second call does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None and self._finalizer.detach() is not None:
            _destroy(self.device, executable, self._recorded)


_LAST_DEFAULT = max(DEFAULT_STREAMS)


class Capture:
    """A capture: a graph between `__enter__` and `__exit__` of a ``with``, which is complete after it.

    No generator, for the reason that :class:`~flashcore_drv.runtime.device.Active` is none.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._graph = Graph(stream.device)

    def __enter__(self) -> Graph:
        mode = driver.module().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self._stream.device.active():
            driver.call("cuStreamBeginCapture", self._stream.handle, mode)
        return self._graph

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stream.device.active():
            try:
                recorded = driver.call("cuStreamEndCapture", self._stream.handle)
            except DriverError:
                if kind is None:
                    raise
                return  # the error on its way says why
            if kind is None:
                self._graph._recorded_as(recorded)
            else:
                driver.call("cuGraphDestroy", recorded)


def _destroy(device: Device, executable: Any, recorded: Any) -> None:
    with outside_of_captures(), device.active():
        driver.call("cuGraphExecDestroy", executable)
        driver.call("cuGraphDestroy", recorded)
