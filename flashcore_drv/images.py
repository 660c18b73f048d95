"""Compiled kernels on disk, found by stem, loaded once for each GPU and checked against the host's structs."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from . import abi
from .catalog import KernelSpec
from .errors import KernelImageError
from .runtime import Device, Kernel, Module, is_emulated

_LOCK = threading.Lock()


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel on a GPU and what it says about itself (``cuda/abi/kernel_info.h``)."""

    spec: KernelSpec
    kernel: Kernel
    threads: int
    tile_rows: int
    tile_cols: int
    tiles_a_block: int


def build_folder() -> Path:
    """Where ``make cubin`` puts kernels: ``build/`` of the repository, or ``FLASHCORE_BUILD``."""
    return Path(os.environ.get("FLASHCORE_BUILD") or Path(__file__).resolve().parent.parent / "build")


def image_path(spec: KernelSpec, arch: int, emulated: bool) -> Path:
    """The file of a kernel for a GPU of compute capability `arch`: its own cubin, else the nearest of the same major.

    Raises
    ------
    KernelImageError
        If there is none: what is missing, what there is, and the command that builds it.
    """
    if emulated:
        candidates = [build_folder() / "ptx" / f"{spec.stem}.ptx"]
    else:
        cubins = build_folder() / "cubin"
        candidates = [cubins / f"sm_{a}" / f"{spec.stem}.cubin" for a in range(arch, arch // 10 * 10 - 1, -1)]
    for path in candidates:
        if path.is_file():
            return path
    there = sorted(p.parent.name for p in (build_folder() / "cubin").glob(f"*/{spec.stem}.cubin"))
    raise KernelImageError(
        f"{candidates[0]} is missing (built for: {', '.join(there) or 'nothing'}); "
        f"build it: make cubin ARCHS={spec.arch if emulated else arch}"
    )


def load(spec: KernelSpec, device: Device) -> LoadedKernel:
    """The kernel on this GPU, loaded at the first call.

    Raises
    ------
    KernelImageError
        If the file is missing, was built from other structs, or takes other parameters.
    DriverError
        If the driver refuses the file.
    """
    with _LOCK:
        return _load(spec, device)


@functools.cache
def _load(spec: KernelSpec, device: Device) -> LoadedKernel:
    path = image_path(spec, device.arch, is_emulated())
    module = Module(device, path.read_bytes())
    info = {k: int(v) for k, v in abi.KERNEL_INFO.unpack(module.read_global(f"{spec.stem}_info")).items()}
    if info["abi_hash"] != abi.ABI_HASH:
        raise KernelImageError(
            f"{path} is stale: it was built for ABI {info['abi_hash']:#018x}, this package has {abi.ABI_HASH:#018x}; "
            f"rebuild it: make cubin ARCHS={device.arch}"
        )
    kernel = module.kernel(spec.stem, info["shared_bytes"])
    found = kernel.parameter_bytes
    if found != spec.params.size or info["params_bytes"] != spec.params.size:
        raise KernelImageError(
            f"{path} takes {found} bytes of parameters, this package passes {spec.params.name} of {spec.params.size}; "
            f"rebuild it: make cubin ARCHS={device.arch}"
        )
    return LoadedKernel(spec, kernel, info["threads"], info["tile_rows"], info["tile_cols"], info["tiles_a_block"])
