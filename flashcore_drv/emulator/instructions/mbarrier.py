"""mbarrier objects (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier").

The state is kept beside the shared memory that holds the object; initialising it is a write of those bytes and every
use a read, so that a use without order after the initialisation is a race.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashcore_drv.emulator.instructions.async_copy import Copies
from flashcore_drv.emulator.instructions.table import Site, control, instruction
from flashcore_drv.emulator.parser import Address
from flashcore_drv.emulator.registers import Operation, assigned
from flashcore_drv.emulator.selection import Accessors, Array, Selection
from flashcore_drv.emulator.spaces import WINDOW_SHIFT

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Control, Machine

_OFFSET = (1 << WINDOW_SHIFT) - 1
_MAX_TX = (1 << 20) - 1
_PENDING_SHIFT = 32  # in a state: the phase below, the pending count above
_PHASE = (1 << _PENDING_SHIFT) - 1


@dataclass
class _Object:
    """The mbarrier at one address in every block: int64 arrays over the blocks.

    ``phase`` counts completed phases, ``before`` is the past of who arrived, ``done`` of the last completed phase.
    """

    valid: Array
    phase: Array
    expected: Array
    pending: Array
    transactions: Array
    before: Array
    done: Array


class MBarriers:
    """All mbarrier objects of a batch, by address."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.objects: dict[int, _Object] = {}
        self.width = machine.order.width if machine.order is not None else 0

    def initialise(self, who: Accessors, address: Array, count: Array, pc: int) -> None:
        """mbarrier.init."""
        machine = self.machine
        units = machine.spaces.shared_units(who, address, 8, pc, write=True)
        machine.spaces.shared_views[8][units] = 0
        blocks = machine.layout.blocks
        if int(count.min()) < 1 or int(count.max()) > _MAX_TX:
            machine.fail("mbarrier", f"an mbarrier for {int(count.min())} arrivals", pc)
        for a in np.unique(address):
            if int(a) not in self.objects:
                zeros = [np.zeros(blocks, np.int64) for _ in range(5)]
                clocks = [np.zeros((blocks, self.width), np.int64) for _ in range(2)]
                self.objects[int(a)] = _Object(*zeros, *clocks)
            chosen = address == a
            o, b = self.objects[int(a)], who.block[chosen]
            o.valid[b] = 1
            o.phase[b] = o.transactions[b] = 0
            o.expected[b] = o.pending[b] = count[chosen]
            o.before[b] = o.done[b] = 0

    def invalidate(self, who: Accessors, address: Array, pc: int) -> None:
        """mbarrier.inval."""
        self.machine.spaces.shared_units(who, address, 8, pc, write=True)
        for o, chosen in self.each(who, address, pc, check=False):
            o.valid[who.block[chosen]] = 0

    def each(self, who: Accessors, address: Array, pc: int, check: bool = True) -> list[tuple[_Object, Array]]:
        """The objects that accesses use, each with the accesses (int64) that use it."""
        if check:
            self.machine.spaces.shared_units(who, address, 8, pc, write=False)
        found = []
        for a in np.unique(address):
            chosen = np.flatnonzero(address == a)
            o = self.objects.get(int(a))
            if o is None or not o.valid[who.block[chosen]].all():
                self.machine.fail("mbarrier", f"the mbarrier at shared address {int(a)} is not initialised", pc)
            found.append((o, chosen))
        return found

    def arrive(self, who: Accessors, address: Array, count: Array, expect: Array, pc: int, drop: bool = False) -> Array:
        """Expect transactions, then arrive `count` times.

        Returns the states (int64): the phase that each access arrived at, and from bit 32 on the arrivals that were
        pending before.
        """
        order, state = self.machine.order, np.zeros(address.size, np.int64)
        past = order.release_each(who.warp) if order is not None else np.zeros((address.size, 0), np.int64)
        for o, chosen in self.each(who, address, pc):
            blocks = who.block[chosen]
            state[chosen] = o.phase[blocks] | o.pending[blocks] << _PENDING_SHIFT
            self.expect(o, blocks, expect[chosen], pc)
            np.subtract.at(o.pending, blocks, count[chosen])
            if drop:
                np.subtract.at(o.expected, blocks, count[chosen])
            if (o.pending[blocks] < 0).any():
                self.machine.fail(
                    "mbarrier", f"more arrivals at the mbarrier at {int(address[chosen[0]])} than it expects", pc
                )
            np.maximum.at(o.before, blocks, past[chosen])
            self.look(o, np.unique(blocks))
        return state

    def expect(self, o: _Object, blocks: Array, transactions: Array, pc: int) -> None:
        """Add bytes that the current phase waits for."""
        np.add.at(o.transactions, blocks, transactions)
        if (np.abs(o.transactions[blocks]) > _MAX_TX).any():
            self.machine.fail("mbarrier", "the transaction count of an mbarrier is past 2^20 - 1", pc)

    def complete(self, who: Accessors, address: Array, transactions: int, past: Array, pc: int) -> None:
        """Asynchronous work of `transactions` bytes each is complete."""
        for o, chosen in self.each(who, address, pc, check=False):
            blocks = who.block[chosen]
            self.expect(o, blocks, np.full(blocks.size, -transactions), pc)
            np.maximum.at(o.before, blocks, past[chosen])
            self.look(o, np.unique(blocks))

    def look(self, o: _Object, blocks: Array) -> None:
        """Complete the phase of the blocks that wait for nothing more, and wake who waits."""
        over = blocks[(o.pending[blocks] == 0) & (o.transactions[blocks] == 0)]
        if not over.size:
            return
        o.phase[over] += 1
        o.pending[over] = o.expected[over]
        o.done[over] = o.before[over]
        self.machine.idle_polls = 0
        for waiting in self.machine.take_polling(over):
            self.machine.make_ready(waiting.resume, waiting.mask)


@instruction("mbarrier.init", pipe="lsu")
def init(at: Site) -> Operation:
    """mbarrier.init."""
    address, count = at.address(0), at.read(1, "u32")

    def run(selection: Selection) -> None:
        counts = selection.pick(count).astype(np.int64)
        barriers = at.machine.shared_state(MBarriers)
        barriers.initialise(selection.accessors, address(selection) & _OFFSET, counts, at.pc)

    return run


@instruction("mbarrier.inval", pipe="lsu")
def inval(at: Site) -> Operation:
    """mbarrier.inval."""
    address = at.address(0)

    def run(selection: Selection) -> None:
        barriers = at.machine.shared_state(MBarriers)
        barriers.invalidate(selection.accessors, address(selection) & _OFFSET, at.pc)

    return run


@instruction("mbarrier.arrive", "mbarrier.arrive_drop", pipe="lsu")
def arrive(at: Site) -> Operation:
    """mbarrier.arrive, mbarrier.arrive_drop, ``.expect_tx``, ``.noComplete`` (an error if the phase completes)."""
    no_complete = at.has("noComplete")
    has_state = len(at.operands) > 1 and not isinstance(at.operands[0], Address)
    first = 1 if has_state else 0
    target = at.target(0, "b64") if has_state else None
    address = at.address(first)
    extra = at.read(first + 1, "u32") if len(at.operands) > first + 1 else None
    expects, drop = at.has("expect_tx"), at.instruction.modifiers[0] == "arrive_drop"

    def run(selection: Selection) -> None:
        one, zero = np.ones(selection.n, np.int64), np.zeros(selection.n, np.int64)
        given = one if extra is None else selection.pick(extra).astype(np.int64)
        count, expect = (one, given) if expects else (given, zero)
        barriers = at.machine.shared_state(MBarriers)
        state = barriers.arrive(selection.accessors, address(selection) & _OFFSET, count, expect, at.pc, drop)
        if no_complete and (count >= state >> _PENDING_SHIFT).any():
            at.fail("mbarrier", "an arrival with .noComplete completes the phase")
        if target is not None:
            selection.put(target, state)

    return run


@instruction("mbarrier.expect_tx", "mbarrier.complete_tx", pipe="lsu")
def expect_tx(at: Site) -> Operation:
    """mbarrier.expect_tx, mbarrier.complete_tx."""
    address, transactions = at.address(0), at.read(1, "u32")
    sign = 1 if at.modifiers[0] == "expect_tx" else -1

    def run(selection: Selection) -> None:
        barriers, who = at.machine.shared_state(MBarriers), selection.accessors
        values = selection.pick(transactions).astype(np.int64) * sign
        for o, chosen in barriers.each(who, address(selection) & _OFFSET, at.pc):
            barriers.expect(o, who.block[chosen], values[chosen], at.pc)
            barriers.look(o, np.unique(who.block[chosen]))

    return run


@control("mbarrier.test_wait", "mbarrier.try_wait", pipe="lsu")
def wait(at: Site) -> Control:
    """mbarrier.test_wait, mbarrier.try_wait, ``.parity``: false after all else had its turn, if the phase is open.

    A try_wait may give up at any time: kernels must ask again.
    """
    target, address, by_parity = at.target(0, "pred"), at.address(1), at.has("parity")
    wanted = at.read(2, "u32" if by_parity else "u64")
    machine, pc = at.machine, at.pc

    def run(selection: Selection) -> int | None:
        barriers, who = machine.shared_state(MBarriers), selection.accessors
        phase = np.zeros(selection.n, np.int64)
        past = np.zeros((selection.n, barriers.width), np.int64)
        for o, chosen in barriers.each(who, address(selection) & _OFFSET, pc):
            phase[chosen] = o.phase[who.block[chosen]]
            past[chosen] = o.done[who.block[chosen]]
        asked = selection.pick(wanted).astype(np.int64) & _PHASE
        done = phase & 1 != asked & 1 if by_parity else phase > asked
        selection.put(target, done)
        if machine.order is not None and done.any():
            machine.order.acquire(who.warp[done], past[done])
        if done.all():
            return pc + 1
        if done.any():
            machine.make_ready(pc + 1, selection.narrow(done).mask)
        machine.poll(selection.narrow(~done), pc)
        return None

    return run


@instruction("mbarrier.pending_count", pipe="lsu")
def pending_count(at: Site) -> Operation:
    """mbarrier.pending_count: the arrivals that were pending before the arrival that gave the state."""
    return at.elementwise(assigned(lambda state: state >> np.uint64(_PENDING_SHIFT)), "u32", "u64")


@instruction("cp.async.mbarrier.arrive", pipe="lsu")
def copies_arrive(at: Site) -> Operation:
    """cp.async.mbarrier.arrive: arrives when the thread's copies so far have landed, at the latest possible time."""
    address, is_counted, machine, pc = at.address(0), at.has("noinc"), at.machine, at.pc

    def run(selection: Selection) -> None:
        barriers, who = machine.shared_state(MBarriers), selection.accessors
        where = address(selection) & _OFFSET
        one, zero = np.ones(selection.n, np.int64), np.zeros(selection.n, np.int64)
        if not is_counted:
            for o, chosen in barriers.each(who, where, pc):
                np.add.at(o.pending, who.block[chosen], 1)

        def land() -> None:
            machine.shared_state(Copies).wait(selection, None)
            barriers.arrive(who, where, one, zero, pc)

        machine.submit(pc, land)

    return run
