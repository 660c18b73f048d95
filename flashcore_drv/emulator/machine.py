"""The execution of a launch: batches of blocks, all of whose threads step together.

A batch keeps its ready threads by program counter. With seed 0 the lowest program counter runs first, so threads that
diverged meet again by themselves; with other seeds random sets of warps run ahead until they block. Threads of a
warp-wide instruction wait until the whole warp has come; what never comes is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TypeVar

import numpy as np

from flashcore_drv.emulator.errors import EmulationError
from flashcore_drv.emulator.instructions import Row, Site, find, unknown
from flashcore_drv.emulator.memory import DeviceMemory
from flashcore_drv.emulator.ordering import GlobalOrder, Prerequisites, SharedOrder
from flashcore_drv.emulator.parser import Entry, Program, align_up
from flashcore_drv.emulator.registers import Operation, Registers
from flashcore_drv.emulator.report import LineCounts, Report
from flashcore_drv.emulator.selection import Accessors, Array, Layout, Selection
from flashcore_drv.emulator.spaces import Spaces
from flashcore_drv.emulator.traffic import Traffic

Control = Callable[[Selection], int | None]
"""A decoded branch or wait: the program counter where all selected threads go on, or None where they were sent."""


@dataclass(frozen=True)
class Checks:
    """What is checked and counted; without bounds and alignment the emulator cannot go on, so they always are.

    Attributes
    ----------
    races, global_races : bool
        Unordered conflicting accesses in shared memory, and between blocks in global memory or with earlier launches.
    bounds, alignment : bool
        Of every access; always checked.
    uninitialised : bool
        Reads of shared or global memory that nothing wrote.
    divergence : bool
        Warp-wide instructions that only a part of a warp executes.
    bank_conflicts, counters : bool
        Counts by source line (slower; off unless asked for).
    """

    races: bool = True
    global_races: bool = True
    bounds: bool = True
    alignment: bool = True
    uninitialised: bool = True
    divergence: bool = True
    bank_conflicts: bool = False
    counters: bool = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All checks."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def none(cls) -> Checks:
        """Nothing but what emulation itself needs."""
        return cls(**dict.fromkeys(cls.names(), False))

    @classmethod
    def all(cls) -> Checks:
        """Everything, counts included."""
        return cls(**dict.fromkeys(cls.names(), True))

    @classmethod
    def parse(cls, text: str) -> Checks:
        """The checks of a comma-separated list, such as ``"races,bounds"``, ``"all"`` or ``"none"``.

        Raises
        ------
        ValueError
            For a name that is not a check.
        """
        if text.strip() == "all":
            return cls.all()
        wanted = {name.strip() for name in text.split(",")} - {"", "none"}
        unknown_names = sorted(wanted - set(cls.names()))
        if unknown_names:
            raise ValueError(f"unknown checks {', '.join(unknown_names)}; there are {', '.join(cls.names())}")
        return cls(**{name: name in wanted for name in cls.names()})


@dataclass(frozen=True)
class Limits:
    """What an architecture can launch.

    Attributes
    ----------
    max_threads_per_block : int
    max_block : tuple of int
        Threads along x, y, z.
    max_grid : tuple of int
        Blocks along x, y, z.
    max_shared_per_block, max_shared_default : int
        Bytes of shared memory a block can have after opting in, and without.
    max_registers_per_block, max_registers_per_thread : int
        Physical ones; a kernel's need is known only to ptxas, so it is the driver that checks them.
    max_instructions : int
        Instructions that a batch of blocks may take before it is said to hang.
    """

    max_threads_per_block: int = 1024
    max_block: tuple[int, int, int] = (1024, 1024, 64)
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    max_shared_per_block: int = 101376
    max_shared_default: int = 49152
    max_registers_per_block: int = 65536
    max_registers_per_thread: int = 255
    max_instructions: int = 20_000_000

    def check(self, entry: Entry, grid: tuple[int, int, int], block: tuple[int, int, int], dynamic_shared: int) -> None:
        """Raise EmulationError "launch-limit" for a launch that does not fit."""
        threads = block[0] * block[1] * block[2]
        shared = entry.shared_static_bytes + dynamic_shared
        problem = ""
        if min(*grid, *block) < 1:
            problem = f"grid {grid} and block {block} must be positive"
        elif threads > self.max_threads_per_block or any(b > m for b, m in zip(block, self.max_block)):
            problem = f"{threads} threads {block} a block, of at most {self.max_threads_per_block} {self.max_block}"
        elif any(g > m for g, m in zip(grid, self.max_grid)):
            problem = f"grid {grid}, of at most {self.max_grid}"
        elif entry.max_threads is not None and threads > entry.max_threads:
            problem = f"{threads} threads a block, but the kernel is built for at most {entry.max_threads}"
        elif shared > self.max_shared_per_block:
            problem = f"{shared} bytes of shared memory a block, of at most {self.max_shared_per_block}"
        if problem:
            raise EmulationError("launch-limit", f"{entry.name}: {problem}")


_State = TypeVar("_State")


class Incomplete(Exception):
    """A warp-wide instruction was reached by a part of a warp; the threads wait for the others."""

    def __init__(self, selection: Selection, required: Array, width: int = 32) -> None:
        self.selection, self.required, self.width = selection, required, width


@dataclass
class _Segment:
    """Instructions without a branch, and what ends them."""

    start: int
    end: int
    operations: list[Operation]
    control: Control | None


@dataclass
class Waiting:
    """Threads that wait for an event, where they go on, and what they wait at."""

    mask: Array
    resume: int
    pc: int


@dataclass
class Submitted:
    """Asynchronous work that nothing has waited for yet; `run` lands it."""

    pc: int
    run: Callable[[], None]


@dataclass
class LaunchState:
    """What the batches of one launch share."""

    memory: DeviceMemory
    checks: Checks
    limits: Limits
    seed: int
    random: np.random.Generator
    global_order: GlobalOrder | None
    traffic: Traffic = field(default_factory=Traffic)


class Machine:
    """Runs batches of up to `blocks` blocks of one kernel.

    Attributes
    ----------
    layout : Layout
    registers : Registers
    spaces : Spaces
    order : SharedOrder or None
    global_order : GlobalOrder or None
    prerequisites : Prerequisites or None
        Of a launch that may begin before those that it depends on have ended.
    live : bool [n]
        Threads that have not ended.
    block_ids : int64 [blocks]
        Linear index in the grid of each block of the batch.
    """

    def __init__(
        self, entry: Entry, state: LaunchState, blocks: int, grid: tuple[int, int, int], block: tuple[int, int, int],
        dynamic_shared_bytes: int, globals_: Mapping[str, int], device: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.entry, self.grid, self.block, self.globals, self.device = entry, grid, block, globals_, device
        self.dynamic_shared_bytes = dynamic_shared_bytes
        dynamic_start = max([entry.shared_static_bytes, *entry.shared.values()])
        self.shared_bytes = dynamic_start + dynamic_shared_bytes if dynamic_shared_bytes else entry.shared_static_bytes
        has_warpgroups = any(i.name in ("wgmma", "setmaxnreg") for i in entry.code)
        self.has_async_proxy = any(i.name == "wgmma" or i.opcode.startswith("cp.async.bulk") for i in entry.code)
        stride = align_up(max(self.shared_bytes, 16), 128)
        self.layout = Layout(blocks, block[0] * block[1] * block[2], stride, has_warpgroups)
        self.registers = Registers(entry.register_types, self.layout.n)
        self.block_ids = np.zeros(blocks, np.int64)
        self.specials: dict[str, Array] = {}
        self.prerequisites: Prerequisites | None = None
        self.use(state)
        self.spaces = Spaces(self, state.memory)
        self.carry = np.zeros(self.layout.n, np.bool_)
        self.leaders = set(entry.labels.values())
        self.segments: dict[int, _Segment] = {}
        self.executed = np.zeros(len(entry.code) + 1, np.int64)

    def use(self, state: LaunchState) -> None:
        """Belong to a launch."""
        self.state, self.checks, self.traffic = state, state.checks, state.traffic
        self.global_order, self.random = state.global_order, state.random
        self.order = (
            SharedOrder(
                self.layout, self.shared_bytes, self.fail, self.where, self.checks.uninitialised, self.has_async_proxy
            )
            if self.checks.races and self.shared_bytes
            else None
        )

    # Errors.

    def where(self, pc: int) -> str:
        """``file:line`` of an instruction."""
        return self.entry.where(self.entry.code[pc].source)

    def fail(self, kind: str, message: str, pc: int) -> NoReturn:
        """Raise an EmulationError at an instruction."""
        raise EmulationError(kind, message, self.where(pc), self.entry.callers(self.entry.code[pc].source))

    def block_name(self, block: int) -> str:
        """``(x, y, z)`` of a block of the batch."""
        linear = int(self.block_ids[block])
        x, y, _ = self.grid
        return f"({linear % x}, {linear // x % y}, {linear // (x * y)})"

    def name_access(self, who: Accessors, i: int) -> str:
        """Who makes the i-th of some accesses."""
        warp = int(who.warp[i])
        block = int(self.layout.block_of_warp[warp])
        if who.thread is None:
            return f"warp {warp % self.layout.warps_per_block} of block {self.block_name(block)}"
        return f"thread {int(self.layout.thread[who.thread[i]])} of block {self.block_name(block)}"

    # A batch.

    def run(self, block_ids: Array, params: bytes) -> None:
        """Run blocks from start to end; lanes past the last block stay dead."""
        count = block_ids.size
        self.block_ids[:count] = block_ids
        self.block_ids[count:] = 0
        self._fill_specials()
        self.registers.poison()
        self.spaces.reset(params)
        self.live = self.layout.exists & (self.layout.block < count)
        if self.order is not None:
            self.order.reset()
            self.order.finish(np.arange(count, self.layout.blocks))
        if self.prerequisites is not None:
            self.prerequisites.reset()
        self.ready: dict[int, Array] = {0: self.live.copy()}
        self.parked: dict[int, tuple[Array, Array, int]] = {}
        self.polling: list[Waiting] = []
        self.submitted: list[Submitted] = []
        self.at_exit: list[Callable[[Array], None]] = []
        self.states: dict[Any, Any] = {}
        self.steps = 0
        self.idle_polls = 0
        with np.errstate(all="ignore"):
            while self._advance():
                pass

    def _advance(self) -> bool:
        if not self.ready:
            if self.submitted:
                # Last in, first out with seed 0: the order that nothing promises.
                last = len(self.submitted) - 1
                self.idle_polls = 0
                self.submitted.pop(int(self.random.integers(last + 1)) if self.state.seed else last).run()
                return True
            if self.polling and self.idle_polls < 2000:
                self.idle_polls += 1
                for waiting in self.take_polling():
                    self.make_ready(waiting.resume, waiting.mask)
                return True
            if not self.live.any():
                return False
            self._stuck()
        if self.state.seed == 0:
            self._run_lowest(1 << 62)
            return True
        ahead = self.random.random(self.layout.warps) < self.random.choice([0.1, 0.5, 0.9])
        chosen = np.repeat(ahead, 32)
        aside: dict[int, Array] = {}
        for pc, mask in self.ready.items():
            if (mask & ~chosen).any():
                aside[pc] = mask & ~chosen
        self.ready = {pc: mask & chosen for pc, mask in self.ready.items() if (mask & chosen).any()}
        budget = int(self.random.choice([3, 30, 1000]))
        while self.ready and budget:
            self._run_lowest(1)
            budget -= 1
        for pc, mask in aside.items():
            self.make_ready(pc, mask)
        return True

    def _run_lowest(self, budget: int) -> None:
        """Run the threads at the lowest program counter until they block, meet others or have used their budget."""
        pc = min(self.ready)
        selection = Selection(self.layout, self.ready.pop(pc))
        spins = 0
        while budget:
            budget -= 1
            segment = self.segments.get(pc) or self._decode(pc)
            warps = selection.n // 32 if selection.whole else selection.warps.size
            self.executed[segment.start] += warps
            self.executed[segment.end] -= warps
            self.steps += segment.end - segment.start
            if self.steps > self.state.limits.max_instructions:
                self.fail("watchdog", f"still running after {self.steps} instructions", pc)
            done = 0
            try:
                for operation in segment.operations:
                    operation(selection)
                    done += 1
                following = segment.control(selection) if segment.control else segment.end
            except Incomplete as incomplete:
                self._park(segment.start + done, selection, incomplete)
                return
            if following is None:
                return
            if following <= pc:
                spins += 1
            pc = following
            if self.ready and (pc >= min(self.ready) or spins > 10000):
                if pc < min(self.ready):  # a spinning group: let the others go on
                    mask, other = selection.mask, max(self.ready)
                    selection = Selection(self.layout, self.ready.pop(other))
                    self.make_ready(pc, mask)
                    pc, spins = other, 0
                    continue
                break
        self.make_ready(pc, selection.mask)

    def make_ready(self, pc: int, mask: Array) -> None:
        """Let threads go on at a program counter."""
        before = self.ready.get(pc)
        self.ready[pc] = mask if before is None else before | mask

    def _decode(self, start: int) -> _Segment:
        code, pc = self.entry.code, start
        operations: list[Operation] = []
        while pc < len(code):
            instruction = code[pc]
            site = Site(self, instruction, pc)
            row = find(instruction)
            if row is None:
                raise unknown(site)
            built = self._build(site, row)
            if row.is_control:
                segment = _Segment(start, pc + 1, operations, self._guarded_control(site, built))
                break
            operations.append(self._guarded(site, built))
            pc += 1
            if pc in self.leaders:
                segment = _Segment(start, pc, operations, None)
                break
        else:
            raise EmulationError("trap", f"{self.entry.name} runs past its last instruction", self.where(len(code) - 1))
        self.segments[start] = segment
        return segment

    @staticmethod
    def _build(site: Site, row: Row) -> Any:
        try:
            return row.build(site)
        except (ValueError, IndexError, KeyError, AttributeError, AssertionError, StopIteration) as error:
            message = f"{site.instruction.opcode} with these operands is not emulated ({error or type(error).__name__})"
            raise EmulationError("unknown-instruction", f"{message}: extend {row.file}", site.where) from error

    def _guarded(self, site: Site, operation: Operation) -> Operation:
        """A predicated instruction: nothing happens for threads whose predicate does not hold."""
        instruction = site.instruction
        if instruction.predicate is None:
            return operation
        predicate, negated = self.registers.arrays[instruction.predicate.name], instruction.negated

        def guarded(selection: Selection) -> None:
            chosen = selection.pick(predicate)
            if negated:
                chosen = ~chosen
            count = int(np.count_nonzero(chosen))
            if count == selection.n:
                operation(selection)
            elif count:
                operation(selection.narrow(chosen))

        return guarded

    def _guarded_control(self, site: Site, control: Control) -> Control:
        """A predicated wait or exit; branches look at their predicate themselves."""
        instruction = site.instruction
        if instruction.predicate is None or instruction.name == "bra":
            return control
        predicate, negated, after = self.registers.arrays[instruction.predicate.name], instruction.negated, site.pc + 1

        def guarded(selection: Selection) -> int | None:
            chosen = selection.pick(predicate)
            if negated:
                chosen = ~chosen
            count = int(np.count_nonzero(chosen))
            if count == selection.n:
                return control(selection)
            if count == 0:
                return after
            self.make_ready(after, selection.narrow(~chosen).mask)
            part = selection.narrow(chosen)
            following = control(part)
            if following is not None:
                self.make_ready(following, part.mask)
            return None

        return guarded

    # Waiting.

    def shared_state(self, kind: Callable[[Machine], _State]) -> _State:
        """What instructions of a family keep for the batch: one object of a class, made when it is first asked for."""
        if kind not in self.states:
            self.states[kind] = kind(self)
        return self.states[kind]  # type: ignore[no-any-return]

    def converge(self, selection: Selection) -> None:
        """Let a warp-wide instruction go on only with whole warps."""
        if selection.whole or not self.checks.divergence:
            return
        lanes = (selection.mask.reshape(-1, 32).any(1)).repeat(32) & self.layout.exists
        if (lanes & ~selection.mask).any():
            raise Incomplete(selection, lanes)

    def converge_warpgroup(self, selection: Selection, allows_fewer: bool = False) -> None:
        """Let a warpgroup-wide instruction go on only with whole warpgroups (four warps from a multiple of four on).

        `allows_fewer`: the last one of a block may have fewer warps.
        """
        if selection.full:
            return
        lanes = selection.mask.reshape(-1, 128).any(1).repeat(128) & (self.layout.exists | (not allows_fewer))
        if (lanes & ~selection.mask).any():
            raise Incomplete(selection, lanes, 128)

    def gather(self, selection: Selection, required: Array) -> None:
        """Let an instruction with a member mask go on only with its members (bool [n]) that have not ended."""
        if not self.checks.divergence:
            return
        required = required & self.live
        if (required & ~selection.mask).any():
            raise Incomplete(selection, required)

    def _park(self, pc: int, selection: Selection, incomplete: Incomplete) -> None:
        skipped = selection.mask & ~incomplete.selection.mask
        if skipped.any():
            self._leader(pc + 1)
            self.make_ready(pc + 1, skipped)
        self._leader(pc)
        mask, required = incomplete.selection.mask, incomplete.required
        if pc in self.parked:
            mask, required = mask | self.parked[pc][0], required | self.parked[pc][1]
            del self.parked[pc]
        width = incomplete.width
        missing = (required & ~mask).reshape(-1, width).any(1).repeat(width)
        if (mask & ~missing).any():
            self.make_ready(pc, mask & ~missing)
        if (mask & missing).any():
            self.parked[pc] = mask & missing, required & missing, width

    def _leader(self, pc: int) -> None:
        """Threads start here: what runs past must stop to meet them."""
        if pc not in self.leaders:
            self.leaders.add(pc)
            self.segments = {s: g for s, g in self.segments.items() if not (s < pc < g.end)}

    def exit(self, selection: Selection) -> None:
        """End threads; waits that counted on them are looked at again."""
        self.live &= ~selection.mask
        for hook in self.at_exit:
            hook(selection.mask)
        for pc, (mask, _, _) in self.parked.items():
            self.make_ready(pc, mask)
        self.parked = {}
        if self.order is not None:
            alive = self.live.reshape(self.layout.blocks, -1).any(1)
            self.order.finish(np.flatnonzero(~alive))

    def submit(self, pc: int, run: Callable[[], None]) -> None:
        """Let asynchronous work land when nothing else is left to do."""
        self.submitted.append(Submitted(pc, run))

    def poll(self, selection: Selection, pc: int) -> None:
        """Put threads aside that ask again and again, until something changes or nothing else is left to do."""
        self.polling.append(Waiting(selection.mask, pc + 1, pc))

    def take_polling(self, blocks: Array | None = None) -> list[Waiting]:
        """Remove and return the polling threads (of some blocks of the batch)."""
        if blocks is None:
            taken, self.polling = self.polling, []
            return taken
        inside = np.isin(self.layout.block, blocks)
        taken, kept = [], []
        for w in self.polling:
            if (w.mask & inside).any():
                taken.append(Waiting(w.mask & inside, w.resume, w.pc))
            if (w.mask & ~inside).any():
                kept.append(Waiting(w.mask & ~inside, w.resume, w.pc))
        self.polling = kept
        return taken

    def waiting_places(self) -> list[tuple[int, Array]]:
        """Every instruction at which threads wait, and who."""
        places = [(w.pc, w.mask) for w in self.polling]
        for holder in self.states.values():
            places += getattr(holder, "places", list)()
        return places

    def _stuck(self) -> NoReturn:
        places = self.waiting_places()
        if self.parked:
            pc = min(self.parked)
            mask, required, width = self.parked[pc]
            first = int(np.flatnonzero(mask)[0]) // width * width
            warp, lanes = first // 32, slice(first, first + width)
            missing = required[lanes] & ~mask[lanes]
            what = "warp" if width == 32 else "the warpgroup from warp"
            block = self.block_name(int(self.layout.block_of_warp[warp]))
            names = f"{what} {warp % self.layout.warps_per_block} of block {block}"
            reason = []
            if (missing & ~self.live[lanes]).any():
                reason.append("have ended")
            places += [(p, m) for p, (m, _, _) in self.parked.items() if p != pc]
            others = sorted({self.where(p) for p, m in places if (m[lanes] & missing).any()})
            if others:
                reason.append("wait at " + ", ".join(others))
            text = f"{self.entry.code[pc].opcode} is reached by lanes {_ranges(mask[lanes])} of {names} alone"
            text += f"; lanes {_ranges(missing)} {' or '.join(reason) or 'never come'}"
            self.fail("divergence", text, pc)
        if not places:
            raise EmulationError("deadlock", f"threads of {self.entry.name} wait for nothing that can happen")
        reasons = [found for holder in self.states.values() for found in getattr(holder, "reasons", list)()]
        first = min(pc for pc, _ in reasons or places)
        waits = [reason for _, reason in reasons]
        for pc in sorted({pc for pc, _ in places}):
            mask = np.logical_or.reduce([m for p, m in places if p == pc])
            warps = sorted({int(w) % self.layout.warps_per_block for w in np.flatnonzero(mask) // 32})
            waits.append(f"warps {_ranges_of(warps)} at {self.where(pc)} ({self.entry.code[pc].opcode})")
        self.fail("deadlock", "threads wait for ever: " + "; ".join(waits), first)

    # Special registers and symbols.

    def special(self, name: str) -> Array:
        """A special register, uint32 or uint64 [n]."""
        if name not in self.specials:
            wide = name in ("%clock64", "%globaltimer")
            self.specials[name] = np.zeros(self.layout.n, np.uint64 if wide else np.uint32)
            self._fill_special(name)
        return self.specials[name]

    def _fill_specials(self) -> None:
        for name in self.specials:
            self._fill_special(name)

    def _fill_special(self, name: str) -> None:
        self.specials[name][...] = self._special_value(name)

    def _special_value(self, name: str) -> Array | int:
        layout, kind, axis = self.layout, name[1:].split(".")[0], "xyzw".find(name[-1])
        bx, by, _ = self.block
        gx, gy, _ = self.grid
        block_id = self.block_ids[layout.block]
        lane = layout.everyone % 32
        match kind:
            case "tid":
                return (layout.thread % bx, layout.thread // bx % by, layout.thread // (bx * by), 0)[axis]
            case "ntid":
                return (*self.block, 0)[axis]
            case "ctaid" | "clusterid":
                return (block_id % gx, block_id // gx % gy, block_id // (gx * gy), 0)[axis]
            case "nctaid" | "nclusterid":
                return (*self.grid, 0)[axis]
            case "cluster_nctaid":
                return (1, 1, 1, 0)[axis]
            case "cluster_nctarank" | "nwarpid":
                return 1 if kind == "cluster_nctarank" else layout.real_warps
            case "laneid":
                return lane
            case "warpid":
                return layout.thread // 32
            case "nsmid":
                return self.device.get("multiprocessors", 1)
            case "smid":
                return block_id % self.device.get("multiprocessors", 1)
            case "lanemask_eq":
                return 1 << lane
            case "lanemask_lt":
                return (1 << lane) - 1
            case "lanemask_le":
                return (2 << lane) - 1
            case "lanemask_gt":
                return (0xFFFFFFFF << lane + 1) & 0xFFFFFFFF
            case "lanemask_ge":
                return (0xFFFFFFFF << lane) & 0xFFFFFFFF
            case "dynamic_smem_size":
                return self.dynamic_shared_bytes
            case "total_smem_size" | "aggr_smem_size":
                return self.shared_bytes
            case _:  # cluster_ctaid, cluster_ctarank, gridid, is_explicit_cluster, envreg; clocks are set when read
                return 0


def _ranges_of(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2, 5``."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _ranges(mask: Array) -> str:
    return _ranges_of([int(i) for i in np.flatnonzero(mask)])


_BATCH_THREADS = 8192
_BATCH_BYTES = 1 << 28


def _batch_size(entry: Entry, total: int, threads: int, shared_bytes: int, checks: Checks) -> int:
    """Blocks that run together: enough threads to hide the interpreter, few enough to stay in memory."""
    warps = -(-threads // 32)
    registers = sum(
        16 if t == "b128" else 8 if "64" in t else 1 if t == "pred" else 4 for t in entry.register_types.values()
    )
    per_block = warps * 32 * (registers + entry.local_bytes)
    per_block += shared_bytes * (1 + (2 + (warps + 2)) * 8 // 4 * checks.races)
    size = max(1, min(_BATCH_THREADS // (warps * 32), _BATCH_BYTES // max(per_block, 1)))
    batches = -(-total // size)
    return -(-total // batches)


def launch(
    entry: Entry,
    program: Program,
    *,
    params: bytes,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    dynamic_shared_bytes: int,
    memory: DeviceMemory,
    globals_: Mapping[str, int],
    limits: Limits | None = None,
    checks: Checks = Checks(),
    seed: int = 0,
    device: Mapping[str, int] | None = None,
    dependent: bool = False,
) -> Report:
    """Run a kernel to its end.

    Parameters
    ----------
    entry, program
        The kernel and the module that holds it.
    params : bytes
        The parameter bank, laid out as `entry.params` says.
    grid, block : tuple of int
        Blocks and threads along x, y, z.
    dynamic_shared_bytes : int
    memory : DeviceMemory
        What the kernel reads and writes.
    globals_ : mapping
        Address in `memory` of every module variable in global or const space.
    limits : Limits, optional
        Of the architecture.
    checks : Checks
    seed : int
        Order of blocks and warps: 0 is the fast lock-step order, others are random.
    device : mapping, optional
        ``multiprocessors``: number of SMs, for ``%nsmid``.
    dependent : bool
        Whether it may begin before those that it depends on have ended, so that it has to wait for them itself, in at
        least one thread: what depends on it waits for no other. Without the check `global_races` it need not.

    Returns
    -------
    Report
        Dynamic counts by source line; memory traffic only with the checks `counters` and `bank_conflicts`.

    Raises
    ------
    EmulationError
        For anything that is wrong with the kernel, with its source line.
    """
    limits = limits or Limits()
    limits.check(entry, grid, block, dynamic_shared_bytes)
    end = max((p.offset + p.size for p in entry.params), default=0)
    if len(params) < end:
        raise EmulationError("launch-limit", f"{entry.name} takes {end} bytes of parameters, not {len(params)}")
    total = grid[0] * grid[1] * grid[2]
    threads = block[0] * block[1] * block[2]
    traffic = Traffic()
    state = LaunchState(memory, checks, limits, seed, np.random.default_rng(seed), None, traffic)
    size = _batch_size(entry, total, threads, entry.shared_static_bytes + dynamic_shared_bytes, checks)
    machine = Machine(entry, state, size, grid, block, dynamic_shared_bytes, globals_, device or {})
    if checks.global_races and total > 1:
        state.global_order = machine.global_order = GlobalOrder(machine.fail, machine.where)
    if checks.global_races and dependent:
        machine.prerequisites = Prerequisites(machine.layout, machine.order, machine.fail, machine.name_access)
    order = np.arange(total) if seed == 0 else state.random.permutation(total)
    for start in range(0, total, size):
        machine.run(order[start : start + size], params[:end])
    if machine.prerequisites is not None and not machine.prerequisites.anyone:
        raise EmulationError("race", f"{entry.name} may begin early and ends without griddepcontrol.wait")
    return _report(entry, machine.executed, traffic)


def _report(entry: Entry, executed: Array, traffic: Traffic) -> Report:
    report = Report()
    rows: dict[tuple[int, int], LineCounts] = {}
    counts = np.cumsum(executed)
    for pc in np.flatnonzero(counts[:-1]).tolist():
        instruction = entry.code[pc]
        place = instruction.source.file, instruction.source.line
        if place not in rows:
            file, line = entry.where(instruction.source).rsplit(":", 1)
            rows[place] = report.line(file, int(line))
        row, count = rows[place], int(counts[pc])
        row.instructions += count
        row.opcodes[instruction.opcode] = row.opcodes.get(instruction.opcode, 0) + count
        found = find(instruction)
        pipe = found.pipe if found else "unknown"
        row.pipes[pipe] = row.pipes.get(pipe, 0) + count
        row.shared_accesses += traffic.accesses[pc]
        row.shared_wavefronts += traffic.wavefronts[pc]
        row.bank_conflicts += traffic.conflicts[pc]
        row.global_requests += traffic.requests[pc]
        row.global_sectors += traffic.sectors[pc]
    return report
