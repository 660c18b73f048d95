"""Devices, primary contexts and threads of the emulated driver."""

from __future__ import annotations

import threading

import pytest
from driver_cases import OK, error, fill, kernels, ok, start

from flashcore_drv.emulator import arch, driver

ATTRIBUTE = driver.CUdevice_attribute


@pytest.fixture(autouse=True)
def fresh():
    driver.reset("sm_89")


def attribute(name, device=0):
    return ok(driver.cuDeviceGetAttribute(getattr(ATTRIBUTE, f"CU_DEVICE_ATTRIBUTE_{name}"), device))


def test_nothing_works_before_initialisation():
    assert error(driver.cuDeviceGetCount()) == "NOT_INITIALIZED"
    assert error(driver.cuMemAlloc(1)) == "NOT_INITIALIZED"
    assert ok(driver.cuDriverGetVersion()) >= 13000
    assert error(driver.cuInit(1)) == "INVALID_VALUE"
    ok(driver.cuInit(0))
    assert ok(driver.cuDeviceGetCount()) == 1
    assert error(driver.cuMemAlloc(1)) == "INVALID_CONTEXT"
    assert error(driver.cuStreamSynchronize(0)) == "INVALID_CONTEXT"


@pytest.mark.parametrize("name", arch.ARCHS)
def test_every_architecture_reports_its_facts(name):
    driver.reset(name)
    start()
    facts = arch.named(name)
    text = ok(driver.cuDeviceGetName(128, 0))
    assert len(text) == 128
    assert text.rstrip(b"\0") == f"Emulated {name} (NumPy, no GPU)".encode()
    assert (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")) == facts.compute_capability
    assert attribute("MAX_SHARED_MEMORY_PER_BLOCK") == 49152
    assert attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN") == attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR") - 1024
    assert attribute("MAX_THREADS_PER_MULTIPROCESSOR") % 32 == 0
    assert attribute("MULTIPROCESSOR_COUNT") == facts.multiprocessors
    assert attribute("TENSOR_MAP_ACCESS_SUPPORTED") == (facts.compute_capability >= (9, 0))
    assert attribute("MAXIMUM_TEXTURE1D_WIDTH") == 0
    assert ok(driver.cuDeviceTotalMem(0)) == facts.memory_bytes
    assert ok(driver.cuDeviceGetName(9, 0)) == b"Emulated\0"


def test_an_unknown_architecture_is_an_error_that_lists_the_others():
    with pytest.raises(ValueError, match="sm_89"):
        driver.reset("sm_70")
    assert arch.named("89") is arch.named("sm_89")


@pytest.mark.parametrize(
    ("device", "target", "runs"),
    [
        ("sm_89", "sm_80", True),
        ("sm_89", "sm_89", True),
        ("sm_86", "sm_89", False),
        ("sm_90", "sm_89", True),
        ("sm_90", "sm_90a", True),
        ("sm_90a", "sm_90a", True),
        ("sm_120", "sm_90a", False),
        ("sm_120", "sm_90", True),
        ("sm_120", "sm_120f", True),
        ("sm_120", "sm_100f", False),
        ("sm_89", "sm_90a", False),
        ("sm_89", "compute_89", False),
    ],
)
def test_which_targets_a_device_runs(device, target, runs):
    assert arch.named(device).runs(target) is runs


def test_environment_chooses_the_architecture_and_the_checks(monkeypatch):
    monkeypatch.setenv("FLASHCORE_EMULATED_ARCH", "sm_86")
    driver.reset()
    start()
    assert attribute("COMPUTE_CAPABILITY_MINOR") == 6
    monkeypatch.setenv("FLASHCORE_EMULATOR_CHECKS", "no-such-check")
    with pytest.raises(ValueError, match="no-such-check"):
        driver.reset()


def test_devices_have_different_identifiers_that_do_not_change():
    driver.reset("sm_89", devices=2)
    ok(driver.cuInit(0))
    assert ok(driver.cuDeviceGetCount()) == 2
    first, second = (ok(driver.cuDeviceGetUuid(i)).bytes for i in (0, 1))
    assert first != second
    driver.reset("sm_89")
    ok(driver.cuInit(0))
    assert ok(driver.cuDeviceGetUuid(0)).bytes == first
    assert error(driver.cuDeviceGet(1)) == "INVALID_DEVICE"
    assert error(driver.cuDeviceGet(-1)) == "INVALID_DEVICE"


def test_the_current_context_belongs_to_the_thread():
    context = start()
    seen = []

    def other():
        seen.append(int(ok(driver.cuCtxGetCurrent())))
        seen.append(error(driver.cuMemAlloc(16)))
        ok(driver.cuCtxPushCurrent(context))
        seen.append(ok(driver.cuMemAlloc(16)))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen[:2] == [0, "INVALID_CONTEXT"]
    ok(driver.cuMemFree(seen[2]))


def test_contexts_are_a_stack():
    driver.reset("sm_89", devices=2)
    first = start()
    second = ok(driver.cuDevicePrimaryCtxRetain(1))
    ok(driver.cuCtxPushCurrent(second))
    assert int(ok(driver.cuCtxGetDevice())) == 1
    assert ok(driver.cuCtxPopCurrent()) == second
    assert ok(driver.cuCtxGetCurrent()) == first
    ok(driver.cuCtxSetCurrent(None))
    assert int(ok(driver.cuCtxGetCurrent())) == 0
    assert error(driver.cuCtxPopCurrent()) == "INVALID_CONTEXT"
    assert error(driver.cuCtxGetDevice()) == "INVALID_CONTEXT"
    assert error(driver.cuCtxSetCurrent(99)) == "INVALID_CONTEXT"


def test_the_last_release_destroys_what_the_context_holds():
    context = start()
    ok(driver.cuDevicePrimaryCtxRetain(0))
    module, _ = kernels()
    stream, pointer = ok(driver.cuStreamCreate(0)), ok(driver.cuMemAlloc(64))
    ok(driver.cuDevicePrimaryCtxRelease(0))
    assert ok(driver.cuDevicePrimaryCtxGetState(0)) == (0, 1)
    ok(driver.cuMemsetD8(pointer, 0, 64))
    ok(driver.cuDevicePrimaryCtxRelease(0))
    assert ok(driver.cuDevicePrimaryCtxGetState(0)) == (0, 0)
    assert error(driver.cuMemAlloc(64)) == "CONTEXT_IS_DESTROYED"
    assert error(driver.cuDevicePrimaryCtxRelease(0)) == "INVALID_CONTEXT"
    assert ok(driver.cuDevicePrimaryCtxRetain(0)) == context
    assert error(driver.cuModuleUnload(module)) == "INVALID_HANDLE"
    assert error(driver.cuStreamSynchronize(stream)) == "INVALID_HANDLE"
    assert error(driver.cuMemFree(pointer)) == "INVALID_VALUE"
    free, total = ok(driver.cuMemGetInfo())
    assert free == total


def test_reset_makes_old_handles_invalid():
    start()
    stream = ok(driver.cuStreamCreate(0))
    driver.reset("sm_89")
    assert error(driver.cuStreamSynchronize(stream)) == "NOT_INITIALIZED"
    start()
    assert error(driver.cuStreamSynchronize(stream)) == "INVALID_HANDLE"
    ok(driver.cuStreamCreate(0))
    assert error(driver.cuStreamSynchronize(stream)) == "INVALID_HANDLE"


def test_work_of_one_device_is_refused_on_another():
    driver.reset("sm_89", devices=2)
    start()
    _, functions = kernels()
    pointer = ok(driver.cuMemAlloc(128))
    second = ok(driver.cuDevicePrimaryCtxRetain(1))
    ok(driver.cuCtxPushCurrent(second))
    assert error(fill(functions["fill"], pointer, 1)) == "INVALID_HANDLE"
    _, there = kernels()
    ok(fill(there["fill"], pointer, 1))
    assert error(driver.cuStreamSynchronize(0)) == "ILLEGAL_ADDRESS"
    assert "of device 0 is given to fill on device 1" in str(driver.last_error())
    ok(driver.cuCtxPopCurrent())
    ok(driver.cuCtxSynchronize())


def test_many_threads_use_one_context():
    context = start()
    _, functions = kernels()
    wrong = []

    def work(number):
        ok(driver.cuCtxPushCurrent(context))
        stream = ok(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        host = ok(driver.cuMemAllocHost(128))
        for i in range(20):
            value = number * 1000 + i
            pointer = ok(driver.cuMemAllocAsync(128, stream))
            ok(fill(functions["fill"], pointer, value, stream))
            ok(driver.cuMemcpyDtoHAsync(host, pointer, 128, stream))
            ok(driver.cuMemFreeAsync(pointer, stream))
            ok(driver.cuStreamSynchronize(stream))
            if (driver_bytes(host, 128).view("u4") != value).any():
                wrong.append(value)
        ok(driver.cuStreamDestroy(stream))
        ok(driver.cuMemFreeHost(host))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert driver.calls()["cuLaunchKernel"] == 160
    pool = ok(driver.cuDeviceGetDefaultMemPool(0))
    used = ok(driver.cuMemPoolGetAttribute(pool, driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT))
    assert int(used) == 0


def driver_bytes(address, size):
    from flashcore_drv.emulator.driver.hostmemory import host_bytes

    return host_bytes(address, size)


def test_api_versions():
    context = start()
    assert ok(driver.cuCtxGetApiVersion(context)) == ok(driver.cuCtxGetApiVersion(None))
    assert driver.cuCtxGetStreamPriorityRange() == (OK, 0, -5)
