"""What counters say: a screen of text, or JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .ncu import Line

LIMITS = {
    "tensor": "tensor pipe",
    "fma": "FMA pipe",
    "alu": "ALU pipe",
    "mufu": "MUFU (exponentials)",
    "shared_memory": "shared memory",
    "lsu": "LSU instructions",
    "issue": "instructions issued",
    "l2": "L2",
    "dram": "DRAM",
}
"""What can bind: counters in percent of a peak."""

BOUND, BUSY = 85.0, 55.0  # percent: nearly the limit; busy enough that warps often meet there

REASONS = {
    "wait": ("the fixed latency of the instruction before", "independent work in a warp, or more warps on an SM"),
    "math_pipe_throttle": ("a pipe that is busy", "fewer instructions of the busiest pipe"),
    "short_scoreboard": (
        "shared memory or MUFU",
        "earlier loads, fewer ldmatrix for each mma",
    ),
    "mio_throttle": ("a full queue of shared-memory instructions", "fewer ldmatrix for each mma, spread out"),
    "long_scoreboard": ("global memory or an mbarrier", "copies earlier, more stages"),
    "lg_throttle": ("a full queue of global-memory instructions", "fewer, wider accesses"),
    "barrier": ("other warps at a barrier", "fewer barriers a tile, or another block on the SM"),
    "imc_miss": ("parameters and constants that are not in the cache", "fewer parameters, read together at the start"),
    "no_instruction": ("instructions that are not in the cache", "less code outside of the loop"),
    "branch_resolving": ("a branch", "fewer branches"),
    "dispatch_stall": ("the dispatcher (register banks, for one)", "nothing that source code decides"),
    "gmma": ("the products of its warpgroup (wgmma)", "other work while they run"),
    "drain": ("its last stores", "earlier stores"),
}
"""For every reason to wait: what for, and what helps."""

NO_WAIT = ("selected", "not_selected")


@dataclass
class Verdict:
    """One launch, judged."""

    kernel: str
    problem: str
    gpu: str
    metrics: dict[str, float]
    stalls: dict[str, float]
    lines: list[Line]

    @property
    def limits(self) -> dict[str, float]:
        """Percent of every limit, the busiest first; shared memory with the writes of cp.async."""
        found = {name: self.metrics[name] for name in LIMITS if name in self.metrics}
        if "shared_memory" in found:
            found["shared_memory"] += self.copies
        return dict(sorted(found.items(), key=lambda x: -x[1]))

    @property
    def waits(self) -> dict[str, float]:
        """Reasons to wait, without those that are none."""
        return {name: x for name, x in self.stalls.items() if name not in NO_WAIT}

    @property
    def copies(self) -> float:
        """Percent of shared memory's cycles that the writes of cp.async take: its counter leaves them out."""
        m = self.metrics
        if not {"copy_wavefronts", "cycles", "sms"} <= m.keys():
            return 0.0
        return 100 * m["copy_wavefronts"] / (m["cycles"] * m["sms"])

    @property
    def conflicts(self) -> float:
        """Share of the wavefronts of shared memory that are bank conflicts, in percent."""
        m = self.metrics
        wavefronts = m.get("load_wavefronts", 0) + m.get("store_wavefronts", 0)
        return 100 * (m.get("load_conflicts", 0) + m.get("store_conflicts", 0)) / wavefronts if wavefronts else 0.0

    @property
    def occupancy(self) -> tuple[int, str]:
        """Blocks that an SM holds, and by what that is limited."""
        limits = {
            name.removeprefix("blocks_by_").replace("_", " "): int(x)
            for name, x in self.metrics.items()
            if name.startswith("blocks_by_")
        }
        if not limits:
            return 0, "unknown"
        least = min(limits.values())
        return least, " and ".join(name for name, x in limits.items() if x == least)

    def binds(self) -> str:
        """The limit that binds; "latency" where none is near."""
        name, percent = next(iter(self.limits.items()))
        return name if percent >= BUSY else "latency"

    def says(self) -> list[str]:
        """What binds, and what that suggests."""
        name, percent = next(iter(self.limits.items()))
        if percent >= BOUND:
            text = [f"{LIMITS[name]} binds: {percent:.0f} %"]
        elif percent >= BUSY:
            text = [f"{LIMITS[name]} is busiest, {percent:.0f} %; the rest is waiting"]
        else:
            text = [f"nothing is near its limit ({LIMITS[name]} {percent:.0f} %): warps wait"]
        total = sum(self.stalls.values())
        for reason, cycles in list(self.waits.items())[:3]:
            what, helps = REASONS.get(reason, (reason, "see the manual of Nsight Compute"))
            text.append(f"{100 * cycles / total:.0f} % of a warp's time it waits for {what}: {helps}")
        blocks, by = self.occupancy
        if blocks and self.metrics.get("waves", 1) < 1:
            text.append(f"the grid fills {100 * self.metrics['waves']:.0f} % of the places for blocks")
        elif blocks == 1:
            text.append(f"one block an SM, by {by}: nothing runs while its warps wait at a barrier")
        return text

    def to_json(self) -> dict[str, Any]:
        """Everything, the twelve busiest lines included."""
        blocks, by = self.occupancy
        return {
            "kernel": self.kernel,
            "problem": self.problem,
            "gpu": self.gpu,
            "metrics": self.metrics,
            "stalls": self.stalls,
            "bank_conflict_percent": round(self.conflicts, 3),
            "copies_percent": round(self.copies, 2),
            "limits_percent": {name: round(x, 1) for name, x in self.limits.items()},
            "blocks_an_sm": blocks,
            "blocks_bound_by": by,
            "binds": self.binds(),
            "says": self.says(),
            "lines": [asdict(line) for line in self.lines[:12]],
        }

    def text(self) -> str:
        """A screen."""
        m = self.metrics
        out = [f"{self.kernel}  {self.problem}  {self.gpu}"]
        if {"ns", "cycles", "hz"} <= m.keys():
            out.append(f"{m['ns'] / 1e3:.1f} us, {m['cycles']:.0f} cycles at {m['hz'] / 1e9:.2f} GHz")
        out.append("")
        for name, percent in self.limits.items():
            copies = f"  {self.copies:.1f} of it copies" if name == "shared_memory" and self.copies else ""
            out.append(f"  {LIMITS[name]:20} {percent:5.1f} % {'#' * round(percent / 4)}{copies}")
        blocks, by = self.occupancy
        out += [
            "",
            f"  {m.get('blocks', 0):.0f} blocks of {m.get('threads', 0):.0f} threads, {m.get('waves', 0):.2f} waves; "
            f"{blocks} an SM by {by}: {m.get('registers', 0):.0f} registers, {m.get('shared_bytes', 0):.0f} bytes; "
            f"warps {m.get('warps', 0):.1f} %",
            f"  bank conflicts {self.conflicts:.2f} % of {m.get('load_wavefronts', 0):.0f} + "
            f"{m.get('store_wavefronts', 0):.0f} wavefronts; L2 hits {m.get('l2_hits', 0):.0f} %",
            "  cycles of a warp for each instruction: "
            + ", ".join(f"{name} {cycles:.2f}" for name, cycles in list(self.stalls.items())[:7]),
            "",
        ]
        samples = sum(line.samples for line in self.lines)
        for line in self.lines[:8]:
            top = sorted(((x, n) for n, x in line.stalls.items() if n != "selected"), reverse=True)[:3]
            reasons = ", ".join(f"{name} {100 * x / line.samples:.0f} %" for x, name in top)
            out.append(f"  {100 * line.samples / samples:4.1f} %  {line.file}:{line.number}  {reasons}")
        return "\n".join([*out, "", *(f"=> {sentence}" for sentence in self.says())])
