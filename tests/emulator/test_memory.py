"""Device memory from the host's side."""

import numpy as np
import pytest

from flashcore_drv.emulator import DeviceMemory, EmulationError


def test_allocations_are_aligned_apart_and_poisoned():
    memory = DeviceMemory()
    a, b = memory.allocate(100, "a"), memory.allocate(1)
    assert a % 512 == b % 512 == 0
    assert b - a > 100
    assert (memory.read(a, 100) == 0xFF).all()
    assert memory.used_bytes == 101
    assert memory.find(a + 99).name == "a"
    assert memory.find(a + 100) is None


def test_write_fill_copy():
    memory = DeviceMemory()
    a, b = memory.allocate(64), memory.allocate(64)
    memory.write(a, np.arange(16, dtype=np.int32))
    memory.fill(a + 8, b"\1\2", 4)
    memory.copy(b + 16, a, 32)
    assert memory.read(b + 16, 32).view(np.int32).tolist() == [0, 1, 0x02010201, 0x02010201, 4, 5, 6, 7]
    memory.write(b, b"xyz")
    assert memory.read(b, 3).tobytes() == b"xyz"


def test_limit():
    memory = DeviceMemory(limit_bytes=1000)
    a = memory.allocate(600)
    with pytest.raises(MemoryError, match="600 of 1000"):
        memory.allocate(500)
    memory.free(a)
    memory.allocate(1000)


def test_wrong_frees_and_ranges():
    memory = DeviceMemory()
    a = memory.allocate(64, "queries")
    with pytest.raises(ValueError, match="not the start"):
        memory.free(a + 8)
    with pytest.raises(EmulationError, match="past the end of queries") as error:
        memory.read(a, 65)
    assert error.value.kind == "memory"
    memory.free(a)
    with pytest.raises(ValueError, match="not the start"):
        memory.free(a)
    with pytest.raises(EmulationError, match=r"queries.*freed") as error:
        memory.write(a, b"x")
    assert error.value.kind == "use-after-free"
    with pytest.raises(ValueError, match="at least one byte"):
        memory.allocate(0)
