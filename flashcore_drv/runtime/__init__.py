"""A small layer over the CUDA driver API: devices, memory, streams, kernels. It knows nothing of attention.

Importing it does no CUDA work; the first use of a device does.
"""

from .device import Device
from .driver import is_emulated
from .errors import DriverError, HandleError, NoDriverError
from .graph import Graph
from .memory import Buffer, DeviceArray
from .module import Kernel, Launch, Module
from .stream import Event, Stream

__all__ = [
    "Buffer",
    "Device",
    "DeviceArray",
    "DriverError",
    "Event",
    "Graph",
    "HandleError",
    "Kernel",
    "Launch",
    "Module",
    "NoDriverError",
    "Stream",
    "is_emulated",
]
