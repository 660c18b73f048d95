"""Launches that may begin before those that they depend on have ended: in kernels, in streams and in graphs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from driver_cases import OK, PTX, download, error, fill_table, kernels, ok, start
from kernel_harness import DEFAULT, entry, execute
from test_driver_launch import config

from flashcore_drv.emulator import EmulationError, driver, parse

START = """.reg .pred %first; .reg .b32 %r<9>; .reg .b64 %rd<9>;
    .shared .align 16 .b8 tile[512]; .shared .align 8 .b64 box;
    mov.u32 %r0, %tid.x; setp.lt.u32 %first, %r0, 32; mov.u32 %r4, %r0; ld.param.u64 %rd1, [out];
    mul.wide.u32 %rd2, %r0, 4; add.s64 %rd1, %rd1, %rd2; mov.u32 %r3, tile; shl.b32 %r5, %r0, 2;
    add.u32 %r3, %r3, %r5; mov.u32 %r6, box;"""
WAIT, BARRIER = "griddepcontrol.wait;", "bar.sync 0;"
READ, WRITE, ATOM = "ld.global.u32 %r4, [%rd1];", "st.global.u32 [%rd1], %r0;", "atom.global.add.u32 %r4, [%rd1], 1;"
COPY = "cp.async.ca.shared.global [%r3], [%rd1], 4; cp.async.wait_all;"
BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd1], 16, [%r6];"
ONE = "setp.eq.u32 %first, %r0, 0;"


def run(*body, dependent=True, threads=64, **options):
    program = parse(entry("\n".join([START, *body, "ret;"]), ".param .u64 out", before=".const .align 4 .b32 c = 5;"))
    return execute(program, "kernel", [np.zeros(64, np.uint32)], block=(threads, 1, 1), dependent=dependent, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "body",
    [
        (WAIT, READ, WRITE, COPY, ATOM),
        ("griddepcontrol.launch_dependents;", WAIT, WRITE),
        (f"@%first {WAIT}", BARRIER, WRITE),
        ("st.shared.u32 [%r3], %r0;", f"@%first {WAIT}", BARRIER, BARRIER, READ, WRITE),
        ("ld.const.u32 %r4, [c];", WAIT, WRITE),
    ],
    ids=["own", "trigger", "barrier", "barriers", "constant"],
)
def test_what_comes_after_a_wait_is_fine(body, seed):
    run(*body, seed=seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("body", "what"),
    [
        ((READ, WAIT), "read"),
        ((WRITE, WAIT), "write"),
        ((ATOM, WAIT), "atomic operation"),
        ((COPY, WAIT), "copy"),
        ((f"@%first {WAIT}", WRITE), "write of global memory by thread 32"),
        ((BARRIER, f"@%first {WAIT}", READ), "read of global memory by thread 32"),
        ((f"@!%first {WAIT}", f"@!%first {WRITE}", READ, BARRIER), "read of global memory by thread 0"),
        ((ONE, "@%first mbarrier.init.shared.b64 [%r6], 1;", f"@%first {BULK}", WAIT), "copy"),
        (("griddepcontrol.launch_dependents;", READ), "read"),
    ],
    ids=["read", "write", "atomic", "copy", "no barrier", "barrier too early", "other warp", "bulk", "trigger alone"],
)
def test_what_comes_before_it_is_a_race(body, what, seed):
    with pytest.raises(EmulationError, match=what) as found:
        run(*body, seed=seed)
    assert found.value.kind == "race"
    assert "before griddepcontrol.wait" in found.value.message


def test_the_past_of_another_warp_comes_through_an_mbarrier():
    poll = "again: mbarrier.try_wait.parity.shared.b64 %done, [%r6], 0; @!%done bra again;"
    begin = (".reg .pred %done; .reg .b64 %state;", "setp.eq.u32 %done, %r0, 0;")
    arrive = "@%done mbarrier.arrive.shared.b64 %state, [%r6];"
    initialise = "@%done mbarrier.init.shared.b64 [%r6], 1;"
    run(*begin, initialise, BARRIER, f"@%done {WAIT}", arrive, poll, READ, WRITE)
    with pytest.raises(EmulationError, match=r"before griddepcontrol\.wait"):
        run(*begin, initialise, BARRIER, arrive, f"@%done {WAIT}", poll, READ, WRITE)


def test_a_grid_has_to_wait_for_what_comes_after_it():
    with pytest.raises(EmulationError, match=r"kernel may begin early and ends without griddepcontrol\.wait"):
        run("griddepcontrol.launch_dependents;")
    run(f"@%first {WAIT}")


def test_other_launches_need_no_wait_and_the_check_can_be_left_out():
    assert run(WRITE, dependent=False)[0][:3].tolist() == [0, 1, 2]
    assert run(WRITE, checks=dataclasses.replace(DEFAULT, global_races=False))[0][:3].tolist() == [0, 1, 2]


# The driver. `fill` waits for nothing; `late` is the same with the wait.

LATE = PTX.replace(b".target sm_80", b".target sm_90").replace(
    b"ld.param.u64 %rd1, [fill_p];", b"griddepcontrol.wait;\n    ld.param.u64 %rd1, [fill_p];"
)
EARLY = {"PROGRAMMATIC_STREAM_SERIALIZATION": 1}


@pytest.fixture
def functions():
    driver.reset("sm_90")
    start()
    late = kernels(image=LATE)[1]["fill"]
    yield kernels()[1] | {"late": late}
    driver.reset("sm_89")


def queue(function, pointer, value, stream=0, **attributes):
    return driver.cuLaunchKernelEx(config(stream, **attributes), function, fill_table(pointer, value).address, 0)


def test_a_kernel_that_waits_may_begin_early(functions):
    pointer = ok(driver.cuMemAlloc(128))
    assert queue(functions["fill"], pointer, 1) == (OK,)
    assert queue(functions["late"], pointer, 2, **EARLY) == (OK,)
    ok(driver.cuCtxSynchronize())
    assert download(pointer, 32, np.uint32).tolist() == [2] * 32


def test_a_kernel_that_does_not_loses_the_context(functions):
    assert queue(functions["fill"], ok(driver.cuMemAlloc(128)), 1, **EARLY) == (OK,)
    assert error(driver.cuCtxSynchronize()) != "INVALID_VALUE"
    assert "before griddepcontrol.wait" in str(driver.last_error())


def test_older_gpus_refuse_it():
    driver.reset("sm_89")
    start()
    launch = queue(kernels()[1]["fill"], ok(driver.cuMemAlloc(128)), 1, **EARLY)
    assert error(launch) == "NOT_SUPPORTED"


def test_a_captured_launch_keeps_it(functions):
    """The edge says so, and what an update gives other parameters still may begin early."""
    pointer, other = ok(driver.cuMemAlloc(128)), ok(driver.cuMemAlloc(128))
    stream = ok(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    ok(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    ok(driver.cuMemsetD32Async(pointer, 0, 32, stream))
    ok(queue(functions["late"], pointer, 1, stream, **EARLY))  # after what is no kernel
    ok(queue(functions["late"], pointer, 2, stream))
    ok(queue(functions["late"], pointer, 3, stream, **EARLY))
    graph = ok(driver.cuStreamEndCapture(stream))
    _, after, data, count = ok(driver.cuGraphGetEdges(graph, 3))
    assert (len(after), count) == (3, 3)
    assert [(edge.type, edge.from_port, edge.to_port) for edge in data] == [(0, 0, 0), (0, 0, 0), (1, 1, 0)]
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    node = ok(driver.cuGraphKernelNodeGetParams(after[2]))
    node.kernelParams = (table := fill_table(other, 4)).address
    ok(driver.cuGraphExecKernelNodeSetParams(executable, after[2], node))
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuStreamSynchronize(stream))
    assert (download(pointer, 32, np.uint32)[0], download(other, 32, np.uint32)[0]) == (2, 4)
    node.func = functions["fill"]
    ok(driver.cuGraphExecKernelNodeSetParams(executable, after[2], node))
    ok(driver.cuGraphLaunch(executable, stream))
    assert table.address
    assert error(driver.cuStreamSynchronize(stream)) != "INVALID_VALUE"
    assert "before griddepcontrol.wait" in str(driver.last_error())
