"""What this GPU reaches without attention, measured in the same run: what a suite's numbers can be held against."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from cubins import find_nvcc

from flashcore_drv.runtime import Device, DeviceArray, Graph, Launch, Module, Stream, driver, is_emulated

from .conditions import ROOT
from .measure import Replay, Timer, interleaved, spread
from .peers import Absent, first_line, import_torch, torch_graph

GEMM_SIZE = 8192
COPY_BYTES = 1 << 30
MMA_STEPS, MMA_CHAINS, MMA_THREADS, BLOCKS_AN_SM = 4096, 8, 256, 4
MMA_FLOPS = 2 * 16 * 8 * 16  # of one instruction
ROUNDS, WARM_UP = 20, 5  # the GPU comes from idle clocks


def compile_mma(device: Device) -> bytes:
    """The image of ``mma_sync.cu`` for the device. Raises Absent."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise Absent("no nvcc in CUDA_HOME or on PATH to build it with")
    kind, arch = ("ptx", "compute_80") if is_emulated() else ("cubin", f"sm_{device.arch}")
    image = ROOT / "build" / "benchmark" / f"mma_sync_{arch}.{kind}"
    source = Path(__file__).with_name("mma_sync.cu")
    if not image.is_file() or image.stat().st_mtime < source.stat().st_mtime:
        image.parent.mkdir(parents=True, exist_ok=True)
        flags = [f"-{kind}", f"-arch={arch}", "-O3", "-std=c++20"]
        command = [str(x) for x in (nvcc, *flags, "-I", ROOT / "cuda", "-o", image, source)]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            raise Absent(f"nvcc failed: {(built.stderr or built.stdout).strip().splitlines()[0]}")
    return image.read_bytes()


class MmaSync:
    """The kernel, ready to be launched.

    Parameters
    ----------
    blocks : int
        Of 8 warps each.
    steps : int
        Times that each warp goes through its 8 chains.
    """

    def __init__(self, device: Device, blocks: int, steps: int) -> None:
        kernel = Module(device, compile_mma(device)).kernel("mma_sync", 0)
        self.out = DeviceArray.empty((blocks, MMA_THREADS), np.float32, device)
        device.synchronize()  # other streams may use the memory from here on
        self.launch = Launch(kernel, blocks, MMA_THREADS, struct.pack("<Qq", self.out.address, steps))
        self.flops = MMA_FLOPS * MMA_CHAINS * steps * blocks * MMA_THREADS // 32


def median_us(timer: Timer, replay: Replay, repeat: int) -> float:
    """Microseconds of a launch, from a replay of `repeat`."""
    return spread(interleaved({"it": timer(replay, repeat)}, ROUNDS, WARM_UP)["it"])[0]


def mma_sync_tflops(device: Device, stream: Stream, timer: Timer) -> float:
    """mma.sync m16n8k16, fp16 to fp32, registers only."""
    work = MmaSync(device, BLOCKS_AN_SM * device.multiprocessors, MMA_STEPS)
    with Graph.capture(stream) as graph:
        for _ in range(4):
            work.launch(stream)
    return work.flops / median_us(timer, graph.replay, 4) / 1e6


def copy_tb_s(device: Device, stream: Stream, timer: Timer) -> float:
    """A copy from device memory to device memory, bytes read and bytes written.

    Queued, not from a graph: there the driver gave the same copy to something slower (2.8 TB/s of 4.2 on an H200).
    """
    source, target = (DeviceArray.empty((COPY_BYTES,), np.uint8, device) for _ in range(2))
    source.fill_bytes(0x5A)
    device.synchronize()

    def copy(stream: Stream) -> None:
        for _ in range(2):
            driver.call("cuMemcpyDtoDAsync", target.address, source.address, COPY_BYTES, stream.handle)

    us = median_us(timer, copy, 2)
    for x in (source, target):
        x.free()
    return 2 * COPY_BYTES / us / 1e6


def gemm_tflops(device: Device, stream: Stream, timer: Timer) -> float:
    """GEMM of cuBLAS through PyTorch: fp16, 8192 x 8192 x 8192, on standard normal numbers. Raises Absent."""
    torch = import_torch()
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, device="cuda").half() for _ in range(2))
    out = torch.empty_like(a)
    replay = torch_graph([lambda: torch.matmul(a, b, out=out)], 2)
    return 2 * GEMM_SIZE**3 / median_us(timer, replay, 2) / 1e6


def ceilings(device: Device, timer: Timer) -> dict[str, Any]:
    """Each limit, or why it could not be measured."""
    found: dict[str, Any] = {}
    stream = Stream(device)
    for measure in (gemm_tflops, mma_sync_tflops, copy_tb_s):
        try:
            with device.active():
                found[measure.__name__] = measure(device, stream, timer)
        except Absent as reason:
            found[measure.__name__] = {"absent": str(reason)}
        except Exception as error:
            found[measure.__name__] = {"absent": first_line(error)}
    return found
