"""One suite for the emulator and the GPU: FLASHCORE_DRIVER chooses; by default the GPU where there is one."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from support import start_emulator

from flashcore_drv import catalog
from flashcore_drv.images import build_folder
from flashcore_drv.runtime import Device, is_emulated

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
}
settings.register_profile("ci", derandomize=True, max_examples=80, **_COMMON)
settings.register_profile("fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")), **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def device() -> Device:
    """The device that kernels run on: emulated, or a GPU. Asked for anew: tests of the emulated driver reset it."""
    return Device.current()


@pytest.fixture
def hopper() -> Iterator[Device]:
    """A device of compute capability 9.0, emulated or a GPU, whose own kernels are built; else the test is skipped."""
    if not any((build_folder() / ("ptx" if is_emulated() else "cubin/sm_90")).glob("flash_fwd_tma_*")):
        pytest.skip("no kernel for Hopper's own instructions is built: make cubin ARCHS=90")
    if is_emulated():
        start_emulator(arch="sm_90")
    elif Device.current().arch != catalog.HOPPER:
        pytest.skip("kernels for Hopper's own instructions need compute capability 9.0")
    yield Device.current()
    if is_emulated():
        start_emulator()
