"""Two whole kernels, right and with bugs planted: an sm_80 style GEMM, and an sm_90a one with TMA and wgmma."""

import numpy as np
import pytest
from kernel_harness import DEFAULT, HERE, Output, compile_cuda, execute

from flashcore_drv.emulator import Checks, DeviceMemory, EmulationError
from flashcore_drv.emulator.instructions.tma import encode_tensor_map

RNG = np.random.default_rng(4)
F16, SWIZZLE_128B = 6, 3


def gemm_sm80(program, m, n, k, seed=0, checks=DEFAULT):
    a, b = (RNG.standard_normal(shape).astype(np.float16) for shape in ((m, k), (n, k)))
    arguments = [a, b, Output((m, n), np.float32), *(np.int32(x) for x in (m, n, k))]
    run = execute(
        program, "gemm_sm80", arguments, grid=(-(-n // 64), -(-m // 64), 1), block=(128, 1, 1), shared=4 * 4096,
        seed=seed, checks=checks, names=("a", "b", "c", "m", "n", "k"),
    )  # fmt: skip
    np.testing.assert_allclose(run[2], a.astype(np.float64) @ b.T.astype(np.float64), atol=1e-4)
    return run.report


def gemm_sm90(program, m, n, k, seed=0, checks=DEFAULT):
    a, b = (RNG.standard_normal(shape).astype(np.float16) for shape in ((m, k), (n, k)))
    memory = DeviceMemory()
    addresses = [memory.allocate(size * 2, name) for size, name in ((m * k, "a"), (n * k, "b"), (m * n, "c"))]
    memory.write(addresses[0], a)
    memory.write(addresses[1], b)
    maps = [
        encode_tensor_map(F16, address, (cols, rows), (cols * 2,), (64, 64), (1, 1), swizzle=SWIZZLE_128B)
        for address, rows, cols in zip(addresses, (m, n, m), (k, k, n))
    ]
    run = execute(
        program, "gemm_sm90", [*maps, np.int32(k)], grid=(-(-n // 64), -(-m // 64), 1), block=(160, 1, 1),
        shared=5 * 8192, seed=seed, checks=checks, memory=memory,
    )  # fmt: skip
    got = memory.read(addresses[2], m * n * 2).view(np.float16).reshape(m, n)
    want = a.astype(np.float64) @ b.T.astype(np.float64)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2e-3, atol=2e-2)
    return run.report


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 32), (128, 64, 160), (70, 129, 64)])
def test_gemm_sm80(m, n, k, seed):
    gemm_sm80(compile_cuda("gemm_sm80.cu"), m, n, k, seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (128, 64, 320), (72, 136, 192)])
def test_gemm_sm90(m, n, k, seed):
    gemm_sm90(compile_cuda("gemm_sm90.cu", "90a"), m, n, k, seed)


def test_the_swizzles_avoid_bank_conflicts():
    report = gemm_sm80(compile_cuda("gemm_sm80.cu"), 64, 64, 64, checks=Checks.all())
    assert report.totals.bank_conflicts == 0
    assert report.totals.shared_wavefronts > 0
    assert report.totals.opcodes["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] == 4 * 2 * 2 * 8
    report = gemm_sm90(compile_cuda("gemm_sm90.cu", "90a"), 64, 64, 64, checks=Checks.all())
    assert report.totals.bank_conflicts == 0
    assert report.totals.pipes["tensor"] >= 4 * 4


def gemm_sm80_source(old, new):
    text = (HERE / "kernels" / "gemm_sm80.cu").read_text()
    assert old in text
    return compile_cuda(text.replace(old, new))


def gemm_sm90_source(old, new):
    text = (HERE / "kernels" / "gemm_sm90.cu").read_text()
    assert old in text
    return compile_cuda(text.replace(old, new), "90a")


WRONG = (AssertionError, EmulationError)  # a wrong result is caught too
BUGS_80 = {
    "no barrier after the wait": ("        __syncthreads();  // the tiles", "        //", "race"),
    "no barrier before the next copy": ("        __syncthreads();  // every", "        //", "race"),
    "waits one group too late": ("wait_group 1", "wait_group 2", "race"),
    "copy past the last row": ("first_row + row < rows", "first_row + row <= rows", "out-of-bounds"),
    "store past the last row": ("if (row < m && col < n)", "if (col < n)", "out-of-bounds"),
    "shifted tile": ("address(warp * 16 + lane % 16", "address(warp * 16 + 1 + lane % 16", None),
    "swapped fragments": ("b_frag[0], b_frag[1]", "b_frag[1], b_frag[0]", None),
    "wrong swizzle on one side": ("(row >> 1 & 3)", "(row + int(threadIdx.x > 64) >> 1 & 3)", None),
    "no accumulator init": ("sum[BLOCK_N / 8][4] = {}", "sum[BLOCK_N / 8][4]", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS_80)
def test_planted_bugs_sm80(name):
    old, new, kind = BUGS_80[name]
    program = gemm_sm80_source(old, new)
    with pytest.raises(WRONG) as error:
        gemm_sm80(program, 70, 64, 96)
    if kind:
        assert error.value.kind == kind


WGMMA_WAIT = '        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");\n'
RELEASE = """        if (lane == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&empty[s]))
                         : "memory");
"""
BUGS_90 = {
    "wrong parity in the producer": ("(step / kStages & 1) ^ 1", "(step / kStages & 1)", "deadlock"),
    "wrong parity in the consumer": ("step / kStages & 1);\n        asm", "(step / kStages & 1) ^ 1);\n        asm",
                                     None),
    "no barrier after the initialisation": ("    __syncthreads();  // the barriers exist\n", "", None),
    "no wait for wgmma": (WGMMA_WAIT, "", None),
    "released before the wait": (WGMMA_WAIT + RELEASE, RELEASE + WGMMA_WAIT, "race"),
    "no wait for the tile": ("        wait(shared_address(&full[s]), step / kStages & 1);\n", "", None),
    "no wait for the ring": ("                wait(shared_address(&empty[s]), (step / kStages & 1) ^ 1);\n", "",
                             "mbarrier"),
    "too few bytes expected": ('"r"(2 * kTileBytes)', '"r"(kTileBytes)', None),
    "one arrival too few": (RELEASE, RELEASE.replace("lane", "threadIdx.x"), "deadlock"),
    "one arrival too many": ("[%0], 4;", "[%0], 3;", "mbarrier"),
    "no barrier before the store": ('    asm volatile("bar.sync 1, 128;" ::: "memory");  // C_smem is complete\n', "",
                                    "race"),
    "no proxy fence before the store": ('    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");\n', "",
                                        "race"),
    "wrong swizzle": ("(j + lane / 16) ^ (r_row & 7)", "j + lane / 16", None),
    "wrong stride": ("uint64_t(64) << 32", "uint64_t(32) << 32", None),
    "no scale_d": ("step + i > 0", "true", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS_90)
def test_planted_bugs_sm90(name):
    old, new, kind = BUGS_90[name]
    program = gemm_sm90_source(old, new)
    with pytest.raises(WRONG) as error:
        gemm_sm90(program, 64, 128, 256)
    if kind:
        assert error.value.kind == kind
