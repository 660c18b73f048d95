"""mbarrier, bulk and tensor copies, wgmma with its layouts."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from kernel_harness import Output, compile_cuda, execute

from flashcore_drv.emulator import Checks, DeviceMemory, EmulationError
from flashcore_drv.emulator.instructions.tma import decode, encode_tensor_map

RNG = np.random.default_rng(5)
F16, F32 = 6, 7

# mbarrier.

BARRIER = """
#include <cstdint>
#define WAIT(b, parity) \\
    asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again; }" \\
                 :: "r"(b), "r"(parity) : "memory")
extern "C" __global__ void k(int* out) {
    __shared__ alignas(8) uint64_t barriers[2]; __shared__ int box[64];
    unsigned b = __cvta_generic_to_shared(&barriers[0]), t = threadIdx.x;
    BODY
}"""
INIT = """if (t == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(b), "r"(COUNT) : "memory");
          __syncthreads();"""
ARRIVE = 'asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory");'


def barrier(body, count=64, threads=64, seed=0):
    program = compile_cuda(
        BARRIER.replace("BODY", body.replace("INIT", INIT).replace("ARRIVE", ARRIVE).replace("COUNT", str(count))),
        "90a",
    )
    return execute(program, "k", [Output(64, np.int32)], block=(threads, 1, 1), seed=seed)[0]


@pytest.mark.parametrize("seed", range(3))
def test_phases(seed):
    out = barrier(
        """INIT
        int sum = 0;
        for (int i = 0; i < 5; ++i) {
            box[t] = i * 100 + t;
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(b) : "memory");
            WAIT(b, i & 1);
            sum += box[63 - t];
            __syncthreads();
        }
        out[t] = sum;""",
        seed=seed,
    )
    np.testing.assert_array_equal(out, 1000 + 5 * (63 - np.arange(64)))


def test_states_and_test_wait():
    out = barrier(
        """INIT
        uint64_t state; int tries = 0, done = 0;
        asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(b) : "memory");
        while (!done) {
            asm volatile("{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
                         : "=r"(done) : "r"(b), "l"(state) : "memory");
            ++tries;
        }
        out[t] = tries;"""
    )
    assert (out >= 1).all()


@pytest.mark.parametrize(
    ("body", "count", "kind", "message"),
    [
        ("ARRIVE out[t] = 1;", 64, "uninitialised-read", "nothing has written"),
        ("INIT ARRIVE out[t] = 1;", 48, "mbarrier", "more arrivals"),
        ("INIT WAIT(b, 0); out[t] = 1;", 64, "deadlock", "wait for ever: warps 0-1"),
        ("if (t == 0) asm volatile(\"mbarrier.init.shared::cta.b64 [%0], 64;\" :: \"r\"(b) : \"memory\"); __syncwarp();"
         "if (t >= 32) ARRIVE out[t] = 1;", 64, "race", "races with the write of warp 0"),
        ("INIT ARRIVE box[t] = t; out[t] = box[63 - t];", 64, "race", "shared address"),
    ],
)  # fmt: skip
def test_misuse_of_mbarriers(body, count, kind, message):
    with pytest.raises(EmulationError, match=message) as error:
        barrier(body, count)
    assert error.value.kind == kind


# Bulk and tensor copies.


def test_bulk_copies():
    program = compile_cuda("""
    #include <cstdint>
    extern "C" __global__ void k(const int4* in, int4* out) {
        __shared__ alignas(128) int4 tile[64]; __shared__ alignas(8) uint64_t barrier;
        unsigned b = __cvta_generic_to_shared(&barrier), s = __cvta_generic_to_shared(tile);
        if (threadIdx.x == 0) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(b) : "memory");
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" :: "r"(b) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];"
                         :: "r"(s), "l"(in), "r"(b) : "memory");
        }
        __syncthreads();
        asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra again; }"
                     :: "r"(b) : "memory");
        tile[threadIdx.x].x += 1; tile[threadIdx.x + 32].x += 1;
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        if (threadIdx.x == 0) {
            asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 512;" :: "l"(out), "r"(s) : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        }
    }""", "90a")  # fmt: skip
    data = RNG.integers(0, 1000, (64, 4)).astype(np.int32)
    run = execute(program, "k", [data, np.zeros((64, 4), np.int32)])
    np.testing.assert_array_equal(run[1][:32], data[:32] + np.int32([1, 0, 0, 0]))
    assert not run[1][32:].any()


def tensor_kernel(rank, words):
    coordinates = ", ".join(f"%{3 + i}" for i in range(rank))
    values = ", ".join(f'"r"(at[{i}])' for i in range(rank))
    return f"""
    #include <cstdint>
    struct alignas(64) Map {{ char bytes[128]; }};
    struct Start {{ int at[5], store; }};
    extern "C" __global__ void k(const __grid_constant__ Map in, const __grid_constant__ Map back,
                                 const __grid_constant__ Start start, unsigned* out) {{
        __shared__ alignas(1024) unsigned tile[{words}]; __shared__ alignas(8) uint64_t barrier;
        const int* at = start.at;
        unsigned b = __cvta_generic_to_shared(&barrier), s = __cvta_generic_to_shared(tile);
        if (threadIdx.x == 0) {{
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(b) : "memory");
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], {words * 4};" :: "r"(b) : "memory");
            asm volatile("cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes "
                         "[%0], [%1, {{{coordinates}}}], [%2];"
                         :: "r"(s), "l"(&in), "r"(b), {values} : "memory");
        }}
        __syncthreads();
        asm volatile("{{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra again; }}"
                     :: "r"(b) : "memory");
        for (int i = threadIdx.x; i < {words}; i += 32) out[i] = tile[i];
        if (threadIdx.x == 0 && start.store) {{
            asm volatile("cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%1, {{{coordinates}}}], [%0];"
                         :: "r"(s), "l"(&back), "r"(0), {values} : "memory");
            asm volatile("cp.async.bulk.commit_group;" ::: "memory");
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        }}
    }}"""


def exchanged(octets, swizzle):
    """A box of bytes as the swizzle stores it: 16-byte piece p of 128-byte row r is at p ^ f(r)."""
    bits = {0: 0, 1: 1, 2: 3, 3: 7}[swizzle]
    out = np.empty_like(octets)
    for piece in range(octets.size // 16):
        row, column = divmod(piece, 8)
        to = row * 8 + (column ^ (row & bits))
        out[to * 16 : to * 16 + 16] = octets[piece * 16 : piece * 16 + 16]
    return out


@pytest.mark.parametrize(
    ("dims", "box", "start", "swizzle"),
    [
        ((104,), (64,), (56,), 0),
        ((64, 50), (64, 32), (0, 30), 3),
        ((40, 50), (32, 16), (16, -4), 2),
        ((64, 50), (16, 64), (8, 3), 1),
        ((24, 10, 5), (16, 8, 2), (16, 4, 4), 0),
        ((64, 6, 3, 2), (64, 4, 2, 1), (0, 4, 2, 1), 3),
        ((8, 3, 4, 3, 2), (8, 2, 2, 2, 2), (0, 2, -1, 1, 0), 0),
        ((128, 9), (64, 8), (72, 2), 3),
    ],
)
def test_tensor_copies(dims, box, start, swizzle):
    rank = len(dims)
    tensor = RNG.standard_normal(dims[::-1]).astype(np.float16)
    memory = DeviceMemory()
    source, target = memory.allocate(tensor.nbytes, "tensor"), memory.allocate(tensor.nbytes, "copy")
    memory.write(source, tensor)
    memory.write(target, np.full_like(tensor, -1))
    strides = tuple(np.cumprod((2, *dims))[1:-1].tolist())
    maps = [encode_tensor_map(F16, a, dims, strides, box, (1,) * rank, swizzle=swizzle) for a in (source, target)]
    words = int(np.prod(box)) // 2
    stores = min(start) >= 0  # a store's coordinates must not be negative
    at = np.int32([*start, *[0] * (5 - rank), stores])
    run = execute(
        compile_cuda(tensor_kernel(rank, words), "90a"),
        "k",
        [*maps, at.tobytes(), Output(words, np.uint32)],
        memory=memory,
    )
    want, copied = np.zeros(box[::-1], np.float16), np.full_like(tensor, -1)
    for offset in itertools.product(*(range(n) for n in box[::-1])):
        place = tuple(o + s for o, s in zip(offset, start[::-1]))
        if all(0 <= p < n for p, n in zip(place, dims[::-1])):
            want[offset] = tensor[place]
            if stores:
                copied[place] = tensor[place]
    np.testing.assert_array_equal(run[3].view(np.uint8), exchanged(want.reshape(-1).view(np.uint8), swizzle))
    np.testing.assert_array_equal(memory.read(target, tensor.nbytes).view(np.float16).reshape(tensor.shape), copied)


def test_tensor_maps():
    data = encode_tensor_map(F32, 0x1000, (64, 3), (256,), (32, 2), (1, 1), swizzle=3, oob_fill=1)
    assert len(data) == 128
    m = decode(data)
    assert (m.address, m.dims, m.strides, m.box, m.swizzle, m.oob_fill) == (0x1000, (64, 3), (256,), (32, 2), 3, 1)
    assert (m.element_bytes, m.box_bytes) == (4, 256)
    good = {
        "data_type": F16,
        "address": 0x1000,
        "dims": (64, 3),
        "strides": (128,),
        "box": (64, 1),
        "element_strides": (1, 1),
    }
    for wrong, message in (
        ({"address": 8}, "multiple of 16"), ({"strides": (100,)}, "strides"), ({"box": (512, 1)}, "box"),
        ({"box": (4, 1)}, "8 contiguous bytes"),
        ({"dims": (0, 3)}, "dimensions"), ({"swizzle": 1}, "more than the 32"), ({"swizzle": 9}, "swizzle 9"),
        ({"interleave": 1}, "nterleav"), ({"data_type": 99}, "data type"), ({"strides": ()}, "0 strides"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            encode_tensor_map(**{**good, **wrong})
    with pytest.raises(ValueError, match="not a tensor map"):
        decode(bytes(128))


# wgmma: the test lays A and B out in a picture of shared memory, byte by byte.

ELEMENTS = {
    "f16": (np.float16, 16), "bf16": (ml_dtypes.bfloat16, 16), "e4m3": (ml_dtypes.float8_e4m3fn, 32),
    "e5m2": (ml_dtypes.float8_e5m2, 32),
    "s8": (np.int8, 32), "u8": (np.uint8, 32), "tf32": (np.float32, 8),
}  # fmt: skip
MODE = {0: 0, 128: 1, 64: 2, 32: 3}


def laid_out(matrix, k_major, span, image, base):
    """Put [rows, k] (M or N by K) into the image; the descriptor."""
    rows, k = matrix.shape
    element = matrix.itemsize
    octets = matrix.view(np.uint8).reshape(rows, k, element)
    swizzle = {0: 0, 32: 1, 64: 3, 128: 7}[span]
    leading, stride = (16 * rows, 128) if k_major and not span else (0, 8 * span)
    if not k_major:
        atoms = -(-rows * element // max(span, 16))
        leading, stride = (8 * span, 8 * span * atoms) if span else (128 * atoms, 128)
    for i in range(rows):
        for j in range(k):
            row, inner = (i, j * element) if k_major else (j, i * element)
            if k_major and span:
                at = row // 8 * stride + row % 8 * span + inner
            elif k_major:
                at = row // 8 * stride + row % 8 * 16 + inner // 16 * leading + inner % 16
            elif span:
                at = inner // span * leading + row // 8 * stride + row % 8 * span + inner % span
            else:
                at = inner // 16 * stride + row // 8 * leading + row % 8 * 16 + inner % 16
            at += base
            at ^= (at >> 7 & swizzle) << 4
            image[at : at + element] = octets[i, j]
    return base >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | MODE[span] << 62


def wgmma_kernel(n, k, d_kind, a_kind, b_kind, a_registers, transposes):
    count = n // 4 if d_kind == "f16" else n // 2
    d = ", ".join(f"%{i}" for i in range(count))
    tail = {"s32": ""}.get(d_kind, ", 1, -1") + ("" if a_kind not in ("f16", "bf16") else f", {', '.join(transposes)}")
    inputs = '"r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])' if a_registers else '"l"(a)'
    first = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}" if a_registers else f"%{count}"
    b_at = count + (4 if a_registers else 1)
    names = ", ".join(f'"+r"(d[{i}])' for i in range(count))
    return f"""
    #include <cstdint>
    extern "C" __global__ void k(const uint4* image, uint64_t a, uint64_t b, const unsigned* fragments,
                                 const unsigned* c, unsigned* out, int scale) {{
        extern __shared__ __align__(1024) uint4 tile[];
        for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = image[i];
        unsigned d[{count}], r[4];
        for (int i = 0; i < {count}; ++i) d[i] = c[i * 128 + threadIdx.x];
        for (int i = 0; i < 4; ++i) r[i] = fragments[i * 128 + threadIdx.x];
        asm volatile("fence.proxy.async;" ::: "memory");
        __syncthreads();
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{b_at + 1}, 0; "
                     "wgmma.mma_async.sync.aligned.m64n{n}k{k}.{d_kind}.{a_kind}.{b_kind} "
                     "{{{d}}}, {first}, %{b_at}, p{tail}; }}" : {names} : {inputs}, "l"(b), "r"(scale));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        for (int i = 0; i < {count}; ++i) out[i * 128 + threadIdx.x] = d[i];
    }}"""


@pytest.mark.parametrize(
    ("kinds", "n", "span", "a_k_major", "b_k_major", "a_registers"),
    [
        (("f32", "f16", "f16"), 64, 128, True, True, False),
        (("f32", "f16", "f16"), 96, 64, True, True, False),
        (("f32", "bf16", "bf16"), 32, 32, True, True, False),
        (("f32", "f16", "f16"), 24, 0, True, True, False),
        (("f32", "f16", "f16"), 128, 128, True, False, False),
        (("f32", "f16", "f16"), 64, 128, False, False, False),
        (("f32", "bf16", "bf16"), 64, 64, False, True, False),
        (("f32", "f16", "f16"), 32, 32, False, False, False),
        (("f32", "f16", "f16"), 16, 0, False, False, False),
        (("f32", "f16", "f16"), 64, 128, True, False, True),
        (("f16", "f16", "f16"), 64, 128, True, True, False),
        (("f32", "e4m3", "e4m3"), 64, 128, True, True, False),
        (("f32", "e4m3", "e5m2"), 64, 64, True, True, True),
        (("s32", "s8", "s8"), 48, 32, True, True, False),
        (("s32", "u8", "s8"), 64, 128, True, True, False),
        (("f32", "tf32", "tf32"), 64, 128, True, True, False),
    ],
)  # fmt: skip
def test_wgmma(kinds, n, span, a_k_major, b_k_major, a_registers):
    d_kind, a_kind, b_kind = kinds
    (a_type, k), (b_type, _) = ELEMENTS[a_kind], ELEMENTS[b_kind]

    def draw(shape, dtype):
        if np.dtype(dtype).kind in "iu":
            return RNG.integers(0 if dtype == np.uint8 else -128, 128, shape).astype(dtype)
        return RNG.integers(-8, 9, shape).astype(np.float32).astype(dtype)

    a, b = draw((64, k), a_type), draw((n, k), b_type)
    image = np.zeros(32768, np.uint8)
    a_descriptor = laid_out(a, a_k_major, span, image, 0)
    b_descriptor = laid_out(b, b_k_major, span, image, 16384)
    thread = np.arange(128)
    rows, pairs = thread // 32 * 16 + thread % 32 // 4, thread % 4
    words = np.ascontiguousarray(a).view(np.uint32)
    fragments = np.stack([words[rows + 8 * (i % 2), pairs + 4 * (i // 2)] for i in range(4)])
    accumulator = {"f32": np.float32, "s32": np.int32, "f16": np.float16}[d_kind]
    c = RNG.integers(-50, 50, (64, n)).astype(accumulator)

    def places(register):
        if d_kind == "f16":
            return rows + 8 * (register % 2), register // 2 * 8 + pairs * 2
        return rows + 8 * (register // 2 % 2), register // 4 * 8 + pairs * 2 + register % 2

    count = n // 4 if d_kind == "f16" else n // 2
    if d_kind == "f16":
        pairs_of_c = np.ascontiguousarray(c).view(np.uint32)
        c_registers = np.stack([pairs_of_c[places(i)[0], places(i)[1] // 2] for i in range(count)])
    else:
        c_registers = np.stack([c[places(i)].view(np.uint32) for i in range(count)])
    transposes = ([] if a_registers else [str(int(not a_k_major))]) + [str(int(not b_k_major))]
    program = compile_cuda(wgmma_kernel(n, k, d_kind, a_kind, b_kind, a_registers, transposes), "90a")
    sign = 1 if d_kind == "s32" else -1
    for scale in (0, 1):
        descriptors = np.uint64(a_descriptor), np.uint64(b_descriptor)
        result = Output((count, 128), np.uint32)
        arguments = [image, *descriptors, fragments, c_registers, result, np.int32(scale)]
        out = execute(program, "k", arguments, block=(128, 1, 1), shared=32768)[5]
        got = np.zeros((64, n), accumulator)
        for i in range(count):
            row, column = places(i)
            if d_kind == "f16":
                halves = np.ascontiguousarray(out[i]).view(np.float16).reshape(-1, 2)
                got[row, column], got[row, column + 1] = halves[:, 0], halves[:, 1]
            else:
                got[row, column] = np.ascontiguousarray(out[i]).view(accumulator)
        want = sign * (a.astype(np.float64) @ b.astype(np.float64).T) + scale * c.astype(np.float64)
        np.testing.assert_array_equal(got, want.astype(accumulator))


def test_accumulators_hold_nan_until_the_wait():
    source = wgmma_kernel(64, 16, "f32", "f16", "f16", False, ["0", "0"])
    program = compile_cuda(source.replace("wait_group.sync.aligned 0", "wait_group.sync.aligned 1"), "90a")
    image = np.zeros(32768, np.uint8)
    descriptor = laid_out(np.ones((64, 16), np.float16), True, 128, image, 0)
    fragments, c = np.zeros((4, 128), np.uint32), np.zeros((32, 128), np.uint32)
    result = Output((32, 128), np.float32)
    arguments = [image, np.uint64(descriptor), np.uint64(descriptor), fragments, c, result, np.int32(1)]
    assert np.isnan(execute(program, "k", arguments, block=(128, 1, 1), shared=32768)[5]).all()


# What only Hopper's hardware would notice: registers that never come, writes that the async proxy does not see.

REGISTERS = """
extern "C" __global__ void __launch_bounds__(LIMITS) k(int* out) {
    if (threadIdx.x / 128 == LOADS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 FEW;");
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 MANY;");
    }
    out[threadIdx.x] = threadIdx.x;
}"""


def warpgroups(few, many, limits="384", loads=2, threads=384, grid=1, seed=0):
    text = REGISTERS.replace("LIMITS", limits).replace("LOADS", str(loads))
    program = compile_cuda(text.replace("FEW", str(few)).replace("MANY", str(many)), "90a")
    out = execute(program, "k", [Output(threads, np.int32)], block=(threads, 1, 1), grid=(grid, 1, 1), seed=seed,
                  checks=Checks.parse("divergence"))[0]  # fmt: skip
    np.testing.assert_array_equal(out, np.arange(threads))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("few", "many", "options"),
    [
        (40, 232, {}),
        (24, 240, {}),
        (40, 232, {"loads": 0, "grid": 3}),
        (32, 160, {"limits": "512", "threads": 512, "loads": 3}),
        (24, 248, {"limits": "256", "threads": 256, "loads": 1}),
        (24, 48, {"limits": "384, 4"}),
        (40, 232, {"threads": 352, "loads": 0}),
    ],
)
def test_registers_that_suffice(few, many, options, seed):
    warpgroups(few, many, seed=seed, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("few", "many", "options", "message"),
    [
        (32, 240, {}, "warpgroup [01] of block .0, 0, 0. waits for 240 registers a thread, 9216 more; "
                      "the block's pool has 8192 of 64512, 168 a thread at launch"),
        (40, 240, {}, "waits for 240 registers a thread, 9216 more; the block's pool has 7168"),
        (40, 168, {"limits": "512", "threads": 512, "loads": 3}, "the block's pool has 1024 of 65536, 128 a thread"),
        (24, 56, {"limits": "384, 4"}, "2048 more; the block's pool has 0 of 15360, 40 a thread"),
        (32, 240, {"loads": 9}, "waits for 240 registers a thread, 9216 more; the block's pool has 0"),
    ],
)  # fmt: skip
def test_registers_that_never_come(few, many, options, message, seed):
    with pytest.raises(EmulationError, match=message) as error:
        warpgroups(few, many, seed=seed, **options)
    assert error.value.kind == "deadlock"


FENCE = 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");'

PROXIES = """
#include <cstdint>
extern "C" __global__ void k(const int4* in, int4* out) {
    __shared__ alignas(128) int4 tile[64]; __shared__ alignas(8) uint64_t barrier;
    const unsigned b = __cvta_generic_to_shared(&barrier), s = __cvta_generic_to_shared(tile), t = threadIdx.x;
    if (t == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(b) : "memory");
    __syncthreads();
    BODY
}"""
WRITE = "tile[t] = in[t];"
COPY = """asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(s + 16 * t), "l"(in + t) : "memory");
          asm volatile("cp.async.wait_all;" ::: "memory");"""
STORE = """asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 1024;" :: "l"(out), "r"(s) : "memory");
           asm volatile("cp.async.bulk.commit_group;" ::: "memory");
           asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");"""
LOAD = """if (t == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" :: "r"(b) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];"
                 :: "r"(s), "l"(in), "r"(b) : "memory");
}
asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra again; }"
             :: "r"(b) : "memory");"""


def proxies(*steps, seed=0):
    program = compile_cuda(PROXIES.replace("BODY", "\n".join(steps)), "90a")
    data = RNG.integers(0, 1000, (64, 4)).astype(np.int32)
    out = execute(program, "k", [data, Output((64, 4), np.int32)], block=(64, 1, 1), seed=seed)[1]
    np.testing.assert_array_equal(out, data)


SYNC, ONCE = "__syncthreads();", "if (t == 0) {" + STORE + "}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "steps",
    [
        (WRITE, FENCE, SYNC, ONCE),
        (WRITE, SYNC, "if (t == 0)" + FENCE, ONCE),
        (WRITE, SYNC, FENCE, SYNC, ONCE),
        (WRITE, SYNC, "if (t >= 32) " + FENCE, SYNC, ONCE),
        (WRITE, FENCE.replace(".shared::cta", ""), SYNC, ONCE),
        (COPY, FENCE, SYNC, ONCE),
        (LOAD, ONCE),
        (LOAD, "out[t] = tile[t];"),
        (WRITE, FENCE, SYNC, LOAD, "out[t] = tile[t];"),
        (WRITE, SYNC, "out[t] = tile[t];"),
    ],
)
def test_ordinary_and_asynchronous_accesses(steps, seed):
    proxies(*steps, seed=seed)


TMA_READ = "TMA read of shared address (0|512) without fence.proxy.async after the write of warp [01] at "


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((WRITE, SYNC, ONCE), TMA_READ),
        ((FENCE, WRITE, SYNC, ONCE), TMA_READ),
        ((WRITE, "if (t >= 32) " + FENCE, SYNC, ONCE), "address 0 without .* of warp 0 at"),
        ((WRITE, "if (t < 32) " + FENCE, SYNC, ONCE), "address 512 without .* of warp 1 at"),
        ((WRITE, FENCE.replace("shared::cta", "global"), SYNC, ONCE), TMA_READ),
        ((WRITE, SYNC, ONCE, FENCE), TMA_READ),
        ((COPY, SYNC, ONCE), TMA_READ),
        ((LOAD, "((volatile int*)tile)[4 * t] = in[t].x;", SYNC, ONCE), TMA_READ),
        ((WRITE, SYNC, LOAD, "out[t] = tile[t];"), "TMA write of shared address (0|512) without fence.proxy.async"),
        ((WRITE, FENCE, ONCE), "TMA read of shared address 512 races with the write of warp 1"),
    ],
)
def test_missing_proxy_fences(steps, message, seed):
    with pytest.raises(EmulationError, match=message) as error:
        proxies(*steps, seed=seed)
    assert error.value.kind == "race"


def test_wgmma_needs_a_proxy_fence():
    source = wgmma_kernel(64, 16, "f32", "f16", "f16", False, ["0", "0"])
    assert "fence.proxy.async" in source
    image = np.zeros(32768, np.uint8)
    descriptor = laid_out(np.ones((64, 16), np.float16), True, 128, image, 0)
    zeros = [np.zeros((n, 128), np.uint32) for n in (4, 32)]
    arguments = [image, np.uint64(descriptor), np.uint64(descriptor), *zeros, Output((32, 128), np.uint32), np.int32(1)]
    program = compile_cuda(source.replace('asm volatile("fence.proxy.async;" ::: "memory");', ""), "90a")
    message = "wgmma read of shared address .* without fence.proxy.async after the write of warp . at "
    with pytest.raises(EmulationError, match=message):
        execute(program, "k", arguments, block=(128, 1, 1), shared=32768)
