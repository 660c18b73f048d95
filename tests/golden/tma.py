"""Bulk and tensor copies (PTX ISA, "Data Movement and Conversion Instructions: cp.async.bulk.tensor")."""

from __future__ import annotations

import math

import numpy as np

from .kernel import Case, Output, TensorMap, copied, kernel
from .values import words

SECTION = "Data Movement and Conversion Instructions"
THREADS = 32
SIZES = {"UINT8": 1, "UINT16": 2, "FLOAT16": 2, "BFLOAT16": 2, "FLOAT32": 4, "INT32": 4, "FLOAT64": 8, "INT64": 8}
WAIT = """
    WAIT{i}:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r10], {parity};
    @!%p1 bra WAIT{i};
"""
PROLOGUE = """
    mov.u32 %r10, bar;
    mov.u32 %r11, tile;
    setp.eq.u32 %p2, %thread, 0;
    @%p2 mbarrier.init.shared::cta.b64 [%r10], 1;
    fence.mbarrier_init.release.cluster;
    bar.sync 0;
"""


def _bytes(name: str, count: int) -> np.ndarray:
    return (words(name, count) >> np.uint64(23)).astype("u1")


def _shared(nbytes: int) -> str:
    return f".shared .align 1024 .b8 tile[{nbytes}];\n.shared .align 8 .b64 bar;"


def bulk() -> list[Case]:
    """Without a tensor map: 16 bytes and more, at offsets, there and back."""
    body, pieces = PROLOGUE, ((0, 16, 512), (48, 128, 0), (1024, 1008, 1024))
    for i, (source, nbytes, target) in enumerate(pieces):
        body += f"""
            add.u32 %r12, %r11, {target};
            add.u64 %rd4, %at_a, {source};
            @%p2 mbarrier.arrive.expect_tx.shared::cta.b64 %rd5, [%r10], {nbytes};
            @%p2 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r12], [%rd4], {nbytes}, [%r10];
        """ + WAIT.format(i=i, parity=i % 2)
        body += "bar.sync 0;\n"
        body += (
            copied("shared:tile", f"global:%at_d{i}", 2048, THREADS) + "\nfence.proxy.async.shared::cta;\nbar.sync 0;\n"
        )
    # what is left over from before the first copy is not defined, so the tile starts as the input's end
    start = (
        copied("global:%at_before", "shared:tile", 2048, THREADS) + "\nfence.proxy.async.shared::cta;\nbar.sync 0;\n"
    )
    outputs = {f"d{i}": Output(np.zeros(2048, "u1")) for i in range(len(pieces))}
    inputs = {"a": _bytes("bulk", 4096), "before": np.full(2048, 0x11, "u1")}
    section = f"{SECTION}: cp.async.bulk"
    cases = [
        kernel("tma/bulk.load", section, start + body, inputs, outputs, target="sm_90", declarations=_shared(2048))
    ]
    body = (
        PROLOGUE
        + copied("global:%at_a", "shared:tile", 2048, THREADS)
        + "\nfence.proxy.async.shared::cta;\nbar.sync 0;\n"
    )
    for source, nbytes, target in ((0, 16, 512), (512, 256, 16), (1024, 1008, 1040)):
        body += f"""
            add.u32 %r12, %r11, {source};
            add.u64 %rd4, %at_d, {target};
            @%p2 cp.async.bulk.global.shared::cta.bulk_group [%rd4], [%r12], {nbytes};
        """
    body += "cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\n"
    inputs, outputs = {"a": _bytes("bulk.store", 2048)}, {"d": Output(np.full(4096, 0x77, "u1"))}
    cases.append(kernel("tma/bulk.store", section, body, inputs, outputs, target="sm_90", declarations=_shared(2048)))
    return cases


def tile_shape(tensor_map: TensorMap) -> list[int]:
    """Elements of the tile in shared memory along each dimension."""
    return [-(-box // step) for box, step in zip(tensor_map.box, [1, *tensor_map.steps[1:]])]


def _extent(tensor_map: TensorMap) -> int:
    if len(tensor_map.dims) == 1:
        return tensor_map.dims[0] * SIZES[tensor_map.kind]
    return tensor_map.byte_strides[-1] * tensor_map.dims[-1]


def _tile_bytes(tensor_map: TensorMap) -> int:
    """Bytes of the tile in shared memory, whose rows are as wide as the swizzle."""
    inner, *rows = tile_shape(tensor_map)
    width = 0 if tensor_map.swizzle == "NONE" else int(tensor_map.swizzle[:-1])
    return max(inner * SIZES[tensor_map.kind], width) * math.prod(rows)


def load(name: str, tensor_map: TensorMap, places: list[tuple[int, ...]]) -> Case:
    """A tile from each place, as it lies in shared memory."""
    rank, moved = len(tensor_map.dims), math.prod(tile_shape(tensor_map)) * SIZES[tensor_map.kind]
    nbytes = _tile_bytes(tensor_map)
    body = PROLOGUE + "mov.u64 %rd6, map0;\ncvta.param.u64 %rd6, %rd6;\n"
    body += (
        copied("global:%at_before", "shared:tile", nbytes, THREADS) + "\nfence.proxy.async.shared::cta;\nbar.sync 0;\n"
    )
    outputs = {}
    for i, place in enumerate(places):
        at = ", ".join(f"%c{j}" for j in range(rank))
        body += "".join(f"mov.s32 %c{j}, {x};\n" for j, x in enumerate(place))
        body += f"""
            @%p2 mbarrier.arrive.expect_tx.shared::cta.b64 %rd5, [%r10], {moved};
            @%p2 cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes
                [%r11], [%rd6, {{{at}}}], [%r10];
        """ + WAIT.format(i=i, parity=i % 2)
        body += (
            copied("shared:tile", f"global:%at_d{i}", nbytes, THREADS)
            + "\nfence.proxy.async.shared::cta;\nbar.sync 0;\n"
        )
        outputs[f"d{i}"] = Output(np.zeros(nbytes, "u1"))
    inputs = {"a": _bytes(name, _extent(tensor_map)), "before": np.full(nbytes, 0x11, "u1")}
    return kernel(
        f"tma/load.{name}", f"{SECTION}: cp.async.bulk.tensor", body, inputs, outputs,
        target="sm_90", maps=(tensor_map,), declarations=_shared(nbytes) + "\n.reg .b32 %c<5>;",
    )  # fmt: skip


def store(name: str, tensor_map: TensorMap, places: list[tuple[int, ...]]) -> Case:
    """The same tile to each place (which do not overlap)."""
    rank, nbytes = len(tensor_map.dims), _tile_bytes(tensor_map)
    body = copied("global:%at_tile_bytes", "shared:tile", nbytes, THREADS) + PROLOGUE
    body += "fence.proxy.async.shared::cta;\nbar.sync 0;\nmov.u64 %rd6, map0;\ncvta.param.u64 %rd6, %rd6;\n"
    for place in places:
        at = ", ".join(f"%c{j}" for j in range(rank))
        body += "".join(f"mov.s32 %c{j}, {x};\n" for j, x in enumerate(place))
        body += f"@%p2 cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%rd6, {{{at}}}], [%r11];\n"
    body += "cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\n"
    outputs = {"d": Output(np.full(_extent(tensor_map), 0x77, "u1"))}
    return kernel(
        f"tma/store.{name}", f"{SECTION}: cp.async.bulk.tensor", body, {"tile_bytes": _bytes(name, nbytes)}, outputs,
        target="sm_90", maps=(tensor_map,), declarations=_shared(nbytes) + "\n.reg .b32 %c<5>;",
    )  # fmt: skip


def padded_map(array: str, kind: str, dims: tuple[int, ...], box: tuple[int, ...], **more: object) -> TensorMap:
    """With rows padded by 16 bytes or more, so that a confusion of extent and stride shows."""
    strides, step = [], SIZES[kind]
    for i, n in enumerate(dims[:-1]):
        step *= n
        step = -(-step // 16) * 16 + (16 if i % 2 == 0 else 0)
        strides.append(step)
    steps = more.pop("steps", (1,) * len(dims))
    return TensorMap(array, kind, dims, tuple(strides), box, steps, **more)


# The GPU raises CUDA_ERROR_ILLEGAL_INSTRUCTION where the innermost coordinate is not a multiple of 16 bytes, and for a
# store where any coordinate is negative.
PLACES = {
    1: [(0,), (-16,), (80,), (112,), (48,)],
    2: [(0, 0), (-8, -2), (32, 15), (8, 200), (-96, 3)],
    3: [(0, 0, 0), (-8, 2, 1), (16, -1, 3), (8, 5, -1)],
    4: [(0, 0, 0, 0), (-4, 1, 1, 1), (8, 3, -1, 2)],
    5: [(0, 0, 0, 0, 0), (-4, 1, 1, 1, 1), (8, -1, 2, 2, -1)],
}


def tensors() -> list[Case]:
    cases = []
    shapes = {
        1: ("UINT8", (100,), (32,)), 2: ("FLOAT16", (40, 20), (16, 8)), 3: ("UINT16", (24, 7, 5), (8, 4, 3)),
        4: ("FLOAT32", (12, 6, 4, 3), (4, 3, 2, 2)), 5: ("INT32", (12, 4, 3, 3, 2), (4, 2, 2, 2, 2)),
    }  # fmt: skip
    for rank, (kind, dims, box) in shapes.items():
        cases.append(load(f"{rank}d.{kind.lower()}", padded_map("a", kind, dims, box), PLACES[rank]))
    writes = {
        1: [(0,), (48,), (80,)], 2: [(0, 0), (8, 12), (32, 5), (24, 17)], 3: [(0, 0, 0), (8, 5, 1), (16, 0, 3)],
        4: [(0, 0, 0, 0), (8, 5, 0, 2), (4, 1, 3, 0)], 5: [(0, 0, 0, 0, 0), (8, 3, 0, 2, 0), (4, 0, 2, 1, 1)],
    }  # fmt: skip
    for rank, (kind, dims, box) in shapes.items():
        cases.append(store(f"{rank}d.{kind.lower()}", padded_map("d", kind, dims, box), writes[rank]))
    for swizzle, elements in (("32B", 16), ("64B", 32), ("128B", 64)):
        wide = padded_map("a", "FLOAT16", (150, 40), (elements, 24), swizzle=swizzle)
        cases.append(load(f"2d.swizzle_{swizzle}", wide, [(0, 0), (-8, -5), (120, 30)]))
        wide = padded_map("d", "BFLOAT16", (150, 60), (elements, 24), swizzle=swizzle)
        cases.append(store(f"2d.swizzle_{swizzle}", wide, [(0, 0), (72, 24), (120, 50)]))
        deep = padded_map("a", "UINT8", (300, 6, 5), (2 * elements, 3, 4), swizzle=swizzle)
        cases.append(load(f"3d.swizzle_{swizzle}.uint8", deep, [(0, 0, 0), (-16, 2, 3)]))
        half = padded_map("a", "FLOAT32", (40, 40), (max(elements // 4, 4), 12), swizzle=swizzle)
        cases.append(load(f"2d.swizzle_{swizzle}.half_rows", half, [(0, 0), (-4, 33)]))
        half = padded_map("d", "FLOAT32", (40, 40), (max(elements // 4, 4), 12), swizzle=swizzle)
        cases.append(store(f"2d.swizzle_{swizzle}.half_rows", half, [(0, 0), (8, 33)]))
    for kind in ("FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64"):
        filled = padded_map("a", kind, (20, 10), (8, 4), fill_nan=True)
        cases.append(load(f"2d.nan_fill.{kind.lower()}", filled, [(0, 0), (-8, -2), (16, 8)]))
    strided = padded_map("a", "FLOAT16", (40, 30, 6), (16, 8, 4), steps=(1, 3, 2))
    cases.append(load("3d.steps", strided, [(0, 0, 0), (-8, -1, 1), (32, 20, 3)]))
    strided = padded_map("d", "FLOAT16", (40, 30, 6), (16, 8, 4), steps=(1, 3, 2))
    cases.append(store("3d.steps", strided, [(0, 0, 0), (24, 13, 1)]))
    outside = padded_map("d", "FLOAT16", (40, 20), (16, 8))
    cases.append(store("2d.outside", outside, [(40, 3), (8, 30)]))
    exact = padded_map("a", "INT64", (6, 5), (6, 5))
    cases.append(load("2d.whole.int64", exact, [(0, 0), (2, 2)]))
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return bulk() + tensors()
