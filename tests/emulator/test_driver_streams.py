"""Order of work in the streams of the emulated driver, and events."""

from __future__ import annotations

import numpy as np
import pytest
from driver_cases import OK, download, error, fill, kernels, ok, start, upload

from flashcore_drv.emulator import driver
from flashcore_drv.emulator.driver.hostmemory import host_bytes
from flashcore_drv.emulator.driver.process import process

FLAGS = driver.CUstream_flags
SEEDS = range(12)


def begin(seed=0):
    driver.reset("sm_89", seed=seed)
    start()


def non_blocking():
    return ok(driver.cuStreamCreate(FLAGS.CU_STREAM_NON_BLOCKING))


def blocking():
    return ok(driver.cuStreamCreate(FLAGS.CU_STREAM_DEFAULT))


def pinned(value=0):
    address = ok(driver.cuMemAllocHost(4))
    view = host_bytes(address, 4).view(np.uint32)
    view[0] = value
    return address, view


@pytest.mark.parametrize("seed", SEEDS)
def test_work_of_one_stream_is_in_order(seed):
    begin(seed)
    stream, (address, seen) = non_blocking(), pinned()
    word = upload(np.zeros(1, np.uint32))
    for value in range(1, 30):
        ok(driver.cuMemsetD32Async(word, value, 1, stream))
    ok(driver.cuMemcpyDtoHAsync(address, word, 4, stream))
    ok(driver.cuMemsetD32Async(word, 99, 1, stream))
    ok(driver.cuStreamSynchronize(stream))
    assert seen[0] == 29
    assert download(word, 1, np.uint32) == 99


def unordered(seed):
    """What a copy in one stream reads while another stream writes."""
    begin(seed)
    first, second, (address, seen) = non_blocking(), non_blocking(), pinned()
    word = upload(np.zeros(1, np.uint32))
    for value in range(1, 6):
        ok(driver.cuMemsetD32Async(word, value, 1, first))
    ok(driver.cuMemcpyDtoHAsync(address, word, 4, second))
    ok(driver.cuCtxSynchronize())
    return int(seen[0])


def test_streams_without_order_interleave_by_the_seed():
    outcomes = [unordered(seed) for seed in range(1, 40)]
    assert len(set(outcomes)) >= 4
    assert outcomes == [unordered(seed) for seed in range(1, 40)]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_event_orders_two_streams(seed):
    begin(seed)
    first, second, (address, seen) = non_blocking(), non_blocking(), pinned()
    word, event = upload(np.zeros(1, np.uint32)), ok(driver.cuEventCreate(0))
    for value in range(1, 6):
        ok(driver.cuMemsetD32Async(word, value, 1, first))
    ok(driver.cuEventRecord(event, first))
    ok(driver.cuStreamWaitEvent(second, event, 0))
    ok(driver.cuEventDestroy(event))
    ok(driver.cuMemcpyDtoHAsync(address, word, 4, second))
    ok(driver.cuStreamSynchronize(second))
    assert seen[0] == 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("legacy", [0, 1])
def test_the_legacy_stream_is_ordered_with_blocking_streams(seed, legacy):
    begin(seed)
    first, second, (address, seen) = blocking(), blocking(), pinned()
    word = upload(np.zeros(2, np.uint32))
    ok(driver.cuMemsetD32Async(word, 7, 1, first))
    ok(driver.cuMemcpyDtoDAsync(int(word) + 4, word, 4, legacy))
    ok(driver.cuMemcpyDtoHAsync(address, int(word) + 4, 4, second))
    ok(driver.cuMemsetD32Async(int(word) + 4, 8, 1, driver.CU_STREAM_PER_THREAD))
    ok(driver.cuStreamSynchronize(second))
    assert seen[0] in (7, 8)
    ok(driver.cuStreamSynchronize(driver.CU_STREAM_PER_THREAD))
    assert download(word, 2, np.uint32).tolist() == [7, 8]


def test_without_a_seed_work_starts_only_when_something_waits_for_it():
    begin()
    lazy, word = non_blocking(), upload(np.zeros(1, np.uint32))
    ok(driver.cuMemsetD32Async(word, 1, 1, lazy))
    assert download(word, 1, np.uint32) == 0
    assert error(driver.cuStreamQuery(lazy)) == "NOT_READY"
    assert driver.cuStreamQuery(lazy) == (OK,)
    assert download(word, 1, np.uint32) == 1


def test_waiting_for_a_stream_leaves_the_others_alone():
    begin()
    first, second, (address, seen) = non_blocking(), non_blocking(), pinned()
    word = upload(np.full(1, 3, np.uint32))
    ok(driver.cuMemcpyDtoHAsync(address, word, 4, first))
    ok(driver.cuMemsetD32Async(word, 4, 1, second))
    ok(driver.cuStreamSynchronize(second))
    assert seen[0] == 0
    ok(driver.cuStreamSynchronize(first))
    assert seen[0] == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_polling_comes_to_an_end(seed):
    begin(seed)
    stream, event = non_blocking(), ok(driver.cuEventCreate(0))
    word = upload(np.zeros(1, np.uint32))
    for value in range(20):
        ok(driver.cuMemsetD32Async(word, value, 1, stream))
    ok(driver.cuEventRecord(event, stream))
    polls = 0
    while driver.cuEventQuery(event) != (OK,):
        polls += 1
        assert polls < 100
    assert driver.cuStreamQuery(stream) == (OK,)
    assert download(word, 1, np.uint32) == 19


def test_a_long_queue_is_bounded():
    begin()
    stream, word = non_blocking(), upload(np.zeros(1, np.uint32))
    for value in range(1100):
        ok(driver.cuMemsetD32Async(word, value, 1, stream))
    assert download(word, 1, np.uint32) == 1099 - 1024
    ok(driver.cuStreamSynchronize(stream))
    assert download(word, 1, np.uint32) == 1099


def test_a_destroyed_stream_still_does_its_work():
    begin()
    stream, word = non_blocking(), upload(np.zeros(1, np.uint32))
    ok(driver.cuMemsetD32Async(word, 5, 1, stream))
    ok(driver.cuStreamDestroy(stream))
    assert error(driver.cuStreamDestroy(stream)) == "INVALID_HANDLE"
    ok(driver.cuCtxSynchronize())
    assert download(word, 1, np.uint32) == 5


def test_memory_of_a_destroyed_stream_stays_usable():
    begin()
    stream, other = non_blocking(), non_blocking()
    word = ok(driver.cuMemAllocAsync(4, stream))
    ok(driver.cuStreamDestroy(stream))
    ok(driver.cuCtxSynchronize())
    ok(driver.cuMemsetD32Async(word, 5, 1, other))
    ok(driver.cuMemFreeAsync(word, other))
    ok(driver.cuStreamSynchronize(other))


def test_what_a_stream_says_of_itself():
    begin()
    stream = ok(driver.cuStreamCreateWithPriority(FLAGS.CU_STREAM_NON_BLOCKING, -9))
    assert ok(driver.cuStreamGetPriority(stream)) == -5
    assert ok(driver.cuStreamGetFlags(stream)) == FLAGS.CU_STREAM_NON_BLOCKING
    assert ok(driver.cuStreamGetId(stream)) != ok(driver.cuStreamGetId(0))
    assert error(driver.cuStreamCreate(2)) == "INVALID_VALUE"


def test_event_times_are_the_hosts_and_need_both_events():
    begin()
    _, functions = kernels()
    word = upload(np.zeros(32, np.uint32))
    before, after, never = (ok(driver.cuEventCreate(0)) for _ in range(3))
    untimed = ok(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    ok(driver.cuEventRecord(before, 0))
    ok(fill(functions["fill"], word, 1))
    ok(driver.cuEventRecordWithFlags(after, 0, 0))
    ok(driver.cuEventRecord(untimed, 0))
    assert error(driver.cuEventElapsedTime(before, after)) == "NOT_READY"
    ok(driver.cuEventSynchronize(after))
    assert 0 < ok(driver.cuEventElapsedTime(before, after)) < 60_000
    assert error(driver.cuEventElapsedTime(before, never)) == "INVALID_HANDLE"
    assert error(driver.cuEventElapsedTime(before, untimed)) == "INVALID_HANDLE"
    assert driver.cuEventQuery(never) == (OK,)
    assert driver.cuEventSynchronize(never) == (OK,)
    assert driver.cuStreamWaitEvent(0, never, 0) == (OK,)


def test_streams_that_come_and_go_leave_nothing_behind():
    begin()
    state, kept, event = process(), non_blocking(), ok(driver.cuEventCreate(0))
    sizes = []
    for _ in range(30):
        stream = non_blocking()
        ok(driver.cuEventRecord(event, stream))
        ok(driver.cuStreamWaitEvent(kept, event, 0))
        ok(driver.cuStreamSynchronize(kept))
        ok(driver.cuStreamDestroy(stream))
        sizes.append((len(state.objects), len(state.contexts[0].streams), len(state.host_clock)))
    assert len(set(sizes)) == 1
