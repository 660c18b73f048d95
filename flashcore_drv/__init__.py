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
from .runtime import Device, DeviceArray, DriverError, Graph, HandleError, NoDriverError, Stream

__all__ = [
    "ArraySpec",
    "Device",
    "DeviceArray",
    "DriverError",
    "Graph",
    "HandleError",
    "InvalidArgument",
    "KernelImageError",
    "NoDriverError",
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
