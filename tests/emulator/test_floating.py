"""Floating-point instructions of all widths against NumPy."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from kernel_harness import compute

RNG = np.random.default_rng(1)
N = 256
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3.4e38, 65504.0, 65520.0, 2.0**-24], np.float32
)
A = np.concatenate([SPECIAL, RNG.standard_normal(N - SPECIAL.size).astype(np.float32) * 10]).astype(np.float32)
B = np.concatenate([SPECIAL[::-1], RNG.standard_normal(N - SPECIAL.size).astype(np.float32)]).astype(np.float32)
C = RNG.standard_normal(N).astype(np.float32)


def same(got, want):
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    keep = ~np.isnan(want)
    np.testing.assert_array_equal(got[keep], want[keep])
    np.testing.assert_array_equal(np.signbit(got[keep]), np.signbit(want[keep]))


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("add.f32", np.add), ("sub.rn.f32", np.subtract), ("mul.f32", np.multiply), ("div.rn.f32", np.divide),
        ("div.full.f32", np.divide), ("min.f32", np.fmin), ("max.f32", np.fmax), ("max.NaN.f32", np.maximum),
    ],
)  # fmt: skip
def test_two_operands(opcode, function):
    same(compute(f"{opcode} %d, %a, %b;", [("f32", A), ("f32", B)], "f32"), function(A, B))


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("neg.f32", np.negative), ("abs.f32", np.abs), ("sqrt.rn.f32", np.sqrt), ("rcp.rn.f32", np.reciprocal),
        ("ex2.approx.f32", lambda a: np.exp2(a.astype(np.float64)).astype(np.float32)),
        ("lg2.approx.f32", lambda a: np.log2(a.astype(np.float64)).astype(np.float32)),
        ("rsqrt.approx.f32", lambda a: (1 / np.sqrt(a.astype(np.float64))).astype(np.float32)),
        ("tanh.approx.f32", lambda a: np.tanh(a.astype(np.float64)).astype(np.float32)),
        ("sin.approx.f32", lambda a: np.sin(a.astype(np.float64)).astype(np.float32)),
        ("cvt.rmi.f32.f32", np.floor), ("cvt.rni.f32.f32", np.rint),
    ],
)  # fmt: skip
def test_one_operand(opcode, function):
    same(compute(f"{opcode} %d, %a;", [("f32", A)], "f32"), function(A))


def test_fma_is_rounded_once():
    same(compute("fma.rn.f32 %d, %a, %b, %c;", [("f32", A), ("f32", B), ("f32", C)], "f32"),
         (A.astype(np.float64) * B + C).astype(np.float32))  # fmt: skip
    a = np.full(1, np.float32(1 + 2.0**-12))
    got = compute("fma.rn.f32 %d, %a, %a, %b;", [("f32", a), ("f32", -a * a)], "f32")
    assert got[0] == 2.0**-24  # what the product alone loses


def test_directed_rounding():
    a, b = np.float32([1, -1]), np.float32([2.0**-30, -(2.0**-30)])
    for mode, want in {"rz": [1, -1], "rm": [1, np.nextafter(np.float32(-1), np.float32(-2))],
                       "rp": [np.nextafter(np.float32(1), np.float32(2)), -1]}.items():  # fmt: skip
        same(compute(f"add.{mode}.f32 %d, %a, %b;", [("f32", a), ("f32", b)], "f32"), np.float32(want))


def test_flush_and_saturate():
    tiny = np.float32([1e-40, -1e-40, 2.0**-126, 0.5])
    same(
        compute("mul.ftz.f32 %d, %a, %b;", [("f32", tiny), ("f32", np.ones(4))], "f32"),
        np.float32([0, -0.0, 2.0**-126, 0.5]),
    )
    same(compute("ex2.approx.ftz.f32 %d, %a;", [("f32", np.float32([-127, -126, 3, -np.inf]))], "f32"),
         np.float32([0, 2.0**-126, 8, 0]))  # fmt: skip
    same(
        compute("add.sat.f32 %d, %a, 0f00000000;", [("f32", A)], "f32"),
        np.where(np.isnan(A), 0, np.clip(A + np.float32(0), 0, 1)),
    )


@pytest.mark.parametrize(
    "condition", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
def test_comparisons_with_nan(condition):
    nan = np.isnan(A) | np.isnan(B)
    plain = {"eq": A == B, "ne": A != B, "lt": A < B, "le": A <= B, "gt": A > B, "ge": A >= B}
    if condition in ("num", "nan"):
        want = nan if condition == "nan" else ~nan
    elif condition.endswith("u"):
        want = plain[condition[:-1]] | nan
    else:
        want = plain[condition] & ~nan
    np.testing.assert_array_equal(compute(f"setp.{condition}.f32 %d, %a, %b;", [("f32", A), ("f32", B)], "pred"), want)


def test_double_precision():
    a, b, c = (RNG.standard_normal(64) for _ in range(3))
    same(compute("add.f64 %d, %a, %b;", [("f64", a), ("f64", b)], "f64"), a + b)
    same(compute("div.rn.f64 %d, %a, %b;", [("f64", a), ("f64", b)], "f64"), a / b)
    same(compute("cvt.rn.f32.f64 %d, %a;", [("f64", a)], "f32"), a.astype(np.float32))
    same(compute("cvt.f64.f32 %d, %a;", [("f32", c)], "f64"), c.astype(np.float32).astype(np.float64))


# Half precision.

HALVES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


def bits(values, kind):
    return values.astype(np.float32).astype(HALVES[kind]).view(np.uint16)


def halves(words, kind):
    return words.view(np.uint16).view(HALVES[kind]).astype(np.float32)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "max", "min"])
def test_half(kind, operation):
    a, b = bits(A, kind), bits(B, kind)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.fmax, "min": np.fmin}[operation]
    want = function(halves(a, kind), halves(b, kind)).astype(HALVES[kind]).astype(np.float32)
    opcode = f"{operation}.{'' if operation in ('max', 'min') else 'rn.'}{kind}"
    same(halves(compute(f"{opcode} %d, %a, %b;", [(kind, a), (kind, b)], kind), kind), want)
    packed = compute(
        f"{opcode}x2 %d, %a, %b;", [(f"{kind}x2", a.view(np.uint32)), (f"{kind}x2", b.view(np.uint32))], f"{kind}x2"
    )
    same(halves(packed, kind), want)


@pytest.mark.parametrize("kind", HALVES)
def test_half_fma_and_neg(kind):
    a, b, c = bits(A, kind), bits(B, kind), bits(C, kind)
    x, y, z = (halves(v, kind).astype(np.float64) for v in (a, b, c))
    want = (x * y + z).astype(HALVES[kind]).astype(np.float32)
    same(halves(compute(f"fma.rn.{kind} %d, %a, %b, %c;", [(kind, a), (kind, b), (kind, c)], kind), kind), want)
    same(halves(compute(f"neg.{kind} %d, %a;", [(kind, a)], kind), kind), -halves(a, kind))


def test_half_comparison():
    a, b = bits(A, "f16"), bits(B, "f16")
    want = halves(a, "f16") < halves(b, "f16")
    np.testing.assert_array_equal(compute("setp.lt.f16 %d, %a, %b;", [("f16", a), ("f16", b)], "pred"), want)


# Conversions.


@pytest.mark.parametrize("kind", HALVES)
def test_to_and_from_half(kind):
    same(
        halves(compute(f"cvt.rn.{kind}.f32 %d, %a;", [("f32", A)], kind), kind),
        A.astype(HALVES[kind]).astype(np.float32),
    )
    same(compute(f"cvt.f32.{kind} %d, %a;", [(kind, bits(A, kind))], "f32"), halves(bits(A, kind), kind))
    packed = halves(compute(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", [("f32", A), ("f32", B)], f"{kind}x2"), kind)
    same(packed[1::2], A.astype(HALVES[kind]).astype(np.float32))
    same(packed[0::2], B.astype(HALVES[kind]).astype(np.float32))


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_half(mode):
    a = np.concatenate([np.float32([1 + 2.0**-12, -1 - 2.0**-12, 2.0**-26, -(2.0**-26), 0, 1e6, -1e6]), A[20:]])
    got = halves(compute(f"cvt.{mode}.f16.f32 %d, %a;", [("f32", a)], "f16"), "f16")
    everything = np.arange(0x10000, dtype=np.uint16).view(np.float16).astype(np.float64)
    ordered = np.unique(everything[~np.isnan(everything)])
    for x, y in zip(a.astype(np.float64), got):
        below, above = ordered[ordered <= x].max(), ordered[ordered >= x].min()
        want = {"rm": below, "rp": above, "rz": below if x > 0 else above}[mode]
        if np.isinf(want) and mode == "rz":
            want = np.copysign(65504, x)
        assert y == want, (x, y, want)


def test_float_to_integer():
    a = np.concatenate([SPECIAL, np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31, -(2.0**31), 4e9, 1e20, -1e20])])
    exact = np.where(np.isnan(a), 0, np.clip(np.rint(a.astype(np.float64)), -(2.0**31), 2.0**31 - 1))
    np.testing.assert_array_equal(compute("cvt.rni.s32.f32 %d, %a;", [("f32", a)], "s32"), exact.astype(np.int64))
    exact = np.where(np.isnan(a), 0, np.clip(np.trunc(a.astype(np.float64)), 0, 2.0**32 - 1))
    np.testing.assert_array_equal(compute("cvt.rzi.u32.f32 %d, %a;", [("f32", a)], "u32"), exact.astype(np.int64))
    assert compute("cvt.rzi.s64.f32 %d, %a;", [("f32", np.float32([1e20, -7.9]))], "s64").tolist() == [2**63 - 1, -7]


def test_integer_to_float():
    a = np.array([0, 1, -1, 2**24 + 1, -(2**31), 2**31 - 1], np.int32)
    same(compute("cvt.rn.f32.s32 %d, %a;", [("s32", a)], "f32"), a.astype(np.float32))
    same(compute("cvt.rn.f32.u32 %d, %a;", [("u32", a.view(np.uint32))], "f32"), a.view(np.uint32).astype(np.float32))
    towards_zero = compute("cvt.rz.f32.s32 %d, %a;", [("s32", a)], "f32")
    assert all(abs(Fraction(float(y))) <= abs(int(x)) for x, y in zip(a, towards_zero))


def test_integer_to_integer():
    a = RNG.integers(0, 1 << 32, 64, dtype=np.uint32)
    np.testing.assert_array_equal(compute("cvt.s64.s32 %d, %a;", [("u32", a)], "s64"), a.view(np.int32))
    np.testing.assert_array_equal(compute("cvt.u64.u32 %d, %a;", [("u32", a)], "u64"), a)
    np.testing.assert_array_equal(compute("cvt.s32.s8 %d, %a;", [("u32", a)], "s32"), a.astype(np.uint8).view(np.int8))
    np.testing.assert_array_equal(compute("cvt.u16.u32 %d, %a;", [("u32", a)], "u16"), a.astype(np.uint16))
    saturated = np.clip(a.view(np.int32), -128, 127)
    np.testing.assert_array_equal(compute("cvt.sat.s8.s32 %d, %a;", [("u32", a)], "s8"), saturated)


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_fp8(kind, dtype):
    largest = float(ml_dtypes.finfo(dtype).max)
    a, b = (np.clip(x[np.isfinite(x)][:240], -largest, largest) for x in (A, B))
    got = compute(f"cvt.rn.satfinite.{kind}x2.f32 %d, %a, %b;", [("f32", a), ("f32", b)], f"{kind}x2")
    want = np.stack([b, a], 1).astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(got.view(np.uint8).reshape(-1, 2), want)
    saturated = compute(f"cvt.rn.satfinite.{kind}x2.f32 %d, %a, %a;", [("f32", np.float32([1e9, -1e9]))], f"{kind}x2")
    np.testing.assert_array_equal(saturated.view(np.uint8)[::2].view(dtype).astype(np.float32), [largest, -largest])
    codes = np.arange(256, dtype=np.uint8).view(np.uint16)
    back = compute(f"cvt.rn.f16x2.{kind}x2 %d, %a;", [(f"{kind}x2", codes)], "f16x2").view(np.float16)
    same(back.astype(np.float32), codes.view(dtype).astype(np.float32))
