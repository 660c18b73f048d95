"""Matrix fragments (PTX ISA, "Warp-Level Matrix Instructions": ldmatrix, stmatrix, movmatrix, mma.sync, wmma).

Products of the input types are exact; they and the accumulator are summed in double precision and rounded once to the
type of the result (a GPU sums in an order and width of its own). A wmma fragment is laid out as the fragments of the
m16n8 instructions beside and below each other; registers beyond those (f16 inputs have more) repeat them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from flashcore_drv.emulator.instructions.convert import FP8
from flashcore_drv.emulator.instructions.half import to_half
from flashcore_drv.emulator.instructions.table import Site, instruction
from flashcore_drv.emulator.parser import Vector
from flashcore_drv.emulator.registers import UNITS, Operation
from flashcore_drv.emulator.selection import Array, Selection

_FP8_DOUBLE = {name: table.astype(np.float64) for name, table in FP8.items()}

ELEMENT_BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "s32": 4, "s8": 1, "u8": 1, "e4m3": 1, "e5m2": 1, "f64": 8}


def values(words: Array, kind: str) -> Array:
    """The elements (float64) of a contiguous array of words, along its last axis."""
    narrow: Array
    if kind in _FP8_DOUBLE:
        return _FP8_DOUBLE[kind][words.view(np.uint8)]
    if kind == "f16":
        narrow = words.view(np.float16)
    elif kind == "bf16":
        narrow = (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif kind == "tf32":
        narrow = (words & np.uint32(0xFFFFE000)).view(np.float32)
    else:
        narrow = words.view(np.int8 if kind == "s8" else np.uint8)
    return narrow.astype(np.float64)


def _shape(at: Site) -> tuple[int, int, int]:
    found = next(m for m in (re.fullmatch(r"m(\d+)n(\d+)k(\d+)", part) for part in at.modifiers) if m)
    return int(found[1]), int(found[2]), int(found[3])


# ldmatrix, stmatrix, movmatrix.


def _count(at: Site) -> int:
    if not at.has("m8n8") or at.type not in ("b16",):
        raise ValueError("only .m8n8 and .b16")
    return int(next(m for m in at.modifiers if m in ("x1", "x2", "x4"))[1])


def _rows(at: Site, selection: Selection, address: Callable[[Selection], Array], count: int) -> Array:
    """The row addresses that the first 8 · count lanes of each warp give, warp after warp."""
    at.machine.converge(selection)
    everything = address(selection)
    if count == 4:
        return everything
    return everything.reshape(-1, 32)[:, : 8 * count].reshape(-1)


def _count_phases(at: Site, address: Array, rows: int = 8) -> None:
    machine = at.machine
    if machine.checks.bank_conflicts:
        machine.traffic.phases(np.arange(address.size) // rows, address, 16, at.pc)
        machine.traffic.accesses[at.pc] += max(1, address.size // 32)


@instruction("ldmatrix", pipe="lsu")
def ldmatrix(at: Site) -> Operation:
    """ldmatrix.m8n8 .x1 .x2 .x4, ``.trans``: lane 4r + c gets the pair 2c, 2c + 1 of row r of each matrix."""
    count, transposed = _count(at), at.has("trans")
    targets, address = at.targets(0, "b32"), at.address(1)
    space, spaces, pc = at.space(at.operands[1]), at.machine.spaces, at.pc

    def run(selection: Selection) -> None:
        where = _rows(at, selection, address, count)
        units = spaces.load(space, selection.rows(8 * count), where, 16, pc)
        _count_phases(at, where)
        if transposed:
            halves = units.view(np.uint16).reshape(-1, count, 8, 8).transpose(1, 0, 3, 2)
            words = np.ascontiguousarray(halves).view(np.uint32).reshape(count, -1)
        else:
            words = units.view(np.uint32).reshape(-1, count, 32).transpose(1, 0, 2).reshape(count, -1)
        for target, word in zip(targets, words):
            selection.put(target, word)

    return run


@instruction("stmatrix", pipe="lsu")
def stmatrix(at: Site) -> Operation:
    """stmatrix.m8n8 .x1 .x2 .x4, ``.trans``."""
    count, transposed = _count(at), at.has("trans")
    sources, address = at.sources(1, "b32"), at.address(0)
    space, spaces, pc = at.space(at.operands[0]), at.machine.spaces, at.pc

    def run(selection: Selection) -> None:
        where = _rows(at, selection, address, count)
        words = np.stack([selection.pick(s).reshape(-1, 32) for s in sources], 1)
        if transposed:
            halves = words.view(np.uint16).reshape(-1, count, 8, 8).swapaxes(2, 3)
            words = np.ascontiguousarray(halves)
        units = np.ascontiguousarray(words).reshape(-1).view(UNITS[16])
        _count_phases(at, where)
        spaces.store(space, selection.rows(8 * count), where, units, pc)

    return run


@instruction("movmatrix", pipe="lsu")
def movmatrix(at: Site) -> Operation:
    """movmatrix.sync.aligned.m8n8.trans.b16."""
    target, source = at.target(0, "b32"), at.read(1, "b32")

    def run(selection: Selection) -> None:
        at.machine.converge(selection)
        halves = np.ascontiguousarray(selection.pick(source)).view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
        selection.put(target, np.ascontiguousarray(halves).view(np.uint32).reshape(-1))

    return run


# Fragments of m16n8 instructions.


class Fragment:
    """A [rows, columns] operand of m16n8 instructions in the registers of each warp.

    The matrix is cut into pieces of 8 rows by 4 words (of 1, 2 or 4 elements along a row); word w of row r of a piece
    is in lane 4r + w. ``order`` lists the pieces (row piece, column piece), one a register.
    """

    def __init__(self, registers: list[Array], rows: int, words: int, order: list[tuple[int, int]]) -> None:
        if len(registers) < len(order):
            raise ValueError(f"{len(registers)} registers for {len(order)} pieces")
        self.registers, self.rows, self.words, self.order = registers, rows, words, order

    def read(self, selection: Selection) -> Array:
        """uint32 [warps, rows, words]."""
        matrix = np.empty((selection.n // 32, self.rows, self.words), np.uint32)
        for register, (i, j) in zip(self.registers, self.order):
            matrix[:, 8 * i : 8 * i + 8, 4 * j : 4 * j + 4] = selection.pick(register).reshape(-1, 8, 4)
        return matrix

    def write(self, selection: Selection, matrix: Array) -> None:
        """From uint32 [warps, rows, words]."""
        for n, register in enumerate(self.registers):
            i, j = self.order[n % len(self.order)]
            selection.put(register, matrix[:, 8 * i : 8 * i + 8, 4 * j : 4 * j + 4].reshape(-1))


def input_fragment(registers: list[Array], rows: int, columns: int, kind: str, is_a: bool) -> Fragment:
    """A (rows m, columns k) or the transposed B (rows n, columns k)."""
    words = columns * ELEMENT_BYTES[kind] // 4
    pieces = words // 4
    if is_a and rows % 16 == 0:
        order = [(2 * m + half, k) for m in range(rows // 16) for k in range(pieces) for half in (0, 1)]
    else:
        order = [(n, k) for n in range(rows // 8) for k in range(pieces)]
    return Fragment(registers, rows, words, order)


class Accumulator:
    """C or D, [rows, columns], in the registers of each warp; element 2c + e of row r of a piece is in lane 4r + c."""

    def __init__(self, registers: list[Array], rows: int, columns: int, kind: str) -> None:
        self.kind, self.rows, self.columns = kind, rows, columns
        halves = min(rows // 8, 2)
        self.pieces = [
            (2 * m + half if halves == 2 else m, n)
            for m in range(max(rows // 16, 1))
            for n in range(columns // 8)
            for half in range(halves)
        ]
        self.registers = registers
        if len(registers) != len(self.pieces) * (1 if kind == "f16" else 2):
            raise ValueError(f"{len(registers)} registers for a {rows} x {columns} {kind} accumulator")

    def read(self, selection: Selection) -> Array:
        """float64 [warps, rows, columns] (exact for s32 too)."""
        matrix = np.empty((selection.n // 32, self.rows, self.columns), np.float64)
        for n, (i, j) in enumerate(self.pieces):
            piece = matrix[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            if self.kind == "f16":
                words = np.ascontiguousarray(selection.pick(self.registers[n]))
                piece[...] = words.view(np.float16).reshape(-1, 8, 8)
            else:
                piece[:, :, 0::2] = selection.pick(self.registers[2 * n]).reshape(-1, 8, 4)
                piece[:, :, 1::2] = selection.pick(self.registers[2 * n + 1]).reshape(-1, 8, 4)
        return matrix

    def write(self, selection: Selection, matrix: Array) -> None:
        """From float64 [warps, rows, columns], rounded to the type."""
        for n, (i, j) in enumerate(self.pieces):
            piece = matrix[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            if self.kind == "f16":
                selection.put(self.registers[n], to_half(piece, "f16").reshape(-1).view(np.uint32))
            else:
                for e in (0, 1):
                    target, part = self.registers[2 * n + e], piece[:, :, e::2]
                    if selection.slice is not None:
                        np.copyto(target[selection.slice].reshape(-1, 8, 4), part, casting="unsafe")
                    else:
                        target[selection.index] = part.reshape(-1)

    @property
    def register_type(self) -> str:
        """How its registers are read and written."""
        return {"f32": "f32", "s32": "s32", "f16": "b32"}[self.kind]


_ACCUMULATOR_REGISTERS = {"f32": "f32", "s32": "s32", "f16": "b32"}


def accumulator(at: Site, operand: int, rows: int, columns: int, kind: str, is_target: bool) -> Accumulator:
    """The accumulator of an operand."""
    register_type = _ACCUMULATOR_REGISTERS[kind]
    registers = at.targets(operand, register_type) if is_target else at.sources(operand, register_type)
    return Accumulator(registers, rows, columns, kind)


def _finish(total: Array, kind: str, saturate: bool) -> Array:
    """The double-precision sum as the result type takes it (integers wrap around or saturate)."""
    if kind != "s32":
        return total
    if saturate:
        return np.clip(total, -(2.0**31), 2.0**31 - 1)
    return total.astype(np.int64).astype(np.int32)


def _multiply(at: Site, shape: tuple[int, int, int], kinds: tuple[str, str, str, str]) -> Operation:
    """D = A · B + C of types (d, a, b, c)."""
    m, n, k = shape
    d_kind, a_kind, b_kind, c_kind = kinds
    a = input_fragment(at.sources(1, "b32"), m, k, a_kind, is_a=True)
    b = input_fragment(at.sources(2, "b32"), n, k, b_kind, is_a=False)
    c = accumulator(at, 3, m, n, c_kind, is_target=False)
    d = accumulator(at, 0, m, n, d_kind, is_target=True)
    saturate = at.has("satfinite")

    def run(selection: Selection) -> None:
        at.machine.converge(selection)
        total = values(a.read(selection), a_kind) @ values(b.read(selection), b_kind).swapaxes(1, 2)
        total += c.read(selection)
        d.write(selection, _finish(total, d_kind, saturate))

    return run


@instruction("mma.sync", pipe="tensor")
def mma(at: Site) -> Operation:
    """mma.sync.aligned m16n8k4 … m16n8k32: f16, bf16, tf32, s8, u8, e4m3, e5m2; accumulators f32, f16, s32."""
    shape = _shape(at)
    types = [m for m in at.modifiers if m in ELEMENT_BYTES]
    if shape[:2] != (16, 8) or len(types) != 4:
        raise ValueError("only m16n8 shapes")
    d, a, b, c = types
    return _multiply(at, shape, (d, a, b, c))


# wmma: whole matrices from and to memory.


@instruction("wmma.mma", pipe="tensor")
def wmma_mma(at: Site) -> Operation:
    """wmma.mma.sync m16n16k16, m32n8k16, m8n32k16 (m16n16k8 of tf32)."""
    types = [m for m in at.modifiers if m in ELEMENT_BYTES]
    d, a, b, c = types if len(types) == 4 else (types[0], "f16", "f16", types[1])
    return _multiply(at, _shape(at), (d, a, b, c))


class _Tile:
    """A matrix in memory: rows (or columns) of a leading dimension, moved in pieces of 16 bytes."""

    def __init__(self, at: Site, address: int, stride: int, major: int, minor: int, kind: str) -> None:
        self.at, self.major, self.minor = at, major, minor
        self.size = ELEMENT_BYTES[kind]
        self.width = min(16, minor * self.size)
        self.pieces = minor * self.size // self.width
        self.address, self.space = at.address(address), at.space(at.operands[address])
        self.stride = at.read(stride, "u32") if stride < len(at.operands) else np.broadcast_to(
            np.uint32(minor), at.machine.layout.n
        )  # fmt: skip

    def places(self, selection: Selection) -> Array:
        """The address of every piece, int64 [warps · major · pieces]."""
        at = self.at
        at.machine.converge(selection)
        base = self.address(selection).reshape(-1, 32)
        stride = selection.pick(self.stride).astype(np.int64).reshape(-1, 32) * self.size
        if (base != base[:, :1]).any() or (stride != stride[:, :1]).any():
            at.fail("divergence", f"{at.instruction.opcode}: the lanes of a warp give different addresses or strides")
        if int(np.bitwise_or.reduce(base[:, 0])) & 31 or int(np.bitwise_or.reduce(stride[:, 0])) & 15:
            at.fail("misaligned", f"{at.instruction.opcode} needs a 32-byte aligned address and a stride of 16 bytes")
        rows = base[:, :1] + stride[:, :1] * np.arange(self.major)
        places = rows[:, :, None] + np.arange(self.pieces) * self.width
        self._count(places)
        result: Array = places.reshape(-1)
        return result

    def _count(self, places: Array) -> None:
        machine = self.at.machine
        if not machine.checks.bank_conflicts or self.space == "global":
            return
        # A wavefront serves 128 bytes: 8 rows of one piece of 2-byte inputs, 4 rows of two pieces of accumulators.
        wide = 2 if self.size == 4 and self.pieces % 2 == 0 else 1
        warps = places.shape[0]
        grouped = places.reshape(warps, self.major, -1, wide).swapaxes(1, 2)
        _count_phases(self.at, np.ascontiguousarray(grouped).reshape(-1) & (1 << 59) - 1)

    def read(self, selection: Selection) -> Array:
        """uint8 [warps, major, minor · element bytes]."""
        who = selection.rows(self.major * self.pieces)
        units = self.at.machine.spaces.load(self.space, who, self.places(selection), self.width, self.at.pc)
        return units.view(np.uint8).reshape(-1, self.major, self.minor * self.size)

    def write(self, selection: Selection, octets: Array) -> None:
        """From an array of [warps, major, minor] elements."""
        who = selection.rows(self.major * self.pieces)
        units = np.ascontiguousarray(octets).reshape(-1).view(UNITS[self.width])
        self.at.machine.spaces.store(self.space, who, self.places(selection), units, self.at.pc)


@instruction("wmma.load", pipe="lsu")
def wmma_load(at: Site) -> Operation:
    """wmma.load.a .b .c: row- or column-major, with a stride in elements."""
    m, n, k = _shape(at)
    which = at.modifiers[1] if at.modifiers[0] == "load" else at.modifiers[0]
    kind = [p for p in at.modifiers if p in ELEMENT_BYTES][-1]
    rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n)}[which]
    by_row = at.has("row")
    tile = _Tile(at, 1, 2, *((rows, columns) if by_row else (columns, rows)), kind)
    dtype = UNITS[ELEMENT_BYTES[kind]]
    if which == "c":
        target = accumulator(at, 0, m, n, kind, is_target=True)

        def load_c(selection: Selection) -> None:
            matrix = tile.read(selection).view({"f32": np.float32, "s32": np.int32, "f16": np.float16}[kind])
            target.write(selection, (matrix if by_row else matrix.swapaxes(1, 2)).astype(np.float64))

        return load_c
    # B is kept transposed, one row a column of B.
    fragment = input_fragment(at.targets(0, "b32"), rows if which == "a" else n, k, kind, which == "a")
    swap = by_row != (which == "a")

    def load(selection: Selection) -> None:
        matrix = tile.read(selection).view(dtype)
        if swap:
            matrix = np.ascontiguousarray(matrix.swapaxes(1, 2))
        fragment.write(selection, matrix.view(np.uint32))

    return load


@instruction("wmma.store", pipe="lsu")
def wmma_store(at: Site) -> Operation:
    """wmma.store.d: row- or column-major, with a stride in elements."""
    m, n, _ = _shape(at)
    kind = [p for p in at.modifiers if p in ELEMENT_BYTES][-1]
    by_row = at.has("row")
    tile = _Tile(at, 0, 2, *((m, n) if by_row else (n, m)), kind)
    assert isinstance(at.operands[1], Vector)
    source = accumulator(at, 1, m, n, kind, is_target=False)
    dtype = {"f32": np.float32, "s32": np.int32, "f16": np.float16}[kind]

    def store(selection: Selection) -> None:
        matrix = source.read(selection).astype(dtype)
        tile.write(selection, matrix if by_row else matrix.swapaxes(1, 2))

    return store
