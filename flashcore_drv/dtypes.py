"""The element types that kernels read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgument


@dataclass(frozen=True)
class DType:
    """An element type: its name in stems and messages, NumPy's name for it, bytes, and C++ type."""

    name: str
    numpy_name: str
    itemsize: int
    cpp: str
    mantissa_bits: int

    def to_numpy(self) -> np.dtype[Any]:
        """The NumPy dtype. Raises ImportError for bf16 where the package ml_dtypes is missing."""
        return named(self.numpy_name)

    def __str__(self) -> str:
        return self.name


F16 = DType("f16", "float16", 2, "__half", 10)
BF16 = DType("bf16", "bfloat16", 2, "__nv_bfloat16", 7)
F32 = DType("f32", "float32", 4, "float", 23)
_BY_NUMPY_NAME = {d.numpy_name: d for d in (F16, BF16, F32)}


def named(name: npt.DTypeLike) -> np.dtype[Any]:
    """What makes a NumPy dtype, or the name of one of ml_dtypes' ("bfloat16", "float8_e4m3fn").

    Raises
    ------
    TypeError
        If there is none of that name.
    ImportError
        If there may be, and the package ml_dtypes is missing.
    """
    if not isinstance(name, str) or not name.startswith(("bfloat", "float8_")):
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f"{name} as a NumPy dtype needs the package ml_dtypes: pip install ml_dtypes") from error
    if not hasattr(ml_dtypes, name):
        raise TypeError(f"data type {name!r} not understood")
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def dtype_of(numpy_dtype: np.dtype[Any], argument: str, allowed: tuple[DType, ...] = (F16, BF16)) -> DType:
    """Our type for NumPy's. Raises InvalidArgument, naming `argument`, for a type that is not in `allowed`."""
    found = _BY_NUMPY_NAME.get(numpy_dtype.name)
    if found not in allowed or not numpy_dtype.isnative:
        names = ", ".join(d.numpy_name for d in allowed)
        raise InvalidArgument(f"{argument} has dtype {numpy_dtype}; allowed: {names}")
    return found
