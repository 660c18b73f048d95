"""What can be put into a stream or a graph: copies, fills and frees (launches are in :mod:`.launch`)."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from cuda.bindings.driver import CUgraphNodeType

from .hostmemory import host_bytes

if TYPE_CHECKING:
    from .process import Allocation, Context, Process


class Work(abc.ABC):
    """One thing for the device to do.

    Attributes
    ----------
    context : Context
        Where it runs.
    touches : sequence of int
        Device addresses that it was given.
    """

    node_type: ClassVar[CUgraphNodeType]
    context: Context
    touches: Sequence[int]

    @abc.abstractmethod
    def run(self, state: Process) -> None:
        """Do it."""


class CopyFromHost(Work):
    """Copy host memory to the device: bytes that were staged, or memory that is read when the copy runs."""

    node_type = CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMCPY

    def __init__(self, context: Context, destination: int, source: int | bytes, size: int) -> None:
        self.context, self.destination, self.source, self.size = context, destination, source, size
        self.touches = (destination,)

    def run(self, state: Process) -> None:
        """Copy."""
        data = self.source if isinstance(self.source, bytes) else host_bytes(self.source, self.size).tobytes()
        self.context.memory.write(self.destination, data)


class CopyToHost(Work):
    """Copy device memory to host memory."""

    node_type = CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMCPY

    def __init__(self, context: Context, destination: int, source: int, size: int) -> None:
        self.context, self.destination, self.source, self.size = context, destination, source, size
        self.touches = (source,)

    def run(self, state: Process) -> None:
        """Copy."""
        host_bytes(self.destination, self.size)[:] = self.context.memory.read(self.source, self.size)


class CopyOnDevice(Work):
    """Copy device memory to device memory."""

    node_type = CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMCPY

    def __init__(self, context: Context, destination: int, source: int, size: int) -> None:
        self.context, self.destination, self.source, self.size = context, destination, source, size
        self.touches = (destination, source)

    def run(self, state: Process) -> None:
        """Copy."""
        self.context.memory.copy(self.destination, self.source, self.size)


class Fill(Work):
    """Repeat a pattern of 1, 2 or 4 bytes over device memory."""

    node_type = CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEMSET

    def __init__(self, context: Context, destination: int, pattern: bytes, count: int) -> None:
        self.context, self.destination, self.pattern, self.count = context, destination, pattern, count
        self.touches = (destination,)

    def run(self, state: Process) -> None:
        """Fill."""
        self.context.memory.fill(self.destination, self.pattern, self.count)


class Free(Work):
    """Free device memory in the order of a stream."""

    node_type = CUgraphNodeType.CU_GRAPH_NODE_TYPE_MEM_FREE

    def __init__(self, allocation: Allocation) -> None:
        self.context, self.allocation = allocation.context, allocation
        self.touches = (allocation.address,)

    def run(self, state: Process) -> None:
        """Free."""
        state.release(self.allocation)
