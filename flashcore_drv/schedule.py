"""The order in which a grid makes its tiles: ``TileSchedule`` of ``cuda/abi/flash_fwd_tma_params.h``."""

from __future__ import annotations

from typing import NamedTuple

from .problem import Problem


class TileSchedule(NamedTuple):
    """Which tiles there are, in which order, and how many blocks make them.

    Attributes
    ----------
    tiles : int
        Of all heads. Of packed sequences, as many as any lengths may ask for.
    group_tiles : int
        Of a group of heads.
    inner : int
        Tiles of a head, or heads of a group: what is counted fastest.
    heads_first : bool
        Whether that is heads.
    paired : bool
        Whether a tile is two blocks of rows, the n-th from the end and the n-th from the start.
    sequences : int
        That are packed, and have tiles by their lengths; 0: all have as many.
    blocks : int
        Of the grid: as many as the GPU holds at once, each of which makes tile after tile, or one for every tile.
    """

    tiles: int
    group_tiles: int
    inner: int
    heads_first: bool
    paired: bool
    sequences: int
    blocks: int


LONG = 2048
"""Keys from which on a tile takes so long that a block of its own costs little (1 µs of 25 and more): then an SM that is
done gets the next one from the GPU, and tiles need not be alike."""

LONG_GROUP = 8192


def tile_schedule(problem: Problem, tile_rows: int, at_once: int, l2_bytes: int) -> TileSchedule:
    """The schedule of a problem.

    Parameters
    ----------
    problem : Problem
        What to compute.
    tile_rows : int
        Of a block of rows.
    at_once : int
        Blocks that the GPU holds.
    l2_bytes : int
        Of the GPU.
    """
    if problem.varlen:
        return _of_packed(problem, tile_rows, at_once)
    row_blocks = -(-problem.seqlen_q // tile_rows)
    heads = problem.batch * problem.num_heads
    if not problem.causal:
        uneven = 0 < problem.seqlen_q % tile_rows <= tile_rows - 64
        tiles = row_blocks * heads
        blocks = tiles if uneven and problem.seqlen_k >= LONG else min(tiles, at_once)
        return TileSchedule(tiles, tiles, row_blocks, False, False, 0, blocks)
    # under a causal mask, pairs are alike
    pairs = -(-row_blocks // 2)
    if pairs * heads < at_once or problem.seqlen_k >= LONG_GROUP:
        group = GROUP(problem, at_once, l2_bytes)
        tiles = row_blocks * heads
        return TileSchedule(tiles, row_blocks * group, group, True, False, 0, tiles)
    tiles = pairs * heads
    uneven = row_blocks % 2 or 0 < problem.seqlen_q % tile_rows <= tile_rows - 64
    blocks = tiles if uneven and problem.seqlen_k >= LONG else min(tiles, at_once)
    return TileSchedule(tiles, tiles, pairs, False, True, 0, blocks)


def GROUP(problem: Problem, at_once: int, l2_bytes: int) -> int:
    return problem.batch * problem.num_heads


def _of_packed(problem: Problem, tile_rows: int, at_once: int) -> TileSchedule:
    """Of packed sequences: no more tiles than sum of ceil(length / tile_rows), whatever the lengths."""
    most = (problem.varlen.total_q + problem.batch * (tile_rows - 1)) // tile_rows
    tiles = min(most, problem.batch * -(-problem.seqlen_q // tile_rows)) * problem.num_heads
    blocks = tiles if problem.seqlen_k >= LONG else min(tiles, at_once)
    return TileSchedule(tiles, max(tiles, 1), problem.num_heads, problem.causal, False, problem.batch, blocks)
