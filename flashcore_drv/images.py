"""Compiled kernels on disk, found by stem, loaded once for each GPU and checked against the host's structs."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass, fields
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
    box_rows_q: int
    box_rows_kv: int
    blocks_an_sm: int


INSTALLED = Path(__file__).resolve().parent / "kernels"
"""The kernels that a wheel carries (``make wheel``); a repository has none there."""


def build_folder() -> Path:
    """Where kernels are: ``FLASHCORE_BUILD``, else the wheel's own, else ``build/`` of the repository (``make cubin``).

    Below it are ``cubin/sm_XX/`` and ``ptx/``, with a file a kernel, as compiled or compressed (``.xz``).
    """
    if given := os.environ.get("FLASHCORE_BUILD"):
        return Path(given)
    return INSTALLED if INSTALLED.is_dir() else INSTALLED.parent.parent / "build"


def read_image(path: Path) -> bytes:
    """The bytes of a kernel, decompressed if its file is.

    Raises
    ------
    KernelImageError
        If a compressed file is damaged.
    """
    if path.suffix != ".xz":
        return path.read_bytes()
    import lzma  # not before it is needed

    try:
        return lzma.decompress(path.read_bytes(), lzma.FORMAT_XZ)
    except lzma.LZMAError as error:
        raise KernelImageError(f"{path} is damaged ({error}); install flashcore_drv again") from error


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
        for found in (path, path.with_name(f"{path.name}.xz")):
            if found.is_file():
                return found
    cubins = build_folder() / "cubin"
    there = {p.parent.name for end in ("", ".xz") for p in cubins.glob(f"*/{spec.stem}.cubin{end}")}
    raise KernelImageError(
        f"{candidates[0]} is missing (built for: {', '.join(sorted(there)) or 'nothing'}); "
        f"{_remedy(spec.arch if emulated else arch)}"
    )


def _remedy(arch: int) -> str:
    """What to do about a kernel that is missing or stale."""
    build = f"make cubin ARCHS={arch}"
    if build_folder() == INSTALLED:
        return f"in the repository of flashcore_drv: {build}, and set FLASHCORE_BUILD to its build/"
    return f"build it: {build}"


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
    module = Module(device, read_image(path))
    info = {k: int(v) for k, v in abi.KERNEL_INFO.unpack(module.read_global(f"{spec.stem}_info")).items()}
    if info["abi_hash"] != abi.ABI_HASH:
        raise KernelImageError(
            f"{path} is stale: it was built for ABI {info['abi_hash']:#018x}, this package has {abi.ABI_HASH:#018x}; "
            f"{_remedy(device.arch)}"
        )
    kernel = module.kernel(spec.stem, info["shared_bytes"])
    found = kernel.parameter_bytes
    if found != spec.params.size or info["params_bytes"] != spec.params.size:
        raise KernelImageError(
            f"{path} takes {found} bytes of parameters, this package passes {spec.params.name} of {spec.params.size}; "
            f"{_remedy(device.arch)}"
        )
    said = {field.name: info[field.name] for field in fields(LoadedKernel) if field.name in info}
    return LoadedKernel(spec, kernel, **said)
