"""What is here: driver, GPUs, kernels, versions; and what would be selected for a problem."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import __version__, abi, images
from .dispatch import select
from .dtypes import BF16, F16
from .errors import InvalidArgument, KernelImageError, Unsupported
from .plans import ArraySpec, expected
from .problem import Problem
from .runtime import Device, DriverError, NoDriverError, driver, is_emulated
from .validation import make_problem

DTYPES = {"float16": F16, "bfloat16": BF16}


def problem_of(text: str, dtype: str = "float16", causal: bool = False) -> Problem:
    """The problem of C-contiguous arrays that ``batch,heads,seqlen,head_dim`` describes.

    Parameters
    ----------
    text : str
        For example ``1,8,512,64`` or ``4,32/8,1/1000,128``: heads may be
        ``num_heads/num_heads_kv``, the length ``seqlen_q/seqlen_k`` and head_dim ``head_dim/head_dim_v``.
    dtype : str
        A key of :data:`DTYPES`.
    causal : bool
        As of :func:`flashcore_drv.attention`.

    Raises
    ------
    InvalidArgument
        For what is no problem.
    """
    parts = [part.split("/") for part in text.split(",")]
    if len(parts) != 4 or len(parts[0]) > 1 or any(len(p) > 2 or not all(n.isdecimal() for n in p) for p in parts):
        raise InvalidArgument(f"problem {text!r}; allowed: B,H,S,D or B,H/H_KV,S_Q/S_K,D/D_V, such as 1,32/8,512,64")
    (batch, _), (heads, heads_kv), (seqlen_q, seqlen_k), (d, d_v) = ((int(p[0]), int(p[-1])) for p in parts)
    shapes = {
        "q": (batch, seqlen_q, heads, d),
        "k": (batch, seqlen_k, heads_kv, d),
        "v": (batch, seqlen_k, heads_kv, d_v),
        "out": (batch, seqlen_q, heads, d_v),
    }
    q, k, v, out = (expected(ArraySpec(shape, "float16"), name)[0] for name, shape in shapes.items())
    # bfloat16 only now: selection needs no NumPy dtype of it, which would need a package
    return replace(make_problem(q, k, v, out, causal=causal), dtype=DTYPES[dtype])


def collect(problem: Problem | None = None) -> dict[str, Any]:
    """All of it, ready for JSON.

    Returns
    -------
    dict
        ``versions``, ``driver`` (with ``error`` if there is none), ``devices``, ``kernels`` and, for a problem,
        ``selected``: for each device the kernels in the order in which they run, or why there is none.
    """
    found: dict[str, Any] = {"versions": versions(), "driver": {}, "devices": [], "kernels": kernels()}
    try:
        number = int(driver.call("cuDriverGetVersion"))
        found["driver"] = {
            "kind": "emulator" if is_emulated() else "cuda",
            "cuda": f"{number // 1000}.{number % 1000 // 10}",
        }
        found["devices"] = [device(ordinal) for ordinal in range(Device.count())]
        if problem is not None:
            found["selected"] = [selection(problem, Device.get(d["ordinal"])) for d in found["devices"]]
    except (NoDriverError, DriverError) as error:
        found["driver"]["error"] = str(error)
    return found


def versions() -> dict[str, str]:
    """Of this package and of what it runs on."""
    found = {"flashcore_drv": __version__, "abi": f"{abi.ABI_HASH:#018x}", "python": platform.python_version()}
    for name in ("cuda-bindings", "numpy", "ml_dtypes"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device(ordinal: int) -> dict[str, Any]:
    """A GPU, without making a context on it."""
    handle = driver.call("cuDeviceGet", ordinal)

    def attribute(name: str) -> int:
        enum = driver.module().CUdevice_attribute
        return int(driver.call("cuDeviceGetAttribute", getattr(enum, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))

    major, minor = attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")
    name: bytes = driver.call("cuDeviceGetName", 256, handle)
    return {
        "ordinal": ordinal,
        "name": name.split(b"\0")[0].decode(),
        "arch": f"sm_{10 * major + minor}",
        "multiprocessors": attribute("MULTIPROCESSOR_COUNT"),
        "memory_bytes": int(driver.call("cuDeviceTotalMem", handle)),
    }


def kernels() -> dict[str, Any]:
    """Where kernels are loaded from, and how many there are for each arch (``manifest.json``) and for the emulator."""
    folder = images.build_folder()
    chosen = "FLASHCORE_BUILD" if os.environ.get("FLASHCORE_BUILD") else "build"
    if folder == images.INSTALLED:
        chosen = "wheel"
    found: dict[str, Any] = {"from": chosen, "folder": str(folder), "archs": {}}
    for path in sorted((folder / "cubin").glob("sm_*"), key=lambda p: int(p.name.removeprefix("sm_"))):
        found["archs"][path.name] = cubins(path)
    found["ptx"] = len([*(folder / "ptx").glob("*.ptx"), *(folder / "ptx").glob("*.ptx.xz")])
    return found


def cubins(folder: Path) -> dict[str, Any]:
    """How many cubins a folder has, which compiler made them, and whether for the structs of this package."""
    count = len([*folder.glob("*.cubin"), *folder.glob("*.cubin.xz")])
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except FileNotFoundError:  # built by parts
        return {"kernels": count}
    return {"kernels": count, "nvcc": manifest["nvcc"], "stale": int(manifest["abi_hash"], 16) != abi.ABI_HASH}


def selection(problem: Problem, device: Device) -> dict[str, Any]:
    """What would run on a GPU, and from which files; ``error`` where nothing could."""
    found: dict[str, Any] = {"device": device.ordinal}
    try:
        specs = select(problem, device.arch, gpu=device)
        found["kernels"] = [spec.stem for spec in specs]
        found["files"] = [str(images.image_path(spec, device.arch, is_emulated())) for spec in specs]
    except (Unsupported, KernelImageError) as error:
        found["error"] = str(error)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    says = [f"{name} {version}" for name, version in found["versions"].items()]
    result = [", ".join(says)]
    serving = found["driver"]
    if "kind" in serving:
        served = "no GPU: the emulator serves (slow)" if serving["kind"] == "emulator" else "CUDA driver"
        result.append(f"{served}, CUDA {serving['cuda']}")
    if "error" in serving:
        result.append(f"error: {serving['error']}")
    for d in found["devices"]:
        memory = f"{d['memory_bytes'] / 2**30:.0f} GiB"
        result.append(f"device {d['ordinal']}: {d['name']}, {d['arch']}, {d['multiprocessors']} SMs, {memory}")
    there = found["kernels"]
    result.append(f"kernels from {there['from']}: {there['folder']}")
    for arch, has in there["archs"].items():
        compiler = f", nvcc {has['nvcc']}" if "nvcc" in has else ""
        result.append(f"  {arch}: {has['kernels']}{compiler}{', stale: build again' if has.get('stale') else ''}")
    result.append(f"  PTX, for the emulator: {there['ptx']}")
    for chosen in found.get("selected", []):
        what = chosen.get("error") or ", ".join(f"{s} ({f})" for s, f in zip(chosen["kernels"], chosen["files"]))
        result.append(f"selected on device {chosen['device']}: {what}")
    return result
