"""Matrices of a warpgroup (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions").

The shared memory that the descriptors point into is an image of small whole numbers, so that results are exact whatever
the layout: a wrong reading of a descriptor or a swizzle gives other numbers, never a crash.
"""

from __future__ import annotations

import numpy as np

from .kernel import BITS, Case, Close, Output, copied, kernel
from .matrix import SIZE, TRUNCATION, UNIT_8BIT, a_fragments, bound, encoded, packed, tail
from .values import integers, uniform, words

SECTION = "Asynchronous Warpgroup Level Matrix Instructions: wgmma.mma_async"
A_BYTES, B_BYTES = 8192, 36864
SWIZZLE = {"none": 0, "128": 1, "64": 2, "32": 3}


def descriptor(leading: int, stride: int, swizzle: str) -> int:
    """A matrix descriptor without its start address; offsets in bytes."""
    return leading >> 4 << 16 | stride >> 4 << 32 | SWIZZLE[swizzle] << 62


def case(
    name: str, n: int, d: str, a: str, b: str, *, a_layout: tuple[str, int, int] | None = None,
    b_layout: tuple[str, int, int] = ("128", 16, 1024), a_start: int = 0, b_start: int = 0,
    trans: tuple[int, int] = (0, 0), scales: tuple[int, int] = (1, 1), accumulate: bool = True, values: str = "exact",
    close: Close = BITS, more: str = "",
) -> Case:  # fmt: skip
    """One wgmma; layouts are (swizzle, leading and stride byte offset), A comes from registers where it has none."""
    k = 32 // SIZE[a]
    name = f"wgmma/m64n{n}k{k}.{d}.{a}.{b}{more}.{name}"
    inputs = {}
    for operand, kind, nbytes in (("a_image", a, A_BYTES), ("b_image", b, B_BYTES)):
        count = nbytes // SIZE[kind]
        if values == "random":
            bits = encoded(uniform(name + operand, count), kind)
        elif values == "extreme":
            bits = (words(name + operand, count) >> np.uint64(13)).astype("u1") | 0x60
        else:
            bits = encoded(integers(name + operand, 0 if kind == "u8" else -4, 4, count).astype("f4"), kind)
        if operand == "b_image" or a_layout is not None:
            inputs[operand] = np.ascontiguousarray(bits).view("u1")
        else:
            inputs["a_registers"] = packed(bits[: 64 * k], 4)
    count = 64 * n * SIZE[d] // 512
    c = integers(name + "c", -50, 50, 128 * count * 4 // SIZE[d]).astype("f4")
    c = uniform(name + "c", c.size) if values == "random" else c
    if values == "extreme":
        inputs["c"] = packed(words(name + "c", 64 * count).view("u4") | np.uint32(0x7FFFF000), count)
    else:
        inputs["c"] = packed(encoded(c, d), count)
    if values == "tail":
        rows, value = tail(k, a)
        inputs["a_registers"] = np.tile(a_fragments(rows), (4, 1))
        inputs["b_image"] = np.full(B_BYTES // SIZE[b], value[0]).view("u1")
        inputs["c"] = packed(encoded(np.ones(64 * n), d), count)
    registers = [f"%d{i}" for i in range(count)]
    body = copied("global:%at_b_image", "shared:b_tile", B_BYTES, 128) + "\n"
    if a_layout is not None:
        body += copied("global:%at_a_image", "shared:a_tile", A_BYTES, 128) + "\n"
    body += "fence.proxy.async.shared::cta;\nbar.sync 0;\n"
    body += f"mad.lo.u64 %at, %index, {4 * count}, %at_c;\n"
    body += "".join(f"ld.global.b32 {r}, [%at+{4 * i}];\n" for i, r in enumerate(registers))
    operands = []
    for tile, layout, start in (("a_tile", a_layout, a_start), ("b_tile", b_layout, b_start)):
        if layout is None:
            body += "mad.lo.u64 %at, %index, 16, %at_a_registers;\nld.global.v4.b32 {%r8, %r9, %r10, %r11}, [%at];\n"
            operands.append("{%r8, %r9, %r10, %r11}")
            continue
        register = "%rd8" if tile == "a_tile" else "%rd9"
        body += f"mov.u32 %r2, {tile};\nadd.u32 %r2, %r2, {start};\nbfe.u32 %r2, %r2, 4, 14;\n"
        body += f"cvt.u64.u32 {register}, %r2;\n"
        body += f"or.b64 {register}, {register}, {descriptor(layout[1], layout[2], layout[0]):#x};\n"
        operands.append(register)
    body += f"mov.b32 %r3, {int(accumulate)};\nsetp.ne.b32 %p1, %r3, 0;\nwgmma.fence.sync.aligned;\n"
    last = "%p1" if a in ("s8", "u8") else f"%p1, {scales[0]}, {scales[1]}"
    if a in ("f16", "bf16"):
        last += f", {trans[1]}" if a_layout is None else f", {trans[0]}, {trans[1]}"
    opcode = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}{more}.{d}.{a}.{b}"
    body += f"{opcode} {{{', '.join(registers)}}}, {', '.join(operands)}, {last};\n"
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
    body += f"mad.lo.u64 %at, %index, {4 * count}, %at_out;\n"
    body += "".join(f"st.global.b32 [%at+{4 * i}], {r};\n" for i, r in enumerate(registers))
    kind = {"f32": "f32", "s32": "b32", "f16": "b32"}[d]
    declare = f".reg .{kind} {', '.join(registers)};\n.shared .align 1024 .b8 b_tile[{B_BYTES}];"
    if a_layout is not None:
        declare += f"\n.shared .align 1024 .b8 a_tile[{A_BYTES}];"
    outputs = {"out": Output(np.zeros((128, count), "u4"), close)}
    return kernel(name, SECTION, body, inputs, outputs, target="sm_90a", threads=128, declarations=declare)


def build() -> list[Case]:
    """All cases of this family."""
    cases = []
    k_major = {"none": ("none", 128, 256), "32": ("32", 16, 256), "64": ("64", 16, 512), "128": ("128", 16, 1024)}
    mn_major = {
        "none": ("none", 1024, 128),
        "32": ("32", 512, 256),
        "64": ("64", 1024, 512),
        "128": ("128", 2048, 1024),
    }
    for n in (8, 16, 64, 128, 256):
        cases.append(case("shared", n, "f32", "f16", "f16", a_layout=k_major["128"]))
        cases.append(case("registers", n, "f32", "bf16", "bf16"))
    for swizzle, layout in k_major.items():
        cases.append(case(f"b_k_major_{swizzle}", 16, "f32", "f16", "f16", b_layout=layout))
        cases.append(case(f"a_k_major_{swizzle}", 8, "f32", "f16", "f16", a_layout=layout))
    for swizzle, layout in mn_major.items():
        cases.append(case(f"b_n_major_{swizzle}", 64, "f32", "f16", "f16", b_layout=layout, trans=(0, 1)))
        cases.append(case(f"a_m_major_{swizzle}", 8, "f32", "bf16", "bf16", a_layout=layout, trans=(1, 0)))
        both = case(f"both_mn_major_{swizzle}", 16, "f32", "f16", "f16", a_layout=layout, b_layout=layout, trans=(1, 1))
        cases.append(both)
    cases.append(case("b_n_major_128", 128, "f32", "f16", "f16", b_layout=mn_major["128"], trans=(0, 1)))
    cases.append(case("b_n_major_none", 128, "f32", "bf16", "bf16", b_layout=mn_major["none"], trans=(0, 1)))
    cases.append(case("b_n_major_64", 256, "f32", "f16", "f16", b_layout=mn_major["64"], trans=(0, 1)))
    for slice_ in (1, 2, 3):
        start = 32 * slice_
        cases.append(
            case(f"k_slice_{slice_}", 16, "f32", "f16", "f16", a_layout=k_major["128"], a_start=start, b_start=start)
        )
    cases.append(case("k_slice_1_of_64", 16, "f32", "f16", "f16", a_layout=k_major["64"], b_layout=k_major["64"],
                      a_start=32, b_start=32))  # fmt: skip
    wide = ("128", 16, 2048)
    cases.append(case("wide_stride", 64, "f32", "f16", "f16", a_layout=k_major["128"], b_layout=wide))
    cases.append(case("none_wide", 16, "f32", "f16", "f16", a_layout=("none", 1024, 128), b_layout=("none", 2048, 128)))
    for accumulate in (True, False):
        for scales in ((1, -1), (-1, 1), (-1, -1)):
            text = f"scale_{'d' if accumulate else '0'}{scales[0]:+d}{scales[1]:+d}"
            cases.append(
                case(text, 8, "f32", "f16", "f16", a_layout=k_major["128"], scales=scales, accumulate=accumulate)
            )
    cases.append(case("scale_0", 8, "f32", "bf16", "bf16", accumulate=False))
    for n in (8, 64):
        cases.append(case("registers", n, "f16", "f16", "f16"))
        cases.append(case("shared", n, "f16", "f16", "f16", a_layout=k_major["128"]))
    eight_bits = [(d, a, b) for d in ("f32", "f16") for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2")]
    for d, a, b in eight_bits + [("s32", a, b) for a in ("s8", "u8") for b in ("s8", "u8")] + [("f32", "tf32", "tf32")]:
        cases.append(case("registers", 8, d, a, b))
        cases.append(case("shared", 16, d, a, b, a_layout=k_major["128"]))
    cases.append(
        case("shared_64", 64, "f32", "e4m3", "e4m3", a_layout=k_major["64"], b_layout=k_major["64"], scales=(-1, 1))
    )
    for a in ("s8", "u8"):
        for more in ("", ".satfinite"):
            cases.append(case("extreme", 8, "s32", a, a, values="extreme", more=more))
    close = {"f16": bound(16, "f32"), "bf16": bound(16, "f32"), "tf32": bound(8, "f32"),
             "e4m3": bound(32, "f32", UNIT_8BIT), "e5m2": bound(32, "f32", UNIT_8BIT)}  # fmt: skip
    for a, tolerance in close.items():
        cases.append(case("random", 16, "f32", a, a, a_layout=k_major["128"], values="random", close=tolerance))
        cases.append(case("tail", 8, "f32", a, a, values="tail", close=tolerance))
    half = Close("f16x2", 1, 0.0, TRUNCATION + "; then both round to f16")
    cases.append(case("random", 16, "f16", "f16", "f16", a_layout=k_major["128"], values="random", close=half))
    return cases
