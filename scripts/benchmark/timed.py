"""A row of results: our kernels and the peers on one problem, checked first, then timed in turns."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence

import flashcore_drv as fc
from flashcore_drv.runtime import Device, Stream

from .cases import Case, Tensors, Truth, count_nan
from .ceilings import ceilings
from .conditions import gpu_state
from .headline import HEADLINES, geometric_mean, ratios, whole
from .measure import EventTimer, Sample, Timer, as_members, interleaved, paired, repeat_for, rounded
from .ours import Ours, impls
from .peers import NOT_ASKED_FOR, Peer, Prepared, find, first_line
from .results import OURS, RATIOS, SM_90, Json, reason_of
from .suites import Run, table

PEER_SLACK = 10.0  # times what is allowed to us: a peer may round its scores to the inputs' dtype

METHOD = {
    "timing": "GPU time by CUDA events around replays of graphs of many launches, each after an uncounted replay of "
    "the same graph and before a rest as long as both; candidates in turns in one process, each round begins with the "
    "next one; us is the median, us_5_95 the 5th and 95th percentile over the rounds",
    "families": "ours: the kernels for compute capability 8.0 and later; sm_90: those for Hopper alone, where they are",
    "ratio": "the peer's time over ours (ratio_sm_90: over that of sm_90) within a round: median and percentiles over "
    "the rounds; of sm_90: its time over ours",
    "inputs": "independent standard normal",
    "correctness": "before timing, three times up to 16 rows of the output against float64 (flashcore_drv.reference: "
    "twice the error of the same maths at the kernels' precision, plus one ulp), and no NaN in the whole poisoned "
    f"output; peers: {PEER_SLACK:g} times that",
    "flops": "4 · head_dim · visible scores; bytes: q, k, v read once, o written once",
}


class Checks:
    """Implementations on the tensors of a case, each held to the truth before anything else is done with it.

    Parameters
    ----------
    device : Device
        Where.
    peers : mapping of str to Peer
        By name.
    suite : str
        For messages.
    """

    def __init__(self, device: Device, peers: Mapping[str, Peer], suite: str) -> None:
        self.device, self.peers, self.suite = device, peers, suite
        self.stream = Stream(device)

    def own(self, sets: Sequence[Tensors], truth: Truth) -> tuple[dict[str, Ours], dict[str, float], dict[str, Json]]:
        """Our families that take the case and are right, their largest errors, and why the others are not timed."""
        found: dict[str, Ours] = {}
        errors: dict[str, float] = {}
        reasons: dict[str, Json] = {}
        for member in impls(self.device):
            try:
                ours = Ours(sets, self.device, self.stream, member)
            except (fc.Unsupported, fc.KernelImageError) as error:
                if member == OURS:
                    raise
                reasons[member] = {"refused": first_line(error)}
                continue
            wrong, errors[member] = self.check_ours(ours, truth)
            if wrong:
                reasons[member] = {"wrong": wrong}
            else:
                found[member] = ours
        return found, errors, reasons

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
            print(f"{self.suite}: {name} refused: {first_line(error)}", file=sys.stderr)


class Bench(Checks):
    """What every row of a run is measured with: the device, a stream, the timer, the peers."""

    def __init__(self, run: Run, default_peers: Sequence[str], timer: Timer | None = None) -> None:
        assert run.device is not None
        found, run.record.peers = find(run.peers if run.peers is not None else default_peers)
        super().__init__(run.device, found, run.record.suite)
        self.run = run
        self.timer: Timer = timer or EventTimer(self.stream)
        self.replay_us = 2000.0 if run.quick else 3000.0
        if run.record.ceilings is None:
            run.record.ceilings = ceilings(self.device, self.timer)

    def row(self, case: Case, sets: Sequence[Tensors], rotated: Sequence[Tensors] = ()) -> Json:
        """A row of the results: our families and the peers on `sets`, in turns.

        Parameters
        ----------
        sets : sequence of Tensors
            What launches read, in turns.
        rotated : sequence of Tensors
            More sets than the L2 holds, for a second measurement.
        """
        truth = Truth(sets[0])
        collect_garbage()
        row: Json = {"id": case.id, "problem": case.to_json(), "flops": case.flops, "bytes": case.nbytes}
        own, errors, reasons = self.own(sets, truth)
        if OURS not in own:
            return row | reasons | {"peers": {}}
        members: dict[str, Json] = {}
        repeat = self.repeat(own[OURS])
        samples: dict[str, Sample] = {name: ours.sample(self.timer, repeat) for name, ours in own.items()}
        alive = []  # a graph does not own the memory that it works on
        for name, prepared, error in self.checked_peers(sets, truth, members):
            with self.refusals(name, members):
                alive.append(prepared)
                samples[name] = prepared.sample(self.timer, repeat)
                errors[name] = error
        times = interleaved(samples, self.run.rounds)
        row |= reasons | timed_families(times, errors, row, {name: ours.stem for name, ours in own.items()})
        if SM_90 in own:
            row["auto"] = own[OURS].member_by_itself(sets[0])
        for name in samples.keys() - own.keys():
            members[name] = timed(times[name], errors[name], row, {x: times[x] for x in own})
        if rotated:
            self.add_rotated(row, members, rotated, list(samples))
        return row | {"peers": {name: members[name] for name in self.peers if name in members}}

    def repeat(self, ours: Ours) -> int:
        """Launches of ours that fill a replay."""
        once = self.timer(lambda stream: ours.launch(), 1)
        once()
        return repeat_for(once(), self.replay_us)

    def add_rotated(self, row: Json, members: dict[str, Json], sets: Sequence[Tensors], names: list[str]) -> None:
        """The same with inputs that are not in the L2."""
        own = {name: Ours(sets, self.device, self.stream, name) for name in names if name in RATIOS}
        repeat = max(self.repeat(own[OURS]) // len(sets), 1) * len(sets)
        samples = {name: ours.sample(self.timer, repeat) for name, ours in own.items()}
        alive = []
        for name in names:
            if name not in own:
                with contextlib.suppress(Exception):  # what takes no second set has its time with one
                    alive.append(self.peers[name].prepare(sets, self.stream))
                    samples[name] = alive[-1].sample(self.timer, repeat)
        times = interleaved(samples, self.run.rounds)
        for name, values in times.items():
            target = row[name] if name in own else members[name]
            target["rotated"] = as_members("us", values)
            if name not in own:
                target["rotated"] |= ratios_to(values, {x: times[x] for x in own})
            elif name != OURS:
                target["rotated"] |= ratios_to(values, {OURS: times[OURS]})

    def finish(self) -> None:
        """Note the GPU's state at the end."""
        gc.enable()
        self.run.record.conditions["after"] = gpu_state(self.device)
        self.run.record.save()


def collect_garbage() -> None:
    """Collect now, and not again by itself: what PyTorch destroys during a capture of ours makes it invalid."""
    gc.disable()
    gc.collect()


def timed(values: Sequence[float], error: float, row: Json, own: Mapping[str, Sequence[float]] | None = None) -> Json:
    """Time, spread, error and rates; with the times of our families the ratios to them too."""
    found = as_members("us", values)
    us = found["us"]
    found |= {
        "max_error": rounded(error),
        "tflops": rounded(row["flops"] / us / 1e6) if row["flops"] else None,
        "gb_s": rounded(row["bytes"] / us / 1e3) if row["bytes"] else None,
    }
    return found | ratios_to(values, own or {})


def ratios_to(values: Sequence[float], own: Mapping[str, Sequence[float]]) -> Json:
    """The members that say how many times each of our families these times are."""
    return {key: x for name, us in own.items() for key, x in as_members(RATIOS[name], paired(values, us)).items()}


def timed_families(
    times: Mapping[str, Sequence[float]], errors: Mapping[str, float], row: Json, stems: Mapping[str, str | None]
) -> Json:
    """The members of our families that were timed."""
    return {
        name: {"stem": stem} | timed(times[name], errors[name], row, None if name == OURS else {OURS: times[OURS]})
        for name, stem in stems.items()
    }


# ---- for people


def cell(member: Json | None, name: str = "ratio", digits: int = 2) -> str:
    """A median with its spread, or why there is none."""
    if not member or name not in member:
        return reason_of(member or {}) or "-"
    low, high = member[f"{name}_5_95"]
    return f"{member[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def lines(found: Json) -> list[str]:
    """The table of a timed suite: our times, their share of the ceilings, and how much longer each peer takes."""
    limits = {name: x for name, x in found["ceilings"].items() if not isinstance(x, dict)}
    here = [name for name, peer in found["peers"].items() if "absent" not in peer]
    here = [name for name in here if any(name in row["peers"] for row in found["rows"])]
    families = [OURS, SM_90] if any(SM_90 in row for row in found["rows"]) else [OURS]
    mma, copy = limits.get("mma_sync_tflops"), limits.get("copy_tb_s")
    head = ["row", "us", "TFLOP/s", "of mma.sync", "GB/s", "of copy", "error", *(f"x {name}" for name in here)]
    if SM_90 in families:
        head += ["sm_90: us", "TFLOP/s", "error", *(f"x {name}" for name in here)]
    rows = []
    for row in found["rows"]:
        ours = row[OURS]
        if "wrong" in ours:
            rows.append([row["id"], "WRONG", *["-"] * (len(head) - 2)])
            continue
        rate, bandwidth = ours["tflops"], ours["gb_s"]
        cells = [
            row["id"],
            cell(ours, "us"),
            "-" if rate is None else f"{rate:.0f}",
            "-" if rate is None or mma is None else f"{100 * rate / mma:.0f} %",
            f"{bandwidth:.0f}",
            "-" if copy is None else f"{bandwidth / copy / 10:.0f} %",
            f"{ours['max_error']:.1e}",
            *(cell(row["peers"].get(name)) for name in here),
        ]
        if SM_90 in families:
            hopper = row.get(SM_90, {})
            cells += [cell(hopper, "us")]
            cells += [f"{hopper['tflops']:.0f}", f"{hopper['max_error']:.1e}"] if "us" in hopper else ["-", "-"]
            cells += [cell(row["peers"].get(name), RATIOS[SM_90]) for name in here]
        rows.append(cells)
    return [*heading(found), *table(head, rows), "", *headlines(found), *notes(found)]


def headlines(found: Json) -> list[str]:
    """For each of our families the ratio to what it is held to."""
    rows = whole(found["rows"])
    said = []
    for member, peers in HEADLINES.items():
        for names in [(name,) for name in found["peers"]] + ([peers] if len(peers) > 1 else []):
            if values := ratios(rows, names, member):
                what = names[0] if len(names) == 1 else f"the better of {', '.join(names)}"
                said.append(
                    f"{member}: x {what}: geometric mean {geometric_mean(values):.3f}, least {min(values):.2f}, "
                    f"largest {max(values):.2f} of {len(values)}"
                )
    return said


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
        for who, member in {**{name: row[name] for name in RATIOS if name in row}, **row["peers"]}.items():
            if kind := reason_of(member):
                reasons.setdefault(f"{who} {kind}: {member[kind]}", []).append(row["id"])
    return [f"{reason} ({', '.join(ids)})" for reason, ids in reasons.items()]
