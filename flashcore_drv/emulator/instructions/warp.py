"""Exchange within a warp (PTX ISA, "shfl.sync", "vote.sync", "match.sync", "redux.sync", "elect.sync")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flashcore_drv.emulator.instructions.table import Site, control, instruction
from flashcore_drv.emulator.parser import Immediate, Operand, Pair, Sink
from flashcore_drv.emulator.registers import DTYPES, Operation
from flashcore_drv.emulator.selection import Array, Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Control

_LANES = np.arange(32)


def _members(at: Site, operand: Operand) -> Callable[[Selection], Array | None]:
    """Wait for the lanes of a member mask; they come back as bool [n], None for all lanes of whole warps."""
    machine = at.machine
    mask = at.read(operand, "b32")
    everyone = isinstance(operand, Immediate) and operand.value & 0xFFFFFFFF == 0xFFFFFFFF

    def run(selection: Selection) -> Array | None:
        if everyone and selection.whole:
            return None
        lane = _LANES[selection.index % 32]
        own = selection.pick(mask)
        outside = own >> lane.astype(np.uint32) & 1 == 0
        if outside.any():
            who = machine.name_access(selection.accessors, int(np.flatnonzero(outside)[0]))
            at.fail("divergence", f"{at.instruction.opcode} by {who}, which is not in its own member mask")
        warps = np.zeros(machine.layout.warps, np.uint32)
        warps[selection.index // 32] = own
        required = (warps[:, None] >> _LANES.astype(np.uint32) & 1 == 1).reshape(-1)
        machine.gather(selection, required)
        result: Array = required & selection.mask
        return result

    return run


@instruction("shfl.sync", pipe="lsu")
def shfl(at: Site) -> Operation:
    """shfl.sync.up .down .bfly .idx: reads a register of another lane of the segment, its own if that is outside."""
    mode = next(m for m in at.modifiers if m in ("up", "down", "bfly", "idx"))
    destination = at.operands[0]
    target = at.target(0, "b32")
    valid = at.target(destination.second, "pred") if (
        isinstance(destination, Pair) and not isinstance(destination.second, Sink)
    ) else None  # fmt: skip
    value, by, bounds = at.read(1, "b32"), at.read(2, "b32"), at.read(3, "b32")
    members, layout = _members(at, at.operands[4]), at.machine.layout
    is_constant = isinstance(at.operands[2], Immediate) and isinstance(at.operands[3], Immediate)
    cached: dict[str, tuple[Array, Array]] = {}

    def sources(threads: Array, b: Array, c: Array) -> tuple[Array, Array]:
        lane, b, c = threads % 32, b.astype(np.int64) & 31, c.astype(np.int64)
        clamp, segment = c & 31, c >> 8 & 31
        low, high = lane & segment, (lane & segment) | (clamp & ~segment)
        if mode == "up":
            source, inside = lane - b, lane - b >= high
        elif mode == "down":
            source, inside = lane + b, lane + b <= high
        elif mode == "bfly":
            source, inside = lane ^ b, (lane ^ b) <= high
        else:
            source = low | (b & ~segment)
            inside = source <= high
        return threads - lane + np.where(inside, source, lane), inside

    def run(selection: Selection) -> None:
        active = members(selection)
        if selection.full and is_constant:
            if not cached:
                cached["all"] = sources(layout.everyone, by, bounds)
            source, inside = cached["all"]
        else:
            source, inside = sources(selection.index, selection.pick(by), selection.pick(bounds))
        if active is not None and at.machine.checks.divergence and not active[source].all():
            i = int(np.flatnonzero(~active[source])[0])
            who = at.machine.name_access(selection.accessors, i)
            at.fail(
                "divergence", f"{at.instruction.opcode} by {who} reads lane {int(source[i]) % 32}, which is not active"
            )
        selection.put(target, value[source])
        if valid is not None:
            selection.put(valid, inside)

    return run


def _by_warp(selection: Selection, active: Array | None) -> Array:
    """Which lanes take part: bool [warps of the batch, 32]."""
    return (selection.mask if active is None else active).reshape(-1, 32)


@instruction("vote.sync", pipe="alu")
def vote(at: Site) -> Operation:
    """vote.sync.all .any .uni .ballot."""
    mode = at.modifiers[1]
    value, negated = at.predicate(1)
    target = at.target(0, "b32" if mode == "ballot" else "pred")
    members = _members(at, at.operands[2])

    def run(selection: Selection) -> None:
        taking_part = _by_warp(selection, members(selection))
        votes = (value ^ negated).reshape(-1, 32)
        yes = votes & taking_part
        result: Any
        if mode == "ballot":
            result = np.packbits(yes, axis=1, bitorder="little").view(np.uint32)[:, 0]
        elif mode == "any":
            result = yes.any(1)
        elif mode == "all":
            result = (votes | ~taking_part).all(1)
        else:
            result = (votes | ~taking_part).all(1) | ~yes.any(1)
        selection.put(target, selection.pick(np.repeat(result, 32)))

    return run


@instruction("match.any.sync", "match.all.sync", pipe="alu")
def match(at: Site) -> Operation:
    """match.any.sync, match.all.sync: the lanes with the same value."""
    is_any, destination = at.has("any"), at.operands[0]
    target = at.target(0, "b32")
    same_for_all = at.target(destination.second, "pred") if isinstance(destination, Pair) else None
    value, members = at.read(1, at.type), _members(at, at.operands[2])

    def run(selection: Selection) -> None:
        taking_part = _by_warp(selection, members(selection))
        values = value.reshape(-1, 32)
        equal = (values[:, :, None] == values[:, None, :]) & taking_part[:, None, :]
        if not is_any:
            uniform = (equal | ~taking_part[:, None, :]).all(2)
            equal &= uniform[:, :, None]
            if same_for_all is not None:
                selection.put(same_for_all, selection.pick(uniform.reshape(-1)))
        masks = np.packbits(equal, axis=2, bitorder="little").view(np.uint32).reshape(-1)
        selection.put(target, selection.pick(masks))

    return run


@instruction("redux.sync", pipe="alu")
def redux(at: Site) -> Operation:
    """redux.sync.add .min .max .and .or .xor."""
    functions: dict[str, Any] = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }  # fmt: skip
    function = functions[at.modifiers[1]]
    dtype = DTYPES[at.type]
    limits = np.iinfo(dtype)
    neutral = {"min": limits.max, "max": limits.min, "and": limits.max if dtype.kind == "u" else -1}
    identity = dtype.type(neutral.get(at.modifiers[1], 0))
    target, value, members = at.target(0, at.type), at.read(1, at.type), _members(at, at.operands[2])

    def run(selection: Selection) -> None:
        taking_part = _by_warp(selection, members(selection))
        values = np.where(taking_part, value.reshape(-1, 32), identity)
        selection.put(target, selection.pick(np.repeat(function.reduce(values, axis=1, dtype=dtype), 32)))

    return run


@instruction("activemask", pipe="alu")
def activemask(at: Site) -> Operation:
    """activemask: the lanes that execute together here."""
    target = at.target(0, "b32")

    def run(selection: Selection) -> None:
        lanes = np.packbits(selection.mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]
        selection.put(target, selection.pick(np.repeat(lanes, 32)))

    return run


@instruction("elect.sync", pipe="alu")
def elect(at: Site) -> Operation:
    """elect.sync: the lowest member lane."""
    destination = at.operands[0]
    if not isinstance(destination, Pair):
        raise ValueError("elect.sync needs d|p")
    leader = None if isinstance(destination.first, Sink) else at.target(destination.first, "b32")
    elected, members = at.target(destination.second, "pred"), _members(at, at.operands[1])

    def run(selection: Selection) -> None:
        taking_part = _by_warp(selection, members(selection))
        lowest = np.repeat(taking_part.argmax(1), 32)
        selection.put(elected, selection.pick(at.machine.layout.everyone % 32 == lowest))
        if leader is not None:
            selection.put(leader, selection.pick(lowest))

    return run


@control("bar.warp.sync")
def bar_warp_sync(at: Site) -> Control:
    """bar.warp.sync: lanes may meet at different places, so they wait for all members here."""
    machine, after, pc = at.machine, at.pc + 1, at.pc
    mask = at.read(0, "b32")

    def run(selection: Selection) -> int | None:
        if selection.whole or not machine.checks.divergence:
            return after
        waiting: WarpBarrier = machine.shared_state(WarpBarrier)
        warps = np.zeros(machine.layout.warps, np.uint32)
        warps[selection.index // 32] = selection.pick(mask)
        required = (warps[:, None] >> _LANES.astype(np.uint32) & 1 == 1).reshape(-1)
        waiting.arrive(selection, required & machine.layout.exists, after, pc)
        return None

    return run


class WarpBarrier:
    """Threads that wait in bar.warp.sync."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.resume = np.full(machine.layout.n, -1)
        self.pc = np.full(machine.layout.n, -1)
        self.required = np.zeros(machine.layout.n, np.bool_)
        machine.at_exit.append(lambda mask: self.release())

    def arrive(self, selection: Selection, required: Array, resume: int, pc: int) -> None:
        """Wait, and let go every warp that is complete."""
        selection.put(self.resume, resume)
        selection.put(self.pc, pc)
        self.required |= required
        self.release()

    def release(self) -> None:
        """Let go the warps whose members have all come or ended."""
        here = self.resume >= 0
        missing = (self.required & self.machine.live & ~here).reshape(-1, 32).any(1).repeat(32)
        go = here & ~missing
        for resume in np.unique(self.resume[go]):
            self.machine.make_ready(int(resume), go & (self.resume == resume))
        self.resume[go] = self.pc[go] = -1
        self.required[go] = False

    def places(self) -> list[tuple[int, Array]]:
        """Where threads wait."""
        return [(int(pc), self.pc == pc) for pc in np.unique(self.pc[self.pc >= 0])]
