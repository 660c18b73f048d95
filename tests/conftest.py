"""One suite for the emulator and the GPU: FLASHCORE_DRIVER chooses; by default the GPU where there is one."""

import os

import pytest
from hypothesis import HealthCheck, settings

from flashcore_drv.runtime import Device

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
