"""The table of golden cases."""

from __future__ import annotations

from . import convert, floating, integer, matrix, memory, tma, warp, wgmma
from .kernel import Case

CASES: dict[str, Case] = {}
for family in (integer, floating, convert, warp, memory, matrix, tma, wgmma):
    for case in family.build():
        if case.name in CASES:
            raise ValueError(f"two cases are called {case.name}")
        CASES[case.name] = case
