"""Memory of the emulated driver: lifetime, copies, fills, pools, host memory and what is known of a pointer."""

from __future__ import annotations

import numpy as np
import pytest
from driver_cases import OK, address, download, error, fill, kernels, ok, start, upload

from flashcore_drv.emulator import driver
from flashcore_drv.emulator.driver.hostmemory import host_bytes

POINTER = driver.CUpointer_attribute
POOL = driver.CUmemPool_attribute
NON_BLOCKING = driver.CUstream_flags.CU_STREAM_NON_BLOCKING


@pytest.fixture(autouse=True)
def context():
    driver.reset("sm_89", memory_limit=1 << 20)
    return start()


def free_bytes():
    return ok(driver.cuMemGetInfo())[0]


def pool_bytes(name, pool=None):
    pool = ok(driver.cuDeviceGetDefaultMemPool(0)) if pool is None else pool
    return int(ok(driver.cuMemPoolGetAttribute(pool, getattr(POOL, f"CU_MEMPOOL_ATTR_{name}"))))


def test_bytes_come_back():
    data = np.arange(1000, dtype=np.int32)
    pointer = upload(data)
    assert int(pointer) % 256 == 0
    assert np.array_equal(download(pointer, data.shape, data.dtype), data)
    part = download(int(pointer) + 40, 5, np.int32)
    assert part.tolist() == [10, 11, 12, 13, 14]


def test_fresh_memory_is_poison():
    pointer = ok(driver.cuMemAlloc(64))
    assert np.isnan(download(pointer, 16, np.float32)).all()


def test_memory_runs_out_and_comes_back():
    assert ok(driver.cuMemGetInfo()) == (1 << 20, 1 << 20)
    pointer = ok(driver.cuMemAlloc(1 << 19))
    assert free_bytes() == 1 << 19
    assert error(driver.cuMemAlloc((1 << 19) + 1)) == "OUT_OF_MEMORY"
    assert error(driver.cuMemAllocAsync(1 << 20, 0)) == "OUT_OF_MEMORY"
    ok(driver.cuMemFree(pointer))
    assert free_bytes() == 1 << 20
    ok(driver.cuMemAlloc(1 << 20))


def test_queued_frees_make_room():
    for _ in range(10):
        pointer = ok(driver.cuMemAllocAsync(700_000, 0))
        ok(driver.cuMemFreeAsync(pointer, 0))
    assert error(driver.cuMemFreeAsync(pointer, 0)) == "INVALID_VALUE"


def test_wrong_frees_are_invalid_values():
    pointer = ok(driver.cuMemAlloc(64))
    assert error(driver.cuMemFree(int(pointer) + 4)) == "INVALID_VALUE"
    assert error(driver.cuMemFree(1)) == "INVALID_VALUE"
    assert driver.cuMemFree(pointer) == (OK,)
    assert error(driver.cuMemFree(pointer)) == "INVALID_VALUE"
    assert error(driver.cuMemAlloc(0)) == "INVALID_VALUE"
    queued = ok(driver.cuMemAllocAsync(64, 0))
    ok(driver.cuMemFreeAsync(queued, 0))
    assert error(driver.cuMemFreeAsync(queued, 0)) == "INVALID_VALUE"
    assert error(driver.cuMemFree(queued)) == "INVALID_VALUE"


def test_copies_outside_of_an_allocation_are_invalid_values():
    pointer, data = ok(driver.cuMemAlloc(64)), np.zeros(65, np.uint8)
    assert error(driver.cuMemcpyHtoD(pointer, address(data), 65)) == "INVALID_VALUE"
    assert error(driver.cuMemcpyDtoH(address(data), int(pointer) + 1, 64)) == "INVALID_VALUE"
    assert error(driver.cuMemcpyHtoD(pointer, 0, 64)) == "INVALID_VALUE"
    assert error(driver.cuMemcpyHtoD(0, address(data), 64)) == "INVALID_VALUE"
    assert error(driver.cuMemcpyHtoD(pointer, int(pointer), 64)) == "INVALID_VALUE"
    assert error(driver.cuMemcpyDtoD(pointer, address(data), 64)) == "INVALID_VALUE"
    assert error(driver.cuMemsetD32(pointer, 0, 17)) == "INVALID_VALUE"
    assert error(driver.cuMemsetD32(int(pointer) + 2, 0, 1)) == "INVALID_VALUE"
    assert driver.cuMemcpyHtoD(0, 0, 0) == (OK,)


def test_host_arguments_may_be_buffers():
    data, back = np.arange(16, dtype=np.uint8), np.empty(16, np.uint8)
    pointer = ok(driver.cuMemAlloc(16))
    ok(driver.cuMemcpyHtoD(pointer, data, 16))
    ok(driver.cuMemcpyDtoH(back, pointer, 16))
    assert np.array_equal(data, back)
    with pytest.raises(TypeError, match="buffer"):
        driver.cuMemcpyHtoD(pointer, np.uint64(address(data)), 16)


@pytest.mark.parametrize(("width", "value"), [(8, 0xAB), (16, 0xABCD), (32, 0x89ABCDEF)])
def test_fills(width, value):
    data = np.zeros(32, f"u{width // 8}")
    pointer = upload(data)
    ok(getattr(driver, f"cuMemsetD{width}")(int(pointer) + width // 8, value, 30))
    expected = data.copy()
    expected[1:31] = value
    assert np.array_equal(download(pointer, 32, data.dtype), expected)
    ok(getattr(driver, f"cuMemsetD{width}Async")(pointer, 0, 32, 0))
    assert not download(pointer, 32, data.dtype).any()
    with pytest.raises(OverflowError):
        getattr(driver, f"cuMemsetD{width}")(pointer, 1 << width, 1)


def test_device_copies():
    source, target = upload(np.arange(64, dtype=np.uint8)), upload(np.zeros(64, np.uint8))
    ok(driver.cuMemcpyDtoD(int(target) + 32, source, 32))
    ok(driver.cuMemcpyDtoDAsync(target, int(source) + 32, 8, 0))
    assert download(target, 64, np.uint8).tolist() == [*range(32, 40), *[0] * 24, *range(32)]


def test_pageable_memory_is_staged_at_the_call_and_locked_memory_is_read_late():
    stream = ok(driver.cuStreamCreate(NON_BLOCKING))
    pageable, pinned = np.full(16, 1, np.uint8), ok(driver.cuMemAllocHost(16))
    host_bytes(pinned, 16)[:] = 1
    a, b = (ok(driver.cuMemAllocAsync(16, stream)) for _ in range(2))
    ok(driver.cuMemcpyHtoDAsync(a, address(pageable), 16, stream))
    ok(driver.cuMemcpyHtoDAsync(b, pinned, 16, stream))
    pageable[:] = 2
    host_bytes(pinned, 16)[:] = 2
    ok(driver.cuStreamSynchronize(stream))
    assert download(a, 16, np.uint8).tolist() == [1] * 16
    assert download(b, 16, np.uint8).tolist() == [2] * 16


def test_a_copy_to_pageable_memory_is_done_at_return_and_to_locked_memory_is_not():
    stream = ok(driver.cuStreamCreate(NON_BLOCKING))
    source = upload(np.full(16, 5, np.uint8))
    pageable, pinned = np.zeros(16, np.uint8), ok(driver.cuMemHostAlloc(16, 0))
    host_bytes(pinned, 16)[:] = 0
    ok(driver.cuMemcpyDtoHAsync(pinned, source, 16, stream))
    assert not host_bytes(pinned, 16).any()
    ok(driver.cuMemcpyDtoHAsync(address(pageable), source, 16, stream))
    assert pageable.tolist() == host_bytes(pinned, 16).tolist() == [5] * 16


def test_host_memory_is_owned():
    pinned = ok(driver.cuMemAllocHost(100))
    assert pinned % 4096 == 0
    assert error(driver.cuMemFreeHost(pinned + 1)) == "INVALID_VALUE"
    ok(driver.cuMemFreeHost(pinned))
    assert error(driver.cuMemFreeHost(pinned)) == "INVALID_VALUE"
    ok(driver.cuMemFreeHost(ok(driver.cuMemAllocHost(0))))  # the driver gives an address for nothing


def test_the_pool_keeps_account():
    pool = ok(driver.cuDeviceGetDefaultMemPool(0))
    assert ok(driver.cuDeviceGetMemPool(0)) == pool
    first = ok(driver.cuMemAllocAsync(1000, 0))
    second = ok(driver.cuMemAllocFromPoolAsync(500, pool, 0))
    ok(driver.cuMemFreeAsync(first, 0))
    assert pool_bytes("USED_MEM_CURRENT") == 1500
    ok(driver.cuMemPoolSetAttribute(pool, POOL.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, driver.cuuint64_t(1200)))
    ok(driver.cuStreamSynchronize(0))
    assert pool_bytes("USED_MEM_CURRENT") == 500
    assert pool_bytes("USED_MEM_HIGH") == 1500
    assert pool_bytes("RESERVED_MEM_CURRENT") == 1200
    assert free_bytes() == (1 << 20) - 1200
    ok(driver.cuMemPoolTrimTo(pool, 0))
    assert pool_bytes("RESERVED_MEM_CURRENT") == 500
    ok(driver.cuMemPoolSetAttribute(pool, POOL.CU_MEMPOOL_ATTR_USED_MEM_HIGH, driver.cuuint64_t(0)))
    assert pool_bytes("USED_MEM_HIGH") == 500
    ok(driver.cuMemPoolSetAttribute(pool, POOL.CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC, 0))
    assert pool_bytes("REUSE_ALLOW_OPPORTUNISTIC") == 0
    with pytest.raises(TypeError):
        driver.cuMemPoolSetAttribute(pool, POOL.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, 1)
    ok(driver.cuMemFree(second))
    assert pool_bytes("USED_MEM_CURRENT") == 0


def test_what_is_known_of_a_pointer(context):
    pointer, pinned = ok(driver.cuMemAllocAsync(256, 0)), ok(driver.cuMemAllocHost(64))
    inside = int(pointer) + 100
    names = (
        "CONTEXT",
        "MEMORY_TYPE",
        "DEVICE_ORDINAL",
        "RANGE_START_ADDR",
        "RANGE_SIZE",
        "IS_MANAGED",
        "MEMPOOL_HANDLE",
    )
    wanted = [getattr(POINTER, f"CU_POINTER_ATTRIBUTE_{name}") for name in names]
    pool = ok(driver.cuDeviceGetDefaultMemPool(0))
    answer = ok(driver.cuPointerGetAttributes(len(wanted), wanted, inside))
    assert [int(value) for value in answer] == [int(context), 2, 0, int(pointer), 256, 0, int(pool)]
    for attribute, value in zip(wanted, answer):
        assert int(ok(driver.cuPointerGetAttribute(attribute, inside))) == int(value)
    assert ok(driver.cuPointerGetAttribute(POINTER.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pinned + 1)) == 1
    unknown = np.zeros(1)
    assert error(driver.cuPointerGetAttribute(wanted[0], address(unknown))) == "INVALID_VALUE"
    values = ok(driver.cuPointerGetAttributes(2, wanted[:2], address(unknown)))
    assert [int(value) for value in values] == [0, 0]
    base, size = ok(driver.cuMemGetAddressRange(inside))
    assert (int(base), size) == (int(pointer), 256)
    assert error(driver.cuMemGetAddressRange(address(unknown))) == "NOT_FOUND"


def test_memory_is_used_only_after_its_allocation():
    _, functions = kernels()
    first, second = (ok(driver.cuStreamCreate(NON_BLOCKING)) for _ in range(2))
    pointer = ok(driver.cuMemAllocAsync(128, first))
    event = ok(driver.cuEventCreate(0))
    ok(driver.cuEventRecord(event, first))
    ok(driver.cuStreamWaitEvent(second, event, 0))
    ok(fill(functions["fill"], pointer, 9, second))
    ok(driver.cuStreamSynchronize(second))
    late = ok(driver.cuMemAllocAsync(128, first))
    ok(driver.cuStreamSynchronize(first))
    ok(fill(functions["fill"], late, 9, second))
    ok(driver.cuStreamSynchronize(second))
    early = ok(driver.cuMemAllocAsync(128, first))
    ok(fill(functions["fill"], early, 9, second))
    assert error(driver.cuStreamSynchronize(second)) == "ILLEGAL_ADDRESS"
    assert "record an event there and wait for it here" in str(driver.last_error())


def test_memory_freed_too_early_is_found():
    _, functions = kernels()
    stream = ok(driver.cuStreamCreate(NON_BLOCKING))
    pointer = ok(driver.cuMemAllocAsync(128, stream))
    ok(driver.cuMemFreeAsync(pointer, stream))
    ok(fill(functions["fill"], pointer, 9, stream))
    assert error(driver.cuStreamSynchronize(stream)) == "ILLEGAL_ADDRESS"
    assert "freed" in str(driver.last_error())
