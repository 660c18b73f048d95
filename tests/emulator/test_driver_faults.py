"""Errors of the emulated driver: those of kernels, and those that a test asks for."""

from __future__ import annotations

import numpy as np
import pytest
from driver_cases import OK, download, error, fill, kernels, ok, start, upload

from flashcore_drv.emulator import EmulationError, driver

RESULT = driver.CUresult
NON_BLOCKING = driver.CUstream_flags.CU_STREAM_NON_BLOCKING


@pytest.fixture(autouse=True)
def functions():
    driver.reset("sm_89")
    start()
    return kernels()[1]


def test_an_illegal_address_shows_when_something_waits_and_stays(functions):
    good, small = upload(np.zeros(32, np.uint32)), ok(driver.cuMemAlloc(64))
    stream, event = ok(driver.cuStreamCreate(NON_BLOCKING)), ok(driver.cuEventCreate(0))
    assert fill(functions["fill"], small, 1, stream) == (OK,)
    assert fill(functions["fill"], good, 1, stream) == (OK,)
    ok(driver.cuEventRecord(event, stream))
    assert error(driver.cuEventSynchronize(event)) == "ILLEGAL_ADDRESS"
    account = driver.last_error()
    assert isinstance(account, EmulationError)
    assert "cuMemAlloc #2 (64 bytes" in str(account)
    for call in (
        lambda: driver.cuMemAlloc(4),
        lambda: driver.cuMemFree(good),
        lambda: driver.cuStreamSynchronize(stream),
        lambda: driver.cuStreamSynchronize(0),
        lambda: driver.cuCtxSynchronize(),
        lambda: fill(functions["fill"], good, 1, stream),
        lambda: driver.cuModuleUnload(1),
    ):
        assert error(call()) == "ILLEGAL_ADDRESS"
    assert driver.cuGetErrorName(RESULT.CUDA_ERROR_ILLEGAL_ADDRESS)[0] == OK
    assert ok(driver.cuDeviceGetCount()) == 1
    ok(driver.cuDevicePrimaryCtxRelease(0))
    start()
    assert ok(driver.cuMemGetInfo())[0] == ok(driver.cuMemGetInfo())[1]


def test_work_behind_a_failure_does_not_run(functions):
    host = ok(driver.cuMemAllocHost(4))
    stream, small = ok(driver.cuStreamCreate(NON_BLOCKING)), ok(driver.cuMemAlloc(64))
    ok(fill(functions["fill"], small, 1, stream))
    ok(driver.cuMemcpyDtoHAsync(host, small, 4, stream))
    assert error(driver.cuStreamSynchronize(stream)) == "ILLEGAL_ADDRESS"
    assert [name for name, _ in driver.reports()] == []


@pytest.mark.parametrize("seed", range(1, 6))
def test_with_a_seed_a_failure_may_show_in_any_later_call(seed):
    driver.reset("sm_89", seed=seed)
    start()
    function, small = kernels()[1]["fill"], ok(driver.cuMemAlloc(64))
    assert fill(function, small, 1) == (OK,)
    answers = {driver.cuMemsetD8(small, 0, 4)[0].name for _ in range(10)}
    answers.add(driver.cuCtxSynchronize()[0].name)
    assert answers <= {"CUDA_SUCCESS", "CUDA_ERROR_ILLEGAL_ADDRESS"}
    assert error(driver.cuCtxSynchronize()) == "ILLEGAL_ADDRESS"


def test_a_misaligned_address(functions):
    pointer = ok(driver.cuMemAlloc(256))
    ok(fill(functions["fill"], int(pointer) + 2, 1))
    assert error(driver.cuCtxSynchronize()) == "MISALIGNED_ADDRESS"


def test_the_nth_call_fails_and_does_nothing():
    with driver.inject("cuMemAllocAsync", call=3, result=RESULT.CUDA_ERROR_OUT_OF_MEMORY) as fault:
        answers = [driver.cuMemAllocAsync(64, 0)[0] for _ in range(5)]
    assert [answer == OK for answer in answers] == [True, True, False, True, True]
    assert answers[2] == RESULT.CUDA_ERROR_OUT_OF_MEMORY
    assert fault.struck == 1
    assert driver.calls()["cuMemAllocAsync"] == 5
    pool = ok(driver.cuDeviceGetDefaultMemPool(0))
    used = driver.cuMemPoolGetAttribute(pool, driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    assert int(ok(used)) == 4 * 64


def test_every_call_can_fail_and_afterwards_none():
    with driver.inject("cuStreamCreate", call=None, result=RESULT.CUDA_ERROR_UNKNOWN) as fault:
        assert [error(driver.cuStreamCreate(0)) for _ in range(3)] == ["UNKNOWN"] * 3
    assert fault.struck == 3
    ok(driver.cuStreamCreate(0))


def test_faults_of_several_functions_at_once():
    with (
        driver.inject("cuMemAlloc", result=RESULT.CUDA_ERROR_OUT_OF_MEMORY),
        driver.inject("cuEventCreate", call=2, result=RESULT.CUDA_ERROR_NOT_PERMITTED),
    ):
        ok(driver.cuEventCreate(0))
        assert error(driver.cuMemAlloc(4)) == "OUT_OF_MEMORY"
        assert error(driver.cuEventCreate(0)) == "NOT_PERMITTED"
        ok(driver.cuMemAlloc(4))


def test_a_sticky_fault_loses_the_context():
    with driver.inject("cuStreamSynchronize", result=RESULT.CUDA_ERROR_ILLEGAL_ADDRESS, sticky=True):
        assert error(driver.cuStreamSynchronize(0)) == "ILLEGAL_ADDRESS"
    assert error(driver.cuMemAlloc(4)) == "ILLEGAL_ADDRESS"
    assert error(driver.cuCtxSynchronize()) == "ILLEGAL_ADDRESS"
    assert driver.last_error() is None


def test_initialisation_can_fail():
    driver.reset("sm_89")
    with driver.inject("cuInit", result=RESULT.CUDA_ERROR_NO_DEVICE):
        assert error(driver.cuInit(0)) == "NO_DEVICE"
    with driver.inject("cuDriverGetVersion", result=RESULT.CUDA_ERROR_UNKNOWN):
        assert error(driver.cuDriverGetVersion()) == "UNKNOWN"


def test_memory_runs_out_on_demand():
    pointer = upload(np.arange(4, dtype=np.uint32))
    with driver.memory_limit(64):
        assert error(driver.cuMemAlloc(1024)) == "OUT_OF_MEMORY"
        assert error(driver.cuMemAllocAsync(1024, 0)) == "OUT_OF_MEMORY"
    ok(driver.cuMemAlloc(1024))
    assert download(pointer, 4, np.uint32).tolist() == [0, 1, 2, 3]


def test_loading_a_module_can_run_out_of_memory():
    before = ok(driver.cuMemGetInfo())[0]
    with driver.memory_limit(24 + 8):
        assert error(driver.cuModuleLoadData(kernels.__globals__["PTX"])) == "OUT_OF_MEMORY"
    assert ok(driver.cuMemGetInfo())[0] == before


def test_wrong_faults_are_refused():
    with pytest.raises(ValueError, match="cuFantasy"), driver.inject("cuFantasy", result=RESULT.CUDA_ERROR_UNKNOWN):
        pass
    with pytest.raises(ValueError, match="from 1"), driver.inject("cuInit", call=0, result=RESULT.CUDA_ERROR_UNKNOWN):
        pass
