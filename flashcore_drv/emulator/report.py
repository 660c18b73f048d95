"""What a launch did, by source line: dynamic counts of warp instructions and of memory traffic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LineCounts:
    """Counts of one source line.

    Attributes
    ----------
    instructions : int
        Warp instructions executed, predicated-off ones included.
    shared_accesses, shared_wavefronts, bank_conflicts : int
        Warp-level shared-memory accesses; the wavefronts that their addresses need; those beyond the fewest possible
        for the bytes that they move.
    global_requests, global_sectors : int
        Warp-level global-memory accesses and the 32-byte sectors that they touch.
    opcodes, pipes : dict
        Warp instructions by opcode, and by the pipe of the PTX instruction (an estimate: ptxas decides).
    """

    instructions: int = 0
    shared_accesses: int = 0
    shared_wavefronts: int = 0
    bank_conflicts: int = 0
    global_requests: int = 0
    global_sectors: int = 0
    opcodes: dict[str, int] = field(default_factory=dict)
    pipes: dict[str, int] = field(default_factory=dict)

    def add(self, other: LineCounts) -> None:
        """Add the counts of another."""
        for name, value in vars(other).items():
            if isinstance(value, dict):
                mine = getattr(self, name)
                for key, count in value.items():
                    mine[key] = mine.get(key, 0) + count
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class Report:
    """Counts by source line ``(file, line)``; reports of several launches can be merged."""

    lines: dict[tuple[str, int], LineCounts] = field(default_factory=dict)

    def line(self, file: str, line: int) -> LineCounts:
        """The counts of one source line, zero if it is new."""
        return self.lines.setdefault((file, line), LineCounts())

    @property
    def totals(self) -> LineCounts:
        """The sum over all lines."""
        total = LineCounts()
        for counts in self.lines.values():
            total.add(counts)
        return total

    def merge(self, other: Report) -> None:
        """Add another launch's counts."""
        for (file, line), counts in other.lines.items():
            self.line(file, line).add(counts)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts: ``{"lines": [{"file", "line", …}], "totals": {…}}``."""
        return {
            "lines": [
                {"file": file, "line": line, **asdict(counts)} for (file, line), counts in sorted(self.lines.items())
            ],
            "totals": asdict(self.totals),
        }
