"""What the tests of the host layers share: the driver's calls as they happen, memory in use, scripts as processes."""

import contextlib
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashcore_drv import api, images, tuned
from flashcore_drv.emulator import driver as emulated
from flashcore_drv.errors import InvalidArgument
from flashcore_drv.problem import Problem
from flashcore_drv.recall import Cache
from flashcore_drv.runtime import Device, DeviceArray, driver, is_emulated

ROOT = Path(__file__).resolve().parent.parent

WORK = ("cuLaunch", "cuMemAlloc", "cuMemcpy", "cuMemset", "cuGraph", "cuModuleLoad", "cuStreamSynchronize")
"""How the names of the functions begin that give the GPU something to do or to keep."""


class Calls(list[tuple[str, tuple]]):
    """Driver calls in order, each a name and its arguments."""

    def names(self) -> list[str]:
        return [name for name, _ in self]

    def count(self, *names: str) -> int:
        return sum(name in names for name in self.names())

    def work(self) -> list[str]:
        return [name for name in self.names() if name.startswith(WORK)]


@contextlib.contextmanager
def recorded() -> Iterator[Calls]:
    """The calls that reach the driver, whichever it is; what earlier tests left behind is released before."""
    gc.collect()
    calls, module = Calls(), driver.module()

    def recorder(name, real):
        def call(*args, **options):
            calls.append((name, args))
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in dir(module):
            if re.match("cu[A-Z]", name) and callable(getattr(module, name)):
                patch.setattr(module, name, recorder(name, getattr(module, name)))
        yield calls


def context() -> int:
    """The context that is current in this thread."""
    return int(driver.call("cuCtxGetCurrent"))


def used_bytes(device: Device) -> int:
    """Bytes of the device's memory pool that somebody owns, once all work is done and garbage is collected."""
    gc.collect()  # of tests before, too, which are others in every process
    device.synchronize()
    pool = driver.call("cuDeviceGetDefaultMemPool", device.handle)
    attribute = driver.module().CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT
    return int(driver.call("cuMemPoolGetAttribute", pool, attribute))


def emulated_driver():
    """The emulated driver with its faults and limits; skips where a GPU is used."""
    if not is_emulated():
        pytest.skip("faults can be injected into the emulated driver only")
    return driver.module()


def run_python(*args: object, timeout: float = 120, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """A Python process that imports this checkout's package."""
    found = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=found, capture_output=True, text=True, timeout=timeout)


def python_says(code: str, **env: str) -> str:
    """What a script prints that has to succeed."""
    ran = run_python("-c", code, **env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def named(value: object) -> str:
    """How a test names a parameter: as it is written, without an address, which is another one in every process."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


class Exported:
    """An object of another library: a CUDA Array Interface and nothing else."""

    def __init__(self, array, **changes) -> None:
        self.keep, self.interface = array, {**array.__cuda_array_interface__, **changes}

    @property
    def __cuda_array_interface__(self):
        return self.interface


def start_emulator(**options: Any) -> None:
    """Reset the emulated driver, start it, and forget what is cached of its device; `options` are those of reset()."""
    emulated.reset(**options)
    emulated.cuInit(0)
    if is_emulated():
        images._load.cache_clear()
        Device.get.cache_clear()
        api.CACHE.clear()


def placed(place, found):
    """Arrays as they are, or on the GPU."""
    if place == "host":
        return found
    return {k: DeviceArray.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in found.items()}


def refused_call(function: Callable, found: dict, *words: object, error: type[Exception] = InvalidArgument) -> None:
    """The call is refused with all of these words, and nothing was given to the GPU or left there."""
    out = found.get("out")
    before = context(), content(out)
    with recorded() as calls, pytest.raises(error) as refusal:
        function(**found)
    message = str(refusal.value)
    assert [w for w in words if str(w) not in message] == [], message
    assert calls.work() == []
    assert (context(), content(out)) == before
    assert DeviceArray.from_numpy(np.arange(3)).to_numpy().tolist() == [0, 1, 2], "the context is not usable"


def content(array) -> bytes | None:
    """The bytes of a NumPy array, or of the whole buffer of a device array that is not freed."""
    if isinstance(array, np.ndarray):
        return array.tobytes()
    if not isinstance(array, DeviceArray) or not array.buffer._finalizer.alive:
        return None
    count = array.buffer.nbytes // array.dtype.itemsize
    return DeviceArray(array.buffer, (count,), array.dtype, (1,)).to_numpy().tobytes()


def small_where(patch: pytest.MonkeyPatch, wanted: Callable[[Problem], bool]) -> None:
    """Dispatch takes the small kernel where it is wanted and built, and remembers nothing from before."""

    def fastest(family: str, head_dim: int, problem: Problem, arch: int, gpu: tuned.Gpu, besides: str = "") -> str:
        small = tuned.alternatives(family, head_dim)[-1]
        return small if wanted(problem) and small != besides else family

    patch.setattr(tuned, "fastest", fastest)
    patch.setattr(api, "CACHE", Cache(256))
