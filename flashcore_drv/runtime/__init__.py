"""A small layer over the CUDA driver API: devices, memory, streams, kernels. It knows nothing of attention.

Importing it does no CUDA work; the first use of a device does.
"""

from .device import Device
from .driver import is_emulated
from .errors import (
    ContextLost,
    DriverError,
    DriverTooOld,
    HandleError,
    ImageRefused,
    LaunchError,
    NoDriverError,
    OutOfMemory,
)
from .graph import Aimed, Graph
from .memory import Buffer, DeviceArray
from .module import Kernel, Launch, Module
from .stream import Event, Stream
from .tensor_map import TensorMap

__all__ = [
    "Aimed",
    "Buffer",
    "ContextLost",
    "Device",
    "DeviceArray",
    "DriverError",
    "DriverTooOld",
    "Event",
    "Graph",
    "HandleError",
    "ImageRefused",
    "Kernel",
    "Launch",
    "LaunchError",
    "Module",
    "NoDriverError",
    "OutOfMemory",
    "Stream",
    "TensorMap",
    "is_emulated",
]
