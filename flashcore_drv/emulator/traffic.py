"""Counts of shared-memory wavefronts and global-memory sectors, by instruction."""

from __future__ import annotations

from collections import Counter

import numpy as np

from flashcore_drv.emulator.selection import Accessors, Array


class Traffic:
    """Memory traffic of a launch; every counter maps an instruction to a number."""

    def __init__(self) -> None:
        self.accesses: Counter[int] = Counter()
        self.wavefronts: Counter[int] = Counter()
        self.conflicts: Counter[int] = Counter()
        self.requests: Counter[int] = Counter()
        self.sectors: Counter[int] = Counter()

    def shared(self, who: Accessors, address: Array, width: int, pc: int) -> None:
        """Count accesses of threads to shared memory.

        A wavefront serves each of the 32 banks (4 bytes wide) with one word. Accesses of 8 and 16 bytes go in two and
        four phases of neighbouring lanes.
        """
        assert who.thread is not None
        lane = who.thread % 32
        phases = max(width // 4, 1)
        self.phases(who.warp * phases + lane * phases // 32, address, width, pc)
        self.accesses[pc] += int(np.unique(who.warp).size)

    def phases(self, phase: Array, address: Array, width: int, pc: int) -> None:
        """Count accesses that are served together where `phase` (int64 [n]) is equal."""
        words = address[:, None] // 4 + np.arange(max(width // 4, 1))
        # A word that several lanes of a phase want is sent once.
        distinct = np.unique((phase[:, None] << 32 | words).reshape(-1))
        bank = (distinct >> 32) * 32 + distinct % 32
        banks, counts = np.unique(bank, return_counts=True)
        boundaries = np.flatnonzero(np.diff(banks // 32, prepend=-1))
        wavefronts = int(np.maximum.reduceat(counts, boundaries).sum())
        self.wavefronts[pc] += wavefronts
        self.conflicts[pc] += wavefronts - boundaries.size

    def global_(self, who: Accessors, address: Array, width: int, pc: int) -> None:
        """Count the 32-byte sectors that each warp's access touches."""
        sectors = who.warp << 45 | address >> 5
        self.requests[pc] += int(np.unique(who.warp).size)
        if width <= 32:
            self.sectors[pc] += int(np.unique(sectors).size)
