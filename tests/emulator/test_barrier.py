"""Barriers of a block."""

import numpy as np
import pytest
from kernel_harness import Output, compile_cuda, execute

from flashcore_drv.emulator import EmulationError


@pytest.mark.parametrize("seed", range(4))
def test_named_barriers_between_producers_and_consumers(seed):
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        __shared__ int box[2][32];
        if (threadIdx.x < 32) {
            for (int i = 0; i < 6; ++i) {
                asm volatile("bar.sync %0, 96;" :: "r"(i % 2 + 2) : "memory");   // the box is free
                box[i % 2][threadIdx.x] = i * 100 + threadIdx.x;
                asm volatile("bar.arrive %0, 96;" :: "r"(i % 2 + 4) : "memory"); // the box is full
            }
        } else {
            asm volatile("bar.arrive 2, 96;" ::: "memory");
            asm volatile("bar.arrive 3, 96;" ::: "memory");
            for (int i = 0; i < 6; ++i) {
                asm volatile("bar.sync %0, 96;" :: "r"(i % 2 + 4) : "memory");
                out[i * 64 + threadIdx.x - 32] = box[i % 2][threadIdx.x % 32];
                if (i < 4) asm volatile("bar.arrive %0, 96;" :: "r"(i % 2 + 2) : "memory");
            }
        }
    }""")
    out = execute(program, "k", [Output((6, 2, 32), np.int32)], block=(96, 1, 1), seed=seed)[0]
    np.testing.assert_array_equal(out, np.broadcast_to((np.arange(6) * 100)[:, None, None] + np.arange(32), (6, 2, 32)))


def test_reductions():
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        int n = __syncthreads_count(threadIdx.x % 3 == blockIdx.x), a = __syncthreads_and(threadIdx.x < 100),
            o = __syncthreads_or(threadIdx.x == 70 + blockIdx.x * 100);
        int* p = out + (blockIdx.x * 96 + threadIdx.x) * 3;
        p[0] = n; p[1] = a != 0; p[2] = o != 0;
    }""")
    for seed in range(3):
        out = execute(program, "k", [Output((2, 96, 3), np.int32)], grid=(2, 1, 1), block=(96, 1, 1), seed=seed)[0]
        assert (out[0] == [32, 1, 1]).all()
        assert (out[1] == [32, 1, 0]).all()


def test_threads_that_have_ended_are_not_waited_for():
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        if (threadIdx.x >= 64 || threadIdx.x < 32) return;
        __syncthreads();
        out[threadIdx.x] = 1;
    }""")
    for seed in range(3):
        run = execute(program, "k", [np.zeros(128, np.int32)], block=(128, 1, 1), seed=seed)
        assert run[0].sum() == 32


def test_cluster_barrier_of_one_block():
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        __shared__ int box[64];
        box[threadIdx.x] = threadIdx.x;
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        out[threadIdx.x] = box[63 - threadIdx.x];
    }""", arch="90a")  # fmt: skip
    for seed in range(3):
        out = execute(program, "k", [Output(64, np.int32)], block=(64, 1, 1), seed=seed)[0]
        np.testing.assert_array_equal(out, 63 - np.arange(64))


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("if (threadIdx.x < 32) __syncthreads(); else asm volatile(\"bar.sync 1;\");", "deadlock", "wait for ever"),
        ("if (threadIdx.x < 16) __syncthreads(); __syncwarp();", "divergence",
         "lanes 0-15 of warp 0.*lanes 16-31 wait at"),
        ("asm volatile(\"bar.sync 1, 40;\");", "barrier", "not whole warps"),
        ("if (threadIdx.x < 32) asm volatile(\"bar.sync 1, 64;\"); else asm volatile(\"bar.sync 1, 32;\");",
         "barrier", "is for"),
        ("asm volatile(\"bar.sync 1, 32;\");", "barrier", "more threads"),
        ("asm volatile(\"bar.sync 16;\");", "barrier", "there are 16"),
    ],
)  # fmt: skip
def test_misuse(code, kind, message):
    if "bar.sync 16" in code:
        code = 'asm volatile("bar.sync %0;" :: "r"(threadIdx.y + 16));'
    program = compile_cuda(f'extern "C" __global__ void k(int* out) {{ {code} out[threadIdx.x] = 1; }}')
    with pytest.raises(EmulationError, match=message) as error:
        execute(program, "k", [Output(64, np.int32)], block=(64, 1, 1))
    assert error.value.kind == kind
    assert ".cu:1" in error.value.line
