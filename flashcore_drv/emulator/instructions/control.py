"""Control flow (PTX ISA, "Control Flow Instructions")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flashcore_drv.emulator.instructions.table import Site, control, instruction
from flashcore_drv.emulator.parser import Symbol
from flashcore_drv.emulator.registers import Operation
from flashcore_drv.emulator.selection import Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Control


@control("bra")
def bra(at: Site) -> Control:
    """bra: where the threads of a warp disagree, both ways become ready."""
    label = at.operands[0]
    assert isinstance(label, Symbol)
    target, after, machine = at.machine.entry.labels[label.name], at.pc + 1, at.machine
    if at.instruction.predicate is None:
        return lambda selection: target
    predicate, negated = machine.registers.arrays[at.instruction.predicate.name], at.instruction.negated

    def run(selection: Selection) -> int | None:
        taken = selection.pick(predicate)
        count = int(np.count_nonzero(taken))
        if count == selection.n:
            return after if negated else target
        if count == 0:
            return target if negated else after
        yes = selection.narrow(taken).mask
        no = selection.mask & ~yes
        machine.make_ready(target, no if negated else yes)
        machine.make_ready(after, yes if negated else no)
        return None

    return run


@control("brx.idx")
def brx(at: Site) -> Control:
    """brx.idx: a jump through a list of ``.branchtargets``."""
    table = at.operands[1]
    assert isinstance(table, Symbol)
    machine = at.machine
    targets = np.array([machine.entry.labels[name] for name in machine.entry.tables[table.name]])
    index = at.read(0, "u32")

    def run(selection: Selection) -> int | None:
        chosen = selection.pick(index)
        if int(chosen.max()) >= targets.size:
            at.fail("out-of-bounds", f"branch {int(chosen.max())} of {targets.size}")
        places = targets[chosen]
        first = int(places[0])
        if (places == first).all():
            return first
        for place in np.unique(places):
            machine.make_ready(int(place), selection.narrow(places == place).mask)
        return None

    return run


@control("ret", "exit")
def ret(at: Site) -> Control:
    """ret, exit: of a kernel; the parser has made branches of the returns of functions."""

    def run(selection: Selection) -> None:
        at.machine.exit(selection)

    return run


@control("trap", "brkpt")
def trap(at: Site) -> Control:
    """trap: aborts the launch."""

    def run(selection: Selection) -> int | None:
        who = at.machine.name_access(selection.accessors, 0)
        at.fail("trap", f"{at.instruction.name} by {who}")

    return run


@control("call")
def call(at: Site) -> Control:
    """call: of a function that is not in the module; the parser has expanded the others."""
    name = next((o.name for o in at.operands if isinstance(o, Symbol)), "a function pointer")

    def run(selection: Selection) -> int | None:
        who = at.machine.name_access(selection.accessors, 0)
        at.fail("trap", f"call of {name}, which is not in the module, by {who}")

    return run


@instruction("nanosleep", "pmevent", pipe="control")
def nothing(at: Site) -> Operation:
    """nanosleep, pmevent: nothing to emulate."""
    return lambda selection: None
