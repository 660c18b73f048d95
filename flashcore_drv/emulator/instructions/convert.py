"""cvt with all its types and rounding modes (PTX ISA, "cvt", "cvt.pack")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashcore_drv.emulator.instructions.floating import DIRECTIONS, flushed, rounded, saturated
from flashcore_drv.emulator.instructions.half import from_half, to_half
from flashcore_drv.emulator.instructions.rounding import double, odd_sum
from flashcore_drv.emulator.instructions.table import Site, instruction
from flashcore_drv.emulator.registers import DTYPES, Operation, assigned, copy, elementwise
from flashcore_drv.emulator.selection import Array

_FLOATS = frozenset({"f16", "bf16", "f32", "f64"})


def _fp8_values(exponent_bits: int, mantissa_bits: int, has_infinity: bool) -> Array:
    """The value of each of the 256 codes of an 8-bit float, float32."""
    codes = np.arange(256)
    exponent = codes >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = codes & (1 << mantissa_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    fraction = np.where(exponent == 0, 0, 1) + mantissa / (1 << mantissa_bits)
    values = fraction * 2.0 ** (np.maximum(exponent, 1) - bias)
    top = (1 << exponent_bits) - 1
    if has_infinity:
        values = np.where(exponent == top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where((exponent == top) & (mantissa == (1 << mantissa_bits) - 1), np.nan, values)
    return np.where(codes & 128, -values, values).astype(np.float32)


FP8 = {"e4m3": _fp8_values(4, 3, False), "e5m2": _fp8_values(5, 2, True)}
"""Values by code of the 8-bit floats (OCP OFP8)."""


def to_fp8(values: Array, kind: str) -> Array:
    """Round to the nearest even 8-bit float, past the largest to the largest (``.satfinite``); the codes, uint8."""
    table = FP8[kind]
    positive = table[:128][np.isfinite(table[:128])].astype(np.float64)
    magnitude = np.abs(values.astype(np.float64))
    middles = (positive[1:] + positive[:-1]) / 2
    code = np.searchsorted(middles, magnitude, side="left")
    tie = code < middles.size
    at_tie = tie & (magnitude == middles[np.minimum(code, middles.size - 1)])
    code = np.where(at_tie & (code % 2 == 1), code + 1, code)
    code = np.where(np.isnan(values), 127, code)
    return np.where(np.signbit(values) & ~np.isnan(values), code | 128, code).astype(np.uint8)


@instruction("cvt.pack", pipe="alu")
def cvt_pack(at: Site) -> Operation:
    """cvt.pack.sat: two integers to narrower ones, saturated, before the high bits of c."""
    to, source = at.instruction.types[0], at.instruction.types[1]
    limits, bits = np.iinfo(DTYPES[to]), 8 * DTYPES[to].itemsize

    def function(a: Array, b: Array, c: Array | int = 0) -> Array:
        x, y = (np.clip(v.astype(np.int64), limits.min, limits.max) & (1 << bits) - 1 for v in (a, b))
        return (np.asarray(c).astype(np.int64) << 2 * bits | x << bits | y) & 0xFFFFFFFF

    kinds = (source, source, "b32")[: len(at.operands) - 1]
    return at.elementwise(assigned(function), "b32", *kinds)


@instruction("cvt", pipe="alu")
def cvt(at: Site) -> Operation:
    """Any cvt between integers and floats; ``.rn .rz .rm .rp .rna``, ``.rni …``, ``.sat .satfinite .relu .ftz``."""
    to, source = at.instruction.types
    if to in ("f16x2", "bf16x2"):
        return _to_packed(at, to, source)
    if to in ("e4m3x2", "e5m2x2"):
        return _to_fp8x2(at, to, source)
    if to == "tf32":
        return elementwise(assigned(lambda a: _to_tf32(a, at)), at.target(0, "b32"), at.read(1, "f32"))
    if source in _FLOATS:
        return _from_float(at, to, source)
    if to in _FLOATS:
        return _integer_to_float(at, to, source)
    target, value = at.target(0, to), at.read(1, source)
    if at.has("sat"):
        limits = np.iinfo(DTYPES[to])
        low, high = max(limits.min, np.iinfo(value.dtype).min), min(limits.max, np.iinfo(value.dtype).max)
        return elementwise(assigned(lambda a: np.clip(a, low, high).astype(DTYPES[to])), target, value)
    if target.dtype == DTYPES[to]:
        return elementwise(copy, target, value)
    return elementwise(assigned(lambda a: a.astype(DTYPES[to])), target, value)


def _read_float(at: Site, index: int, kind: str) -> tuple[Array, Callable[[Array], Array]]:
    """The bits or values of an operand, and what makes them float32 or float64."""
    if kind in ("f16", "bf16"):
        return at.read(index, kind), lambda a: from_half(a, kind)
    if kind == "f32" and at.has("ftz"):
        return at.read(index, kind), flushed
    return at.read(index, kind), lambda a: a


def _directed_half(values: Array, kind: str, mode: str) -> Array:
    """Round to f16 or bf16 towards zero, down or up; the bits."""
    bits = to_half(values, kind)
    back = from_half(bits, kind).astype(np.float64)
    exact = values.astype(np.float64)
    too_high, too_low = back > exact, back < exact
    if mode == "rz":
        too_high, too_low = too_high & (exact > 0), too_low & (exact < 0)
    away = {"rz": too_high | too_low, "rm": too_high, "rp": too_low}[mode]
    # One step towards zero for results that are too far out, one away from it otherwise.
    magnitude_down = (bits & 0x7FFF) - 1
    shrink = (bits & 0x8000) | magnitude_down
    grow = bits + 1
    outward = np.where(mode == "rz", False, (back < 0) | ((back == 0) & (mode == "rm")))
    if mode == "rp":
        outward = (back > 0) | (back == 0)
    return np.where(away, np.where(outward, grow, shrink), bits).astype(np.uint16)


def _half_bits(at: Site, values: Array, kind: str) -> Array:
    mode = next((DIRECTIONS[m] for m in at.modifiers if m in DIRECTIONS), None)
    if at.has("relu"):
        values = np.where(np.isnan(values), values, np.maximum(values, 0))
    if at.has("sat"):
        values = saturated(values)
    if at.has("satfinite"):
        largest = 65504.0 if kind == "f16" else 3.3895313892515355e38
        values = np.where(np.isnan(values), values, np.clip(values, -largest, largest))
    return _directed_half(values, kind, mode) if mode else to_half(values, kind)


def _to_packed(at: Site, to: str, source: str) -> Operation:
    """A cvt to f16x2 or bf16x2: of two f32 (the first to the high half), or of e4m3x2, e5m2x2."""
    single = to.removesuffix("x2")
    if source in ("e4m3x2", "e5m2x2"):
        table = FP8[source.removesuffix("x2")]

        def expand(a: Array) -> Array:
            values = table[np.ascontiguousarray(a).view(np.uint8)]
            return _half_bits(at, values, single).view(np.uint32)

        return elementwise(assigned(expand), at.target(0, "b32"), at.read(1, "b16"))

    def pack(a: Array, b: Array) -> Array:
        halves = np.empty((a.size, 2), np.uint16)
        halves[:, 0], halves[:, 1] = _half_bits(at, b, single), _half_bits(at, a, single)
        return halves.view(np.uint32)[:, 0]

    return elementwise(assigned(pack), at.target(0, "b32"), at.read(1, "f32"), at.read(2, "f32"))


def _to_fp8x2(at: Site, to: str, source: str) -> Operation:
    """cvt.rn.satfinite to e4m3x2 or e5m2x2: of two f32 (the first to the high byte), or of f16x2, bf16x2."""
    kind, relu = to.removesuffix("x2"), at.has("relu")

    def codes(values: Array) -> Array:
        return to_fp8(np.maximum(values, 0) if relu else values, kind)

    if source == "f32":

        def pack(a: Array, b: Array) -> Array:
            octets = np.empty((a.size, 2), np.uint8)
            octets[:, 0], octets[:, 1] = codes(b), codes(a)
            return octets.view(np.uint16)[:, 0]

        return elementwise(assigned(pack), at.target(0, "b16"), at.read(1, "f32"), at.read(2, "f32"))
    single = source.removesuffix("x2")
    function = assigned(lambda a: codes(from_half(a, single)).view(np.uint16))
    return elementwise(function, at.target(0, "b16"), at.read(1, "b32"))


def _to_tf32(values: Array, at: Site) -> Array:
    """The 10-bit mantissa, rounded to nearest (ties away with ``.rna``, to even with ``.rn``) or cut."""
    bits = values.view(np.uint32)
    if at.has("rz"):
        out = bits & np.uint32(0xFFFFE000)
    else:
        tie = np.uint32(0x1000) if at.has("rna") else np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))
        out = (bits + tie) & np.uint32(0xFFFFE000)
    if at.has("relu"):
        out = np.where(np.signbit(values), np.uint32(0), out)
    if at.has("rna"):  # an integer operation on GPUs: a NaN loses the low bits of its payload too
        out = np.where(np.isfinite(values), out, bits & np.uint32(0xFFFFE000))
    else:
        out = np.where(np.isnan(values), np.uint32(0x7FFFE000), out)
    result: Array = out
    return result


def _from_float(at: Site, to: str, source: str) -> Operation:
    bits, values = _read_float(at, 1, source)
    if to in _FLOATS:
        return _float_to_float(at, to, source, bits, values)
    mode = next((m for m in at.modifiers if m in ("rni", "rzi", "rmi", "rpi")), "rzi")
    function: Any = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    dtype = DTYPES[to]
    limits = np.iinfo(dtype)

    def convert(a: Array) -> Array:
        exact = function(values(a).astype(np.float64))
        # Out of range goes to the nearest end; NaN to 0 (to the top bit from f64 and for 64-bit results).
        inside = (exact >= float(limits.min)) & (exact < float(limits.max) + 1)
        result = np.where(inside, exact, 0).astype(dtype)
        result = np.where(exact >= float(limits.max) + 1, dtype.type(limits.max), result)
        result = np.where(exact < float(limits.min), dtype.type(limits.min), result)
        if dtype.itemsize == 8 or source == "f64":
            top = np.array(1 << 8 * dtype.itemsize - 1, f"u{dtype.itemsize}").view(dtype)
            result = np.where(np.isnan(exact), top, result)
        return result

    return elementwise(assigned(convert), at.target(0, to), bits)


def _float_to_float(at: Site, to: str, source: str, bits: Array, values: Callable[[Array], Array]) -> Operation:
    integral = next((m for m in at.modifiers if m in ("rni", "rzi", "rmi", "rpi")), None)
    mode = next((DIRECTIONS[m] for m in at.modifiers if m in DIRECTIONS), None)
    whole: Any = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, None: None}[integral]

    def convert(a: Array) -> Array:
        value = values(a)
        if whole is not None:
            value = whole(value)
        if to in ("f16", "bf16"):
            return _half_bits(at, value, to)
        if at.has("sat"):
            value = saturated(value)
        if at.has("relu"):
            value = np.where(np.isnan(value), value, np.maximum(value, 0))
        if to == "f32" and source == "f64" and mode and whole is None:
            value = rounded(value, mode)
        if to == "f32" and at.has("ftz"):
            value = flushed(value.astype(np.float32))
        return value

    target = at.target(0, to)
    return elementwise(assigned(convert), target, bits)


def _halves_of(a: Array) -> tuple[Array, Array]:
    """64-bit integers as the sum of two doubles."""
    shift = a.dtype.type(32)
    return (a >> shift).astype(np.float64) * 2.0**32, (a & a.dtype.type(0xFFFFFFFF)).astype(np.float64)


def _integer_to_float(at: Site, to: str, source: str) -> Operation:
    mode = next((DIRECTIONS[m] for m in at.modifiers if m in DIRECTIONS), None)

    def in_double(a: Array) -> Array:
        if a.itemsize < 8:
            return a.astype(np.float64)
        return odd_sum(*_halves_of(a))

    def convert(a: Array) -> Array:
        if to in ("f16", "bf16"):
            return _half_bits(at, in_double(a), to)
        if to == "f64" and mode and a.itemsize == 8:
            return double("add", mode, np.add)(*_halves_of(a))
        value = rounded(in_double(a), mode) if to == "f32" and mode else a.astype(DTYPES[to])
        return saturated(value) if at.has("sat") else value

    return elementwise(assigned(convert), at.target(0, to), at.read(1, source))
