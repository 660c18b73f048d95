"""Exact softmax attention on NVIDIA GPUs: kernels compiled ahead of time, over the CUDA driver API.

>>> import flashcore_drv as fc
>>> o = fc.attention(q, k, v, causal=True)

Importing the package does no CUDA work.
"""

from . import unfused
from .api import attention, attention_varlen, plan_attention, plan_attention_varlen
from .errors import InvalidArgument, KernelImageError, Unsupported
from .merge import attention_merge
from .plans import ArraySpec, Plan
from .runtime import (
    ContextLost,
    Device,
    DeviceArray,
    DriverError,
    DriverTooOld,
    Graph,
    HandleError,
    ImageRefused,
    LaunchError,
    NoDriverError,
    OutOfMemory,
    Stream,
)

__all__ = [
    "ArraySpec",
    "ContextLost",
    "Device",
    "DeviceArray",
    "DriverError",
    "DriverTooOld",
    "Graph",
    "HandleError",
    "ImageRefused",
    "InvalidArgument",
    "KernelImageError",
    "LaunchError",
    "NoDriverError",
    "OutOfMemory",
    "Plan",
    "Stream",
    "Unsupported",
    "attention",
    "attention_merge",
    "attention_varlen",
    "plan_attention",
    "plan_attention_varlen",
    "unfused",
]
__version__ = "0.1.0"
