"""The state spaces as the threads of a batch see them (PTX ISA, "State Spaces"), with every check of an access.

Addresses are int64 arrays, one an access. A generic address has its space in the top bits: 0 is global memory (and the
module's constants), the others are windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from flashcore_drv.emulator.memory import Allocation, DeviceMemory, aligned_bytes
from flashcore_drv.emulator.registers import UNITS
from flashcore_drv.emulator.selection import Accessors, Array

if TYPE_CHECKING:
    from flashcore_drv.emulator.machine import Machine

WINDOW_SHIFT = 59
WINDOWS: Mapping[str, int] = {"shared": 1 << 60, "local": 2 << 60, "param": 3 << 60}
"""Where the generic address space shows the other spaces."""
_SPACE_OF_WINDOW = {0: "global", 2: "shared", 4: "local", 6: "param"}


class Spaces:
    """Shared, local, parameter and global memory of one batch."""

    def __init__(self, machine: Machine, memory: DeviceMemory) -> None:
        self.machine, self.memory = machine, memory
        layout = machine.layout
        self.shared = aligned_bytes(layout.blocks * layout.shared_bytes)
        self.local_bytes = machine.entry.local_bytes
        self.local = aligned_bytes(layout.n * self.local_bytes)
        end = max((p.offset + p.size for p in machine.entry.params), default=0)
        self.params = aligned_bytes(-(-end // 16) * 16)
        self.shared_views = {width: self.shared.view(unit) for width, unit in UNITS.items()}
        self.local_views = {width: self.local.view(unit) for width, unit in UNITS.items()}
        self.recent: Allocation | None = None
        self.views: dict[tuple[Allocation, int], tuple[Array, Array]] = {}

    def reset(self, params: bytes) -> None:
        """Start a batch: fresh shared and local memory (NaN)."""
        self.shared.fill(0xFF)
        self.local.fill(0xFF)
        self.params[: len(params)] = np.frombuffer(params, np.uint8)
        self.recent = None
        self.views = {}

    # Any space.

    def load(self, space: str, who: Accessors, address: Array, width: int, pc: int) -> Array:
        """What is at `address` (int64 [n]) as units of `width` bytes, [n]."""
        if space == "shared":
            return self.shared_views[width][self.shared_units(who, address, width, pc, write=False)]
        if space in ("global", "const"):
            if space == "global":
                self.after_prerequisites(who, "read", pc)
            return self._load_global(who, address, width, pc)
        if space == "local":
            return self.local_views[width][self._local_units(who, address, width, pc)]
        if space == "param":
            return self._load_param(address, width, pc)
        windows = address >> WINDOW_SHIFT
        if (windows == windows[0]).all():
            inner, address = self._window(int(windows[0]), address)
            return self.load(inner, who, address, width, pc)
        values = np.empty(address.size, UNITS[width])
        for window in np.unique(windows):
            chosen = np.flatnonzero(windows == window)
            inner, part = self._window(int(window), address[chosen])
            values[chosen] = self.load(inner, self._part(who, chosen), part, width, pc)
        return values

    def store(self, space: str, who: Accessors, address: Array, values: Array, pc: int) -> None:
        """Write units (their element size is the width of the access)."""
        width = values.itemsize
        if space == "shared":
            self.shared_views[width][self.shared_units(who, address, width, pc, write=True)] = values
        elif space == "global":
            self.after_prerequisites(who, "write", pc)
            self._store_global(who, address, values, pc)
        elif space == "local":
            self.local_views[width][self._local_units(who, address, width, pc)] = values
        elif space in ("param", "const"):
            self.machine.fail("out-of-bounds", f"store to {space} memory, which is read-only", pc)
        else:
            windows = address >> WINDOW_SHIFT
            for window in np.unique(windows):
                chosen = np.flatnonzero(windows == window)
                inner, part = self._window(int(window), address[chosen])
                self.store(inner, self._part(who, chosen), part, values[chosen], pc)

    @staticmethod
    def _part(who: Accessors, chosen: Array) -> Accessors:
        return Accessors(who.layout, who.warp[chosen], None if who.thread is None else who.thread[chosen])

    def _window(self, window: int, address: Array) -> tuple[str, Array]:
        space = _SPACE_OF_WINDOW.get(window, "global")
        return space, address if space == "global" else address & ((1 << WINDOW_SHIFT) - 1)

    # Shared memory.

    def shared_units(
        self, who: Accessors, address: Array, width: int, pc: int, write: bool, in_flight: bool = False
    ) -> Array:
        """Check accesses to shared memory; their index in the batch's shared memory, in units of `width` bytes."""
        machine = self.machine
        self.check_shared_range(address, width, pc)
        at = address + who.shared_base
        if machine.order is not None:
            if write:
                machine.order.check_write(who, at, width, pc, in_flight)
            else:
                machine.order.check_read(who, at, width, pc)
        if machine.checks.bank_conflicts and who.thread is not None:
            machine.traffic.shared(who, address, width, pc)
        return at // width

    def shared_atomic(self, who: Accessors, address: Array, width: int, pc: int) -> Array:
        """Check atomic accesses to shared memory; their index in units of `width` bytes."""
        machine = self.machine
        self.check_shared_range(address, width, pc)
        at = address + who.shared_base
        if machine.order is not None:
            machine.order.check_atomic(who, at, width, pc)
        return at // width

    def check_shared_range(self, address: Array, width: int, pc: int) -> None:
        """Bounds and alignment of accesses to shared memory."""
        if not address.size:
            return
        if int(np.bitwise_or.reduce(address, axis=None)) & (width - 1):
            bad = int(address[(address & (width - 1)) != 0][0])
            self.machine.fail("misaligned", f"{width}-byte access to shared address {bad}", pc)
        if int(address.min()) < 0 or int(address.max()) + width > self.machine.shared_bytes:
            bad = int(address[(address < 0) | (address + width > self.machine.shared_bytes)][0])
            size = self.machine.shared_bytes
            self.machine.fail(
                "out-of-bounds", f"{width}-byte access to shared address {bad} of a block that has {size} bytes", pc
            )

    # Local and parameter memory.

    def _local_units(self, who: Accessors, address: Array, width: int, pc: int) -> Array:
        assert who.thread is not None
        if int(np.bitwise_or.reduce(address)) & (width - 1):
            self.machine.fail("misaligned", f"{width}-byte access to local memory", pc)
        if int(address.min()) < 0 or int(address.max()) + width > self.local_bytes:
            self.machine.fail("out-of-bounds", f"access past the {self.local_bytes} bytes of local memory", pc)
        return (who.thread * self.local_bytes + address) // width

    def _load_param(self, address: Array, width: int, pc: int) -> Array:
        if int(address.min()) < 0 or int(address.max()) + width > self.params.size:
            self.machine.fail("out-of-bounds", f"read past the {self.params.size} bytes of parameters", pc)
        if int(np.bitwise_or.reduce(address)) & (width - 1):
            self.machine.fail("misaligned", f"{width}-byte access to the parameters", pc)
        result: Array = self.params.view(UNITS[width])[address // width]
        return result

    # Global memory.

    def after_prerequisites(self, who: Accessors, what: str, pc: int) -> None:
        """Check that accesses come after the launches that this one depends on."""
        if self.machine.prerequisites is not None:
            self.machine.prerequisites.check(who, what, pc)

    def _load_global(self, who: Accessors, address: Array, width: int, pc: int) -> Array:
        allocation = self.allocation(who, address, width, pc, "read")
        if allocation is None:
            values = np.empty(address.size, UNITS[width])
            for chosen in self._by_allocation(address):
                values[chosen] = self._load_global(self._part(who, chosen), address[chosen], width, pc)
            return values
        machine = self.machine
        offset = address - allocation.address
        if machine.checks.counters:
            machine.traffic.global_(who, address, width, pc)
        if machine.global_order is not None:
            machine.global_order.check(
                allocation, offset, width, machine.block_ids[who.block], pc, write=False, atomic=False
            )
        data, written = self._views(allocation, width)
        units = offset // width
        if machine.checks.uninitialised and not allocation.is_complete():
            self._check_written(allocation, written[units], offset, pc, who)
        result: Array = data[units]
        return result

    def _store_global(self, who: Accessors, address: Array, values: Array, pc: int) -> None:
        width = values.itemsize
        allocation = self.allocation(who, address, width, pc, "write")
        if allocation is None:
            for chosen in self._by_allocation(address):
                self._store_global(self._part(who, chosen), address[chosen], values[chosen], pc)
            return
        machine = self.machine
        offset = address - allocation.address
        if machine.checks.counters:
            machine.traffic.global_(who, address, width, pc)
        if machine.global_order is not None:
            machine.global_order.check(
                allocation, offset, width, machine.block_ids[who.block], pc, write=True, atomic=False
            )
        data, written = self._views(allocation, width)
        units = offset // width
        data[units] = values
        if not allocation.complete:
            written.view(np.uint8).reshape(-1, width)[units] = 1

    def global_units(self, who: Accessors, address: Array, width: int, pc: int) -> tuple[Array, Array]:
        """Atomic accesses to one allocation: its units of `width` bytes, and the index of each access in them."""
        self.after_prerequisites(who, "atomic operation", pc)
        allocation = self.allocation(who, address, width, pc, "atomic operation")
        if allocation is None:
            self.machine.fail("out-of-bounds", "one atomic instruction on several allocations is not emulated", pc)
        machine = self.machine
        offset = address - allocation.address
        if machine.checks.counters:
            machine.traffic.global_(who, address, width, pc)
        if machine.global_order is not None:
            blocks = machine.block_ids[who.block]
            machine.global_order.synchronise(blocks, address)
            machine.global_order.check(allocation, offset, width, blocks, pc, write=True, atomic=True)
        data, written = self._views(allocation, width)
        units = offset // width
        if machine.checks.uninitialised and not allocation.is_complete():
            self._check_written(allocation, written[units], offset, pc, who)
        return data, units

    def check_global(self, who: Accessors, address: Array, width: int, pc: int, what: str) -> None:
        """All but the values and races with other blocks, of what will be accessed later."""
        self.after_prerequisites(who, what, pc)
        if self.allocation(who, address, width, pc, what) is None:
            for chosen in self._by_allocation(address):
                self.allocation(self._part(who, chosen), address[chosen], width, pc, what)

    def _views(self, allocation: Allocation, width: int) -> tuple[Array, Array]:
        key = allocation, width
        if key not in self.views:
            self.views[key] = allocation.data.view(UNITS[width]), allocation.written.view(UNITS[width])
        return self.views[key]

    def _check_written(self, allocation: Allocation, written: Array, offset: Array, pc: int, who: Accessors) -> None:
        missing = written.view(np.uint8).reshape(offset.size, -1) == 0
        if missing.any():
            i, j = np.argwhere(missing)[0]
            what = f"read of byte {int(offset[i]) + int(j)} of {allocation}, which was never written,"
            self.machine.fail("uninitialised-read", f"{what} by {self.machine.name_access(who, int(i))}", pc)

    def allocation(self, who: Accessors, address: Array, width: int, pc: int, what: str) -> Allocation | None:
        """The one allocation that holds all accesses, None if there are several; an error if one is in none."""
        low, high = int(address.min()), int(address.max()) + width
        if int(np.bitwise_or.reduce(address)) & (width - 1):
            i = int(np.flatnonzero(address & (width - 1))[0])
            access = f"{width}-byte {what} at address {int(address[i]):#x} by {self.machine.name_access(who, i)}"
            self.machine.fail("misaligned", access, pc)
        recent = self.recent
        if recent is not None and recent.address <= low and high <= recent.address + recent.size and not recent.freed:
            return recent
        found = self.memory.find(low)
        if found is not None and high <= found.address + found.size:
            self.recent = found
            return found
        several = False
        for start in np.unique(address):
            holder = self.memory.find(int(start))
            if holder is None or int(start) + width > holder.address + holder.size:
                i = int(np.flatnonzero(address == start)[0])
                kind, where = self.memory.explain(int(start) if holder is None else int(start) + width - 1)
                self.machine.fail(kind, f"{width}-byte {what} by {self.machine.name_access(who, i)} at {where}", pc)
            several |= holder is not found
        return None if several else found

    def _by_allocation(self, address: Array) -> list[Array]:
        starts = np.array([getattr(self.memory.find(int(a)), "address", 0) for a in address])
        return [np.flatnonzero(starts == s) for s in np.unique(starts)]
