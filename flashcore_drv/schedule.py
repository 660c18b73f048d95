"""The order in which blocks make the rows of the result: so that K and V are in the L2, and no SM waits for another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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

    Where all row blocks are alike, a head comes after the other. Under a causal mask pairs of them are alike. They are
    single, those with most keys first, where each has a block, where there are fewer pairs than SMs, and where K and V
    of all heads fit the L2 and the busiest SM has less to do.

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
    alike = (problem.seqlen_q - 1) % tile_rows >= tile_rows - ROWS_OF_A_WARPGROUP
    apart = _are_long(problem, tile_rows, alike)
    tiles, pairs = row_blocks * heads, -(-row_blocks // 2)
    if not problem.causal:
        blocks = tiles if apart and not alike else min(tiles, at_once)
        return TileSchedule(tiles, tiles, row_blocks, False, False, 0, blocks)
    group = heads_in_a_group(problem, 0, l2_bytes)
    if apart:
        return TileSchedule(tiles, row_blocks * group, group, True, False, 0, tiles)
    single = TileSchedule(tiles, tiles, heads, True, False, 0, min(tiles, at_once))
    if pairs * heads < at_once:
        return single
    paired = TileSchedule(pairs * heads, pairs * heads, pairs, False, True, 0, min(pairs * heads, at_once))
    if group < heads or pairs * heads > _MANY_ROUNDS * at_once:
        return paired
    return min(paired, single, key=lambda x: busiest(problem, x, tile_rows, at_once).as_keys)


_MANY_ROUNDS = 16  # of the SMs, after which one has a few percent more to do than another at most


class Work(NamedTuple):
    """Of an SM: blocks of rows, the keys of all of them, and these by the share of the warpgroups that have rows."""

    blocks: float
    keys: float
    shares: float

    @property
    def as_keys(self) -> float:
        """A block of rows takes a tile of keys beside its own, and a tile a third of its time without any rows."""
        return float(_as_keys(np.array(self)))


def _as_keys(work: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of [3] or [3, many], the members of Work."""
    blocks, keys, shares = work
    as_keys: npt.NDArray[np.float64] = _KEYS_OF_A_BLOCK * blocks + (keys + 2 * shares) / 3
    return as_keys


_KEYS_OF_A_BLOCK = 128


def busiest(problem: Problem, schedule: TileSchedule, tile_rows: int, at_once: int, tile_keys: int = 1) -> Work:
    """What the SM with most work makes.

    Parameters
    ----------
    problem : Problem
        Full or causal attention, sequences of one length.
    schedule : TileSchedule
        Of it.
    tile_rows : int
        Of a block of rows.
    at_once : int
        Blocks that the GPU holds.
    tile_keys : int
        Keys of a tile, which is always whole.
    """
    row_blocks = -(-problem.seqlen_q // tile_rows)
    some = min(row_blocks, _MANY_TILES)  # of very many, every n-th
    numbers = np.linspace(1, row_blocks, some).astype(np.int64)
    ends = np.minimum(numbers * tile_rows, problem.seqlen_q)
    keys = np.full(some, problem.seqlen_k)
    if problem.causal:
        keys = np.maximum(ends + problem.seqlen_k - problem.seqlen_q, 0)
    keys = -(-keys // tile_keys) * tile_keys
    warpgroups = -(-(ends - (numbers - 1) * tile_rows) // ROWS_OF_A_WARPGROUP)
    tiles = np.stack([np.ones(some), keys, keys * warpgroups * ROWS_OF_A_WARPGROUP / tile_rows])[:, ::-1]
    if schedule.paired:
        second = tiles[:, ::-1].copy()
        second[:, some // 2 :] = 0  # of a pair that is one block of rows
        tiles = (tiles + second)[:, : -(-some // 2)]
    free = schedule.blocks > at_once  # given to whoever is free
    if schedule.tiles > (_MANY_ROUNDS * at_once if free else _MANY_TILES):
        mean = tiles.mean(1) * schedule.tiles / at_once  # and the one that begins last ends half a tile later
        return Work(*map(float, mean + tiles[:, 0] / 2))
    if schedule.heads_first:
        tiles = np.repeat(tiles, schedule.inner, 1)
    tiles = np.tile(tiles, schedule.tiles // tiles.shape[1])
    dealt = _to_the_free(tiles, at_once) if free else _back_and_forth(tiles, schedule.blocks)
    most = int(_as_keys(dealt).argmax())
    return Work(*map(float, dealt[:, most]))


_MANY_TILES = 1 << 15  # which are spread evenly, whatever the order


def _back_and_forth(tiles: npt.NDArray[np.float64], blocks: int) -> npt.NDArray[np.float64]:
    """[3, tiles] dealt out to blocks as ``Round`` in ``cuda/flash_fwd/row_blocks.cuh`` does: [3, blocks]."""
    rounds = -(-tiles.shape[1] // blocks)
    dealt = np.zeros((len(tiles), rounds * blocks))
    dealt[:, : tiles.shape[1]] = tiles
    dealt = dealt.reshape(len(tiles), rounds, blocks)
    dealt[:, 1::2] = dealt[:, 1::2, ::-1]
    loads: npt.NDArray[np.float64] = dealt.sum(1)
    return loads


def _to_the_free(tiles: npt.NDArray[np.float64], at_once: int) -> npt.NDArray[np.float64]:
    """[3, tiles] given to SMs, a round at a time, the first tiles to those with least to do: [3, at_once]."""
    dealt = np.zeros((len(tiles), at_once))
    for first in range(0, tiles.shape[1], at_once):
        some = tiles[:, first : first + at_once]
        dealt[:, np.argsort(_as_keys(dealt), kind="stable")[: some.shape[1]]] += some
    return dealt


def _of_packed(problem: Problem, packed: Packed, tile_rows: int, at_once: int) -> TileSchedule:
    """Of packed sequences, which have no more tiles than sum of ceil(length / tile_rows), whatever the lengths.

    A block looks for its tile among 32 sequences after the other, 1 µs each: many of them are for blocks that stay.
    """
    most = (packed.total_q + problem.batch * (tile_rows - 1)) // tile_rows
    tiles = min(most, problem.batch * -(-problem.seqlen_q // tile_rows)) * problem.num_heads
    apart = problem.batch <= _FEW_SEQUENCES and _are_long(problem, tile_rows, alike=False)
    blocks = tiles if apart else min(tiles, at_once)
    return TileSchedule(tiles, max(tiles, 1), problem.num_heads, problem.causal, False, problem.batch, blocks)


_FEW_SEQUENCES = 64
ROWS_OF_A_WARPGROUP = 64
"""In a block of rows. A last one that all of them have rows of takes as long as the others."""
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
