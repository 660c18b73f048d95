"""Bulk and tensor copies (PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor") and the tensor maps that describe them.

A load lands when nothing else can go on, the last issued first; a store when its thread waits for it or the kernel
ends. Until a load lands its target holds NaN. Both are operations of the TMA engine, with the past of their issuer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flashcore_drv.emulator.instructions.mbarrier import MBarriers
from flashcore_drv.emulator.instructions.table import Site, instruction
from flashcore_drv.emulator.parser import TensorAddress
from flashcore_drv.emulator.registers import UNITS, Operation
from flashcore_drv.emulator.selection import Accessors, Array, Selection
from flashcore_drv.emulator.spaces import WINDOW_SHIFT

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Machine

_OFFSET = (1 << WINDOW_SHIFT) - 1
_MAGIC = 0x4D544346  # "FCTM"
_NAN = 0x7FF7  # what a GPU fills with, twice for f32, four times for f64
_ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}
_SWIZZLE_BITS = {0: 0, 1: 1, 2: 3, 3: 7}
_SWIZZLE_BYTES = {1: 32, 2: 64, 3: 128}
_ENCODING = np.dtype(
    [
        ("magic", "<u4"), ("data_type", "u1"), ("rank", "u1"), ("interleave", "u1"), ("swizzle", "u1"),
        ("l2_promotion", "u1"), ("oob_fill", "u1"), ("element_strides", "u1", 5), ("pad", "u1"), ("address", "<u8"),
        ("dims", "<u8", 5), ("strides", "<u8", 4), ("box", "<u2", 5),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class TensorMap:
    """A decoded tensor map; dimension 0 is the contiguous one.

    Attributes
    ----------
    data_type, interleave, swizzle, l2_promotion, oob_fill : int
        Values of CUtensorMapDataType and so on.
    address : int
        Of the tensor in device memory.
    dims, box, element_strides : tuple of int
        Elements.
    strides : tuple of int
        Bytes, of dimensions 1 and up.
    """

    data_type: int
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: int = 0
    swizzle: int = 0
    l2_promotion: int = 0
    oob_fill: int = 0

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return _ELEMENT_BYTES[self.data_type]

    @property
    def box_bytes(self) -> int:
        """Bytes that one copy moves."""
        steps = (1, *self.element_strides[1:])  # the first is not looked at
        return math.prod(-(-b // s) for b, s in zip(self.box, steps)) * self.element_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes from one row of the tile to the next in shared memory: at least the width of the swizzle."""
        return max(self.box[0] * self.element_bytes, _SWIZZLE_BYTES.get(self.swizzle, 0))


def encode_tensor_map(
    data_type: int,
    address: int,
    dims: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    element_strides: Sequence[int],
    interleave: int = 0,
    swizzle: int = 0,
    l2_promotion: int = 0,
    oob_fill: int = 0,
) -> bytes:
    """Encode a tiled tensor map in the emulator's own 128 bytes.

    Parameters
    ----------
    data_type, interleave, swizzle, l2_promotion, oob_fill : int
        Values of the enumerations of ``cuTensorMapEncodeTiled``.
    address : int
        Of the tensor.
    dims, box, element_strides : sequence of int
        1 to 5, the contiguous dimension first; elements.
    strides : sequence of int
        Bytes, of all dimensions but the first.

    Returns
    -------
    bytes
        128 bytes.

    Raises
    ------
    ValueError
        For what ``cuTensorMapEncodeTiled`` refuses, and for what the emulator does not know: interleaving, element
        strides other than 1, swizzles other than none, 32, 64, 128 bytes.
    """
    rank = len(dims)
    if not 1 <= rank <= 5 or len(box) != rank or len(element_strides) != rank or len(strides) != rank - 1:
        raise ValueError(f"a tensor map of {rank} dimensions with {len(strides)} strides and a box of {len(box)}")
    if data_type not in _ELEMENT_BYTES:
        raise ValueError(f"data type {data_type} is not emulated")
    if address % 16:
        raise ValueError(f"the address {address:#x} is not a multiple of 16")
    if any(not 1 <= d <= 2**32 for d in dims):
        raise ValueError(f"dimensions {tuple(dims)} must be from 1 to 2^32")
    if any(s % 16 or not 0 <= s < 2**40 for s in strides):
        raise ValueError(f"strides {tuple(strides)} must be multiples of 16 below 2^40")
    if any(not 1 <= b <= 256 for b in box):
        raise ValueError(f"the box {tuple(box)} must be from 1 to 256")
    inner = box[0] * _ELEMENT_BYTES[data_type]
    if inner % 16:
        raise ValueError(f"the box has {inner} contiguous bytes, not a multiple of 16")
    if interleave:
        raise ValueError("interleaving is not emulated")
    if any(not 1 <= e <= 8 for e in element_strides):
        raise ValueError(f"element strides {tuple(element_strides)} must be from 1 to 8")
    if swizzle not in _SWIZZLE_BITS:
        raise ValueError(f"swizzle {swizzle} is not emulated")
    if swizzle and inner > _SWIZZLE_BYTES[swizzle]:
        raise ValueError(
            f"the box has {inner} contiguous bytes, more than the {_SWIZZLE_BYTES[swizzle]} of its swizzle"
        )
    record = np.zeros(1, _ENCODING)
    fields: dict[str, Any] = {
        "magic": _MAGIC, "data_type": data_type, "rank": rank, "interleave": interleave, "swizzle": swizzle,
        "l2_promotion": l2_promotion, "oob_fill": oob_fill, "address": address,
    }  # fmt: skip
    for name, value in fields.items():
        record[name] = value
    for name, values in {"dims": dims, "strides": strides, "box": box, "element_strides": element_strides}.items():
        record[name][0, : len(values)] = values
    return record.tobytes().ljust(128, b"\0")


def decode(data: bytes) -> TensorMap:
    """Decode what `encode_tensor_map` made. Raises ValueError for anything else."""
    record = np.frombuffer(data[: _ENCODING.itemsize], _ENCODING)[0]
    if record["magic"] != _MAGIC:
        raise ValueError("not a tensor map")
    rank = int(record["rank"])

    def numbers(name: str, count: int) -> tuple[int, ...]:
        return tuple(int(x) for x in record[name][:count])

    scalars = {n: int(record[n]) for n in ("data_type", "address", "interleave", "swizzle", "l2_promotion", "oob_fill")}
    return TensorMap(
        dims=numbers("dims", rank), strides=numbers("strides", rank - 1), box=numbers("box", rank),
        element_strides=numbers("element_strides", rank), **scalars,
    )  # fmt: skip


def with_address(data: bytes, address: int) -> bytes:
    """Return the tensor map with another address. Raises ValueError for what is no tensor map."""
    decode(data)
    record = np.frombuffer(data[: _ENCODING.itemsize], _ENCODING).copy()
    record["address"] = address
    changed: bytes = record.tobytes()
    return changed.ljust(len(data), b"\0")


def swizzled(address: Array, bits: int) -> Array:
    """Exchange the 16-byte pieces of rows: address bits 4-6 with bits 7-9, those in `bits`."""
    return address ^ (address >> 7 & bits) << 4 if bits else address


@dataclass
class _Transfer:
    """Copies of one shape, one for each of k accesses: addresses of the same number of pieces of `width` bytes.

    ``shared`` and ``other`` (global memory) are int64 [k, pieces]; ``inside`` is False for pieces past the tensor.
    """

    who: Accessors
    shared: Array
    other: Array
    inside: Array | None
    width: int
    fill: int
    bytes: int
    past: Array
    pc: int


class Engine:
    """The TMA engine of every block, and the bulk groups of every thread."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.committed = np.zeros(machine.layout.n, np.int64)
        self.stores: list[tuple[_Transfer, Array]] = []
        machine.at_exit.append(self.ended)

    def rounds(self, who: Accessors) -> list[Array]:
        """Accesses in rounds in which every block occurs once."""
        left, rounds = np.arange(who.warp.size), []
        while left.size:
            _, first = np.unique(who.block[left], return_index=True)
            rounds.append(left[first])
            left = np.delete(left, first)
        return rounds

    def order(self, t: _Transfer, write: bool) -> Array:
        """Check a transfer's accesses to shared memory; int64 [k, width], what its completion orders."""
        order = self.machine.order
        if order is None:
            return np.zeros((t.who.warp.size, 0), np.int64)
        blocks = t.who.block
        at = t.shared + t.who.shared_base[:, None]
        return order.check_engine(blocks, np.full(blocks.size, order.tma), t.past, at, t.width, t.pc, write)

    def load(self, t: _Transfer, barrier: Array) -> None:
        """Land a load and complete its bytes at its mbarrier."""
        machine = self.machine
        after = np.maximum(t.past, self.order(t, write=True))
        if t.inside is None:
            values = machine.spaces.load("global", _spread(t, None), t.other.reshape(-1), t.width, t.pc)
        else:
            octets = np.zeros((t.other.size, t.width), np.uint8)
            if t.fill:
                octets.view(np.uint16)[:] = _NAN
            inside = t.inside.reshape(-1)
            if inside.any():
                source = t.other.reshape(-1)[inside]
                found = machine.spaces.load("global", _spread(t, inside), source, t.width, t.pc)
                octets[inside] = found.view(np.uint8).reshape(-1, t.width)
            values = octets.view(UNITS[t.width])[:, 0]
        at = (t.shared + t.who.shared_base[:, None]).reshape(-1)
        machine.spaces.shared_views[t.width][at // t.width] = values
        machine.shared_state(MBarriers).complete(t.who, barrier, t.bytes, after, t.pc)

    def store(self, t: _Transfer) -> None:
        """Land a store; its issuer knows that it is complete."""
        machine = self.machine
        after = self.order(t, write=False)
        at = (t.shared + t.who.shared_base[:, None]).reshape(-1)
        values = machine.spaces.shared_views[t.width][at // t.width]
        inside = None if t.inside is None else t.inside.reshape(-1)
        target = t.other.reshape(-1)
        if inside is not None:
            values, target = values[inside], target[inside]
        if target.size:
            machine.spaces.store("global", _spread(t, inside), target, values, t.pc)
        if machine.order is not None:
            machine.order.acquire(t.who.warp, after)

    def wait(self, mask: Array, pending: int) -> None:
        """Land the stores of all but the last `pending` groups of some threads."""
        kept = []
        for t, group in self.stores:
            assert t.who.thread is not None
            due = mask[t.who.thread] & (group < self.committed[t.who.thread] - pending)
            for chosen in (due, ~due):
                part = np.flatnonzero(chosen)
                if not part.size:
                    continue
                piece = _part(t, part)
                if chosen is due:
                    for one in self.rounds(piece.who):
                        self.store(_part(piece, one))
                else:
                    kept.append((piece, group[part]))
        self.stores = kept

    def ended(self, mask: Array) -> None:
        """Stores that were not waited for land when their thread ends."""
        self.wait(mask, -1)


def _part(t: _Transfer, chosen: Array) -> _Transfer:
    assert t.who.thread is not None
    who = Accessors(t.who.layout, t.who.warp[chosen], t.who.thread[chosen])
    inside = None if t.inside is None else t.inside[chosen]
    return _Transfer(who, t.shared[chosen], t.other[chosen], inside, t.width, t.fill, t.bytes, t.past[chosen], t.pc)


def _spread(t: _Transfer, inside: Array | None) -> Accessors:
    """The warp that issued each piece."""
    warps = np.repeat(t.who.warp, t.shared.shape[1])
    return Accessors(t.who.layout, warps if inside is None else warps[inside])


def _tensor_transfers(
    at: Site, selection: Selection, map_address: Array, coordinates: list[Array], shared: Array, is_load: bool
) -> list[tuple[_Transfer, Array]]:
    """The transfers of a tensor copy, by tensor map, each with the accesses of the instruction that it covers.

    Loads fill beyond the tensor element by element; a store writes the 16 bytes that hold the last elements of a row
    as a whole, as GPUs do.
    """
    machine, accessors = at.machine, selection.accessors
    machine.spaces.after_prerequisites(accessors, "copy", at.pc)
    past = _past(machine, accessors)
    transfers = []
    for address in np.unique(map_address):
        chosen = np.flatnonzero(map_address == address)
        assert accessors.thread is not None
        who = Accessors(accessors.layout, accessors.warp[chosen], accessors.thread[chosen])
        m = _read_map(at, who, int(address))
        if len(m.box) != len(coordinates):
            at.fail("out-of-bounds", f"{at.instruction.opcode} with a tensor map of {len(m.box)} dimensions")
        start = np.stack([c[chosen] for c in coordinates], 1)
        element = m.element_bytes
        if ((start[:, 0] * element) % 16).any():
            at.fail("misaligned", f"{at.instruction.opcode}: the first coordinate is not a multiple of 16 bytes")
        if not is_load and (start < 0).any():
            at.fail("out-of-bounds", f"{at.instruction.opcode}: a store's coordinates must not be negative")
        # Whole 16-byte pieces where a piece is inside or outside of the tensor as a whole.
        width = element if is_load and m.dims[0] * element % 16 else 16
        per_piece = width // element
        offset, inside = np.zeros((chosen.size, 1), np.int64), np.ones((chosen.size, 1), np.bool_)
        for d in range(len(m.box) - 1, -1, -1):
            steps = np.arange(0, m.box[d], m.element_strides[d] if d else per_piece)
            index = start[:, d, None] + steps
            stride = element if d == 0 else m.strides[d - 1]
            offset = (offset[:, :, None] + (index * stride)[:, None, :]).reshape(chosen.size, -1)
            inside = (inside[:, :, None] & ((index >= 0) & (index < m.dims[d]))[:, None, :]).reshape(chosen.size, -1)
        if (shared[chosen] & 127).any():
            at.fail("misaligned", f"{at.instruction.opcode}: the shared address is not a multiple of 128")
        row, piece = np.divmod(np.arange(offset.shape[1]) * width, m.box[0] * element)
        linear = shared[chosen, None] + row * m.row_bytes + piece
        target = swizzled(linear, _SWIZZLE_BITS[m.swizzle])
        machine.spaces.check_shared_range(target, width, at.pc)
        transfer = _Transfer(
            who, target, m.address + offset, None if inside.all() else inside, width, m.oob_fill, m.box_bytes,
            past[chosen], at.pc,
        )  # fmt: skip
        transfers.append((transfer, chosen))
    return transfers


def _past(machine: Machine, who: Accessors) -> Array:
    if machine.order is None:
        return np.zeros((who.warp.size, 0), np.int64)
    return machine.order.release_each(who.warp)


def _read_map(at: Site, who: Accessors, address: int) -> TensorMap:
    """The tensor map at a generic address."""
    if address % 64:
        at.fail("misaligned", f"the tensor map at {address:#x} is not aligned to 64 bytes")
    first = Accessors(who.layout, np.repeat(who.warp[:1], 8))
    words = at.machine.spaces.load("generic", first, address + np.arange(8) * 16, 16, at.pc)
    try:
        return decode(words.tobytes())
    except ValueError as error:
        at.fail("out-of-bounds", f"{at.instruction.opcode} with {error}")


def _submit_loads(at: Site, transfers: list[tuple[_Transfer, Array]], barrier: Array) -> None:
    machine = at.machine
    engine = machine.shared_state(Engine)
    for t, chosen in transfers:
        barriers = machine.shared_state(MBarriers)
        barriers.each(t.who, barrier[chosen], at.pc)
        units = (t.shared + t.who.shared_base[:, None]) // t.width
        machine.spaces.shared_views[t.width].view(np.uint8).reshape(-1, t.width)[units] = 0xFF
        for one in engine.rounds(t.who):
            machine.submit(at.pc, _landing(engine, _part(t, one), barrier[chosen][one]))


def _landing(engine: Engine, transfer: _Transfer, barrier: Array) -> Callable[[], None]:
    return lambda: engine.load(transfer, barrier)


@instruction("cp.async.bulk.tensor", pipe="lsu")
def tensor_copy(at: Site) -> Operation:
    """cp.async.bulk.tensor.1d … .5d: tiles from global to shared memory and back."""
    if any(m in at.modifiers for m in ("im2col", "multicast::cluster", "tile::gather4", "tile::scatter4")):
        raise ValueError("im2col, multicast, gather4 or scatter4")
    is_load = at.modifiers[4] != "global"
    tensor = at.operands[1] if is_load else at.operands[0]
    if not isinstance(tensor, TensorAddress):
        raise ValueError("no tensor map")
    map_address, coordinates = at.address(tensor.base), [at.read(c, "s32") for c in tensor.coordinates]
    shared = at.address(0 if is_load else 1)
    barrier = at.address(2) if is_load else None

    def run(selection: Selection) -> None:
        picked = [selection.pick(c).astype(np.int64) for c in coordinates]
        local = shared(selection) & _OFFSET
        transfers = _tensor_transfers(at, selection, map_address(selection), picked, local, is_load)
        if barrier is not None:
            _submit_loads(at, transfers, barrier(selection) & _OFFSET)
        else:
            _queue_stores(at, transfers)

    return run


def _queue_stores(at: Site, transfers: list[tuple[_Transfer, Array]]) -> None:
    engine = at.machine.shared_state(Engine)
    for t, _ in transfers:
        assert t.who.thread is not None
        engine.stores.append((t, engine.committed[t.who.thread].copy()))


@instruction("cp.async.bulk.shared::cluster", "cp.async.bulk.shared::cta", "cp.async.bulk.global", pipe="lsu")
def bulk_copy(at: Site) -> Operation:
    """cp.async.bulk: a multiple of 16 bytes from global to shared memory and back."""
    if any(m in at.modifiers for m in ("multicast::cluster", "cp_mask")) or (
        at.modifiers[2].startswith("shared") and at.modifiers[3].startswith("shared")
    ):
        raise ValueError("multicast, cp_mask or shared to shared")
    is_load = at.modifiers[2] != "global"
    first, second, size = at.address(0), at.address(1), at.read(2, "u32")
    barrier = at.address(3) if is_load else None
    machine, pc = at.machine, at.pc

    def run(selection: Selection) -> None:
        accessors = selection.accessors
        assert accessors.thread is not None
        shared, other = (first, second) if is_load else (second, first)
        local, remote = shared(selection) & _OFFSET, other(selection)
        sizes = selection.pick(size).astype(np.int64)
        if ((sizes | local | remote) & 15).any():
            at.fail("misaligned", "cp.async.bulk needs addresses and a size that are multiples of 16")
        machine.spaces.after_prerequisites(accessors, "copy", pc)
        past, transfers = _past(machine, accessors), []
        for count in np.unique(sizes[sizes > 0]):
            chosen = np.flatnonzero(sizes == count)
            who = Accessors(accessors.layout, accessors.warp[chosen], accessors.thread[chosen])
            pieces = np.arange(0, count, 16)
            target = local[chosen, None] + pieces
            machine.spaces.check_shared_range(target, 16, pc)
            source = remote[chosen, None] + pieces
            transfers.append((_Transfer(who, target, source, None, 16, 0, int(count), past[chosen], pc), chosen))
        if barrier is not None:
            _submit_loads(at, transfers, barrier(selection) & _OFFSET)
        else:
            _queue_stores(at, transfers)

    return run


@instruction("cp.async.bulk.commit_group", pipe="lsu")
def commit_group(at: Site) -> Operation:
    """cp.async.bulk.commit_group."""

    def run(selection: Selection) -> None:
        committed = at.machine.shared_state(Engine).committed
        selection.put(committed, selection.pick(committed) + 1)

    return run


@instruction("cp.async.bulk.wait_group", pipe="lsu")
def wait_group(at: Site) -> Operation:
    """cp.async.bulk.wait_group N, ``.read``: stores are read and written at once here."""
    pending = at.immediate(0)
    return lambda selection: at.machine.shared_state(Engine).wait(selection.mask, pending)


@instruction("cp.async.bulk.prefetch", pipe="lsu")
def prefetch(at: Site) -> Operation:
    """cp.async.bulk.prefetch: a hint."""
    return lambda selection: None
