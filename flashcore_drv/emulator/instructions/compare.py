"""Comparison and selection (PTX ISA, "Comparison and Selection Instructions", and those of half precision)."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashcore_drv.emulator.instructions.floating import flushed
from flashcore_drv.emulator.instructions.half import from_half
from flashcore_drv.emulator.instructions.table import HALF, Site, instruction
from flashcore_drv.emulator.parser import SIZES, Pair, Sink
from flashcore_drv.emulator.registers import Operation, assigned, elementwise
from flashcore_drv.emulator.selection import Array, Selection

_BASIC: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_COMBINE: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, is_float: bool) -> Any:
    """What compares arrays; the ``…u`` forms of floats are true, the others false, where an operand is NaN."""
    if not is_float:
        return _BASIC[name]
    match name:
        case "ne":
            return lambda a, b: (a < b) | (a > b)
        case "neu":
            return np.not_equal
        case "equ":
            return lambda a, b: ~((a < b) | (a > b))
        case "ltu" | "leu" | "gtu" | "geu":
            opposite = _BASIC[{"ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}[name]]
            return lambda a, b: ~opposite(a, b)
        case "num":
            return lambda a, b: ~(np.isnan(a) | np.isnan(b))
        case "nan":
            return lambda a, b: np.isnan(a) | np.isnan(b)
        case _:
            return _BASIC[name]


def _compared(at: Site) -> tuple[Any, list[Array]]:
    """The comparison of an instruction and its two sources."""
    kind = at.type
    compare = comparison(at.modifiers[0], kind[0] == "f" or kind in HALF)
    sources = [at.read(i, kind) for i in (1, 2)]
    if kind in HALF:
        single = kind.removesuffix("x2")
        return (lambda a, b: compare(from_half(a, single), from_half(b, single))), sources
    if at.has("ftz"):
        return (lambda a, b: compare(flushed(a), flushed(b))), sources
    return compare, sources


@instruction("setp", pipe="alu")
def setp(at: Site) -> Operation:
    """setp: compares, combines with a predicate, writes p (and the combination with the opposite to q)."""
    compare, sources = _compared(at)
    combine = next((m for m in at.modifiers[1:] if m in _COMBINE), None)
    first = at.operands[0]
    if at.type in ("f16x2", "bf16x2"):
        return _setp_packed(at, compare, sources)
    if combine is None and (not isinstance(first, Pair) or isinstance(first.second, Sink)):
        function = compare if isinstance(compare, np.ufunc) else assigned(compare)
        return elementwise(function, at.target(0, "pred"), *sources)
    p = at.target(first.first if isinstance(first, Pair) else first, "pred")
    q = at.target(first.second, "pred") if isinstance(first, Pair) else None
    extra, negated = at.predicate(3) if combine else (None, False)
    merge = _COMBINE[combine or "and"]

    def run(selection: Selection) -> None:
        result = compare(*(selection.pick(s) for s in sources))
        other = ~result
        if extra is not None:
            c = selection.pick(extra) ^ negated
            result, other = merge(result, c), merge(other, c)
        selection.put(p, result)
        if q is not None:
            selection.put(q, other)

    return run


def _setp_packed(at: Site, compare: Any, sources: list[Array]) -> Operation:
    """A setp of packed halves: p from the low, q from the high ones."""
    first = at.operands[0]
    if not isinstance(first, Pair) or any(m in _COMBINE for m in at.modifiers):
        raise ValueError("setp of packed halves needs p|q and no combination")
    p, q = at.target(first.first, "pred"), at.target(first.second, "pred")

    def run(selection: Selection) -> None:
        result = compare(*(selection.pick(s) for s in sources)).reshape(-1, 2)
        selection.put(p, result[:, 0])
        selection.put(q, result[:, 1])

    return run


@instruction("set", pipe="alu")
def set_(at: Site) -> Operation:
    """set: all ones or 1.0 where the comparison holds."""
    compare, sources = _compared(at)
    if any(m in _COMBINE for m in at.modifiers[1:]):
        raise ValueError("set with a combination")
    to, kind = at.instruction.types[0], at.type
    if kind in ("f16x2", "bf16x2"):
        ones: Any = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(to, 0xFFFF)
        packed = assigned(
            lambda a, b: np.where(compare(a, b), ones, 0).astype(np.uint16).reshape(-1, 2).view(np.uint32)[:, 0]
        )
        return elementwise(packed, at.target(0, "b32"), *sources)
    true: Any = {"f32": 1.0, "f16": 0x3C00, "bf16": 0x3F80}.get(to, (1 << 8 * SIZES[to]) - 1)
    dtype = np.float32 if to == "f32" else f"u{SIZES[to]}"
    target = at.target(0, to if to == "f32" else f"b{8 * SIZES[to]}")
    return elementwise(assigned(lambda a, b: np.where(compare(a, b), np.array(true, dtype), 0)), target, *sources)


def _where(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def _select(a: Array, b: Array, c: Array, out: Array) -> None:
    np.copyto(out, np.where(c, a, b))  # out may be one of them


@instruction("selp", pipe="alu")
def selp(at: Site) -> Operation:
    """selp: a if the predicate holds, else b."""
    bits = f"b{8 * SIZES[at.type]}"
    condition, negated = at.predicate(3)
    a, b = (1, 2) if not negated else (2, 1)
    sources = [at.read(i, at.type if at.type in ("f32", "f64") else bits) for i in (a, b)]
    return elementwise(_select, at.target(0, at.type if at.type in ("f32", "f64") else bits), *sources, condition)


@instruction("slct", pipe="alu")
def slct(at: Site) -> Operation:
    """slct: a if c >= 0, else b."""
    to, by = at.instruction.types
    ftz = at.has("ftz")
    return at.elementwise(assigned(lambda a, b, c: _where((flushed(c) if ftz else c) >= 0, a, b)), to, to, to, by)
