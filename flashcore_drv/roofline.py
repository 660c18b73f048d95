"""The least time that a GPU needs for so many operations and bytes, from its published rates."""

from __future__ import annotations

from .runtime import Device

# Dense fp16 or bf16 tensor operations with fp32 accumulation, FLOP a cycle and SM: what the data sheets' peaks of A100,
# A10, L4 and H100 come to. GeForce boards of 8.6, 8.9 and 12.0 run at half of it.
_TENSOR_FLOP_PER_CYCLE = {80: 2048, 86: 1024, 89: 1024, 90: 4096, 120: 1024}


def tensor_flops(device: Device) -> float | None:
    """Peak tensor FLOP/s at the GPU's maximum clock; None for an unknown architecture."""
    per_cycle = _TENSOR_FLOP_PER_CYCLE.get(device.arch)
    if per_cycle is None:
        return None
    return per_cycle * device.multiprocessors * device.attribute("CLOCK_RATE") * 1e3


def memory_bandwidth(device: Device) -> float:
    """Peak bytes/s of device memory: two transfers a memory clock over the whole bus."""
    return 2 * device.attribute("MEMORY_CLOCK_RATE") * 1e3 * device.attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8


def least_us(device: Device, flops: int, nbytes: int) -> float | None:
    """The larger of operations over peak rate and bytes over peak bandwidth, in microseconds."""
    rate = tensor_flops(device)
    return None if rate is None else 1e6 * max(flops / rate, nbytes / memory_bandwidth(device))
