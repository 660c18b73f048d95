"""What is published about GPUs, and what was measured on the one at hand: rates of an SM, and how many there are.

Sources, by the letters at the numbers:

[W]  NVIDIA, "NVIDIA Ada GPU Architecture" (whitepaper, V2.01, with L4 and L40), appendix: peak FP16 tensor TFLOPS with
     FP32 accumulate, without sparsity. RTX 4090: 165.2 at 2520 MHz on 128 SMs, half of its 330.3 with FP16 accumulate,
     which is 512 FLOP a cycle and SM. L4 (data sheet): 121 (242 with sparsity) on 58 SMs at 2040 MHz, 1024 FLOP: boards
     for data centers accumulate in FP32 at the full rate. L40S (data sheet): 362 on 142 SMs at 2520 MHz, 1012. L2:
     48 MB, 72 MB, 96 MB.
[A]  NVIDIA, "A100 Tensor Core GPU Architecture" (whitepaper): 312 TFLOPS on 108 SMs at 1410 MHz, 2048 FLOP; L2 40 MB.
[N]  ncu on the H200, this project (cuda/NOTES.md, "What binds"): the tensor pipe is busy for 6.00 cycles an
     HMMA.16816.F32, which is 2731 FLOP a cycle and SM, two thirds of what wgmma has; and the clock of kernels of a
     millisecond is 1.77 to 1.79 GHz (sm__cycles_elapsed over time).
[P]  NVIDIA, "CUDA C++ Programming Guide", throughput of arithmetic instructions: 32-bit floating-point results a cycle
     and SM 64 (8.0), 128 (8.6, 8.9, 9.0); integer, logic, comparison 64; exponentials 16.
[C]  The emulator's table of limits (flashcore_drv/emulator/arch.py) has the SMs' registers, threads, shared memory, and
     the H200's L2 as its driver reports it.
[S]  Shared memory serves 128 bytes a cycle and SM (32 banks of 4 bytes): the programming guide; the L2 fills 64 bytes
     a cycle and SM: NVIDIA's tuning guides for Volta to Hopper.
[L]  shared/anchors.md: an L4 keeps up 53 to 59 TFLOP/s of cuBLAS under its 72 W, 70 in bursts (one user's measurement).
[G]  shared/anchors.md: 0.78 us a node of a graph of empty kernels, measured on the H200; taken for every GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flashcore_drv.emulator.arch import ARCHS, MIB, Arch

_L4_CUBLAS_TFLOPS, _L4_BURST_TFLOPS, _L4_PEAK_TFLOPS, _L4_GHZ = 56.0, 70.0, 121.0, 2.04  # [L], the middle of 53 and 59


@dataclass(frozen=True)
class Gpu:
    """A GPU as the model sees it.

    Attributes
    ----------
    arch : int
        Whose cubins it runs.
    clocks : dict
        GHz, by what each stands for: the first that of a short run, the last that of a long one.
    hmma_cycles : float
        Of the tensor pipe of a quarter of an SM, for an HMMA.16816.F32 (4096 FLOP).
    ffma_cycles : float
        Of the FMA pipe of a quarter of an SM, for a warp.
    dram_gbs : float
        GB/s.
    """

    name: str
    arch: int
    multiprocessors: int
    l2_bytes: int
    clocks: dict[str, float]
    hmma_cycles: float
    ffma_cycles: float
    dram_gbs: float
    sources: str

    @property
    def tensor_tflops(self) -> float:
        """Peak of the tensor pipe at the first clock, with FP32 accumulate."""
        return 4 * 4096 / self.hmma_cycles * self.multiprocessors * next(iter(self.clocks.values())) / 1e3

    def to_json(self) -> dict[str, Any]:
        """Its rates."""
        return asdict(self) | {"tensor_tflops": round(self.tensor_tflops, 1)}

    @property
    def limits(self) -> Arch:
        """Registers, threads and shared memory of its SMs."""
        return ARCHS[f"sm_{self.arch}"]


GPUS: dict[str, Gpu] = {
    "l4": Gpu(
        "NVIDIA L4",
        89,
        58,
        48 * MIB,
        {
            "boost": _L4_GHZ,
            "72 W, if cuBLAS in bursts ran at boost": round(_L4_GHZ * _L4_CUBLAS_TFLOPS / _L4_BURST_TFLOPS, 2),
            "72 W, if cuBLAS wastes nothing": round(_L4_GHZ * _L4_CUBLAS_TFLOPS / _L4_PEAK_TFLOPS, 2),
        },
        16,
        1,
        300,
        "W P S L",
    ),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 89, 128, 72 * MIB, {"boost": 2.52}, 32, 1, 1008, "W P S"),
    "l40s": Gpu("NVIDIA L40S", 89, 142, 96 * MIB, {"boost": 2.52}, 16, 1, 864, "W P S"),
    "a100": Gpu("NVIDIA A100 (40 GB)", 80, 108, 40 * MIB, {"boost": 1.41}, 8, 2, 1555, "A P S"),
    "h200": Gpu("NVIDIA H200", 90, 132, 60 * MIB, {"boost": 1.98, "these kernels, by ncu": 1.79}, 6, 1, 4800, "N P S"),
}
"""The GPUs that scripts/predict.py knows."""

LAUNCH_US = 0.78  # [G]

# Latencies in cycles, one set for all GPUs, set before the first comparison with a time of ours and not changed since:
# of the size that microbenchmarks find (Sun et al., arXiv 2206.02874; Luo et al., arXiv 2402.13499), not their numbers.
LDSM_LATENCY, MUFU_LATENCY, L2_LATENCY, BARRIER_LATENCY, OTHER_LATENCY = 33, 20, 260, 20, 30
L2_BYTES_PER_CYCLE, SHARED_BYTES_PER_CYCLE = 64, 128  # [S]
QUEUE = 8  # LDSM.x4 of a quarter of an SM that may wait before it stops issuing them: a guess
