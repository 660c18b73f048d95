"""The structs that kernels and host exchange: the Python mirror of ``cuda/abi``.

The build compares every offset here with the compiler's (:func:`check_header`), so the two cannot differ. A cubin
carries :data:`ABI_HASH` in its info record; the host refuses one that was built from other structs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_ALIGNMENT = {"Q": 8, "q": 8, "i": 4, "f": 4, "128s": 64}

Scalar = int | float | bytes


@dataclass(frozen=True)
class Struct:
    """A plain C struct: its C++ name and its members, each a `struct` format character or another `Struct`."""

    name: str
    header: str
    members: tuple[tuple[str, str | Struct], ...]

    @property
    def alignment(self) -> int:
        """Alignment in bytes."""
        return max(kind.alignment if isinstance(kind, Struct) else _ALIGNMENT[kind] for _, kind in self.members)

    @cached_property
    def offsets(self) -> dict[str, tuple[int, str]]:
        """Byte offset and format of every scalar, by its dotted name, in C's natural alignment."""
        found: dict[str, tuple[int, str]] = {}
        end = 0
        for name, kind in self.members:
            if isinstance(kind, Struct):
                start = -(-end // kind.alignment) * kind.alignment
                found |= {f"{name}.{inner}": (start + at, fmt) for inner, (at, fmt) in kind.offsets.items()}
                end = start + kind.size
            else:
                start = -(-end // _ALIGNMENT[kind]) * _ALIGNMENT[kind]
                found[name] = start, kind
                end = start + struct.calcsize(kind)
        return found

    @cached_property
    def size(self) -> int:
        """Bytes, trailing padding included."""
        start, fmt = list(self.offsets.values())[-1]
        return -(-(start + struct.calcsize(fmt)) // self.alignment) * self.alignment

    @cached_property
    def packer(self) -> struct.Struct:
        """Packs the scalars in the order of `offsets`."""
        fmt, end = "<", 0
        for start, kind in self.offsets.values():
            fmt += "x" * (start - end) + kind
            end = start + struct.calcsize(kind)
        return struct.Struct(fmt + "x" * (self.size - end))

    def pack(self, values: Mapping[str, Scalar]) -> bytes:
        """The bytes of the struct. `values` names every scalar, no more and no fewer (KeyError)."""
        if extra := values.keys() - self.offsets.keys():
            raise KeyError(f"{self.name} has no member {sorted(extra)}")
        return self.packer.pack(*(values[name] for name in self.offsets))

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The scalars by name."""
        return dict(zip(self.offsets, self.packer.unpack(data)))


KERNEL_INFO = Struct(
    "KernelInfo",
    "abi/kernel_info.h",
    (
        ("abi_hash", "Q"),
        ("threads", "i"),
        ("shared_bytes", "i"),
        ("tile_rows", "i"),
        ("tile_cols", "i"),
        ("tiles_a_block", "i"),
        ("params_bytes", "i"),
        ("box_rows_q", "i"),
        ("box_rows_kv", "i"),
        ("blocks_an_sm", "i"),
    ),
)
TENSOR = Struct(
    "Tensor",
    "abi/tensor.h",
    (("data", "Q"), ("batch_stride", "q"), ("head_stride", "q"), ("row_stride", "q")),
)
UNFUSED_PARAMS = Struct(
    "UnfusedParams",
    "abi/unfused_params.h",
    (
        *((name, TENSOR) for name in ("q", "k", "s", "p", "v", "o", "lse")),
        *((name, "i") for name in ("batch", "num_heads", "num_heads_kv", "seqlen_q", "seqlen_k", "head_dim")),
        ("softmax_scale", "f"),
        ("causal", "i"),
    ),
)
DIVISOR = Struct("Divisor", "abi/divisor.h", (("multiplier", "Q"), ("shift", "i"), ("value", "i")))
SEQUENCES = Struct(
    "Sequences",
    "abi/sequences.h",
    (
        *((name, "i") for name in ("seqlen_q", "seqlen_k", "total_q", "total_k")),
        *((name, "Q") for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k")),
    ),
)
SCORE_TERMS = Struct(
    "ScoreTerms",
    "abi/score_terms.h",
    (
        ("bias", TENSOR),
        ("alibi_slopes", "Q"),
        ("alibi_batch_stride", "q"),
        ("bias_type", "i"),
        ("bias_col_stride", "i"),
        ("bias_pairs", "i"),
        ("softcap_log2", "f"),
        ("softcap_inverse", "f"),
        ("unused", "i"),
    ),
)
FLASH_FWD_PARAMS = Struct(
    "FlashFwdParams",
    "abi/flash_fwd_params.h",
    (
        *((name, TENSOR) for name in ("q", "k", "v", "o", "lse")),
        *((name, DIVISOR) for name in ("grid_inner", "num_heads", "group")),
        *((name, "i") for name in ("row_blocks", "head_dim", "head_dim_v", "window_left", "window_right")),
        ("scale_log2", "f"),
        ("sequences", SEQUENCES),
        ("sinks", "Q"),
    ),
)
FLASH_FWD_SCORED_PARAMS = Struct(
    "FlashFwdScoredParams", "abi/flash_fwd_params.h", (("fwd", FLASH_FWD_PARAMS), ("terms", SCORE_TERMS))
)
TENSOR_MAP = Struct("TensorMap", "abi/tensor_map.h", (("opaque", "128s"),))
TILE_SCHEDULE = Struct(
    "TileSchedule",
    "abi/flash_fwd_tma_params.h",
    (("group_tiles", DIVISOR), *((name, "i") for name in ("tiles", "heads_first", "paired", "sequences"))),
)
FLASH_FWD_TMA_PARAMS = Struct(
    "FlashFwdTmaParams",
    "abi/flash_fwd_tma_params.h",
    (
        ("fwd", FLASH_FWD_PARAMS),
        ("terms", SCORE_TERMS),
        ("schedule", TILE_SCHEDULE),
        *((f"{name}_map", TENSOR_MAP) for name in ("q", "k", "v")),
    ),
)
MERGE_PARAMS = Struct(
    "MergeParams",
    "abi/merge_params.h",
    (
        *((name, TENSOR) for name in ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")),
        *((name, DIVISOR) for name in ("seqlen_q", "num_heads")),
        *((name, "i") for name in ("rows", "head_dim_v")),
    ),
)
STRUCTS = (
    KERNEL_INFO,
    TENSOR,
    UNFUSED_PARAMS,
    DIVISOR,
    SEQUENCES,
    SCORE_TERMS,
    FLASH_FWD_PARAMS,
    FLASH_FWD_SCORED_PARAMS,
    TENSOR_MAP,
    TILE_SCHEDULE,
    FLASH_FWD_TMA_PARAMS,
    MERGE_PARAMS,
)


def divisor(value: int) -> dict[str, int | float]:
    """The members of ``Divisor`` for a divisor from 1 to 2**31 - 1 (Granlund and Montgomery, PLDI 1994)."""
    shift = 31 + (value - 1).bit_length()
    return {"multiplier": -(-(1 << shift) // value), "shift": shift, "value": value}


_LAYOUT = repr([(s.name, s.size, s.alignment, s.offsets) for s in STRUCTS])
ABI_HASH = int.from_bytes(hashlib.sha256(_LAYOUT.encode()).digest()[:8], "little")


def check_header() -> str:
    """C++ that compiles only if every struct in ``cuda/abi`` has the layout described here."""
    lines = ["// Generated from flashcore_drv/abi.py.", "#pragma once", "#include <cstddef>"]
    lines += [f'#include "{s.header}"' for s in STRUCTS]
    for s in STRUCTS:
        cpp = f"flashcore::{s.name}"
        lines.append(f'static_assert(sizeof({cpp}) == {s.size}, "{s.name}: size differs from flashcore_drv/abi.py");')
        for name, (offset, _) in s.offsets.items():
            complaint = f"{s.name}.{name}: offset differs from flashcore_drv/abi.py"
            lines.append(f'static_assert(offsetof({cpp}, {name}) == {offset}, "{complaint}");')
    return "\n".join(lines) + "\n"
