"""Blocks of a grid on the SMs of a GPU."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

Block = tuple[int, int]  # the tiles that it visits, and those of them that need a mask


def last_end(blocks: Iterable[Block], sms: int, slots: int, cycles: Callable[[Block, int], float]) -> float:
    """When the last block ends.

    Parameters
    ----------
    blocks : iterable of Block
        In the order of the grid: the next goes to the SM that has a place first.
    sms, slots : int
        SMs, and blocks that one holds.
    cycles : function
        Of a block and of the number of blocks on its SM: how long it takes among them. While that number changes, a
        block keeps the share of its work that is done.
    """
    waiting = iter(blocks)
    resident: list[list[tuple[Block, float]]] = [[] for _ in range(sms)]  # with the share that is left
    clock = [0.0] * sms

    def admit(sm: int) -> None:
        if (block := next(waiting, None)) is not None:
            resident[sm].append((block, 1.0))

    def next_end(sm: int) -> float:
        together = len(resident[sm])
        return clock[sm] + min(left * cycles(block, together) for block, left in resident[sm])

    for _ in range(slots):
        for sm in range(sms):
            admit(sm)
    queue = [(next_end(sm), sm) for sm in range(sms) if resident[sm]]
    heapq.heapify(queue)
    end = 0.0
    while queue:
        end, sm = heapq.heappop(queue)
        passed, together = end - clock[sm], len(resident[sm])
        clock[sm] = end
        going_on = [(block, left - passed / cycles(block, together)) for block, left in resident[sm]]
        resident[sm] = [(block, left) for block, left in going_on if left > 1e-9]
        for _ in range(together - len(resident[sm])):
            admit(sm)
        if resident[sm]:
            heapq.heappush(queue, (next_end(sm), sm))
    return end
