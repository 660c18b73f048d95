"""Tests here reset the emulated driver: the tests after them find it started again, and no handles of before."""

from collections.abc import Iterator

import pytest
from support import start_emulator


@pytest.fixture(autouse=True, scope="module")
def started_again() -> Iterator[None]:
    yield
    start_emulator()
