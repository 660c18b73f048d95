"""Integer instructions against NumPy and Python integers."""

import numpy as np
import pytest
from kernel_harness import compute

RNG = np.random.default_rng(0)
N = 256
U32 = RNG.integers(0, 1 << 32, N, dtype=np.uint32)
V32 = np.where(np.arange(N) % 3 == 0, RNG.integers(1, 9, N), RNG.integers(1, 1 << 32, N)).astype(np.uint32)
W32 = RNG.integers(0, 1 << 32, N, dtype=np.uint32)
U64 = RNG.integers(0, 1 << 64, N, dtype=np.uint64)
V64 = RNG.integers(1, 1 << 64, N, dtype=np.uint64)
SMALL = RNG.integers(0, 70, N).astype(np.uint32)


def signed(values, bits=32):
    return [int(v) - (1 << bits) if int(v) >> bits - 1 else int(v) for v in values]


def check(text, sources, result, expected):
    got = compute(text, sources, result)
    bits = 8 * got.itemsize
    want = np.array([int(e) & (1 << bits) - 1 for e in expected], f"u{got.itemsize}")
    np.testing.assert_array_equal(got.view(want.dtype), want)


def trunc_div(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


S32, T32, S64, T64 = signed(U32), signed(V32), signed(U64, 64), signed(V64, 64)
CASES = {
    "add.s32": [a + b for a, b in zip(S32, T32)],
    "sub.u32": [int(a) - int(b) for a, b in zip(U32, V32)],
    "add.sat.s32": [min(max(a + b, -(2**31)), 2**31 - 1) for a, b in zip(S32, T32)],
    "mul.lo.s32": [a * b for a, b in zip(S32, T32)],
    "mul.hi.s32": [a * b >> 32 for a, b in zip(S32, T32)],
    "mul.hi.u32": [int(a) * int(b) >> 32 for a, b in zip(U32, V32)],
    "mul24.lo.u32": [(int(a) & 0xFFFFFF) * (int(b) & 0xFFFFFF) for a, b in zip(U32, V32)],
    "div.s32": [trunc_div(a, b) for a, b in zip(S32, T32)],
    "div.u32": [int(a) // int(b) for a, b in zip(U32, V32)],
    "rem.s32": [a - b * trunc_div(a, b) for a, b in zip(S32, T32)],
    "rem.u32": [int(a) % int(b) for a, b in zip(U32, V32)],
    "min.s32": [min(a, b) for a, b in zip(S32, T32)],
    "max.u32": [max(int(a), int(b)) for a, b in zip(U32, V32)],
    "and.b32": [int(a) & int(b) for a, b in zip(U32, V32)],
    "or.b32": [int(a) | int(b) for a, b in zip(U32, V32)],
    "xor.b32": [int(a) ^ int(b) for a, b in zip(U32, V32)],
}


@pytest.mark.parametrize("opcode", CASES)
def test_two_words(opcode):
    check(f"{opcode} %d, %a, %b;", [("u32", U32), ("u32", V32)], "u32", CASES[opcode])


LONG = {
    "add.s64": [a + b for a, b in zip(S64, T64)],
    "sub.s64": [a - b for a, b in zip(S64, T64)],
    "mul.lo.u64": [int(a) * int(b) for a, b in zip(U64, V64)],
    "mul.hi.u64": [int(a) * int(b) >> 64 for a, b in zip(U64, V64)],
    "mul.hi.s64": [a * b >> 64 for a, b in zip(S64, T64)],
    "div.s64": [trunc_div(a, b) for a, b in zip(S64, T64)],
    "rem.u64": [int(a) % int(b) for a, b in zip(U64, V64)],
    "min.s64": [min(a, b) for a, b in zip(S64, T64)],
}


@pytest.mark.parametrize("opcode", LONG)
def test_two_long_words(opcode):
    check(f"{opcode} %d, %a, %b;", [("u64", U64), ("u64", V64)], "u64", LONG[opcode])


def test_wide_products():
    check("mul.wide.s32 %d, %a, %b;", [("u32", U32), ("u32", V32)], "u64", [a * b for a, b in zip(S32, T32)])
    check("mul.wide.u32 %d, %a, %b;", [("u32", U32), ("u32", V32)], "u64", [int(a) * int(b) for a, b in zip(U32, V32)])
    check("mul.wide.s32 %d, %a, -7;", [("u32", U32)], "u64", [a * -7 for a in S32])
    triple = [("u32", U32), ("u32", V32), ("u64", U64)]
    check("mad.wide.s32 %d, %a, %b, %c;", triple, "u64", [a * b + c for a, b, c in zip(S32, T32, S64)])


def test_three_words():
    triple = [("u32", U32), ("u32", V32), ("u32", W32)]
    abc = [(int(a), int(b), int(c)) for a, b, c in zip(U32, V32, W32)]
    check("mad.lo.s32 %d, %a, %b, %c;", triple, "u32", [a * b + c for a, b, c in abc])
    check("mad.hi.u32 %d, %a, %b, %c;", triple, "u32", [(a * b >> 32) + c for a, b, c in abc])
    check("sad.u32 %d, %a, %b, %c;", triple, "u32", [abs(a - b) + c for a, b, c in abc])
    check("lop3.b32 %d, %a, %b, %c, 0xCA;", triple, "u32", [(a & b) | (~a & c) for a, b, c in abc])
    check("lop3.b32 %d, %a, %b, %c, 0x96;", triple, "u32", [a ^ b ^ c for a, b, c in abc])
    dots = [
        sum(signed([x], 8)[0] * signed([y], 8)[0] for x, y in zip(a.to_bytes(4, "little"), b.to_bytes(4, "little"))) + c
        for a, b, c in abc
    ]
    check("dp4a.s32.s32 %d, %a, %b, %c;", triple, "u32", dots)


def test_carry():
    text = "add.cc.u32 %d, %a, %b; addc.u32 %d, %b, 0;"
    check(text, [("u32", U32), ("u32", V32)], "u32", [int(b) + (int(a) + int(b) >> 32) for a, b in zip(U32, V32)])
    text = "sub.cc.u32 %d, %a, %b; subc.u32 %d, 0, 0;"
    check(text, [("u32", U32), ("u32", V32)], "u32", [-(int(a) < int(b)) for a, b in zip(U32, V32)])


@pytest.mark.parametrize("by", [0, 5, 31, 32, 40])
def test_shift_by_a_constant(by):
    check(f"shl.b32 %d, %a, {by};", [("u32", U32)], "u32", [int(a) << by for a in U32])
    check(f"shr.u32 %d, %a, {by};", [("u32", U32)], "u32", [int(a) >> by for a in U32])
    check(f"shr.s32 %d, %a, {by};", [("u32", U32)], "u32", [a >> by for a in S32])


def test_shift_by_a_register():
    check("shl.b64 %d, %a, %b;", [("u64", U64), ("u32", SMALL)], "u64", [int(a) << int(b) for a, b in zip(U64, SMALL)])
    check("shr.s64 %d, %a, %b;", [("u64", U64), ("u32", SMALL)], "u64", [a >> int(b) for a, b in zip(S64, SMALL)])
    triple = [("u32", U32), ("u32", V32), ("u32", SMALL)]
    both = [(int(b) << 32 | int(a), int(c)) for a, b, c in zip(U32, V32, SMALL)]
    check("shf.l.wrap.b32 %d, %a, %b, %c;", triple, "u32", [x << (c & 31) >> 32 for x, c in both])
    check("shf.r.clamp.b32 %d, %a, %b, %c;", triple, "u32", [x >> min(c, 32) for x, c in both])


def test_fields():
    position, length = RNG.integers(0, 40, N).astype(np.uint32), RNG.integers(0, 40, N).astype(np.uint32)
    fields = [(int(a), int(p), int(n)) for a, p, n in zip(U32, position, length)]
    triple = [("u32", U32), ("u32", position), ("u32", length)]
    check("bfe.u32 %d, %a, %b, %c;", triple, "u32", [a >> p & (1 << n) - 1 for a, p, n in fields])

    def extract(a, p, n):
        """As the PTX ISA defines it, bit by bit."""
        sign = 0 if n == 0 else a >> min(p + n - 1, 31) & 1
        return sum((a >> p + i & 1 if i < n and p + i <= 31 else sign) << i for i in range(32))

    check("bfe.s32 %d, %a, %b, %c;", triple, "u32", [extract(*f) for f in fields])
    inserted = [a & ~(0xFF << 12) | (int(b) & 0xFF) << 12 for (a, _, _), b in zip(fields, V32)]
    check("bfi.b32 %d, %b, %a, 12, 8;", [("u32", U32), ("u32", V32)], "u32", inserted)


def test_counting():
    check("popc.b32 %d, %a;", [("u32", U32)], "u32", [int(a).bit_count() for a in U32])
    check("popc.b64 %d, %a;", [("u64", U64)], "u32", [int(a).bit_count() for a in U64])
    shifted = (U32 >> (np.arange(N) % 33).clip(0, 31).astype(np.uint32)).astype(np.uint32)
    shifted[0] = 0
    check("clz.b32 %d, %a;", [("u32", shifted)], "u32", [32 - int(a).bit_length() for a in shifted])
    check("bfind.u32 %d, %a;", [("u32", shifted)], "u32", [int(a).bit_length() - 1 for a in shifted])
    check("brev.b32 %d, %a;", [("u32", U32)], "u32", [int(f"{int(a):032b}"[::-1], 2) for a in U32])
    check("neg.s32 %d, %a;", [("u32", U32)], "u32", [-int(a) for a in U32])
    check("abs.s32 %d, %a;", [("u32", U32)], "u32", [abs(a) for a in S32])
    check("not.b32 %d, %a;", [("u32", U32)], "u32", [~int(a) for a in U32])
    check("cnot.b32 %d, %a;", [("u32", shifted)], "u32", [int(a == 0) for a in shifted])


def test_prmt():
    octets = [int(a).to_bytes(4, "little") + int(b).to_bytes(4, "little") for a, b in zip(U32, V32)]

    def permuted(both, selector):
        out = []
        for i in range(4):
            nibble = selector >> 4 * i & 15
            octet = both[nibble & 7]
            out.append((255 if octet >> 7 else 0) if nibble & 8 else octet)
        return int.from_bytes(bytes(out), "little")

    triple = [("u32", U32), ("u32", V32), ("u32", W32 & 0xFFFF)]
    check("prmt.b32 %d, %a, %b, %c;", triple, "u32", [permuted(o, int(c)) for o, c in zip(octets, W32 & 0xFFFF)])


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("eq", lambda a, b: a == b), ("ne", lambda a, b: a != b), ("lt", lambda a, b: a < b), ("ge", lambda a, b: a >= b)],
)
def test_setp(condition, expected):
    b = np.where(np.arange(N) % 2, U32, V32).astype(np.uint32)
    got = compute(f"setp.{condition}.s32 %d, %a, %b;", [("u32", U32), ("u32", b)], "pred")
    np.testing.assert_array_equal(got, expected(U32.view(np.int32), b.view(np.int32)))
    got = compute(f"setp.{condition}.u32 %d, %a, %b;", [("u32", U32), ("u32", b)], "pred")
    np.testing.assert_array_equal(got, expected(U32, b))


def test_setp_combines_and_negates():
    text = """.reg .pred %p, %q; setp.gt.u32 %p, %b, 100;
              setp.lt.and.u32 %d|%q, %a, %b, !%p; @%q mov.pred %d, 1;"""
    with_q = (SMALL < V32) & ~(V32 > 100) | ~(SMALL < V32) & ~(V32 > 100)
    np.testing.assert_array_equal(compute(text, [("u32", SMALL), ("u32", V32)], "pred"), with_q)


def test_selection_and_short_types():
    text = ".reg .pred %q; setp.lt.u32 %q, %a, %b; selp.b32 %d, %a, %b, %q;"
    check(text, [("u32", U32), ("u32", V32)], "u32", np.minimum(U32, V32))
    for same in ("%a", "%b"):  # the target may be a source
        text = f".reg .pred %q; setp.lt.u32 %q, %a, %b; selp.b32 {same}, %a, %b, %q; mov.b32 %d, {same};"
        check(text, [("u32", U32), ("u32", V32)], "u32", np.minimum(U32, V32))
    short = U32.astype(np.uint16)
    check(
        "add.s16 %d, %a, %b;",
        [("u16", short), ("u16", short[::-1])],
        "u16",
        short.astype(int) + short[::-1].astype(int),
    )
    check("mul.wide.s16 %d, %a, %b;", [("u16", short), ("u16", short[::-1])], "u32",
          [a * b for a, b in zip(signed(short, 16), signed(short[::-1], 16))])  # fmt: skip
