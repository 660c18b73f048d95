"""Host memory at an address that somebody else gave: what a capsule or a node of a graph holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Memory:
    """Memory as NumPy takes it, without a look at it: an array over it is made by ``numpy.asarray``.

    Parameters
    ----------
    address : int
        Address of the first element, which NumPy does not read until somebody asks for an element.
    shape : tuple of int
        Elements along each dimension.
    typestr : str
        Of the Array Interface, ``<u8`` for example.
    strides : tuple of int, optional
        In bytes; by default C-contiguous.
    owner : object
        What keeps the memory alive, for as long as there is an array over it.
    """

    __slots__ = ("__array_interface__", "owner")

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        typestr: str,
        strides: tuple[int, ...] | None = None,
        owner: object = None,
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": typestr,
            "strides": strides,
            "version": 3,
        }


def words_at(address: int, count: int) -> npt.NDArray[np.int64]:
    """The 8-byte words at an address, to read and write."""
    found: npt.NDArray[Any] = np.asarray(Memory(address, (count,), "<i8"))
    return found
