"""What launches need, made from a problem: one parameter block for all stages, one launch for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from . import abi, tma
from .catalog import HEADS_FIRST, KernelSpec
from .dtypes import BF16, F16, F32
from .errors import Unsupported
from .images import LoadedKernel, load
from .problem import Matrices, MergeProblem, Packed, Problem
from .runtime import Device, Launch, TensorMap
from .schedule import TileSchedule, heads_in_a_group, tile_schedule

_MAX_BLOCKS = (1 << 31) - 1  # gridDim.x
ROWS_IN_FLIGHT = 5
"""Blocks of rows of a head for each block that an SM holds, from which on they share enough of K and V whatever the
order (measured in cuda/NOTES.md, third round)."""
_MAX_TILES = 1 << 30  # of a persistent grid, whose blocks count a few rounds beyond
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


def flash_params(kernel: LoadedKernel, problem: Problem, addresses: Mapping[str, int], group_heads: int) -> bytes:
    """The bytes of a fused forward kernel's parameters: ``FlashFwdParams``, or a struct that begins with it.

    Parameters
    ----------
    kernel : LoadedKernel
        The kernel. Tensor maps in its parameters are left empty.
    problem : Problem
        With at least one query.
    addresses : mapping of str to int
        Device addresses of q, k, v, o and of what the problem has of lse, bias, alibi_slopes, sinks, cu_seqlens_q,
        cu_seqlens_k and seqused_k.
    group_heads : int
        Of a group, where the grid counts heads fastest: a divisor of batch * num_heads.
    """
    spec = kernel.spec
    packed = problem.varlen or Packed(0, 0)
    row_blocks = -(-problem.seqlen_q // kernel.tile_rows)
    lse = contiguous(problem.batch, problem.num_heads, problem.seqlen_q, 1)
    if problem.varlen:
        lse = Matrices(problem.batch, problem.num_heads, problem.seqlen_q, 1, 0, packed.total_q, 1)
    values: dict[str, int | float] = {
        "row_blocks": row_blocks,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.head_dim_v,
        "window_left": problem.window_left,
        "window_right": problem.window_right,
        "scale_log2": _float32(problem.softmax_scale * _LOG2_E),
        "sinks": addresses.get("sinks", 0),
        "sequences.total_q": packed.total_q,
        "sequences.total_k": packed.total_k,
        "sequences.seqlen_q": problem.seqlen_q,
        "sequences.seqlen_k": problem.seqlen_k,
    }
    for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k"):
        values[f"sequences.{name}"] = addresses.get(name, 0)
    for name, x in {"q": problem.q, "k": problem.k, "v": problem.v, "o": problem.o, "lse": lse}.items():
        values |= _tensor(name, (addresses.get(name, 0), x))
    schedule = persistent_schedule(kernel, problem)
    inner = group_heads if spec.family in HEADS_FIRST else row_blocks
    values |= _divisor("grid_inner", schedule.inner if schedule else inner)
    values |= _divisor("num_heads", problem.num_heads)
    values |= _divisor("group", problem.num_heads // problem.num_heads_kv)
    if spec.params is abi.FLASH_FWD_PARAMS:
        return spec.params.pack(values)
    every: dict[str, abi.Scalar] = {f"fwd.{name}": x for name, x in values.items()}
    every |= {f"terms.{name}": x for name, x in _score_terms(problem, addresses).items()}
    if schedule:
        every |= _divisor("schedule.group_tiles", schedule.group_tiles)
        every |= {f"schedule.{name}": getattr(schedule, name) for name in _SCHEDULE}
        every |= dict.fromkeys(_MAPS, b"")
    return spec.params.pack(every)


def persistent_schedule(kernel: LoadedKernel, problem: Problem) -> TileSchedule | None:
    """The order of the tiles of a kernel whose blocks make one after the other; None for the others."""
    device = kernel.kernel.device
    at_once = device.multiprocessors * kernel.blocks_an_sm
    return tile_schedule(problem, kernel.tile_rows, at_once, device.l2_bytes) if at_once else None


_SCHEDULE = ("tiles", "heads_first", "paired", "sequences")
_MAPS = ("q_map.opaque", "k_map.opaque", "v_map.opaque")
_MAP_TYPES = {F16: "FLOAT16", BF16: "BFLOAT16"}


def tensor_maps(kernel: LoadedKernel, problem: Problem) -> dict[int, TensorMap]:
    """The tensor maps of q, k and v by their offset in the kernel's parameters; none for a kernel that takes none."""
    if kernel.spec.params is not abi.FLASH_FWD_TMA_PARAMS:
        return {}
    rows = kernel.box_rows_q, kernel.box_rows_kv, kernel.box_rows_kv
    return {
        abi.FLASH_FWD_TMA_PARAMS.offsets[name][0]: TensorMap(_MAP_TYPES[problem.dtype], x.dims, x.strides, box_rows)
        for name, x, box_rows in zip(_MAPS, tma.tiled(problem), rows)
    }


def _score_terms(problem: Problem, addresses: Mapping[str, int]) -> dict[str, int | float]:
    """The members of ``ScoreTerms``."""
    softcap_log2 = _float32(problem.softcap * _LOG2_E)
    values: dict[str, int | float] = {
        "alibi_slopes": addresses.get("alibi_slopes", 0),
        "alibi_batch_stride": problem.alibi_batch_stride or 0,
        "bias_type": 0,
        "bias_col_stride": 0,
        "bias_pairs": 0,
        "softcap_log2": softcap_log2,
        "softcap_inverse": problem.softmax_scale * _LOG2_E / softcap_log2 if softcap_log2 else 0.0,
        "unused": 0,
    }
    if problem.bias is None:
        return values | _tensor("bias", (0, _NO_TENSOR))
    dims, address = problem.bias.dims, addresses["bias"]
    pair = 2 * problem.bias.dtype.itemsize
    strides = (dims.batch_stride | dims.head_stride | dims.row_stride) * problem.bias.dtype.itemsize
    values |= {
        "bias_type": _BIAS_TYPES[problem.bias.dtype],
        "bias_col_stride": problem.bias.col_stride,
        "bias_pairs": problem.bias.col_stride == 1 and (address | strides) % pair == 0,
    }
    return values | _tensor("bias", (address, dims))


_BIAS_TYPES = {F16: 1, BF16: 2, F32: 3}  # cuda/abi/score_terms.h
_LOG2_E = math.log2(math.e)


def _float32(x: float) -> float:
    """`x`, or the largest float32 below it."""
    return min(x, _LARGEST)


_LARGEST = (2 - 2.0**-23) * 2.0**127


def _divisor(name: str, value: int) -> dict[str, int | float]:
    """The members of ``Divisor``."""
    return {f"{name}.{member}": x for member, x in abi.divisor(value).items()}


def _tensor(name: str, placed: Placed) -> dict[str, int | float]:
    """The members of ``Tensor``."""
    address, dims = placed
    return {
        f"{name}.data": address,
        f"{name}.batch_stride": dims.batch_stride,
        f"{name}.head_stride": dims.head_stride,
        f"{name}.row_stride": dims.row_stride,
    }


def plan_flash(
    device: Device, spec: KernelSpec, problem: Problem, addresses: Mapping[str, int], dependent: bool = False
) -> list[Launch]:
    """The launch of a fused forward kernel: none where there is no query.

    Tensor maps in its parameters are encoded for the addresses of q, k and v, unless these are 0. A `dependent` launch
    is one of a kernel that `waits`.

    Raises
    ------
    KernelImageError
        If the kernel is missing or stale.
    Unsupported
        If the grid is too large.
    """
    kernel = load(spec, device)
    blocks = count_blocks(kernel, problem.o)
    if schedule := persistent_schedule(kernel, problem):
        blocks = min(blocks, schedule.blocks)
    if blocks == 0:
        return []
    heads = problem.batch * problem.num_heads
    group = heads
    if spec.family in HEADS_FIRST:
        least = max(1, device.multiprocessors // ROWS_IN_FLIGHT)
        group = heads_in_a_group(problem, least, device.l2_bytes)
    params, maps = flash_params(kernel, problem, addresses, group), tensor_maps(kernel, problem)
    launch = Launch(kernel.kernel, blocks * group // heads, kernel.threads, params, heads // group, maps, dependent)
    if all(addresses.get(name) for name in "qkv"):
        launch.place_maps([addresses[name] for name in "qkv"])
    return [launch]


def plan_merge(device: Device, spec: KernelSpec, problem: MergeProblem, addresses: Mapping[str, int]) -> list[Launch]:
    """The launch that puts two results together: none where there is no row.

    Parameters
    ----------
    device : Device
        Where.
    spec : KernelSpec
        From :func:`flashcore_drv.dispatch.select_merge`.
    problem : MergeProblem
        What to merge.
    addresses : mapping of str to int
        Device addresses of out_a, lse_a, out_b, lse_b, o and lse.

    Raises
    ------
    KernelImageError
        If the kernel is missing or stale.
    Unsupported
        If there are more rows than an int32 counts.
    """
    kernel = load(spec, device)
    rows = math.prod(problem.o.shape[:3])
    if rows > _MAX_BLOCKS:
        raise Unsupported(
            f"{spec.stem}: a result {problem.o.shape} has {rows} rows; a launch takes up to {_MAX_BLOCKS}"
        )
    if rows == 0:
        return []
    tensors = {
        "out_a": ("out_a", problem.out_a),
        "lse_a": ("lse_a", problem.lse_a),
        "out_b": ("out_b", problem.out_b),
        "lse_b": ("lse_b", problem.lse_b),
        "out": ("o", problem.o),
        "lse": ("lse", problem.lse),
    }
    values: dict[str, int | float] = {"rows": rows, "head_dim_v": problem.o.cols}
    for name, (address, dims) in tensors.items():
        values |= _tensor(name, (addresses[address], dims))
    values |= _divisor("seqlen_q", problem.o.rows) | _divisor("num_heads", problem.o.heads)
    blocks = -(-rows // kernel.tile_rows)
    return [Launch(kernel.kernel, blocks, kernel.threads, abi.MERGE_PARAMS.pack(values))]


def count_blocks(kernel: LoadedKernel, result: Matrices) -> int:
    """Blocks that make a result of this shape, a tile each. Raises Unsupported past the largest grid."""
    col_tiles = -(-result.cols // kernel.tile_cols)
    tiles = -(-result.rows // kernel.tile_rows) * -(-col_tiles // kernel.tiles_a_block)
    blocks = result.batch * result.heads * tiles
    most = _MAX_TILES if kernel.blocks_an_sm else _MAX_BLOCKS
    if blocks > most:
        raise Unsupported(f"{kernel.spec.stem}: a result {result.shape} needs {blocks} blocks; a grid has up to {most}")
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
