"""The emulated driver has the bindings' functions: names, arguments, results and types."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from cuda.bindings import driver as bindings
from driver_cases import OK, Table, address, error, fill_table, kernels, ok, start

from flashcore_drv.emulator import driver
from flashcore_drv.emulator.driver.process import API


@pytest.fixture(autouse=True)
def fresh():
    driver.reset("sm_89")


@pytest.mark.parametrize("name", sorted(API))
def test_arguments_are_those_of_the_bindings(name):
    ours = inspect.signature(getattr(driver, name)).parameters.values()
    theirs = inspect.signature(getattr(bindings, name)).parameters.values()
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("name", sorted(API))
def test_a_failure_has_as_many_values_as_a_success_in_the_bindings(name):
    """The bindings document their results: one entry of the section "Returns" for each value."""
    text = getattr(bindings, name).__doc__
    section = re.search(r"\n( *)Returns\n *-+\n(.*?)(?=\n *\w[\w ]*\n *---|\Z)", text, re.S)
    documented = re.findall(rf"^{section[1]}\w.*", section[2], re.M)
    with driver.inject(name, call=None, result=driver.CUresult.CUDA_ERROR_UNKNOWN):
        driver.cuInit(0)
        parameters = inspect.signature(getattr(driver, name)).parameters
        answer = getattr(driver, name)(*([None] * len(parameters)))
    assert len(answer) == len(documented)
    assert error(answer) == "UNKNOWN"


def test_types_are_the_bindings():
    assert driver.CUresult is bindings.CUresult
    assert driver.CUlaunchConfig is bindings.CUlaunchConfig
    assert driver.CU_STREAM_PER_THREAD == 2
    with pytest.raises(AttributeError, match="cuFantasy"):
        _ = driver.cuFantasy


def test_nothing_opens_the_driver_library():
    start()
    kernels()
    with open("/proc/self/maps") as maps:
        assert "libcuda.so" not in maps.read()


def test_handles_compare_and_hash_like_the_bindings():
    context = start()
    again = ok(driver.cuDevicePrimaryCtxRetain(0))
    assert context == again
    assert hash(context) == hash(again)
    assert context == driver.CUcontext(int(context))
    stream = ok(driver.cuStreamCreate(0))
    assert int(stream) > 2
    assert ok(driver.cuStreamGetCtx(int(stream))) == context
    assert ok(driver.cuStreamGetCtx(stream)) == context


def test_a_handle_of_another_kind_is_refused():
    start()
    stream = ok(driver.cuStreamCreate(0))
    assert error(driver.cuEventSynchronize(int(stream))) == "INVALID_HANDLE"
    assert error(driver.cuStreamSynchronize(12345)) == "INVALID_HANDLE"
    assert error(driver.cuModuleUnload(None)) == "INVALID_HANDLE"
    assert error(driver.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)) == "INVALID_HANDLE"


@pytest.mark.parametrize(
    "call",
    [
        lambda: driver.cuStreamSynchronize("0"),
        lambda: driver.cuMemAlloc(1.5),
        lambda: driver.cuModuleGetFunction(kernels()[0], "saxpy"),
        lambda: driver.cuModuleLoadData("text"),
    ],
)
def test_what_the_bindings_refuse_as_a_type_is_a_type_error(call):
    start()
    with pytest.raises(TypeError):
        call()


def test_a_negative_size_overflows_as_in_the_bindings():
    start()
    with pytest.raises(OverflowError):
        driver.cuMemAlloc(-1)


def test_kernel_parameters_are_an_address():
    start()
    _, functions = kernels()
    table = fill_table(ok(driver.cuMemAlloc(128)), 3)
    launch = (functions["fill"], 1, 1, 1, 32, 1, 1, 0, 0)
    with pytest.raises(TypeError, match=r"int\(\.\.\.\)"):
        driver.cuLaunchKernel(*launch, np.uint64(table.address), 0)
    with pytest.raises(TypeError, match="not emulated"):
        driver.cuLaunchKernel(*launch, ((3,), (None,)), 0)
    assert driver.cuLaunchKernel(*launch, table.address, 0) == (OK,)
    assert driver.cuLaunchKernel(*launch, table.table, 0) == (OK,)
    assert error(driver.cuLaunchKernel(*launch, 0, 0)) == "INVALID_VALUE"
    hole = Table(np.uint32(0))
    hole.table[0] = 0
    assert error(driver.cuLaunchKernel(*launch, address(hole.table), 0)) == "INVALID_VALUE"


def test_errors_have_names_and_texts():
    assert driver.cuGetErrorName(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == (OK, b"CUDA_ERROR_OUT_OF_MEMORY")
    for result in driver.CUresult:
        assert ok(driver.cuGetErrorName(result)) == result.name.encode()
        assert ok(driver.cuGetErrorString(result))
    text = ok(driver.cuGetErrorString(driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS))
    assert text == b"an illegal memory access was encountered"
