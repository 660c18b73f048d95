"""Matrices of a warp: ldmatrix, stmatrix, movmatrix, mma.sync and wmma."""

from __future__ import annotations

import numpy as np

from .kernel import BITS, Case, Close, Output, copied, kernel, per_thread, steps
from .values import Array, integers, uniform, words

SECTION = "Warp Level Matrix Multiply-Accumulate Instructions"
TRUNCATION = (
    "the tensor core aligns the products and the accumulator to the largest of them and cuts what is below its last bit"
)
"""Why the emulator, which rounds, differs: `tests/emulator/test_golden.py` derives the bound."""
UNIT, UNIT_8BIT = 2.0**-25, 2.0**-13
"""Where an H200 cuts, for a largest term of 1; the second is wgmma's with e4m3 and e5m2. The "tail" cases show it."""


def small(seed: str, count: int, low: int, high: int, kind: str) -> Array:
    """Random whole numbers in a type, as bits: sums of their products are exact in every accumulator."""
    return encoded(integers(seed, low, high, count).astype("f4"), kind)


def encoded(values: Array, kind: str) -> Array:
    """The bits of float32 values that the type holds exactly (or cut off to what it holds)."""
    if kind == "f16":
        return values.astype("f2").view("u2")
    if kind == "f32":
        return values.astype("f4").view("u4")
    if kind == "bf16":
        return (values.astype("f4").view("u4") >> 16).astype("u2")
    if kind == "tf32":
        return values.astype("f4").view("u4") & np.uint32(0xFFFFE000)
    if kind == "s32":
        return values.astype("i4").view("u4")
    if kind in ("s8", "u8"):
        return values.astype("i4").astype("u1")
    if kind == "f64":
        return values.astype("f8").view("u8")
    # e4m3 and e5m2 are the upper halves of numbers with 3 and 2 bits after the point
    mantissa, bias = {"e4m3": (3, 7), "e5m2": (2, 15)}[kind]
    bits = values.astype("f4").view("u4")
    exponent = (bits >> 23 & 255).astype(np.int64) - 127 + bias
    fraction = bits & 0x7FFFFF
    normal = exponent << mantissa | fraction >> (23 - mantissa)
    subnormal = (fraction | 1 << 23) >> np.minimum(24 - mantissa - exponent, 31)
    return (np.where(exponent > 0, normal, subnormal) | bits >> 31 << 7).astype("u1")


TAIL_SCALE = {"f16": 2.0**-12, "bf16": 2.0**-12, "tf32": 2.0**-12, "e4m3": 2.0**-9, "e5m2": 2.0**-9}


def tail_terms(k: int, kind: str) -> list[tuple[float, int]]:
    """The terms that each of 16 rows adds to an accumulator of 1 in the "tail" cases: their value and how many.

    8-bit types: row i adds 2^-(3+i). Others: rows 0 to 4 add 2^-23 and rows 5 to 9 subtract 2^-24, in 1, 2, 4, 8 or 16
    equal terms; rows 10 to 15 add 2^-(8+i) at once.
    """
    if kind[0] == "e":
        return [(2.0 ** -(3 + i), 1) for i in range(16)]
    terms = [min(2**i, k) for i in range(5)]
    split = [(total / count, count) for total in (2.0**-23, -(2.0**-24)) for count in terms]
    return split + [(2.0 ** -(8 + i), 1) for i in range(10, 16)]


def tail(k: int, kind: str) -> tuple[Array, Array]:
    """What shows where the tensor core cuts: A [16, k] and the one value of all of B [1]."""
    a = np.zeros((16, k), "f4")
    for i, (term, count) in enumerate(tail_terms(k, kind)):
        first = k - 1 if kind[0] != "e" and i >= 10 else 0
        a[i, first : first + count] = term / TAIL_SCALE[kind]
    return encoded(a.reshape(-1), kind).reshape(16, k), encoded(np.array([TAIL_SCALE[kind]]), kind)


def a_fragments(a: Array) -> Array:
    """The A operand of a 16-row mma, [16, k], as each thread's 32-bit registers: [32, registers]."""
    words_ = np.ascontiguousarray(a).view("u4").reshape(2, 8, -1, 4)  # upper or lower rows, row, group of columns, word
    return np.ascontiguousarray(words_.transpose(1, 3, 2, 0)).reshape(32, -1)


def packed(bits: Array, registers: int) -> Array:
    """Elements into 32-bit registers: [threads, registers]."""
    return np.ascontiguousarray(bits).view("u4").reshape(-1, registers)


def special(seed: str, count: int, kind: str) -> Array:
    """Small whole numbers with some zeros of both signs, infinities and NaNs among them."""
    values = integers(seed, -2, 2, count).astype("f4")
    choice = integers(seed + "special", 0, 39, count)
    values = np.where(choice == 0, np.float32(-0.0), values)
    bits = encoded(values, kind)
    infinity = {"f16": 0x7C00, "bf16": 0x7F80, "e5m2": 0x7C, "tf32": 0x7F800000, "f32": 0x7F800000}
    nan = {"f16": 0x7E01, "bf16": 0x7FC1, "e4m3": 0x7F, "e5m2": 0x7D, "tf32": 0x7FC02000, "f32": 0x7FC01000}
    if kind in infinity:
        bits[choice == 1] = infinity[kind]
        bits[choice == 2] = infinity[kind] | 1 << 8 * bits.itemsize - 1
    if kind in nan:
        bits[integers(seed + "nan", 0, 199, count) == 0] = nan[kind]
    return bits


def moves() -> list[Case]:
    cases = []
    image = (words("ldmatrix", 2048) >> np.uint64(11)).astype("u1")
    rows = (np.argsort(words("rows", 128).reshape(-1, 32), axis=None) % 128 * 16).astype("u4")[:32]
    for count in (1, 2, 4):
        for trans in ("", ".trans"):
            registers = "{" + ", ".join(f"%r{4 + i}" for i in range(count)) + "}"
            name = f"x{count}{trans}"
            body = copied("global:%at_image", "shared:tile", 2048, 32) + f"""
                bar.sync 0;
                mad.lo.u64 %rd4, %index, 4, %at_rows;
                ld.global.u32 %r2, [%rd4];
                mov.u32 %r3, tile;
                add.u32 %r2, %r2, %r3;
                ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [%r2];
                mad.lo.u64 %rd4, %index, {4 * count}, %at_d;
            """  # fmt: skip
            body += "\n".join(f"st.global.b32 [%rd4+{4 * i}], %r{4 + i};" for i in range(count))
            tile, inputs = ".shared .align 16 .b8 tile[2048];", {"image": image, "rows": rows}
            outputs = {"d": Output(np.zeros((32, count), "u4"))}
            cases.append(
                kernel(f"matrix/ldmatrix.{name}", f"{SECTION}: ldmatrix", body, inputs, outputs, declarations=tile)
            )
            body = copied("global:%at_image", "shared:tile", 2048, 32) + f"""
                bar.sync 0;
                mad.lo.u64 %rd4, %index, 4, %at_rows;
                ld.global.u32 %r2, [%rd4];
                mov.u32 %r3, tile;
                add.u32 %r2, %r2, %r3;
                mad.lo.u64 %rd4, %index, 16, %at_a;
                ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd4];
                stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r2], {registers};
                bar.sync 0;
            """ + copied("shared:tile", "global:%at_d", 2048, 32)  # fmt: skip
            inputs, outputs = inputs | {"a": words("stmatrix", 64).view("u4")}, {"d": Output(np.zeros(2048, "u1"))}
            cases.append(kernel(f"matrix/stmatrix.{name}", f"{SECTION}: stmatrix", body, inputs, outputs,
                                declarations=tile, target="sm_90"))  # fmt: skip
    transpose = steps(["movmatrix.sync.aligned.m8n8.trans.b16"], "%a", "b32")
    inputs = {"a": words("movmatrix", 64).astype("u4")}
    cases.append(per_thread("matrix/movmatrix", f"{SECTION}: movmatrix", ("b32",), transpose, inputs=inputs, count=64))
    return cases


SIZE = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1, "f32": 4, "s32": 4, "f64": 8}


def mma_case(
    shape: str, d: str, a: str, b: str, values: str, close: Close, *, target: str = "sm_80", more: str = ""
) -> Case:
    """One mma.sync, each thread's fragments from and to global memory."""
    m, n, k = (int(x) for x in shape.replace("m", "").replace("n", " ").replace("k", " ").split())
    name = f"matrix/mma{more}.{shape}.{d}.{a}.{b}.{values}"
    counts = {"a": m * k * SIZE[a] // 128, "b": n * k * SIZE[b] // 128, "c": m * n * SIZE[d] // 128}
    inputs = {}
    for operand, kind, size in (("a", a, m * k), ("b", b, n * k), ("c", d, m * n)):
        seed = f"{name}{operand}"
        if kind in ("s8", "u8", "s32") and values == "extreme":
            bits = words(seed, size * SIZE[kind] // 8).view(f"u{SIZE[kind]}")
            bits = bits | (0x7FFFF000 if kind == "s32" else 0x70)
        elif values == "special":
            bits = special(seed, size, kind)
        elif values == "random":
            bits = encoded(uniform(seed, size), kind)
        elif values == "tiny" and operand == "a":
            bits = integers(seed, 0, 3, size).astype(f"u{SIZE[a]}") * {"tf32": 1 << 13}.get(a, 1)
            bits = bits.astype(f"u{SIZE[a]}")
        elif values == "tiny" and operand == "c":
            bits = encoded(np.zeros(size, "f4"), kind)
        else:
            low, high = (0, 4) if kind == "u8" else (-4, 4)
            bits = small(seed, size, *((-50, 50) if operand == "c" else (low, high)), kind)
        inputs[operand] = packed(bits, counts[operand])
    if values == "tail":
        rows, value = tail(k, a)
        inputs["a"] = a_fragments(rows)
        inputs["b"] = packed(np.full(n * k, value[0]), counts["b"])
        inputs["c"] = packed(encoded(np.ones(m * n), d), counts["c"])
    declare, body, vector = [], [], {}
    for letter in ("a", "b", "c", "d"):
        count = counts["c" if letter == "d" else letter]
        registers = [f"%{letter}{i}" for i in range(count)]
        declare.append(f".reg .b32 {', '.join(registers)};")
        vector[letter] = "{" + ", ".join(registers) + "}"
        if letter != "d":
            body += [f"mad.lo.u64 %at, %index, {4 * count}, %at_{letter};"]
            body += [f"ld.global.b32 {r}, [%at+{4 * i}];" for i, r in enumerate(registers)]
    body += [
        f"mma.sync.aligned.{shape}.row.col{more}.{d}.{a}.{b}.{d} {vector['d']}, "
        f"{vector['a']}, {vector['b']}, {vector['c']};"
    ]
    body += [f"mad.lo.u64 %at, %index, {4 * counts['c']}, %at_out;"]
    body += [f"st.global.b32 [%at+{4 * i}], %d{i};" for i in range(counts["c"])]
    outputs = {"out": Output(np.zeros((32, counts["c"]), "u4"), close)}
    return kernel(
        name, f"{SECTION}: mma", "\n".join(body), inputs, outputs, target=target, declarations="\n".join(declare)
    )


def bound(k: int, d: str, unit: float = UNIT) -> Close:
    """For operands in -1 .. 1, where no term is above 1: k products and the accumulator lose less than a unit each."""
    if d == "f16":
        return Close("f16x2", 1, 0.0, TRUNCATION + "; then both round to f16")
    return Close("f32", 2, (k + 1) * unit, TRUNCATION)


def multiplications() -> list[Case]:
    cases = []
    halves = [(s, d, t) for s in ("m16n8k8", "m16n8k16") for d, t in (("f32", "f16"), ("f16", "f16"), ("f32", "bf16"))]
    table = [(s, d, t, t, "sm_80") for s, d, t in halves] + [
        (s, "f32", "tf32", "tf32", "sm_80") for s in ("m16n8k4", "m16n8k8")
    ]
    table += [("m16n8k32", "f32", a, b, "sm_89") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")]
    table += [("m16n8k32", "f16", a, a, "sm_89") for a in ("e4m3", "e5m2")]
    for shape, d, a, b, target in table:
        k = int(shape.split("k")[1])
        value = Close("f16x2" if d == "f16" else "f32")
        exact = BITS
        random = bound(k, d)
        if a[0] == "e" and d == "f16":
            halves_ = (
                "sm_90 has no mma.sync of 8-bit floats: two f16 ones of half k; the sum between them, below 17, rounds"
            )
            random = Close("f16x2", 1, 2.0**-7, halves_)
        for values, close in (("exact", exact), ("random", random), ("special", value), ("tiny", value)):
            cases.append(mma_case(shape, d, a, b, values, close, target=target))
        if d == "f32" and a == b:
            cases.append(mma_case(shape, d, a, b, "tail", random, target=target))
    for shape in ("m16n8k16", "m16n8k32"):
        for a in ("s8", "u8"):
            for b in ("s8", "u8"):
                for more, values in (("", "exact"), ("", "extreme"), (".satfinite", "extreme")):
                    cases.append(mma_case(shape, "s32", a, b, values, BITS, more=more))
    return cases


def wmma_case(shape: str, d: str, t: str, layouts: tuple[str, str], c_layout: str, values: str, close: Close) -> Case:
    """wmma.load of three tiles with padded rows, one wmma.mma, and wmma.store in both layouts."""
    m, n, k = (int(x) for x in shape.replace("m", "").replace("n", " ").replace("k", " ").split())
    name = f"matrix/wmma.{shape}.{d}.{t}.{'.'.join(layouts)}.c_{c_layout}.{values}"
    strides = {
        "a": (k if layouts[0] == "row" else m) + 8, "b": (n if layouts[1] == "row" else k) + 8,
        "c": (n if c_layout == "row" else m) + 8,
    }  # fmt: skip
    sizes = {"a": (m, k)[layouts[0] == "col"], "b": (k, n)[layouts[1] == "col"], "c": (m, n)[c_layout == "col"]}
    inputs = {}
    for operand, kind in (("a", t), ("b", t), ("c", d)):
        size = sizes[operand] * strides[operand]
        if values == "random":
            inputs[operand] = encoded(uniform(name + operand, size), kind)
        else:
            inputs[operand] = small(name + operand, size, *((-50, 50) if operand == "c" else (-4, 4)), kind)
    registers = {"a": 8, "b": 8, "c": 8 if d == "f32" else 4, "d": 8 if d == "f32" else 4}
    if t == "bf16":
        registers |= {"a": 4 * m // 16, "b": 4 * n // 16}
    declare, vector = [], {}
    for letter, count in registers.items():
        names = [f"%{letter}{i}" for i in range(count)]
        declare.append(f".reg .b32 {', '.join(names)};")
        vector[letter] = "{" + ", ".join(names) + "}"
    types = f"{d}.{d}" if t == "f16" else "f32.bf16.bf16.f32"
    multiply = f"wmma.mma.sync.aligned.{layouts[0]}.{layouts[1]}.{shape}.{types} "
    multiply += ", ".join(vector[letter] for letter in "dabc")
    body = f"""
        wmma.load.a.sync.aligned.{layouts[0]}.{shape}.global.{t} {vector["a"]}, [%at_a], {strides["a"]};
        wmma.load.b.sync.aligned.{layouts[1]}.{shape}.global.{t} {vector["b"]}, [%at_b], {strides["b"]};
        wmma.load.c.sync.aligned.{c_layout}.{shape}.global.{d} {vector["c"]}, [%at_c], {strides["c"]};
        {multiply};
    """
    outputs = {}
    for layout, rows, columns in (("row", m, n), ("col", n, m)):
        initial = np.zeros((rows, columns + 8), f"u{SIZE[d]}")
        outputs[layout] = Output(initial, close)
        body += f"wmma.store.d.sync.aligned.{layout}.{shape}.global.{d} [%at_{layout}], {vector['d']}, {columns + 8};\n"
    return kernel(
        name, f"{SECTION}: wmma.load, wmma.mma, wmma.store", body, inputs, outputs, declarations="\n".join(declare)
    )


def wmma() -> list[Case]:
    cases = []
    for d, t in (("f32", "f16"), ("f16", "f16"), ("f32", "bf16")):
        for a in ("row", "col"):
            for b in ("row", "col"):
                cases.append(wmma_case("m16n16k16", d, t, (a, b), a, "exact", BITS))
        near = Close("f16", 1, 0.0, TRUNCATION + "; then both round to f16") if d == "f16" else bound(16, d)
        cases.append(wmma_case("m16n16k16", d, t, ("row", "col"), "row", "random", near))
    for shape in ("m32n8k16", "m8n32k16"):
        for d, t in (("f32", "f16"), ("f16", "f16"), ("f32", "bf16")):
            cases.append(wmma_case(shape, d, t, ("row", "col"), "col", "exact", BITS))
    image = encoded(integers("wmma.shared", -4, 4, 16 * 24).astype("f4"), "f16")
    body = copied("global:%at_image", "shared:tile", 768, 32) + """
        bar.sync 0;
        mov.u32 %r2, tile;
        cvt.u64.u32 %rd4, %r2;
        cvta.shared.u64 %rd5, %rd4;
        wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%a0, %a1, %a2, %a3, %a4, %a5, %a6, %a7}, [%r2], 24;
        wmma.load.b.sync.aligned.col.m16n16k16.f16 {%b0, %b1, %b2, %b3, %b4, %b5, %b6, %b7}, [%rd5], 24;
        mov.f32 %f0, 0f00000000;
        wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7},
            {%a0, %a1, %a2, %a3, %a4, %a5, %a6, %a7}, {%b0, %b1, %b2, %b3, %b4, %b5, %b6, %b7},
            {%f0, %f0, %f0, %f0, %f0, %f0, %f0, %f0};
        bar.sync 0;
        wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [tile], {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, 16;
        bar.sync 0;
    """ + copied("shared:tile", "global:%at_d", 1024, 32)  # fmt: skip
    declare = ".reg .b32 %a<8>, %b<8>;\n.reg .f32 %d<8>;\n.shared .align 32 .b8 tile[1024];"
    section = f"{SECTION}: wmma.load, wmma.store"
    outputs = {"d": Output(np.zeros(256, "u4"))}
    cases.append(kernel("matrix/wmma.shared", section, body, {"image": image}, outputs, declarations=declare))
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return moves() + multiplications() + wmma()
