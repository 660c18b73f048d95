"""Operands: the edge values of each type, crossed with one another, then random ones; the same on every machine.

Values are unsigned integers that hold the bits. The seed is the text that names the operands.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DTYPES = {
    "u8": "u1", "s8": "u1", "b8": "u1", "u16": "u2", "s16": "u2", "b16": "u2", "u32": "u4", "s32": "u4", "b32": "u4",
    "u64": "u8", "s64": "u8", "b64": "u8", "f16": "u2", "bf16": "u2", "f16x2": "u4", "bf16x2": "u4", "f32": "u4",
    "f64": "u8", "tf32": "u4", "e4m3x2": "u2", "e5m2x2": "u2", "count": "u4", "angle": "u4", "divisor32": "u4",
    "divisor16": "u2", "divisor64": "u8", "pred": "u4",
}  # fmt: skip
"""What holds a value of each kind of operand."""


def words(seed: str, count: int) -> Array:
    """Random uint64 [count] (of PCG64, whose stream NumPy promises never to change)."""
    digest = hashlib.sha256(seed.encode()).digest()
    return np.asarray(np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(count))


def integers(seed: str, low: int, high: int, count: int) -> Array:
    """Random int64 [count] in low .. high, both included."""
    return (words(seed, count) % np.uint64(high - low + 1)).astype(np.int64) + low


def uniform(seed: str, count: int) -> Array:
    """Random float32 [count] in -1 .. 1, multiples of 2**-23."""
    return (integers(seed, -(2**23), 2**23, count) * 2.0**-23).astype(np.float32)


def _float_edges(mantissa: int, exponent: int) -> list[int]:
    """Zero, subnormals, normals, infinities and NaNs of an IEEE format, by its field widths."""
    one, top = ((1 << exponent - 1) - 1) << mantissa, ((1 << exponent) - 1) << mantissa
    half, quiet = 1 << mantissa - 1, 1 << mantissa - 1
    magnitudes = [
        0, 1, 2, half, (1 << mantissa) - 1, 1 << mantissa, (1 << mantissa) + 1,  # subnormals and the first normals
        one - 1, one, one + 1, one + half, one - (1 << mantissa), one + (1 << mantissa),
        one + (1 << mantissa) + half // 2,
        one + (3 << mantissa) + 1, one + (mantissa << mantissa), one + (mantissa << mantissa) + 1,
        one + (mantissa + 1 << mantissa), top - 1, top - (1 << mantissa), top, top + 1, top + quiet, top + quiet + 5,
        top + (1 << mantissa) - 1,
    ]  # fmt: skip
    sign = 1 << mantissa + exponent
    return [m | s for m in magnitudes for s in (0, sign)]


def _single(*values: float) -> list[int]:
    return [int(x) for x in np.array(values, np.float32).view(np.uint32)]


_CONVERSION_EDGES = _single(
    0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, 0.49999997, 127.5, 128.5, -128.5, 255.5, 32767.5, -32768.5, 65535.5,
    2147483520.0, 2147483648.0, -2147483648.0, 4294967040.0, 4294967296.0, 9.223372e18, -9.223372e18, 1.8446744e19,
    65504, 65519.996, 65520, 65536, 2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 2.5 * 2.0**-24, 2.0**-26,
    1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 + 2.0**-20, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-4, 1 + 3 * 2.0**-4,
    1 + 2.0**-3, 1 + 3 * 2.0**-3, 448, 464, 465, 480, 57344, 61440, 61441, 2.0**-9, 2.0**-10, 1.5 * 2.0**-9, 2.0**-16,
    2.0**-17, 1.5 * 2.0**-16, 2.0**-6, -448, -1000, 8388607.5, 8388609, 16777217, -0.75, -0.25,
)  # fmt: skip


def _integer_edges(bits: int) -> list[int]:
    top = 1 << bits - 1
    small = [0, 1, 2, 3, 5, 7, 31, 100, 127, 128, 129, 255]
    near = [top - 2, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 2 * top - 7, top + top // 2, top // 3 * 2]
    wide = [
        v for v in (0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100000000) if v < 2 * top
    ]
    return [*small, *near, *wide]


def edges(kind: str) -> list[int]:
    """The values of a kind at which implementations differ."""
    if kind == "f32":
        return _float_edges(23, 8) + _CONVERSION_EDGES
    if kind == "f64":
        extended = np.array(_CONVERSION_EDGES, np.uint32).view(np.float32).astype(np.float64).view(np.uint64)
        return _float_edges(52, 11) + [int(x) for x in extended]
    if kind == "f16":
        return [*_float_edges(10, 5), 0x6400, 0x6BFF, 0x7800, 0x7BFF, 0x3801, 0x3E00, 0x4100, 0xC100]
    if kind == "bf16":
        return [*_float_edges(7, 8), 0x3F01, 0x4300, 0x4380, 0x4F00, 0x4F80, 0x5F00, 0x5F80, 0x3FC0, 0x4020]
    if kind in ("f16x2", "bf16x2"):
        single = edges(kind[:-2])
        return [low | high << 16 for low, high in zip(single, single[7:] + single[:7])]
    if kind in ("e4m3x2", "e5m2x2"):
        return [i | (i * 37 + 11) % 256 << 8 for i in range(256)]
    if kind == "count":
        return [
            0,
            1,
            2,
            7,
            8,
            15,
            16,
            17,
            31,
            32,
            33,
            40,
            63,
            64,
            65,
            128,
            255,
            256,
            0x100000001 & 0xFFFFFFFF,
            0xFFFFFFFF,
        ]
    if kind == "angle":
        return _single(*(sign * k * np.pi / 8 for k in range(17) for sign in (1, -1)), 1e-30, -1e-30, 1e-3)
    if kind.startswith("divisor"):
        return [v for v in _integer_edges(int(kind[7:])) if v]
    return _integer_edges(8 * np.dtype(DTYPES[kind]).itemsize)


def _moderate(kind: str, raw: Array) -> Array:
    """Random values whose results are ordinary: floats near one, small integers."""
    one, mantissa, width = {"f32": (127, 23, 32), "f64": (1023, 52, 64), "f16": (15, 10, 16), "bf16": (127, 7, 16)}[
        kind
    ]
    fraction = raw & np.uint64((1 << mantissa) - 1)
    exponent = (raw >> np.uint64(56)) % np.uint64(9) + np.uint64(one - 4)
    sign = raw >> np.uint64(63)
    return sign << np.uint64(width - 1) | exponent << np.uint64(mantissa) | fraction


def random(kind: str, seed: str, count: int) -> Array:
    """Random values of a kind, [count]: half of the floats ordinary, half of any bits."""
    raw, second = words(seed, count), words(seed + "'", count)
    dtype = DTYPES[kind]
    if kind in ("f16x2", "bf16x2"):
        low, high = random(kind[:-2], seed + "l", count), random(kind[:-2], seed + "h", count)
        return low.astype("u4") | high.astype("u4") << np.uint32(16)
    if kind == "count":
        return (raw % np.uint64(70)).astype(dtype)
    if kind == "angle":
        return ((raw % np.uint64(2**24)).astype(np.float64) * 2.0**-23 * np.pi - np.pi).astype(np.float32).view(dtype)
    if kind in ("f32", "f64", "f16", "bf16"):
        bits = np.where(np.arange(count) % 4 == 0, second, _moderate(kind, raw))
    else:
        width = 8 * np.dtype(dtype).itemsize
        shift = np.where(second % np.uint64(2) == 0, 0, second >> np.uint64(8) & np.uint64(width - 1)).astype(np.uint64)
        bits = (raw & np.uint64((1 << width) - 1)) >> shift
        if kind.startswith("divisor"):
            bits = np.maximum(bits, np.uint64(1))
    return bits.astype(dtype)


def operands(seed: str, kinds: tuple[str, ...], count: int) -> list[Array]:
    """Operands of an instruction, one array [count] for each kind.

    The first half crosses edge values (all pairs of the first ones where they fit, then random combinations), the rest
    is random; of equal float kinds the last eighth has operands that almost cancel.
    """
    tables = [edges(kind) for kind in kinds]
    half = count // 2
    columns = [random(kind, f"{seed}:{i}:{kind}", count) for i, kind in enumerate(kinds)]
    if len(kinds) == 1:
        part = tables[0][:half]
        columns[0][: len(part)] = part
        return columns
    product = list(itertools.product(*tables))
    chosen = integers(seed + ":edges", 0, len(product) - 1, half)
    for i, column in enumerate(columns):
        column[:half] = [product[k][i] for k in chosen]
    if kinds[0] == kinds[1] and kinds[0] in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2"):
        near = slice(count - count // 8, count)
        flip = {"f32": 1 << 31, "f64": 1 << 63, "f16": 1 << 15, "bf16": 1 << 15}.get(kinds[0], 0x80008000)
        if len(kinds) == 2:
            columns[1][near] = (columns[0][near] ^ columns[1].dtype.type(flip)) + (columns[1][near] & 3)
        elif kinds[0] in ("f32", "f64"):
            a, b = (c[near].view("f4" if kinds[0] == "f32" else "f8") for c in columns[:2])
            with np.errstate(all="ignore"):
                columns[2][near] = (-(a * b)).view(columns[2].dtype)
    return columns
