"""Rounding of exact results, in every mode of PTX (PTX ISA, "Rounding Modifiers").

NumPy rounds to nearest. For results narrower than double precision the sum is first rounded to odd in double: it keeps
in its last bit whether anything was cut, so that a second rounding, in any mode, is right. Double precision itself is
rounded from exact fractions, one value after another: slow, and rare in kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from flashcore_drv.emulator.selection import Array


def odd_sum(x: Array, y: Array) -> Array:
    """Add doubles; the sum is rounded to odd."""
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)
    inexact = (error != 0) & np.isfinite(total) & (total.view(np.int64) & 1 == 0)
    if not inexact.any():
        return total
    result: Array = np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return result


def odd_single(values: Array) -> Array:
    """Doubles to single precision, rounded to odd: what a second rounding to bf16 needs."""
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    inexact = (back != values) & np.isfinite(values)
    cut = bits - (inexact & (np.abs(back) > np.abs(values)))
    result: Array = (cut | inexact).astype(np.uint32).view(np.float32)
    return result


def signed_zero(total: Array, x: Array, y: Array, mode: str | None) -> Array:
    """A sum that is exactly zero is negative when it is rounded down, except that of two positive zeros."""
    if mode != "rm":
        return total
    negative = np.signbit(x) | np.signbit(y)
    result: Array = np.where((total == 0) & negative, np.copysign(total, -1), total)
    return result


def _rounded(exact: Fraction, mode: str | None) -> float:
    """A fraction to double precision."""
    try:
        nearest = float(exact)
    except OverflowError:
        nearest = math.inf if exact > 0 else -math.inf
    return _directed(nearest, nearest > exact, nearest < exact, mode)


def _directed(nearest: float, above: bool, below: bool, mode: str | None) -> float:
    """The double that the mode wants, from the nearest one, which lies above or below the exact value."""
    if (mode == "rm" and above) or (mode == "rz" and above and nearest > 0):
        return float(np.nextafter(nearest, -np.inf))
    if (mode == "rp" and below) or (mode == "rz" and below and nearest < 0):
        return float(np.nextafter(nearest, np.inf))
    return nearest


_EXACT: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "rcp": lambda a: 1 / a,
    "fma": lambda a, b, c: a * b + c,
}


def double(name: str, mode: str | None, usual: Callable[..., Array]) -> Callable[..., Array]:
    """An operation in double precision, rounded once in a mode; `usual` gives NaN, infinity and exact zero."""

    def one(result: float, *operands: float) -> float:
        if name == "fma" and math.isinf(operands[2]) and math.isfinite(operands[0]) and math.isfinite(operands[1]):
            return operands[2]  # the product may have overflowed in `usual`
        if not all(map(math.isfinite, operands)) or math.isnan(result):
            return result
        if name == "sqrt":
            if result == 0:
                return result
            difference = Fraction(result) * Fraction(result) - Fraction(operands[0])
            return _directed(result, difference > 0, difference < 0, mode)
        if name in ("div", "rcp") and operands[-1] == 0:
            return result
        exact = _EXACT[name](*map(Fraction, operands))
        if exact:
            rounded = abs(_rounded(exact, mode))
            return rounded if exact > 0 else -rounded
        if mode != "rm" or name not in ("add", "sub", "fma"):
            return result
        x, y = (operands[0] * operands[1], operands[2]) if name == "fma" else operands
        y = -y if name == "sub" else y
        return -0.0 if math.copysign(1, x) < 0 or math.copysign(1, y) < 0 else 0.0

    def run(*sources: Array) -> Array:
        results = usual(*sources)
        rows = zip(results.tolist(), *(s.tolist() for s in sources))
        return np.array([one(*row) for row in rows], np.float64)

    return run
