"""The element types that kernels read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
        if self is BF16:
            try:
                import ml_dtypes
            except ImportError as error:
                raise ImportError(
                    "bfloat16 as a NumPy dtype needs the package ml_dtypes: pip install ml_dtypes"
                ) from error
            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype(self.numpy_name)

    def __str__(self) -> str:
        return self.name


F16 = DType("f16", "float16", 2, "__half", 10)
BF16 = DType("bf16", "bfloat16", 2, "__nv_bfloat16", 7)
F32 = DType("f32", "float32", 4, "float", 23)
_BY_NUMPY_NAME = {d.numpy_name: d for d in (F16, BF16, F32)}


def dtype_of(numpy_dtype: np.dtype[Any], argument: str, allowed: tuple[DType, ...] = (F16, BF16)) -> DType:
    """Our type for NumPy's. Raises InvalidArgument, naming `argument`, for a type that is not in `allowed`."""
    found = _BY_NUMPY_NAME.get(numpy_dtype.name)
    if found not in allowed or not numpy_dtype.isnative:
        names = ", ".join(d.numpy_name for d in allowed)
        raise InvalidArgument(f"{argument} has dtype {numpy_dtype}; allowed: {names}")
    return found
