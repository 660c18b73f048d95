"""Conditions of a measurement: what a reader needs to repeat it, and to see whether it was disturbed."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flashcore_drv import images
from flashcore_drv.runtime import Device, is_emulated

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 0
PACKAGES = ("numpy", "cuda-bindings")

# Bits of clocks_event_reasons.active (NVML, nvmlClocksEventReasons): all but 1, the GPU is idle, and 2, clocks that an
# application asked for.
THROTTLE_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}


def output(*command: str) -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str:
    """The commit of the working tree, ``-dirty`` where files differ from it; ``COMMIT`` where it is not in git."""
    return os.environ.get("COMMIT") or output("git", "describe", "--always", "--dirty", "--exclude=*") or "unknown"


def sources(folders: Iterable[Path]) -> str:
    """A digest of files: the same digest is the same code, whatever the commit says."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".cu", ".cubin", ".ptx")):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def conditions(method: Mapping[str, str], *, quick: bool, packages: Iterable[str] = ()) -> dict[str, Any]:
    """What holds for any measurement.

    Parameters
    ----------
    method : mapping of str to str
        How it is measured, by aspect: timing, inputs, l2, correctness ….
    quick : bool
        Whether less is measured than a full run would.
    packages : iterable of str
        Distributions whose versions matter, beside NumPy and the bindings.
    """
    manifests = sorted((ROOT / "build" / "cubin").glob("*/manifest.json"))
    compilers = {json.loads(p.read_text())["nvcc"] for p in manifests}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "sources": sources([ROOT / "flashcore_drv", ROOT / "scripts" / "benchmark", images.build_folder() / "cubin"]),
        "python": platform.python_version(),
        "versions": package_versions((*PACKAGES, *packages)) | {"nvcc": ", ".join(sorted(compilers)) or "none"},
        "cpu": cpu_name(),
        "quick": quick,
        "seed": SEED,
        "method": dict(method),
    }


def gpu_state(device: Device) -> dict[str, Any]:
    """Clocks, temperature, power and reasons for lower clocks, as nvidia-smi says now; null where it does not."""
    names = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")
    query = f"--query-gpu={','.join(names)}"
    line = output("nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={bus_id(device)}")
    return parse_state(line)


def parse_state(line: str | None) -> dict[str, Any]:
    """The members of a line of nvidia-smi."""
    words = [x.strip() for x in line.split(",")] if line else [""] * 5
    numbers: list[float | None] = []
    for word in words[:4]:
        try:
            numbers.append(float(word))
        except ValueError:  # "[N/A]"
            numbers.append(None)
    try:
        bits = int(words[4], 16)
        throttle: list[str] | None = [reason for bit, reason in THROTTLE_REASONS.items() if bits & bit]
    except ValueError:
        throttle = None
    return {**dict(zip(("sm_mhz", "memory_mhz", "temperature_c", "power_w"), numbers)), "throttle": throttle}


def bus_id(device: Device) -> str:
    """The GPU's PCI address, by which nvidia-smi finds it whatever CUDA_VISIBLE_DEVICES says."""
    return "{:08x}:{:02x}:{:02x}.0".format(*(device.attribute(f"PCI_{x}_ID") for x in ("DOMAIN", "BUS", "DEVICE")))


def gpu_conditions(device: Device, *, rounds: int) -> dict[str, Any]:
    """What holds, beside :func:`conditions`, for a measurement of kernels; "after" is to be set when it is over."""
    state = gpu_state(device)
    return {
        "gpu": device.name,
        "arch": f"sm_{device.arch}",
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={bus_id(device)}")
        or "unknown",
        "max_sm_mhz": device.attribute("CLOCK_RATE") / 1000,
        "kernels": "on the emulator"
        if is_emulated()
        else f"compute_{89 if device.arch >= 89 else 80} PTX assembled for sm_{device.arch}",
        "rounds": rounds,
        "before": state,
        "after": state,
    }
