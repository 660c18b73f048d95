"""Every kernel that is built, listed once: the build compiles this list, dispatch selects from it, tests walk it.

The stem of an entry is one word everywhere: the file names (``<stem>.ptx``, ``<stem>.cubin``), the kernel's symbol and
its name in a profiler.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from . import abi
from .dtypes import BF16, F16, DType

PTX_ARCHS = (80, 89)
"""The compute capabilities that kernels are compiled for as PTX: a GPU gets the highest that is not above its own."""

HOPPER = 90
"""The compute capability for whose own instructions kernels are compiled besides: compute_90a runs on 9.0 alone."""


@dataclass(frozen=True)
class KernelSpec:
    """One kernel: what selects it (family, dtype, size, arch) and what it is compiled from (header, cpp)."""

    family: str
    dtype: DType
    size: str  # what the variants of a family differ in: "d64" (largest head_dim), "w8" (warps a row), "r32" (rows)
    arch: int  # compute capability of its PTX: 89 stands for compute_89, and 90 for compute_90a
    header: str
    cpp: str
    params: abi.Struct

    @property
    def target(self) -> str:
        """Of its PTX, ``89`` or ``90a``: what follows ``compute_``."""
        return f"{self.arch}a" if self.arch == HOPPER else str(self.arch)

    @property
    def stem(self) -> str:
        """For example ``qk_wmma_f16_d64_sm89``."""
        return f"{self.family}_{self.dtype}_{self.size}_sm{self.target}"

    @property
    def waits(self) -> bool:
        """Whether it can be launched before the kernel before it has ended (``cuda/ptx/launch_order.cuh``)."""
        return self.arch >= HOPPER

    def cubin_target(self, arch: int) -> str:
        """What its PTX is assembled for to run on a GPU of compute capability `arch`: ``89``, ``90a``."""
        return self.target if self.arch == HOPPER else str(arch)


UNFUSED_HEAD_DIMS = (64, 128)
"""Largest head_dim of each built variant; smaller multiples of 8 run in the next larger, zero-filled."""

SOFTMAX_ROW_WARPS = (1, 8)
"""Warps that share a row of the scores."""


def _unfused(arch: int, dtype: DType) -> list[KernelSpec]:
    specs = []
    for head_dim in UNFUSED_HEAD_DIMS:
        for family, cpp in (("qk_wmma", "QkWmma"), ("pv_wmma", "PvWmma")):
            cpp = f"{cpp}<{dtype.cpp}, {head_dim}>"
            header = f"unfused/{family}.cuh"
            specs.append(KernelSpec(family, dtype, f"d{head_dim}", arch, header, cpp, abi.UNFUSED_PARAMS))
    for warps in SOFTMAX_ROW_WARPS:
        cpp = f"Softmax<{dtype.cpp}, {warps}>"
        specs.append(KernelSpec("softmax", dtype, f"w{warps}", arch, "unfused/softmax.cuh", cpp, abi.UNFUSED_PARAMS))
    return specs


FLASH_HEAD_DIMS = (32, 64, 96, 128, 192, 256)
"""Largest head_dim of each built variant of the fused forward; smaller multiples of 8 run in the next larger."""

FLASH_SMALL_HEAD_DIMS = (32, 64, 96, 128)
"""Those of the variant for small problems: above, its tiles would not fit 99 KB of shared memory."""

FLASH_VARIANTS = {
    "flash_fwd": ("Full", FLASH_HEAD_DIMS),
    "flash_fwd_causal": ("Causal", FLASH_HEAD_DIMS),
    "flash_fwd_window": ("Window", FLASH_HEAD_DIMS),
    "flash_fwd_general": ("General", FLASH_HEAD_DIMS),
    "flash_fwd_scored": ("Scored", FLASH_HEAD_DIMS),
    "flash_fwd_small": ("Small", FLASH_SMALL_HEAD_DIMS),
}
"""Families of the fused forward: the name of their ``Variant`` (``cuda/flash_fwd/traits.cuh``) and its head_dims."""

HEADS_FIRST = (
    "flash_fwd_causal",
    "flash_fwd_window",
    "flash_fwd_general",
    "flash_fwd_scored",
)
"""Families whose grid counts heads fastest and starts with the last rows; the others count blocks of rows fastest.

Persistent grids have a schedule of their own.
"""


HOPPER_BESIDES = ("flash_fwd_small",)
"""Families of these that are compiled for Hopper's own instructions, too, and replace the others there.

Small problems gain from a dependent launch, and its instructions need a PTX of 90.
"""


def _flash_fwd(arch: int, dtype: DType, families: Iterable[str] = FLASH_VARIANTS) -> list[KernelSpec]:
    header = "flash_fwd/flash_fwd_sm80.cuh"
    specs = []
    for family in families:
        variant, head_dims = FLASH_VARIANTS[family]
        params = abi.FLASH_FWD_SCORED_PARAMS if variant == "Scored" else abi.FLASH_FWD_PARAMS
        for d in head_dims:
            row = f"tiling<{d}, Variant::k{variant}, {arch}>()"
            cpp = f"FlashFwdSm80<{dtype.cpp}, {d}, Variant::k{variant}, {row}>"
            specs.append(KernelSpec(family, dtype, f"d{d}", arch, header, cpp, params))
    return specs


TMA_HEAD_DIMS = (64, 96, 128, 192, 256)
"""Largest head_dim of each built variant of the fused forward for Hopper's own instructions."""

TMA_VARIANTS = {
    "flash_fwd_tma": ("Full", "Long", TMA_HEAD_DIMS),
    "flash_fwd_tma_short": ("Full", "Short", (64, 128)),
    "flash_fwd_tma_few": ("Full", "Few", (64,)),
    "flash_fwd_tma_causal": ("Causal", "Long", TMA_HEAD_DIMS),
    "flash_fwd_tma_causal_short": ("Causal", "Short", (128,)),
    "flash_fwd_tma_causal_few": ("Causal", "Few", (64,)),
    "flash_fwd_tma_window": ("Window", "Long", TMA_HEAD_DIMS),
    "flash_fwd_tma_scored": ("Scored", "Long", TMA_HEAD_DIMS),
}
"""Families of the fused forward by TMA and wgmma: their ``Variant``, the ``Work`` that they are for
(``cuda/flash_fwd/traits_sm90.cuh``), and their head_dims."""


def _flash_fwd_tma(dtype: DType) -> list[KernelSpec]:
    specs = []
    for family, (variant, work, sizes) in TMA_VARIANTS.items():
        for d in sizes:
            row = f"tiling_sm90<{d}, Variant::k{variant}, Work::k{work}>()"
            cpp = f"FlashFwdSm90<{dtype.cpp}, {d}, Variant::k{variant}, {row}>"
            header, params = "flash_fwd/flash_fwd_sm90.cuh", abi.FLASH_FWD_TMA_PARAMS
            specs.append(KernelSpec(family, dtype, f"d{d}", HOPPER, header, cpp, params))
    return specs


def head_dims(family: str) -> tuple[int, ...]:
    """Largest head_dim of each built variant of a family of the fused forward."""
    return TMA_VARIANTS[family][-1] if family in TMA_VARIANTS else FLASH_VARIANTS[family][-1]


MERGE_ROWS = 32
"""Rows that a block of the merge makes."""


def _merge(arch: int, dtype: DType) -> KernelSpec:
    cpp = f"Merge<{dtype.cpp}, {MERGE_ROWS}>"
    return KernelSpec("attention_merge", dtype, f"r{MERGE_ROWS}", arch, "flash_fwd/merge.cuh", cpp, abi.MERGE_PARAMS)


CATALOG: tuple[KernelSpec, ...] = tuple(
    spec
    for arch in PTX_ARCHS
    for dtype in (F16, BF16)
    for spec in (*_unfused(arch, dtype), *_flash_fwd(arch, dtype), _merge(arch, dtype))
) + tuple(
    spec for dtype in (F16, BF16) for spec in (*_flash_fwd(HOPPER, dtype, HOPPER_BESIDES), *_flash_fwd_tma(dtype))
)


def ptx_arch(arch: int) -> int | None:
    """The PTX arch that a GPU of compute capability `arch` (90 stands for 9.0) gets, None below the lowest.

    Hopper's own is besides this: :func:`ptx_archs`.
    """
    return max((a for a in PTX_ARCHS if a <= arch), default=None)


def ptx_archs(arch: int) -> tuple[int, ...]:
    """The arch of every PTX that such a GPU gets: :func:`ptx_arch`, and Hopper's own."""
    shared = ptx_arch(arch)
    return () if shared is None else (shared, HOPPER) if arch == HOPPER else (shared,)


@functools.cache
def kernels_of(arch: int) -> tuple[KernelSpec, ...]:
    """Every kernel that a GPU of compute capability `arch` gets, in the order of the catalog.

    Of two that differ in their PTX alone, the one of the higher.
    """
    best = {(s.family, s.dtype, s.size): s.arch for s in CATALOG if s.arch in ptx_archs(arch)}
    return tuple(s for s in CATALOG if s.arch == best.get((s.family, s.dtype, s.size)))
