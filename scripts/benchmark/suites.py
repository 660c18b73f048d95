"""What a suite is, and what it is given: one module ``suite_<name>`` for each name in :data:`SUITES`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from flashcore_drv.runtime import Device

from .results import Json, Record

SUITES = ("reference", "small", "forward", "cliff", "accuracy", "host", "cold", "size", "emulator")
"""In the order in which they run by default."""


@dataclass
class Run:
    """What a suite is given.

    Attributes
    ----------
    record : Record
        Takes the rows; those that are there already are not measured again (:meth:`wanted`).
    device : Device or None
        None for a suite that needs none.
    quick : bool
        Whether fewer points, rounds and peers are wanted.
    rounds : int
        Timed measurements of each candidate.
    filter : str
        Rows are measured whose id holds this text.
    peers : sequence of str or None
        Names of the peers that are wanted; None: the suite's own choice.
    wheel : Path or None
        A built wheel of flashcore_drv, for the suites about what is installed.
    """

    record: Record
    device: Device | None
    quick: bool = False
    rounds: int = 10
    filter: str = ""
    peers: tuple[str, ...] | None = None
    wheel: Path | None = None

    def wanted(self, ids: Iterable[str]) -> list[str]:
        """The ids that are to be measured: those that hold the filter and are no row yet."""
        return [x for x in ids if self.filter in x and x not in self.record.rows]

    def progress(self, ids: Iterable[str]) -> Iterator[str]:
        """Go through ids with a progress bar on a terminal (tqdm, else a line each); with nothing elsewhere."""
        ids = list(ids)
        if not sys.stderr.isatty():
            yield from ids
            return
        try:
            from tqdm import tqdm
        except ImportError:
            for i, name in enumerate(ids, 1):
                print(f"{self.record.suite}: {i} of {len(ids)}: {name}", file=sys.stderr, flush=True)
                yield name
            return
        with tqdm(ids, desc=self.record.suite, unit="row", file=sys.stderr) as bar:
            for name in bar:
                bar.set_postfix_str(name)
                yield name


class Suite(Protocol):
    """The members of a suite's module."""

    NEEDS: str
    """"gpu", "emulator", or "any" where the machine does not matter."""

    METHOD: Mapping[str, str]
    """How it measures, by aspect: part of the conditions of its results."""

    PACKAGES: tuple[str, ...]
    """Distributions whose versions are part of the conditions."""

    def ids(self, quick: bool) -> list[str]:
        """The rows that the suite would measure."""

    def run(self, run: Run) -> None:
        """Measure what is wanted, and add a row to the record for each."""

    def lines(self, found: Json) -> list[str]:
        """The results as a table for people."""


def load(name: str) -> Suite:
    """The suite of this name."""
    return cast(Suite, importlib.import_module(f"{__package__}.suite_{name}"))


def table(head: list[str], rows: list[list[Any]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    cells = [head, *[[str(x) for x in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths))).rstrip()
        for row in cells
    ]
