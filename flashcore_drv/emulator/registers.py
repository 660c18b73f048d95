"""Registers as arrays over the threads of a batch, and the operands of instructions as views of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flashcore_drv.emulator.parser import SIZES
from flashcore_drv.emulator.selection import Array, Selection

Operation = Callable[[Selection], None]
"""A decoded instruction: runs for the selected threads."""

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for code, names in {
        "?": ("pred",), "u1": ("b8", "u8"), "i1": ("s8",), "u2": ("b16", "u16", "f16", "bf16", "e4m3x2", "e5m2x2"),
        "i2": ("s16",), "u4": ("b32", "u32", "f16x2", "bf16x2", "tf32"), "i4": ("s32",), "f4": ("f32",),
        "u8": ("b64", "u64"), "i8": ("s64",), "f8": ("f64",), "c16": ("b128",),
    }.items()
    for name in names
}  # fmt: skip
"""The array type of every PTX type; half-precision values are kept as their bits."""

UNITS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8"),
                                   16: np.dtype("c16")}  # fmt: skip
"""What one access of that many bytes is moved as (a complex number is only 16 bytes here)."""


class Registers:
    """The registers of every thread of a batch, filled with ones (NaN; true for predicates) until they are written."""

    def __init__(self, types: dict[str, str], n: int) -> None:
        self.n = n
        by_type: dict[np.dtype[Any], list[str]] = {}
        for name, kind in types.items():
            dtype = np.dtype(np.bool_) if kind == "pred" else UNITS[SIZES[kind]]
            by_type.setdefault(dtype, []).append(name)
        self.pools = {dtype: np.empty((len(names), n), dtype) for dtype, names in by_type.items()}
        self.arrays = {name: self.pools[dtype][i] for dtype, names in by_type.items() for i, name in enumerate(names)}
        self.poison()

    def poison(self) -> None:
        """Forget all values."""
        for dtype, pool in self.pools.items():
            if dtype == np.bool_:
                pool.fill(True)
            else:
                pool.view(np.uint8).fill(0xFF)

    def read(self, name: str, kind: str) -> Array:
        """The low bits of a register as values of a type: a view, [n]."""
        array: Array = self.arrays[name]
        dtype = DTYPES[kind]
        if array.itemsize < dtype.itemsize or (array.dtype == np.bool_) != (dtype == np.bool_):
            raise ValueError(f"register {name} is not a .{kind}")
        view: Array = array.view(dtype)[:: array.itemsize // dtype.itemsize]
        return view

    def write(self, name: str, kind: str) -> Array:
        """What to assign values of a type to, so that they are zero- or sign-extended to the register: a view, [n]."""
        array: Array = self.arrays[name]
        dtype = DTYPES[kind]
        if array.itemsize < dtype.itemsize or (array.dtype == np.bool_) != (dtype == np.bool_):
            raise ValueError(f"register {name} is not a .{kind}")
        if array.itemsize != dtype.itemsize:
            dtype = np.dtype(f"{'i' if dtype.kind == 'i' else 'u'}{array.itemsize}")
        view: Array = array.view(dtype)
        return view


def elementwise(function: Callable[..., Any], target: Array, *sources: Array) -> Operation:
    """An operation that computes each thread's `target` from its own `sources`.

    `function` takes the sources and ``out=`` as a NumPy ufunc does.
    """
    if len(sources) == 1:
        return _unary(function, target, sources[0])
    if len(sources) == 2:
        return _binary(function, target, *sources)

    def run(selection: Selection) -> None:
        if selection.full:
            function(*sources, out=target)
        elif selection.slice is not None:
            part = selection.slice
            function(*(s[part] for s in sources), out=target[part])
        elif selection.dense:
            result = np.empty_like(target)
            function(*sources, out=result)
            np.copyto(target, result, where=selection.mask)
        else:
            index = selection.index
            result = np.empty(selection.n, target.dtype)
            function(*(s[index] for s in sources), out=result)
            target[index] = result

    return run


def _unary(function: Callable[..., Any], target: Array, a: Array) -> Operation:
    def run(selection: Selection) -> None:
        if selection.full:
            function(a, out=target)
        elif selection.slice is not None:
            function(a[selection.slice], out=target[selection.slice])
        elif selection.dense:
            result = np.empty_like(target)
            function(a, out=result)
            np.copyto(target, result, where=selection.mask)
        else:
            index = selection.index
            result = np.empty(selection.n, target.dtype)
            function(a[index], out=result)
            target[index] = result

    return run


def _binary(function: Callable[..., Any], target: Array, a: Array, b: Array) -> Operation:
    def run(selection: Selection) -> None:
        if selection.full:
            function(a, b, out=target)
        elif selection.slice is not None:
            part = selection.slice
            function(a[part], b[part], out=target[part])
        elif selection.dense:
            result = np.empty_like(target)
            function(a, b, out=result)
            np.copyto(target, result, where=selection.mask)
        else:
            index = selection.index
            result = np.empty(selection.n, target.dtype)
            function(a[index], b[index], out=result)
            target[index] = result

    return run


def copy(a: Array, *, out: Array) -> None:
    """Assign; the element types may differ in width."""
    np.copyto(out, a, casting="unsafe")


def assigned(function: Callable[..., Array]) -> Callable[..., None]:
    """Give a function that returns its result the ``out=`` of a ufunc."""

    def run(*sources: Array, out: Array) -> None:
        np.copyto(out, function(*sources), casting="unsafe")

    return run
