"""Results as data: what a file of results holds, how it is checked, loaded, extended row by row and saved.

A file is benchmarks/<gpu>/<date>-<suite>.json and has the members of :data:`ENVELOPE`. A row of a timed suite has those
of :data:`ROW`; a suite whose rows are of another kind names its check in :data:`ROW_CHECKS`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
OURS, SM_90 = "ours", "sm_90"
"""The members of a row with our times: of the kernels for compute capability 8.0 and later, and of Hopper's own, where
they were measured too. The latter are like a peer's: their ratio is to `ours`."""
RATIOS = {OURS: "ratio", SM_90: "ratio_sm_90"}
"""A peer's time over that of each of our families."""
SLOWDOWNS = {OURS: "slowdown", SM_90: "slowdown_sm_90"}
RATE_ERROR = 0.01  # of a rate against operations or bytes over time

Json = dict[str, Any]


class InvalidResults(ValueError):
    """A file of results that is not of the schema: where, and what is wrong."""


def fail(where: str, what: str) -> None:
    """Raise InvalidResults."""
    raise InvalidResults(f"{where}: {what}")


def is_number(x: object) -> bool:
    """Whether x is a finite int or float."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def check_members(where: str, found: object, required: Iterable[str], optional: Iterable[str] = ()) -> Json:
    """`found` as an object with exactly these members. Raises InvalidResults."""
    if not isinstance(found, dict):
        fail(where, f"{type(found).__name__}; an object is wanted")
    assert isinstance(found, dict)
    required = set(required)
    if missing := sorted(required - found.keys()):
        fail(where, f"lacks {', '.join(missing)}")
    if unknown := sorted(found.keys() - required - set(optional)):
        fail(where, f"has {', '.join(unknown)}, which the schema does not know")
    return found


def check_text(where: str, found: object) -> None:
    """Raise InvalidResults unless `found` is a text with something in it."""
    if not isinstance(found, str) or not found.strip():
        fail(where, f"{found!r}; a text is wanted")


def check_positive(where: str, found: object) -> None:
    """Raise InvalidResults unless `found` is a finite number above 0."""
    if not is_number(found) or not found > 0:  # type: ignore[operator]
        fail(where, f"{found!r}; a finite number above 0 is wanted")


def check_spread(where: str, found: Json, name: str) -> None:
    """Raise InvalidResults unless `name` is a positive median and `name`_5_95 are percentiles around it."""
    check_positive(f"{where}.{name}", found.get(name))
    spread = found.get(f"{name}_5_95")
    if not (isinstance(spread, list) and len(spread) == 2 and all(map(is_number, spread))):
        fail(f"{where}.{name}_5_95", f"{spread!r}; two numbers are wanted")
    if not spread[0] <= found[name] <= spread[1]:  # type: ignore[index]
        fail(f"{where}.{name}_5_95", f"{spread} does not hold the median {found[name]}")


# ---- conditions, ceilings, peers

STATE = ("sm_mhz", "memory_mhz", "temperature_c", "power_w", "throttle")
CONDITIONS = ("date", "commit", "sources", "python", "versions", "cpu", "quick", "seed", "method")
GPU_CONDITIONS = (*CONDITIONS, "gpu", "arch", "driver", "max_sm_mhz", "kernels", "rounds", "before", "after")
CEILINGS = ("gemm_tflops", "mma_sync_tflops", "copy_tb_s")


def check_state(where: str, found: object) -> None:
    """What nvidia-smi says of the GPU at one time; unknown values are null."""
    state = check_members(where, found, STATE)
    for name in STATE[:-1]:
        if state[name] is not None:
            check_positive(f"{where}.{name}", state[name])
    if state["throttle"] is not None and not (
        isinstance(state["throttle"], list) and all(isinstance(x, str) for x in state["throttle"])
    ):
        fail(f"{where}.throttle", f"{state['throttle']!r}; a list of reasons is wanted")


def check_conditions(found: object, on_gpu: bool) -> None:
    """Everything that a reader needs to repeat the numbers."""
    names = GPU_CONDITIONS if on_gpu else CONDITIONS
    conditions = check_members("conditions", found, names, set(GPU_CONDITIONS) - set(names))
    for name in ("date", "commit", "sources", "python", "cpu"):
        check_text(f"conditions.{name}", conditions[name])
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", conditions["date"]):
        fail("conditions.date", f"{conditions['date']!r}; YYYY-MM-DD is wanted")
    if not isinstance(conditions["quick"], bool):
        fail("conditions.quick", f"{conditions['quick']!r}; true or false is wanted")
    for name in ("versions", "method"):
        texts = conditions[name]
        if not isinstance(texts, dict) or not texts:
            fail(f"conditions.{name}", f"{texts!r}; an object with members is wanted")
        for key, text in texts.items():
            check_text(f"conditions.{name}.{key}", text)
    if on_gpu:
        for name in ("gpu", "arch", "driver", "kernels"):
            check_text(f"conditions.{name}", conditions[name])
        for name in ("before", "after"):
            check_state(f"conditions.{name}", conditions[name])
        check_positive("conditions.rounds", conditions["rounds"])


def check_ceilings(found: object) -> None:
    """Each limit a number, or why it is not there."""
    for name, value in check_members("ceilings", found, CEILINGS).items():
        if isinstance(value, dict):
            check_text(f"ceilings.{name}.absent", check_members(f"ceilings.{name}", value, ["absent"])["absent"])
        else:
            check_positive(f"ceilings.{name}", value)


def check_peers(found: object) -> set[str]:
    """The names of the peers that are there: each has a version and how it is called, or why it is absent."""
    present = set()
    if not isinstance(found, dict):
        fail("peers", f"{found!r}; an object is wanted")
    assert isinstance(found, dict)
    for name, peer in found.items():
        where = f"peers.{name}"
        if isinstance(peer, dict) and "absent" in peer:
            check_text(f"{where}.absent", check_members(where, peer, ["absent"])["absent"])
        else:
            for key, text in check_members(where, peer, ["version", "how"]).items():
                check_text(f"{where}.{key}", text)
            present.add(name)
    return present


# ---- rows

PROBLEM = (
    "batch", "num_heads", "num_heads_kv", "seqlen_q", "seqlen_k", "head_dim", "dtype", "causal", "layout", "varlen",
)  # fmt: skip
ROW = ("id", "problem", "flops", "bytes", "ours", "peers")
ROW_OPTIONS = (
    SM_90, "auto", "part", "scores", "base", "quoted",
    *(f"{name}{spread}" for name in SLOWDOWNS.values() for spread in ("", "_5_95")),
)  # fmt: skip
"""sm_90: our second family; auto: the one of both that attention() takes by itself; part: of the attention, if not all
of it; scores: what q and k make of them; slowdown: our time over that of the row with the id `base`, in the same
rounds; quoted: times from elsewhere, with where."""


def check_problem(where: str, found: object) -> None:
    """Sizes, dtype and mask of an attention problem."""
    problem = check_members(where, found, PROBLEM)
    for name in PROBLEM[:6]:
        if not isinstance(problem[name], int) or isinstance(problem[name], bool) or problem[name] < 1:
            fail(f"{where}.{name}", f"{problem[name]!r}; an integer of at least 1 is wanted")
    if problem["dtype"] not in ("float16", "bfloat16"):
        fail(f"{where}.dtype", f"{problem['dtype']!r}; float16 or bfloat16 is wanted")
    if not isinstance(problem["causal"], bool):
        fail(f"{where}.causal", f"{problem['causal']!r}; true or false is wanted")
    if problem["layout"] not in ("bshd", "bhsd", "packed"):
        fail(f"{where}.layout", f"{problem['layout']!r}; bshd, bhsd or packed is wanted")
    lengths = problem["varlen"]
    if (lengths is not None) != (problem["layout"] == "packed"):
        fail(f"{where}.varlen", f"{lengths!r} with layout {problem['layout']}")
    if lengths is not None and not (isinstance(lengths, list) and all(isinstance(n, int) and n > 0 for n in lengths)):
        fail(f"{where}.varlen", f"{lengths!r}; a list of lengths is wanted")


def check_times(where: str, found: Json, row: Json, ratios: Sequence[str], extra: Iterable[str] = ()) -> None:
    """Time, spread, error and rates of one implementation, and its ratios to ours."""
    timed = [member for name in ("us", *ratios) for member in (name, f"{name}_5_95")]
    check_members(where, found, (*timed, "max_error", "tflops", "gb_s", *extra), ["rotated"])
    for name in ("us", *ratios):
        check_spread(where, found, name)
    check_error(where, found, "max_error")
    for name, amount, per_us in (("tflops", row["flops"], 1e6), ("gb_s", row["bytes"], 1e3)):
        if amount is None or amount == 0:
            if found[name] is not None:
                fail(f"{where}.{name}", f"{found[name]!r} without an amount")
        elif not is_number(found[name]) or abs(found[name] * found["us"] * per_us / amount - 1) > RATE_ERROR:
            fail(f"{where}.{name}", f"{found[name]!r} is not {amount} in {found['us']} us")
    if "rotated" in found:
        rotated = check_members(f"{where}.rotated", found["rotated"], timed)
        for name in ("us", *ratios):
            check_spread(f"{where}.rotated", rotated, name)


def check_error(where: str, found: Json, name: str) -> None:
    """Raise InvalidResults unless a member is a number of at least 0."""
    if not is_number(found[name]) or found[name] < 0:
        fail(f"{where}.{name}", f"{found[name]!r}; a number of at least 0 is wanted")


def reason_of(found: Json) -> str | None:
    """The member that says why an implementation was not measured: it is wrong, or does not take the case."""
    return next((name for name in ("wrong", "refused") if name in found), None)


def check_reason(where: str, found: Json) -> bool:
    """Whether there is a reason instead of a measurement; then it must be a text."""
    reason = reason_of(found)
    if reason is not None:
        check_text(f"{where}.{reason}", check_members(where, found, [reason])[reason])
    return reason is not None


def check_present(where: str, row: Json, present: set[str]) -> None:
    """Raise InvalidResults for a peer of a row that is not there."""
    if unknown := sorted(row["peers"].keys() - present):
        fail(f"{where}.peers", f"{', '.join(unknown)}: not among the peers that are there")


def check_row(where: str, found: object, present: set[str]) -> None:
    """A problem with our times and the peers', each with its spread; or what is wrong with a result."""
    row = check_members(where, found, ROW, ROW_OPTIONS)
    check_problem(f"{where}.problem", row["problem"])
    for name in ("flops", "bytes"):
        if row[name] is not None and (not isinstance(row[name], int) or row[name] < 0):
            fail(f"{where}.{name}", f"{row[name]!r}; an integer or null is wanted")
    ours = row[OURS]
    if "wrong" in ours:
        check_reason(f"{where}.{OURS}", ours)
        if row["peers"]:
            fail(f"{where}.peers", "timed beside a wrong result")
    else:
        check_times(f"{where}.{OURS}", ours, row, (), ["stem"])
        if ours["stem"] is not None:
            check_text(f"{where}.{OURS}.stem", ours["stem"])
    timed = [OURS]
    if SM_90 in row and not check_reason(f"{where}.{SM_90}", row[SM_90]):
        timed.append(SM_90)
        check_times(f"{where}.{SM_90}", row[SM_90], row, [RATIOS[OURS]], ["stem"])
        check_text(f"{where}.{SM_90}.stem", row[SM_90]["stem"])
    if row.get("auto", OURS) not in timed:
        fail(f"{where}.auto", f"{row['auto']!r}; one of {', '.join(timed)} is wanted")
    if ("slowdown" in row) != ("base" in row):
        fail(where, "slowdown and base go together")
    for member, slowdown in SLOWDOWNS.items():
        if slowdown in row:
            check_spread(where, row, slowdown)
            if member not in timed:
                fail(f"{where}.{slowdown}", f"without a time of {member}")
    for name, quoted in row.get("quoted", {}).items():
        check_members(f"{where}.quoted.{name}", quoted, ["us", "where"])
        check_positive(f"{where}.quoted.{name}.us", quoted["us"])
        check_text(f"{where}.quoted.{name}.where", quoted["where"])
    check_present(where, row, present)
    for name, peer in row["peers"].items():
        if not check_reason(f"{where}.peers.{name}", peer):
            check_times(f"{where}.peers.{name}", peer, row, [RATIOS[member] for member in timed])


ERRORS = ("max_error", "rms_error")


def check_accuracy_row(where: str, found: object, present: set[str]) -> None:
    """Errors of every implementation on the same inputs."""
    row = check_members(where, found, ("id", "problem", OURS, "peers"), [SM_90])
    check_problem(f"{where}.problem", row["problem"])
    check_present(where, row, present)
    own = {name: row[name] for name in (OURS, SM_90) if name in row}
    for name, errors in {**own, **{f"peers.{peer}": x for peer, x in row["peers"].items()}}.items():
        if check_reason(f"{where}.{name}", errors):
            continue
        check_members(f"{where}.{name}", errors, (*ERRORS, *(("stem",) if name in own else ())))
        for error in ERRORS:
            check_error(f"{where}.{name}", errors, error)


def check_emulator_row(where: str, found: object, present: set[str]) -> None:
    """Host seconds of one attention on the emulator."""
    row = check_members(where, found, ("id", "problem", "impl", "first_seconds", "seconds", "target_seconds"))
    check_problem(f"{where}.problem", row["problem"])
    check_text(f"{where}.impl", row["impl"])
    for name in ("first_seconds", "seconds", "target_seconds"):
        check_positive(f"{where}.{name}", row[name])


def check_implementations(where: str, row: Json, present: set[str], check: Callable[[str, Json, bool], None]) -> None:
    """Ours and the peers of a row: each what `check` wants (told whether it is a peer), or why there is nothing."""
    check_present(where, row, present)
    for name, found in {OURS: row[OURS], **{f"peers.{peer}": x for peer, x in row["peers"].items()}}.items():
        if not check_reason(f"{where}.{name}", found):
            check(f"{where}.{name}", found, name != OURS)


HOST_WAYS = ("bare_launch", "graph_replay", "planned", "one_shot", "validation")
"""How a call is made: the driver's function itself, a graph of a call, a plan, attention(); and a part of the last."""
MORE_HOST_WAYS = ("one_shot_cupy", "one_shot_jax", "graph_replay_sm_90", "planned_sm_90", "one_shot_sm_90")
"""The same on arrays of others, and with our second family: where they are, or why they are not."""


def check_host_row(where: str, found: object, present: set[str]) -> None:
    """Host microseconds of a call, for every way of ours also as a multiple of the bare launch."""
    row = check_members(where, found, ("id", "problem", "ours", "peers"))
    check_problem(f"{where}.problem", row["problem"])

    def check(at: str, timed: Json, is_peer: bool) -> None:
        if is_peer:
            ratios = ("ratio", "ratio_planned")
            check_members(at, timed, ("us", "us_5_95", *ratios, *(f"{x}_5_95" for x in ratios)))
            for name in ("us", *ratios):
                check_spread(at, timed, name)
            return
        for way, times in check_members(at, timed, HOST_WAYS, MORE_HOST_WAYS).items():
            if way in MORE_HOST_WAYS and check_reason(f"{at}.{way}", times):
                continue
            multiple = () if way == "bare_launch" else ("times_bare",)
            check_members(f"{at}.{way}", times, [m for x in ("us", *multiple) for m in (x, f"{x}_5_95")])
            for name in ("us", *multiple):
                check_spread(f"{at}.{way}", times, name)

    check_implementations(where, row, present, check)


def check_cold_row(where: str, found: object, present: set[str]) -> None:
    """Seconds from the start of a fresh process until a step."""

    def check(at: str, timed: Json, is_peer: bool) -> None:
        names = ("seconds", "ratio") if is_peer else ("seconds",)
        check_members(at, timed, ["runs", *(m for x in names for m in (x, f"{x}_5_95"))])
        for name in names:
            check_spread(at, timed, name)
        check_positive(f"{at}.runs", timed["runs"])

    check_implementations(where, check_members(where, found, ("id", "ours", "peers")), present, check)


def check_size_row(where: str, found: object, present: set[str]) -> None:
    """Bytes on disk, package by package."""

    def check(at: str, size: Json, is_peer: bool) -> None:
        check_members(at, size, ("bytes", "packages", *(("ratio",) if is_peer else ())))
        for name, nbytes in size["packages"].items():
            if not isinstance(nbytes, int) or nbytes < 0:
                fail(f"{at}.packages.{name}", f"{nbytes!r}; an integer is wanted")
        if size["bytes"] != sum(size["packages"].values()) or not size["bytes"]:
            fail(f"{at}.bytes", f"{size['bytes']!r} is not the sum of the packages")
        if is_peer:
            check_positive(f"{at}.ratio", size["ratio"])

    check_implementations(where, check_members(where, found, ("id", "ours", "peers")), present, check)


def check_quick_row(where: str, found: object, present: set[str]) -> None:
    """Seconds that a suite took with --quick, and its rows."""
    row = check_members(where, found, ("id", "seconds", "rows"))
    for name in ("seconds", "rows"):
        check_positive(f"{where}.{name}", row[name])


RowCheck = Callable[[str, object, set[str]], None]
ROW_CHECKS: dict[str, RowCheck] = {
    "reference": check_row,
    "forward": check_row,
    "small": check_row,
    "cliff": check_row,
    "accuracy": check_accuracy_row,
    "emulator": check_emulator_row,
    "host": check_host_row,
    "cold": check_cold_row,
    "size": check_size_row,
    "quick": check_quick_row,
}
"""What a row of each suite must be: a function of where it is, the row, and the names of the peers that are there."""

ON_GPU = {"reference", "forward", "small", "cliff"}
"""Suites that time kernels: their conditions name the GPU, and the ceilings are measured in the same run."""

BESIDE_GPU = {"accuracy", "host", "cold", "quick"}
"""Suites that time the host, or nothing: their conditions name the GPU too."""

ENVELOPE = ("schema", "suite", "conditions", "peers", "rows", "skipped")


def validate(found: object) -> Json:
    """`found`, if it is of the schema.

    Raises
    ------
    InvalidResults
        Naming the member and what is wrong with it.
    """
    results = check_members("file", found, ENVELOPE, ["ceilings"])
    if results["schema"] != SCHEMA:
        fail("schema", f"{results['schema']!r}; {SCHEMA} is wanted")
    suite = results["suite"]
    if suite not in ROW_CHECKS:
        fail("suite", f"{suite!r}; known: {', '.join(ROW_CHECKS)}")
    check_conditions(results["conditions"], suite in ON_GPU | BESIDE_GPU)
    if (suite in ON_GPU) != ("ceilings" in results):
        fail("ceilings", "belong to the suites that time kernels, and to these alone")
    if suite in ON_GPU:
        check_ceilings(results["ceilings"])
    present = check_peers(results["peers"])
    if not isinstance(results["rows"], list):
        fail("rows", "no list")
    ids: set[str] = set()
    for i, row in enumerate(results["rows"]):
        name = row.get("id") if isinstance(row, dict) else None
        check_text(f"rows[{i}].id", name)
        assert name is not None
        if name in ids:
            fail(f"rows[{i}].id", f"{name!r} is there twice")
        ids.add(name)
        ROW_CHECKS[suite](f"rows[{name}]", row, present)
    for i, row in enumerate(results["rows"]):
        if row.get("base", row["id"]) not in ids:
            fail(f"rows[{i}].base", f"{row['base']!r} is no row")
    if not isinstance(results["skipped"], dict):
        fail("skipped", "no object")
    for name, reason in results["skipped"].items():
        check_text(f"skipped.{name}", reason)
        if name in ids:
            fail(f"skipped.{name}", "is a row too")
    return results


# ---- files


def folder_of(gpu: str) -> str:
    """The folder of a GPU's results: nvidia-h200 for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def load(path: Path) -> Json:
    """The results in a file. Raises InvalidResults, also for what is no JSON."""
    try:
        return validate(json.loads(path.read_text(), parse_constant=lambda x: fail(str(path), f"{x} is no number")))
    except json.JSONDecodeError as error:
        raise InvalidResults(f"{path}: {error}") from None
    except InvalidResults as error:
        raise InvalidResults(f"{path}: {error}") from None


RESUMABLE = (
    "commit", "sources", "versions", "cpu", "quick", "seed", "method", "gpu", "arch", "driver", "kernels", "rounds",
)  # fmt: skip
"""Conditions that must be the same for a row to be taken over from an earlier run: all but times and states."""


def wrong_members(row: Json) -> list[str]:
    """Which of our families has a wrong result in a row."""
    return [name for name in (OURS, SM_90) if "wrong" in row.get(name, {})]


class Record:
    """The results of one suite while they are made, saved after every row where there is a file.

    Parameters
    ----------
    suite : str
        Its name.
    conditions : mapping
        What :func:`check_conditions` wants; a state "after" is set by :meth:`finish`.
    path : Path, optional
        The file. Rows that are there, measured under the same :data:`RESUMABLE` conditions, are taken over.

    Attributes
    ----------
    rows : dict of str to row
        By id.
    resumed : int
        Rows that were taken over.
    """

    def __init__(self, suite: str, conditions: Mapping[str, Any], path: Path | None = None) -> None:
        self.suite, self.conditions, self.path = suite, dict(conditions), path
        self.peers: Json = {}
        self.ceilings: Json | None = None
        self.rows: dict[str, Json] = {}
        self.skipped: dict[str, str] = {}
        if path is not None and path.is_file():
            self._resume(path)
        self.resumed = len(self.rows)

    def _resume(self, path: Path) -> None:
        try:
            old = load(path)
        except InvalidResults:
            return
        was = old["conditions"]
        if old["suite"] == self.suite and all(was.get(c) == self.conditions.get(c) for c in RESUMABLE):
            self.rows = {row["id"]: row for row in old["rows"] if not wrong_members(row)}
            self.peers, self.ceilings = old["peers"], old.get("ceilings")
            if "before" in was:
                self.conditions["before"] = was["before"]

    def add(self, row: Json) -> None:
        """Take a row, and save."""
        self.rows[row["id"]] = row
        self.save()

    def skip(self, name: str, reason: str) -> None:
        """Note why a row is not measured."""
        self.skipped[name] = reason

    def to_json(self) -> Json:
        """The file's content, checked. Raises InvalidResults."""
        found: Json = {"schema": SCHEMA, "suite": self.suite, "conditions": self.conditions}
        if self.ceilings is not None:
            found["ceilings"] = self.ceilings
        found |= {"peers": self.peers, "rows": list(self.rows.values()), "skipped": self.skipped}
        return validate(found)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(text + "\n")
        os.replace(part, self.path)
