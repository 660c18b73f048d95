# ruff: noqa: N802 (the driver's names)
"""Stream capture and graphs (driver API sections "Stream Management" and "Graph Management")."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from cuda.bindings.driver import (
    CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC,
    CUDA_KERNEL_NODE_PARAMS,
    CUgraph,
    CUgraphDependencyType,
    CUgraphEdgeData,
    CUgraphExec,
    CUgraphExecUpdateResultInfo,
    CUgraphNode,
    CUgraphNodeType,
    CUstreamCaptureMode,
    CUstreamCaptureStatus,
    cuuint64_t,
)

from .errors import fail
from .graph import Capture, Executable, Graph, Node
from .launch import Launch, launch_of_node
from .process import Process, api, integer, process, unsigned
from .queue import Operation, enqueue, forbid_in_capture
from .queue import stream_of as resolve_stream

_captures = itertools.count(1)


@api()
def cuStreamBeginCapture(hStream: Any, mode: CUstreamCaptureMode) -> None:
    """Begin to capture a stream into a graph instead of running its work."""
    state = process()
    stream = resolve_stream(state, hStream)
    if stream.legacy:
        raise fail("STREAM_CAPTURE_UNSUPPORTED")
    if stream.capture is not None:
        raise fail("ILLEGAL_STATE")
    graph = Graph()
    state.register(graph)
    stream.capture, stream.tail = Capture(graph, stream, mode, next(_captures)), []
    state.captures.append(stream.capture)


@api(1)
def cuStreamEndCapture(hStream: Any) -> CUgraph:
    """End a capture and return its graph."""
    state = process()
    stream = resolve_stream(state, hStream)
    capture = stream.capture
    if capture is None:
        raise fail("ILLEGAL_STATE")
    if capture.origin is not stream:
        capture.invalidated = True
        raise fail("STREAM_CAPTURE_UNMATCHED")
    relaxed = capture.mode == CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    if not relaxed and capture.thread != threading.get_ident():
        raise fail("STREAM_CAPTURE_WRONG_THREAD")
    joined = capture.joined()
    capture.finished = True
    state.captures.remove(capture)
    for each in capture.streams:
        each.capture, each.tail = None, []
    if capture.invalidated or not joined:
        _destroy(state, capture.graph)
        raise fail("STREAM_CAPTURE_INVALIDATED" if capture.invalidated else "STREAM_CAPTURE_UNJOINED")
    return CUgraph(capture.graph.handle)


def _status(capture: Capture | None) -> CUstreamCaptureStatus:
    if capture is None:
        return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    if capture.invalidated:
        return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_INVALIDATED
    return CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE


@api(1)
def cuStreamIsCapturing(hStream: Any) -> CUstreamCaptureStatus:
    """Return whether a stream is being captured."""
    state = process()
    stream = resolve_stream(state, hStream)
    if stream.legacy and any(each.blocking for capture in state.captures for each in capture.streams):
        raise fail("STREAM_CAPTURE_IMPLICIT")
    return _status(stream.capture)


@api(6)
def cuStreamGetCaptureInfo(hStream: Any) -> tuple[Any, ...]:
    """Return status, number, graph, the nodes that the next one will depend on, their edge data and their count."""
    capture, tail = (stream := resolve_stream(process(), hStream)).capture, stream.tail
    if capture is None or capture.invalidated:
        return _status(capture), cuuint64_t(0), CUgraph(0), [], [], 0
    nodes = [CUgraphNode(node.handle) for node in tail]
    edges = [CUgraphEdgeData() for _ in tail]
    return _status(capture), cuuint64_t(capture.number), CUgraph(capture.graph.handle), nodes, edges, len(tail)


@api(1, context=False)
def cuThreadExchangeStreamCaptureMode(mode: CUstreamCaptureMode) -> CUstreamCaptureMode:
    """Set the calling thread's attitude to captures and return the one before."""
    thread = process().thread
    before, thread.capture_mode = thread.capture_mode, mode
    return before


@api(1, context=False)
def cuGraphCreate(flags: Any) -> CUgraph:
    """Create an empty graph."""
    if unsigned(flags, 32):
        raise fail("INVALID_VALUE")
    return CUgraph(process().register(Graph()))


def _destroy(state: Process, graph: Graph) -> None:
    for node in graph.nodes:
        state.forget(node)
    state.forget(graph)


@api(context=False)
def cuGraphDestroy(hGraph: Any) -> None:
    """Destroy a graph and its nodes; what was instantiated from it stays."""
    state = process()
    _destroy(state, state.resolve(hGraph, Graph, "INVALID_VALUE"))


@api(2, context=False)
def cuGraphGetNodes(hGraph: Any, numNodes: Any = 0) -> tuple[list[CUgraphNode], int]:
    """Return up to ``numNodes`` nodes and how many; with 0 only how many there are."""
    nodes = process().resolve(hGraph, Graph, "INVALID_VALUE").nodes
    wanted = unsigned(numNodes, 64)
    found = [CUgraphNode(node.handle) for node in nodes[:wanted]]
    missing = [CUgraphNode(0)] * (wanted - len(found))
    return found + missing, len(found) if wanted else len(nodes)


def _data(before: Node, after: Node) -> CUgraphEdgeData:
    """What an edge says beside its ends: whether its second node may begin before the first has ended."""
    data = CUgraphEdgeData()
    if isinstance(before.work, Launch) and isinstance(after.work, Launch) and after.work.dependent:
        data.type = int(CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
        data.from_port = CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC
    return data


@api(4, context=False)
def cuGraphGetEdges(hGraph: Any, numEdges: Any = 0) -> tuple[Any, ...]:
    """Return up to ``numEdges`` edges as (from, to, data) lists and how many; with 0 only how many there are."""
    edges = process().resolve(hGraph, Graph, "INVALID_VALUE").edges()
    wanted = unsigned(numEdges, 64)
    chosen = edges[:wanted]
    missing = [CUgraphNode(0)] * (wanted - len(chosen))
    before = [CUgraphNode(edge[0].handle) for edge in chosen] + missing
    after = [CUgraphNode(edge[1].handle) for edge in chosen] + missing
    data = [_data(*edge) for edge in chosen] + [CUgraphEdgeData() for _ in missing]
    return before, after, data, len(chosen) if wanted else len(edges)


@api(1, context=False)
def cuGraphNodeGetType(hNode: Any) -> CUgraphNodeType:
    """Return what kind of work a node is."""
    return process().resolve(hNode, Node, "INVALID_VALUE").work.node_type


def _kernel(work: Any) -> Launch:
    if not isinstance(work, Launch):
        raise fail("INVALID_VALUE")
    return work


@api(1)
def cuGraphAddKernelNode(
    hGraph: Any, dependencies: Any, numDependencies: Any, nodeParams: CUDA_KERNEL_NODE_PARAMS | None
) -> CUgraphNode:
    """Add a kernel node."""
    state = process()
    graph = state.resolve(hGraph, Graph, "INVALID_VALUE")
    before = [state.resolve(node, Node, "INVALID_VALUE") for node in (dependencies or [])[: integer(numDependencies)]]
    if any(node.graph is not graph for node in before):
        raise fail("INVALID_VALUE")
    return CUgraphNode(graph.add(state, launch_of_node(state, nodeParams), before).handle)


@api(1, context=False)
def cuGraphKernelNodeGetParams(hNode: Any) -> CUDA_KERNEL_NODE_PARAMS:
    """Return a kernel node's parameters; the pointer table is valid for as long as the node keeps them."""
    return _kernel(process().resolve(hNode, Node, "INVALID_VALUE").work).node_parameters()


@api()
def cuGraphKernelNodeSetParams(hNode: Any, nodeParams: CUDA_KERNEL_NODE_PARAMS | None) -> None:
    """Replace a kernel node's parameters, for later instantiations."""
    state = process()
    node = state.resolve(hNode, Node, "INVALID_VALUE")
    node.work = launch_of_node(state, nodeParams, _kernel(node.work))


@api(1)
def cuGraphInstantiate(hGraph: Any, flags: Any) -> CUgraphExec:
    """Make a graph executable."""
    state = process()
    unsigned(flags, 64)
    return CUgraphExec(state.register(Executable(state.resolve(hGraph, Graph, "INVALID_VALUE"))))


@api(context=False)
def cuGraphExecDestroy(hGraphExec: Any) -> None:
    """Destroy an executable graph; launches that are queued still run. A capture in this thread ends by it."""
    state = process()
    forbid_in_capture(state)
    state.forget(state.resolve(hGraphExec, Executable, "INVALID_VALUE"))


@api()
def cuGraphExecKernelNodeSetParams(hGraphExec: Any, hNode: Any, nodeParams: CUDA_KERNEL_NODE_PARAMS | None) -> None:
    """Replace a kernel node's parameters in an executable graph, for later launches."""
    state = process()
    executable = state.resolve(hGraphExec, Executable, "INVALID_VALUE")
    node = state.resolve(hNode, Node, "INVALID_VALUE")
    if node not in executable.nodes:
        raise fail("INVALID_VALUE")
    position = executable.nodes.index(node)
    executable.work[position] = launch_of_node(state, nodeParams, _kernel(executable.work[position]))


@api(1)
def cuGraphExecUpdate(hGraphExec: Any, hGraph: Any) -> CUgraphExecUpdateResultInfo:
    """Take over the parameters of all nodes of a graph of the same topology.

    As in the bindings, the result says nothing more than the code where the update fails.
    """
    state = process()
    executable = state.resolve(hGraphExec, Executable, "INVALID_VALUE")
    graph = state.resolve(hGraph, Graph, "INVALID_VALUE")
    types = [work.node_type for work in executable.work]
    if graph.shape() != executable.shape or [node.work.node_type for node in graph.nodes] != types:
        raise fail("GRAPH_EXEC_UPDATE_FAILURE")
    executable.work = [node.work for node in graph.nodes]
    return CUgraphExecUpdateResultInfo()


@api()
def cuGraphUpload(hGraphExec: Any, hStream: Any) -> None:
    """Accept the upload of a graph, which the emulation has no use for."""
    state = process()
    state.resolve(hGraphExec, Executable, "INVALID_VALUE")
    resolve_stream(state, hStream)


@api()
def cuGraphLaunch(hGraphExec: Any, hStream: Any) -> None:
    """Queue all work of a graph, as it is now, after earlier launches of the same graph."""
    state = process()
    executable = state.resolve(hGraphExec, Executable, "INVALID_VALUE")
    stream = resolve_stream(state, hStream)
    if stream.capture is not None:
        stream.capture.invalidated = True
        raise fail("NOT_SUPPORTED")
    work = list(executable.work)

    def run() -> None:
        for position in executable.order(state.random if state.seed else None):
            work[position].run(state)

    after: list[Operation] = [] if executable.last is None else [executable.last]
    touches = [address for each in work for address in each.touches]
    executable.last = enqueue(state, stream, run, after, touches)
