"""Exact softmax attention on NVIDIA GPUs: kernels compiled ahead of time, over the CUDA driver API.

>>> import flashcore_drv as fc
>>> o = fc.attention(q, k, v, causal=True)

Importing the package does no CUDA work.
"""

from . import unfused
from .api import attention, attention_varlen
from .errors import InvalidArgument, KernelImageError, Unsupported
from .merge import attention_merge
from .runtime import Device, DeviceArray, DriverError, HandleError, NoDriverError, Stream

__all__ = [
    "Device",
    "DeviceArray",
    "DriverError",
    "HandleError",
    "InvalidArgument",
    "KernelImageError",
    "NoDriverError",
    "Stream",
    "Unsupported",
    "attention",
    "attention_merge",
    "attention_varlen",
    "unfused",
]
__version__ = "0.1.0"
