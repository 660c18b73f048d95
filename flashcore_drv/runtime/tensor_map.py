"""Tensor maps: what a kernel copies boxes of a tensor by (CUDA driver API, "Tensor Map Object Management")."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import driver
from .device import Device
from .hostmemory import Memory

MAP_BYTES = 128
MAP_ALIGNMENT = 64
_MOST_KNOWN = 128  # addresses of a tensor
_BOX_COLUMN_BYTES = 128  # the width of the swizzle


@dataclass(frozen=True)
class TensorMap:
    """A tensor of 2-byte elements, wherever it is, and the box of it that one copy moves, 128-byte swizzled.

    Attributes
    ----------
    data_type : str
        A ``CUtensorMapDataType`` without ``CU_TENSOR_MAP_DATA_TYPE_``.
    dims : tuple of int
        Elements, the contiguous dimension first.
    strides : tuple of int
        Bytes, of all dimensions but the first: multiples of 16 below 2^40.
    box_rows : int
        Of dimension 1; the box has 64 elements of dimension 0 and 1 of the others.
    known : dict of int to array of uint64
        Maps by address, made by :meth:`place`.
    """

    data_type: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box_rows: int
    known: dict[int, array[int]] = field(default_factory=dict, compare=False, repr=False)

    def place(self, device: Device, address: int, words: memoryview) -> None:
        """Write the map of the tensor at an address, a multiple of 16; what lies outside the tensor reads as 0.

        The first one is encoded, later only the address changes, which takes the driver a tenth of that (0.6 µs), and a
        copy of what it was at that address before a hundredth.

        Parameters
        ----------
        device : Device
            Whose context encodes it.
        address : int
            Of the tensor.
        words : memoryview of uint64
            The map's 128 bytes, which start on 64.

        Raises
        ------
        DriverError
            If the driver refuses it.
        """
        found = self.known.get(address)
        if found is not None:
            words[:] = found
            return
        place = np.frombuffer(words, np.uint8)
        other = next(iter(self.known.copy().values()), None)
        if other is None:
            with device.active():
                made = self._encode(address)  # owns the memory that is read here
                place[:] = np.asarray(Memory(made.getPtr(), (MAP_BYTES,), "|u1"))
        else:
            words[:] = other
            here = driver.module().CUtensorMap(place.__array_interface__["data"][0])
            status = driver.module().cuTensorMapReplaceAddress(here, address)[0]
            if status != driver.module().CUresult.CUDA_SUCCESS:
                driver.retry(device, status, "cuTensorMapReplaceAddress", here, address)
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known[address] = array("Q", words)

    def _encode(self, address: int) -> Any:
        """A ``CUtensorMap``."""
        cuda = driver.module()
        rank = len(self.dims)
        return driver.call(
            "cuTensorMapEncodeTiled",
            getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{self.data_type}"),
            rank,
            address,
            [cuda.cuuint64_t(n) for n in self.dims],
            [cuda.cuuint64_t(n) for n in self.strides],
            [cuda.cuuint32_t(n) for n in (_BOX_COLUMN_BYTES // 2, self.box_rows, *(1,) * (rank - 2))],
            [cuda.cuuint32_t(1)] * rank,
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
