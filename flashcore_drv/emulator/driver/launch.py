# ruff: noqa: N802 (the driver's names)
"""Launches and tensor maps (driver API sections "Execution Control" and "Tensor Map Object Management")."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda.bindings.driver import (
    CUDA_KERNEL_NODE_PARAMS,
    CUfunction,
    CUgraphNodeType,
    CUlaunchAttributeID,
    CUlaunchConfig,
    CUtensorMap,
    CUtensorMapDataType,
    CUtensorMapFloatOOBfill,
    CUtensorMapInterleave,
    CUtensorMapL2promotion,
    CUtensorMapSwizzle,
    cuuint32_t,
    cuuint64_t,
)

from .. import launch as run_kernel
from ..errors import EmulationError
from ..instructions import tma
from .errors import fail
from .failures import account
from .hostmemory import address_of, host_bytes, void_pointer
from .modules import Function
from .process import Process, api, integer, process, unsigned
from .queue import stream_of as resolve_stream
from .queue import submit
from .work import Work

Extent = tuple[int, int, int]


class Launch(Work):
    """A launch of a kernel, with the bytes that its parameters had at the call."""

    node_type = CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL

    def __init__(
        self, function: Function, grid: Extent, block: Extent, shared: int, params: bytes, dependent: bool = False
    ) -> None:
        self.context = function.context
        self.function, self.grid, self.block, self.shared, self.params = function, grid, block, shared, params
        self.dependent = dependent  # it may begin before the launch before it has ended
        words = np.frombuffer(params[: len(params) // 8 * 8], np.uint64)
        self.touches = [int(word) for word in words if word > 0xFFFF_FFFF]

    def run(self, state: Process) -> None:
        """Run the kernel and keep its report."""
        function = self.function
        if not function.module.loaded:
            account(f"a graph launches {function.entry.name}, whose module was unloaded")
        for allocation in filter(None, map(state.owner, self.touches)):
            if allocation.context is not self.context:
                here, there = self.context.ordinal, allocation.context.ordinal
                account(f"{allocation} of device {there} is given to {function.entry.name} on device {here}")
        state.launches += 1
        report = run_kernel(
            function.entry,
            function.module.program,
            params=self.params,
            grid=self.grid,
            block=self.block,
            dynamic_shared_bytes=self.shared,
            memory=self.context.memory,
            globals_=function.module.addresses,
            limits=self.context.arch.limits,
            checks=state.checks,
            seed=state.seed + state.launches if state.seed else 0,
            device={"multiprocessors": self.context.arch.multiprocessors},
            dependent=self.dependent,
        )
        state.reports.append((function.entry.name, report))

    def node_parameters(self) -> CUDA_KERNEL_NODE_PARAMS:
        """Return the launch as a graph node's parameters, with a pointer table that lives as long as this object."""
        self._block = np.frombuffer(self.params or b"\0", np.uint8).copy()
        base = address_of(self._block)
        self._table = np.array([base + param.offset for param in self.function.entry.params] or [0], np.uint64)
        node = CUDA_KERNEL_NODE_PARAMS()
        node.func = CUfunction(self.function.handle)
        node.gridDimX, node.gridDimY, node.gridDimZ = self.grid
        node.blockDimX, node.blockDimY, node.blockDimZ = self.block
        node.sharedMemBytes = self.shared
        node.kernelParams = address_of(self._table)
        return node


def _parameters(function: Function, kernelParams: Any) -> bytes:
    """Copy the parameters that a ``void**`` table points to.

    Raises
    ------
    TypeError
        For a table that is no address: the (values, types) form of the bindings goes through ctypes and is not
        emulated.
    """
    if isinstance(kernelParams, tuple):
        raise TypeError("kernelParams as (values, types) is not emulated: pass the int address of a void** table")
    params = function.entry.params
    if not params:
        return b""
    table_address = void_pointer(kernelParams)
    if not table_address:
        raise fail("INVALID_VALUE")
    table = host_bytes(table_address, 8 * len(params)).view(np.uint64)
    block = bytearray(max(param.offset + param.size for param in params))
    for param, pointer in zip(params, table.tolist()):
        if not pointer:
            raise fail("INVALID_VALUE")
        block[param.offset : param.offset + param.size] = host_bytes(pointer, param.size).tobytes()
    return bytes(block)


def _checked(
    state: Process,
    f: Any,
    grid: Extent,
    block: Extent,
    shared: int,
    kernelParams: Any,
    extra: Any,
    dependent: bool = False,
) -> Launch:
    """Build a launch within what the function and the device allow."""
    function = state.resolve(f, Function)
    arch = function.context.arch
    if integer(extra):
        raise fail("NOT_SUPPORTED")
    if any(not 1 <= size <= most for size, most in zip((*grid, *block), (*arch.max_grid, *arch.max_block))):
        raise fail("INVALID_VALUE")
    if block[0] * block[1] * block[2] > function.max_threads:
        raise fail("INVALID_VALUE")
    if shared > function.max_dynamic_shared:
        raise fail("INVALID_VALUE")
    if dependent and arch.compute_capability < (9, 0):
        raise fail("NOT_SUPPORTED")
    return Launch(function, grid, block, shared, _parameters(function, kernelParams), dependent)


def launch_of_node(state: Process, node: CUDA_KERNEL_NODE_PARAMS | None, before: Launch | None = None) -> Launch:
    """Build the launch that a graph node's parameters describe; its attributes stay those that it had `before`."""
    if node is None:
        raise fail("INVALID_VALUE")
    grid = node.gridDimX, node.gridDimY, node.gridDimZ
    block = node.blockDimX, node.blockDimY, node.blockDimZ
    dependent = before is not None and before.dependent
    return _checked(state, node.func, grid, block, node.sharedMemBytes, node.kernelParams, node.extra, dependent)


@api()
def cuLaunchKernel(
    f: Any,
    gridDimX: Any,
    gridDimY: Any,
    gridDimZ: Any,
    blockDimX: Any,
    blockDimY: Any,
    blockDimZ: Any,
    sharedMemBytes: Any,
    hStream: Any,
    kernelParams: Any,
    extra: Any,
) -> None:
    """Launch a kernel; its parameters are copied before the call returns."""
    state = process()
    stream = resolve_stream(state, hStream)
    grid = unsigned(gridDimX, 32), unsigned(gridDimY, 32), unsigned(gridDimZ, 32)
    block = unsigned(blockDimX, 32), unsigned(blockDimY, 32), unsigned(blockDimZ, 32)
    submit(state, stream, _checked(state, f, grid, block, unsigned(sharedMemBytes, 32), kernelParams, extra))


@api()
def cuLaunchKernelEx(config: CUlaunchConfig | None, f: Any, kernelParams: Any, extra: Any) -> None:
    """Launch a kernel with attributes.

    With programmatic stream serialisation launches stay in order, which it allows, but the kernel has to wait for the
    one before it itself. It is refused below 9.0, which has no instruction to wait with. Clusters are of one block.
    """
    state = process()
    if config is None:
        raise fail("INVALID_VALUE")
    stream, dependent = resolve_stream(state, config.hStream), False
    if config.numAttrs:
        for attribute in config.attrs[: config.numAttrs]:
            if attribute.id == CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
                dependent = bool(attribute.value.programmaticStreamSerializationAllowed)
            cluster = attribute.value.clusterDim
            if attribute.id == CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
                if 0 in (cluster.x, cluster.y, cluster.z):
                    raise fail("INVALID_VALUE")
                if (cluster.x, cluster.y, cluster.z) != (1, 1, 1):
                    raise fail("NOT_SUPPORTED")
    grid = config.gridDimX, config.gridDimY, config.gridDimZ
    block = config.blockDimX, config.blockDimY, config.blockDimZ
    submit(state, stream, _checked(state, f, grid, block, config.sharedMemBytes, kernelParams, extra, dependent))


def _list(values: Any, kind: type, name: str) -> list[int]:
    if not all(isinstance(value, kind) for value in values or ()):
        raise TypeError(f"Argument '{name}' has to be a list of {kind.__name__}")
    return [int(value) for value in values or ()]


@api(1)
def cuTensorMapEncodeTiled(
    tensorDataType: CUtensorMapDataType,
    tensorRank: Any,
    globalAddress: Any,
    globalDim: Any,
    globalStrides: Any,
    boxDim: Any,
    elementStrides: Any,
    interleave: CUtensorMapInterleave,
    swizzle: CUtensorMapSwizzle,
    l2Promotion: CUtensorMapL2promotion,
    oobFill: CUtensorMapFloatOOBfill,
) -> CUtensorMap:
    """Encode a tensor map, in the emulator's own layout of its 128 bytes."""
    rank = integer(tensorRank)
    dims = _list(globalDim, cuuint64_t, "globalDim")
    strides = _list(globalStrides, cuuint64_t, "globalStrides")
    box = _list(boxDim, cuuint32_t, "boxDim")
    steps = _list(elementStrides, cuuint32_t, "elementStrides")
    address = void_pointer(globalAddress)
    context = process().current()
    if context.arch.compute_capability < (9, 0):
        raise fail("NOT_SUPPORTED")
    if not 1 <= rank <= 5 or len(dims) < rank or len(strides) < rank - 1 or len(box) < rank or len(steps) < rank:
        raise fail("INVALID_VALUE")
    try:
        encoded = tma.encode_tensor_map(
            data_type=int(tensorDataType),
            address=address,
            dims=dims[:rank],
            strides=strides[: rank - 1],
            box=box[:rank],
            element_strides=steps[:rank],
            interleave=int(interleave),
            swizzle=int(swizzle),
            l2_promotion=int(l2Promotion),
            oob_fill=int(oobFill),
        )
    except ValueError as error:
        process().last_error = EmulationError("tensor-map", str(error))
        raise fail("INVALID_VALUE") from error
    tensor_map = CUtensorMap()
    host_bytes(tensor_map.getPtr(), 128)[:] = np.frombuffer(encoded, np.uint8)
    return tensor_map


@api()
def cuTensorMapReplaceAddress(tensorMap: CUtensorMap | None, globalAddress: Any) -> None:
    """Change the address in a tensor map."""
    address = void_pointer(globalAddress)
    if tensorMap is None or address % 16:
        raise fail("INVALID_VALUE")
    encoded = host_bytes(tensorMap.getPtr(), 128)
    try:
        encoded[:] = np.frombuffer(tma.with_address(encoded.tobytes(), address), np.uint8)
    except ValueError as error:
        process().last_error = EmulationError("tensor-map", str(error))
        raise fail("INVALID_VALUE") from error
