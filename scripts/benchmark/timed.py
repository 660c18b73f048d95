"""A row of results: our kernel and the peers on one problem, checked first, then timed in turns."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from flashcore_drv.runtime import Stream

from .cases import Case, Tensors, Truth, count_nan
from .ceilings import ceilings
from .conditions import gpu_state
from .measure import EventTimer, Sample, Timer, as_members, interleaved, paired, repeat_for, rounded
from .ours import Ours
from .peers import NOT_ASKED_FOR, Prepared, find, first_line
from .results import Json
from .suites import Run, table

PEER_SLACK = 10.0  # times what is allowed to us: a peer may round its scores to the inputs' dtype

METHOD = {
    "timing": "GPU time by CUDA events around replays of graphs of many launches, each after an uncounted replay of "
    "the same graph and before a rest as long as both; candidates in turns in one process, each round begins with the "
    "next one; us is the median, us_5_95 the 5th and 95th percentile over the rounds",
    "ratio": "the peer's time over ours within a round: median and percentiles over the rounds",
    "inputs": "independent standard normal",
    "correctness": "before timing, three times up to 16 rows of the output against float64 (flashcore_drv.reference: "
    "twice the error of the same maths at the kernels' precision, plus one ulp), and no NaN in the whole poisoned "
    f"output; peers: {PEER_SLACK:g} times that",
    "flops": "4 · head_dim · visible scores; bytes: q, k, v read once, o written once",
}


class Bench:
    """What every row of a run is measured with: the device, a stream, the timer, the peers."""

    def __init__(self, run: Run, default_peers: Sequence[str], timer: Timer | None = None) -> None:
        assert run.device is not None
        self.run, self.device = run, run.device
        self.stream = Stream(self.device)
        self.timer: Timer = timer or EventTimer(self.stream)
        self.replay_us = 2000.0 if run.quick else 3000.0
        self.peers, members = find(run.peers if run.peers is not None else default_peers)
        run.record.peers = members
        if run.record.ceilings is None:
            run.record.ceilings = ceilings(self.device, self.timer)

    def row(self, case: Case, sets: Sequence[Tensors], rotated: Sequence[Tensors] = ()) -> Json:
        """A row of the results: our kernel and the peers on `sets`, in turns.

        Parameters
        ----------
        sets : sequence of Tensors
            What launches read, in turns.
        rotated : sequence of Tensors
            More sets than the L2 holds, for a second measurement.
        """
        truth = Truth(sets[0])
        collect_garbage()
        ours = Ours(sets, self.device, self.stream)
        wrong, error = self.check_ours(ours, truth)
        row: Json = {"id": case.id, "problem": case.to_json(), "flops": case.flops, "bytes": case.nbytes}
        if wrong:
            return row | {"ours": {"wrong": wrong}, "peers": {}}
        members: dict[str, Json] = {}
        samples: dict[str, Sample] = {}
        errors = {"ours": error}
        alive = []  # a graph does not own the memory that it works on
        repeat = self.repeat(ours)
        samples["ours"] = ours.sample(self.timer, repeat)
        for name, prepared, peer_error in self.checked_peers(sets, truth, members):
            with self.refusals(name, members):
                alive.append(prepared)
                samples[name] = prepared.sample(self.timer, repeat)
                errors[name] = peer_error
        times = interleaved(samples, self.run.rounds)
        row |= {"ours": {"stem": ours.stem} | timed(times["ours"], errors["ours"], row)}
        for name in samples.keys() - {"ours"}:
            members[name] = timed(times[name], errors[name], row, times["ours"])
        if rotated:
            self.add_rotated(row, members, rotated, [name for name in samples if name != "ours"])
        return row | {"peers": {name: members[name] for name in self.peers if name in members}}

    def check_ours(self, ours: Ours, truth: Truth) -> tuple[str | None, float]:
        """What is wrong with our output, if anything, and its largest error."""
        if unwritten := count_nan(ours.fetch()):
            return f"{unwritten} elements are NaN or were not written", float("nan")
        verdict = truth.verdict(ours.rows)
        if not verdict.ok:
            return f"error {verdict.error:.3g}, allowed {verdict.allowed:.3g}, misplaced {verdict.misplaced}", 0.0
        return None, verdict.error

    def checked_peers(
        self, sets: Sequence[Tensors], truth: Truth, members: dict[str, Json]
    ) -> Iterator[tuple[str, Prepared, float]]:
        """The peers that take the case and are right; the others leave their reason in `members`."""
        for name, peer in self.peers.items():
            with self.refusals(name, members):
                prepared = peer.prepare(sets, self.stream)
                verdict = truth.verdict(prepared.rows)
                allowed = PEER_SLACK * verdict.allowed
                if verdict.error <= allowed and not verdict.misplaced:
                    yield name, prepared, verdict.error
                    continue
                what = f"error {verdict.error:.3g}, allowed {allowed:.3g}, misplaced {verdict.misplaced}"
                members[name] = {"wrong": what}

    @contextlib.contextmanager
    def refusals(self, name: str, members: dict[str, Json]) -> Iterator[None]:
        """Take any error of a peer's library as its refusal of the case: nobody can list them all."""
        try:
            yield
        except Exception as error:
            members[name] = {"refused": first_line(error)}
            print(f"{self.run.record.suite}: {name} refused: {first_line(error)}", file=sys.stderr)

    def repeat(self, ours: Ours) -> int:
        """Launches of ours that fill a replay."""
        once = self.timer(lambda stream: ours.launch(), 1)
        once()
        return repeat_for(once(), self.replay_us)

    def add_rotated(self, row: Json, members: dict[str, Json], sets: Sequence[Tensors], names: list[str]) -> None:
        """The same with inputs that are not in the L2."""
        ours = Ours(sets, self.device, self.stream)
        repeat = max(self.repeat(ours) // len(sets), 1) * len(sets)
        samples, alive = {"ours": ours.sample(self.timer, repeat)}, []
        for name in names:
            with contextlib.suppress(Exception):  # what takes no second set has its time with one
                alive.append(self.peers[name].prepare(sets, self.stream))
                samples[name] = alive[-1].sample(self.timer, repeat)
        times = interleaved(samples, self.run.rounds)
        for name, values in times.items():
            target = row["ours"] if name == "ours" else members[name]
            target["rotated"] = as_members("us", values)
            if name != "ours":
                target["rotated"] |= as_members("ratio", paired(values, times["ours"]))

    def finish(self) -> None:
        """Note the GPU's state at the end."""
        gc.enable()
        self.run.record.conditions["after"] = gpu_state(self.device)
        self.run.record.save()


def collect_garbage() -> None:
    """Collect now, and not again by itself: what PyTorch destroys during a capture of ours makes it invalid."""
    gc.disable()
    gc.collect()


def timed(values: Sequence[float], error: float, row: Json, ours: Sequence[float] | None = None) -> Json:
    """Time, spread, error and rates; with our times the ratio too."""
    found = as_members("us", values)
    us = found["us"]
    found |= {
        "max_error": rounded(error),
        "tflops": rounded(row["flops"] / us / 1e6) if row["flops"] else None,
        "gb_s": rounded(row["bytes"] / us / 1e3) if row["bytes"] else None,
    }
    return found if ours is None else found | as_members("ratio", paired(values, ours))


# ---- for people


def cell(member: Json | None, name: str = "ratio", digits: int = 2) -> str:
    """A median with its spread, or why there is none."""
    if not member or name not in member:
        return next((kind for kind in ("wrong", "refused") if kind in (member or {})), "-")
    low, high = member[f"{name}_5_95"]
    return f"{member[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def lines(found: Json) -> list[str]:
    """The table of a timed suite: our time, its share of the ceilings, and how much longer each peer takes."""
    limits = {name: x for name, x in found["ceilings"].items() if not isinstance(x, dict)}
    here = [name for name, peer in found["peers"].items() if "absent" not in peer]
    here = [name for name in here if any(name in row["peers"] for row in found["rows"])]
    mma, copy = limits.get("mma_sync_tflops"), limits.get("copy_tb_s")
    head = ["row", "us", "TFLOP/s", "of mma.sync", "GB/s", "of copy", "error", *(f"x {name}" for name in here)]
    rows = []
    for row in found["rows"]:
        ours = row["ours"]
        if "wrong" in ours:
            rows.append([row["id"], "WRONG", *["-"] * (len(head) - 2)])
            continue
        rate, bandwidth = ours["tflops"], ours["gb_s"]
        rows.append(
            [
                row["id"],
                cell(ours, "us"),
                "-" if rate is None else f"{rate:.0f}",
                "-" if rate is None or mma is None else f"{100 * rate / mma:.0f} %",
                f"{bandwidth:.0f}",
                "-" if copy is None else f"{bandwidth / copy / 10:.0f} %",
                f"{ours['max_error']:.1e}",
                *(cell(row["peers"].get(name)) for name in here),
            ]
        )
    means = [geometric_mean(found, name) for name in here]
    rows.append(["geometric mean", *["-"] * 6, *("-" if m is None else f"{m:.2f}" for m in means)])
    return [*heading(found), *table(head, rows), *notes(found)]


def geometric_mean(found: Json, name: str) -> float | None:
    """Of the ratios to a peer, over the rows of the suite that are the whole attention and have one."""
    ratios = [
        row["peers"][name]["ratio"]
        for row in found["rows"]
        if row.get("part", "flash") == "flash" and "ratio" in row["peers"].get(name, {})
    ]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else None


def heading(found: Json) -> list[str]:
    """The conditions in short, the ceilings and the peers."""
    conditions = found["conditions"]

    def state(name: str) -> str:
        x = conditions[name]
        throttle = "unknown" if x["throttle"] is None else ", ".join(x["throttle"]) or "none"
        return f"{name}: {x['sm_mhz']} MHz, {x['temperature_c']} C, {x['power_w']} W, throttled by {throttle}"

    lines = [
        f"{found['suite']} on {conditions['gpu']}, driver {conditions['driver']}, commit {conditions['commit']}, "
        f"{conditions['rounds']} rounds{', quick' if conditions['quick'] else ''}",
        state("before"),
        state("after"),
    ]
    for name, x in found["ceilings"].items():
        lines.append(f"ceiling {name}: {x['absent'] if isinstance(x, dict) else f'{x:.4g}'}")
    for name, peer in found["peers"].items():
        if peer.get("absent") != NOT_ASKED_FOR:
            lines.append(f"peer {name}: " + (f"absent: {peer['absent']}" if "absent" in peer else peer["version"]))
    return [*lines, "", "x PEER: the peer's time over ours, median [5 %, 95 %] of paired rounds", ""]


def notes(found: Json) -> list[str]:
    """What was skipped, wrong or refused, each reason once."""
    reasons: dict[str, list[str]] = {}
    for name, reason in found["skipped"].items():
        reasons.setdefault(f"skipped: {reason}", []).append(name)
    for row in found["rows"]:
        for who, member in {"ours": row["ours"], **row["peers"]}.items():
            for kind in ("wrong", "refused"):
                if kind in member:
                    reasons.setdefault(f"{who} {kind}: {member[kind]}", []).append(row["id"])
    return [f"{reason} ({', '.join(ids)})" for reason, ids in reasons.items()]
