"""Integer arithmetic, logic and shifts (PTX ISA, "Integer Arithmetic", "Extended-Precision", "Logic and Shift")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashcore_drv.emulator.instructions.table import INTEGER, PREDICATE, Site, instruction
from flashcore_drv.emulator.parser import SIZES, Immediate
from flashcore_drv.emulator.registers import DTYPES, Operation, assigned, copy, elementwise
from flashcore_drv.emulator.selection import Array, Selection

WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


@instruction("add", "sub", pipe="alu", types=INTEGER)
def add_sub(at: Site) -> Operation:
    """add, sub: wraps around; ``.sat`` clamps an s32; ``.cc`` writes the carry (borrow)."""
    is_add, kind = at.instruction.name == "add", at.type
    if at.has("cc"):
        return _carry(at, is_add, with_carry=False)
    if at.has("sat"):
        limits = np.iinfo(np.int32)

        def clamped(a: Array, b: Array) -> Array:
            wide = a.astype(np.int64) + b if is_add else a.astype(np.int64) - b
            return np.clip(wide, limits.min, limits.max)

        return at.elementwise(assigned(clamped), kind)
    return at.elementwise(np.add if is_add else np.subtract, kind)


@instruction("addc", "subc", pipe="alu")
def add_with_carry(at: Site) -> Operation:
    """addc, subc: with the carry (borrow) of the last ``.cc`` instruction."""
    return _carry(at, at.instruction.name == "addc", with_carry=True)


def _carry(at: Site, is_add: bool, with_carry: bool) -> Operation:
    machine = at.machine
    carry = machine.carry
    unsigned = f"u{8 * SIZES[at.type]}"
    a, b, target = at.read(1, unsigned), at.read(2, unsigned), at.target(0, unsigned)
    write = at.has("cc")

    def run(selection: Selection) -> None:
        x, y = selection.pick(a), selection.pick(b)
        c = selection.pick(carry).astype(x.dtype) if with_carry else x.dtype.type(0)
        if is_add:
            partial = x + y
            total = partial + c
            out = (partial < x) | (total < partial)
        else:
            partial = x - y
            total = partial - c
            out = (x < y) | (partial < c)
        selection.put(target, total)
        if write:
            selection.put(carry, out)

    return run


def _high(kind: str) -> Callable[[Array, Array], Array]:
    if kind in ("u64", "s64"):

        def high64(a: Array, b: Array) -> Array:
            x, y = a.view(np.uint64), b.view(np.uint64)
            low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
            x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
            middle = x1 * y0 + (x0 * y0 >> shift)
            high = x1 * y1 + (middle >> shift) + ((middle & low) + x0 * y1 >> shift)
            if kind == "s64":
                high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
            result: Array = high.view(a.dtype)
            return result

        return high64
    wide = DTYPES[WIDER[kind]]
    return lambda a, b: (a.astype(wide) * b) >> wide.type(8 * SIZES[kind])


@instruction("mul", pipe="fma", types=INTEGER)
def mul(at: Site) -> Operation:
    """mul.lo, mul.hi, mul.wide."""
    kind = at.type
    if at.has("wide"):
        wide = DTYPES[WIDER[kind]]
        product = lambda a, b, out: np.multiply(a, b, out=out, dtype=wide)  # noqa: E731
        return at.elementwise(product, WIDER[kind], kind, kind)
    if at.has("hi"):
        return at.elementwise(assigned(_high(kind)), kind)
    return at.elementwise(np.multiply, kind)


@instruction("mad", pipe="fma", types=INTEGER)
def mad(at: Site) -> Operation:
    """mad.lo, mad.hi, mad.wide: a · b + c."""
    kind = at.type
    if at.has("cc") or at.has("sat"):
        raise ValueError(".cc or .sat")
    if at.has("wide"):
        wide = DTYPES[WIDER[kind]]
        function = assigned(lambda a, b, c: np.multiply(a, b, dtype=wide) + c)
        return at.elementwise(function, WIDER[kind], kind, kind, WIDER[kind])
    if at.has("hi"):
        high = _high(kind)
        return at.elementwise(assigned(lambda a, b, c: high(a, b).astype(c.dtype) + c), kind)
    return at.elementwise(assigned(lambda a, b, c: a * b + c), kind)


@instruction("mul24", "mad24", pipe="fma")
def mul24(at: Site) -> Operation:
    """mul24, mad24: products of the low 24 bits; ``.lo`` keeps bits 0-31, ``.hi`` bits 16-47."""
    kind, shift = at.type, 40
    down = 16 if at.has("hi") else 0

    def function(a: Array, b: Array, c: Array | int = 0) -> Array:
        x, y = (
            v.astype(np.int64) << shift >> shift if kind == "s32" else v.astype(np.int64) & 0xFFFFFF for v in (a, b)
        )
        return (x * y >> down) + c

    return at.elementwise(assigned(function), kind)


@instruction("sad", pipe="alu")
def sad(at: Site) -> Operation:
    """sad: c + |a - b|."""
    return at.elementwise(assigned(lambda a, b, c: c + np.where(a < b, b - a, a - b)), at.type)


@instruction("div", pipe="alu", types=INTEGER)
def div(at: Site) -> Operation:
    """div: rounds towards zero."""
    return at.elementwise(assigned(lambda a, b: (a - np.fmod(a, b)) // b), at.type)


@instruction("rem", pipe="alu")
def rem(at: Site) -> Operation:
    """rem: has the sign of the dividend."""
    return at.elementwise(np.fmod, at.type)


@instruction("abs", "neg", pipe="alu", types=INTEGER)
def abs_neg(at: Site) -> Operation:
    """abs, neg."""
    return at.elementwise(np.abs if at.instruction.name == "abs" else np.negative, at.type)


@instruction("min", "max", pipe="alu", types=INTEGER)
def min_max(at: Site) -> Operation:
    """min, max, ``.relu``; the packed 16-bit types compare each half."""
    function = np.minimum if at.instruction.name == "min" else np.maximum
    if at.has("relu"):
        return at.elementwise(assigned(lambda a, b: np.maximum(function(a, b), 0)), at.type)
    return at.elementwise(function, at.type)


@instruction("and", "or", "xor", pipe="alu", types=INTEGER)
def logic(at: Site) -> Operation:
    """and, or, xor of bits."""
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[at.instruction.name]
    return at.elementwise(function, at.type)


@instruction("and", "or", "xor", "not", pipe="alu", types=PREDICATE)
def logic_of_predicates(at: Site) -> Operation:
    """and, or, xor, not of predicates."""
    name = at.instruction.name
    function: Any = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}[name]
    return at.elementwise(function, "pred")


@instruction("not", pipe="alu", types=INTEGER)
def not_(at: Site) -> Operation:
    """The complement of bits."""
    return at.elementwise(np.invert, at.type)


@instruction("cnot", pipe="alu")
def cnot(at: Site) -> Operation:
    """cnot: 1 if zero, else 0."""
    return at.elementwise(assigned(lambda a: a == 0), at.type)


@instruction("lop3", pipe="alu")
def lop3(at: Site) -> Operation:
    """lop3: any function of three bits, given by its truth table."""
    table = at.immediate(4)

    def function(a: Array, b: Array, c: Array) -> Array:
        result = np.zeros_like(a)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result

    return elementwise(assigned(function), at.target(0, "b32"), *(at.read(i, "b32") for i in (1, 2, 3)))


@instruction("shl", "shr", pipe="alu")
def shift(at: Site) -> Operation:
    """shl, shr: shifts past the width give 0, or the sign."""
    kind, width = at.type, 8 * SIZES[at.type]
    dtype = DTYPES[kind]
    function: Any = np.left_shift if at.instruction.name == "shl" else np.right_shift
    amount = at.operands[2]
    if isinstance(amount, Immediate) and 0 <= amount.value < width:
        by = np.broadcast_to(np.asarray(amount.value, dtype), at.machine.layout.n)
        return elementwise(function, at.target(0, kind), at.read(1, kind), by)
    signed = dtype.kind == "i" and function is np.right_shift

    def clamped(a: Array, b: Array) -> Array:
        shifted: Array = function(a, np.minimum(b, width - 1).astype(dtype))
        return shifted if signed else np.where(b < width, shifted, dtype.type(0))

    return elementwise(assigned(clamped), at.target(0, kind), at.read(1, kind), at.read(2, "u32"))


@instruction("shf", pipe="alu")
def funnel_shift(at: Site) -> Operation:
    """shf.l, shf.r: shifts the 64 bits [hi, lo]; ``.wrap`` or ``.clamp`` of the amount."""
    wrap, left = at.has("wrap"), at.has("l")

    def function(low: Array, high: Array, amount: Array) -> Array:
        by = (amount & 31 if wrap else np.minimum(amount, 32)).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        result: Array = both << by >> np.uint64(32) if left else both >> by
        return result

    return at.elementwise(assigned(function), "b32", "b32", "b32", "u32")


def _field_operand(value: Array, width: int) -> Array:
    """A position or length, of which PTX defines 0 to 255: GPUs look at 8 bits for a 32-bit field, at all for 64."""
    return value & 255 if width == 32 else value


@instruction("bfe", pipe="alu")
def bfe(at: Site) -> Operation:
    """bfe: extracts a field, sign-extended for signed types."""
    kind, width = at.type, 8 * SIZES[at.type]
    signed = kind[0] == "s"

    def function(a: Array, b: Array, c: Array) -> Array:
        position, length = (np.minimum(_field_operand(v, width), width).astype(np.int64) for v in (b, c))
        wide = a.astype(np.int64 if signed or width < 64 else np.uint64)
        shifted = np.where(position < 64, wide >> np.minimum(position, 63).astype(wide.dtype), -1 if signed else 0)
        if signed:
            shifted = np.where(position >= width, np.where(a < 0, -1, 0), shifted)
            end = np.minimum(length, width - np.minimum(position, width))
            up = np.clip(64 - end, 0, 63)
            field = shifted.astype(np.int64) << up >> up
            return np.where(length == 0, 0, field)
        mask = np.where(length >= 64, -1, (1 << np.minimum(length, 63)) - 1)
        return np.where(position >= width, 0, shifted.astype(np.uint64) & mask.astype(np.uint64))

    return at.elementwise(assigned(function), kind, kind, "u32", "u32")


@instruction("bfi", pipe="alu")
def bfi(at: Site) -> Operation:
    """bfi: inserts the low bits of a into b."""
    kind, width = at.type, 8 * SIZES[at.type]

    def function(a: Array, b: Array, c: Array, d: Array) -> Array:
        position = _field_operand(c, width).astype(np.uint64)
        length = np.minimum(_field_operand(d, width), width).astype(np.uint64)
        one, top = np.uint64(1), np.uint64(63)
        ones = np.where(length >= 64, ~np.uint64(0), (one << np.minimum(length, top)) - one)
        by = np.minimum(position, top)
        mask = np.where(position < width, ones << by, np.uint64(0))
        result: Array = (b & ~mask) | (np.where(position < width, a.astype(np.uint64) << by, np.uint64(0)) & mask)
        return result

    return at.elementwise(assigned(function), kind, kind, kind, "u32", "u32")


def _highest(a: Array) -> Array:
    """Bit number of the highest one of unsigned values, -1 for 0."""
    wide = a.astype(np.uint64)
    result: Array = np.full(a.shape, -1, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        large = wide >> np.uint64(step) != 0
        wide = np.where(large, wide >> np.uint64(step), wide)
        result += np.where(large, step, 0)
    result += wide != 0
    return result


@instruction("clz", pipe="alu")
def clz(at: Site) -> Operation:
    """clz: leading zeros."""
    top = 8 * SIZES[at.type] - 1
    return at.elementwise(assigned(lambda a: top - _highest(a)), "u32", at.type)


@instruction("bfind", pipe="alu")
def bfind(at: Site) -> Operation:
    """bfind: the highest bit that differs from the sign, or with ``.shiftamt`` its distance from the top."""
    kind, top = at.type, 8 * SIZES[at.type] - 1
    shift_amount = at.has("shiftamt")

    def function(a: Array) -> Array:
        bits = np.where(a < 0, ~a, a).astype(f"u{a.itemsize}")
        found = _highest(bits)
        return np.where(found < 0, -1, top - found) if shift_amount else found

    return at.elementwise(assigned(function), "u32", kind)


@instruction("popc", pipe="alu")
def popc(at: Site) -> Operation:
    """popc: number of ones."""
    return at.elementwise(assigned(count_ones), "u32", at.type)


def count_ones(a: Array) -> Array:
    """Ones in each unsigned value."""
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(a.size, -1)
    result: Array = np.unpackbits(octets, axis=1).sum(1)
    return result


@instruction("brev", pipe="alu")
def brev(at: Site) -> Operation:
    """brev: bits in reverse order."""

    def function(a: Array) -> Array:
        octets = np.ascontiguousarray(a).view(np.uint8).reshape(a.size, -1)
        bits = np.unpackbits(octets, axis=1, bitorder="little")[:, ::-1]
        return np.packbits(bits, axis=1, bitorder="little").view(a.dtype).reshape(-1)

    return at.elementwise(assigned(function), at.type)


@instruction("fns", pipe="alu")
def fns(at: Site) -> Operation:
    """fns: position of the n-th one from a base bit, upwards or downwards."""

    def one(mask: int, base: int, offset: int) -> int:
        if offset == 0:
            return base if mask >> base & 1 else 0xFFFFFFFF
        step, left = (1, offset) if offset > 0 else (-1, -offset)
        position = base
        while 0 <= position < 32:
            left -= mask >> position & 1
            if left == 0:
                return position
            position += step
        return 0xFFFFFFFF

    function = assigned(lambda m, b, o: np.array([one(int(x), int(y), int(z)) for x, y, z in zip(m, b, o)], np.uint32))
    return at.elementwise(function, "b32", "b32", "b32", "s32")


_PRMT_MODES = {
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543), "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333), "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210), "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}  # fmt: skip


@instruction("prmt", pipe="alu")
def prmt(at: Site) -> Operation:
    """prmt: picks four of the eight bytes of a and b; bit 3 of a selector replicates the byte's sign.

    The modes (``.f4e`` and so on) look the selectors up by the low two bits of c.
    """
    selectors = next((np.array(_PRMT_MODES[m], np.uint32) for m in at.modifiers if m in _PRMT_MODES), None)

    def function(a: Array, b: Array, c: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a
        if selectors is not None:
            c = selectors[c & 3]
        result = np.zeros(a.shape, np.uint32)
        for i in range(4):
            selector = c >> np.uint32(4 * i) & np.uint32(15)
            octet = both >> (selector & 7).astype(np.uint64) * np.uint64(8) & np.uint64(0xFF)
            sign = np.where(octet >> np.uint64(7) != 0, 0xFF, 0)
            value = np.where(selector & 8, sign, octet).astype(np.uint32)
            result |= value << np.uint32(8 * i)
        return result

    return at.elementwise(assigned(function), "b32")


@instruction("szext", pipe="alu")
def szext(at: Site) -> Operation:
    """szext: sign- or zero-extends the low b bits; ``.clamp`` or ``.wrap`` of b."""
    signed, wrap = at.type == "s32", at.has("wrap")

    def function(a: Array, b: Array) -> Array:
        length = (b & 31 if wrap else np.minimum(b, 32)).astype(np.int64)
        wide, up = a.astype(np.int64), 64 - np.maximum(length, 1)
        field = wide << up >> up if signed else wide & (1 << length) - 1
        return np.where(length == 0, 0, field)

    return at.elementwise(assigned(function), at.type, at.type, "u32")


@instruction("bmsk", pipe="alu")
def bmsk(at: Site) -> Operation:
    """bmsk: b ones from bit a on; ``.clamp`` or ``.wrap`` of both."""
    wrap = at.has("wrap")

    def function(a: Array, b: Array) -> Array:
        first, count = ((v & 31 if wrap else np.minimum(v, 32)).astype(np.int64) for v in (a, b))
        return ((1 << count) - 1 << first) & 0xFFFFFFFF

    return at.elementwise(assigned(function), "b32", "u32", "u32")


@instruction("dp4a", "dp2a", pipe="fma")
def dot_product(at: Site) -> Operation:
    """dp4a, dp2a: dot product of bytes with bytes, or of two 16-bit values with two bytes, plus c."""
    a_type, b_type = at.instruction.types
    is_dp4a, high = at.instruction.name == "dp4a", at.has("hi")
    a_dtype = ("i" if a_type[0] == "s" else "u") + ("1" if is_dp4a else "2")
    b_dtype = ("i" if b_type[0] == "s" else "u") + "1"

    def function(a: Array, b: Array, c: Array) -> Array:
        x = np.ascontiguousarray(a).view(a_dtype).reshape(a.size, -1).astype(np.int64)
        y = np.ascontiguousarray(b).view(b_dtype).reshape(a.size, 4).astype(np.int64)
        if not is_dp4a:
            y = y[:, 2:] if high else y[:, :2]
        result: Array = (x * y).sum(1) + c
        return result

    signed = "s32" if "s" in a_type + b_type else "u32"
    return at.elementwise(assigned(function), signed, "b32", "b32", signed)


@instruction("mov", pipe="alu", types=PREDICATE)
def move_predicate(at: Site) -> Operation:
    """A mov of a predicate."""
    return at.elementwise(copy, "pred")
