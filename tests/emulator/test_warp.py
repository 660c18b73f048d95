"""Exchange within a warp."""

import numpy as np
import pytest
from kernel_harness import Output, compile_cuda, compute, execute

VALUES = np.arange(64, dtype=np.uint32) * 3 + 1
LANE = np.arange(64) % 32
BASE = np.arange(64) - LANE


@pytest.mark.parametrize(
    ("mode", "by", "bounds", "source"),
    [
        ("bfly", 1, 31, LANE ^ 1),
        ("bfly", 16, 31, LANE ^ 16),
        ("up", 3, 0, np.where(LANE >= 3, LANE - 3, LANE)),
        ("down", 5, 31, np.where(LANE + 5 < 32, LANE + 5, LANE)),
        ("idx", 7, 31, np.full(64, 7)),
        ("down", 2, 0x181F, np.where(LANE % 8 + 2 < 8, LANE + 2, LANE)),  # width 8
        ("idx", 1, 0x1C1F, LANE // 4 * 4 + 1),  # width 4
    ],
)
def test_shfl(mode, by, bounds, source):
    got = compute(f"shfl.sync.{mode}.b32 %d, %a, {by}, {bounds}, -1;", [("u32", VALUES)], "u32")
    np.testing.assert_array_equal(got, VALUES[BASE + source])


def test_shfl_predicate_and_register_amount():
    got = compute("shfl.sync.up.b32 _|%d, %a, %b, 0, -1;", [("u32", VALUES), ("u32", LANE)], "pred")
    np.testing.assert_array_equal(got, np.ones(64))
    got = compute("shfl.sync.down.b32 _|%d, %a, 4, 31, -1;", [("u32", VALUES)], "pred")
    np.testing.assert_array_equal(got, LANE < 28)
    got = compute("shfl.sync.idx.b32 %d, %a, %b, 31, -1;", [("u32", VALUES), ("u32", 31 - LANE)], "u32")
    np.testing.assert_array_equal(got, VALUES[BASE + 31 - LANE])


def test_votes():
    odd = VALUES % 2 == 1
    text = ".reg .pred %p; .reg .b32 m; and.b32 m, %a, 1; setp.ne.u32 %p, m, 0; vote.sync.{} %d, %p, -1;"
    ballot = int(sum(1 << i for i in range(32) if odd[i]))
    np.testing.assert_array_equal(compute(text.format("ballot.b32"), [("u32", VALUES)], "u32"), ballot)
    for mode, want in {"any": 1, "all": 0, "uni": 0}.items():
        np.testing.assert_array_equal(compute(text.format(f"{mode}.pred"), [("u32", VALUES)], "pred"), want)


def test_redux_and_match():
    for mode, want in {"add": VALUES[:32].sum(), "max": VALUES[31], "min": VALUES[0]}.items():
        got = compute(f"redux.sync.{mode}.u32 %d, %a, -1;", [("u32", VALUES)], "u32")
        assert got[5] == want
    got = compute("redux.sync.xor.b32 %d, %a, -1;", [("u32", VALUES)], "u32")
    assert got[0] == np.bitwise_xor.reduce(VALUES[:32])
    got = compute("match.any.sync.b32 %d, %a, -1;", [("u32", LANE % 5)], "u32")
    np.testing.assert_array_equal(got[:32], [sum(1 << j for j in range(32) if j % 5 == i % 5) for i in range(32)])


def test_members_and_divergence():
    """Lanes 0-15 exchange among themselves while the others compute; then all meet again."""
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        int x = threadIdx.x, y = -1;
        if (x < 16) y = __shfl_xor_sync(0x0000ffffu, x, 8);
        else for (int i = 0; i < x; ++i) y += i;
        unsigned active = __ballot_sync(~0u, y > 10);
        __syncwarp();
        out[x] = __shfl_sync(~0u, y, (x + 1) % 32) + int(active & 1);
    }""")
    y = np.array([x ^ 8 if x < 16 else x * (x - 1) // 2 - 1 for x in range(32)])
    for seed in range(3):
        out = execute(program, "k", [Output(32, np.int32)], seed=seed)[0]
        np.testing.assert_array_equal(out, np.roll(y, -1) + int(y[0] > 10))


def test_syncwarp_at_different_places():
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        __shared__ volatile int box[32];
        if (threadIdx.x < 8) { box[threadIdx.x] = 1; __syncwarp(); out[threadIdx.x] = box[threadIdx.x + 8]; }
        else { box[threadIdx.x] = 2; __syncwarp(); out[threadIdx.x] = box[threadIdx.x % 8]; }
    }""")
    out = execute(program, "k", [Output(32, np.int32)])[0]
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 8, 2, 1))


def test_elect():
    program = compile_cuda("""
    extern "C" __global__ void k(int* out) {
        unsigned leader, elected;
        asm("{ .reg .pred p; elect.sync %0|p, 0xfffffff0; selp.b32 %1, 1, 0, p; }" : "=r"(leader), "=r"(elected));
        out[threadIdx.x] = leader * 10 + elected;
    }""", arch="90a")  # fmt: skip
    # Lanes 0-3 are not in the member mask: an error. With the whole mask, lane 0 leads.
    from flashcore_drv.emulator import EmulationError

    with pytest.raises(EmulationError, match="not in its own member mask"):
        execute(program, "k", [Output(32, np.int32)])
