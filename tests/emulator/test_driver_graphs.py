"""Capture, replay and update of graphs on the emulated driver."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from driver_cases import address, download, error, fill, fill_table, kernels, ok, saxpy_table, start, upload

from flashcore_drv.emulator import driver
from flashcore_drv.emulator.driver.hostmemory import host_bytes

MODE = driver.CUstreamCaptureMode
STATUS = driver.CUstreamCaptureStatus
NODE = driver.CUgraphNodeType
GLOBAL, LOCAL = MODE.CU_STREAM_CAPTURE_MODE_GLOBAL, MODE.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
RELAXED = MODE.CU_STREAM_CAPTURE_MODE_RELAXED
NON_BLOCKING = driver.CUstream_flags.CU_STREAM_NON_BLOCKING


@pytest.fixture(autouse=True)
def functions():
    driver.reset("sm_89")
    start()
    return kernels()[1]


@pytest.fixture
def stream():
    return ok(driver.cuStreamCreate(NON_BLOCKING))


def nodes_of(graph):
    _, count = ok(driver.cuGraphGetNodes(graph))
    return ok(driver.cuGraphGetNodes(graph, count))[0]


def captured_fill(functions, stream, pointer, value, threads=32):
    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    ok(fill(functions["fill"], pointer, value, stream, threads))
    return ok(driver.cuStreamEndCapture(stream))


def test_captured_work_runs_at_every_launch_and_not_before(functions, stream):
    x, y = upload(np.ones(64, np.float32)), upload(np.zeros(64, np.float32))
    table = saxpy_table(2, x, y, 64)
    ok(driver.cuStreamBeginCapture(stream, GLOBAL))
    ok(driver.cuLaunchKernel(functions["saxpy"], 1, 1, 1, 64, 1, 1, 0, stream, table.address, 0))
    table.values[0][:] = 1000
    graph = ok(driver.cuStreamEndCapture(stream))
    ok(driver.cuStreamSynchronize(stream))
    assert not download(y, 64, np.float32).any()
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphUpload(executable, stream))
    ok(driver.cuGraphDestroy(graph))
    for _ in range(3):
        ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuGraphExecDestroy(executable))
    ok(driver.cuStreamSynchronize(stream))
    assert download(y, 64, np.float32).tolist() == [6] * 64
    assert error(driver.cuGraphLaunch(executable, stream)) == "INVALID_VALUE"


def test_a_graph_shows_its_nodes(functions, stream):
    pointer, pinned = ok(driver.cuMemAlloc(128)), ok(driver.cuMemAllocHost(128))
    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    status, number, graph, tail, _, count = ok(driver.cuStreamGetCaptureInfo(stream))
    assert (status, tail, count) == (STATUS.CU_STREAM_CAPTURE_STATUS_ACTIVE, [], 0)
    assert int(number) > 0
    ok(driver.cuMemsetD32Async(pointer, 1, 32, stream))
    ok(fill(functions["fill"], pointer, 2, stream))
    ok(driver.cuMemcpyDtoHAsync(pinned, pointer, 128, stream))
    *_, tail, edges, count = ok(driver.cuStreamGetCaptureInfo(stream))
    assert len(tail) == len(edges) == count == 1
    assert ok(driver.cuStreamEndCapture(stream)) == graph
    nodes = nodes_of(graph)
    assert nodes[-1] == tail[0]
    types = [ok(driver.cuGraphNodeGetType(node)) for node in nodes]
    assert types == [NODE.CU_GRAPH_NODE_TYPE_MEMSET, NODE.CU_GRAPH_NODE_TYPE_KERNEL, NODE.CU_GRAPH_NODE_TYPE_MEMCPY]
    *_, edges = ok(driver.cuGraphGetEdges(graph))
    before, after, _, _ = ok(driver.cuGraphGetEdges(graph, edges))
    assert list(zip(before, after)) == list(itertools.pairwise(nodes))
    parameters = ok(driver.cuGraphKernelNodeGetParams(nodes[1]))
    assert int(parameters.func) == int(functions["fill"])
    assert (parameters.gridDimX, parameters.blockDimX, parameters.sharedMemBytes) == (1, 32, 0)
    struct = host_bytes(int(host_bytes(parameters.kernelParams, 8).view(np.uint64)[0]), 16)
    assert struct[:8].view(np.uint64)[0] == int(pointer)
    assert struct[8:12].view(np.uint32)[0] == 2
    assert error(driver.cuGraphKernelNodeGetParams(nodes[0])) == "INVALID_VALUE"
    ok(driver.cuGraphDestroy(graph))
    assert error(driver.cuGraphNodeGetType(nodes[0])) == "INVALID_VALUE"
    assert error(driver.cuGraphInstantiate(graph, 0)) == "INVALID_VALUE"


def test_pointers_of_an_executable_graph_can_be_changed(functions, stream):
    first, second = upload(np.zeros(32, np.uint32)), upload(np.zeros(32, np.uint32))
    graph = captured_fill(functions, stream, first, 5)
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    (node,) = nodes_of(graph)
    parameters = ok(driver.cuGraphKernelNodeGetParams(node))
    table = fill_table(second, 6)
    parameters.kernelParams = table.address
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuGraphExecKernelNodeSetParams(executable, node, parameters))
    table.values[0]["value"] = 1000
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuStreamSynchronize(stream))
    assert download(first, 32, np.uint32).tolist() == [5] * 32
    assert download(second, 32, np.uint32).tolist() == [6] * 32
    other = captured_fill(functions, stream, first, 5)
    assert error(driver.cuGraphExecKernelNodeSetParams(executable, nodes_of(other)[0], parameters)) == "INVALID_VALUE"
    assert error(driver.cuGraphExecKernelNodeSetParams(executable, node, None)) == "INVALID_VALUE"


def test_an_executable_graph_takes_over_a_graph_of_the_same_shape(functions, stream):
    pointer = upload(np.zeros(32, np.uint32))
    executable = ok(driver.cuGraphInstantiate(captured_fill(functions, stream, pointer, 5), 0))
    same = captured_fill(functions, stream, pointer, 8)
    result = ok(driver.cuGraphExecUpdate(executable, same))
    assert result.result == driver.CUgraphExecUpdateResult.CU_GRAPH_EXEC_UPDATE_SUCCESS
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuStreamSynchronize(stream))
    assert download(pointer, 32, np.uint32).tolist() == [8] * 32
    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    ok(driver.cuMemsetD32Async(pointer, 1, 32, stream))
    other = ok(driver.cuStreamEndCapture(stream))
    assert error(driver.cuGraphExecUpdate(executable, other)) == "GRAPH_EXEC_UPDATE_FAILURE"


def test_a_graph_does_not_keep_a_module(functions, stream):
    executable = ok(driver.cuGraphInstantiate(captured_fill(functions, stream, ok(driver.cuMemAlloc(128)), 5), 0))
    ok(driver.cuModuleUnload(ok(driver.cuFuncGetModule(functions["fill"]))))
    ok(driver.cuGraphLaunch(executable, stream))
    assert error(driver.cuStreamSynchronize(stream)) == "ILLEGAL_ADDRESS"
    assert "whose module was unloaded" in str(driver.last_error())


def test_graphs_can_be_built_by_hand(functions, stream):
    pointer = upload(np.zeros(64, np.uint32))
    graph = ok(driver.cuGraphCreate(0))
    parameters = driver.CUDA_KERNEL_NODE_PARAMS()
    parameters.func = functions["fill"]
    parameters.gridDimX = parameters.gridDimY = parameters.gridDimZ = parameters.blockDimY = parameters.blockDimZ = 1
    parameters.blockDimX = 32
    table = fill_table(pointer, 3)
    parameters.kernelParams = table.address
    first = ok(driver.cuGraphAddKernelNode(graph, None, 0, parameters))
    table.values[0]["out"] += 64
    ok(driver.cuGraphAddKernelNode(graph, [first], 1, parameters))
    table.values[0]["out"] -= 64
    table.values[0]["value"] = 4
    ok(driver.cuGraphKernelNodeSetParams(first, parameters))
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuStreamSynchronize(stream))
    assert download(pointer, 64, np.uint32).tolist() == [4] * 16 + [3] * 32 + [0] * 16
    empty = ok(driver.cuGraphCreate(0))
    assert error(driver.cuGraphAddKernelNode(empty, [first], 1, parameters)) == "INVALID_VALUE"


@pytest.mark.parametrize("seed", range(6))
def test_other_streams_join_a_capture_through_events(seed):
    driver.reset("sm_89", seed=seed)
    start()
    functions = kernels()[1]
    first, second = (ok(driver.cuStreamCreate(NON_BLOCKING)) for _ in range(2))
    word, fork, join = upload(np.zeros(32, np.uint32)), ok(driver.cuEventCreate(0)), ok(driver.cuEventCreate(0))
    ok(driver.cuStreamBeginCapture(first, LOCAL))
    ok(driver.cuMemsetD32Async(word, 1, 32, first))
    ok(driver.cuEventRecord(fork, first))
    ok(driver.cuStreamWaitEvent(second, fork, 0))
    ok(fill(functions["fill"], word, 2, second))
    assert ok(driver.cuStreamIsCapturing(second)) == STATUS.CU_STREAM_CAPTURE_STATUS_ACTIVE
    assert error(driver.cuEventElapsedTime(fork, fork)) == "CAPTURED_EVENT"
    assert ok(driver.cuStreamIsCapturing(second)) == STATUS.CU_STREAM_CAPTURE_STATUS_INVALIDATED
    assert error(driver.cuStreamEndCapture(first)) == "STREAM_CAPTURE_INVALIDATED"

    ok(driver.cuStreamBeginCapture(first, LOCAL))
    ok(driver.cuMemsetD32Async(word, 1, 32, first))
    ok(driver.cuEventRecord(fork, first))
    ok(driver.cuStreamWaitEvent(second, fork, 0))
    ok(fill(functions["fill"], word, 2, second))
    ok(driver.cuEventRecord(join, second))
    ok(driver.cuStreamWaitEvent(first, join, 0))
    ok(driver.cuMemsetD32Async(word, 3, 1, first))
    executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(first)), 0))
    ok(driver.cuGraphLaunch(executable, first))
    ok(driver.cuStreamSynchronize(first))
    assert download(word, 32, np.uint32).tolist() == [3] + [2] * 31


def test_work_that_does_not_come_back_to_the_first_stream_is_unjoined(functions, stream):
    other, word = ok(driver.cuStreamCreate(NON_BLOCKING)), upload(np.zeros(32, np.uint32))
    event = ok(driver.cuEventCreate(0))
    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    ok(driver.cuEventRecord(event, stream))
    ok(driver.cuStreamWaitEvent(other, event, 0))
    ok(fill(functions["fill"], word, 2, other))
    assert error(driver.cuStreamEndCapture(stream)) == "STREAM_CAPTURE_UNJOINED"
    assert ok(driver.cuStreamIsCapturing(other)) == STATUS.CU_STREAM_CAPTURE_STATUS_NONE


def invalidating(action, expected, functions, mode=GLOBAL):
    """Do something that a capture does not allow, and see it fail and the capture with it."""
    stream = ok(driver.cuStreamCreate(0))
    ok(driver.cuStreamBeginCapture(stream, mode))
    assert error(action(stream)) == expected
    status = ok(driver.cuStreamIsCapturing(stream))
    assert status == STATUS.CU_STREAM_CAPTURE_STATUS_INVALIDATED
    pointer = 0
    assert error(fill(functions["fill"], pointer, 1, stream)) == "STREAM_CAPTURE_INVALIDATED"
    assert error(driver.cuStreamEndCapture(stream)) == "STREAM_CAPTURE_INVALIDATED"
    assert ok(driver.cuStreamIsCapturing(stream)) == STATUS.CU_STREAM_CAPTURE_STATUS_NONE


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda s: driver.cuStreamSynchronize(s), "STREAM_CAPTURE_UNSUPPORTED"),
        (lambda s: driver.cuStreamQuery(s), "STREAM_CAPTURE_UNSUPPORTED"),
        (lambda s: driver.cuCtxSynchronize(), "STREAM_CAPTURE_UNSUPPORTED"),
        (lambda s: driver.cuMemAlloc(4), "STREAM_CAPTURE_UNSUPPORTED"),
        (lambda s: driver.cuMemAllocHost(4), "STREAM_CAPTURE_UNSUPPORTED"),
        (lambda s: driver.cuMemAllocAsync(4, s), "NOT_SUPPORTED"),
        (lambda s: driver.cuMemAllocAsync(4, 0), "STREAM_CAPTURE_IMPLICIT"),
        (lambda s: driver.cuStreamSynchronize(0), "STREAM_CAPTURE_IMPLICIT"),
        (lambda s: driver.cuEventRecord(ok(driver.cuEventCreate(0)), 0), "STREAM_CAPTURE_IMPLICIT"),
    ],
)
def test_what_a_capture_does_not_allow_ends_it(action, expected, functions):
    invalidating(action, expected, functions)


def test_uncaptured_events_do_not_enter_a_capture(functions):
    event = ok(driver.cuEventCreate(0))
    ok(driver.cuEventRecord(event, 0))
    invalidating(lambda s: driver.cuStreamWaitEvent(s, event, 0), "STREAM_CAPTURE_ISOLATION", functions)


def test_capture_modes_decide_whose_calls_are_refused(stream):
    answers = []

    def elsewhere(mode=None):
        def run():
            start()
            if mode is not None:
                ok(driver.cuThreadExchangeStreamCaptureMode(mode))
            answers.append(driver.cuMemAlloc(4)[0].name.removeprefix("CUDA_ERROR_"))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    elsewhere()
    ok(driver.cuStreamEndCapture(stream))
    ok(driver.cuStreamBeginCapture(stream, GLOBAL))
    elsewhere(RELAXED)
    elsewhere()
    assert error(driver.cuStreamEndCapture(stream)) == "STREAM_CAPTURE_INVALIDATED"
    ok(driver.cuStreamBeginCapture(stream, RELAXED))
    ok(driver.cuMemAlloc(4))
    ok(driver.cuStreamEndCapture(stream))
    assert answers == ["CUDA_SUCCESS", "CUDA_SUCCESS", "STREAM_CAPTURE_UNSUPPORTED"]


def test_a_capture_is_ended_where_it_began(stream):
    other, event = ok(driver.cuStreamCreate(NON_BLOCKING)), ok(driver.cuEventCreate(0))
    assert error(driver.cuStreamEndCapture(stream)) == "ILLEGAL_STATE"
    assert error(driver.cuStreamBeginCapture(0, LOCAL)) == "STREAM_CAPTURE_UNSUPPORTED"
    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    assert error(driver.cuStreamBeginCapture(stream, LOCAL)) == "ILLEGAL_STATE"
    answers = []

    def elsewhere():
        start()
        answers.append(error(driver.cuStreamEndCapture(stream)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == ["STREAM_CAPTURE_WRONG_THREAD"]
    ok(driver.cuEventRecord(event, stream))
    ok(driver.cuStreamWaitEvent(other, event, 0))
    assert error(driver.cuStreamEndCapture(other)) == "STREAM_CAPTURE_UNMATCHED"
    assert error(driver.cuStreamEndCapture(stream)) == "STREAM_CAPTURE_INVALIDATED"


def test_host_memory_of_a_captured_copy_is_read_at_replay(stream):
    source, word = np.full(1, 1, np.uint32), upload(np.zeros(1, np.uint32))
    ok(driver.cuStreamBeginCapture(stream, LOCAL))
    ok(driver.cuMemcpyHtoDAsync(word, address(source), 4, stream))
    executable = ok(driver.cuGraphInstantiate(ok(driver.cuStreamEndCapture(stream)), 0))
    source[0] = 2
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuStreamSynchronize(stream))
    assert download(word, 1, np.uint32) == 2
