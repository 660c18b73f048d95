"""Half precision and bfloat16, single and packed (PTX ISA, "Half Precision Floating-Point Instructions").

Registers hold bits. Values are computed in single precision and rounded once; fma in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashcore_drv.emulator.instructions.floating import saturated
from flashcore_drv.emulator.instructions.rounding import odd_single, odd_sum
from flashcore_drv.emulator.instructions.table import HALF, Site, instruction
from flashcore_drv.emulator.registers import Operation, assigned, copy, elementwise
from flashcore_drv.emulator.selection import Array


def from_half(bits: Array, kind: str) -> Array:
    """The values (float32) of f16 or bf16 bits; packed ones become twice as many."""
    halves = np.ascontiguousarray(bits).view(np.uint16)
    if kind == "f16":
        return halves.view(np.float16).astype(np.float32)
    result: Array = (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return result


def to_half(values: Array, kind: str) -> Array:
    """Round to nearest even f16 or bf16; the bits, uint16. NaN becomes the canonical 0x7fff."""
    if kind == "f16":
        bits = values.astype(np.float16).view(np.uint16)
    else:
        single = (odd_single(values) if values.dtype == np.float64 else values).view(np.uint32)
        bits = (single + (np.uint32(0x7FFF) + (single >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
    return np.where(np.isnan(values), np.uint16(0x7FFF), bits)


def _halves(at: Site, function: Callable[..., Array]) -> Operation:
    """A function of float32 arrays, for single or packed halves."""
    kind = at.type
    single = kind.removesuffix("x2")
    ftz, sat, relu = at.has("ftz"), at.has("sat"), at.has("relu")

    def run(*sources: Array) -> Array:
        values = [from_half(s, single) for s in sources]
        if ftz:
            values = [_flush(v, single) for v in values]
        result = function(*values)
        if ftz:
            result = _flush(result, single)  # GPUs flush what is tiny before it is rounded
        if sat:
            result = saturated(result)
        if relu:
            result = np.where(np.isnan(result), result, np.maximum(result, 0))
        bits = to_half(result, single)
        return bits if kind == single else bits.view(np.uint32)

    return at.elementwise(assigned(run), kind)


def _flush(values: Array, kind: str) -> Array:
    smallest = 2.0**-14 if kind == "f16" else 2.0**-126
    return np.where(np.abs(values) < smallest, np.copysign(values.dtype.type(0), values), values)


@instruction("add", "sub", "mul", pipe="fma", types=HALF)
def add_sub_mul(at: Site) -> Operation:
    """add, sub, mul."""
    functions: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    return _halves(at, functions[at.instruction.name])


@instruction("fma", pipe="fma", types=HALF)
def fma(at: Site) -> Operation:
    """fma, ``.relu``."""
    return _halves(at, lambda a, b, c: odd_sum(a.astype(np.float64) * b, c.astype(np.float64)))


@instruction("neg", "abs", pipe="alu", types=HALF)
def neg_abs(at: Site) -> Operation:
    """neg, abs: of the sign bits."""
    sign = {"f16": 0x8000, "bf16": 0x8000}.get(at.type, 0x80008000)
    mask = at.read(0, at.type).dtype.type(sign)
    if at.has("ftz"):
        return _halves(at, np.negative if at.instruction.name == "neg" else np.abs)
    if at.instruction.name == "neg":
        return at.elementwise(assigned(lambda a: a ^ mask), at.type)
    return at.elementwise(assigned(lambda a: a & ~mask), at.type)


@instruction("min", "max", pipe="alu", types=HALF)
def min_max(at: Site) -> Operation:
    """min, max, ``.NaN``, ``.xorsign.abs``; of two zeros the negative one is smaller."""
    is_min, strict = at.instruction.name == "min", at.has("NaN")
    plain: Any = (np.minimum if strict else np.fmin) if is_min else (np.maximum if strict else np.fmax)
    if at.has("xorsign"):

        def signed(a: Array, b: Array) -> Array:
            sign = np.signbit(a) ^ np.signbit(b)
            result: Array = np.copysign(plain(np.abs(a), np.abs(b)), np.where(sign, -1, 1).astype(a.dtype))
            return result

        return _halves(at, signed)

    def extreme(a: Array, b: Array) -> Array:
        first = np.signbit(a) if is_min else ~np.signbit(a)
        return np.where(a == b, np.where(first, a, b), plain(a, b))

    return _halves(at, extreme)


@instruction("ex2", "tanh", pipe="xu", types=HALF)
def approximations(at: Site) -> Operation:
    """ex2.approx, tanh.approx: rounded once."""
    function: Any = np.exp2 if at.instruction.name == "ex2" else np.tanh
    return _halves(at, lambda a: function(a.astype(np.float64)))


@instruction("mov", pipe="alu", types=HALF)
def mov(at: Site) -> Operation:
    """A mov of bits."""
    return elementwise(copy, at.target(0, at.type), at.read(1, at.type))
