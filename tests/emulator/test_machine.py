"""What the machine says about wrong kernels, and that the order of warps and blocks really varies."""

import numpy as np
import pytest
from kernel_harness import DEFAULT, Output, compile_cuda, entry, execute

from flashcore_drv.emulator import Checks, DeviceMemory, EmulationError, Limits, parse

KERNEL = 'extern "C" __global__ void k(int* a, int* b, int n)'


def run(body, *, threads=64, blocks=1, n=0, size=256, seed=0, checks=DEFAULT, fill=True, limits=None, declare=""):
    program = compile_cuda(f"{declare}\n{KERNEL} {{\n{body}\n}}")
    a = np.arange(size, dtype=np.int32)
    b = a.copy() if fill else Output(size, np.int32)
    return execute(
        program, "k", [a, b, np.int32(n)], grid=(blocks, 1, 1), block=(threads, 1, 1), seed=seed, checks=checks,
        names=("a", "b", "n"), limits=limits,
    )  # fmt: skip


def fails(body, kind, *messages, line=None, **options):
    with pytest.raises(EmulationError) as error:
        run(body, **options)
    assert error.value.kind == kind, error.value
    for message in messages:
        assert message in str(error.value)
    if line is not None:
        assert error.value.line.endswith(f".cu:{line}"), error.value
        assert str(error.value).startswith(error.value.line)


# Shared memory.

SHARED = "__shared__ int tile[64]; int t = threadIdx.x;\n"


def test_race_of_a_read_with_a_write():
    text = SHARED + "tile[t] = t;\nb[t] = tile[63 - t];"
    fails(
        text, "race", "read of shared address 252 by warp 0 races with the write of warp 1 at kernel_", ".cu:4", line=5
    )
    fixed = text.replace("tile[t] = t;", "tile[t] = t; __syncthreads();")
    np.testing.assert_array_equal(run(fixed)[1][:64], 63 - np.arange(64))


def test_race_of_a_write_with_a_read():
    text = SHARED + "tile[t] = t; __syncthreads(); int x = tile[63 - t];\ntile[t] = x;\nb[t] = tile[t];"
    fails(text, "race", "write of shared address", "races with the read of warp", line=5)


def test_race_of_two_writes():
    text = SHARED + "tile[t % 32] = t;\n__syncthreads(); b[t] = tile[0];"
    fails(text, "race", "write of shared address 0 by warp 0 races with the write of warp 1", line=4)


@pytest.mark.parametrize("seed", range(5))
def test_a_race_is_found_whatever_the_order(seed):
    text = SHARED + "if (t < 32) tile[t] = t;\nif (t >= 32) b[t] = tile[t - 32];"
    with pytest.raises(EmulationError) as error:
        run(text, seed=seed)
    assert error.value.kind in ("race", "uninitialised-read")  # the second where the reader comes first


def test_neighbouring_bytes_do_not_race():
    text = (
        "__shared__ unsigned char tile[64]; int t = threadIdx.x, i = t / 32 + t % 32 * 2;\ntile[i] = t; b[t] = tile[i];"
    )
    np.testing.assert_array_equal(run(text)[1][:64], np.arange(64))


def test_atomics_in_shared_memory_do_not_race_with_each_other():
    text = """__shared__ int sum; if (threadIdx.x == 0) sum = 0; __syncthreads();
    atomicAdd(&sum, 1); {} b[threadIdx.x] = sum;"""
    assert run(text.format("__syncthreads();"))[1][5] == 64
    fails(text.format(""), "race", "read of shared address 0")


def test_uninitialised_shared_memory():
    fails(
        SHARED + "if (t < 60) tile[t] = t; __syncthreads();\nb[t] = tile[t];",
        "uninitialised-read",
        "shared address 240",
        line=5,
    )


def test_shared_memory_bounds_and_alignment():
    fails(SHARED + "tile[t] = 0; __syncthreads();\nb[t] = tile[t + n];", "out-of-bounds",
          "shared address 256 of a block that has 256 bytes", line=5, n=1)  # fmt: skip
    fails(
        SHARED + "tile[t] = 0; __syncthreads();\nb[t] = *(int*)((char*)tile + t * n);",
        "misaligned",
        "shared address 1",
        n=1,
    )


def test_shared_memory_is_fresh_in_every_block():
    text = SHARED + "if (blockIdx.x == 0) tile[t] = 1; __syncthreads(); b[t] = tile[t];"
    fails(text, "uninitialised-read", blocks=2)


# Global memory.


def test_global_bounds_name_thread_and_allocation():
    fails("a[threadIdx.x + n] = 1;", "out-of-bounds", "4-byte write by thread 8 of block (0, 0, 0)",
          "0 bytes past the end of a (1024 bytes", line=3, n=248)  # fmt: skip
    fails("a[threadIdx.x] = b[n - int(threadIdx.x)];", "out-of-bounds", "4 bytes before b", n=62)
    fails("a[threadIdx.x] = *(int*)((char*)b + threadIdx.x * 2);", "misaligned", "4-byte read")


def test_masked_accesses_touch_nothing():
    run("if (threadIdx.x < n) a[threadIdx.x + 252] = b[threadIdx.x + 252];", n=4)


def test_use_after_free():
    memory = DeviceMemory()
    gone = memory.allocate(64, "scores")
    memory.free(gone)
    program = compile_cuda(f"{KERNEL} {{\n *(int*)((char*)a + {gone}ull - (unsigned long long)a) = 1;\n}}")
    with pytest.raises(EmulationError, match=r"scores.*which was freed") as error:
        execute(program, "k", [np.zeros(4, np.int32), np.zeros(4, np.int32), np.int32(0)], memory=memory)
    assert error.value.kind == "use-after-free"


def test_uninitialised_global_memory():
    fails("a[threadIdx.x] = b[threadIdx.x];", "uninitialised-read", "read of byte 0 of b (1024 bytes",
          "which was never written", line=3, fill=False)  # fmt: skip
    run("b[threadIdx.x] = 5; a[threadIdx.x] = b[threadIdx.x];", fill=False)
    run("a[threadIdx.x] = b[threadIdx.x];", fill=False, checks=Checks(uninitialised=False))


def test_races_between_blocks():
    fails(
        "a[threadIdx.x] = blockIdx.x;",
        "race",
        "write of byte 0 of a",
        "races with the write of block",
        line=3,
        blocks=2,
    )
    text = "int i = blockIdx.x * 64 + threadIdx.x; b[i] = a[i ^ 64];\na[i] = 1;"
    fails(text, "race", "races with the read of", line=4, blocks=2)
    fails("if (blockIdx.x) b[threadIdx.x] = a[0]; else a[0] = 7;", "race", blocks=2, seed=3)
    run("b[blockIdx.x * 64 + threadIdx.x] = a[threadIdx.x];", blocks=2)
    run("atomicAdd(a, 1);", blocks=4)
    run("a[threadIdx.x] = blockIdx.x;", blocks=2, checks=Checks(global_races=False))


def test_the_last_block_may_read_what_others_published():
    text = """
    __shared__ bool last;
    b[blockIdx.x * 64 + threadIdx.x] = threadIdx.x;
    {fence}
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(a, 1) == gridDim.x - 1;
    __syncthreads();
    if (last) {{
        {fence}
        int sum = 0;
        for (int i = 0; i < 4; ++i) sum += b[i * 64 + threadIdx.x];
        a[64 + threadIdx.x] = sum;
    }}"""
    for seed in range(3):
        done = run(text.format(fence="__threadfence();"), blocks=4, seed=seed)
        assert done[0][64:128].sum() == 4 * sum(range(64))
    fails(text.format(fence=""), "race", blocks=4)


# Divergence, deadlock, runaways.


def test_divergent_warp_instruction():
    text = """int x = threadIdx.x; unsigned r = x, s = __cvta_generic_to_shared(tile);
    if (x % 32 < 16) { asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 %0, [%1];" : "=r"(r) : "r"(s)); }
    else { asm volatile("bar.warp.sync 0xffffffff;"); }
    b[x] = r;"""
    fails(
        "__shared__ alignas(16) int tile[64];\n" + text,
        "divergence",
        "ldmatrix",
        "lanes 0-15 of warp 0",
        "lanes 16-31 wait at",
        line=5,
    )


def test_shfl_without_all_its_members():
    fails(
        "if (threadIdx.x % 2) b[0] = 1; else\nb[threadIdx.x] = __shfl_sync(0xffffffff, n, 1);\n__syncwarp();",
        "divergence",
        "shfl",
        line=4,
    )


def test_deadlock_names_all_places():
    text = 'if (threadIdx.x < 32)\nasm volatile("bar.sync 1, 64;");\nelse\nasm volatile("bar.sync 2, 64;");'
    fails(text, "deadlock", "warps 0 at kernel_", ".cu:4 (bar.sync)", "warps 1 at", ".cu:6 (bar.sync)", line=4)


def test_runaway():
    fails("while (a[0] >= 0)\n a[n] += 1;", "watchdog", "still running", limits=Limits(max_instructions=10000))


def test_waiting_for_another_block():
    text = "if (blockIdx.x == 0) { while (((volatile int*)a)[0] == 0) {} b[1] = 7; } else { atomicExch(a, 5); }"
    for seed in range(3):
        assert run(text, blocks=2, threads=32, seed=seed, checks=Checks(global_races=False))[1][1] == 7


def test_trap_and_missing_functions():
    fails("if (threadIdx.x == 5)\n__trap();\na[0] = 1;", "trap", "trap by thread 5", line=4)
    fails('printf("%d", n);\na[0] = 1;', "trap", "vprintf", declare="#include <cstdio>")


def test_unknown_instruction():
    program = parse(entry(".reg .b32 %r;\ntex.1d.v4.s32.s32 %r, [%r];\nret;"))
    with pytest.raises(EmulationError) as error:
        execute(program, "kernel", [])
    assert error.value.kind == "unknown-instruction"
    assert str(error.value).startswith("kernel.ptx:8: the instruction tex.1d.v4.s32.s32 is not emulated")
    program = parse(entry(".reg .b64 %r<8>;\nst.global.v4.b64 [%r7], {%r0, %r1, %r2, %r3};\nret;"))
    with pytest.raises(
        EmulationError, match=r"access of 32 bytes.*extend flashcore_drv/emulator/instructions/move\.py"
    ):
        execute(program, "kernel", [])


def test_launch_limits():
    program = compile_cuda(f'{KERNEL} {{ a[0] = 1; }}\nextern "C" __global__ void __launch_bounds__(64) small() {{}}')
    arguments = [np.zeros(4, np.int32), np.zeros(4, np.int32), np.int32(0)]
    for options, message in (
        ({"block": (1025, 1, 1)}, "1025 threads"),
        ({"block": (1, 1, 65)}, "of at most 1024"),
        ({"grid": (1, 70000, 1)}, "grid"),
        ({"grid": (0, 1, 1)}, "must be positive"),
        ({"shared": 200000}, "200000 bytes of shared memory"),
        ({"block": (64, 1, 1), "limits": Limits(max_threads_per_block=32)}, "64 threads"),
    ):
        with pytest.raises(EmulationError, match=message) as error:
            execute(program, "k", arguments, **options)
        assert error.value.kind == "launch-limit"
    with pytest.raises(EmulationError, match="built for at most 64"):
        execute(program, "small", [], block=(96, 1, 1))


# Order.


def test_seeds_vary_the_order_of_warps_and_blocks():
    text = """b[blockIdx.x * 256 + atomicAdd(a + blockIdx.x, 1)] = threadIdx.x / 32;
    a[8 + atomicAdd(a + 7, 1)] = blockIdx.x;"""
    orders, blocks = set(), set()
    for seed in range(8):
        program = compile_cuda(f"{KERNEL} {{ for (int i = 0; i < 3; ++i) {{ {text} }} }}")
        a = np.zeros(8 + 3 * 4 * 256, np.int32)
        arguments = [a, np.full(4 * 1024, -1, np.int32), np.int32(0)]
        done = execute(program, "k", arguments, grid=(4, 1, 1), block=(256, 1, 1), seed=seed, checks=Checks.none())
        orders.add(done[1][:768].tobytes())
        blocks.add(done[0][8:].tobytes())
    assert len(orders) >= 6
    assert len(blocks) >= 6


def test_the_same_seed_is_the_same_order():
    text = "b[atomicAdd(a, 1)] = threadIdx.x + 64 * blockIdx.x;"
    first, again = (run(text, threads=32, blocks=4, seed=5, size=1024)[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_registers_start_as_nan():
    text = ".reg .f32 %f; .reg .b64 %rd; ld.param.u64 %rd, [p];\nst.global.f32 [%rd], %f; ret;"
    program = parse(entry(text, ".param .u64 p"))
    assert np.isnan(execute(program, "kernel", [Output(1, np.float32)], block=(1, 1, 1))[0])


@pytest.mark.parametrize("threads", [1, 31, 33, 100])
def test_blocks_that_are_not_whole_warps(threads):
    text = (
        SHARED.replace("64", "128")
        + "tile[t] = t; __syncthreads(); b[blockIdx.x * 128 + t] = tile[(t + 1) % blockDim.x];"
    )
    done = run(text, threads=threads, blocks=2)
    want = np.arange(256)
    for block in (0, 128):
        want[block : block + threads] = (np.arange(threads) + 1) % threads
    np.testing.assert_array_equal(done[1], want)


def test_more_blocks_than_fit_in_a_batch():
    program = compile_cuda(f"{KERNEL} {{ a[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * n; }}")
    for seed in (0, 1):
        arguments = [Output(41 * 512, np.int32), np.zeros(1, np.int32), np.int32(3)]
        done = execute(program, "k", arguments, grid=(41, 1, 1), block=(512, 1, 1), seed=seed)
        np.testing.assert_array_equal(done[0], np.arange(41 * 512) // 512 * 3)


def test_checks_by_name():
    assert Checks.parse("races, bounds") == Checks(True, False, True, False, False, False, False, False)
    assert Checks.parse("none") == Checks.none()
    assert Checks.parse("all") == Checks.all()
    with pytest.raises(ValueError, match="unknown checks rces; there are races, global_races"):
        Checks.parse("rces")


# Counts.


def test_counts_by_source_line():
    body = """__shared__ int tile[2048]; int t = threadIdx.x;
    tile[t * n] = t;
    __syncthreads();
    b[t] = tile[t * n];
    if (t < 32) b[128 + t * 2] = 1;"""
    done = run(body, n=2, checks=Checks.all())
    counts = {line: c for (_, line), c in done.report.lines.items()}
    assert counts[4].opcodes["st.shared.u32"] == 2
    assert (counts[4].shared_accesses, counts[4].shared_wavefronts, counts[4].bank_conflicts) == (2, 4, 2)
    assert counts[5].opcodes == {"bar.sync": 2}
    assert (counts[6].global_requests, counts[6].global_sectors, counts[6].bank_conflicts) == (2, 8, 2)
    assert (counts[7].global_requests, counts[7].global_sectors) == (1, 8)
    assert counts[6].pipes["lsu"] >= 4
    totals = done.report.totals
    assert totals.instructions == sum(c.instructions for c in counts.values())
    merged = run(body, n=2, checks=Checks.all()).report
    merged.merge(done.report)
    assert merged.totals.instructions == 2 * totals.instructions
    text = merged.to_json()
    assert text["totals"]["bank_conflicts"] == 8
    assert {row["line"] for row in text["lines"]} == set(counts)


@pytest.mark.parametrize(("stride", "conflicts"), [(1, 0), (2, 1), (8, 7), (32, 31), (33, 0), (0, 0)])
def test_bank_conflicts(stride, conflicts):
    body = "__shared__ int tile[2048]; int t = threadIdx.x;\ntile[t] = 0; __syncwarp();\nb[t] = tile[t * n];"
    done = run(body, n=stride, threads=32, checks=Checks(bank_conflicts=True, uninitialised=False))
    counts = {line: c for (_, line), c in done.report.lines.items()}
    assert counts[5].bank_conflicts == conflicts
