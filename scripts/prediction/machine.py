"""A quarter of an SM: its warps issue in order, one instruction a cycle, to pipes that are busy for known times.

The four quarters run the same code at the same time, so shared memory serves each at a quarter of its rate. ptxas wrote
into every instruction how long its warp waits and for which scoreboards; pipes and latencies come from gpus.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .gpus import (
    BARRIER_LATENCY,
    L2_BYTES_PER_CYCLE,
    L2_LATENCY,
    LDSM_LATENCY,
    MUFU_LATENCY,
    OTHER_LATENCY,
    QUEUE,
    SHARED_BYTES_PER_CYCLE,
    Gpu,
)
from .sass import Instruction

QUARTERS = 4

_FMA = {"FFMA", "FMUL", "FADD"}
_FMA_HEAVY = {"IMAD", "IDP", "HFMA2", "HADD2", "HMUL2", "FFMA32I", "FADD32I"}
_XU = {"MUFU", "F2F", "F2I", "I2F", "POPC", "FLO", "BREV"}
_SHARED = {"LDSM", "LDS", "STS", "SHFL"}
_GLOBAL = {"LDG", "STG", "LDGSTS", "RED", "ATOMG"}
_CONTROL = {
    "BRA",
    "CALL",
    "EXIT",
    "BSSY",
    "BSYNC",
    "NOP",
    "DEPBAR",
    "LDGDEPBAR",
    "WARPSYNC",
    "BAR",
    "S2R",
    "S2UR",
    "LDC",
}

PIPES = ("tensor", "shared memory", "MUFU", "FMA", "ALU", "L2 to SM")
"""What can bind, as `pipe_cycles` names it."""


def pipe_of(x: Instruction) -> str:
    """The pipe of an instruction (NVIDIA's "Nsight Compute" manual, "Pipelines"; F2FP is the ALU's from Ampere on)."""
    if x.name == "HMMA":
        return "tensor"
    if x.name in _FMA or x.name in _FMA_HEAVY:
        return "FMA"
    if x.name in _XU:
        return "MUFU"
    if x.name in _SHARED:
        return "shared memory"
    if x.name in _GLOBAL:
        return "L2 to SM"
    if x.name in _CONTROL:
        return "control"
    return "uniform" if x.name.startswith("U") or x.name == "R2UR" else "ALU"


def busy_cycles(x: Instruction, gpu: Gpu) -> float:
    """Cycles for which a warp's instruction keeps the pipe of its quarter busy, all four quarters doing the same."""
    pipe = pipe_of(x)
    if pipe == "tensor":
        return gpu.hmma_cycles
    if pipe == "FMA":
        return gpu.ffma_cycles if x.name in _FMA else 2
    if pipe == "MUFU":
        return 8  # 16 results a cycle and SM [P]
    if pipe == "shared memory":
        return shared_cycles(x)
    if pipe == "L2 to SM":
        return QUARTERS * 32 * _width(x) / L2_BYTES_PER_CYCLE
    return 2 if pipe == "ALU" else 1  # ALU: 64 results a cycle and SM [P]


def shared_cycles(x: Instruction) -> float:
    """Cycles of shared memory for a warp's instruction, without bank conflicts; of LDGSTS, to write there."""
    if x.name == "LDSM":  # one, two or four matrices of 128 bytes: .M88, .M88.2, .M88.4
        nbytes = 128 * (int(x.opcode[-1]) if x.opcode[-2] == "." else 1)
    else:
        nbytes = 128 if x.name == "SHFL" else 32 * _width(x)
    return QUARTERS * nbytes / SHARED_BYTES_PER_CYCLE


def _width(x: Instruction) -> int:
    words = x.opcode.split(".")
    return 16 if "128" in words else 8 if "64" in words else 4


def pipe_cycles(code: Iterable[Instruction], gpu: Gpu, warps: int) -> dict[str, float]:
    """Cycles that each pipe of an SM is busy when `warps` warps execute this code."""
    busy = dict.fromkeys(PIPES, 0.0)
    for x in code:
        pipe = pipe_of(x)
        if pipe in busy:
            busy[pipe] += busy_cycles(x, gpu)
        if x.name == "LDGSTS":
            busy["shared memory"] += shared_cycles(x)
    return {pipe: cycles * warps / QUARTERS for pipe, cycles in busy.items()}


@dataclass
class _Warp:
    code: Sequence[Instruction]
    at: int
    ready: float
    scoreboards: list[float]
    copied: float  # when the last copy arrives
    groups: list[float]  # when the groups of copies arrive


def simulate(code: Sequence[Instruction], gpu: Gpu, warps: int) -> float:
    """Cycles until `warps` warps of a quarter of an SM, each of another block, have executed the code.

    Blocks of four warps: their barriers find the quarters at the same place, and cost their latency alone.
    """
    now = 0.0
    free = dict.fromkeys((*PIPES, "control", "uniform"), 0.0)
    running = [_Warp(code, 0, 0.0, [0.0] * 6, 0.0, []) for _ in range(warps)]
    last = running[0]
    end = 0.0
    while running:
        # The warp that can issue first; among equals the one that issued last, then the oldest.
        best, best_at = running[0], float("inf")
        for warp in (last, *running):
            if warp.at < len(warp.code) and (at := _earliest(warp, free, now)) < best_at:
                best, best_at = warp, at
        x = best.code[best.at]
        now = best_at
        end = max(end, _issue(best, x, gpu, free, now))
        last = best
        if best.at == len(best.code):
            running.remove(best)
            last = running[0] if running else best
        now += 1
    return max(end, now)


def _earliest(warp: _Warp, free: dict[str, float], now: float) -> float:
    x = warp.code[warp.at]
    at = max(now, warp.ready)
    if x.waits:
        for i in range(6):
            if x.waits >> i & 1 and warp.scoreboards[i] > at:
                at = warp.scoreboards[i]
    if x.name == "DEPBAR" and warp.groups:
        left = int(x.operands.rsplit(",", 1)[1], 0)
        if left < len(warp.groups):
            at = max(at, warp.groups[len(warp.groups) - left - 1])
    pipe = pipe_of(x)
    if pipe in ("shared memory", "L2 to SM"):
        return max(at, free["shared memory"] - QUEUE * 16)
    return max(at, free[pipe])


def _issue(warp: _Warp, x: Instruction, gpu: Gpu, free: dict[str, float], now: float) -> float:
    """Issue an instruction; returns when its result is there."""
    pipe, busy = pipe_of(x), busy_cycles(x, gpu)
    start = max(now, free[pipe])
    free[pipe] = start + busy
    done = start + busy + OTHER_LATENCY
    read = start + busy
    if pipe == "MUFU":
        done = start + busy + MUFU_LATENCY
    elif pipe == "shared memory":
        done = start + busy + LDSM_LATENCY
    elif pipe == "L2 to SM":
        done = start + busy + L2_LATENCY
        if x.name == "LDGSTS":
            free["shared memory"] = max(free["shared memory"], now) + shared_cycles(x)
            warp.copied = max(warp.copied, done)
    elif x.name == "LDGDEPBAR":
        warp.groups.append(warp.copied)
    if x.writes is not None:
        warp.scoreboards[x.writes] = max(warp.scoreboards[x.writes], done if x.name != "LDGDEPBAR" else now)
    if x.reads is not None:
        warp.scoreboards[x.reads] = max(warp.scoreboards[x.reads], read)
    warp.ready = now + max(x.stall, 1) + (BARRIER_LATENCY if x.name == "BAR" else 0)
    warp.at += 1
    return done if pipe not in ("control", "uniform") else now
