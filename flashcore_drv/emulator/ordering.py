"""Which memory accesses are ordered by barriers, and which race.

Shared memory: a vector clock for every warp of a block, one agent for the TMA engine and one for copies in flight. An
access is a race if it conflicts with an earlier one that is not in the past of the warp that makes it. Lanes of one
warp are one agent: races among them are not seen.

TMA and wgmma are the async proxy (PTX ISA, "Async proxy"): between an ordinary write (st, stmatrix, cp.async) and their
access stands a fence.proxy.async, of any warp on the way from one to the other (PTX ISA, "Causality Order": linked by a
proxy fence along the base causality path). What they have done needs none once it has been waited for. Reads before a
TMA load are let through without one, although the model's text asks for it there, too: the wait for the values does.

A launch that may begin before the grids that it depends on have ended: every access to global memory comes after a
griddepcontrol.wait, of the same warp or of another of the block, linked by barriers.

Global memory: two blocks that touch the same bytes, one of them writing, without an atomic operation, unless a fence
and an atomic operation of each on one address order them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from flashcore_drv.emulator.memory import Allocation
from flashcore_drv.emulator.selection import Accessors, Array, Layout

Fail = Callable[[str, str, int], NoReturn]
"""Raises an EmulationError of a kind, with a message, at an instruction."""
Where = Callable[[int], str]
"""``file:line`` of an instruction."""

_CLOCK, _PC, _AGENT = 32, 8, 0xFF  # an epoch: clock << 32 | instruction << 8 | agent
_NEVER = 1 << 30  # the clock of what nobody has waited for


class SharedOrder:
    """The order of accesses to the shared memory of every block of a batch.

    ``clock[b, i, j]``: how much of agent j's past is ordered before agent i, in block b; in a kernel that uses the
    async proxy ``clock[b, i, agents + j]``: how much of it a proxy fence on the way makes visible to that proxy.
    ``write[g]`` is the epoch of the last write of a granule, ``read[g, agent]`` of each agent's last read; a granule is
    as wide as the narrowest access so far, at most 16 bytes.
    """

    def __init__(
        self, layout: Layout, used_bytes: int, fail: Fail, where: Where, uninitialised: bool, has_async_proxy: bool
    ) -> None:
        self.layout, self.used_bytes = layout, used_bytes
        self.fail, self.where, self.uninitialised = fail, where, uninitialised
        self.tma = layout.warps_per_block
        self.in_flight = self.tma + 1
        self.wgmma = self.tma + 2  # and one for each further warpgroup
        self.agents = self.wgmma + -(-layout.warps_per_block // 4)
        self.width = self.agents * (1 + has_async_proxy)  # of a clock
        self.atomic_pcs: set[int] = set()  # the instructions whose recorded writes are atomic
        if self.agents > _AGENT:
            raise ValueError("too many warps in a block")
        self.agent_of_warp = np.arange(layout.warps) % layout.warps_per_block
        self.row_of_warp = (layout.block_of_warp * self.agents + self.agent_of_warp) * self.width
        self.reset()

    def reset(self) -> None:
        """Start a batch: nothing is written, every agent has seen only itself."""
        blocks, agents = self.layout.blocks, self.agents
        self.clock = np.zeros((blocks, agents, self.width), np.int64)
        self.clock[:, range(agents), range(agents)] = 1
        engines = [self.tma, *range(self.wgmma, agents)]
        self.clock[:, engines, engines] = _NEVER >> 2  # the epochs of engines are never below `floor`
        padding = range(self.layout.real_warps, self.layout.warps_per_block)
        self.clock[:, padding] = self.clock[:, :, padding] = _NEVER >> 3
        self.granule = 16
        granules = self.layout.shared_bytes * blocks // 16
        self.write = np.zeros(granules, np.int64)
        self.read = np.zeros((granules, agents), np.int64)
        self.read_time = np.zeros(granules, np.int64)
        self.now = 1
        self.settled = np.zeros(blocks, np.int64)  # accesses up to this time are ordered before all later ones
        self.changed()

    def changed(self) -> None:
        """Recompute what is derived from the clocks."""
        warps = self.layout.warps_per_block
        own = self.clock[:, range(warps), range(warps)].reshape(-1)
        self.tag = own << _CLOCK | self.agent_of_warp
        self.floor = (int(self.clock[:, :warps, :warps].min()) << _CLOCK) | 0xFFFFFFFF
        self.all_settled = int(self.settled.min())

    # Clocks.

    def join(self, blocks: Array, warps: Array, others: Array | None = None) -> None:
        """Order all past of some warps of some blocks before the future of them all.

        Parameters
        ----------
        blocks : int64 [k]
        warps : bool [k, warps_per_block]
        others : int64 [k, width], optional
            A clock that is joined too.
        """
        count = self.layout.warps_per_block
        part = self.clock[blocks, :count]
        past = np.where(warps[:, :, None], part, 0).max(1)
        if others is not None:
            past = np.maximum(past, others)
        self.clock[blocks, :count] = np.where(warps[:, :, None], past[:, None, :], part)
        diagonal = np.arange(count)
        self.clock[blocks[:, None], diagonal, diagonal] += warps
        self.settled[blocks[warps[:, : self.layout.real_warps].all(1)]] = self.now
        self.now += 1
        self.changed()

    def release(self, warps: Array) -> Array:
        """The clocks of some warps of the batch, which go on to later epochs. int64 [k, width]."""
        block, agent = self.layout.block_of_warp[warps], self.agent_of_warp[warps]
        past = self.clock[block, agent].copy()
        self.clock[block, agent, agent] += 1
        self.changed()
        result: Array = past
        return result

    def release_each(self, warps: Array) -> Array:
        """As `release`, for warps that may occur more than once."""
        distinct, inverse = np.unique(warps, return_inverse=True)
        return self.release(distinct)[inverse.reshape(-1)]

    def acquire(self, warps: Array, past: Array) -> None:
        """Order pasts (int64 [k, width]) before what these warps, some perhaps twice, do next."""
        np.maximum.at(self.clock, (self.layout.block_of_warp[warps], self.agent_of_warp[warps]), past)
        self.changed()

    def fence_proxies(self, warps: Array) -> None:
        """What is ordered before some warps of the batch (int64) becomes visible to the async proxy after them."""
        block, agent = self.layout.block_of_warp[warps], self.agent_of_warp[warps]
        past = self.clock[block, agent, : self.agents]
        visible = self.clock[block, agent, self.agents :]
        self.clock[block, agent, self.agents :] = np.maximum(past, visible)
        self.clock[block, agent, agent] += 1
        self.changed()

    def finish(self, blocks: Array) -> None:
        """Blocks that have ended no longer hold back the shortcuts."""
        self.clock[blocks] = _NEVER >> 3
        self.settled[blocks] = 1 << 60
        self.changed()

    # Accesses.

    def _granules(self, at: Array, width: int) -> Array:
        if width < self.granule:
            times = self.granule // width
            self.write, self.read_time = np.repeat(self.write, times), np.repeat(self.read_time, times)
            self.read = np.repeat(self.read, times, axis=0)
            self.granule = width
        first = at // self.granule
        if width == self.granule:
            return first[:, None]
        return first[:, None] + np.arange(width // self.granule)

    def check_read(self, who: Accessors, at: Array, width: int, pc: int) -> None:
        """Check and record reads of `width` bytes at byte `at` (int64 [n]) of the batch's shared memory."""
        granules = self._granules(at, width)
        writes = self.write[granules]
        self._after_writes(who, granules, writes, "read", pc)
        self._require_written(granules, writes, pc)
        tag = self.tag[who.warp][:, None]
        self.read.reshape(-1)[granules * self.agents + (tag & _AGENT)] = tag | pc << _PC
        self.read_time[granules] = self.now

    def check_write(self, who: Accessors, at: Array, width: int, pc: int, in_flight: bool = False) -> None:
        """Check and record writes; one `in_flight` conflicts with everything until it is recorded as landed."""
        granules = self._granules(at, width)
        self._after_writes(who, granules, self.write[granules], "write", pc)
        self._after_reads(who, granules, pc)
        if in_flight:
            self.write[granules] = _NEVER << _CLOCK | pc << _PC | self.in_flight
            return
        epoch = (self.tag[who.warp] | pc << _PC)[:, None]
        self.write[granules] = epoch
        lost = self.write[granules] != epoch
        if lost.any():
            i, j = np.argwhere(lost)[0]
            self._race(who, i, int(granules[i, j]), "write", int(self.write[granules[i, j]]), "write", pc)

    def check_atomic(self, who: Accessors, at: Array, width: int, pc: int) -> None:
        """Check and record atomic operations: they conflict with plain accesses, not with each other."""
        granules = self._granules(at, width)
        writes = self.write[granules]
        earlier = np.isin(writes >> _PC & 0xFFFFFF, list(self.atomic_pcs))
        plain = np.where(earlier, 0, writes)
        self._after_writes(who, granules, plain, "atomic operation", pc)
        self._require_written(granules, writes, pc)
        self._after_reads(who, granules, pc)
        self.atomic_pcs.add(pc)
        self.write[granules] = (self.tag[who.warp] | pc << _PC)[:, None]

    def land(self, who: Accessors, at: Array, width: int, pc: int) -> None:
        """Record that a write in flight is complete for the warps that waited for it."""
        self.write[self._granules(at, width)] = (self.tag[who.warp] | pc << _PC)[:, None]

    def _after_writes(self, who: Accessors, granules: Array, writes: Array, what: str, pc: int) -> None:
        if not writes.size or int(writes.max()) <= self.floor:
            return
        seen = self.clock.reshape(-1)[self.row_of_warp[who.warp][:, None] + (writes & _AGENT)]
        bad = writes >> _CLOCK > seen
        if bad.any():
            i, j = np.argwhere(bad)[0]
            self._race(who, i, int(granules[i, j]), what, int(writes[i, j]), "write", pc)

    def _after_reads(self, who: Accessors, granules: Array, pc: int) -> None:
        if not granules.size or int(self.read_time[granules].max()) <= self.all_settled:
            return
        reads = self.read[granules]
        block, agent = self.layout.block_of_warp[who.warp], self.agent_of_warp[who.warp]
        bad = reads >> _CLOCK > self.clock[block, agent][:, None, : self.agents]
        if bad.any():
            i, j, k = np.argwhere(bad)[0]
            earlier = int(reads[i, j, k]) & ~_AGENT | int(k)
            self._race(who, i, int(granules[i, j]), "write", earlier, "read", pc)

    # Engines: TMA, and the tensor core of each warpgroup. An operation has the past of the warps that issued it.

    def check_engine(
        self, blocks: Array, agent: Array, past: Array, at: Array, width: int, pc: int, write: bool
    ) -> Array:
        """Check and record an operation of an engine in each of some blocks.

        Parameters
        ----------
        blocks, agent : int64 [k]
            Pairs that occur once.
        past : int64 [k, width]
            What is ordered before each.
        at : int64 [k, m]
            Its accesses, bytes in the batch's shared memory.

        Returns
        -------
        int64 [k, width]
            What is ordered after each and nothing else: for `acquire`.
        """
        granules = self._granules(at.reshape(-1), width).reshape(len(blocks), -1)
        writes = self.write[granules]
        each = np.arange(len(blocks))
        bad = writes >> _CLOCK > past[each[:, None], self.agents + (writes & _AGENT)]
        what = "write" if write else "read"
        if bad.any():
            unordered = writes >> _CLOCK > past[each[:, None], writes & _AGENT]
            is_race = bool(unordered.any())
            i, j = np.argwhere(unordered if is_race else bad)[0]
            report = self._engine_race if is_race else self._missing_fence
            report(int(agent[i]), int(granules[i, j]), what, int(writes[i, j]), "write", pc)
        epoch = self.clock[blocks, agent, agent]
        value = (epoch << _CLOCK | pc << _PC | agent)[:, None]
        if write:
            reads = self.read[granules]
            bad = reads >> _CLOCK > past[:, None, : self.agents]
            if bad.any():
                i, j, k = np.argwhere(bad)[0]
                earlier = int(reads[i, j, k]) & ~_AGENT | int(k)
                self._engine_race(int(agent[i]), int(granules[i, j]), what, earlier, "read", pc)
            self.write[granules] = value
        else:
            self._require_written(granules, writes, pc)
            self.read.reshape(-1)[granules * self.agents + agent[:, None]] = value
            self.read_time[granules] = 1 << 60  # a barrier of the warps does not order it
        after = np.zeros_like(past)
        after[each, agent] = after[each, self.agents + agent] = epoch
        self.clock[blocks, agent, agent] += 1
        return after

    def past(self, warps: Array) -> Array:
        """The clocks of some warps of the batch, int64 [k, width]."""
        result: Array = self.clock[self.layout.block_of_warp[warps], self.agent_of_warp[warps]].copy()
        return result

    def _require_written(self, granules: Array, writes: Array, pc: int) -> None:
        if self.uninitialised and not writes.all():
            i, j = np.argwhere(writes == 0)[0]
            address = self._address(granules[i, j])
            self.fail("uninitialised-read", f"read of shared address {address}, which nothing has written", pc)

    # Messages.

    def _address(self, granule: int) -> int:
        return int(granule) * self.granule % self.layout.shared_bytes

    def _describe(self, epoch: int, what: str) -> str:
        agent, at = epoch & _AGENT, self.where(epoch >> _PC & 0xFFFFFF)
        if agent == self.tma:
            return f"the TMA {what} issued at {at}"
        if agent >= self.wgmma:
            return f"the wgmma of warpgroup {agent - self.wgmma} at {at}"
        if agent == self.in_flight:
            return f"the cp.async at {at}, which has not been waited for"
        return f"the {what} of warp {agent} at {at}"

    def _race(self, who: Accessors, i: int, granule: int, what: str, epoch: int, other: str, pc: int) -> NoReturn:
        warp = int(self.agent_of_warp[who.warp[i]])
        message = f"{what} of shared address {self._address(granule)} by warp {warp} races with "
        self.fail("race", message + self._describe(epoch, other), pc)

    def _engine_race(self, agent: int, granule: int, what: str, epoch: int, other: str, pc: int) -> NoReturn:
        message = f"{self._engine(agent)} {what} of shared address {self._address(granule)} races with "
        self.fail("race", message + self._describe(epoch, other), pc)

    def _missing_fence(self, agent: int, granule: int, what: str, epoch: int, other: str, pc: int) -> NoReturn:
        message = f"{self._engine(agent)} {what} of shared address {self._address(granule)} without fence.proxy.async "
        self.fail("race", message + f"after {self._describe(epoch, other)}", pc)

    def _engine(self, agent: int) -> str:
        return "TMA" if agent == self.tma else "wgmma"


class Prerequisites:
    """What comes after the grids that a launch depends on, where it may begin before they have ended.

    ``waited[w]``: the epoch in which warp w of the batch executed griddepcontrol.wait, `_NEVER` before.
    """

    def __init__(self, layout: Layout, order: SharedOrder | None, fail: Fail, name: Callable[[Accessors, int], str]):
        self.layout, self.order, self.fail, self.name = layout, order, fail, name
        self.anyone = False  # of the whole grid
        self.reset()

    def reset(self) -> None:
        """Start a batch."""
        self.waited = np.full(self.layout.warps, _NEVER, np.int64)

    def wait(self, warps: Array) -> None:
        """Some warps of the batch (int64) have waited."""
        self.anyone = True
        now = self.order.tag[warps] >> _CLOCK if self.order is not None else 0
        self.waited[warps] = np.minimum(self.waited[warps], now)

    def check(self, who: Accessors, what: str, pc: int) -> None:
        """Check accesses to global memory, by who issues them."""
        unsure = np.flatnonzero(self.waited[who.warp] == _NEVER)
        if unsure.size and self.order is not None:
            warps = who.warp[unsure]
            count = self.layout.warps_per_block
            block = self.layout.block_of_warp[warps]
            seen = self.order.clock[block, self.order.agent_of_warp[warps], :count]
            unsure = unsure[~(self.waited.reshape(-1, count)[block] <= seen).any(1)]
        if unsure.size:
            message = f"{what} of global memory by {self.name(who, int(unsure[0]))} before griddepcontrol.wait: "
            self.fail("race", message + "the grid that this launch depends on may not have ended", pc)


_NONE, _MANY = -1, -2  # no block; more than one


class _Touched:
    """The blocks that touched the granules of one allocation: block << 24 | instruction."""

    def __init__(self, size: int) -> None:
        self.granule = 16
        self.writer, self.reader, self.atomic = (np.full(size // 16, _NONE, np.int64) for _ in range(3))
        self.has_writes = self.has_atomics = False

    def granules(self, offset: Array, width: int) -> Array:
        if width < self.granule:
            times = self.granule // width
            self.writer, self.reader, self.atomic = (
                np.repeat(x, times) for x in (self.writer, self.reader, self.atomic)
            )
            self.granule = width
        first = offset // self.granule
        return first[:, None] if width == self.granule else first[:, None] + np.arange(width // self.granule)


class GlobalOrder:
    """Accesses of the blocks of a launch to global memory."""

    def __init__(self, fail: Fail, where: Where) -> None:
        self.fail, self.where = fail, where
        self.touched: dict[Allocation, _Touched] = {}
        self.fenced: set[int] = set()
        self.released: dict[int, set[int]] = {}
        self.acquired: dict[int, set[int]] = {}

    def fence(self, blocks: Array) -> None:
        """Blocks have executed a fence of gpu scope or wider."""
        self.fenced.update(int(b) for b in np.unique(blocks))

    def synchronise(self, blocks: Array, addresses: Array) -> None:
        """Atomic operations: what fenced blocks did before is visible to those that come to the same address later."""
        if not self.fenced:
            return
        for block, address in dict.fromkeys(zip(blocks.tolist(), addresses.tolist())):
            seen = self.released.setdefault(address, set())
            if block in self.fenced:
                self.acquired.setdefault(block, set()).update(seen)
                seen |= {block} | self.acquired[block]

    def check(
        self, allocation: Allocation, offset: Array, width: int, blocks: Array, pc: int, write: bool, atomic: bool
    ) -> None:
        """Check and record accesses of `width` bytes at `offset` (int64 [n]) by `blocks` (int64 [n], of the grid)."""
        touched = self.touched.get(allocation)
        if touched is None:
            touched = self.touched[allocation] = _Touched(allocation.data.size)
        at = touched.granules(offset, width)
        block = blocks[:, None]
        what = "write" if write else "read"
        if touched.has_writes:
            self._conflict(allocation, touched, at, touched.writer[at], block, what, "write", pc)
        if touched.has_atomics and not atomic:
            self._conflict(allocation, touched, at, touched.atomic[at], block, what, "atomic operation", pc)
        if write:
            self._conflict(allocation, touched, at, touched.reader[at], block, what, "read", pc)
        value = block << 24 | pc
        if atomic:
            touched.has_atomics = True
            self._record(touched.atomic, at, value)
        elif write:
            touched.has_writes = True
            touched.writer[at] = value
            lost = touched.writer[at] != value
            if lost.any():
                self._conflict(allocation, touched, at, touched.writer[at], block, what, "write", pc)
        else:
            self._record(touched.reader, at, value)

    def _record(self, table: Array, at: Array, value: Array) -> None:
        before = table[at]
        new = np.where((before == _NONE) | (before >> 24 == value >> 24), value, _MANY)
        table[at] = new
        lost = table[at] >> 24 != new >> 24
        if lost.any():
            table[at[lost]] = _MANY

    def _conflict(
        self, allocation: Allocation, touched: _Touched, at: Array, before: Array, block: Array, what: str, other: str,
        pc: int,
    ) -> None:  # fmt: skip
        bad = (before != _NONE) & ((before == _MANY) | (before >> 24 != block))
        if not bad.any():
            return
        for i, j in np.argwhere(bad):
            by, earlier = int(block[i, 0]), int(before[i, j])
            if earlier != _MANY and earlier >> 24 in self.acquired.get(by, ()):
                continue
            offset = int(at[i, j]) * touched.granule
            message = f"{what} of byte {offset} of {allocation} by block {by} races with the {other} of "
            if earlier == _MANY:
                self.fail("race", message + "other blocks", pc)
            self.fail("race", message + f"block {earlier >> 24} at {self.where(earlier & 0xFFFFFF)}", pc)
