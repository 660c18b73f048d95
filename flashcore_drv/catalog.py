"""Every kernel that is built, listed once: the build compiles this list, dispatch selects from it, tests walk it.

The stem of an entry is one word everywhere: the file names (``<stem>.ptx``, ``<stem>.cubin``), the kernel's symbol and
its name in a profiler.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import abi
from .dtypes import BF16, F16, DType

PTX_ARCHS = (80, 89)
"""The compute capabilities that kernels are compiled for as PTX: a GPU gets the highest that is not above its own."""


@dataclass(frozen=True)
class KernelSpec:
    """One kernel: what selects it (family, dtype, size, arch) and what it is compiled from (header, cpp)."""

    family: str
    dtype: DType
    size: str  # what the variants of a family differ in: "d64" (largest head_dim), "w8" (warps a row), "r32" (rows)
    arch: int  # compute capability of its PTX: 89 stands for compute_89
    header: str
    cpp: str
    params: abi.Struct

    @property
    def stem(self) -> str:
        """For example ``qk_wmma_f16_d64_sm89``."""
        return f"{self.family}_{self.dtype}_{self.size}_sm{self.arch}"


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

HEADS_FIRST = ("flash_fwd_causal", "flash_fwd_window", "flash_fwd_general", "flash_fwd_scored")
"""Families whose grid counts heads fastest and starts with the last rows; the others count blocks of rows fastest."""


def _flash_fwd(arch: int, dtype: DType) -> list[KernelSpec]:
    header = "flash_fwd/flash_fwd_sm80.cuh"
    specs = []
    for family, (variant, head_dims) in FLASH_VARIANTS.items():
        params = abi.FLASH_FWD_SCORED_PARAMS if variant == "Scored" else abi.FLASH_FWD_PARAMS
        for d in head_dims:
            row = f"tiling<{d}, Variant::k{variant}, {arch}>()"
            cpp = f"FlashFwdSm80<{dtype.cpp}, {d}, Variant::k{variant}, {row}>"
            specs.append(KernelSpec(family, dtype, f"d{d}", arch, header, cpp, params))
    return specs


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
)


def ptx_arch(arch: int) -> int | None:
    """The PTX arch that a GPU of compute capability `arch` (90 stands for 9.0) gets, None below the lowest."""
    return max((a for a in PTX_ARCHS if a <= arch), default=None)
