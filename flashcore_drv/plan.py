"""What launches need, made from a problem: one parameter block for all stages, one launch for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from . import abi
from .catalog import HEADS_FIRST, KernelSpec
from .errors import Unsupported
from .images import LoadedKernel, load
from .problem import MAX_SEQLEN, Matrices, Problem
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
        values |= _tensor(name, tensors.get(name, (0, _NO_TENSOR)))
    return abi.UNFUSED_PARAMS.pack(values)


def flash_params(problem: Problem, addresses: Mapping[str, int], tile_rows: int, heads_first: bool) -> bytes:
    """The bytes of ``FlashFwdParams``.

    Parameters
    ----------
    problem : Problem
        With at least one query.
    addresses : mapping of str to int
        Device addresses of q, k, v, o and, if wanted, lse [batch, num_heads, seqlen_q].
    tile_rows : int
        Rows of the result that a block of the kernel makes.
    heads_first : bool
        Whether the kernel counts heads fastest in its grid, else blocks of rows.
    """
    row_blocks = -(-problem.seqlen_q // tile_rows)
    lse = contiguous(problem.batch, problem.num_heads, problem.seqlen_q, 1)
    dims = {"q": problem.q, "k": problem.k, "v": problem.v, "o": problem.o, "lse": lse}
    values: dict[str, int | float] = {
        "row_blocks": row_blocks,
        "seqlen_q": problem.seqlen_q,
        "seqlen_k": problem.seqlen_k,
        "head_dim": problem.head_dim,
        "diagonal": problem.seqlen_k - problem.seqlen_q if problem.causal else MAX_SEQLEN,
        "scale_log2": problem.softmax_scale * math.log2(math.e),
        "unused": 0,
    }
    for name, x in dims.items():
        values |= _tensor(name, (addresses.get(name, 0), x))
    divisors = {
        "grid_inner": problem.batch * problem.num_heads if heads_first else row_blocks,
        "num_heads": problem.num_heads,
        "group": problem.num_heads // problem.num_heads_kv,
    }
    for name, value in divisors.items():
        values |= {f"{name}.{member}": x for member, x in abi.divisor(value).items()}
    return abi.FLASH_FWD_PARAMS.pack(values)


def _tensor(name: str, placed: Placed) -> dict[str, int | float]:
    """The members of ``Tensor``."""
    address, dims = placed
    return {
        f"{name}.data": address,
        f"{name}.batch_stride": dims.batch_stride,
        f"{name}.head_stride": dims.head_stride,
        f"{name}.row_stride": dims.row_stride,
    }


def plan_flash(device: Device, spec: KernelSpec, problem: Problem, addresses: Mapping[str, int]) -> list[Launch]:
    """The launch of a fused forward kernel: none where there is no query.

    Raises
    ------
    KernelImageError
        If the kernel is missing or stale.
    Unsupported
        If the grid is too large.
    """
    kernel = load(spec, device)
    blocks = count_blocks(kernel, problem.o)
    if blocks == 0:
        return []
    params = flash_params(problem, addresses, kernel.tile_rows, heads_first=spec.family in HEADS_FIRST)
    return [Launch(kernel.kernel, blocks, kernel.threads, params)]


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
