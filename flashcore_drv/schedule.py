"""The order in which blocks make the rows of the result: so that K and V are in the L2, and no SM waits for another."""

from __future__ import annotations

from typing import NamedTuple

from .problem import Packed, Problem


class TileSchedule(NamedTuple):
    """Which tiles a persistent kernel makes, in which order, and how many blocks make them.

    ``TileSchedule`` of ``cuda/abi/flash_fwd_tma_params.h``.

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


def tile_schedule(problem: Problem, tile_rows: int, at_once: int, l2_bytes: int) -> TileSchedule:
    """The schedule of a problem.

    Blocks that stay on their SM begin a tile while they end the one before it, but share tiles in a fixed way; where
    tiles are long, or not alike, each has a block, and the GPU gives it to the SM that is done first (measured in
    cuda/NOTES.md, "Hopper / order of the tiles").

    Where all row blocks are alike, a head comes after the other. Under a causal mask pairs of them are alike. Where
    there are fewer pairs than SMs, and where each has a block, they are single, those with most keys first.

    Parameters
    ----------
    problem : Problem
        With at least one query.
    tile_rows : int
        Of a block of rows.
    at_once : int
        Blocks that the GPU holds.
    l2_bytes : int
        Of the GPU.
    """
    if problem.varlen:
        return _of_packed(problem, problem.varlen, tile_rows, at_once)
    heads, row_blocks = problem.batch * problem.num_heads, -(-problem.seqlen_q // tile_rows)
    alike = (problem.seqlen_q - 1) % tile_rows >= tile_rows - _ROWS_OF_A_WARPGROUP
    apart = _are_long(problem, tile_rows, alike)
    pairs = -(-row_blocks // 2)
    if not problem.causal:
        tiles = group_tiles = row_blocks * heads
        inner, heads_first, paired, apart = row_blocks, False, False, apart and not alike
    elif apart or pairs * heads < at_once:
        inner = heads_in_a_group(problem, 0, l2_bytes) if apart else heads
        tiles, group_tiles, heads_first, paired = row_blocks * heads, row_blocks * inner, True, False
    else:
        tiles = group_tiles = pairs * heads
        inner, heads_first, paired = pairs, False, True
    return TileSchedule(tiles, group_tiles, inner, heads_first, paired, 0, tiles if apart else min(tiles, at_once))


def _of_packed(problem: Problem, packed: Packed, tile_rows: int, at_once: int) -> TileSchedule:
    """Of packed sequences, which have no more tiles than sum of ceil(length / tile_rows), whatever the lengths."""
    most = (packed.total_q + problem.batch * (tile_rows - 1)) // tile_rows
    tiles = min(most, problem.batch * -(-problem.seqlen_q // tile_rows)) * problem.num_heads
    blocks = tiles if _are_long(problem, tile_rows, alike=False) else min(tiles, at_once)
    return TileSchedule(tiles, max(tiles, 1), problem.num_heads, problem.causal, False, problem.batch, blocks)


_ROWS_OF_A_WARPGROUP = 64  # in a block of rows; a last one that all of them have rows of takes as long as the others
_LONG_FLOPS = 200e6, 40e6  # on an SM about 40 and 8 µs; a block of its own costs a tile 1 µs


def _are_long(problem: Problem, tile_rows: int, alike: bool) -> bool:
    """Whether tiles take so long that blocks of their own cost less than it costs to share them in a fixed way."""
    keys = problem.seqlen_k / 2 if problem.causal else problem.seqlen_k
    flops = 2 * tile_rows * keys * (problem.head_dim + problem.head_dim_v)
    return flops >= _LONG_FLOPS[not alike]


def heads_in_a_group(problem: Problem, least: int, l2_bytes: int) -> int:
    """Heads whose blocks run together where heads are counted fastest: a divisor of batch * num_heads.

    Blocks of rows read the K and V of their head one after the other; they find them in the L2 where K and V of the
    group take up to two thirds of it.

    Parameters
    ----------
    problem : Problem
        The problem.
    least : int
        Where fewer fit, there is one group: the blocks in flight are many of each head and share what they read anyway.
        0: never.
    l2_bytes : int
        Of the GPU.
    """
    heads = problem.batch * problem.num_heads
    sharing = problem.num_heads // problem.num_heads_kv
    head_bytes = problem.seqlen_k * (problem.head_dim + problem.head_dim_v) * problem.dtype.itemsize
    most = l2_bytes * 2 // 3 * sharing // max(head_bytes, 1)
    if most < least:
        return heads
    groups = range(-(-heads // max(most, 1)), min(heads // max(least, 1), _MAX_GROUPS) + 1)
    return next((heads // n for n in groups if heads % n == 0), heads)


_MAX_GROUPS = (1 << 16) - 1  # gridDim.y
