"""DLPack (https://dmlc.github.io/dlpack/latest/) capsules: read without being taken over, and made.

Python reaches neither what a capsule points to nor the C functions that make one. What points there is read where
CPython keeps it, right after an object's header, and what it points to has a layout that DLPack has fixed. A capsule is
made by NumPy, over memory that NumPy is told of and never reads, and then said to be a GPU's: so the code that gives
the memory back, when whoever took the capsule is done, is NumPy's.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from .hostmemory import Memory, words_at

CUDA, CUDA_MANAGED = 2, 13
"""Device types (DLDeviceType): memory of a GPU, and memory that it shares with the host."""

_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}  # DLDataTypeCode
_FLOAT8 = {7: "e3m4", 8: "e4m3", 9: "e4m3b11fnuz", 10: "e4m3fn", 11: "e4m3fnuz", 12: "e5m2", 13: "e5m2fnuz"}
_CODES = {"bfloat16": 4, **{f"float8_{name}": code for code, name in _FLOAT8.items()}}  # of those that NumPy lacks
_POINTER_AT = object.__basicsize__  # in a capsule, which begins as every object
_UNVERSIONED, _VERSIONED = '"dltensor"', '"dltensor_versioned"'
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY


@dataclass(frozen=True)
class Tensor:
    """What a capsule says of an array.

    Attributes
    ----------
    address : int
        Of its first element.
    shape, strides : tuple of int
        Elements along each dimension; distance of neighbours in elements, None for C-contiguous.
    dtype : str
        For example ``float16``, ``bfloat16``, ``float8_e4m3fn``.
    device : (int, int)
        DLDeviceType, and which.
    read_only : bool
        Whether it must not be written, which older capsules do not say.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device: tuple[int, int]
    read_only: bool


def capsule_of(array: Any, stream: int) -> Any:
    """A capsule of an array on a GPU, once the array is ready for work that is queued in `stream` (-1: do not wait).

    `stream` is what DLPack has for CUDA: 1 is the legacy default stream, 2 that of the thread, 0 nothing.
    """
    try:
        return array.__dlpack__(stream=stream, max_version=(1, 0))
    except TypeError:  # from before version 1
        return array.__dlpack__(stream=stream)
    except RuntimeError:
        if stream != -1:
            raise
        return capsule_of(array, 1)  # JAX takes -1 for a stream. That the default stream waits does no harm


def read(capsule: Any) -> Tensor:
    """What a capsule says, which stays as it is: it, and so the array, has to be kept for as long as that is used.

    Raises
    ------
    TypeError
        If it is no capsule of DLPack that nobody took yet.
    """
    at, versioned = _managed(capsule)
    flags = int(words_at(at, 4)[3]) if versioned else 0
    data, device, kind, shape, strides, offset = words_at(at + 32 * versioned, 6).tolist()
    dimensions, bits = kind & 0xFFFF_FFFF, kind >> 32
    return Tensor(
        (data & 0xFFFF_FFFF_FFFF_FFFF) + offset,
        tuple(words_at(shape, dimensions).tolist()) if dimensions else (),
        tuple(words_at(strides, dimensions).tolist()) if strides and dimensions else None,
        _name(bits & 0xFF, bits >> 8 & 0xFF, bits >> 16 & 0xFFFF),
        (device & 0xFFFF_FFFF, device >> 32),
        bool(flags & _READ_ONLY),
    )


def make(
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    ordinal: int,
    owner: object,
    versioned: bool,
) -> Any:
    """A capsule of an array on a GPU.

    Parameters
    ----------
    address, shape, strides, dtype
        Of the array, strides in elements.
    ordinal : int
        The GPU.
    owner : object
        What keeps the memory alive, until whoever takes the capsule gives it back.
    versioned : bool
        Whether the taker knows version 1, which NumPy from 2.1 on makes.

    Raises
    ------
    BufferError
        If DLPack has no such dtype.
    """
    code = _CODES.get(dtype.name)
    if dtype.kind not in "iuf" and code is None:
        raise BufferError(f"DLPack has no dtype {dtype}")
    typestr = dtype.str if code is None else f"<u{dtype.itemsize}"
    there = np.asarray(Memory(address, shape, typestr, tuple(s * dtype.itemsize for s in strides), owner))
    try:
        capsule = there.__dlpack__(max_version=(1, 0)) if versioned else there.__dlpack__()
    except TypeError:  # NumPy before 2.1
        capsule = there.__dlpack__()
    at, is_versioned = _managed(capsule)
    words = words_at(at + 32 * is_versioned, 3)
    words[1] = CUDA | ordinal << 32
    if code is not None:
        words[2] = words[2] & ~(0xFF << 32) | code << 32
    return capsule


def _managed(capsule: Any) -> tuple[int, bool]:
    """Where the managed tensor of a capsule is, and whether it is versioned (1 is what this module knows)."""
    said = repr(capsule)
    if sys.implementation.name != "cpython" or type(capsule).__name__ != "PyCapsule":
        raise TypeError(f"__dlpack__ returned {said}; allowed: a capsule of CPython")
    if _UNVERSIONED not in said and _VERSIONED not in said:
        raise TypeError(f"__dlpack__ returned {said}; allowed: a capsule dltensor that nobody took")
    at = int(words_at(id(capsule) + _POINTER_AT, 1)[0])
    if _UNVERSIONED in said:
        return at, False
    if (major := int(words_at(at, 1)[0]) & 0xFFFF_FFFF) != 1:
        raise TypeError(f"__dlpack__ returned a capsule of version {major}; allowed: 1, or one without")
    return at, True


def _name(code: int, bits: int, lanes: int) -> str:
    """NumPy's name for a DLDataType, and ml_dtypes'."""
    name = f"float8_{_FLOAT8[code]}" if code in _FLOAT8 else f"{_KINDS.get(code, f'type {code} of ')}{bits}"
    name = "bool" if name == "bool8" else name
    return name if lanes == 1 else f"{name}x{lanes}"
