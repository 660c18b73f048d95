"""What the emulator claims to be: one representative device for each architecture that kernels are built for.

Limits that belong to the architecture are those of the table "Technical Specifications per Compute Capability" of the
CUDA C++ Programming Guide, and product facts (number of SMs, L2, clocks, memory) those of the data sheets, as far as
known: they were not checked against these documents line by line, least of all sm_120; the H200's were read off the
machine. Nothing here is a measurement of the emulator, and no emulated time is derived from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .machine import Limits

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Arch:
    """An architecture and the device that represents it.

    Attributes
    ----------
    name : str
        ``sm_89``, or ``sm_90a``: the device of compute capability 9.0 runs the PTX of both targets.
    compute_capability : tuple of int
        (major, minor).
    stands_for : str
        The product whose SM count, caches, clocks and memory are reported.
    multiprocessors : int
        Number of SMs.
    max_threads_per_multiprocessor, max_blocks_per_multiprocessor : int
        Resident threads and blocks of an SM.
    shared_per_multiprocessor, shared_per_block, shared_per_block_optin : int
        Bytes of shared memory: of an SM, of a block by default, and of a block that asked for more
        (``CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES``).
    l2_bytes, memory_bytes : int
        L2 cache and device memory.
    clock_khz, memory_clock_khz, memory_bus_bits : int
        As ``cuDeviceGetAttribute`` reports them.
    """

    name: str
    compute_capability: tuple[int, int]
    stands_for: str
    multiprocessors: int
    max_threads_per_multiprocessor: int
    max_blocks_per_multiprocessor: int
    shared_per_multiprocessor: int
    shared_per_block_optin: int
    l2_bytes: int
    memory_bytes: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    shared_per_block: int = 48 * KIB
    shared_reserved_per_block: int = 1 * KIB
    registers_per_multiprocessor: int = 64 * KIB
    registers_per_block: int = 64 * KIB
    registers_per_thread: int = 255
    max_threads_per_block: int = 1024
    max_block: tuple[int, int, int] = (1024, 1024, 64)
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    warp_size: int = 32
    constant_bytes: int = 64 * KIB

    @property
    def device_name(self) -> str:
        """The device's name, which says that it is none."""
        return f"Emulated {self.name} (NumPy, no GPU)"

    @property
    def limits(self) -> Limits:
        """What a launch may ask for, as the machine checks it."""
        return Limits(
            max_threads_per_block=self.max_threads_per_block,
            max_block=self.max_block,
            max_grid=self.max_grid,
            max_shared_per_block=self.shared_per_block_optin,
            max_shared_default=self.shared_per_block,
            max_registers_per_block=self.registers_per_block,
            max_registers_per_thread=self.registers_per_thread,
        )

    def runs(self, target: str) -> bool:
        """Whether the driver would compile PTX of this ``.target`` for the device.

        PTX is compiled for the same or a later compute capability; architecture-specific PTX (``sm_90a``) for its own
        only, and family-specific PTX (``sm_120f``) for its own major (PTX ISA, "Directives: .target").
        """
        match = re.fullmatch(r"sm_(\d+)(\d)([af]?)", target)
        if match is None:
            return False
        capability = int(match[1]), int(match[2])
        if match[3] == "a":
            return capability == self.compute_capability
        if match[3] == "f":
            return capability[0] == self.compute_capability[0] and capability <= self.compute_capability
        return capability <= self.compute_capability


def _h200(name: str) -> Arch:
    return Arch(
        name, (9, 0), "NVIDIA H200", 132, 2048, 32, 228 * KIB, 227 * KIB,
        60 * MIB, 143771 * MIB, 1_980_000, 3_201_000, 6144,
    )  # fmt: skip


ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm_80", (8, 0), "NVIDIA A100 (40 GB)", 108, 2048, 32, 164 * KIB, 163 * KIB,
             40 * MIB, 40 * KIB * MIB, 1_410_000, 1_215_000, 5120),
        Arch("sm_86", (8, 6), "NVIDIA A10", 72, 1536, 16, 100 * KIB, 99 * KIB,
             6 * MIB, 24 * KIB * MIB, 1_695_000, 6_251_000, 384),
        Arch("sm_89", (8, 9), "NVIDIA L4", 58, 1536, 24, 100 * KIB, 99 * KIB,
             48 * MIB, 24 * KIB * MIB, 2_040_000, 6_251_000, 192),
        _h200("sm_90"),
        _h200("sm_90a"),
        Arch("sm_120", (12, 0), "NVIDIA GeForce RTX 5090", 170, 1536, 24, 100 * KIB, 99 * KIB,
             96 * MIB, 32 * KIB * MIB, 2_407_000, 14_001_000, 512),
    )
}  # fmt: skip
"""The architectures by name."""


def named(name: str) -> Arch:
    """Look an architecture up.

    Parameters
    ----------
    name : str
        ``sm_89`` or just ``89``.

    Raises
    ------
    ValueError
        If the emulator has no device of that architecture.
    """
    key = name if name.startswith("sm_") else f"sm_{name}"
    if key not in ARCHS:
        raise ValueError(f"no emulated device of architecture {name!r}; there are {', '.join(ARCHS)}")
    return ARCHS[key]
