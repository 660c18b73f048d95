"""What launches need, made from a problem: one parameter block for all stages, one launch for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import abi
from .catalog import KernelSpec
from .errors import Unsupported
from .images import LoadedKernel, load
from .problem import Matrices
from .runtime import Device, Launch

_MAX_BLOCKS = (1 << 31) - 1  # gridDim.x
_NO_TENSOR = Matrices(0, 0, 0, 0, 0, 0, 0)

Placed = tuple[int, Matrices]
"""A tensor at an address."""


def contiguous(batch: int, heads: int, rows: int, cols: int, row_elements: int = 1) -> Matrices:
    """A tensor [batch, heads, rows, cols] of its own whose rows start at multiples of `row_elements` elements."""
    row_stride = -(-cols // row_elements) * row_elements
    return Matrices(batch, heads, rows, cols, heads * rows * row_stride, rows * row_stride, row_stride)


def unfused_params(
    tensors: Mapping[str, Placed],
    *,
    batch: int,
    num_heads: int,
    num_heads_kv: int,
    seqlen_q: int,
    seqlen_k: int,
    head_dim: int = 0,
    softmax_scale: float = 1.0,
    causal: bool = False,
) -> bytes:
    """The bytes of ``UnfusedParams``; tensors that are not named are null."""
    values: dict[str, int | float] = {
        "batch": batch,
        "num_heads": num_heads,
        "num_heads_kv": num_heads_kv,
        "seqlen_q": seqlen_q,
        "seqlen_k": seqlen_k,
        "head_dim": head_dim,
        "softmax_scale": softmax_scale,
        "causal": causal,
    }
    for name in ("q", "k", "s", "p", "v", "o", "lse"):
        address, dims = tensors.get(name, (0, _NO_TENSOR))
        values |= {
            f"{name}.data": address,
            f"{name}.batch_stride": dims.batch_stride,
            f"{name}.head_stride": dims.head_stride,
            f"{name}.row_stride": dims.row_stride,
        }
    return abi.UNFUSED_PARAMS.pack(values)


def count_blocks(kernel: LoadedKernel, result: Matrices) -> int:
    """Blocks that make a result of this shape. Raises Unsupported past the largest grid."""
    col_tiles = -(-result.cols // kernel.tile_cols)
    tiles = -(-result.rows // kernel.tile_rows) * -(-col_tiles // kernel.tiles_a_block)
    blocks = result.batch * result.heads * tiles
    if blocks > _MAX_BLOCKS:
        raise Unsupported(
            f"{kernel.spec.stem}: a result {result.shape} needs {blocks} blocks; a grid has up to {_MAX_BLOCKS}"
        )
    return blocks


def plan_stages(device: Device, stages: Sequence[tuple[KernelSpec, Matrices]], params: bytes) -> list[Launch]:
    """The launches of stages, in order, each a kernel and the shape of its result, over the same parameters.

    Raises
    ------
    KernelImageError
        If a kernel is missing or stale.
    Unsupported
        If a grid is too large.
    """
    launches = []
    for spec, result in stages:
        kernel = load(spec, device)
        launches.append(Launch(kernel.kernel, count_blocks(kernel, result), kernel.threads, params))
    return launches
