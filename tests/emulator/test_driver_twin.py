"""The emulated driver and the real one answer the same calls with the same result codes.

Each scenario runs in a process of its own on the real driver (some of them lose the context) and here on the emulator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import driver as bindings
from driver_cases import PTX, address, fill, fill_table, kernels, ok, saxpy_table, start

from flashcore_drv.emulator import driver as emulated

MODE = bindings.CUstreamCaptureMode
FUNCTION = bindings.CUfunction_attribute
DYNAMIC = FUNCTION.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


def gpu_present():
    try:
        return bindings.cuInit(0)[0] == bindings.CUresult.CUDA_SUCCESS
    except RuntimeError:
        return False


def frees(d):
    pointer, queued = ok(d.cuMemAlloc(64)), ok(d.cuMemAllocAsync(64, 0))
    yield "free null", d.cuMemFree(0)
    yield "free inside", d.cuMemFree(int(pointer) + 4)
    yield "free", d.cuMemFree(pointer)
    yield "free twice", d.cuMemFree(pointer)
    yield "allocate nothing", d.cuMemAlloc(0)
    yield "allocate nothing in a stream", d.cuMemAllocAsync(0, 0)
    yield "free in a stream", d.cuMemFreeAsync(queued, 0)
    yield "free twice in a stream", d.cuMemFreeAsync(queued, 0)
    yield "free null in a stream", d.cuMemFreeAsync(0, 0)
    yield "free stream-ordered memory at once", d.cuMemFree(ok(d.cuMemAllocAsync(64, 0)))
    yield "too much", d.cuMemAlloc(1 << 50)
    yield "too much in a stream", d.cuMemAllocAsync(1 << 50, 0)
    yield "no host memory", d.cuMemAllocHost(0)
    yield "free host memory that is none", d.cuMemFreeHost(address(np.zeros(4)))


def copies(d):
    pointer, data = ok(d.cuMemAlloc(1 << 21)), np.zeros(64, np.uint8)
    yield "nothing", d.cuMemcpyHtoD(0, 0, 0)
    yield "from null", d.cuMemcpyHtoD(pointer, 0, 64)
    yield "to null", d.cuMemcpyHtoD(0, address(data), 64)
    yield "misaligned fill", d.cuMemsetD32(int(pointer) + 2, 0, 1)
    yield "fill null", d.cuMemsetD8(0, 0, 1)
    yield "fill nothing", d.cuMemsetD8(pointer, 0, 0)
    yield "address range of the host", d.cuMemGetAddressRange(address(data))
    attribute = d.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    yield "attribute of the host", d.cuPointerGetAttribute(attribute, address(data))
    yield "attributes of the host", d.cuPointerGetAttributes(1, [attribute], address(data))
    yield "no attributes", d.cuPointerGetAttributes(0, [], address(data))


def null_handles(d):
    yield "module", d.cuModuleUnload(0)
    yield "function", d.cuModuleGetFunction(0, b"x")
    yield "event", d.cuEventRecord(0, 0)
    yield "launch", d.cuLaunchKernel(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    yield "destroy stream", d.cuStreamDestroy(0)
    yield "graph", d.cuGraphInstantiate(0, 0)
    yield "graph exec", d.cuGraphLaunch(0, 0)
    yield "image", d.cuModuleLoadData(None)
    yield "flags of a stream", d.cuStreamCreate(2)
    yield "device", d.cuDeviceGet(99)


def launches(d):
    _, functions = kernels(d)
    pointer = ok(d.cuMemAlloc(1 << 12))
    table = fill_table(pointer, 1)

    def launch(grid=(1, 1, 1), block=(32, 1, 1), shared=0, f="fill", parameters=table.address, extra=0):
        return d.cuLaunchKernel(functions[f], *grid, *block, shared, 0, parameters, extra)

    yield "no blocks", launch(grid=(0, 1, 1))
    yield "no threads", launch(block=(32, 0, 1))
    yield "grid y", launch(grid=(1, 65536, 1))
    yield "threads x", launch(block=(1025, 1, 1))
    yield "threads z", launch(block=(1, 1, 65))
    yield "threads", launch(block=(32, 33, 1))
    yield "shared memory", launch(shared=49153)
    yield "no parameters", launch(parameters=0)
    bounded = saxpy_table(1, pointer, pointer, 0)
    yield "beyond launch bounds", launch(f="saxpy", block=(257, 1, 1), parameters=bounded.address)
    yield "at launch bounds", launch(f="saxpy", block=(256, 1, 1), parameters=bounded.address)
    fill_f = functions["fill"]
    optin = d.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    most = ok(d.cuDeviceGetAttribute(optin, 0))
    yield "too much shared memory", d.cuFuncSetAttribute(fill_f, DYNAMIC, most + 1)
    yield "negative shared memory", d.cuFuncSetAttribute(fill_f, DYNAMIC, -1)
    yield "most shared memory", d.cuFuncSetAttribute(fill_f, DYNAMIC, most)
    yield "launch with it", launch(shared=most)
    yield "attribute that cannot be set", d.cuFuncSetAttribute(fill_f, FUNCTION.CU_FUNC_ATTRIBUTE_NUM_REGS, 3)
    yield "parameter beyond", d.cuFuncGetParamInfo(fill_f, 1)
    yield "no threads to occupy", d.cuOccupancyMaxActiveBlocksPerMultiprocessor(fill_f, 0, 0)
    yield "too many threads to occupy", d.cuOccupancyMaxActiveBlocksPerMultiprocessor(fill_f, 1025, 0)
    yield "synchronise", d.cuCtxSynchronize()


def images(d):
    yield "empty", d.cuModuleLoadData(b"")
    yield "text", d.cuModuleLoadData(b"no PTX at all")
    yield "newer target", d.cuModuleLoadData(PTX.replace(b"sm_80", b"sm_100"))
    yield "wrong PTX", d.cuModuleLoadData(PTX.replace(b"mad.lo.s32", b"@@@"))
    module, _ = kernels(d)
    yield "no such function", d.cuModuleGetFunction(module, b"none")
    yield "no such variable", d.cuModuleGetGlobal(module, b"none")


def events(d):
    first, second = (ok(d.cuEventCreate(0)) for _ in range(2))
    untimed = ok(d.cuEventCreate(d.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    yield "query unrecorded", d.cuEventQuery(first)
    yield "wait for unrecorded", d.cuStreamWaitEvent(0, first, 0)
    yield "elapsed unrecorded", d.cuEventElapsedTime(first, second)
    ok(d.cuEventRecord(first, 0))
    ok(d.cuEventRecord(untimed, 0))
    ok(d.cuCtxSynchronize())
    yield "elapsed half recorded", d.cuEventElapsedTime(first, second)
    yield "elapsed untimed", d.cuEventElapsedTime(first, untimed)
    yield "flags", d.cuEventCreate(1 << 10)


def _captured(d, action, mode=MODE.CU_STREAM_CAPTURE_MODE_GLOBAL):
    stream = ok(d.cuStreamCreate(0))
    ok(d.cuStreamBeginCapture(stream, mode))
    answer = action(stream)
    return answer, d.cuStreamEndCapture(stream)


def captures(d):
    _, functions = kernels(d)
    pointer, data = ok(d.cuMemAlloc(128)), np.zeros(32, np.uint32)
    event = ok(d.cuEventCreate(0))
    ok(d.cuEventRecord(event, 0))
    stream = ok(d.cuStreamCreate(1))
    actions = {
        "synchronise": lambda s: d.cuStreamSynchronize(s),
        "query": lambda s: d.cuStreamQuery(s),
        "synchronise context": lambda s: d.cuCtxSynchronize(),
        "allocate": lambda s: d.cuMemAlloc(4),
        "allocate host": lambda s: d.cuMemAllocHost(4),
        "legacy stream": lambda s: d.cuStreamSynchronize(0),
        "work in the legacy stream": lambda s: fill(functions["fill"], pointer, 1, 0, driver=d),
        "foreign event": lambda s: d.cuStreamWaitEvent(s, event, 0),
        "query foreign event": lambda s: d.cuEventQuery(event),
        "record": lambda s: d.cuEventRecord(event, s),
        "kernel": lambda s: fill(functions["fill"], pointer, 1, s, driver=d),
        "copy": lambda s: d.cuMemcpyHtoDAsync(pointer, address(data), 4, s),
        "other stream": lambda s: d.cuStreamSynchronize(stream),
        "begin again": lambda s: d.cuStreamBeginCapture(s, MODE.CU_STREAM_CAPTURE_MODE_GLOBAL),
    }
    for name, action in actions.items():
        answer, end = _captured(d, action)
        yield name, answer
        yield f"end after {name}", end
    yield "end without begin", d.cuStreamEndCapture(stream)
    yield "legacy", d.cuStreamBeginCapture(0, MODE.CU_STREAM_CAPTURE_MODE_GLOBAL)
    yield "nothing captured", d.cuStreamGetCaptureInfo(stream)


def graphs(d):
    _, functions = kernels(d)
    pointer = ok(d.cuMemAlloc(128))
    _, graph = _captured(d, lambda s: ok(fill(functions["fill"], pointer, 1, s, driver=d)))
    _, other = _captured(d, lambda s: ok(d.cuMemsetD32Async(pointer, 1, 32, s)))
    executable = ok(d.cuGraphInstantiate(ok(graph), 0))
    node = ok(d.cuGraphGetNodes(ok(graph), 1))[0][0]
    memset = ok(d.cuGraphGetNodes(ok(other), 1))[0][0]
    parameters = ok(d.cuGraphKernelNodeGetParams(node))
    yield "parameters of a memset", d.cuGraphKernelNodeGetParams(memset)
    yield "set parameters", d.cuGraphExecKernelNodeSetParams(executable, node, parameters)
    yield "no parameters", d.cuGraphExecKernelNodeSetParams(executable, node, None)
    yield "node of another graph", d.cuGraphExecKernelNodeSetParams(executable, memset, parameters)
    yield "update by another graph", d.cuGraphExecUpdate(executable, ok(other))
    yield "update", d.cuGraphExecUpdate(executable, ok(graph))
    ok(d.cuGraphDestroy(ok(graph)))
    yield "launch", d.cuGraphLaunch(executable, 0)
    yield "synchronise", d.cuStreamSynchronize(0)


def lost(d, offset):
    _, functions = kernels(d)
    pointer, stream, event = ok(d.cuMemAlloc(128)), ok(d.cuStreamCreate(1)), ok(d.cuEventCreate(0))
    ok(d.cuEventRecord(event, stream))
    ok(d.cuCtxSynchronize())
    yield "launch", fill(functions["fill"], offset(pointer), 1, stream, driver=d)
    yield "synchronise", d.cuStreamSynchronize(stream)
    yield "again", d.cuStreamSynchronize(stream)
    yield "allocate", d.cuMemAlloc(4)
    yield "free", d.cuMemFree(pointer)
    yield "launch again", fill(functions["fill"], pointer, 1, stream, driver=d)
    yield "current context", d.cuCtxGetCurrent()
    yield "device of the context", d.cuCtxGetDevice()
    yield "device attribute", d.cuDeviceGetAttribute(d.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_WARP_SIZE, 0)
    yield "query event", d.cuEventQuery(event)


def illegal_address(d):
    yield from lost(d, lambda pointer: 16)


def misaligned_address(d):
    yield from lost(d, lambda pointer: int(pointer) + 2)


SCENARIOS = {
    f.__name__: f
    for f in (
        frees, copies, null_handles, launches, images, events, captures, graphs, illegal_address, misaligned_address
    )
}  # fmt: skip


def play(driver, name):
    """Result codes of a scenario, by what was tried."""
    start(driver)
    return {what: answer[0].name for what, answer in SCENARIOS[name](driver)}


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="needs a CUDA driver to compare with")
@pytest.mark.parametrize("name", SCENARIOS)
def test_result_codes_are_those_of_the_driver(name):
    here = Path(__file__)
    played = subprocess.run([sys.executable, here, name], cwd=here.parent, capture_output=True, text=True, check=True)
    emulated.reset("sm_90")
    assert play(emulated, name) == json.loads(played.stdout)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_emulator_answers_every_call(name):
    emulated.reset("sm_90")
    answers = play(emulated, name)
    assert "CUDA_ERROR_UNKNOWN" not in answers.values()
    assert len(answers) >= 6


if __name__ == "__main__":
    print(json.dumps(play(bindings, sys.argv[1])))
