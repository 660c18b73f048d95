"""cp.async (PTX ISA, "Asynchronous copy: cp.async").

A copy lands when its own thread waits for it, no sooner; until then its target holds NaN and every access to it races.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashcore_drv.emulator.instructions.table import Site, instruction
from flashcore_drv.emulator.parser import Immediate, Register
from flashcore_drv.emulator.registers import UNITS, Operation
from flashcore_drv.emulator.selection import Accessors, Array, Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Machine


@dataclass
class _Copy:
    """Copies in flight that one instruction started: arrays over its threads."""

    threads: Array
    group: Array
    address: Array
    source: Array
    size: Array
    width: int
    pc: int


class Copies:
    """Copies in flight, and the number of groups that each thread has committed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.layout.n, np.int64)
        self.flying: list[_Copy] = []

    def start(self, selection: Selection, address: Array, source: Array, size: Array, width: int, pc: int) -> None:
        """Start copies of `size` bytes that fill `width` bytes of shared memory."""
        machine, who = self.machine, selection.accessors
        units = machine.spaces.shared_units(who, address, width, pc, write=True, in_flight=True)
        machine.spaces.shared_views[width].view(np.uint8).reshape(-1, width)[units] = 0xFF
        real = size > 0
        if real.all():
            machine.spaces.check_global(who, source, width if int(size.min()) == width else 1, pc, "copy")
        if not real.all() or int(size.min()) < width:
            self._check_partial(who, source, size, width, pc)
        self.flying.append(
            _Copy(selection.index, selection.pick(self.committed).copy(), address, source, size, width, pc)
        )

    def _check_partial(self, who: Accessors, source: Array, size: Array, width: int, pc: int) -> None:
        assert who.thread is not None
        for bytes_ in np.unique(size[size > 0]):
            chosen = np.flatnonzero(size == bytes_)
            part = Accessors(who.layout, who.warp[chosen], who.thread[chosen])
            if (source[chosen] & (width - 1)).any():
                self.machine.fail("misaligned", f"{width}-byte copy from a misaligned address", pc)
            self.machine.spaces.check_global(part, source[chosen], 1, pc, "copy")
            self.machine.spaces.check_global(part, source[chosen] + int(bytes_) - 1, 1, pc, "copy")

    def wait(self, selection: Selection, pending: int | None) -> None:
        """Land the copies of all but the last `pending` groups of each thread (None: all, committed or not)."""
        kept = []
        for copy in self.flying:
            due = selection.mask[copy.threads]
            if pending is not None:
                due &= copy.group < self.committed[copy.threads] - pending
            if due.all():
                self._land(copy)
            elif due.any():
                self._land(_part(copy, due))
                kept.append(_part(copy, ~due))
            else:
                kept.append(copy)
        self.flying = kept

    def _land(self, copy: _Copy) -> None:
        machine, layout, width = self.machine, self.machine.layout, copy.width
        who = Accessors(layout, copy.threads // 32, copy.threads)
        if int(copy.size.min()) == width:
            values = machine.spaces.load("global", who, copy.source, width, copy.pc)
        else:
            octets = np.zeros((copy.size.size, width), np.uint8)
            for bytes_ in np.unique(copy.size[copy.size > 0]):
                chosen = np.flatnonzero(copy.size == bytes_)
                part = Accessors(layout, who.warp[chosen], copy.threads[chosen])
                step = int(bytes_ & -bytes_)  # the widest unit that divides the size
                for offset in range(0, int(bytes_), step):
                    unit = machine.spaces.load("global", part, copy.source[chosen] + offset, step, copy.pc)
                    octets[chosen, offset : offset + step] = unit.view(np.uint8).reshape(-1, step)
            values = octets.view(UNITS[width])[:, 0]
        at = copy.address + who.shared_base
        machine.spaces.shared_views[width][at // width] = values
        if machine.order is not None:
            machine.order.land(who, at, width, copy.pc)


def _part(copy: _Copy, chosen: Array) -> _Copy:
    return _Copy(
        copy.threads[chosen], copy.group[chosen], copy.address[chosen], copy.source[chosen], copy.size[chosen],
        copy.width, copy.pc,
    )  # fmt: skip


@instruction("cp.async.ca", "cp.async.cg", pipe="lsu")
def cp_async(at: Site) -> Operation:
    """cp.async.ca, cp.async.cg: 4, 8 or 16 bytes, of which the first src-size are read and the rest zeroed."""
    machine, pc = at.machine, at.pc
    target, source = at.address(0), at.address(1)
    width = at.immediate(2)
    operands = at.operands[3:-1] if at.has("L2::cache_hint") else at.operands[3:]
    size: Array | None = None
    ignored: tuple[Array, bool] | None = None
    if operands:
        operand = operands[0]
        is_predicate = isinstance(operand, Register) and machine.entry.register_types[operand.name] == "pred"
        if is_predicate or not isinstance(operand, Register | Immediate):
            ignored = at.predicate(operand)
        else:
            size = at.read(operand, "u32")

    def run(selection: Selection) -> None:
        if size is not None:
            wanted = selection.pick(size).astype(np.int64)
            if int(wanted.max()) > width:
                at.fail("out-of-bounds", f"cp.async of {int(wanted.max())} bytes into {width}")
        else:
            wanted = np.full(selection.n, width)
            if ignored is not None:
                wanted[selection.pick(ignored[0]) ^ ignored[1]] = 0
        machine.shared_state(Copies).start(selection, target(selection), source(selection), wanted, width, pc)

    return run


@instruction("cp.async.commit_group", pipe="lsu")
def commit_group(at: Site) -> Operation:
    """cp.async.commit_group."""

    def run(selection: Selection) -> None:
        committed = at.machine.shared_state(Copies).committed
        if selection.slice is not None:
            committed[selection.slice] += 1
        else:
            committed[selection.index] += 1

    return run


@instruction("cp.async.wait_group", "cp.async.wait_all", pipe="lsu")
def wait_group(at: Site) -> Operation:
    """cp.async.wait_group N, cp.async.wait_all."""
    pending = at.immediate(0) if at.has("wait_group") else None
    return lambda selection: at.machine.shared_state(Copies).wait(selection, pending)
