"""cp.async: what lands, and that it lands no sooner than it must."""

import numpy as np
import pytest
from kernel_harness import Output, compile_cuda, execute

from flashcore_drv.emulator import Checks, EmulationError

COPY = """
extern "C" __global__ void k(const char* in, char* out, int size) {
    __shared__ alignas(16) char tile[32 * %(W)d];
    unsigned target = __cvta_generic_to_shared(&tile[threadIdx.x * %(W)d]);
    asm volatile("cp.async.c%(L)s.shared.global [%%0], [%%1], %(W)d, %%2;"
                 :: "r"(target), "l"(in + threadIdx.x * %(W)d), "r"(int(threadIdx.x) == 31 ? size : %(W)d) : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int i = 0; i < %(W)d; ++i) out[threadIdx.x * %(W)d + i] = tile[threadIdx.x * %(W)d + i];
}"""


@pytest.mark.parametrize(("width", "level"), [(4, "a"), (8, "a"), (16, "a"), (16, "g")])
@pytest.mark.parametrize("missing", [0, 1, 2, 4])
def test_sizes(width, level, missing):
    program = compile_cuda(COPY % {"W": width, "L": level})
    size = width - missing
    data = np.arange(32 * width - missing, dtype=np.uint8)  # nothing past the last source byte may be touched
    run = execute(program, "k", [data, Output(32 * width, np.uint8), np.int32(size)])
    np.testing.assert_array_equal(run[1], np.pad(data, (0, missing)))


def test_bytes_past_the_source_size_are_out_of_bounds():
    program = compile_cuda(COPY % {"W": 16, "L": "g"})
    with pytest.raises(
        EmulationError, match=r"copy by thread 31 of block \(0, 0, 0\).*past the end of source"
    ) as error:
        execute(
            program,
            "k",
            [np.zeros(32 * 16 - 2, np.uint8), Output(512, np.uint8), np.int32(16)],
            names=("source", "out"),
        )
    assert error.value.kind == "out-of-bounds"


GROUPS = """
extern "C" __global__ void k(const int* in, int* out) {
    __shared__ int tile[3][32];
    for (int i = 0; i < 3; ++i) {
        unsigned target = __cvta_generic_to_shared(&tile[i][threadIdx.x]);
        asm volatile("cp.async.ca.shared.global [%%0], [%%1], 4;"
                     :: "r"(target), "l"(in + i * 32 + threadIdx.x) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    asm volatile("cp.async.wait_group %d;" ::: "memory");
    for (int i = 0; i < 3; ++i) out[i * 32 + threadIdx.x] = tile[i][threadIdx.x];
}"""


def test_groups_land_as_late_as_their_wait_allows():
    data = np.arange(96, dtype=np.int32)
    run = execute(compile_cuda(GROUPS % 0), "k", [data, Output(96, np.int32)])
    np.testing.assert_array_equal(run[1], data)
    with pytest.raises(
        EmulationError, match=r"races with the cp.async at .*cu:7, which has not been waited for"
    ) as error:
        execute(compile_cuda(GROUPS % 1), "k", [data, Output(96, np.int32)])
    assert error.value.kind == "race"
    unchecked = execute(compile_cuda(GROUPS % 1), "k", [data, Output(96, np.int32)], checks=Checks.none())
    np.testing.assert_array_equal(unchecked[1], [*range(64), *[-1] * 32])  # the last group is still 0xFF


def test_copies_arrive_at_an_mbarrier():
    program = compile_cuda("""
    extern "C" __global__ void k(const int* in, int* out) {
        __shared__ int tile[64]; __shared__ alignas(8) unsigned long long barrier;
        unsigned target = __cvta_generic_to_shared(&tile[threadIdx.x]), b = __cvta_generic_to_shared(&barrier);
        if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 64;" :: "r"(b) : "memory");
        __syncthreads();
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(target), "l"(in + threadIdx.x) : "memory");
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" :: "r"(b) : "memory");
        asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], 0; @!p bra again; }"
                     :: "r"(b) : "memory");
        out[threadIdx.x] = tile[63 - threadIdx.x];
    }""", arch="90a")  # fmt: skip
    for seed in range(3):
        data = np.arange(64, dtype=np.int32)
        run = execute(program, "k", [data, Output(64, np.int32)], block=(64, 1, 1), seed=seed)
        np.testing.assert_array_equal(run[1], data[::-1])
