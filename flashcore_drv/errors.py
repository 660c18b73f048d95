"""What can go wrong before the GPU is touched. The driver's own errors are :mod:`flashcore_drv.runtime.errors`."""

from __future__ import annotations


class InvalidArgument(ValueError):
    """An argument that no implementation could take: its name, its value and what is allowed."""


class Unsupported(NotImplementedError):
    """A legal problem that no built kernel computes: what was asked for, what there is, how to get it."""


class KernelImageError(RuntimeError):
    """A compiled kernel that is missing, stale or damaged: which file, why, and the command that makes it."""
