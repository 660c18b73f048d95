# ruff: noqa: N802 (the driver's names)
"""Memory of the device and of the host (driver API: "Memory Management", "Stream Ordered Memory Allocator")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings.driver import (
    CUcontext,
    CUdeviceptr,
    CUmemoryPool,
    CUmemorytype,
    CUmemPool_attribute,
    CUpointer_attribute,
    cuuint64_t,
)

from .errors import fail
from .hostmemory import address_of, host_bytes, void_pointer
from .process import Allocation, Context, Pool, Process, api, integer, process, unsigned
from .queue import complete, enqueue, finish_all, forbid_in_capture, forbid_legacy, submit
from .queue import stream_of as resolve_stream
from .work import CopyFromHost, CopyOnDevice, CopyToHost, Fill, Free, Work

PINNED_ALIGNMENT = 4096


def _allocate(state: Process, context: Context, size: int, name: str, pooled: bool) -> Allocation:
    """Take device memory, waiting for queued frees where it would not suffice otherwise."""
    if context.used + size > context.memory_limit:
        finish_all(state, context)
    label = f"{name} #{state.calls[name]}"
    allocation = Allocation(context, context.take(size, label), size, label, pooled, None)
    state.allocations[allocation.address] = allocation
    return allocation


@api(1)
def cuMemAlloc(bytesize: Any) -> CUdeviceptr:
    """Allocate device memory; its contents are poison."""
    state = process()
    forbid_in_capture(state)
    size = unsigned(bytesize, 64)
    if not size:
        raise fail("INVALID_VALUE")
    return CUdeviceptr(_allocate(state, state.current(), size, "cuMemAlloc", False).address)


def _owned(state: Process, dptr: Any) -> Allocation:
    allocation = state.allocations.get(integer(dptr))
    if allocation is None or allocation.freeing:
        raise fail("INVALID_VALUE")
    return allocation


@api()
def cuMemFree(dptr: Any) -> None:
    """Free device memory after all that is queued has run."""
    state = process()
    forbid_in_capture(state)
    if not integer(dptr):
        return
    allocation = _owned(state, dptr)
    finish_all(state, allocation.context)
    state.release(allocation)


def _allocate_async(state: Process, bytesize: Any, hStream: Any, name: str) -> CUdeviceptr:
    context = state.current()
    stream = resolve_stream(state, hStream)
    size = unsigned(bytesize, 64)
    if stream.capture is not None:
        stream.capture.invalidated = True
        raise fail("NOT_SUPPORTED")
    forbid_legacy(state, stream)
    if not size:
        return CUdeviceptr(0)
    allocation = _allocate(state, context, size, name, True)
    context.pool.allocated(size)
    enqueue(state, stream, lambda: None)
    allocation.born = stream.number, stream.position
    return CUdeviceptr(allocation.address)


@api(1)
def cuMemAllocAsync(bytesize: Any, hStream: Any) -> CUdeviceptr:
    """Allocate from the default pool in the order of a stream; not while the stream is captured."""
    return _allocate_async(process(), bytesize, hStream, "cuMemAllocAsync")


@api(1)
def cuMemAllocFromPoolAsync(bytesize: Any, pool: Any, hStream: Any) -> CUdeviceptr:
    """Allocate from a pool in the order of a stream; not while the stream is captured."""
    state = process()
    state.resolve(pool, Pool, "INVALID_VALUE")
    return _allocate_async(state, bytesize, hStream, "cuMemAllocFromPoolAsync")


@api()
def cuMemFreeAsync(dptr: Any, hStream: Any) -> None:
    """Free memory in the order of a stream."""
    state = process()
    stream = resolve_stream(state, hStream)
    if stream.capture is not None:
        stream.capture.invalidated = True
        raise fail("NOT_SUPPORTED")
    if not integer(dptr):
        return
    allocation = _owned(state, dptr)
    submit(state, stream, Free(allocation))
    allocation.freeing = True


@api(1, context=False)
def cuDeviceGetDefaultMemPool(dev: Any) -> CUmemoryPool:
    """Return the default memory pool, the only one."""
    return CUmemoryPool(process().device(dev).pool.handle)


@api(1, context=False)
def cuDeviceGetMemPool(dev: Any) -> CUmemoryPool:
    """Return the current memory pool, which is the default one."""
    return CUmemoryPool(process().device(dev).pool.handle)


@api(context=False)
def cuMemPoolSetAttribute(pool: Any, attr: CUmemPool_attribute, value: Any) -> None:
    """Set an attribute of a pool: a ``cuuint64_t`` for sizes, an int for what may be reused (which changes nothing)."""
    chosen = process().resolve(pool, Pool, "INVALID_VALUE")
    name = attr.name.removeprefix("CU_MEMPOOL_ATTR_")
    if name.startswith("REUSE_"):
        chosen.reuse[attr.value] = integer(value)
        return
    if not isinstance(value, cuuint64_t):
        raise TypeError(f"{attr.name} takes a cuuint64_t")
    if name == "RELEASE_THRESHOLD":
        chosen.release_threshold = int(value)
    elif name == "USED_MEM_HIGH" and not int(value):
        chosen.used_high = chosen.used
    elif name == "RESERVED_MEM_HIGH" and not int(value):
        chosen.reserved_high = chosen.reserved
    else:
        raise fail("INVALID_VALUE")


@api(1, context=False)
def cuMemPoolGetAttribute(pool: Any, attr: CUmemPool_attribute) -> Any:
    """Return an attribute of a pool: a ``cuuint64_t`` for sizes, an int for what may be reused."""
    chosen = process().resolve(pool, Pool, "INVALID_VALUE")
    name = attr.name.removeprefix("CU_MEMPOOL_ATTR_")
    if name.startswith("REUSE_"):
        return chosen.reuse.get(attr.value, 1)
    sizes = {
        "RELEASE_THRESHOLD": chosen.release_threshold,
        "USED_MEM_CURRENT": chosen.used,
        "USED_MEM_HIGH": chosen.used_high,
        "RESERVED_MEM_CURRENT": chosen.reserved,
        "RESERVED_MEM_HIGH": chosen.reserved_high,
    }
    if name not in sizes:
        raise fail("INVALID_VALUE")
    return cuuint64_t(sizes[name])


@api(context=False)
def cuMemPoolTrimTo(pool: Any, minBytesToKeep: Any) -> None:
    """Give unused memory of a pool back."""
    process().resolve(pool, Pool, "INVALID_VALUE").trim(unsigned(minBytesToKeep, 64))


@api(2)
def cuMemGetInfo() -> tuple[int, int]:
    """Return free and total device memory in bytes."""
    context = process().current()
    idle = context.pool.reserved - context.pool.used
    return max(0, context.memory_limit - context.used - idle), context.memory_limit


def _allocate_host(bytesize: Any) -> int:
    state = process()
    forbid_in_capture(state)
    size = unsigned(bytesize, 64)
    try:
        block = np.empty(size + PINNED_ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise fail("OUT_OF_MEMORY") from error
    start = -address_of(block) % PINNED_ALIGNMENT
    pinned = block[start : start + size]
    state.pinned[address_of(pinned)] = pinned
    return address_of(pinned)


@api(1)
def cuMemAllocHost(bytesize: Any) -> int:
    """Allocate page-locked host memory: copies from it are not staged."""
    return _allocate_host(bytesize)


@api(1)
def cuMemHostAlloc(bytesize: Any, Flags: Any) -> int:
    """Allocate page-locked host memory; the flags change nothing."""
    if unsigned(Flags, 32) & ~7:
        raise fail("INVALID_VALUE")
    return _allocate_host(bytesize)


@api()
def cuMemFreeHost(p: Any) -> None:
    """Free page-locked host memory after all that is queued has run."""
    state = process()
    forbid_in_capture(state)
    address = void_pointer(p)
    if address not in state.pinned:
        raise fail("INVALID_VALUE")
    finish_all(state, state.current())
    del state.pinned[address]


def _is_pinned(state: Process, address: int, size: int) -> bool:
    return any(base <= address and address + size <= base + block.size for base, block in state.pinned.items())


def _device_range(context: Context, pointer: Any, size: int) -> int:
    """Return a device address after checking that the range lies in one allocation."""
    address = integer(pointer)
    found = context.memory.find(address)
    if found is None or address + size > found.address + found.size:
        raise fail("INVALID_VALUE")
    return address


def _host_address(context: Context, pointer: Any) -> int:
    """Return a host address after checking that it is none of the device's, which the host cannot read."""
    address = void_pointer(pointer)
    if not address or context.memory.find(address) is not None:
        raise fail("INVALID_VALUE")
    return address


def _submit_and_wait(state: Process, hStream: Any, work: Work) -> None:
    operation = submit(state, resolve_stream(state, hStream), work)
    if operation is not None:
        complete(state, operation)


@api()
def cuMemcpyHtoD(dstDevice: Any, srcHost: Any, ByteCount: Any) -> None:
    """Copy from the host on the legacy default stream, and wait."""
    state = process()
    context, size = state.current(), unsigned(ByteCount, 64)
    if not size:
        return
    destination, source = _device_range(context, dstDevice, size), _host_address(context, srcHost)
    _submit_and_wait(state, 0, CopyFromHost(context, destination, source, size))


@api()
def cuMemcpyDtoH(dstHost: Any, srcDevice: Any, ByteCount: Any) -> None:
    """Copy to the host on the legacy default stream, and wait."""
    state = process()
    context, size = state.current(), unsigned(ByteCount, 64)
    if not size:
        return
    destination, source = _host_address(context, dstHost), _device_range(context, srcDevice, size)
    _submit_and_wait(state, 0, CopyToHost(context, destination, source, size))


@api()
def cuMemcpyDtoD(dstDevice: Any, srcDevice: Any, ByteCount: Any) -> None:
    """Copy on the device, in the legacy default stream; the host does not wait."""
    _copy_on_device(dstDevice, srcDevice, ByteCount, 0)


@api()
def cuMemcpyHtoDAsync(dstDevice: Any, srcHost: Any, ByteCount: Any, hStream: Any) -> None:
    """Copy from the host in a stream.

    Pageable memory is staged at the call; page-locked memory, and any memory while the stream is captured, is read
    when the copy runs.
    """
    state = process()
    context, size, stream = state.current(), unsigned(ByteCount, 64), resolve_stream(state, hStream)
    if not size:
        return
    destination, source = _device_range(context, dstDevice, size), _host_address(context, srcHost)
    staged = stream.capture is None and not _is_pinned(state, source, size)
    data = host_bytes(source, size).tobytes() if staged else source
    submit(state, stream, CopyFromHost(context, destination, data, size))


@api()
def cuMemcpyDtoHAsync(dstHost: Any, srcDevice: Any, ByteCount: Any, hStream: Any) -> None:
    """Copy to the host in a stream; with pageable memory the call returns when the copy is done."""
    state = process()
    context, size, stream = state.current(), unsigned(ByteCount, 64), resolve_stream(state, hStream)
    if not size:
        return
    destination, source = _host_address(context, dstHost), _device_range(context, srcDevice, size)
    operation = submit(state, stream, CopyToHost(context, destination, source, size))
    if operation is not None and not _is_pinned(state, destination, size):
        complete(state, operation)


def _copy_on_device(dstDevice: Any, srcDevice: Any, ByteCount: Any, hStream: Any) -> None:
    state = process()
    context, size, stream = state.current(), unsigned(ByteCount, 64), resolve_stream(state, hStream)
    if size:
        destination, source = _device_range(context, dstDevice, size), _device_range(context, srcDevice, size)
        submit(state, stream, CopyOnDevice(context, destination, source, size))


@api()
def cuMemcpyDtoDAsync(dstDevice: Any, srcDevice: Any, ByteCount: Any, hStream: Any) -> None:
    """Copy on the device in a stream."""
    _copy_on_device(dstDevice, srcDevice, ByteCount, hStream)


def _fill(dstDevice: Any, value: Any, N: Any, hStream: Any, width: int) -> None:
    state = process()
    context, count, stream = state.current(), unsigned(N, 64), resolve_stream(state, hStream)
    pattern = unsigned(value, 8 * width).to_bytes(width, "little")
    if not count:
        return
    destination = _device_range(context, dstDevice, count * width)
    if destination % width:
        raise fail("INVALID_VALUE")
    submit(state, stream, Fill(context, destination, pattern, count))


@api()
def cuMemsetD8(dstDevice: Any, uc: Any, N: Any) -> None:
    """Set N bytes, in the legacy default stream; the host does not wait."""
    _fill(dstDevice, uc, N, 0, 1)


@api()
def cuMemsetD16(dstDevice: Any, us: Any, N: Any) -> None:
    """Set N elements of 2 bytes, in the legacy default stream; the host does not wait."""
    _fill(dstDevice, us, N, 0, 2)


@api()
def cuMemsetD32(dstDevice: Any, ui: Any, N: Any) -> None:
    """Set N elements of 4 bytes, in the legacy default stream; the host does not wait."""
    _fill(dstDevice, ui, N, 0, 4)


@api()
def cuMemsetD8Async(dstDevice: Any, uc: Any, N: Any, hStream: Any) -> None:
    """Set N bytes in a stream."""
    _fill(dstDevice, uc, N, hStream, 1)


@api()
def cuMemsetD16Async(dstDevice: Any, us: Any, N: Any, hStream: Any) -> None:
    """Set N elements of 2 bytes in a stream."""
    _fill(dstDevice, us, N, hStream, 2)


@api()
def cuMemsetD32Async(dstDevice: Any, ui: Any, N: Any, hStream: Any) -> None:
    """Set N elements of 4 bytes in a stream."""
    _fill(dstDevice, ui, N, hStream, 4)


@api(2)
def cuMemGetAddressRange(dptr: Any) -> tuple[CUdeviceptr, int]:
    """Return start and size in bytes of the allocation that an address lies in."""
    found = process().current().memory.find(integer(dptr))
    if found is None:
        raise fail("NOT_FOUND")
    return CUdeviceptr(found.address), found.size


class _Pointer:
    """What the driver knows about an address: an allocation on the device, or page-locked host memory."""

    def __init__(self, state: Process, address: int) -> None:
        self.address = address
        self.context: Context | None = None
        self.pool = 0
        owned = state.owner(address)
        if owned is not None:
            self.context, self.start, self.size = owned.context, owned.address, owned.size
            self.type = CUmemorytype.CU_MEMORYTYPE_DEVICE
            self.pool = owned.context.pool.handle if owned.pooled else 0
            return
        for base, block in state.pinned.items():
            if base <= address < base + block.size:
                self.context, self.start, self.size = state.contexts[0], base, block.size
                self.type = CUmemorytype.CU_MEMORYTYPE_HOST
                return


_POINTER_ATTRIBUTES: dict[str, tuple[Any, Callable[[_Pointer], Any]]] = {
    # name: (value for memory that the driver does not know, value for memory that it knows)
    "CONTEXT": (CUcontext(0), lambda p: CUcontext(p.context.handle if p.context is not None else 0)),
    "MEMORY_TYPE": (0, lambda p: int(p.type)),
    "DEVICE_POINTER": (CUdeviceptr(0), lambda p: CUdeviceptr(p.address)),
    "HOST_POINTER": (0, lambda p: p.address if p.type == CUmemorytype.CU_MEMORYTYPE_HOST else 0),
    "IS_MANAGED": (False, lambda p: False),
    "DEVICE_ORDINAL": (2**32 - 2, lambda p: p.context.ordinal if p.context is not None else 0),
    "RANGE_START_ADDR": (CUdeviceptr(0), lambda p: CUdeviceptr(p.start)),
    "RANGE_SIZE": (0, lambda p: p.size),
    "MAPPED": (False, lambda p: True),
    "MEMPOOL_HANDLE": (CUmemoryPool(0), lambda p: CUmemoryPool(p.pool)),
}


def _pointer_attribute(attribute: CUpointer_attribute, pointer: _Pointer) -> Any:
    name = attribute.name.removeprefix("CU_POINTER_ATTRIBUTE_")
    if name not in _POINTER_ATTRIBUTES:
        raise fail("NOT_SUPPORTED")
    unknown, known = _POINTER_ATTRIBUTES[name]
    return unknown if pointer.context is None else known(pointer)


@api(1)
def cuPointerGetAttribute(attribute: CUpointer_attribute, ptr: Any) -> Any:
    """Return a property of the memory at an address; an address that the driver does not know is an invalid value."""
    pointer = _Pointer(process(), integer(ptr))
    if pointer.context is None:
        raise fail("INVALID_VALUE")
    return _pointer_attribute(attribute, pointer)


@api(1)
def cuPointerGetAttributes(numAttributes: Any, attributes: Any, ptr: Any) -> list[Any]:
    """Return properties of the memory at an address: null values where the driver does not know it."""
    count, chosen = unsigned(numAttributes, 32), list(attributes or ())
    if count > len(chosen):
        raise RuntimeError(f"List is too small: {len(chosen)} < {count}")
    if not count:
        raise fail("INVALID_VALUE")
    pointer = _Pointer(process(), integer(ptr))
    return [_pointer_attribute(attribute, pointer) for attribute in chosen]
