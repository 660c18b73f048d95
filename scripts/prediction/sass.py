"""SASS of a cubin: instructions with their scheduling fields, basic blocks, and the paths of a warp through them."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL = "nvdisasm is missing: pip install nvidia-cuda-nvdisasm, or set CUDA_HOME to a CUDA toolkit that has it"


class MissingTool(RuntimeError):
    """nvdisasm is not there, or refuses a file."""


def find_nvdisasm() -> Path | None:
    """``NVDISASM``, then CUDA_HOME, PATH, and the wheel nvidia-cuda-nvdisasm in this Python's environment."""
    candidates = [Path(x) for x in [os.environ.get("NVDISASM")] if x]
    candidates += [Path(x, "bin", "nvdisasm") for x in [os.environ.get("CUDA_HOME")] if x]
    candidates += [Path(x) for x in [shutil.which("nvdisasm")] if x]
    candidates += [Path(x, "nvidia", "cu13", "bin", "nvdisasm") for x in sys.path if x]
    return next((x for x in candidates if x.is_file()), None)


def disassemble(cubin: Path) -> str:
    """What nvdisasm prints of a cubin, encodings included. Raises MissingTool."""
    tool = find_nvdisasm()
    if tool is None:
        raise MissingTool(INSTALL)
    done = subprocess.run([tool, "--print-code", "--print-instruction-encoding", cubin], capture_output=True, text=True)
    if done.returncode:
        raise MissingTool(f"{tool} {cubin}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Instruction:
    """One instruction and what ptxas told the scheduler about it.

    The fields lie in bits 105 to 121 of the 128 bits, from Volta on; that is not documented by NVIDIA but well known
    ("Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking", Jia et al., 2018, chapter 2).

    Attributes
    ----------
    stall : int
        Cycles until the warp may issue its next instruction.
    writes, reads : int or None
        Scoreboard that is held until the result is there, and until the operands are read.
    waits : int
        Mask of scoreboards that must be free.
    """

    address: int
    opcode: str  # without predicate: "LDSM.16.M88.4"
    operands: str
    predicate: str  # "@!P0" or ""
    target: str | None  # label of a branch
    stall: int
    writes: int | None
    reads: int | None
    waits: int

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


_LABEL = re.compile(r"^\.?(L_x_\d+):")
_FIRST = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([\w.]+)(.*?);\s*/\* 0x[0-9a-f]{16} \*/")
_SECOND = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of the first function, and the index of the instruction at each label.

    Raises
    ------
    ValueError
        If there is none: the text is not nvdisasm's with encodings.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    first = None
    for line in text.splitlines():
        if match := _LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := _FIRST.match(line):
            first = match
        elif first and (match := _SECOND.match(line)):
            control = int(match[1], 16) >> 41
            writes, reads = control >> 5 & 7, control >> 8 & 7
            target = re.search(r"\(?\.?(L_x_\d+)\)?", first[4])
            instructions.append(
                Instruction(
                    address=int(first[1], 16),
                    opcode=first[3],
                    operands=first[4].strip(),
                    predicate=first[2] or "",
                    target=target[1] if target else None,
                    stall=control & 15,
                    writes=None if writes == 7 else writes,
                    reads=None if reads == 7 else reads,
                    waits=control >> 11 & 63,
                )
            )
            first = None
    if not instructions:
        raise ValueError("no SASS with encodings: expected what nvdisasm -c -hex prints")
    return instructions, labels


_JUMPS = ("BRA", "CALL")  # CALL.REL.NOINC, by which ptxas leaves a loop, returns nowhere


class Flow:
    """Basic blocks of a function, its loops, and the best paths of a warp through them."""

    def __init__(self, instructions: Sequence[Instruction], labels: dict[str, int]) -> None:
        starts = {0, *labels.values()} | {
            i + 1 for i, x in enumerate(instructions) if x.name in (*_JUMPS, "EXIT") and i + 1 < len(instructions)
        }
        bounds = [*sorted(x for x in starts if x < len(instructions)), len(instructions)]
        block_at = {start: i for i, start in enumerate(bounds[:-1])}
        self.blocks = [tuple(instructions[a:b]) for a, b in itertools.pairwise(bounds)]
        self.successors: list[list[int]] = []
        for i, code in enumerate(self.blocks):
            last, following = code[-1], [i + 1] if i + 1 < len(self.blocks) else []
            if last.name in _JUMPS and last.target and ".DIV" not in last.opcode:
                taken = [block_at[labels[last.target]]]
                self.successors.append([*(following if last.predicate else []), *taken])
            elif last.name == "EXIT":
                self.successors.append(following if last.predicate else [])
            else:
                self.successors.append(following)
        self._find_loops()

    def _find_loops(self) -> None:
        """Back edges by depth-first search from the entry, and the blocks of the loops that they close."""
        self.back: set[tuple[int, int]] = set()
        state: dict[int, int] = {}  # 1: on the stack, 2: done
        self.order: list[int] = []  # reverse topological, without back edges
        stack = [(0, iter(self.successors[0]))]
        state[0] = 1
        while stack:
            node, following = stack[-1]
            for other in following:
                if state.get(other) == 1:
                    self.back.add((node, other))
                elif other not in state:
                    state[other] = 1
                    stack.append((other, iter(self.successors[other])))
                    break
            else:
                state[node] = 2
                self.order.append(node)
                stack.pop()
        predecessors: dict[int, list[int]] = {}
        for node in self.order:
            for other in self.successors[node]:
                predecessors.setdefault(other, []).append(node)
        self.loops: dict[int, set[int]] = {}
        for latch, header in sorted(self.back):
            body = self.loops.setdefault(header, {header})
            todo = [latch]
            while todo:
                node = todo.pop()
                if node not in body:
                    body.add(node)
                    todo += predecessors.get(node, [])

    def count(self, nodes: Iterable[int], name: str) -> int:
        """Instructions of that name in some blocks."""
        return sum(x.name == name for node in nodes for x in self.blocks[node])

    def product_loops(self) -> list[int]:
        """Headers of the loops that contain HMMA, in the order of the code."""
        return sorted(header for header, body in self.loops.items() if self.count(body, "HMMA"))

    def paths(
        self, start: int, inside: set[int] | None, goals: set[int], names: Sequence[str], longest: bool = False
    ) -> dict[tuple[int, ...], tuple[Instruction, ...]]:
        """Paths from a block to the end of one of `goals`, without going round a loop.

        Returns
        -------
        dict
            For every combination of how often the instructions `names` occur on a path, the shortest (or longest) one.
        """
        counted = {node: tuple(self.count([node], name) for name in names) for node in self.order}
        best: dict[int, dict[tuple[int, ...], tuple[int, tuple[int, ...]]]] = {}
        for node in self.order:  # successors come first
            if inside is not None and node not in inside:
                continue
            found: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}
            if node in goals:
                found[counted[node]] = (len(self.blocks[node]), (node,))
            for other in self.successors[node]:
                if (node, other) in self.back:
                    continue
                for key, (length, way) in best.get(other, {}).items():
                    key = tuple(a + b for a, b in zip(key, counted[node]))
                    length += len(self.blocks[node])
                    known = found.get(key)
                    if known is None or (length > known[0] if longest else length < known[0]):
                        found[key] = (length, (node, *way))
            best[node] = found
        return {
            key: tuple(x for node in way for x in self.blocks[node]) for key, (_, way) in best.get(start, {}).items()
        }


@dataclass(frozen=True)
class KernelCode:
    """What a warp of a fused kernel executes, part by part.

    Attributes
    ----------
    prologue, epilogue : tuple of Instruction
        From the entry to the loop over the tiles of keys, and from there to the end.
    tile : tuple of Instruction
        One round of the loop in its steady state: all products of a tile, all copies of another, no mask, no search
        for a maximum where the kernel speculates, and the shortest way that does this.
    masked : tuple of Instruction
        The shortest round with a mask; `tile` where the kernel has none.
    first : tuple of Instruction
        The longest round with the products of one tile: with mask, maximum, and rescaling.
    keys : int
        Of a tile.
    rounds_less : int
        Rounds that the loop makes fewer than there are tiles: what the pipelined schedule has before and after it.
    """

    prologue: tuple[Instruction, ...]
    tile: tuple[Instruction, ...]
    masked: tuple[Instruction, ...]
    first: tuple[Instruction, ...]
    epilogue: tuple[Instruction, ...]
    keys: int
    rounds_less: int


COPY_BYTES, MMA_FLOP = 16, 4096  # of a lane's LDGSTS, and of a warp's HMMA.16816


def kernel_code(text: str, *, threads: int, rows: int, head_dim: int) -> KernelCode:
    """The parts of a fused kernel, from nvdisasm's text.

    Parameters
    ----------
    text : str
        With encodings.
    threads, rows, head_dim : int
        Of a block: its threads, its rows of the result, and the head_dim that the kernel is built for.

    Raises
    ------
    ValueError
        If the code does not have the form of a fused kernel: a loop with the copies and the products of a tile.
    """
    flow = Flow(*parse(text))
    headers = flow.product_loops()
    if not headers:
        raise ValueError("no loop with HMMA")
    steady = headers[-1]
    body = flow.loops[steady]
    latches = {latch for latch, header in flow.back if header == steady}
    copies = max(key[0] for key in flow.paths(steady, body, latches, ["LDGSTS"]))
    keys = copies * threads * COPY_BYTES // (2 * head_dim * 2)
    if not keys:
        raise ValueError("the loop copies nothing")
    products = 4 * rows * keys * head_dim // (MMA_FLOP * threads // 32)
    shortest, longest = (
        flow.paths(steady, body, latches, ["HMMA", "LDGSTS", "FSEL", "FMNMX", "F2FP"], longest=x) for x in (False, True)
    )
    packs = products * 16 // head_dim  # P of a tile, two numbers at a time: pairs of warps may leave a tile out
    whole = [key for key in shortest if key[:2] == (products, copies) and key[4] >= packs]
    if not whole:
        raise ValueError(f"no way through the loop has the {products} HMMA of a tile of {keys} keys")
    tile = shortest[min(whole, key=lambda k: (k[3], len(shortest[k])))]
    masked = shortest[max(whole, key=lambda k: (k[2], -len(shortest[k])))]
    first = max((longest[key] for key in whole), key=len)
    if len(headers) > 1:  # the tiles that need a mask have a loop of their own, before the other
        header = headers[0]
        inside, ends = flow.loops[header], {latch for latch, to in flow.back if to == header}
        shortest, longest = (flow.paths(header, inside, ends, ["HMMA", "LDGSTS"], longest=x) for x in (False, True))
        masked, first = shortest[products, copies], longest[products, copies]

    # Everything before the first loop and after the last, whatever lies between them left out.
    loops = {node for header in headers for node in flow.loops[header]}
    outside = set(flow.order) - loops
    entries = {node for node in outside if any(other in headers for other in flow.successors[node])}
    before = flow.paths(0, outside, entries, ["LDGSTS", "HMMA", "LDSM"])
    exits = {other for node in body for other in flow.successors[node] if other not in body}
    ends = {node for node in flow.order if flow.blocks[node][-1].name == "EXIT"}
    after = {k: v for node in exits for k, v in flow.paths(node, outside, ends, ["HMMA", "STG"]).items()}
    prologue, epilogue = before[max(before)], after[max(after)]
    more = sum(x.name == "HMMA" for x in (*prologue, *epilogue))
    if more % products:
        raise ValueError(f"{more} HMMA outside of the loop are no multiple of the {products} of a tile")
    return KernelCode(prologue, tile, masked, first, epilogue, keys, more // products)
