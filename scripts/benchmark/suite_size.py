"""Installed bytes: the package, its kernels and all that it requires, and those of the peers; bytes of a wheel."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

import flashcore_drv
from flashcore_drv import images

from .results import Json
from .suites import Run, table

NEEDS = "any"
METHOD = {
    "size": "bytes of the files that pip recorded for a package and for all that it requires as far as installed; for "
    "flashcore_drv the files of the imported package and all kernels that are built",
    "left out": "the interpreter, the GPU's driver",
}
PACKAGES: tuple[str, ...] = ()
WHEEL = "wheel"  # the row of what travels, where a wheel is given
OURS = ("numpy", "cuda-bindings")  # cuda-python is a name for these bindings, without files that a call needs
PEERS = {"PyTorch": "torch", "FA4": "flash-attn-4", "cudnn-frontend": "nvidia-cudnn-frontend", "JAX": "jax"}
FOUND_AT_RUN_TIME = {"cudnn-frontend": r"nvidia-cudnn-cu\d+", "JAX": r"jax-cuda\d+-plugin"}
"""Packages that a peer needs on a GPU without requiring them: the name of the one that is installed."""
WITH_CUDA = {"JAX": "with-cuda"}  # the extra by which that package requires CUDA's libraries


def ids(quick: bool) -> list[str]:
    """One row."""
    return ["installed"]


def run(run: Run) -> None:
    """Add up the files."""
    wheel = [WHEEL] if run.wheel is not None else []
    for name in run.progress(run.wanted([*ids(run.quick), *wheel])):
        if name == WHEEL:
            assert run.wheel is not None
            nbytes = run.wheel.stat().st_size
            run.record.add({"id": name, "ours": {"bytes": nbytes, "packages": {run.wheel.name: nbytes}}, "peers": {}})
            continue
        ours = package_bytes() | closure(OURS)
        row: Json = {"id": name, "ours": {"bytes": sum(ours.values()), "packages": ours}, "peers": {}}
        for peer, root in PEERS.items():
            if run.peers is not None and peer not in run.peers:
                continue
            try:
                version = distribution(root).version
                packages = closure(roots_of(peer))
            except (PackageNotFoundError, UnrecordedError) as error:
                run.record.peers[peer] = {"absent": f"not measured: {error}"}
                continue
            run.record.peers[peer] = {"version": version, "how": f"{root} and what it requires"}
            nbytes = sum(packages.values())
            row["peers"][peer] = {"bytes": nbytes, "packages": packages, "ratio": nbytes / row["ours"]["bytes"]}
        run.record.add(row)


def roots_of(peer: str) -> list[str]:
    """The requirements from which a peer's packages follow."""
    pattern = FOUND_AT_RUN_TIME.get(peer)
    found = [normal(d.metadata["Name"]) for d in distributions()] if pattern else []
    extra = f"[{WITH_CUDA[peer]}]" if peer in WITH_CUDA else ""
    return [PEERS[peer], *(name + extra for name in found if re.fullmatch(str(pattern), name))]


class UnrecordedError(LookupError):
    """A package that was installed without a record of its files."""


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(roots: list[str] | tuple[str, ...]) -> dict[str, int]:
    """Bytes of the installed packages that follow from some requirements, by name.

    Raises
    ------
    UnrecordedError
        If the files of one are not recorded.
    """
    found: dict[str, int] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        wanted = waiting.pop()
        name, extras = normal(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # optional, or for another platform
            continue
        found[name] = recorded_bytes(package)
        for text in package.requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(requirement)
    return found


def recorded_bytes(package: Distribution) -> int:
    """Bytes of the files that pip recorded."""
    if package.files is None:
        raise UnrecordedError(f"no record of the files of {package.metadata['Name']}")
    paths = {Path(str(package.locate_file(file))).resolve() for file in package.files}
    return sum(path.stat().st_size for path in paths if path.is_file())


def package_bytes() -> dict[str, int]:
    """Bytes of the imported package, without what Python caches, and of the kernels that are built for each GPU."""
    home = Path(flashcore_drv.__file__).parent
    found = {"flashcore-drv": sum(p.stat().st_size for p in home.rglob("*") if p.is_file() and p.suffix != ".pyc")}
    for folder in sorted((images.build_folder() / "cubin").glob("sm_*")):
        found[f"kernels {folder.name}"] = sum(p.stat().st_size for p in folder.glob("*.cubin"))
    return found


def lines(found: Json) -> list[str]:
    """Megabytes and the largest packages."""
    rows = []
    for row in found["rows"]:
        for name, size in {"flashcore_drv": row["ours"], **row["peers"]}.items():
            largest = sorted(size["packages"].items(), key=lambda item: -item[1])[:3]
            parts = ", ".join(f"{package} {nbytes / 1e6:.1f}" for package, nbytes in largest)
            rows.append(
                [
                    name if row["id"] != WHEEL else WHEEL,
                    f"{size['bytes'] / 1e6:.1f}",
                    f"{size.get('ratio', 1):.1f}",
                    parts,
                ]
            )
    return table(["installed", "MB", "x ours", "the largest"], rows)
