"""Warpgroup matrix multiplication (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions").

A multiplication lands when its warpgroup waits for its group; until then the accumulator registers hold NaN. It reads
shared memory with the order that all four warps had when they issued it. Sums are in double precision, rounded to the
accumulator's type after each instruction. A GPU cuts the terms of a sum 25 bits below the largest, with 8-bit floats
only 13 bits below: what e4m3 and e5m2 lose that way on a GPU is not seen here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashcore_drv.emulator.instructions.matrix import ELEMENT_BYTES, Accumulator, accumulator, input_fragment, values
from flashcore_drv.emulator.instructions.table import Site, instruction
from flashcore_drv.emulator.instructions.tma import swizzled
from flashcore_drv.emulator.parser import Immediate, Register, Vector
from flashcore_drv.emulator.registers import Operation
from flashcore_drv.emulator.selection import Accessors, Array, Selection

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Machine

_SWIZZLE_BYTES = (0, 128, 64, 32)  # by the descriptor's mode
_SWIZZLE_BITS = (0, 7, 3, 1)


@dataclass
class _Operand:
    """A matrix in shared memory behind descriptors, or in registers."""

    kind: str
    rows: int  # m of A, n of B
    k: int
    by_rows: bool  # k is the contiguous dimension
    descriptor: Array | None  # uint64 [groups]
    registers: Array | None  # uint32 [groups, rows, words]


@dataclass
class _Multiplication:
    """One wgmma.mma_async in flight: arrays over its warpgroups."""

    groups: Array
    batch: Array
    a: _Operand
    b: _Operand
    accumulate: Array
    signs: int
    past: Array
    destination: tuple[str, ...]
    saturate: bool
    pc: int


class Warpgroups:
    """Multiplications in flight, by warpgroup of the batch, and the accumulators that they will write."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.count = machine.layout.warps // 4
        self.committed = np.zeros(self.count, np.int64)
        self.flying: list[_Multiplication] = []
        self.accumulators: dict[tuple[str, ...], tuple[Accumulator, Array, Array]] = {}

    def issue(self, selection: Selection, target: Accumulator, job: _Multiplication) -> None:
        """Take the accumulator registers away until the warpgroups have waited."""
        if job.destination not in self.accumulators:
            shape = self.count, 64, target.columns
            self.accumulators[job.destination] = target, np.zeros(shape), np.zeros(self.count, np.int64)
        _, kept, flying = self.accumulators[job.destination]
        new = flying[job.groups] == 0
        if new.any():
            now = target.read(selection).reshape(-1, 64, target.columns)
            kept[job.groups[new]] = now[new]
        flying[job.groups] += 1
        for register in target.registers:
            selection.put(register.view(np.uint32), 0xFFFFFFFF)
        self.flying.append(job)

    def wait(self, selection: Selection, pending: int) -> None:
        """Land the multiplications of all but the last `pending` groups."""
        waiting = np.zeros(self.count, np.bool_)
        waiting[selection.index[::128] // 128] = True
        left = []
        for job in self.flying:
            due = waiting[job.groups] & (job.batch < self.committed[job.groups] - pending)
            if due.any():
                self._land(job if due.all() else _part(job, due))
            if not due.all():
                left.append(_part(job, ~due))
        self.flying = left

    def _land(self, job: _Multiplication) -> None:
        target, kept, flying = self.accumulators[job.destination]
        a, b = self._matrix(job, job.a), self._matrix(job, job.b)
        total = a @ b.swapaxes(1, 2)
        if job.signs < 0:
            np.negative(total, out=total)
        total += np.where(job.accumulate[:, None, None], kept[job.groups], 0)
        if target.kind == "s32":
            total = np.clip(total, -(2.0**31), 2.0**31 - 1) if job.saturate else (
                total.astype(np.int64).astype(np.int32).astype(np.float64)
            )  # fmt: skip
        else:
            total = total.astype(np.float16 if target.kind == "f16" else np.float32).astype(np.float64)
        kept[job.groups] = total
        flying[job.groups] -= 1
        done = job.groups[flying[job.groups] == 0]
        if done.size:
            mask = np.zeros(self.count, np.bool_)
            mask[done] = True
            threads = Selection(self.machine.layout, np.repeat(mask, 128))
            target.write(threads, kept[np.flatnonzero(mask)].reshape(-1, 16, target.columns))

    def _matrix(self, job: _Multiplication, operand: _Operand) -> Array:
        """float64 [groups, rows, k]."""
        if operand.registers is not None:
            return values(operand.registers, operand.kind)
        assert operand.descriptor is not None
        machine, element = self.machine, ELEMENT_BYTES[operand.kind]
        address = _addresses(operand, element)
        machine.spaces.check_shared_range(address, 16, job.pc)
        layout = machine.layout
        who = Accessors(layout, job.groups * 4)
        at = address.reshape(job.groups.size, -1) + who.shared_base[:, None]
        if machine.order is not None:
            order = machine.order
            agent = order.wgmma + order.agent_of_warp[who.warp] // 4
            after = order.check_engine(who.block, agent, job.past, at, 16, job.pc, write=False)
            order.acquire((who.warp[:, None] + np.arange(4)).reshape(-1), np.repeat(after, 4, axis=0))
        units = machine.spaces.shared_views[16][at // 16]
        words = np.ascontiguousarray(units).view(np.uint32).reshape(*address.shape[:2], -1)
        if operand.by_rows:
            return values(words, operand.kind)
        result: Array = values(words, operand.kind).swapaxes(1, 2)
        return result


def _addresses(operand: _Operand, element: int) -> Array:
    """The shared address of every 16-byte piece: int64 [groups, rows, pieces] (or [groups, k, pieces])."""
    assert operand.descriptor is not None
    fields = operand.descriptor.astype(np.int64)[:, None, None]
    start, leading, stride = ((fields >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = int(fields[0, 0, 0] >> 62 & 3)
    if (fields >> 62 & 3 != mode).any() or (fields >> 49 & 7).any():
        raise ValueError("descriptors of different swizzles, or with a base offset")
    span = _SWIZZLE_BYTES[mode]
    if operand.by_rows:
        i, piece = np.arange(operand.rows)[:, None], np.arange(operand.k * element // 16)
        if span:
            address = start + i // 8 * stride + i % 8 * span + piece * 16
        else:
            address = start + i // 8 * stride + i % 8 * 16 + piece * leading
    else:
        k, piece = np.arange(operand.k)[:, None], np.arange(operand.rows * element // 16)
        if span:
            atom = span // 16
            address = start + piece // atom * leading + k // 8 * stride + k % 8 * span + piece % atom * 16
        else:
            address = start + piece * stride + k // 8 * leading + k % 8 * 16
    return swizzled(address, _SWIZZLE_BITS[mode])


def _chosen(operand: _Operand, part: Array) -> _Operand:
    descriptor = None if operand.descriptor is None else operand.descriptor[part]
    registers = None if operand.registers is None else operand.registers[part]
    return _Operand(operand.kind, operand.rows, operand.k, operand.by_rows, descriptor, registers)


def _part(job: _Multiplication, part: Array) -> _Multiplication:
    return _Multiplication(
        job.groups[part], job.batch[part], _chosen(job.a, part), _chosen(job.b, part), job.accumulate[part], job.signs,
        job.past[part], job.destination, job.saturate, job.pc,
    )  # fmt: skip


@instruction("wgmma.mma_async", pipe="tensor")
def mma_async(at: Site) -> Operation:
    """wgmma.mma_async m64nNk16 (f16, bf16), k8 (tf32), k32 (e4m3, e5m2, s8, u8); A from registers or shared memory."""
    shape = next(m for m in (re.fullmatch(r"m64n(\d+)k(\d+)", part) for part in at.modifiers) if m)
    n, k = int(shape[1]), int(shape[2])
    types = [m for m in at.modifiers if m in ELEMENT_BYTES]
    d_kind, a_kind, b_kind = types
    if k * ELEMENT_BYTES[a_kind] != 32:
        raise ValueError(f"k of {k}")
    target = accumulator(at, 0, 16, n, d_kind, is_target=True)
    names = at.operands[0]
    assert isinstance(names, Vector)
    destination = tuple(o.name for o in names.items if isinstance(o, Register))
    a_in_registers = isinstance(at.operands[1], Vector)
    fragment = input_fragment(at.sources(1, "b32"), 16, k, a_kind, is_a=True) if a_in_registers else None
    a_descriptor = None if a_in_registers else at.read(1, "u64")
    b_descriptor = at.read(2, "u64")
    scale = at.operands[3] if len(at.operands) > 3 else Immediate(1)
    accumulate, negated = (at.read(scale, "pred"), False) if isinstance(scale, Immediate) else at.predicate(scale)
    numbers = [at.immediate(i) for i in range(4, len(at.operands))]
    signs = numbers[0] * numbers[1] if len(numbers) > 1 else 1
    transposes = numbers[2:]
    trans_a, trans_b = ((0, *transposes, 0) if a_in_registers else (*transposes, 0, 0))[:2]
    machine, pc = at.machine, at.pc

    def run(selection: Selection) -> None:
        machine.converge_warpgroup(selection)
        state = machine.shared_state(Warpgroups)
        first = selection.index[::128]
        groups = first // 128
        words = fragment.read(selection).reshape(groups.size, 64, -1) if fragment is not None else None
        a = _Operand(a_kind, 64, k, not trans_a, None if a_descriptor is None else a_descriptor[first], words)
        b = _Operand(b_kind, n, k, not trans_b, b_descriptor[first], None)
        past = np.zeros((groups.size, 0), np.int64)
        if machine.order is not None:
            past = machine.order.past((groups[:, None] * 4 + np.arange(4)).reshape(-1))
            past = past.reshape(groups.size, 4, -1).min(1)
        job = _Multiplication(
            groups, state.committed[groups], a, b, accumulate[first] ^ negated, signs, past, destination,
            at.has("satfinite"), pc,
        )  # fmt: skip
        state.issue(selection, target, job)

    return run


@instruction("wgmma.fence", pipe="tensor")
def fence(at: Site) -> Operation:
    """wgmma.fence: nothing is reordered here, so a missing one is not seen; ptxas reports it."""
    return lambda selection: at.machine.converge(selection)


@instruction("wgmma.commit_group", pipe="tensor")
def commit_group(at: Site) -> Operation:
    """wgmma.commit_group."""

    def run(selection: Selection) -> None:
        at.machine.converge_warpgroup(selection)
        at.machine.shared_state(Warpgroups).committed[selection.index[::128] // 128] += 1

    return run


@instruction("wgmma.wait_group", pipe="tensor")
def wait_group(at: Site) -> Operation:
    """wgmma.wait_group N."""
    pending = at.immediate(0)

    def run(selection: Selection) -> None:
        at.machine.converge_warpgroup(selection)
        at.machine.shared_state(Warpgroups).wait(selection, pending)

    return run
