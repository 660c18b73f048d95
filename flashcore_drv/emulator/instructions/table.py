"""The table of instructions, and what the function of an instruction gets to decode it.

A function is called once for each instruction of a kernel, with a `Site`, and returns what runs for the threads that
execute it: an ``Operation`` (or, for branches and waits, a ``Control``). Operands are resolved to arrays there, so that
nothing is looked up while the kernel runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from flashcore_drv.emulator.errors import EmulationError
from flashcore_drv.emulator.parser import (
    SIZES,
    Address,
    Immediate,
    Instruction,
    Not,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from flashcore_drv.emulator.registers import DTYPES, UNITS, Operation, elementwise
from flashcore_drv.emulator.selection import Array, Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Machine

INTEGER = frozenset(t for t in SIZES if t[0] in "bus" and t != "bf16" and t != "bf16x2")
FLOAT = frozenset({"f32", "f64"})
HALF = frozenset({"f16", "f16x2", "bf16", "bf16x2"})
PREDICATE = frozenset({"pred"})

SPACES = {
    "global": "global", "shared": "shared", "shared::cta": "shared", "shared::cluster": "shared", "local": "local",
    "param": "param", "param::entry": "param", "param::func": "param", "const": "const",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An entry of the table: the function, the pipe that it is counted for, its file, whether it ends a segment."""

    build: Callable[[Site], Any]
    pipe: str
    file: str
    is_control: bool
    types: frozenset[str] | None


_TABLE: dict[str, list[Row]] = {}


def instruction(
    *names: str, pipe: str, types: frozenset[str] | None = None, is_control: bool = False
) -> Callable[[Callable[[Site], Any]], Callable[[Site], Any]]:
    """Enter a function for opcodes that begin with any of `names` (and whose last type is one of `types`)."""

    def enter(build: Callable[[Site], Any]) -> Callable[[Site], Any]:
        file = f"flashcore_drv/emulator/instructions/{PurePath(build.__code__.co_filename).name}"
        for name in names:
            _TABLE.setdefault(name, []).append(Row(build, pipe, file, is_control, types))
        return build

    return enter


def control(*names: str, pipe: str = "control") -> Callable[[Callable[[Site], Any]], Callable[[Site], Any]]:
    """Enter a function for a branch or a wait."""
    return instruction(*names, pipe=pipe, is_control=True)


def find(instruction: Instruction) -> Row | None:
    """The row with the longest name that the opcode begins with and that takes its type."""
    return _find(instruction.opcode, instruction.type)


@functools.cache
def _find(opcode: str, kind: str) -> Row | None:
    parts = opcode.split(".")
    for end in range(min(len(parts), 5), 0, -1):
        for row in _TABLE.get(".".join(parts[:end]), ()):
            if row.types is None or kind in row.types:
                return row
    return None


def unknown(site: Site) -> EmulationError:
    """The error for an instruction that is not in the table."""
    rows = _TABLE.get(site.instruction.name)
    file = rows[0].file if rows else "the family it belongs to in flashcore_drv/emulator/instructions/"
    return EmulationError(
        "unknown-instruction", f"the instruction {site.instruction.opcode} is not emulated: extend {file}", site.where
    )


@dataclass(frozen=True)
class Site:
    """An instruction at its place in a machine."""

    machine: Machine
    instruction: Instruction
    pc: int

    @property
    def where(self) -> str:
        """``file:line``."""
        return self.machine.where(self.pc)

    @property
    def modifiers(self) -> tuple[str, ...]:
        """The parts of the opcode after the name."""
        return self.instruction.modifiers

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The operands."""
        return self.instruction.operands

    @property
    def type(self) -> str:
        """The last type of the opcode."""
        return self.instruction.type

    def has(self, modifier: str) -> bool:
        """Whether the opcode has a modifier."""
        return modifier in self.instruction.modifiers

    def fail(self, kind: str, message: str) -> NoReturn:
        """Raise an EmulationError here."""
        self.machine.fail(kind, message, self.pc)

    # Operands as arrays over the threads of the batch.

    def read(self, operand: Operand | int, kind: str) -> Array:
        """An operand (or the operand of that index) as values of a type: [n], perhaps with stride 0."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        machine, dtype = self.machine, DTYPES[kind]
        match operand:
            case Register(name):
                return machine.registers.read(name, kind)
            case Immediate():
                return np.broadcast_to(np.asarray(constant(operand, dtype)), machine.layout.n)
            case Special(name):
                array = machine.special(name)
                return array if array.dtype == dtype else array.view(dtype) if (
                    array.itemsize == dtype.itemsize
                ) else array.astype(dtype)  # fmt: skip
            case Symbol(name):
                return np.broadcast_to(np.asarray(self.symbol(name), dtype), machine.layout.n)
        raise ValueError(f"{operand} cannot be read")

    def predicate(self, operand: Operand | int) -> tuple[Array, bool]:
        """A predicate operand: its array and whether it is negated."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if isinstance(operand, Not):
            return self.read(operand.operand, "pred"), True
        return self.read(operand, "pred"), False

    def target(self, operand: Operand | int, kind: str) -> Array:
        """Where to write values of a type: [n]."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if isinstance(operand, Pair):
            operand = operand.first
        if isinstance(operand, Sink):
            return np.empty(self.machine.layout.n, DTYPES[kind])
        if not isinstance(operand, Register):
            raise ValueError(f"{operand} cannot be written")
        return self.machine.registers.write(operand.name, kind)

    def targets(self, operand: Operand | int, kind: str) -> list[Array]:
        """The elements of a vector destination, or the one destination."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        items = operand.items if isinstance(operand, Vector) else (operand,)
        return [self.target(o, kind) for o in items]

    def sources(self, operand: Operand | int, kind: str) -> list[Array]:
        """The elements of a vector source, or the one source."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        items = operand.items if isinstance(operand, Vector) else (operand,)
        return [self.read(o, kind) for o in items]

    def immediate(self, operand: Operand | int) -> int:
        """An operand that must be an integer constant."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if not isinstance(operand, Immediate) or operand.float_bits:
            raise ValueError(f"{operand} is not an integer constant")
        return operand.value

    def symbol(self, name: str) -> int:
        """The address of a variable or parameter in its space."""
        machine = self.machine
        if name in machine.entry.shared:
            return machine.entry.shared[name]
        if name in machine.entry.local:
            return machine.entry.local[name]
        for p in machine.entry.params:
            if p.name == name:
                return p.offset
        if name in machine.globals:
            return machine.globals[name]
        raise ValueError(f"{name} has no address")

    def address(self, operand: Operand | int) -> Callable[[Selection], Array]:
        """``[base + offset]`` for the selected threads, int64."""
        if isinstance(operand, int):
            operand = self.operands[operand]
        if not isinstance(operand, Address):
            raise ValueError(f"{operand} is not an address")
        offset = operand.offset
        if isinstance(operand.base, Register):
            base = self.machine.registers.arrays[operand.base.name]

            def moving(selection: Selection) -> Array:
                address = selection.pick(base).astype(np.int64)
                return address + offset if offset else address

            return moving
        value = offset + (self.symbol(operand.base.name) if isinstance(operand.base, Symbol) else 0)
        return lambda selection: np.full(selection.n, value, np.int64)

    def space(self, operand: Operand) -> str:
        """The state space of a memory access; "generic" if the opcode names none."""
        for modifier in self.modifiers:
            if modifier in SPACES:
                space = SPACES[modifier]
                if space == "param" and isinstance(operand, Address) and isinstance(operand.base, Symbol):
                    return "local" if operand.base.name in self.machine.entry.local else "param"
                return space
        return "generic"

    def elementwise(self, function: Callable[..., Any], kind: str, *kinds: str) -> Operation:
        """The first operand (of type `kind`) is a function of the others (of `kinds`, `kind` if not given)."""
        operands = self.operands[1:]
        sources = [self.read(o, k) for o, k in zip(operands, kinds or (kind,) * len(operands))]
        return elementwise(function, self.target(0, kind), *sources)


def constant(operand: Immediate, dtype: np.dtype[Any]) -> Any:
    """An immediate as one value of a type."""
    if operand.float_bits:
        bits = np.array(operand.value, f"u{operand.float_bits // 8}")
        value = bits.view(f"f{operand.float_bits // 8}")
        return value.astype(dtype) if dtype.kind == "f" else bits.astype(UNITS[dtype.itemsize]).view(dtype)
    if dtype.kind == "f":
        return np.array(operand.value, dtype)
    if dtype.kind == "b":
        return np.array(bool(operand.value))
    width = 8 * dtype.itemsize
    return np.array(operand.value & (1 << width) - 1, UNITS[dtype.itemsize]).view(dtype)
