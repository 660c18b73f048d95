"""Loads, stores, packing, address spaces and atomic operations."""

import numpy as np
import pytest
from kernel_harness import Output, compile_cuda, compute, entry, execute

from flashcore_drv.emulator import parse

RNG = np.random.default_rng(2)
U32 = RNG.integers(0, 1 << 32, 64, dtype=np.uint32)


def test_pack_and_unpack():
    halves = U32.view(np.uint16)
    swapped = compute(".reg .b16 l, h; mov.b32 {l, h}, %a; mov.b32 %d, {h, l};", [("u32", U32)], "u32")
    np.testing.assert_array_equal(swapped.view(np.uint16).reshape(-1, 2), halves.reshape(-1, 2)[:, ::-1])
    np.testing.assert_array_equal(
        compute(".reg .b16 h; mov.b32 {_, h}, %a; mov.b16 %d, h;", [("u32", U32)], "u16"), halves[1::2]
    )
    got = compute("mov.b64 %d, {%a, %b};", [("u32", U32), ("u32", U32[::-1])], "u64")
    np.testing.assert_array_equal(got, U32 | U32[::-1].astype(np.uint64) << np.uint64(32))


@pytest.mark.parametrize(("kind", "dtype"), [("u8", np.uint8), ("s8", np.int8), ("u16", np.uint16), ("s16", np.int16)])
def test_narrow_loads_extend(kind, dtype):
    program = parse(
        entry(
            f"""
        .reg .b64 %a, %o; .reg .b32 %i, %x;
        ld.param.u64 %a, [pa]; ld.param.u64 %o, [po]; mov.u32 %i, %tid.x;
        mad.wide.u32 %o, %i, 4, %o; mad.wide.u32 %a, %i, {np.dtype(dtype).itemsize}, %a;
        ld.global.{kind} %x, [%a]; st.global.u32 [%o], %x; ret;""",
            ".param .u64 pa, .param .u64 po",
        )
    )
    values = RNG.integers(0, 1 << 16, 32).astype(dtype)
    run = execute(program, "kernel", [values, Output(32, np.int32)])
    np.testing.assert_array_equal(run[1], values.astype(np.int32))


def test_vectors_and_generic_addresses():
    program = compile_cuda("""
    struct alignas(16) Four { float x[4]; };
    extern "C" __global__ void k(const Four* a, double2* b, Four* out, int which) {
        __shared__ Four tile[32]; Four mine[2];
        tile[threadIdx.x] = a[threadIdx.x];
        mine[which] = a[threadIdx.x]; mine[1 - which] = tile[threadIdx.x];
        const int t = threadIdx.x;
        const Four* p = t % 3 == 0 ? &tile[t] : t % 3 == 1 ? &a[t] : &mine[which];
        Four f = *p;
        f.x[0] += b[threadIdx.x].x + b[threadIdx.x].y;
        out[threadIdx.x] = f;
    }""")
    a, b = RNG.standard_normal((32, 4)).astype(np.float32), RNG.standard_normal((32, 2))
    run = execute(program, "k", [a, b, Output((32, 4), np.float32), np.int32(1)])
    want = a.copy()
    want[:, 0] = (a[:, 0] + (b[:, 0] + b[:, 1])).astype(np.float32)
    np.testing.assert_allclose(run[2], want, rtol=1e-6)


def test_constants_globals_and_calls():
    program = compile_cuda("""
    __constant__ int table[4] = {10, 20, 30, 40};
    __device__ int offset = 5;
    struct Two { int a, b; };
    __device__ __noinline__ Two swap(Two t) { if (t.a > 20) return {t.b, -t.a}; return {t.b, t.a}; }
    extern "C" __global__ void k(int* out) {
        Two t = swap({table[threadIdx.x % 4], offset});
        Two u = swap({t.b, t.a + 1});
        out[threadIdx.x] = u.a * 1000 + u.b;
    }""")
    out = execute(program, "k", [Output(32, np.int32)])[0]
    want = []
    for i in range(32):
        a, b = (10, 20, 30, 40)[i % 4], 5
        a, b = (b, -a) if a > 20 else (b, a)
        a, b = b, a + 1
        a, b = (b, -a) if a > 20 else (b, a)
        want.append(a * 1000 + b)
    assert out.tolist() == want


ATOMICS = """
extern "C" __global__ void k(unsigned* counts, int* extremes, float* sum, unsigned* old, unsigned long long* wide) {
    __shared__ unsigned local[8];
    if (threadIdx.x < 8) local[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&local[threadIdx.x % 5], threadIdx.x);
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
    const int value = (threadIdx.x * 37 + blockIdx.x * 11) % 101 - 50;
    atomicMin(&extremes[0], value);
    atomicMax(&extremes[1], value);
    atomicAdd(sum, 0.5f);
    old[blockIdx.x * blockDim.x + threadIdx.x] = atomicInc(&counts[8], 1000);
    atomicCAS(&counts[9], 7u, 3u);
    atomicExch(&counts[10], 9u);
    atomicAdd(wide, 1ull << 33);
}"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics(seed):
    program = compile_cuda(ATOMICS)
    counts = np.zeros(12, np.uint32)
    counts[9] = 7
    arguments = [
        counts,
        np.zeros(2, np.int32),
        np.zeros(1, np.float32),
        Output(4 * 64, np.uint32),
        np.zeros(1, np.uint64),
    ]
    run = execute(program, "k", arguments, grid=(4, 1, 1), block=(64, 1, 1), seed=seed)
    t = np.arange(64)
    np.testing.assert_array_equal(run[0][:5], [4 * t[t % 5 == i].sum() for i in range(5)])
    assert run[0][8:11].tolist() == [256, 3, 9]
    values = (t * 37 + np.arange(4)[:, None] * 11) % 101 - 50
    assert run[1].tolist() == [min(values.min(), 0), max(values.max(), 0)]
    assert run[2][0] == 128
    assert sorted(run[3]) == list(range(256))
    assert run[4][0] == 256 << 33


def test_special_registers():
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        unsigned lane, warp, lt; asm("mov.u32 %0, %%laneid;" : "=r"(lane)); asm("mov.u32 %0, %%warpid;" : "=r"(warp));
        asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lt));
        int* o = out + (b * 60 + t) * 3;
        o[0] = b * 100 + t; o[1] = warp * 32 + lane; o[2] = lt;
    }""")
    out = execute(program, "k", [Output((2 * 3 * 2, 60, 3), np.int32)], grid=(2, 3, 2), block=(5, 4, 3))[0]
    np.testing.assert_array_equal(out[:, :, 0], np.arange(12)[:, None] * 100 + np.arange(60))
    np.testing.assert_array_equal(out[:, :, 1], np.broadcast_to(np.arange(60), (12, 60)))
    np.testing.assert_array_equal(out[0, :, 2].view(np.uint32), (1 << np.arange(60) % 32) - 1)
