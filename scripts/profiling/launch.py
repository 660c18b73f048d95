"""The launches that ncu watches: one kernel on random values, some times."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sanitize import ONE_LENGTH, exercise
from shapes import Shape

from flashcore_drv.catalog import CATALOG, KernelSpec
from flashcore_drv.dispatch import select_flash
from flashcore_drv.errors import InvalidArgument
from flashcore_drv.plan import plan_flash
from flashcore_drv.runtime import Device, DeviceArray, Stream
from flashcore_drv.tuned import Gpu

WARM = 2  # launches before the one that counts


@dataclass(frozen=True)
class Work:
    """A kernel and what to run it on."""

    spec: KernelSpec
    shape: Shape
    causal: bool

    @property
    def skip(self) -> int:
        """Launches of the kernel before the one that counts."""
        flash = self.spec.family.startswith("flash_fwd")
        return WARM * (2 if self.spec.family == "softmax" else 1) if not flash else WARM

    def run(self) -> None:
        """Launch it WARM + 1 times."""
        if not self.spec.family.startswith("flash_fwd"):
            s = self.shape
            for _ in range(WARM + 1):
                exercise(self.spec, (s.batch, s.heads, s.heads_kv, s.seqlen_q, s.seqlen_k, 0), s.head_dim)
            return
        device, rng = Device.current(), np.random.default_rng(0)
        dtype = self.spec.dtype.to_numpy()
        host = {name: rng.standard_normal(dims, np.float32).astype(dtype) for name, dims in self.shape.dims.items()}
        arrays = {name: DeviceArray.from_numpy(x) for name, x in host.items()}
        problem = replace(self.shape, causal=self.causal, dtype=self.spec.dtype.name).problem
        with device.active():
            launches = plan_flash(device, self.spec, problem, {name: x.address for name, x in arrays.items()})
            for _ in range(WARM + 1):
                for launch in launches:
                    launch(Stream(device, 0))
        device.synchronize()


def work_of(what: str, causal: bool, dtype: str, arch: int, gpu: Gpu) -> Work:
    """The kernel and the problem that a command line names.

    Parameters
    ----------
    what : str
        A stem of the catalog, or a problem as in `Shape.parse`.
    causal, dtype : bool, str
        Of a problem; a stem says them itself.
    arch : int
        Compute capability of the GPU.
    gpu : Gpu
        What dispatch chooses by.

    Raises
    ------
    InvalidArgument
        If it is neither.
    """
    if shape := Shape.parse(what):
        problem = replace(shape, causal=causal, dtype=dtype).problem
        return Work(select_flash(problem, arch, gpu), shape, causal)
    spec = next((s for s in CATALOG if s.stem == what), None)
    if spec is None:
        raise InvalidArgument(f"{what!r} is neither a problem (4x32x4096x4096x64) nor a kernel of the catalog")
    head_dim = int(spec.size[1:]) if spec.size.startswith("d") else 64
    if spec.family.startswith("flash_fwd") and spec.family not in ONE_LENGTH:
        heads = max(2048 // head_dim, 1)
        return Work(spec, Shape(4, heads, heads, 4096, 4096, head_dim), "_causal" in spec.family)
    seqlen_k = 2048 if spec.size == "w8" else 512
    return Work(spec, Shape(1, 8, 8, 512, seqlen_k, head_dim), False)
