"""Barriers of a block, fences and launch control (PTX ISA, "bar, barrier", "barrier.cluster", "membar, fence")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flashcore_drv.emulator.instructions.table import Site, control, instruction
from flashcore_drv.emulator.parser import Immediate
from flashcore_drv.emulator.registers import Operation
from flashcore_drv.emulator.selection import Array, Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Control, Machine


class Barriers:
    """The sixteen named barriers of every block of a batch, counted in warps as the hardware does.

    ``arrived``, ``need`` and ``counted`` are [blocks, 16]: warps that came, warps that must come (0 while none did),
    and whether the instruction said how many.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        blocks, warps = machine.layout.blocks, machine.layout.warps_per_block
        self.arrived = np.zeros((blocks, 16), np.int64)
        self.need = np.zeros((blocks, 16), np.int64)
        self.counted = np.zeros((blocks, 16), np.bool_)
        self.members = np.zeros((blocks, 16, warps), np.bool_)
        width = machine.order.width if machine.order is not None else 0
        self.past = np.zeros((blocks, 16, width), np.int64)
        self.votes: dict[int, tuple[Array, Array]] = {}  # who came, and their predicates
        self.waiting: dict[int, list[tuple[Array, int, int, Any]]] = {}
        machine.at_exit.append(lambda mask: self.threads_ended())

    def places(self) -> list[tuple[int, Array]]:
        """Where threads wait."""
        return [(pc, mask) for waits in self.waiting.values() for mask, _, pc, _ in waits]

    def live_warps(self) -> Array:
        """Warps of each block that have a live thread, int64 [blocks]."""
        lanes = self.machine.live.reshape(self.machine.layout.blocks, -1, 32)
        result: Array = lanes.any(2).sum(1)
        return result

    def arrive(
        self, selection: Selection, barrier: int, threads: int | None, pc: int, wait: bool, deliver: Any = None
    ) -> int | None:
        """Warps come to a barrier; the program counter where they go on at once, None if they wait."""
        machine, layout = self.machine, self.machine.layout
        if not 0 <= barrier < 16:
            machine.fail("barrier", f"barrier {barrier}: there are 16", pc)
        if threads is not None and threads % 32:
            machine.fail("barrier", f"barrier {barrier} for {threads} threads: not whole warps", pc)
        warps = selection.warps
        came = np.bincount(layout.block_of_warp[warps], minlength=layout.blocks)
        touched = came > 0
        need = self.live_warps() if threads is None else np.full(layout.blocks, threads // 32)
        open_ = touched & (self.arrived[:, barrier] > 0)
        if (open_ & (self.need[:, barrier] != need)).any():
            block = int(np.flatnonzero(open_ & (self.need[:, barrier] != need))[0])
            old = int(self.need[block, barrier]) * 32
            message = f"barrier {barrier} of block {machine.block_name(block)} is for {old} threads, here for"
            machine.fail("barrier", f"{message} {int(need[block]) * 32}", pc)
        self.need[touched, barrier] = need[touched]
        self.counted[touched, barrier] = threads is not None
        self.arrived[:, barrier] += came
        over = touched & (self.arrived[:, barrier] > self.need[:, barrier])
        if over.any():
            block = int(np.flatnonzero(over)[0])
            message = f"more threads come to barrier {barrier} of block {machine.block_name(block)} than the"
            machine.fail("barrier", f"{message} {int(self.need[block, barrier]) * 32} that it counts", pc)
        flat = self.members[:, barrier].copy().reshape(-1)
        if wait:
            flat[warps] = True
            self.members[:, barrier] = flat.reshape(layout.blocks, -1)
        elif machine.order is not None:
            past = machine.order.release(warps)
            np.maximum.at(self.past[:, barrier], layout.block_of_warp[warps], past)
        done = touched & (self.arrived[:, barrier] == self.need[:, barrier])
        if wait and deliver is None and not self.waiting.get(barrier) and bool((done == touched).all()):
            self._finish(barrier, done)
            return pc + 1
        if wait:
            self.waiting.setdefault(barrier, []).append((selection.mask, pc + 1, pc, deliver))
        if done.any():
            self._finish(barrier, done)
            self._release(barrier, done)
        return None if wait else pc + 1

    def _finish(self, barrier: int, done: Array) -> None:
        """The barrier of some blocks is complete: order its warps, make it ready for the next time."""
        blocks = np.flatnonzero(done)
        if self.machine.order is not None:
            self.machine.order.join(blocks, self.members[blocks, barrier], self.past[blocks, barrier])
        self.arrived[blocks, barrier] = 0
        self.members[blocks, barrier] = False
        self.past[blocks, barrier] = 0

    def _release(self, barrier: int, done: Array) -> None:
        inside = np.repeat(done, self.machine.layout.warps_per_block * 32)
        waits, self.waiting[barrier] = self.waiting.get(barrier, []), []
        for mask, resume, pc, deliver in waits:
            go = mask & inside
            if go.any():
                if deliver is not None:
                    deliver(go, barrier)
                self.machine.make_ready(resume, go)
            if (mask & ~inside).any():
                self.waiting[barrier].append((mask & ~inside, resume, pc, deliver))
        if barrier in self.votes:
            self.votes[barrier][0][inside] = False

    def threads_ended(self) -> None:
        """Barriers that wait for all threads of a block no longer wait for those that ended."""
        need = self.live_warps()
        for barrier in list(self.waiting):
            changed = (self.arrived[:, barrier] > 0) & ~self.counted[:, barrier]
            self.need[changed, barrier] = need[changed]
            done = changed & (self.arrived[:, barrier] >= need)
            if done.any():
                self._finish(barrier, done)
                self._release(barrier, done)


def _number(at: Site, index: int) -> Any:
    """A barrier operand: its value for the selected threads, which must agree."""
    operand = at.operands[index]
    if isinstance(operand, Immediate):
        return lambda selection: operand.value
    values = at.read(operand, "u32")

    def uniform(selection: Selection) -> int:
        chosen = selection.pick(values)
        if not (chosen == chosen[0]).all():
            return -1
        return int(chosen[0])

    return uniform


@control("bar.sync", "bar.arrive", "barrier.sync", "barrier.arrive", "barrier.cta.sync", "barrier.cta.arrive",
         "bar.cta.sync", "bar.cta.arrive", pipe="barrier")  # fmt: skip
def bar(at: Site) -> Control:
    """bar.sync, bar.arrive: named (0-15) and counted."""
    wait = at.has("sync")
    barrier = _number(at, 0)
    threads = _number(at, 1) if len(at.operands) > 1 else None
    machine, pc, values = at.machine, at.pc, at.read(0, "u32")

    def run(selection: Selection) -> int | None:
        _whole_warps(machine, selection)
        barriers = machine.shared_state(Barriers)
        number = barrier(selection)
        if number >= 0:
            return barriers.arrive(selection, number, threads and threads(selection), pc, wait)
        chosen = selection.pick(values)
        for one in np.unique(chosen):
            part = selection.narrow(chosen == one)
            following = barriers.arrive(part, int(one), threads and threads(part), pc, wait)
            if following is not None:
                machine.make_ready(following, part.mask)
        return None

    return run


def _whole_warps(machine: Machine, selection: Selection) -> None:
    """A barrier is reached by all lanes of a warp that have not ended."""
    if not selection.whole:
        lanes = selection.mask.reshape(-1, 32).any(1).repeat(32)
        machine.gather(selection, lanes)


@control("bar.red", "barrier.red", "barrier.cta.red", "bar.cta.red", pipe="barrier")
def bar_red(at: Site) -> Control:
    """bar.red.popc .and .or: a barrier that also reduces a predicate over its threads."""
    mode = next(m for m in at.modifiers if m in ("popc", "and", "or"))
    barrier = _number(at, 1)
    threads = _number(at, 2) if len(at.operands) > 3 else None
    value, negated = at.predicate(len(at.operands) - 1)
    target = at.target(0, "u32" if mode == "popc" else "pred")
    machine, pc = at.machine, at.pc

    def run(selection: Selection) -> int | None:
        _whole_warps(machine, selection)
        barriers = machine.shared_state(Barriers)
        number = barrier(selection)
        nobody = np.zeros(machine.layout.n, np.bool_)
        came, votes = barriers.votes.setdefault(number, (nobody, nobody.copy()))
        selection.put(came, True)
        selection.put(votes, selection.pick(value) ^ negated)

        def deliver(go: Array, _: int) -> None:
            shape = machine.layout.blocks, -1
            yes = (votes & came).reshape(shape)
            if mode == "popc":
                result = yes.sum(1)
            else:
                result = yes.any(1) if mode == "or" else (yes | ~came.reshape(shape)).all(1)
            np.copyto(target, result[machine.layout.block], where=go, casting="unsafe")

        return barriers.arrive(selection, number, threads and threads(selection), pc, True, deliver)

    return run


@control("barrier.cluster.arrive", pipe="barrier")
def cluster_arrive(at: Site) -> Control:
    """barrier.cluster.arrive: the cluster is one block."""
    machine, after = at.machine, at.pc + 1

    def run(selection: Selection) -> int:
        machine.shared_state(ClusterBarrier).arrive(selection)
        return after

    return run


@control("barrier.cluster.wait", pipe="barrier")
def cluster_wait(at: Site) -> Control:
    """barrier.cluster.wait: until all threads of the block have arrived."""
    machine, pc = at.machine, at.pc

    def run(selection: Selection) -> None:
        machine.shared_state(ClusterBarrier).wait(selection, pc)

    return run


class ClusterBarrier:
    """The cluster's barrier of every block: arriving and waiting are two instructions."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.came = np.zeros(machine.layout.n, np.bool_)
        self.phase = np.zeros(machine.layout.blocks, np.int64)
        self.joined = np.zeros(machine.layout.n, np.int64)
        self.waiting: list[tuple[Array, int]] = []
        machine.at_exit.append(lambda mask: self.look())

    def arrive(self, selection: Selection) -> None:
        """Threads arrive."""
        selection.put(self.came, True)
        selection.put(self.joined, self.phase[selection.pick(self.machine.layout.block)])
        self.look()

    def wait(self, selection: Selection, pc: int) -> None:
        """Threads wait for the phase that they joined."""
        self.waiting.append((selection.mask, pc))
        self.look()

    def look(self) -> None:
        """Complete the phase of blocks whose threads have all come or ended, and let go who waits for it."""
        machine, shape = self.machine, (self.machine.layout.blocks, -1)
        done = (self.came | ~machine.live).reshape(shape).all(1) & self.came.reshape(shape).any(1)
        self.phase += done
        self.came &= ~np.repeat(done, machine.layout.warps_per_block * 32)
        if machine.order is not None and done.any():
            blocks = np.flatnonzero(done)
            machine.order.join(blocks, np.ones((blocks.size, machine.layout.warps_per_block), np.bool_))
        open_ = self.phase[machine.layout.block] > self.joined
        waits, self.waiting = self.waiting, []
        for mask, pc in waits:
            if (mask & open_).any():
                machine.make_ready(pc + 1, mask & open_)
            if (mask & ~open_).any():
                self.waiting.append((mask & ~open_, pc))

    def places(self) -> list[tuple[int, Array]]:
        """Where threads wait."""
        return [(pc, mask) for mask, pc in self.waiting]


@instruction("membar", "fence", pipe="lsu")
def fence(at: Site) -> Operation:
    """membar, fence: memory is sequentially consistent here; what matters is that a block published its writes.

    fence.proxy.async: in any form that covers shared memory.
    """
    machine = at.machine
    wide = any(m in at.modifiers for m in ("gl", "sys", "gpu"))
    to_async = at.modifiers[0] == "proxy" and at.modifiers[1].startswith("async") and not at.has("global")

    def run(selection: Selection) -> None:
        if to_async and machine.order is not None and machine.has_async_proxy:
            machine.order.fence_proxies(selection.warps)
        if wide and machine.global_order is not None:
            machine.global_order.fence(machine.block_ids[selection.pick(machine.layout.block)])

    return run


@instruction("griddepcontrol", pipe="control")
def launch_control(at: Site) -> Operation:
    """griddepcontrol: launches run in order, whatever they allow; that memory is accessed after the wait is checked."""
    machine, waits = at.machine, at.has("wait")

    def run(selection: Selection) -> None:
        if waits and machine.prerequisites is not None:
            machine.prerequisites.wait(selection.warps)

    return run
