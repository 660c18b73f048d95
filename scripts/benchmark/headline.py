"""The ratios that rows of results are read for: to one peer, to the better of several, of either of our families."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .results import OURS, RATIOS, SM_90, Json

AMPERE_PEERS = ("FA2",)
HOPPER_PEERS = ("cuDNN", "cudnn-frontend", "FA4")
HEADLINES = {OURS: AMPERE_PEERS, SM_90: HOPPER_PEERS}
"""What each family is held to: FlashAttention-2; the better of cuDNN, however it is called, and FlashAttention-4."""


def ratio_to_best(row: Json, peers: Iterable[str], member: str = OURS) -> float | None:
    """The time of the fastest of some peers over that of a family, None where none of them or of us was timed."""
    found = [x[RATIOS[member]] for peer in peers if RATIOS[member] in (x := row["peers"].get(peer, {}))]
    return min(found, default=None)


def ratios(rows: Iterable[Json], peers: Iterable[str], member: str = OURS) -> list[float]:
    """:func:`ratio_to_best` of the rows that have one."""
    peers = tuple(peers)
    return [x for row in rows if (x := ratio_to_best(row, peers, member)) is not None]


def geometric_mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return math.exp(sum(map(math.log, values)) / len(values))


def whole(rows: Iterable[Json]) -> list[Json]:
    """The rows that are the whole attention by a fused kernel."""
    return [row for row in rows if row.get("part", "flash") == "flash"]


def has_sm_90(rows: Iterable[Json]) -> bool:
    """Whether the family for Hopper was timed in any of the rows."""
    return any("us" in row.get(SM_90, {}) for row in rows)
