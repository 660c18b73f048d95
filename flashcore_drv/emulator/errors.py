"""The one error that the emulator raises for a kernel that is wrong."""

from __future__ import annotations


class EmulationError(Exception):
    """A kernel did something that a GPU would not define, or that the emulator cannot do.

    Parameters
    ----------
    kind : str
        What is wrong, in one word: ``"race"``, ``"out-of-bounds"``, ``"misaligned"``, ``"uninitialised-read"``,
        ``"use-after-free"``, ``"deadlock"``, ``"divergence"``, ``"barrier"``, ``"mbarrier"``, ``"watchdog"``,
        ``"trap"``, ``"unknown-instruction"``, ``"launch-limit"``, ``"parse"``, ``"memory"`` (a host-side access).
    message : str
        One sentence, without the source line.
    line : str
        ``file:line`` of the CUDA C++ source (from ``.loc``), of the PTX where it has no line information, or "".
    callers : str
        Where inlined code was called from, for the text: `` (from file:line, …)``, or "".
    """

    def __init__(self, kind: str, message: str, line: str = "", callers: str = "") -> None:
        super().__init__(f"{line}{callers}: {message}" if line else message)
        self.kind = kind
        self.message = message
        self.line = line
