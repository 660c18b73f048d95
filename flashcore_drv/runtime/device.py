"""A GPU and its primary context."""

from __future__ import annotations

import functools
from typing import Any

from . import driver
from .errors import HandleError


class Active:
    """A context that is current in a thread between `__enter__` and `__exit__`.

    No generator: one that is not left would go on when the interpreter ends, where nothing is left to do that with.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._pushed = False

    def __enter__(self) -> None:
        if int(driver.call("cuCtxGetCurrent")) != int(self._context):
            driver.call("cuCtxPushCurrent", self._context)
            self._pushed = True

    def __exit__(self, *_: object) -> None:
        if self._pushed:
            self._pushed = False
            driver.call("cuCtxPopCurrent")


class Device:
    """A GPU. Its primary context, which every library in the process shares, is retained and never reset.

    Get one with :meth:`Device.get`. Objects of the same GPU are equal: threads that start together may make several.
    """

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self.handle = driver.call("cuDeviceGet", ordinal)
        self.context = driver.call("cuDevicePrimaryCtxRetain", self.handle)

    @staticmethod
    @functools.cache
    def get(ordinal: int = 0) -> Device:
        """The GPU with this ordinal. Raises HandleError if there is none."""
        count = Device.count()
        if not 0 <= ordinal < count:
            raise HandleError(f"device {ordinal} does not exist; there are {count} (0 to {count - 1})")
        return Device(ordinal)

    @staticmethod
    def count() -> int:
        """How many GPUs this process sees."""
        return int(driver.call("cuDeviceGetCount"))

    @staticmethod
    def current() -> Device:
        """The GPU of the context that is current in this thread, else GPU 0."""
        context = driver.call("cuCtxGetCurrent")
        return Device.get(int(driver.call("cuCtxGetDevice")) if int(context) else 0)

    def attribute(self, name: str) -> int:
        """A device attribute by its name without ``CU_DEVICE_ATTRIBUTE_``, for example ``MULTIPROCESSOR_COUNT``."""
        enum = driver.module().CUdevice_attribute
        return int(driver.call("cuDeviceGetAttribute", getattr(enum, f"CU_DEVICE_ATTRIBUTE_{name}"), self.handle))

    @functools.cached_property
    def arch(self) -> int:
        """Compute capability: 89 stands for 8.9."""
        return 10 * self.attribute("COMPUTE_CAPABILITY_MAJOR") + self.attribute("COMPUTE_CAPABILITY_MINOR")

    @functools.cached_property
    def multiprocessors(self) -> int:
        """Number of SMs."""
        return self.attribute("MULTIPROCESSOR_COUNT")

    @functools.cached_property
    def l2_bytes(self) -> int:
        """Size of the L2 cache in bytes."""
        return self.attribute("L2_CACHE_SIZE")

    @functools.cached_property
    def name(self) -> str:
        """For example ``NVIDIA H200``."""
        raw: Any = driver.call("cuDeviceGetName", 256, self.handle)
        return raw.split(b"\0")[0].decode() if isinstance(raw, bytes) else str(raw)

    @functools.cached_property
    def has_memory_pools(self) -> bool:
        """Whether memory can be allocated in stream order."""
        return bool(self.attribute("MEMORY_POOLS_SUPPORTED"))

    def active(self) -> Active:
        """Make the primary context current in this thread, then restore the caller's."""
        return Active(self.context)

    def synchronize(self) -> None:
        """Wait for all work on this GPU."""
        with self.active():
            driver.call("cuCtxSynchronize")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.ordinal == self.ordinal

    def __hash__(self) -> int:
        return hash(self.ordinal)

    def __repr__(self) -> str:
        return f"<Device {self.ordinal}: {self.name}, sm_{self.arch}>"
