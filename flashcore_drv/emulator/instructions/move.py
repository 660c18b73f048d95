"""Data movement (PTX ISA, "Data Movement and Conversion Instructions", "atom", "red")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashcore_drv.emulator.instructions.floating import flushed
from flashcore_drv.emulator.instructions.half import from_half, to_half
from flashcore_drv.emulator.instructions.table import FLOAT, INTEGER, SPACES, Site, instruction
from flashcore_drv.emulator.parser import SIZES, Address, Sink, Special, Symbol, Vector
from flashcore_drv.emulator.registers import DTYPES, UNITS, Operation, copy, elementwise
from flashcore_drv.emulator.selection import Accessors, Array, Selection
from flashcore_drv.emulator.spaces import WINDOW_SHIFT, WINDOWS


@instruction("mov", pipe="alu", types=INTEGER | FLOAT)
def mov(at: Site) -> Operation:
    """mov: of a register, a constant, an address, a special register; packs and unpacks vectors."""
    destination, source, kind = at.operands[0], at.operands[1], at.type
    if isinstance(source, Special) and source.name in ("%clock", "%clock64", "%clock_hi", "%globaltimer"):
        target = at.target(0, kind)
        return lambda selection: selection.put(target, at.machine.steps)
    if isinstance(source, Vector):
        part = f"b{8 * SIZES[kind] // len(source.items)}"
        whole = at.target(0, kind).view(DTYPES[part])
        count = len(source.items)
        return _all([elementwise(copy, whole[i::count], at.read(o, part)) for i, o in enumerate(source.items)])
    if isinstance(destination, Vector):
        count = len(destination.items)
        part = f"b{8 * SIZES[kind] // count}"
        parts = np.asarray(at.read(1, kind)).view(DTYPES[part])
        return _all([elementwise(copy, at.target(o, part), parts[i::count]) for i, o in enumerate(destination.items)
                     if not isinstance(o, Sink)])  # fmt: skip
    return at.elementwise(copy, kind)


def _all(operations: list[Operation]) -> Operation:
    def run(selection: Selection) -> None:
        for operation in operations:
            operation(selection)

    return run


@instruction("ld", "ldu", pipe="lsu")
def ld(at: Site) -> Operation:
    """ld: any space, .v2 .v4 .v8; caching and memory-model qualifiers change nothing here."""
    targets, kind = at.targets(0, at.type), at.type
    space = at.space(at.operands[1])
    source, count = at.operands[1], len(targets)
    assert isinstance(source, Address)
    machine, dtype, pc = at.machine, DTYPES[kind], at.pc
    if space == "param" and (source.base is None or isinstance(source.base, Symbol)):
        offset = source.offset + (at.symbol(source.base.name) if source.base else 0)
        values = machine.spaces.params[offset : offset + dtype.itemsize * count].view(dtype)
        return _parameters(machine.layout.n, targets, values)
    address, width = at.address(1), dtype.itemsize * count
    if width > 16:
        raise ValueError(f"an access of {width} bytes")
    spaces = machine.spaces

    def run(selection: Selection) -> None:
        values = spaces.load(space, selection.accessors, address(selection), width, pc)
        if count == 1:
            selection.put(targets[0], values.view(dtype))
            return
        parts = values.view(dtype).reshape(-1, count)
        for i, target in enumerate(targets):
            selection.put(target, parts[:, i])

    return run


def _parameters(n: int, targets: list[Array], values: Array) -> Operation:
    """Loads of kernel parameters from a constant address: the same for all threads."""
    cells = [np.broadcast_to(values[i : i + 1], n) for i in range(len(targets))]
    return _all([elementwise(copy, t, c) for t, c in zip(targets, cells)])


@instruction("st", pipe="lsu")
def st(at: Site) -> Operation:
    """st: any space, .v2 .v4 .v8."""
    kind = at.type
    bits = f"b{8 * SIZES[kind]}"
    sources, address, space = at.sources(1, bits), at.address(0), at.space(at.operands[0])
    spaces, pc, dtype = at.machine.spaces, at.pc, DTYPES[bits]
    width = dtype.itemsize * len(sources)
    if width > 16:
        raise ValueError(f"an access of {width} bytes")

    def run(selection: Selection) -> None:
        if len(sources) == 1:
            values = np.ascontiguousarray(selection.pick(sources[0]))
        else:
            parts = np.empty((selection.n, len(sources)), dtype)
            for i, source in enumerate(sources):
                parts[:, i] = selection.pick(source)
            values = parts.view(UNITS[width])[:, 0]
        spaces.store(space, selection.accessors, address(selection), values, pc)

    return run


@instruction("cvta", pipe="alu")
def cvta(at: Site) -> Operation:
    """cvta, cvta.to: between the addresses of a space and generic ones."""
    space = SPACES[next(m for m in at.modifiers if m in SPACES)]
    if space in ("global", "const"):
        return at.elementwise(copy, at.type)
    if SIZES[at.type] != 8:
        raise ValueError("32-bit generic addresses")
    if at.has("to"):
        mask = np.broadcast_to(np.uint64((1 << WINDOW_SHIFT) - 1), at.machine.layout.n)
        return elementwise(np.bitwise_and, at.target(0, "u64"), at.read(1, "u64"), mask)
    window = np.broadcast_to(np.uint64(WINDOWS[space]), at.machine.layout.n)
    return elementwise(np.bitwise_or, at.target(0, "u64"), at.read(1, "u64"), window)


@instruction("mapa", pipe="alu")
def mapa(at: Site) -> Operation:
    """mapa: in a cluster of one block, an address maps to itself."""
    return elementwise(copy, at.target(0, at.type), at.read(1, at.type))


@instruction("getctarank", pipe="alu")
def getctarank(at: Site) -> Operation:
    """getctarank: 0, the only block of the cluster."""
    zero = np.broadcast_to(np.uint32(0), at.machine.layout.n)
    return elementwise(copy, at.target(0, "u32"), zero)


@instruction("isspacep", pipe="alu")
def isspacep(at: Site) -> Operation:
    """isspacep: whether a generic address lies in a space."""
    window = WINDOWS.get(SPACES[at.modifiers[0]], 0) >> WINDOW_SHIFT
    target, source = at.target(0, "pred"), at.read(1, "u64")

    def run(selection: Selection) -> None:
        selection.put(target, selection.pick(source) >> np.uint64(WINDOW_SHIFT) == window)

    return run


@instruction("prefetch", "prefetchu", "applypriority", "discard", "createpolicy", pipe="lsu")
def hints(at: Site) -> Operation:
    """prefetch, prefetch.tensormap, applypriority, createpolicy: hints."""
    if at.instruction.name == "createpolicy":
        target = at.target(0, "b64")
        return lambda selection: selection.put(target, 0)
    if at.instruction.name == "discard":
        raise ValueError("discard")
    return lambda selection: None


# Atomic operations.

Combine = Callable[[Any, Any], Any]


def _combine(at: Site) -> Combine:
    """The new value of an atomic operation, from the old one and the operand."""
    operation = next(m for m in at.modifiers if m in _ATOMIC)
    kind = at.type
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        if operation != "add":
            raise ValueError(f"atom.{operation}.{kind}")
        single = kind.removesuffix("x2")

        def packed(old: Any, new: Any) -> Any:
            dtype = DTYPES[kind]
            total = from_half(np.atleast_1d(old), single) + from_half(np.atleast_1d(new), single)
            return to_half(total, single).view(dtype)

        return packed
    return _ATOMIC[operation]


def _inc(old: Any, limit: Any) -> Any:
    return np.where(old >= limit, 0, old + 1).astype(np.asarray(old).dtype)


def _dec(old: Any, limit: Any) -> Any:
    return np.where((old == 0) | (old > limit), limit, old - 1).astype(np.asarray(old).dtype)


_ATOMIC: dict[str, Combine] = {
    "add": lambda old, new: old + new, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "exch": lambda old, new: new, "inc": _inc, "dec": _dec,
    "cas": lambda old, new: new,
}  # fmt: skip


@instruction("atom", "red", pipe="lsu")
def atom(at: Site) -> Operation:
    """atom, red on global and shared memory: threads in an order that the seed chooses."""
    is_red = at.instruction.name == "red"
    address_at = 0 if is_red else 1
    kind, machine = at.type, at.machine
    if isinstance(at.operands[address_at + 1], Vector):
        raise ValueError("atomic operations on vectors")
    dtype, width = DTYPES[kind], SIZES[kind]
    combine, is_cas = _combine(at), at.has("cas")
    is_single_add = kind == "f32" and at.has("add")
    address, space = at.address(address_at), at.space(at.operands[address_at])
    value = at.read(address_at + 1, kind)
    swap = at.read(address_at + 2, kind) if is_cas else None
    target = None if is_red else at.target(0, kind)

    def run(selection: Selection) -> None:
        where = address(selection)
        who = selection.accessors
        units, index = _atomic_units(at, who, space, where, width)
        memory = units.view(dtype)
        # GPUs flush subnormals in additions to global memory, not in those to shared memory
        flush = is_single_add and units is not machine.spaces.shared_views[width]
        new = np.ascontiguousarray(selection.pick(value))
        swapped = None if swap is None else np.ascontiguousarray(selection.pick(swap))
        old = np.empty_like(new)
        order = np.arange(index.size) if machine.state.seed == 0 else machine.random.permutation(index.size)
        # Threads with the same address take turns: the k-th round has the k-th thread of every address.
        by_address = order[np.argsort(index[order], kind="stable")]
        sorted_index = index[by_address]
        first = np.flatnonzero(np.diff(sorted_index, prepend=-1))
        turn = np.arange(index.size) - np.repeat(first, np.diff(np.append(first, index.size)))
        for k in range(int(turn.max()) + 1):
            now = by_address[turn == k]
            before = memory[index[now]]
            old[now] = before
            if swapped is not None:
                memory[index[now]] = np.where(before == new[now], swapped[now], before)
            else:
                after = combine(flushed(before), flushed(new[now])) if flush else combine(before, new[now])
                memory[index[now]] = flushed(after) if flush else after
        if target is not None:
            selection.put(target, old)

    return run


def _atomic_units(at: Site, who: Accessors, space: str, address: Array, width: int) -> tuple[Array, Array]:
    spaces = at.machine.spaces
    if space == "generic":
        windows = address >> WINDOW_SHIFT
        if not (windows == windows[0]).all():
            at.fail("out-of-bounds", "one atomic instruction on several state spaces is not emulated")
        space = "shared" if int(windows[0]) == WINDOWS["shared"] >> WINDOW_SHIFT else "global"
        if space == "shared":
            address = address & ((1 << WINDOW_SHIFT) - 1)
    if space == "shared":
        return spaces.shared_views[width], spaces.shared_atomic(who, address, width, at.pc)
    return spaces.global_units(who, address, width, at.pc)
