"""ldmatrix, stmatrix, movmatrix, mma.sync and wmma against the fragment layouts of the PTX ISA and NumPy products."""

import ml_dtypes
import numpy as np
import pytest
from kernel_harness import Output, compile_cuda, execute

RNG = np.random.default_rng(3)
G, T = np.arange(32) // 4, np.arange(32) % 4  # groupID and threadID_in_group of the PTX ISA
TYPES = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "s8": np.int8, "u8": np.uint8, "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2, "tf32": np.float32,
}  # fmt: skip


def random(shape, kind):
    if kind in ("s8", "u8"):
        return RNG.integers(np.iinfo(TYPES[kind]).min, np.iinfo(TYPES[kind]).max + 1, shape).astype(TYPES[kind])
    values = RNG.standard_normal(shape).astype(TYPES[kind])
    return (values.view(np.uint32) & 0xFFFFE000).view(np.float32) if kind == "tf32" else values


def words(array):
    return np.ascontiguousarray(array).view(np.uint32)


def fragment_a(a):
    """Registers [n, 32] of A by the formulas of the PTX ISA: row g or g + 8, columns from t on, in each half of k."""
    packed = words(a)
    out = []
    for block in range(packed.shape[1] // 4):
        out += [packed[G, block * 4 + T], packed[G + 8, block * 4 + T]]
    return out


def fragment_b(b):
    packed = words(b.T)
    return [packed[G, block * 4 + T] for block in range(packed.shape[1] // 4)]


def mma_kernel(shape, types, counts):
    d, a, b, c = counts

    def names(first, count):
        return "{" + ", ".join(f"%{first + i}" for i in range(count)) + "}"

    operands = ", ".join([names(0, d), names(d, a), names(d + a, b), names(d + a + b, c)])
    outputs = ", ".join(f'"=r"(d[{i}])' for i in range(d))
    inputs = ", ".join(f'"r"(in[{i} * 32 + threadIdx.x])' for i in range(a + b + c))
    return f"""extern "C" __global__ void k(const unsigned* in, unsigned* out) {{
        unsigned d[{d}];
        asm("mma.sync.aligned.{shape}.row.col.{types} {operands};" : {outputs} : {inputs});
        for (int i = 0; i < {d}; ++i) out[i * 32 + threadIdx.x] = d[i];
    }}"""


CASES = [
    ("m16n8k8", "f32.f16.f16.f32"), ("m16n8k16", "f32.f16.f16.f32"), ("m16n8k8", "f32.bf16.bf16.f32"),
    ("m16n8k16", "f32.bf16.bf16.f32"), ("m16n8k8", "f16.f16.f16.f16"), ("m16n8k16", "f16.f16.f16.f16"),
    ("m16n8k32", "s32.s8.s8.s32"), ("m16n8k32", "s32.u8.s8.s32"), ("m16n8k32", "f32.e4m3.e4m3.f32"),
    ("m16n8k32", "f32.e5m2.e4m3.f32"), ("m16n8k8", "f32.tf32.tf32.f32"), ("m16n8k4", "f32.tf32.tf32.f32"),
    ("m16n8k16", "s32.s8.s8.s32"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "types"), CASES)
def test_mma(shape, types):
    k = int(shape.split("k")[1])
    d_kind, a_kind, b_kind, c_kind = types.split(".")
    a, b = random((16, k), a_kind), random((k, 8), b_kind)
    accumulator = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[c_kind]
    c = (RNG.standard_normal((16, 8)) * 100).astype(accumulator)
    a_registers, b_registers = fragment_a(a), fragment_b(b)
    if c_kind == "f16":
        c_registers = [words(c)[G, T], words(c)[G + 8, T]]
    else:
        c_registers = [words(c)[G + 8 * h, 2 * T + e] for h in (0, 1) for e in (0, 1)]
    counts = (len(c_registers), len(a_registers), len(b_registers), len(c_registers))
    program = compile_cuda(mma_kernel(shape, types, counts))
    registers = np.stack([*a_registers, *b_registers, *c_registers])
    out = execute(program, "k", [registers, Output((counts[0], 32), np.uint32)])[1]
    got = np.zeros((16, 8), accumulator)
    if d_kind == "f16":
        halves = out.view(np.float16).reshape(2, 32, 2)
        for h in (0, 1):
            for e in (0, 1):
                got[G + 8 * h, 2 * T + e] = halves[h, :, e]
    else:
        for h in (0, 1):
            for e in (0, 1):
                got[G + 8 * h, 2 * T + e] = out.view(accumulator)[2 * h + e]
    want = (a.astype(np.float64) @ b.astype(np.float64) + c.astype(np.float64)).astype(accumulator)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(count, transposed):
    trans = ".trans" if transposed else ""
    names = ", ".join(f"%{i}" for i in range(count))
    outputs = ", ".join(f'"=r"(r[{i}])' for i in range(count))
    inputs = ", ".join(f'"r"(r[{i}])' for i in range(count))
    program = compile_cuda(f"""
    #include <cstdint>
    extern "C" __global__ void k(const uint4* in, unsigned* registers, uint4* copy) {{
        __shared__ uint4 a[64], b[64];
        a[threadIdx.x] = in[threadIdx.x]; a[threadIdx.x + 32] = in[threadIdx.x + 32];
        b[threadIdx.x] = b[threadIdx.x + 32] = uint4{{0, 0, 0, 0}};
        __syncwarp();
        unsigned r[{count}], from = __cvta_generic_to_shared(&a[2 * threadIdx.x]);
        unsigned to = __cvta_generic_to_shared(&b[threadIdx.x]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%{count}];"
                     : {outputs} : "r"(from));
        asm volatile("stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%{count}], {{{names}}};"
                     :: {inputs}, "r"(to) : "memory");
        for (int i = 0; i < {count}; ++i) registers[i * 32 + threadIdx.x] = r[i];
        __syncwarp();
        copy[threadIdx.x] = b[threadIdx.x];
    }}""", arch="90a")  # fmt: skip
    rows = RNG.integers(0, 1 << 16, (64, 8)).astype(np.uint16)
    run = execute(program, "k", [rows, Output((count, 32), np.uint32), Output((32, 8), np.uint16)])
    matrices = rows[::2].reshape(4, 8, 8)[:count]
    shown = matrices.swapaxes(1, 2) if transposed else matrices
    np.testing.assert_array_equal(run[1], np.stack([words(m)[G, T] for m in shown]))
    np.testing.assert_array_equal(run[2].reshape(4, 8, 8)[:count], matrices)
    assert not run[2].reshape(4, 8, 8)[count:].any()


def test_movmatrix():
    program = compile_cuda("""
    extern "C" __global__ void k(const unsigned* in, unsigned* out) {
        unsigned r;
        asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(in[threadIdx.x]));
        out[threadIdx.x] = r;
    }""")
    matrix = RNG.integers(0, 1 << 16, (8, 8)).astype(np.uint16)
    run = execute(program, "k", [matrix, Output((8, 4), np.uint32)])
    np.testing.assert_array_equal(run[1].view(np.uint16), matrix.T)


WMMA = """
#include <mma.h>
#include <cuda_bf16.h>
using namespace nvcuda;
extern "C" __global__ void k(const %(T)s* a, const %(T)s* b, const %(C)s* c, %(C)s* d, int lda, int ldb, int ldc) {
    __shared__ alignas(32) %(C)s tile[%(M)d * (%(N)d + 8)];
    wmma::fragment<wmma::matrix_a, %(M)d, %(N)d, %(K)d, %(T)s, wmma::%(LA)s_major> A;
    wmma::fragment<wmma::matrix_b, %(M)d, %(N)d, %(K)d, %(T)s, wmma::%(LB)s_major> B;
    wmma::fragment<wmma::accumulator, %(M)d, %(N)d, %(K)d, %(C)s> C;
    wmma::load_matrix_sync(A, a, lda);
    wmma::load_matrix_sync(B, b, ldb);
    wmma::load_matrix_sync(C, c, ldc, wmma::mem_%(LC)s_major);
    wmma::mma_sync(C, A, B, C);
    for (int i = 0; i < C.num_elements; ++i) C.x[i] = C.x[i] + C.x[i];
    wmma::store_matrix_sync(tile, C, %(N)d + 8, wmma::mem_row_major);
    __syncwarp();
    for (int i = threadIdx.x; i < %(M)d * %(N)d; i += 32) d[i] = tile[i / %(N)d * (%(N)d + 8) + i %% %(N)d];
}"""


def stored(matrix, layout, pad=8):
    """The matrix in memory with a padded leading dimension, and that dimension."""
    rows = matrix if layout == "row" else matrix.T
    padded = np.zeros((rows.shape[0], rows.shape[1] + pad), matrix.dtype)
    padded[:, : rows.shape[1]] = rows
    return padded, np.int32(padded.shape[1])


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 8, 16), (8, 32, 16)])
@pytest.mark.parametrize(("kind", "accumulator"), [("f16", "float"), ("bf16", "float"), ("f16", "half")])
@pytest.mark.parametrize("layouts", [("row", "col", "row"), ("row", "row", "col"), ("col", "row", "row")])
def test_wmma(shape, kind, accumulator, layouts):
    m, n, k = shape
    element = {"f16": "half", "bf16": "__nv_bfloat16"}[kind]
    values = {
        "T": element,
        "C": accumulator,
        "M": m,
        "N": n,
        "K": k,
        "LA": layouts[0],
        "LB": layouts[1],
        "LC": layouts[2],
    }
    program = compile_cuda(WMMA % values)
    a, b = random((m, k), kind), random((k, n), kind)
    c = RNG.standard_normal((m, n)).astype(np.float32 if accumulator == "float" else np.float16)
    (a_memory, lda), (b_memory, ldb), (c_memory, ldc) = (stored(x, layout) for x, layout in zip((a, b, c), layouts))
    arguments = [a_memory, b_memory, c_memory, Output((m, n), c.dtype), lda, ldb, ldc]
    got = execute(program, "k", arguments)[3]
    want = (a.astype(np.float64) @ b.astype(np.float64) + c).astype(c.dtype)
    np.testing.assert_array_equal(got, want + want)


def test_wmma_integers():
    values = {"T": "signed char", "C": "int", "M": 16, "N": 16, "K": 16, "LA": "row", "LB": "col", "LC": "row"}
    a, b = random((16, 16), "s8"), random((16, 16), "s8")
    c = RNG.integers(-1000, 1000, (16, 16)).astype(np.int32)
    (a_memory, lda), (b_memory, ldb), (c_memory, ldc) = stored(a, "row", 16), stored(b, "col", 16), stored(c, "row")
    program = compile_cuda(WMMA % values)
    got = execute(program, "k", [a_memory, b_memory, c_memory, Output((16, 16), np.int32), lda, ldb, ldc])[3]
    np.testing.assert_array_equal(got, 2 * (a.astype(np.int64) @ b.astype(np.int64) + c))


def test_wmma_equals_mma_through_memory():
    """A fragment that wmma loads is the fragment that mma.sync takes."""
    a, b = random((16, 16), "f16"), random((16, 16), "f16")
    values = {"T": "half", "C": "float", "M": 16, "N": 16, "K": 16, "LA": "row", "LB": "col", "LC": "row"}
    c = np.zeros((16, 16), np.float32)
    (a_memory, lda), (b_memory, ldb), (c_memory, ldc) = stored(a, "row"), stored(b, "col"), stored(c, "row")
    wmma = execute(
        compile_cuda(WMMA % values), "k", [a_memory, b_memory, c_memory, Output((16, 16), np.float32), lda, ldb, ldc]
    )[3]
    program = compile_cuda(mma_kernel("m16n8k16", "f32.f16.f16.f32", (4, 4, 2, 4)))
    for half in (0, 1):
        part = b[:, 8 * half : 8 * half + 8]
        registers = np.stack([*fragment_a(a), *fragment_b(part), *[np.zeros(32, np.uint32)] * 4])
        out = execute(program, "k", [registers, Output((4, 32), np.float32)])[1]
        got = np.zeros((16, 8), np.float32)
        for i in range(4):
            got[G + 8 * (i // 2), 2 * T + i % 2] = out[i]
        np.testing.assert_array_equal(2 * got, wmma[:, 8 * half : 8 * half + 8])
