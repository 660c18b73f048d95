"""The parser on what nvcc emits and on what it does not."""

import pytest
from kernel_harness import HEADER, compile_cuda, entry

from flashcore_drv.emulator import EmulationError, parse
from flashcore_drv.emulator.parser import Address, Immediate, Pair, Register, Symbol, TensorAddress, Vector

SOURCE = """
struct Params { const float* a; int n; double x; char c; };
__constant__ int table[4] = {1, 2, 3, 4};
__device__ float state = 2.5f;
__device__ __noinline__ float twice(float x, int n) { for (int i = 0; i < n; ++i) x *= 2; return x; }
extern "C" __global__ void __launch_bounds__(96, 2) one(const __grid_constant__ Params p, float* out, short s) {
    __shared__ float tile[32];
    tile[threadIdx.x % 32] = p.a[0];
    __syncthreads();
    out[threadIdx.x] = twice(tile[0], table[s]) + state;
}
extern "C" __global__ void two(char c, long long n, float* out) {
    extern __shared__ __align__(128) char dynamic[];
    __shared__ double first[3];
    first[0] = n; dynamic[threadIdx.x] = c;
    __syncthreads();
    out[0] = first[0] + dynamic[1];
}
"""


@pytest.fixture(scope="module")
def program():
    return compile_cuda(SOURCE)


def test_module(program):
    assert program.target == "sm_89"
    assert program.version >= (9, 0)
    assert sorted(program.entries) == ["one", "two"]
    assert program.globals["table"].space == "const"
    assert program.globals["table"].data == b"".join(i.to_bytes(4, "little") for i in (1, 2, 3, 4))
    assert program.globals["state"].space == "global"
    assert program.globals["state"].data == bytes.fromhex("00002040")
    assert len(program.functions) == 1


def test_params_are_laid_out_as_in_c(program):
    assert [(p.offset, p.size, p.align) for p in program.entries["one"].params] == [(0, 32, 8), (32, 8, 8), (40, 2, 2)]
    assert [(p.offset, p.size) for p in program.entries["two"].params] == [(0, 1), (8, 8), (16, 8)]


def test_entry_facts(program):
    one, two = program.entries["one"], program.entries["two"]
    assert (one.max_threads, one.min_blocks) == (96, 2)
    assert (two.max_threads, two.min_blocks) == (None, None)
    assert one.shared_static_bytes == 128
    assert two.shared["dynamic"] == two.shared_static_bytes == 128  # 24 bytes, then the alignment of the dynamic part
    assert one.registers["f32"] > 0
    assert any(path.endswith(".cu") for path in one.source_files.values())


def test_source_lines_and_inlining():
    program = compile_cuda("""
__device__ inline int square(int x) {
    return x * x * (x ^ 5);
}
extern "C" __global__ void k(int* out) {
    out[0] = square(out[1]);
}""")
    kernel = program.entries["k"]
    places = {
        kernel.where(i.source).split(":")[1] + kernel.callers(i.source).split(":")[-1].rstrip(")") for i in kernel.code
    }
    assert "36" in places  # line 3, called from line 6


def code(text):
    return parse(entry(text)).entries["kernel"].code


def test_operands():
    (i,) = code(".reg .b32 %r<4>; .reg .pred %p<2>; .reg .b64 %rd;\n@!%p1 ld.global.v2.u32 {%r1, %r2}, [%rd+-16];")
    assert (i.opcode, i.name, i.type, i.negated, i.predicate) == (
        "ld.global.v2.u32",
        "ld",
        "u32",
        True,
        Register("%p1"),
    )
    assert i.operands == (Vector((Register("%r1"), Register("%r2"))), Address(Register("%rd"), -16))
    (i,) = code(".reg .b32 %r<4>; .reg .pred %p;\nshfl.sync.bfly.b32 %r0|%p, %r1, 0x10, 31, -1;")
    assert i.operands == (
        Pair(Register("%r0"), Register("%p")),
        Register("%r1"),
        Immediate(16),
        Immediate(31),
        Immediate(-1),
    )
    (i,) = code(".reg .f32 %f;\nmov.f32 %f, 0f3F800000;")
    assert i.operands[1] == Immediate(0x3F800000, 32)
    (i,) = code(
        ".reg .b32 %r<4>; .reg .b64 %rd;\n"
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd, {%r1, %r2}], [%r3];"
    )
    assert i.operands[0] == TensorAddress(Address(Register("%rd")), (Register("%r1"), Register("%r2")))


def test_scopes_hide_registers_and_labels():
    kernel = parse(
        entry("""
        .reg .b32 %a;
        { .reg .b32 x; again: mov.b32 x, %a; bra again; }
        { .reg .b32 x; again: mov.b32 x, 5; bra again; }
        ret;""")
    ).entries["kernel"]
    first, second = kernel.code[0].operands[0], kernel.code[2].operands[0]
    assert first != second
    assert kernel.labels[kernel.code[1].operands[0].name] == 0
    assert kernel.labels[kernel.code[3].operands[0].name] == 2


def test_branch_tables():
    kernel = parse(
        entry("""
        .reg .b32 %r;
        table: .branchtargets L0, L1;
        brx.idx %r, table;
        L0: ret;
        L1: ret;""")
    ).entries["kernel"]
    assert kernel.tables == {"table": ("L0", "L1")}
    assert kernel.code[0].operands[1] == Symbol("table")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entry("mov.b32 %r1, 5;"), "%r1 is not declared"),
        (entry(".reg .b32 %r1;\n\nmov.b32 %r1, 5x;"), "cannot parse the operand '5x'"),
        (entry("bra nowhere;"), "label nowhere is not defined"),
        (HEADER + "\n.nonsense here;", "cannot parse '.nonsense here;'"),
        (entry(".surface x;"), "cannot parse '.surface x'"),
    ],
)
def test_what_it_cannot_parse(text, message):
    with pytest.raises(EmulationError, match=r"parse|declared|defined") as error:
        parse(text)
    assert error.value.kind == "parse"
    assert message in str(error.value)


def test_the_line_of_what_it_cannot_parse():
    with pytest.raises(EmulationError) as error:
        parse(entry(".reg .b32 %r1;\nmov.b32 %r1, 1;\nmov.b32 %r2, 5;"))
    assert error.value.line == "ptx:9"
