"""The golden files: one for each family, with what a GPU wrote and the digest of the case it ran."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .kernel import Case
from .values import Array

FOLDER = Path(__file__).resolve().parent
RECORDED = "recorded.json"
"""Which cases were recorded when, on which GPU, with which driver, from which commit."""


def read(family: str, folder: Path = FOLDER) -> dict[str, tuple[str, bytes]]:
    """The digest and the output bytes of every recorded case of a family; empty where there is no file."""
    path = folder / f"{family}.npz"
    if not path.exists():
        return {}
    with np.load(path) as held:
        index, data = json.loads(held["index"].tobytes()), held["data"].tobytes()
    found, start = {}, 0
    for name, (digest, nbytes) in index.items():
        found[name] = digest, data[start : start + nbytes]
        start += nbytes
    return found


def write(family: str, goldens: dict[str, tuple[str, bytes]], folder: Path = FOLDER) -> None:
    """Write the file of a family; the same goldens give the same bytes."""
    goldens = dict(sorted(goldens.items()))
    index = json.dumps({name: [digest, len(data)] for name, (digest, data) in goldens.items()})
    arrays = {"index": index.encode(), "data": b"".join(data for _, data in goldens.values())}
    np.savez_compressed(folder / f"{family}.npz", **{name: np.frombuffer(v, np.uint8) for name, v in arrays.items()})


def joined(case: Case, outputs: dict[str, Array]) -> bytes:
    """The outputs of a case in the order of its table."""
    return b"".join(np.ascontiguousarray(outputs[name]).tobytes() for name in case.outputs)


def split(case: Case, data: bytes) -> dict[str, Array]:
    """The outputs of a case by name. Raises ValueError if the sizes are not those of the table."""
    found, start = {}, 0
    for name, output in case.outputs.items():
        part = data[start : start + output.initial.nbytes]
        found[name] = np.frombuffer(part, output.initial.dtype).reshape(output.initial.shape)
        start += output.initial.nbytes
    if start != len(data):
        raise ValueError(f"{case.name}: {len(data)} bytes are recorded, the table has {start}")
    return found
