"""Tensor maps: what they say of a problem, where they are in the parameters, and when they are encoded."""

import random
import re
import threading
from array import array
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import context, emulated_driver, recorded, run_python

import flashcore_drv as fc
from flashcore_drv import abi, catalog, tma
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.emulator.driver.hostmemory import host_bytes
from flashcore_drv.emulator.instructions.tma import decode
from flashcore_drv.images import load
from flashcore_drv.plan import contiguous, flash_params, plan_flash, tensor_maps
from flashcore_drv.problem import UNBOUNDED, Matrices, Packed, Problem
from flashcore_drv.runtime import DeviceArray, Launch, Stream, TensorMap, driver
from flashcore_drv.schedule import Work, busiest, tile_schedule

B, H, HK, SQ, SK, D = 2, 4, 2, 70, 90, 64
OFFSETS = abi.FLASH_FWD_TMA_PARAMS.offsets
MAPS = {name: OFFSETS[f"{name}_map.opaque"][0] for name in "qkv"}
POINTERS = {name: OFFSETS[f"fwd.{name}.data"][0] for name in "qkv"}


def problem_of(
    batch=B, heads=H, heads_kv=HK, seqlen_q=SQ, seqlen_k=SK, head_dim=D, causal=False, **features
) -> Problem:
    q, kv = contiguous(batch, heads, seqlen_q, head_dim), contiguous(batch, heads_kv, seqlen_k, head_dim)
    return Problem(q, kv, kv, q, F16, 0.125, window_right=0 if causal else UNBOUNDED, **features)


def kernel_of(family, device, size="d64"):
    spec = next(s for s in catalog.CATALOG if (s.family, s.dtype, s.size) == (family, F16, size))
    return load(spec, device)


# ---- what they say


strides = st.integers(1, 1 << 20).map(lambda n: 8 * n)
extents = st.integers(1, 5)


@given(shape=st.tuples(extents, extents, extents, st.sampled_from([8, 64])), steps=st.tuples(*[strides] * 3))
def test_a_map_finds_every_element(shape, steps) -> None:
    """Where the strides of the problem, which are 0 along a dimension of 1, find it."""
    steps = [s if n > 1 else 0 for n, s in zip(shape, steps)]
    x = Matrices(*shape, *steps)
    for found in tma.tiled(Problem(x, x, x, x, F16, 1.0)):
        assert found.dims == shape[::-1]
        assert all(s % 16 == 0 and 0 < s < 1 << 40 for s in found.strides)
        for index in np.ndindex(*shape):
            wanted = 2 * sum(i * s for i, s in zip(index, (*steps, 1)))
            assert 2 * index[3] + sum(i * s for i, s in zip(index[2::-1], found.strides)) == wanted


def test_a_map_of_packed_sequences_has_all_their_rows() -> None:
    q, kv = Matrices(3, 4, 50, 64, 0, 64, 256), Matrices(3, 2, 60, 64, 0, 64, 128)
    v = replace(kv, cols=72, head_stride=72, row_stride=144)
    found = tma.tiled(Problem(q, kv, v, q, BF16, 1.0, varlen=Packed(101, 102)))
    assert [x.dims for x in found] == [(64, 101, 4, 1), (64, 102, 2, 1), (72, 102, 2, 1)]
    assert [x.strides[:2] for x in found] == [(512, 128), (256, 128), (288, 144)]


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_the_maps_of_a_kernel(hopper, dtype) -> None:
    emulated_driver()
    kernel = kernel_of("flash_fwd_tma", hopper)
    maps = tensor_maps(kernel, replace(problem_of(), dtype=dtype))
    assert list(maps) == list(MAPS.values())
    with hopper.active():
        q, k, v = (decode(placed(x, hopper, 0x7F0000000000 + 16)) for x in maps.values())
    assert q.data_type == int(getattr(driver.module().CUtensorMapDataType, {
        F16: "CU_TENSOR_MAP_DATA_TYPE_FLOAT16", BF16: "CU_TENSOR_MAP_DATA_TYPE_BFLOAT16"}[dtype]))  # fmt: skip
    assert q.box == (64, kernel.box_rows_q, 1, 1)
    assert k.box == v.box == (64, kernel.box_rows_kv, 1, 1)
    for x in (q, k, v):
        assert (x.address, x.swizzle, x.interleave, x.oob_fill) == (0x7F0000000010, 3, 0, 0)


def test_other_kernels_have_none(hopper) -> None:
    spec = next(s for s in catalog.CATALOG if s.stem == "flash_fwd_f16_d64_sm89")
    assert tensor_maps(load(spec, hopper), problem_of()) == {}


# ---- the order of the tiles


L2 = 50 << 20


@given(
    batch=st.integers(1, 5),
    heads=st.integers(1, 15),
    seqlen=st.integers(1, 5000),
    head_dim=st.sampled_from([64, 256]),
    causal=st.booleans(),
    sms=st.integers(1, 200),
    l2_bytes=st.integers(0, L2),
)
def test_every_row_is_made_once(batch, heads, seqlen, head_dim, causal, sms, l2_bytes) -> None:
    """As cuda/flash_fwd/row_blocks.cuh counts them."""
    schedule = tile_schedule(problem_of(batch, heads, heads, seqlen, seqlen, head_dim, causal), 192, sms, l2_bytes)
    row_blocks, made = -(-seqlen // 192), []
    for tile in range(schedule.tiles):
        group, of_group = divmod(tile, schedule.group_tiles)
        outer, inner = divmod(of_group, schedule.inner)
        head, n = (group * schedule.inner + inner, outer) if schedule.heads_first else (outer, inner)
        made.append((head, row_blocks - 1 - n))
        if schedule.paired and n != row_blocks - 1 - n:
            made.append((head, n))
    assert sorted(made) == [(head, row) for head in range(batch * heads) for row in range(row_blocks)]
    assert schedule.blocks in (schedule.tiles, sms)
    assert schedule.heads_first or schedule.group_tiles == schedule.tiles


@given(lengths=st.lists(st.integers(0, 500), min_size=1, max_size=20), spare=st.integers(0, 300), causal=st.booleans())
def test_packed_sequences_have_no_more_tiles_than_counted(lengths, spare, causal) -> None:
    problem = problem_of(len(lengths), 3, 3, max(lengths) + spare, causal=causal)
    problem = replace(problem, varlen=Packed(sum(lengths) + spare, sum(lengths) + spare))
    schedule = tile_schedule(problem, 128, 132, L2)
    assert schedule.tiles >= 3 * sum(-(-n // 128) for n in lengths)
    assert schedule.tiles <= 3 * len(lengths) * -(-problem.seqlen_q // 128)
    assert schedule.sequences == len(lengths)
    assert not schedule.paired


@pytest.mark.parametrize(("sequences", "longest", "apart"), [(64, 4096, True), (65, 4096, False), (64, 512, False)])
def test_few_long_packed_sequences_have_a_block_for_each_tile(sequences, longest, apart) -> None:
    problem = problem_of(sequences, 32, 32, longest, longest)
    problem = replace(problem, varlen=Packed(20 * longest, 20 * longest))
    schedule = tile_schedule(problem, 192, 132, L2)
    assert schedule.blocks == (schedule.tiles if apart else 132)


@pytest.mark.parametrize(
    ("row_blocks", "causal", "l2_bytes", "heads_first", "paired"),
    [
        (8, False, L2, False, False),
        (8, True, L2, False, True),
        (7, True, 0, False, True),
        (7, True, L2, True, False),
        (6, True, 0, True, False),
    ],
)
def test_long_and_short_row_blocks_go_together(row_blocks, causal, l2_bytes, heads_first, paired) -> None:
    """Unless there are fewer pairs than SMs, or single ones, the longest of all heads first, fill them better."""
    problem = problem_of(1, 33, 33, row_blocks * 128, row_blocks * 128, causal=causal)
    schedule = tile_schedule(problem, 128, 132, l2_bytes)
    assert (schedule.heads_first, schedule.paired) == (heads_first, paired)


@given(
    heads=st.integers(1, 60),
    seqlen=st.integers(1, 1500),
    causal=st.booleans(),
    sms=st.integers(1, 150),
    l2_bytes=st.sampled_from([0, L2]),
)
def test_the_busiest_sm_is_that_of_the_kernels_order(heads, seqlen, causal, sms, l2_bytes) -> None:
    problem = problem_of(1, heads, heads, seqlen, seqlen, 64, causal)
    schedule = tile_schedule(problem, 128, sms, l2_bytes)
    row_blocks, loads = -(-seqlen // 128), []
    for block in range(schedule.blocks):
        tile, step, made = block, 2 * (schedule.blocks - block) - 1, []
        while tile < schedule.tiles:
            inner = tile % schedule.group_tiles // schedule.inner if schedule.heads_first else tile % schedule.inner
            made += {row_blocks - 1 - inner, inner} if schedule.paired else [row_blocks - 1 - inner]
            tile, step = tile + step, 2 * schedule.blocks - step
        keys = [min((n + 1) * 128, seqlen) if causal else seqlen for n in made]
        rows = [-(-(min((n + 1) * 128, seqlen) - n * 128) // 64) * 64 for n in made]
        loads.append(Work(len(made), sum(keys), sum(k * r for k, r in zip(keys, rows, strict=True)) / 128))
    work = busiest(problem, schedule, 128, sms)
    if schedule.blocks <= sms:
        assert work in loads
        assert work.as_keys == pytest.approx(max(x.as_keys for x in loads))
    else:
        assert work.as_keys >= max(x.as_keys for x in loads) * 0.999999


@pytest.mark.parametrize(
    ("head_dim", "tile_rows", "seqlen", "causal", "group"),
    [
        (64, 192, 512, False, None),
        (64, 192, 4096, False, 128),
        (64, 192, 2048, True, 64),
        (64, 192, 16384, True, 8),
        (128, 128, 4096, True, None),
        (128, 128, 8192, True, 8),
        (128, 128, 16384, True, 4),
        (128, 128, 16384, False, None),
        (256, 128, 2048, True, None),
        (256, 128, 4096, True, 8),
        (256, 128, 16384, True, 2),
    ],
)
def test_long_tiles_have_blocks_of_their_own(head_dim, tile_rows, seqlen, causal, group) -> None:
    """In groups of heads whose K and V fit the L2, as measured on an H200 (cuda/NOTES.md): 16 k tokens."""
    heads = 2048 // head_dim
    problem = problem_of(16384 // seqlen, heads, heads, seqlen, seqlen, head_dim, causal)
    schedule = tile_schedule(problem, tile_rows, 132, L2)
    assert schedule.blocks == (132 if group is None else schedule.tiles)
    if causal and group:
        assert schedule.inner == group


@pytest.mark.parametrize(("batch", "heads", "seqlen_q"), [(1, 1, 1), (1, 4, 70), (8, 64, 1000), (3, 44, 65)])
def test_a_persistent_grid_is_no_larger_than_the_gpu_or_the_tiles(hopper, batch, heads, seqlen_q) -> None:
    kernel = kernel_of("flash_fwd_tma", hopper)
    problem = problem_of(batch, heads, heads, seqlen_q)
    tiles = batch * heads * -(-seqlen_q // kernel.tile_rows)
    (launch,) = plan_flash(hopper, kernel.spec, problem, {})
    assert launch.blocks == min(tiles, hopper.multiprocessors * kernel.blocks_an_sm)
    members = abi.FLASH_FWD_TMA_PARAMS.unpack(launch.params.tobytes())
    assert members["schedule.tiles"] == tiles
    assert members["fwd.row_blocks"] == -(-seqlen_q // kernel.tile_rows)


def test_more_tiles_than_a_block_can_count_are_refused(hopper) -> None:
    problem = problem_of(1 << 20, 1 << 11, 1 << 11, 1)
    with pytest.raises(fc.Unsupported, match=r"flash_fwd_tma_f16_d64_sm90a: .* needs \d+ blocks; a grid has up to \d+"):
        plan_flash(hopper, kernel_of("flash_fwd_tma", hopper).spec, problem, {})


# ---- where they are, and when they are encoded


def placed(tensor: TensorMap, device: fc.Device, address: int) -> bytes:
    """The bytes of a tensor map."""
    words = memoryview(array("Q", bytes(128)))
    tensor.place(device, address, words)
    return words.tobytes()


def test_a_map_is_read_while_what_the_driver_made_is_there(hopper, monkeypatch) -> None:
    """Its memory is another's once nobody has it."""
    memory = np.zeros(128, np.uint8)

    class Encoded:
        def __init__(self) -> None:
            memory[:] = 7

        def getPtr(self) -> int:  # noqa: N802 (as the bindings name it)
            return int(memory.__array_interface__["data"][0])

        def __del__(self) -> None:
            memory[:] = 0

    monkeypatch.setattr(TensorMap, "_encode", lambda self, address: Encoded())
    assert placed(TensorMap("FLOAT16", (64, 1, 1, 1), (128,) * 3, 64), hopper, 0x7F0000000000) == bytes([7] * 128)


def test_parameters_start_on_64_bytes(hopper) -> None:
    kernel = kernel_of("flash_fwd_tma", hopper)
    params = flash_params(kernel, problem_of(), {}, 1)
    launches = [
        Launch(kernel.kernel, 1, kernel.threads, params, tensor_maps=tensor_maps(kernel, problem_of()))
        for _ in range(20)
    ]
    for launch in (*launches, *(x.twin() for x in launches)):
        assert launch.params.__array_interface__["data"][0] % 64 == 0
        assert launch.params.tobytes() == params
        launch.place_maps([0x7F0000000000])
        changed = np.flatnonzero(launch.params != np.frombuffer(params, np.uint8))
        assert {at // 128 * 128 for at in changed - MAPS["q"]} == {0}


def test_a_map_is_encoded_once_and_then_moved(hopper) -> None:
    kernel = kernel_of("flash_fwd_tma", hopper)
    maps = tensor_maps(kernel, problem_of())
    launch = Launch(kernel.kernel, 1, kernel.threads, flash_params(kernel, problem_of(), {}, 1), tensor_maps=maps)
    twin, addresses = launch.twin(), [0x7F0000000000 + 16 * i for i in range(400)]
    encode, replace_address = "cuTensorMapEncodeTiled", "cuTensorMapReplaceAddress"

    def moved(which: Launch, to: list[int]) -> list[str]:
        with hopper.active(), recorded() as calls:
            for address in to:
                which.place_maps([address])
        wanted = placed(tensor_maps(kernel, problem_of())[MAPS["q"]], hopper, to[-1])
        assert which.params[MAPS["q"] : MAPS["q"] + 128].tobytes() == wanted
        return encodings(calls)

    with hopper.active():
        assert moved(launch, addresses[:4]) == [encode, *[replace_address] * 3]
        assert moved(launch, addresses[3::-1]) == []
        assert moved(twin, addresses[:4]) == []  # what one knows the other does
        assert moved(twin, addresses[4:6]) == [replace_address] * 2
        assert moved(launch, addresses) == [replace_address] * 394
        assert moved(launch, addresses[-1:]) == []
        assert len(maps[MAPS["q"]].known) <= 128


@pytest.mark.parametrize("address", [0x7F0000000008, 0x7F0000000001])
def test_the_driver_refuses_a_map_and_says_so(hopper, address) -> None:
    kernel = kernel_of("flash_fwd_tma", hopper)
    launch = Launch(
        kernel.kernel, 1, 1, bytes(abi.FLASH_FWD_TMA_PARAMS.size), tensor_maps=tensor_maps(kernel, problem_of())
    )
    with pytest.raises(fc.DriverError, match="cuTensorMapEncodeTiled"):
        launch.place_maps([address])
    launch.place_maps([0x7F0000000000])
    with pytest.raises(fc.DriverError, match="cuTensorMapReplaceAddress"):
        launch.place_maps([address])
    narrow = TensorMap("FLOAT16", (64, 1, 1, 1), (8, 16, 16), 64)
    with pytest.raises(fc.DriverError, match="cuTensorMapEncodeTiled"):
        narrow.place(hopper, 0x7F0000000000, launch.words[:16])


# ---- plans


def make(seed=0):
    """q, k, v with a mean."""
    rng = np.random.default_rng(seed)
    shapes = (B, SQ, H, D), (B, SK, HK, D), (B, SK, HK, D)
    return [(rng.standard_normal(s, np.float32) + 0.5).astype(np.float16) for s in shapes]


def up(*arrays):
    return [DeviceArray.from_numpy(x) for x in arrays]


@pytest.fixture
def launched(hopper, monkeypatch):
    """The parameters of every launch, which is not made: (pointer of q, k, v, address in its map) of each."""
    module, found = emulated_driver(), []

    def launch(_config, _function, table, _extra):
        (block,) = host_bytes(table, 8).view(np.uint64).tolist()
        params = host_bytes(block, abi.FLASH_FWD_TMA_PARAMS.size).tobytes()
        pointers = [int.from_bytes(params[at : at + 8], "little") for at in POINTERS.values()]
        found.append((pointers, [decode(params[at : at + 128]).address for at in MAPS.values()]))
        return (module.CUresult.CUDA_SUCCESS,)

    monkeypatch.setattr(module, "cuLaunchKernelEx", launch)
    return found


def encodings(calls) -> list[str]:
    return [name for name in calls.names() if name.startswith("cuTensorMap")]


def test_maps_are_encoded_again_only_where_a_pointer_changed(hopper, launched) -> None:
    plan = fc.plan_attention(*make(), impl="flash_sm90")
    base = 0x7F0000000000
    first = [base, base + 0x10000, base + 0x20000]
    encode, move = "cuTensorMapEncodeTiled", "cuTensorMapReplaceAddress"
    for pointers, wanted in [
        (first, [encode] * 3),
        (first, []),
        ([base + 16, *first[1:]], [move]),
        ([base + 16, *first[1:]], []),
        (first, []),  # it is known what it was there
        ([first[0], first[2], first[1]], [move] * 2),
        ([x + 32 for x in first], [move] * 3),
        ([base + 16, first[2], first[1]], []),
    ]:
        with hopper.active(), recorded() as calls:
            plan(*pointers, base + 0x30000)
        assert encodings(calls) == wanted
        assert launched[-1] == (pointers, pointers)


@given(order=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30))
def test_the_maps_of_a_launch_are_of_its_pointers(hopper, launched, order) -> None:
    plan = fc.plan_attention(*make(), impl="flash_sm90", causal=True)
    launched.clear()
    wanted = [[0x7F0000000000 + 0x1000 * i for i in places] for places in order]
    for pointers in wanted:
        plan(*pointers, 0x7F0000100000)
    assert launched == [(x, x) for x in wanted]


def test_a_thread_without_a_context(hopper, launched) -> None:
    """What fails for that is made again with the context, which the thread does not keep."""
    plan = fc.plan_attention(*make(), impl="flash_sm90")
    seen = []

    def run() -> None:
        for i in (0, 1, 2, 0):
            with recorded() as calls:
                plan(*[0x7F0000000000 + 16 * i] * 4)
            seen.append(encodings(calls))
        seen.append(context())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    again = ["cuTensorMapReplaceAddress"] * 6
    assert seen == [["cuTensorMapEncodeTiled"] * 3, again, again, [], 0]
    pointers = [[0x7F0000000000 + 16 * i] * 3 for i in (0, 1, 2, 0)]
    assert [x[0] for x in launched] == [x[1] for x in launched] == pointers


def test_threads_have_maps_of_their_own(hopper, launched) -> None:
    plan = fc.plan_attention(*make(), impl="flash_sm90")
    start = threading.Barrier(8)

    def run(seed: int) -> None:
        draw = random.Random(seed)
        start.wait()
        for _ in range(200):
            plan(*(0x7F0000000000 + 0x1000 * draw.randrange(64) for _ in "qkv"), 0x7F0000100000)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(launched) == 1600
    assert [x for x in launched if x[0] != x[1]] == []


def test_a_launch_that_failed_leaves_no_map_behind(hopper, launched, monkeypatch) -> None:
    """Its parameter block is not used again: pointer and map may differ in it."""
    plan = fc.plan_attention(*make(), impl="flash_sm90")
    module, base = driver.module(), 0x7F0000000000
    plan(base, base, base, base)
    with monkeypatch.context() as patch:
        patch.setattr(module, "cuTensorMapReplaceAddress", lambda *_: (module.CUresult.CUDA_ERROR_INVALID_VALUE,))
        with pytest.raises(fc.DriverError, match="cuTensorMapReplaceAddress"):
            plan(base, base + 16, base, base)
    plan(base, base + 16, base, base)
    assert launched[-1] == ([base, base + 16, base],) * 2


@pytest.mark.parametrize("causal", [False, True])
def test_a_plan_computes_what_attention_does(hopper, causal) -> None:
    options = {"impl": "flash_sm90", "causal": causal}
    plan = fc.plan_attention(*make(), **options)
    family = f"flash_fwd_tma{'_causal' if causal else ''}(_short|_few)?"
    assert re.fullmatch(f"{family}_f16_d64_sm90a", plan.kernel)
    out = DeviceArray.empty((B, SQ, H, D), np.float16)
    for seed in range(2):
        arrays = up(*make(seed))
        with Stream(hopper) as stream:
            out.fill_bytes(0xFF, stream)
            plan(*arrays, out, stream=stream)
            found = out.to_numpy(stream=stream)
        assert found.tobytes() == fc.attention(*make(seed), **options).tobytes()
        np.testing.assert_allclose(found, fc.attention(*make(seed), causal=causal, impl="flash_sm80"), atol=4e-3)


def test_packed_sequences_by_tma(hopper) -> None:
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in make())
    starts_q, starts_k = np.array([0, 70, 70, 139], np.int32), np.array([0, 33, 90, 179], np.int32)
    given_arrays = q, k, v, starts_q, starts_k, 70, 90
    plan = fc.plan_attention_varlen(*given_arrays, impl="flash_sm90")
    assert plan.kernel == "flash_fwd_tma_f16_d64_sm90a"
    found = fc.attention_varlen(*given_arrays, impl="flash_sm90")
    np.testing.assert_allclose(found, fc.attention_varlen(*given_arrays, impl="flash_sm80"), atol=4e-3)


def test_an_address_that_cannot_be_right(hopper, launched) -> None:
    plan = fc.plan_attention(*make(), impl="flash_sm90")
    for which, wrong in [(0, -16), (1, 1 << 64), (2, 1 << 70), (3, -16)]:
        given_addresses = [0x7F0000000000] * 4
        given_addresses[which] = wrong
        with pytest.raises(fc.InvalidArgument, match=r"allowed: addresses of 64 bits"):
            plan(*given_addresses)
    assert launched == []
    plan(*[0x7F0000000000] * 4)
    assert launched == [([0x7F0000000000] * 3,) * 2]


def test_a_process_that_was_forked_is_told(tmp_path) -> None:
    """Also by what encodes."""
    code = (
        "import os, flashcore_drv as fc\n"
        "from flashcore_drv.runtime import Device, TensorMap, driver\n"
        "driver.module()\ndevice = Device.get(0)\n"
        "if os.fork() == 0:\n"
        "    try: TensorMap('FLOAT16', (64, 1, 1, 1), (128,) * 3, 64).place(\n"
        "            device, 1 << 40, memoryview(bytearray(128)).cast(chr(81)))\n"
        "    except fc.NoDriverError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    ran = run_python("-c", code, FLASHCORE_DRIVER="emulator", FLASHCORE_EMULATED_ARCH="sm_90")
    assert "forked" in ran.stdout, ran.stderr
