"""The registers of a block that its warpgroups pass on to each other (PTX ISA, "setmaxnreg").

A kernel starts with the count that ptxas compiles it for, in a kernel with setmaxnreg the most that its launch bounds
leave to a thread. All of them are given out then: what a warpgroup takes, others must have given up before. Warps that
end keep theirs: nothing promises that they come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flashcore_drv.emulator.instructions.table import Site, control
from flashcore_drv.emulator.selection import Array, Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Control, Machine

_UNIT = 8  # registers a thread
_FEWEST, _MOST = 24, 256


def at_launch(machine: Machine) -> int:
    """Registers a thread that the kernel starts with."""
    entry, limits = machine.entry, machine.state.limits
    warps = -(-(entry.max_threads or machine.layout.threads) // 32) * (entry.min_blocks or 1)
    return min(limits.max_registers_per_block // (32 * warps), entry.max_registers or _MOST, _MOST) // _UNIT * _UNIT


class RegisterPool:
    """Registers of every warp of a batch, and what each block has to give.

    ``owned`` is int64 [warps], registers a thread; ``free`` int64 [blocks], registers; ``waiting`` has for every
    warpgroup of the batch that waits the registers a thread that it wants, and the instruction.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        layout = machine.layout
        self.initial = at_launch(machine)
        self.owned = np.full(layout.warps, self.initial)
        self.free = np.zeros(layout.blocks, np.int64)
        self.waiting: dict[int, tuple[int, int]] = {}

    def give_up(self, warps: Array, count: int) -> None:
        """Warps keep at most `count` registers a thread."""
        kept = np.minimum(self.owned[warps], count)
        np.add.at(self.free, self.machine.layout.block_of_warp[warps], 32 * (self.owned[warps] - kept))
        self.owned[warps] = kept
        self.serve()

    def take(self, warps: Array, count: int, pc: int) -> None:
        """Whole warpgroups wait until they have `count` registers a thread."""
        for warpgroup in np.unique(warps // 4).tolist():
            self.waiting[warpgroup] = count, pc
        self.serve()

    def serve(self) -> None:
        """Let go on who can have what it wants, in the order of asking."""
        for warpgroup, (count, pc) in list(self.waiting.items()):
            block, wanted = self._block(warpgroup), self._missing(warpgroup, count)
            if wanted <= self.free[block]:
                warps = self._warps(warpgroup)
                self.free[block] -= wanted
                self.owned[warps] = np.maximum(self.owned[warps], count)
                del self.waiting[warpgroup]
                self.machine.make_ready(pc + 1, self._lanes(warpgroup))

    def places(self) -> list[tuple[int, Array]]:
        """Where threads wait."""
        return [(pc, self._lanes(warpgroup)) for warpgroup, (_, pc) in self.waiting.items()]

    def reasons(self) -> list[tuple[int, str]]:
        """What the warpgroups of the first block that waits lack, and where."""
        layout, found = self.machine.layout, []
        first = min(map(self._block, self.waiting), default=-1)
        for warpgroup, (count, pc) in sorted(self.waiting.items()):
            if self._block(warpgroup) == first:
                place = warpgroup % (layout.warps_per_block // 4)
                name = f"warpgroup {place} of block {self.machine.block_name(first)}"
                lack = f"{self._missing(warpgroup, count)} more; the block's pool has {int(self.free[first])}"
                of = f"of {self.initial * 32 * layout.real_warps}, {self.initial} a thread at launch"
                found.append((pc, f"{name} waits for {count} registers a thread, {lack} {of}"))
        return found

    def _block(self, warpgroup: int) -> int:
        return int(self.machine.layout.block_of_warp[4 * warpgroup])

    def _warps(self, warpgroup: int) -> Array:
        """Those that have threads."""
        warps = np.arange(4 * warpgroup, 4 * warpgroup + 4)
        real: Array = warps[warps % self.machine.layout.warps_per_block < self.machine.layout.real_warps]
        return real

    def _missing(self, warpgroup: int, count: int) -> int:
        return 32 * int(np.maximum(count - self.owned[self._warps(warpgroup)], 0).sum())

    def _lanes(self, warpgroup: int) -> Array:
        layout = self.machine.layout
        lanes: Array = (layout.everyone // 128 == warpgroup) & layout.exists
        return lanes


@control("setmaxnreg.inc", "setmaxnreg.dec", pipe="control")
def setmaxnreg(at: Site) -> Control:
    """setmaxnreg.inc, setmaxnreg.dec: by whole warpgroups; more than is owned is waited for."""
    machine, pc, count, takes = at.machine, at.pc, at.immediate(0), at.has("inc")
    if count % _UNIT or not _FEWEST <= count <= _MOST:
        raise ValueError(f"{count} registers, not a multiple of {_UNIT} from {_FEWEST} to {_MOST}")

    def run(selection: Selection) -> int | None:
        machine.converge_warpgroup(selection, allows_fewer=True)
        pool = machine.shared_state(RegisterPool)
        if takes:
            pool.take(selection.warps, count, pc)
            return None
        pool.give_up(selection.warps, count)
        return pc + 1

    return run
