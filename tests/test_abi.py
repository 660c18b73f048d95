"""The Python mirror of cuda/abi against the structs themselves, as the host compiler sees them."""

import math
import random
import shutil
import struct
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, python_says

from flashcore_drv import abi

COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs g++")
STRUCTS = pytest.mark.parametrize("layout", abi.STRUCTS, ids=lambda s: s.name)
LIMITS = {"Q": (0, 2**64 - 1), "q": (-(2**63), 2**63 - 1), "i": (-(2**31), 2**31 - 1)}
OPAQUE = "128s"
RANDOM_STRUCTS = 200

PRINTER = """
#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
{includes}
using namespace flashcore;

template <typename T> const char* kind();
template <> const char* kind<uint64_t>() {{ return "Q"; }}
template <> const char* kind<void*>() {{ return "Q"; }}
template <> const char* kind<const int32_t*>() {{ return "Q"; }}
template <> const char* kind<const float*>() {{ return "Q"; }}
template <> const char* kind<int64_t>() {{ return "q"; }}
template <> const char* kind<int32_t>() {{ return "i"; }}
template <> const char* kind<float>() {{ return "f"; }}
template <> const char* kind<unsigned char[128]>() {{ return "128s"; }}

void show(uint64_t x) {{ std::printf("%" PRIu64 "\\n", x); }}
void show(const void* x) {{ show(reinterpret_cast<uint64_t>(x)); }}
void show(int64_t x) {{ std::printf("%" PRId64 "\\n", x); }}
void show(int32_t x) {{ std::printf("%" PRId32 "\\n", x); }}
void show(float x) {{ std::printf("%a\\n", double(x)); }}
void show(const unsigned char (&x)[128]) {{
    for (unsigned char byte : x) std::printf("%02x", byte);
    std::puts("");
}}

int main(int argc, char** argv) {{
    if (argc == 1) {{
{layouts}
        return 0;
    }}
    alignas(64) unsigned char bytes[1024];
{echoes}
}}
"""


def compile_program(folder, source, name):
    file, program = folder / f"{name}.cpp", folder / name
    file.write_text(source)
    subprocess.run(
        [COMPILER, "-std=c++17", "-Wno-invalid-offsetof", f"-I{ROOT / 'cuda'}", file, "-o", program], check=True
    )
    return program


@pytest.fixture(scope="module")
def printer(tmp_path_factory):
    """A C++ program that prints the layout of every struct, or, given a name, the members of such structs on stdin."""
    layouts, echoes = [], []
    for s in abi.STRUCTS:
        layouts.append(f'std::printf("{s.name} sizeof %zu -\\n", sizeof({s.name}));')
        layouts.append(f'std::printf("{s.name} alignof %zu -\\n", alignof({s.name}));')
        for member in s.offsets:
            kind = f"kind<decltype({s.name}{{}}.{member})>()"
            layouts.append(f'std::printf("{s.name} {member} %zu %s\\n", offsetof({s.name}, {member}), {kind});')
        members = "".join(f"show(x->{m});" for m in s.offsets)
        echoes.append(
            f'if (!std::strcmp(argv[1], "{s.name}")) '
            f"while (std::fread(bytes, sizeof({s.name}), 1, stdin) == 1) "
            f"{{ const {s.name}* x = std::launder(reinterpret_cast<{s.name}*>(bytes)); {members} }}"
        )
    includes = "\n".join(f'#include "{s.header}"' for s in abi.STRUCTS)
    source = PRINTER.format(includes=includes, layouts="\n".join(layouts), echoes="\n".join(echoes))
    return compile_program(tmp_path_factory.mktemp("abi"), source, "printer")


@pytest.fixture(scope="module")
def compiled(printer):
    """(offset, kind) of every member of every struct, with sizeof and alignof, from the compiler."""
    lines = subprocess.run([printer], capture_output=True, text=True, check=True).stdout.splitlines()
    return {(s, member): (int(value), kind) for s, member, value, kind in map(str.split, lines)}


def members(layout):
    """Values for every member of a struct."""
    scalar = {
        **{kind: st.integers(*limits) | st.sampled_from(limits) for kind, limits in LIMITS.items()},
        "f": st.floats(width=32, allow_nan=False),
        OPAQUE: st.binary(min_size=128, max_size=128),
    }
    return st.fixed_dictionaries({name: scalar[kind] for name, (_, kind) in layout.offsets.items()})


@needs_compiler
@STRUCTS
def test_size_offsets_and_types_are_the_compilers(layout, compiled) -> None:
    assert layout.size == compiled[layout.name, "sizeof"][0]
    assert layout.alignment == compiled[layout.name, "alignof"][0]
    for name, (offset, kind) in layout.offsets.items():
        assert (offset, kind) == compiled[layout.name, name], name


@STRUCTS
def test_every_member_of_the_header_is_mirrored_in_order(layout) -> None:
    text = (ROOT / "cuda" / layout.header).read_text()
    code = " ".join(line.split("//")[0] for line in text.splitlines())
    body = code.split(f"struct {layout.name} {{")[1].split("}")[0]
    declared = [declaration.split()[-1].split("[")[0] for declaration in body.split(";") if declaration.strip()]
    assert declared == [name for name, _ in layout.members]


@STRUCTS
@given(data=st.data())
def test_pack_and_unpack_are_inverse(layout, data) -> None:
    values = data.draw(members(layout))
    packed = layout.pack(values)
    assert len(packed) == layout.size
    assert layout.unpack(packed) == values
    for name, (offset, kind) in layout.offsets.items():
        assert struct.unpack_from(f"<{kind}", packed, offset) == (values[name],)


@needs_compiler
@STRUCTS
def test_the_compiler_reads_what_python_packed(layout, printer) -> None:
    draw = random.Random(layout.name)

    def value(kind):
        if kind == OPAQUE:
            return draw.randbytes(128)
        if kind == "f":
            return struct.unpack("<f", struct.pack("<f", draw.uniform(-1e30, 1e30)))[0]
        return draw.choice([draw.randint(*LIMITS[kind]), *LIMITS[kind], 0, 1])

    rows = [{name: value(kind) for name, (_, kind) in layout.offsets.items()} for _ in range(RANDOM_STRUCTS)]
    stdin = b"".join(layout.pack(row) for row in rows)
    printed = (
        subprocess.run([printer, layout.name], input=stdin, capture_output=True, check=True).stdout.decode().split()
    )
    wanted = [value for row in rows for value in row.values()]
    assert len(printed) == len(wanted)
    readers = {float: float.fromhex, int: int, bytes: bytes.fromhex}
    assert [readers[type(w)](p) for p, w in zip(printed, wanted)] == wanted


@STRUCTS
def test_a_missing_or_an_extra_name_is_refused(layout) -> None:
    values = {name: b"" if kind == OPAQUE else 0 for name, (_, kind) in layout.offsets.items()}
    first = next(iter(values))
    with pytest.raises(KeyError, match=first):
        layout.pack({name: 0 for name in values if name != first})
    with pytest.raises(KeyError, match=f"{layout.name} has no member .*nonsense"):
        layout.pack({**values, "nonsense": 0})


@pytest.mark.parametrize(("kind", "value"), [("i", 2**31), ("i", -(2**31) - 1), ("q", 2**63), ("Q", -1), ("Q", 2**64)])
def test_a_value_that_does_not_fit_is_refused(kind, value) -> None:
    with pytest.raises(struct.error):
        abi.Struct("S", "", (("x", kind),)).pack({"x": value})


def test_padding_is_zero() -> None:
    inner = abi.Struct("Inner", "", (("a", "Q"), ("b", "i")))
    outer = abi.Struct("Outer", "", (("c", "i"), ("inner", inner), ("d", "f")))
    assert outer.offsets == {"c": (0, "i"), "inner.a": (8, "Q"), "inner.b": (16, "i"), "d": (24, "f")}
    assert (inner.size, outer.size, outer.alignment) == (16, 32, 8)
    packed = outer.pack({"c": -1, "inner.a": 2**64 - 1, "inner.b": -1, "d": math.inf})
    assert [i for i, byte in enumerate(packed) if byte == 0] == [4, 5, 6, 7, 20, 21, 22, 23, 24, 25, 28, 29, 30, 31]


def test_a_tensor_map_starts_on_64_bytes() -> None:
    """Of the parameters, which the driver puts where their alignment asks for."""
    found = {name: at for name, (at, kind) in abi.FLASH_FWD_TMA_PARAMS.offsets.items() if kind == OPAQUE}
    assert set(found) == {f"{name}_map.opaque" for name in "qkv"}
    assert [at % 64 for at in found.values()] == [0, 0, 0]
    assert abi.FLASH_FWD_TMA_PARAMS.alignment == 64


SOURCE = (ROOT / "flashcore_drv" / "abi.py").read_text()


def hash_of(source):
    """ABI_HASH of a changed abi.py."""
    name = "changed_abi"
    module = sys.modules[name] = types.ModuleType(name)
    try:
        exec(compile(source, name, "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module.ABI_HASH


CHANGES = {
    "another type": ('("tile_rows", "i")', '("tile_rows", "q")'),
    "another type of the same size": ('("softmax_scale", "f")', '("softmax_scale", "i")'),
    "another name": ('("tile_rows", "i")', '("rows", "i")'),
    "another order": (
        '("tile_rows", "i"),\n        ("tile_cols", "i")',
        '("tile_cols", "i"),\n        ("tile_rows", "i")',
    ),
    "one more member": ('("causal", "i"),', '("causal", "i"),\n        ("window", "i"),'),
    "one member fewer": ('        ("causal", "i"),\n', ""),
    "a nested struct": ('("head_stride", "q"), ("row_stride", "q")', '("row_stride", "q"), ("head_stride", "q")'),
    "another struct name": ('"KernelInfo"', '"Info"'),
    "a struct fewer": ("    KERNEL_INFO,\n    TENSOR,\n", "    KERNEL_INFO,\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with_the_layout(change) -> None:
    old, new = CHANGES[change]
    assert SOURCE.count(old) == 1
    assert hash_of(SOURCE.replace(old, new)) != abi.ABI_HASH


def test_the_hash_is_the_same_in_every_process() -> None:
    assert hash_of(SOURCE) == abi.ABI_HASH
    printed = python_says("from flashcore_drv import abi; print(abi.ABI_HASH)", PYTHONHASHSEED="12345")
    assert int(printed) == abi.ABI_HASH
    assert 0 < abi.ABI_HASH < 2**64


def check(folder, include):
    """Compile the generated header against the structs in a folder."""
    file = folder / "abi_check.h"
    file.write_text(abi.check_header())
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-x", "c++", f"-I{include}", file]
    return subprocess.run(command, capture_output=True, text=True)


@needs_compiler
def test_the_check_compiles_with_our_structs(tmp_path) -> None:
    assert check(tmp_path, ROOT / "cuda").returncode == 0


WRONG = {
    "wider member": ("unfused_params.h", "int32_t seqlen_q;", "int64_t seqlen_q;", "UnfusedParams.seqlen_k: offset"),
    "swapped members": (
        "tensor.h",
        "int64_t batch_stride;\n    int64_t head_stride;",
        "int64_t head_stride;\n    int64_t batch_stride;",
        "Tensor.batch_stride: offset",
    ),
    "swapped tensors": ("unfused_params.h", "Tensor q; ", "Tensor lse0; Tensor q; ", "UnfusedParams.q.data: offset"),
    "one more member": (
        "kernel_info.h",
        "int32_t blocks_an_sm;",
        "int32_t blocks_an_sm, more, most;",
        "KernelInfo: size",
    ),
    "a map more aligned": ("tensor_map.h", "alignas(64)", "alignas(256)", "FlashFwdTmaParams.q_map.opaque: offset"),
    "aligned struct": ("tensor.h", "struct Tensor", "struct alignas(64) Tensor", "Tensor: size"),
}


@needs_compiler
@pytest.mark.parametrize("what", WRONG)
def test_the_check_does_not_compile_with_others(what, tmp_path) -> None:
    name, old, new, complaint = WRONG[what]
    shutil.copytree(ROOT / "cuda" / "abi", tmp_path / "abi")
    header = tmp_path / "abi" / name
    text = header.read_text()
    assert text.count(old) == 1
    header.write_text(text.replace(old, new))
    ran = check(tmp_path, tmp_path)
    assert ran.returncode != 0
    assert f"{complaint} differs" in ran.stderr
