"""Single and double precision (PTX ISA, "Floating-Point Instructions").

add, sub, mul, fma, div, rcp, sqrt round as IEEE 754 asks, in the mode of the instruction. (f32 fma to nearest goes
through double precision, which differs from one rounding in about one of 2^29 results.)

The approximations (``ex2 lg2 rcp rsqrt sqrt div sin cos tanh`` with ``.approx``) are stand-ins: computed in double
precision and rounded once. What an H200 gives (tests/golden) is within 1 ulp of them for rcp, sqrt, rsqrt and div, 2
for ex2, 1 (or 2^-22, near x = 1) for lg2, 128 (2^-17) for tanh, and 2^-20.9 for sin and cos in -π … π.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashcore_drv.emulator.instructions.rounding import double, odd_sum, signed_zero
from flashcore_drv.emulator.instructions.table import FLOAT, Site, instruction
from flashcore_drv.emulator.parser import SIZES
from flashcore_drv.emulator.registers import Operation, assigned
from flashcore_drv.emulator.selection import Array

DIRECTIONS = {"rz": "rz", "rm": "rm", "rp": "rp", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def flushed(x: Array) -> Array:
    """Subnormal values become zeros of their sign (``.ftz``)."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def rounded(x: Array, mode: str) -> Array:
    """Round double to single precision towards zero (rz), down (rm) or up (rp)."""
    nearest = x.astype(np.float32)
    back = nearest.astype(np.float64)
    down, up = np.float32(-np.inf), np.float32(np.inf)
    if mode == "rm":
        return np.where(back > x, np.nextafter(nearest, down), nearest)
    if mode == "rp":
        return np.where(back < x, np.nextafter(nearest, up), nearest)
    return np.where(np.abs(back) > np.abs(x), np.nextafter(nearest, np.float32(0)), nearest)


def _direction(at: Site) -> str | None:
    return next((DIRECTIONS[m] for m in at.modifiers if m in DIRECTIONS), None)


def finished(at: Site, function: Callable[..., Array]) -> Callable[..., None]:
    """`function` with ``.ftz`` and ``.sat`` around it, as a ufunc."""
    ftz, sat = at.has("ftz"), at.has("sat")
    if not ftz and not sat:
        return assigned(function)

    def run(*sources: Array) -> Array:
        result = function(*(flushed(s) for s in sources)) if ftz else function(*sources)
        if ftz:
            result = flushed(result)
        return saturated(result) if sat else result

    return assigned(run)


def saturated(x: Array) -> Array:
    """Clamp to 0 … 1 (``.sat``); NaN and negative zero become zero."""
    clamped: Array = np.where(np.isnan(x), 0, np.clip(x, 0, 1)) + x.dtype.type(0)
    return clamped


def _arithmetic(at: Site, function: Any) -> Operation:
    """A ufunc that is correctly rounded in its own precision."""
    mode, name = _direction(at), at.instruction.name
    if mode and at.type == "f64":
        return at.elementwise(assigned(double(name, mode, function)), "f64")
    if mode and name in ("add", "sub"):

        def add(a: Array, b: Array) -> Array:
            x, y = a.astype(np.float64), b.astype(np.float64)
            y = -y if name == "sub" else y
            return rounded(signed_zero(odd_sum(x, y), x, y, mode), mode)

        return at.elementwise(finished(at, add), "f32")
    if mode and at.type == "f32":
        return at.elementwise(
            finished(at, lambda *x: rounded(function(*(v.astype(np.float64) for v in x)), mode)), "f32"
        )
    if at.has("ftz") or at.has("sat"):
        return at.elementwise(finished(at, function), at.type)
    return at.elementwise(function, at.type)


@instruction("add", "sub", "mul", pipe="fma", types=FLOAT)
def add_sub_mul(at: Site) -> Operation:
    """add, sub, mul."""
    return _arithmetic(at, {"add": np.add, "sub": np.subtract, "mul": np.multiply}[at.instruction.name])


@instruction("fma", "mad", pipe="fma", types=FLOAT)
def fma(at: Site) -> Operation:
    """The fma instruction (and mad, its older name)."""
    if at.type == "f64":
        return at.elementwise(assigned(double("fma", _direction(at), lambda a, b, c: a * b + c)), "f64")
    mode = _direction(at)

    def function(a: Array, b: Array, c: Array) -> Array:
        exact = a.astype(np.float64)
        exact *= b
        if mode:
            addend = c.astype(np.float64)
            return rounded(signed_zero(odd_sum(exact, addend), exact, addend, mode), mode)
        exact += c
        return exact.astype(np.float32)

    return at.elementwise(finished(at, function), "f32")


@instruction("div", pipe="fma", types=FLOAT)
def div(at: Site) -> Operation:
    """div, ``.full`` and ``.approx`` too."""
    return _arithmetic(at, np.divide)


def _upper_words(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The ``.approx.ftz.f64`` forms: of the upper 32 bits of the operand, to the upper 32 bits of the result."""

    def cut(a: Array) -> Array:
        upper: Array = (a.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        return upper

    return lambda a: flushed(cut(function(flushed(cut(a)))))


@instruction("rcp", "sqrt", pipe="xu", types=FLOAT)
def rcp_sqrt(at: Site) -> Operation:
    """rcp, sqrt."""
    if at.type == "f64" and at.has("approx"):
        return at.elementwise(assigned(_upper_words(np.reciprocal)), "f64")
    return _arithmetic(at, np.reciprocal if at.instruction.name == "rcp" else np.sqrt)


def _in_double(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda a: function(a.astype(np.float64)).astype(np.float32)


_APPROXIMATIONS: dict[str, Callable[[Array], Array]] = {
    "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh,
}  # fmt: skip


@instruction("rsqrt", "sin", "cos", "ex2", "lg2", "tanh", pipe="xu", types=FLOAT)
def approximations(at: Site) -> Operation:
    """rsqrt, sin, cos, ex2, lg2, tanh: rounded once from double precision."""
    function = _APPROXIMATIONS[at.instruction.name]
    if at.type == "f64" and at.has("ftz"):
        return at.elementwise(assigned(_upper_words(function)), "f64")
    return at.elementwise(finished(at, _in_double(function) if at.type == "f32" else function), at.type)


@instruction("abs", "neg", pipe="alu", types=FLOAT)
def abs_neg(at: Site) -> Operation:
    """abs, neg."""
    return _arithmetic(at, np.abs if at.instruction.name == "abs" else np.negative)


@instruction("min", "max", pipe="alu", types=FLOAT)
def min_max(at: Site) -> Operation:
    """min, max: the other operand where one is NaN, or NaN with ``.NaN``; ``.xorsign.abs``."""
    is_min, strict = at.instruction.name == "min", at.has("NaN")
    plain: Any = np.fmin if is_min else np.fmax
    if strict:
        plain = np.minimum if is_min else np.maximum
    if at.has("xorsign"):

        def signed(a: Array, b: Array) -> Array:
            sign = np.signbit(a) ^ np.signbit(b)
            result: Array = np.copysign(plain(np.abs(a), np.abs(b)), np.where(sign, -1, 1).astype(a.dtype))
            return result

        return at.elementwise(finished(at, signed), at.type)
    if len(at.operands) == 4:
        return at.elementwise(finished(at, lambda a, b, c: plain(plain(a, b), c)), at.type)
    return _arithmetic(at, plain)


@instruction("copysign", pipe="alu")
def copysign(at: Site) -> Operation:
    """copysign: the sign of a on b."""
    return at.elementwise(assigned(lambda a, b: np.copysign(b, a)), at.type)


@instruction("testp", pipe="alu")
def testp(at: Site) -> Operation:
    """testp: finite, infinite, number, notanumber, normal, subnormal."""
    tiny = np.finfo(np.float32 if at.type == "f32" else np.float64).tiny
    tests: dict[str, Callable[[Array], Array]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & ((np.abs(a) >= tiny) | (a == 0)),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    assert SIZES[at.type] >= 4
    return at.elementwise(assigned(tests[at.modifiers[0]]), "pred", at.type)
