# ruff: noqa: N802 (the driver's names)
"""Initialisation, errors, devices and primary contexts (driver API sections of these names)."""

from __future__ import annotations

import hashlib
from typing import Any

from cuda.bindings.driver import CUDA_VERSION, CUcontext, CUdevice, CUdevice_attribute, CUresult, CUuuid

from .errors import describe, fail
from .hostmemory import host_bytes
from .process import Context, api, integer, process, unsigned


@api(context=False, initialised=False)
def cuInit(Flags: Any) -> None:
    """Initialise the driver."""
    if unsigned(Flags, 32) != 0:
        raise fail("INVALID_VALUE")
    process().initialised = True


@api(1, context=False, initialised=False)
def cuDriverGetVersion() -> int:
    """Return the CUDA version that the emulation follows: that of the bindings."""
    return int(CUDA_VERSION)


@api(1, context=False, initialised=False)
def cuGetErrorName(error: CUresult) -> bytes:
    """Return the name of a result code."""
    name: str = error.name
    return name.encode()


@api(1, context=False, initialised=False)
def cuGetErrorString(error: CUresult) -> bytes:
    """Return the driver's text for a result code."""
    return describe(error).encode()


@api(1, context=False)
def cuDeviceGetCount() -> int:
    """Return the number of emulated devices."""
    return len(process().contexts)


@api(1, context=False)
def cuDeviceGet(ordinal: Any) -> CUdevice:
    """Return the device of an ordinal."""
    process().device(ordinal)
    return CUdevice(integer(ordinal))


@api(1, context=False)
def cuDeviceGetName(length: Any, dev: Any) -> bytes:
    """Return the name, which says that the device is emulated, in ``length`` bytes like the bindings."""
    device, size = process().device(dev), integer(length)
    if size <= 0:
        raise fail("INVALID_VALUE")
    return device.arch.device_name.encode()[: size - 1].ljust(size, b"\0")


@api(1, context=False)
def cuDeviceGetUuid(dev: Any) -> CUuuid:
    """Return an identifier that depends on the emulated architecture and the ordinal only."""
    device = process().device(dev)
    uuid = CUuuid()
    digest = hashlib.sha256(f"{device.arch.device_name} {device.ordinal}".encode()).digest()
    host_bytes(uuid.getPtr(), 16)[:] = bytearray(digest[:16])
    return uuid


@api(1, context=False)
def cuDeviceTotalMem(dev: Any) -> int:
    """Return the device memory in bytes, or the limit set for the emulation."""
    return process().device(dev).memory_limit


@api(1, context=False)
def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: Any) -> int:
    """Return a property of the emulated device; 0 for what has no meaning here (textures, for example)."""
    return _attributes(process().device(dev)).get(attrib.name.removeprefix("CU_DEVICE_ATTRIBUTE_"), 0)


def _attributes(device: Context) -> dict[str, int]:
    arch = device.arch
    hopper_or_later = int(arch.compute_capability >= (9, 0))
    return {
        "MAX_THREADS_PER_BLOCK": arch.max_threads_per_block,
        "MAX_BLOCK_DIM_X": arch.max_block[0],
        "MAX_BLOCK_DIM_Y": arch.max_block[1],
        "MAX_BLOCK_DIM_Z": arch.max_block[2],
        "MAX_GRID_DIM_X": arch.max_grid[0],
        "MAX_GRID_DIM_Y": arch.max_grid[1],
        "MAX_GRID_DIM_Z": arch.max_grid[2],
        "MAX_SHARED_MEMORY_PER_BLOCK": arch.shared_per_block,
        "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": arch.shared_per_block_optin,
        "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": arch.shared_per_multiprocessor,
        "RESERVED_SHARED_MEMORY_PER_BLOCK": arch.shared_reserved_per_block,
        "TOTAL_CONSTANT_MEMORY": arch.constant_bytes,
        "WARP_SIZE": arch.warp_size,
        "MAX_PITCH": 2**31 - 1,
        "MAX_REGISTERS_PER_BLOCK": arch.registers_per_block,
        "MAX_REGISTERS_PER_MULTIPROCESSOR": arch.registers_per_multiprocessor,
        "MAX_THREADS_PER_MULTIPROCESSOR": arch.max_threads_per_multiprocessor,
        "MAX_BLOCKS_PER_MULTIPROCESSOR": arch.max_blocks_per_multiprocessor,
        "MULTIPROCESSOR_COUNT": arch.multiprocessors,
        "CLOCK_RATE": arch.clock_khz,
        "MEMORY_CLOCK_RATE": arch.memory_clock_khz,
        "GLOBAL_MEMORY_BUS_WIDTH": arch.memory_bus_bits,
        "L2_CACHE_SIZE": arch.l2_bytes,
        "COMPUTE_CAPABILITY_MAJOR": arch.compute_capability[0],
        "COMPUTE_CAPABILITY_MINOR": arch.compute_capability[1],
        "ASYNC_ENGINE_COUNT": 2,
        "GPU_OVERLAP": 1,
        "CONCURRENT_KERNELS": 1,
        "UNIFIED_ADDRESSING": 1,
        "STREAM_PRIORITIES_SUPPORTED": 1,
        "COMPUTE_PREEMPTION_SUPPORTED": 1,
        "COOPERATIVE_LAUNCH": 1,
        "MEMORY_POOLS_SUPPORTED": 1,
        "CLUSTER_LAUNCH": hopper_or_later,
        "TENSOR_MAP_ACCESS_SUPPORTED": hopper_or_later,
    }


@api(1, context=False)
def cuDevicePrimaryCtxRetain(dev: Any) -> CUcontext:
    """Retain the primary context."""
    context = process().device(dev)
    context.retained += 1
    return CUcontext(context.handle)


@api(context=False)
def cuDevicePrimaryCtxRelease(dev: Any) -> None:
    """Release the primary context; the last release destroys all that it holds."""
    state = process()
    context = state.device(dev)
    if not context.retained:
        raise fail("INVALID_CONTEXT")
    context.retained -= 1
    if not context.retained:
        state.empty(context)


@api(2, context=False)
def cuDevicePrimaryCtxGetState(dev: Any) -> tuple[int, int]:
    """Return the flags and whether the primary context is active."""
    return 0, int(process().device(dev).retained > 0)


@api(1, context=False)
def cuCtxGetCurrent() -> CUcontext:
    """Return the calling thread's current context, or a null handle."""
    stack = process().thread.contexts
    return CUcontext(stack[-1].handle if stack else 0)


@api(context=False)
def cuCtxSetCurrent(ctx: Any) -> None:
    """Replace the calling thread's current context; null pops it."""
    state = process()
    stack = state.thread.contexts
    chosen = state.resolve(ctx, Context, "INVALID_CONTEXT") if integer(ctx) else None
    if stack:
        stack.pop()
    if chosen is not None:
        stack.append(chosen)


@api(context=False)
def cuCtxPushCurrent(ctx: Any) -> None:
    """Push a context on the calling thread's stack."""
    state = process()
    state.thread.contexts.append(state.resolve(ctx, Context, "INVALID_CONTEXT"))


@api(1, context=False)
def cuCtxPopCurrent() -> CUcontext:
    """Pop the calling thread's current context."""
    stack = process().thread.contexts
    if not stack:
        raise fail("INVALID_CONTEXT")
    return CUcontext(stack.pop().handle)


@api(1, context=False)
def cuCtxGetDevice() -> CUdevice:
    """Return the device of the current context."""
    stack = process().thread.contexts
    if not stack:
        raise fail("INVALID_CONTEXT")
    return CUdevice(stack[-1].ordinal)


@api(1, context=False)
def cuCtxGetApiVersion(ctx: Any) -> int:
    """Return the API version of a context; null is the current one."""
    state = process()
    if integer(ctx):
        state.resolve(ctx, Context, "INVALID_CONTEXT")
    elif not state.thread.contexts:
        raise fail("INVALID_CONTEXT")
    return 3020


@api(2)
def cuCtxGetStreamPriorityRange() -> tuple[int, int]:
    """Return the least and the greatest stream priority."""
    return LEAST_PRIORITY, GREATEST_PRIORITY


LEAST_PRIORITY, GREATEST_PRIORITY = 0, -5
