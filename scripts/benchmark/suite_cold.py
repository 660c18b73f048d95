"""What a fresh process waits for: the import, and the first result of the reference problem."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import flashcore_drv

from . import measure
from .cases import Case, Tensors, Truth, count_nan
from .conditions import SEED, gpu_state
from .results import Json
from .suites import Run, table
from .timed import PEER_SLACK

CASE = Case("reference", 1, 8, 8, 512, 512, 64)
STEPS = ("interpreter", "import", "first_result")
"""Python itself runs, the package is imported, the result of the first call is on the host."""

HOME = Path(flashcore_drv.__file__).resolve().parent.parent
INSTALLED = "-packages" in HOME.name  # site-packages, dist-packages
OURS = "flashcore_drv"
PEERS = {"PyTorch": "torch", "JAX": "jax"}
WAYS = {
    "PyTorch": "import torch; scaled_dot_product_attention as it chooses",
    "JAX": 'import jax; jax.nn.dot_product_attention(implementation="cudnn"), XLA without preallocation',
}
TIMEOUT = 120  # seconds
SCRIPT = Path(__file__).resolve().parent / "cold_start.py"

NEEDS = "gpu"
METHOD = {
    "timing": "seconds from just before the process is started until it says that a step is done, by the system's "
    "monotonic clock; median; implementations in turns, each once before that so that files are in the page cache",
    "first result": "inputs from the host to the GPU, one call, the result back; checked against float64 afterwards, "
    f"peers with {PEER_SLACK:g} times what is allowed to ours",
    "package": f"flashcore_drv as {'installed' if INSTALLED else 'the working tree'}",
}
PACKAGES = tuple(PEERS.values())


def ids(quick: bool) -> list[str]:
    """One row a step."""
    return list(STEPS)


def run(run: Run) -> None:
    """Start every implementation again and again."""
    wanted = run.wanted(ids(run.quick))
    if not wanted:
        return
    rounds = 2 if run.quick else min(run.rounds, 6)
    names = [OURS]
    for peer, package in PEERS.items():
        if run.peers is not None and peer not in run.peers:
            continue
        try:
            run.record.peers[peer] = {"version": version(package), "how": WAYS[peer]}
            names.append(peer)
        except PackageNotFoundError:
            run.record.peers[peer] = {"absent": f"{package} is not installed"}
    with tempfile.TemporaryDirectory() as site:
        if run.wheel is not None:
            install(run.wheel, site)
        seconds, failures = sample(names, rounds, CASE, run, Path(site) if run.wheel is not None else None)
    for step in wanted:
        ours = seconds[OURS].get(step)
        row: Json = {"id": step, "peers": {}}
        row["ours"] = timed(ours) if ours and OURS not in failures else {"wrong": failures[OURS]["wrong"]}
        for peer in names[1:] if "seconds" in row["ours"] and step != "interpreter" else []:
            theirs = seconds[peer].get(step)
            if peer in failures or theirs is None:
                row["peers"][peer] = failures[peer]
            else:
                ratio = measure.as_members("ratio", measure.paired(theirs, ours or []))
                row["peers"][peer] = timed(theirs) | ratio
        run.record.add(row)
    if "after" in run.record.conditions:
        assert run.device is not None
        run.record.conditions["after"] = gpu_state(run.device)
        run.record.save()


def install(wheel: Path, folder: str) -> None:
    """A wheel of ours in an empty folder, without what it requires, which is here already."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir"]
    done = subprocess.run([*command, "--target", folder, str(wheel)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"error: {wheel} cannot be installed: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}"
        )


def environment(site: Path | None) -> dict[str, str]:
    """Of a process that imports the package from `site`, or else the one that is imported here."""
    found = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    path = [Path(x) for x in os.environ.get("PYTHONPATH", "").split(os.pathsep) if x]
    if site is None:
        path += [] if INSTALLED else [HOME]
    else:
        path = [site, *(x for x in path if x.resolve() != HOME)]
        found.pop("FLASHCORE_BUILD", None)  # the kernels are the wheel's
    return {**found, "PYTHONPATH": os.pathsep.join(map(str, path))}


def timed(seconds: list[float]) -> Json:
    """The members of an implementation."""
    return {**measure.as_members("seconds", seconds), "runs": len(seconds)}


def sample(
    names: list[str], rounds: int, case: Case, run: Run, site: Path | None
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Json]]:
    """Seconds by implementation and step, of processes in turns; and what is wrong with those that failed."""
    rng = np.random.default_rng(SEED)
    host = {name: rng.standard_normal(case.shapes[name]).astype(case.dtype.to_numpy()) for name in "qkv"}
    truth = Truth(Tensors(case, host, {}))
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    failures: dict[str, Json] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, x in host.items():
            np.save(Path(folder, name), x)
        turns = [f"{turn}: {name}" for turn in range(1 + rounds) for name in names]
        for label in run.progress(turns):
            turn, name = label.split(": ")
            if name in failures:
                continue
            steps, failure = start(name, folder, truth, site)
            if failure:
                failures[name] = failure
            elif turn != "0":
                for step, at in steps.items():
                    seconds[name].setdefault(step, []).append(at)
    return seconds, failures


def start(name: str, folder: str, truth: Truth, site: Path | None) -> tuple[dict[str, float], Json | None]:
    """One process: seconds until each step, and what is wrong with its result."""
    env = environment(site)
    result = Path(folder, "o.npy")
    result.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, SCRIPT, name, folder]
    failed = "wrong" if name == OURS else "refused"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {}, {failed: f"no result within {TIMEOUT} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {}, {failed: last}
    said = [words for line in done.stdout.splitlines() if len(words := line.split(maxsplit=1)) == 2]
    steps = {step: float(at) - began for step, at in said if step in STEPS}
    if missing := [step for step in STEPS if step not in steps]:
        return {}, {failed: f"the process says nothing of {', '.join(missing)}"}
    origin = dict(said).get("from")
    if name == OURS and site is not None and (origin is None or site.resolve() not in Path(origin).resolve().parents):
        return {}, {failed: f"the package was imported from {origin}, not from the wheel"}
    o = np.load(result)
    verdict = truth.verdict(lambda batch, head, rows: o[batch, head, rows])
    allowed = verdict.allowed * (1 if name == OURS else PEER_SLACK)
    if verdict.error > allowed or verdict.misplaced or count_nan(o):
        return {}, {"wrong": f"an error of {verdict.error:.2e}; allowed: {allowed:.2e}"}
    return steps, None


def lines(found: Json) -> list[str]:
    """Seconds of each step."""
    rows = []
    for row in found["rows"]:
        for name, x in {OURS: row["ours"], **row["peers"]}.items():
            cells: list[Any] = (
                [f"{x['seconds']:.2f}", f"{x.get('ratio', 1):.1f}"] if "seconds" in x else [*x.values(), ""]
            )
            rows.append([f"{row['id']} {name}", *cells])
    return table([found["conditions"]["method"]["package"], "s", "x ours"], rows)
