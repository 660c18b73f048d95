"""What the tests of the emulated driver share: a module in PTX, and short forms of the calls."""

from __future__ import annotations

import numpy as np

from flashcore_drv.emulator import driver

OK = driver.CUresult.CUDA_SUCCESS
PTX = b"""
.version 8.0
.target sm_80
.address_size 64

.visible .global .align 4 .u32 counter = 7;
.visible .const .align 4 .f32 weights[4] = {0f3F800000, 0f40000000, 0f40400000, 0f40800000};

.visible .entry saxpy(.param .f32 saxpy_a, .param .u64 saxpy_x, .param .u64 saxpy_y, .param .u32 saxpy_n)
.maxntid 256, 1, 1
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<6>;
    ld.param.f32 %f1, [saxpy_a];
    ld.param.u64 %rd1, [saxpy_x];
    ld.param.u64 %rd2, [saxpy_y];
    ld.param.u32 %r1, [saxpy_n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $DONE;
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd4];
    ld.global.f32 %f3, [%rd5];
    fma.rn.f32 %f3, %f1, %f2, %f3;
    st.global.f32 [%rd5], %f3;
$DONE:
    ret;
}

.visible .entry fill(.param .align 8 .b8 fill_p[16])
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [fill_p];
    ld.param.u32 %r1, [fill_p+8];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r1;
    ret;
}

.visible .entry count(.param .u64 count_out)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [count_out];
    cvta.to.global.u64 %rd1, %rd1;
    ld.global.u32 %r1, [counter];
    add.u32 %r2, %r1, 1;
    st.global.u32 [counter], %r2;
    st.global.u32 [%rd1], %r2;
    ret;
}

.visible .entry nothing()
{
    ret;
}
"""


def ok(answer):
    """The outputs of a call that has to succeed: none, one or a tuple."""
    assert answer[0] == OK, answer[0].name
    return None if len(answer) == 1 else answer[1] if len(answer) == 2 else answer[1:]


def error(answer):
    """The name of the failure that a call has to report, with nothing else."""
    assert answer[0] != OK
    assert all(value is None for value in answer[1:])
    return answer[0].name.removeprefix("CUDA_ERROR_")


def address(array):
    return array.__array_interface__["data"][0]


def start(driver=driver):
    """Initialise the driver and make the primary context current."""
    ok(driver.cuInit(0))
    context = ok(driver.cuDevicePrimaryCtxRetain(ok(driver.cuDeviceGet(0))))
    ok(driver.cuCtxSetCurrent(context))
    return context


def kernels(driver=driver, image=PTX):
    """Load a module and return it with its kernels by name."""
    module = ok(driver.cuModuleLoadData(image))
    return module, {name: ok(driver.cuModuleGetFunction(module, name.encode())) for name in ("saxpy", "fill", "count")}


def upload(array, driver=driver):
    pointer = ok(driver.cuMemAlloc(array.nbytes))
    ok(driver.cuMemcpyHtoD(pointer, address(array), array.nbytes))
    return pointer


def download(pointer, shape, dtype, driver=driver):
    array = np.empty(shape, dtype)
    ok(driver.cuMemcpyDtoH(address(array), pointer, array.nbytes))
    return array


class Table:
    """Kernel parameters: the values as arrays, and the table of their addresses. Keep it until the call returns."""

    def __init__(self, *values):
        self.values = [np.atleast_1d(value) for value in values]
        self.table = np.array([address(value) for value in self.values], np.uint64)
        self.address = address(self.table)


def saxpy_table(a, x, y, n):
    return Table(np.float32(a), np.uint64(int(x)), np.uint64(int(y)), np.uint32(n))


def fill_table(pointer, value):
    struct = np.zeros(1, np.dtype([("out", "u8"), ("value", "u4"), ("padding", "u4")]))
    struct["out"], struct["value"] = int(pointer), value
    return Table(struct)


def fill(function, pointer, value, stream=0, threads=32, driver=driver):
    """Launch a kernel that stores ``value`` into the first 32 words at ``pointer``."""
    table = fill_table(pointer, value)
    return driver.cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, 0, stream, table.address, 0)
