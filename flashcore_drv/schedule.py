"""The order in which a persistent grid makes its tiles: ``TileSchedule`` of ``cuda/abi/flash_fwd_tma_params.h``."""

from __future__ import annotations

from typing import NamedTuple

from .problem import Problem


class TileSchedule(NamedTuple):
    """Which tiles there are, and in which order.

    Attributes
    ----------
    tiles : int
        Of all heads.
    inner : int
        Tiles of a head, or heads: what is counted fastest.
    heads_first : bool
        Whether that is heads.
    paired : bool
        Whether a tile is two blocks of rows, the n-th from the end and the n-th from the start.
    """

    tiles: int
    inner: int
    heads_first: bool
    paired: bool


def tile_schedule(problem: Problem, row_blocks: int, multiprocessors: int) -> TileSchedule:
    """The schedule of a problem on a GPU.

    Where all row blocks are alike, a head comes after the other, so that few K and V are in the L2 at once. Under a
    causal mask pairs of them are alike. Only where there are fewer pairs than SMs are they single, and the longest of
    all heads come first.
    """
    heads = problem.batch * problem.num_heads
    pairs = -(-row_blocks // 2)
    paired = problem.causal and pairs * heads >= multiprocessors
    rows = pairs if paired else row_blocks
    heads_first = problem.causal and not paired
    return TileSchedule(rows * heads, heads if heads_first else rows, heads_first, paired)
