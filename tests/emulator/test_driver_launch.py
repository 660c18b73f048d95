"""Modules, functions and launches of the emulated driver."""

from __future__ import annotations

import numpy as np
import pytest
from driver_cases import (
    OK,
    PTX,
    Table,
    address,
    download,
    error,
    fill,
    fill_table,
    kernels,
    ok,
    saxpy_table,
    start,
    upload,
)

from flashcore_drv.emulator import driver

FUNCTION = driver.CUfunction_attribute
DYNAMIC = FUNCTION.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@pytest.fixture(autouse=True)
def functions():
    driver.reset("sm_89")
    start()
    return kernels()[1]


def attribute(function, name):
    return ok(driver.cuFuncGetAttribute(getattr(FUNCTION, f"CU_FUNC_ATTRIBUTE_{name}"), function))


def config(stream=0, grid=(1, 1, 1), block=(32, 1, 1), shared=0, **attributes):
    made = driver.CUlaunchConfig()
    made.gridDimX, made.gridDimY, made.gridDimZ = grid
    made.blockDimX, made.blockDimY, made.blockDimZ = block
    made.sharedMemBytes, made.hStream = shared, stream
    chosen = []
    for name, value in attributes.items():
        each = driver.CUlaunchAttribute()
        each.id = getattr(driver.CUlaunchAttributeID, f"CU_LAUNCH_ATTRIBUTE_{name}")
        if name == "CLUSTER_DIMENSION":
            each.value.clusterDim.x, each.value.clusterDim.y, each.value.clusterDim.z = value
        else:
            each.value.programmaticStreamSerializationAllowed = value
        chosen.append(each)
    made.attrs, made.numAttrs = chosen, len(chosen)
    return made


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_saxpy_over_several_blocks(seed):
    driver.reset("sm_89", seed=seed)
    start()
    functions = kernels()[1]
    rng = np.random.default_rng(0)
    n = 1000
    x, y = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    x_device, y_device = upload(x), upload(y)
    table = saxpy_table(1.5, x_device, y_device, n)
    ok(driver.cuLaunchKernel(functions["saxpy"], 4, 1, 1, 256, 1, 1, 0, 0, table.address, 0))
    ok(driver.cuStreamSynchronize(0))
    expected = (1.5 * x.astype(np.float64) + y).astype(np.float32)
    assert np.array_equal(download(y_device, n, np.float32), expected)
    assert [name for name, _ in driver.reports()] == ["saxpy"]


def test_parameters_are_copied_at_the_call(functions):
    pointer = ok(driver.cuMemAlloc(128))
    table = fill_table(pointer, 7)
    ok(driver.cuLaunchKernel(functions["fill"], 1, 1, 1, 32, 1, 1, 0, 0, table.address, 0))
    table.values[0][:] = 0
    table.table[:] = 0
    ok(driver.cuStreamSynchronize(0))
    assert download(pointer, 32, np.uint32).tolist() == [7] * 32


def test_launch_with_attributes(functions):
    pointer = ok(driver.cuMemAlloc(128))
    table, f = fill_table(pointer, 7), functions["fill"]
    serialised = config(PROGRAMMATIC_STREAM_SERIALIZATION=0, CLUSTER_DIMENSION=(1, 1, 1))
    assert driver.cuLaunchKernelEx(serialised, f, table.address, 0) == (OK,)
    ok(driver.cuCtxSynchronize())
    assert download(pointer, 32, np.uint32).tolist() == [7] * 32
    assert error(driver.cuLaunchKernelEx(config(CLUSTER_DIMENSION=(2, 1, 1)), f, table.address, 0)) == "NOT_SUPPORTED"
    assert error(driver.cuLaunchKernelEx(config(CLUSTER_DIMENSION=(0, 1, 1)), f, table.address, 0)) == "INVALID_VALUE"
    assert error(driver.cuLaunchKernelEx(None, f, table.address, 0)) == "INVALID_VALUE"
    assert error(driver.cuLaunchKernelEx(config(), f, table.address, 1)) == "NOT_SUPPORTED"
    assert error(driver.cuLaunchKernelEx(config(stream=77), f, table.address, 0)) == "INVALID_HANDLE"


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((0, 1, 1), (32, 1, 1), 0),
        ((1, 1, 1), (32, 0, 1), 0),
        ((1, 65536, 1), (32, 1, 1), 0),
        ((1, 1, 65536), (32, 1, 1), 0),
        ((1, 1, 1), (1025, 1, 1), 0),
        ((1, 1, 1), (1, 1, 65), 0),
        ((1, 1, 1), (32, 33, 1), 0),
        ((1, 1, 1), (32, 1, 1), 49153),
    ],
)
def test_launches_beyond_the_limits_are_invalid_values(functions, grid, block, shared):
    table = fill_table(ok(driver.cuMemAlloc(128)), 1)
    launch = config(grid=grid, block=block, shared=shared)
    assert error(driver.cuLaunchKernelEx(launch, functions["fill"], table.address, 0)) == "INVALID_VALUE"
    ok(driver.cuCtxSynchronize())


def test_launch_bounds_of_the_kernel_count(functions):
    table = saxpy_table(1, ok(driver.cuMemAlloc(4)), ok(driver.cuMemAlloc(4)), 0)
    assert attribute(functions["saxpy"], "MAX_THREADS_PER_BLOCK") == 256
    assert error(driver.cuLaunchKernelEx(config(block=(257, 1, 1)), functions["saxpy"], table.address, 0)) == (
        "INVALID_VALUE"
    )
    assert driver.cuLaunchKernelEx(config(block=(256, 1, 1)), functions["saxpy"], table.address, 0) == (OK,)


@pytest.mark.parametrize(("arch", "most"), [("sm_80", 163), ("sm_89", 99), ("sm_90", 227)])
def test_more_than_48_kb_of_shared_memory_has_to_be_asked_for(arch, most):
    driver.reset(arch)
    start()
    function = kernels()[1]["fill"]
    table = fill_table(ok(driver.cuMemAlloc(128)), 1)
    large = config(shared=most * 1024)
    assert attribute(function, DYNAMIC.name.removeprefix("CU_FUNC_ATTRIBUTE_")) == 49152
    assert error(driver.cuLaunchKernelEx(large, function, table.address, 0)) == "INVALID_VALUE"
    assert error(driver.cuFuncSetAttribute(function, DYNAMIC, most * 1024 + 1)) == "INVALID_VALUE"
    assert error(driver.cuFuncSetAttribute(function, DYNAMIC, -1)) == "INVALID_VALUE"
    ok(driver.cuFuncSetAttribute(function, DYNAMIC, most * 1024))
    assert driver.cuLaunchKernelEx(large, function, table.address, 0) == (OK,)
    ok(driver.cuCtxSynchronize())
    again = ok(driver.cuModuleGetFunction(ok(driver.cuFuncGetModule(function)), b"fill"))
    assert attribute(again, "MAX_DYNAMIC_SHARED_SIZE_BYTES") == most * 1024


def test_function_facts(functions):
    saxpy = functions["saxpy"]
    assert [ok(driver.cuFuncGetParamInfo(saxpy, i)) for i in range(4)] == [(0, 4), (8, 8), (16, 8), (24, 4)]
    assert error(driver.cuFuncGetParamInfo(saxpy, 4)) == "INVALID_VALUE"
    assert ok(driver.cuFuncGetParamInfo(functions["fill"], 0)) == (0, 16)
    assert ok(driver.cuFuncGetName(saxpy)) == b"saxpy"
    assert attribute(saxpy, "PTX_VERSION") == 80
    assert attribute(saxpy, "BINARY_VERSION") == 89
    assert attribute(saxpy, "CONST_SIZE_BYTES") == 16
    assert attribute(saxpy, "SHARED_SIZE_BYTES") == attribute(saxpy, "LOCAL_SIZE_BYTES") == 0
    carveout = FUNCTION.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
    ok(driver.cuFuncSetAttribute(saxpy, carveout, 100))
    assert ok(driver.cuFuncGetAttribute(carveout, saxpy)) == 100
    assert error(driver.cuFuncSetAttribute(saxpy, carveout, 101)) == "INVALID_VALUE"
    assert error(driver.cuFuncSetAttribute(saxpy, FUNCTION.CU_FUNC_ATTRIBUTE_NUM_REGS, 3)) == "INVALID_VALUE"


@pytest.mark.parametrize(
    ("threads", "shared", "blocks"), [(32, 0, 24), (1024, 0, 1), (256, 0, 6), (128, 32 * 1024, 3), (128, 99 * 1024, 1)]
)
def test_occupancy_by_threads_and_shared_memory(functions, threads, shared, blocks):
    fits = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
    assert ok(fits(functions["fill"], threads, shared)) == blocks
    assert ok(driver.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(functions["fill"], threads, shared, 0)) == (
        blocks
    )
    assert ok(fits(functions["fill"], 1025, 0)) == ok(fits(functions["fill"], 32, 100 * 1024)) == 0
    assert error(fits(functions["fill"], 0, 0)) == "INVALID_VALUE"


def test_globals_have_initial_values_and_belong_to_their_module(functions):
    first, second = ok(driver.cuModuleLoadData(PTX)), ok(driver.cuModuleLoadData(PTX))
    out = ok(driver.cuMemAlloc(4))
    counters = [ok(driver.cuModuleGetGlobal(module, b"counter")) for module in (first, second)]
    assert [size for _, size in counters] == [4, 4]
    assert int(counters[0][0]) != int(counters[1][0])
    function, table = ok(driver.cuModuleGetFunction(second, b"count")), Table(np.uint64(int(out)))
    for _ in range(2):
        ok(driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, table.address, 0))
        ok(driver.cuStreamSynchronize(0))
    assert download(out, 1, np.uint32) == 9
    assert [int(download(pointer, 1, np.uint32)[0]) for pointer, _ in counters] == [7, 9]
    weights, size = ok(driver.cuModuleGetGlobal(first, b"weights"))
    assert size == 16
    assert download(weights, 4, np.float32).tolist() == [1, 2, 3, 4]
    assert error(driver.cuModuleGetGlobal(first, b"saxpy")) == "NOT_FOUND"
    assert error(driver.cuModuleGetFunction(first, b"counter")) == "NOT_FOUND"


def test_unloading_frees_the_globals_and_waits_for_work(functions):
    before = ok(driver.cuMemGetInfo())[0]
    module, loaded = kernels()
    pointer = ok(driver.cuMemAlloc(128))
    ok(fill(loaded["fill"], pointer, 4))
    ok(driver.cuModuleUnload(module))
    assert download(pointer, 32, np.uint32).tolist() == [4] * 32
    assert error(driver.cuModuleUnload(module)) == "INVALID_HANDLE"
    assert error(fill(loaded["fill"], pointer, 4)) == "INVALID_HANDLE"
    ok(driver.cuMemFree(pointer))
    assert ok(driver.cuMemGetInfo())[0] == before


def test_modules_load_from_addresses():
    text = np.frombuffer(PTX + b"\0 what follows is not read", np.uint8).copy()
    ok(driver.cuModuleGetFunction(ok(driver.cuModuleLoadData(address(text))), b"saxpy"))
    ok(driver.cuModuleGetFunction(ok(driver.cuModuleLoadData(text)), b"saxpy"))
    assert error(driver.cuModuleLoadData(None)) == "INVALID_VALUE"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"\x7fELF and so on", "NO_BINARY_FOR_GPU"),
        (b"", "INVALID_IMAGE"),
        (b"no PTX at all", "INVALID_IMAGE"),
        (PTX.replace(b"sm_80", b"sm_90"), "INVALID_PTX"),
        (PTX.replace(b"sm_80", b"sm_90a"), "INVALID_PTX"),
        (PTX.replace(b"mad.lo.s32", b"@@@"), "INVALID_PTX"),
    ],
)
def test_images_that_do_not_load(image, expected):
    assert error(driver.cuModuleLoadData(image)) == expected


def test_a_text_that_is_not_understood_is_explained():
    assert error(driver.cuModuleLoadData(PTX.replace(b"mad.lo.s32", b"@@@"))) == "INVALID_PTX"
    assert driver.last_error().kind == "parse"


def test_reports_are_bounded(functions):
    pointer = ok(driver.cuMemAlloc(128))
    for _ in range(300):
        ok(fill(functions["fill"], pointer, 1))
    ok(driver.cuCtxSynchronize())
    assert len(driver.reports()) == 256


def tensor_map(**changes):
    u64, u32 = driver.cuuint64_t, driver.cuuint32_t
    arguments = {
        "tensorDataType": driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        "tensorRank": 2,
        "globalAddress": ok(driver.cuMemAlloc(64 * 128 * 2)),
        "globalDim": [u64(64), u64(128)],
        "globalStrides": [u64(128)],
        "boxDim": [u32(64), u32(32)],
        "elementStrides": [u32(1), u32(1)],
        "interleave": driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        "swizzle": driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        "l2Promotion": driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
        "oobFill": driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    }
    return driver.cuTensorMapEncodeTiled(**{**arguments, **changes})


def test_tensor_maps_need_an_architecture_that_has_them():
    assert error(tensor_map()) == "NOT_SUPPORTED"


def test_the_address_of_a_tensor_map_can_be_replaced():
    driver.reset("sm_90a")
    start()
    one, other = ok(tensor_map()), ok(tensor_map(globalAddress=0x7F0000000020))
    words = [int(word) for word in other.opaque]
    assert [int(word) for word in one.opaque] != words
    assert driver.cuTensorMapReplaceAddress(one, 0x7F0000000020) == (driver.CUresult.CUDA_SUCCESS,)
    assert [int(word) for word in one.opaque] == words
    for wrong in ((one, 0x7F0000000028), (driver.CUtensorMap(), 0x7F0000000020), (None, 0x7F0000000020)):
        assert error(driver.cuTensorMapReplaceAddress(*wrong)) == "INVALID_VALUE"
    assert "not a tensor map" in str(driver.last_error())
    assert [int(word) for word in one.opaque] == words


def test_tensor_maps_are_encoded():
    driver.reset("sm_90a")
    start()
    first, second = ok(tensor_map()), ok(tensor_map(boxDim=[driver.cuuint32_t(64), driver.cuuint32_t(16)]))
    assert [int(word) for word in first.opaque] != [int(word) for word in second.opaque]
    assert error(tensor_map(tensorRank=6)) == "INVALID_VALUE"
    assert error(tensor_map(boxDim=[])) == "INVALID_VALUE"
    assert error(tensor_map(boxDim=[driver.cuuint32_t(3), driver.cuuint32_t(16)])) == "INVALID_VALUE"
    assert "6 contiguous bytes" in str(driver.last_error())
    with pytest.raises(TypeError, match="globalDim"):
        tensor_map(globalDim=[64, 128])
