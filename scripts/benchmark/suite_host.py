"""Host time of a call from Python: ours in every way that it can be made, and the peers'."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import flashcore_drv as fc
from flashcore_drv import images
from flashcore_drv.dispatch import select
from flashcore_drv.interop import view_of
from flashcore_drv.plan import count_blocks, plan_flash
from flashcore_drv.problem import Problem
from flashcore_drv.runtime import Device, DeviceArray, Graph, Stream, driver
from flashcore_drv.validation import make_problem

from . import measure, peers
from .cases import Case, Pool, Tensors, Truth, count_nan, elements
from .conditions import gpu_state
from .measure import Sample
from .ours import SM_80_IMPL, impls
from .results import HOST_WAYS, MORE_HOST_WAYS, SM_90, Json
from .suites import Run, table
from .timed import PEER_SLACK

CASES = (Case("b1-h8-s512-d64", 1, 8, 8, 512, 512, 64), Case("b1-h8-s128-d64", 1, 8, 8, 128, 128, 64))
CALLS = 20  # between two waits for the GPU: far from what a stream's queue holds
ROUNDS = 20  # times those of a suite that times the GPU: rounds are short, and other processes disturb some

NEEDS = "gpu"
METHOD = {
    "timing": f"time.perf_counter_ns around {CALLS} calls in a loop, waiting for the GPU outside the clock; candidates "
    f"in turns in one process, {ROUNDS} times `rounds` of them, without garbage collection; us a call: median, 5th and "
    "95th percentile over the rounds",
    "families": "all of ours on kernels for compute capability 8.0 and later; ways that end in sm_90 on Hopper's own",
    "bare_launch": "cuLaunchKernelEx of cuda.bindings, configuration and parameters prebuilt: no wrapper, no check",
    "graph_replay": "replay of a graph of one launch",
    "planned": "a plan of flashcore_drv.plan_attention on DeviceArrays, with stream=",
    "one_shot": "flashcore_drv.attention on DeviceArrays with out= and stream=",
    "one_shot_cupy": "the same on CuPy arrays, out too, with stream= their current stream",
    "one_shot_jax": "the same on JAX arrays, out a DeviceArray, as JAX's are not to be written",
    "validation": "what one_shot does at its first call only: views, problem, selection of the kernel",
    "times_bare": "over the bare launch of the same round",
    "ratio": "the peer's time over one_shot, ratio_planned over planned, of the same round",
    "peers": "called as their documentation says, in the layout that they like best, with all that can be set up once "
    "outside the clock (PyTorch: inference_mode, choice of the backend; cuDNN: the graph; JAX: jit)",
    "correctness": f"every way's output against float64 before it is timed; peers: {PEER_SLACK:g} times that",
}
PACKAGES = ("torch", "flash-attn-4", "nvidia-cudnn-frontend", "jax", "jaxlib")


@dataclass(frozen=True)
class Candidate:
    """A call whose host time is measured.

    Attributes
    ----------
    call : function
        Without arguments; what it returns is passed to `wait`.
    around : function
        Makes a context manager that the calls are made in, entered outside the clock.
    wait : function of what the last call returned
        Waits for the GPU.
    """

    call: Callable[[], Any]
    around: Callable[[], contextlib.AbstractContextManager[Any]]
    wait: Callable[[Any], object]

    def sample(self) -> float:
        """Microseconds of one of CALLS calls."""
        with self.around():
            found = None
            began = time.perf_counter_ns()
            for _ in range(CALLS):
                found = self.call()
            took = time.perf_counter_ns() - began
            self.wait(found)
        return took / 1000 / CALLS


class Ours:
    """The ways to call ours on a case."""

    def __init__(self, tensors: Tensors, device: Device) -> None:
        self.tensors, self.device, self.stream = tensors, device, Stream(device)
        self.arrays = [tensors.device[name] for name in "qkv"]
        self.out = DeviceArray.empty(tensors.case.shapes["o"], tensors.case.dtype.to_numpy(), device)
        device.synchronize()  # other streams may use the memory from here on
        self.alive: list[Any] = []  # a graph does not own the memory that it works on
        self.absent: dict[str, str] = {}
        problem = self.validate()
        (kernel,) = select(problem, device.arch, SM_80_IMPL, device)
        addresses = {name: x.address for name, x in zip("qkvo", [*self.arrays, self.out])}
        (launch,) = plan_flash(device, kernel, problem, addresses)
        loaded = images.load(kernel, device)
        self.params = launch.params.copy()
        self.calls: dict[str, Callable[[], Any]] = {
            "bare_launch": self.bare(loaded.kernel, count_blocks(loaded, problem.o), loaded.threads),
            **self.of_family(SM_80_IMPL, ""),
            "validation": self.validate_and_select,
        }
        self.around: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {}
        self.add("one_shot_cupy", self.cupy)
        self.add("one_shot_jax", self.jax)
        if SM_90 in impls(device):
            try:
                self.calls |= self.of_family(impls(device)[SM_90], f"_{SM_90}")
            except (fc.Unsupported, fc.KernelImageError) as error:
                reason = peers.first_line(error)
                self.absent |= {way: reason for way in MORE_HOST_WAYS if way.endswith(SM_90)}

    def of_family(self, impl: str, suffix: str) -> dict[str, Callable[[], Any]]:
        """The ways that there are with any family."""
        plan = fc.plan_attention(*self.arrays, layout="bhsd", out=self.out, impl=impl)
        planned = functools.partial(plan, *self.arrays, self.out, stream=self.stream)
        with Graph.capture(self.stream) as graph:
            planned()
        return {
            f"graph_replay{suffix}": functools.partial(graph.replay, self.stream),
            f"planned{suffix}": planned,
            f"one_shot{suffix}": self.one_shot(self.arrays, self.out, impl),
        }

    def one_shot(self, arrays: Sequence[Any], out: Any, impl: str = SM_80_IMPL) -> Callable[[], Any]:
        """attention() with `out`, as it is written in a program: a partial of keywords takes longer than the call."""
        (q, k, v), stream, attention = arrays, self.stream, fc.attention
        return lambda: attention(q, k, v, layout="bhsd", out=out, stream=stream, impl=impl)

    def add(self, way: str, make: Callable[[], Callable[[], Any]]) -> None:
        """A way that needs somebody else's package; why not, if it does not work."""
        try:
            call = make()
            call()
        except Exception as error:  # whatever that package raises
            self.absent[way] = str(error) if isinstance(error, peers.Absent) else peers.first_line(error)
        else:
            self.calls[way] = call

    def cupy(self) -> Callable[[], Any]:
        """On CuPy arrays, their stream current."""
        cupy = peers.require("cupy", "cupy-cuda13x")
        stream = cupy.cuda.ExternalStream(self.stream.handle)
        self.around["one_shot_cupy"] = lambda: stream
        with stream:
            arrays = [cupy.asarray(x) for x in self.arrays]
            out = cupy.asarray(self.out)
        self.alive += [*arrays, out]
        return self.one_shot(arrays, out)

    def jax(self) -> Callable[[], Any]:
        """On JAX arrays."""
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax = peers.require("jax", "jax")
        if jax.default_backend() != "gpu":
            raise peers.Absent(f"jax {jax.__version__} sees no GPU")
        arrays = [jax.device_put(self.tensors.host[name]) for name in "qkv"]
        jax.block_until_ready(arrays)
        self.alive += arrays
        return self.one_shot(arrays, self.out)

    def validate(self) -> Problem:
        """The problem, as attention() makes it."""
        return make_problem(
            *(view_of(x, name) for x, name in zip([*self.arrays, self.out], ("q", "k", "v", "out"))), layout="bhsd"
        )

    def validate_and_select(self) -> None:
        """All that attention() does before it touches the GPU."""
        select(self.validate(), self.device.arch, "auto", self.device)

    def bare(self, kernel: Any, blocks: int, threads: int) -> Callable[[], Any]:
        """A call of the driver and nothing else."""
        module = driver.module()
        config = module.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes, config.hStream = kernel.dynamic_shared_bytes, self.stream.handle
        self.table = np.array([self.params.__array_interface__["data"][0]], np.uint64)
        address = int(self.table.__array_interface__["data"][0])
        return functools.partial(module.cuLaunchKernelEx, config, kernel.handle, address, 0)

    def candidates(self) -> dict[str, Candidate]:
        """By way."""

        def wait(_: object) -> None:
            self.stream.synchronize()

        @contextlib.contextmanager
        def around(way: str) -> Any:
            with self.device.active(), self.around.get(way, contextlib.nullcontext)():
                yield

        return {way: Candidate(call, functools.partial(around, way), wait) for way, call in self.calls.items()}

    def fault(self, truth: Truth) -> str | None:
        """What is wrong with the output of any way."""
        for way, candidate in self.candidates().items():
            if way == "validation":
                continue
            self.out.fill_bytes(0xFF)
            self.device.synchronize()
            with candidate.around():
                candidate.call()
            o = self.out.to_numpy(stream=self.stream)
            verdict = truth.verdict(functools.partial(rows_of, o))
            if count_nan(o) or not verdict.ok:
                return f"{way}: error {verdict.error:.3g}, allowed {verdict.allowed:.3g}, {count_nan(o)} NaN"
        return None


def rows_of(o: Any, batch: int, head: int, where: slice) -> Any:
    """Some rows of [batch, heads, rows, head_dim]."""
    return o[batch, head, where]


# ---- peers: one call each, as a user would make it in a loop


def torch_sdpa(backend: str) -> Callable[[Tensors, Any, Device], Candidate]:
    """scaled_dot_product_attention with one backend."""

    def make(tensors: Tensors, prepared: Any, device: Device) -> Candidate:
        torch, attention = importlib.import_module("torch"), importlib.import_module("torch.nn.attention")
        q, k, v = (peers.torch_tensor(tensors.device[name], tensors.case) for name in "qkv")
        choice = getattr(attention.SDPBackend, backend)

        @contextlib.contextmanager
        def around() -> Any:
            with torch.inference_mode(), attention.sdpa_kernel(choice):
                yield

        call = functools.partial(torch.nn.functional.scaled_dot_product_attention, q, k, v)
        return Candidate(call, around, lambda _: torch.cuda.synchronize())

    return make


def flash_attention_4(tensors: Tensors, prepared: Any, device: Device) -> Candidate:
    """flash_attn.cute on [batch, rows, heads, head_dim]."""
    torch, cute = importlib.import_module("torch"), importlib.import_module("flash_attn.cute")
    q, k, v = (peers.torch_tensor(tensors.device[name], tensors.case).transpose(1, 2).contiguous() for name in "qkv")
    call = functools.partial(cute.flash_attn_func, q, k, v)
    return Candidate(call, torch.inference_mode, lambda _: torch.cuda.synchronize())


def cudnn_frontend(tensors: Tensors, prepared: peers.CudnnPrepared, device: Device) -> Candidate:
    """execute() of a graph that is built."""
    call = functools.partial(
        prepared.graph.execute, prepared.packs[0], prepared.workspace.address, handle=prepared.handle
    )
    return Candidate(call, device.active, lambda _: prepared.stream.synchronize())  # which keeps its memory, too


def jax_attention(tensors: Tensors, prepared: peers.JaxPrepared, device: Device) -> Candidate:
    """A jitted function of arrays on the GPU."""
    jax = prepared.jax
    compiled = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn"))
    call = functools.partial(compiled, jax.device_put(prepared.q), prepared.k, prepared.v)
    return Candidate(call, contextlib.nullcontext, jax.block_until_ready)


PEERS: dict[str, Callable[[Tensors, Any, Device], Candidate]] = {
    "FA2": torch_sdpa("FLASH_ATTENTION"),
    "cuDNN": torch_sdpa("CUDNN_ATTENTION"),
    "FA4": flash_attention_4,
    "cudnn-frontend": cudnn_frontend,
    "JAX": jax_attention,
}


# ---- the suite


def ids(quick: bool) -> list[str]:
    """One row a problem."""
    return [case.id for case in CASES]


def run(run: Run) -> None:
    """Time every way and every peer."""
    assert run.device is not None
    found, run.record.peers = peers.find(PEERS if run.peers is None else set(PEERS) & set(run.peers))
    cases = {case.id: case for case in CASES}
    for name in run.progress(run.wanted(cases)):
        run.record.add(row(cases[name], run, found))
    if "after" in run.record.conditions:
        run.record.conditions["after"] = gpu_state(run.device)
    run.record.save()


def row(case: Case, run: Run, found: dict[str, peers.Peer]) -> Json:
    """Our times and the peers' on a case, in turns."""
    assert run.device is not None
    pool = Pool(run.device, case.dtype, elements(case))
    tensors = pool.tensors(case)
    truth = Truth(tensors)
    ours = Ours(tensors, run.device)
    made: Json = {"id": case.id, "problem": case.to_json(), "peers": {}}
    if fault := ours.fault(truth):
        return made | {"ours": {"wrong": fault}}
    candidates = ours.candidates()
    for name, peer in found.items():
        try:
            prepared = peer.prepare([tensors], ours.stream)
            verdict = truth.verdict(prepared.rows)
            if not verdict.error <= PEER_SLACK * verdict.allowed or verdict.misplaced:
                made["peers"][name] = {"wrong": f"error {verdict.error:.3g}"}
                continue
            candidate = PEERS[name](tensors, prepared, run.device)
            candidate.sample()
        except Exception as error:  # whatever a peer's library raises is its refusal
            made["peers"][name] = {"refused": peers.first_line(error)}
            print(f"host: {name} refused: {peers.first_line(error)}", file=sys.stderr)
        else:
            candidates[name] = candidate
    samples: dict[str, Sample] = {name: candidate.sample for name, candidate in candidates.items()}
    gc.collect()
    gc.disable()
    try:
        times = measure.interleaved(samples, ROUNDS * run.rounds)
    finally:
        gc.enable()
    ways = [way for way in (*HOST_WAYS, *MORE_HOST_WAYS) if way in times]
    made["ours"] = {way: way_members(times, way) for way in ways}
    made["ours"] |= {way: {"refused": reason} for way, reason in ours.absent.items()}
    for name in candidates.keys() - set(ways):
        made["peers"][name] = (
            measure.as_members("us", times[name])
            | measure.as_members("ratio", measure.paired(times[name], times["one_shot"]))
            | measure.as_members("ratio_planned", measure.paired(times[name], times["planned"]))
        )
    made["peers"] = {name: made["peers"][name] for name in found}
    return made


def way_members(times: dict[str, list[float]], way: str) -> Json:
    """The members of one of our ways."""
    members = measure.as_members("us", times[way])
    if way == "bare_launch":
        return members
    return members | measure.as_members("times_bare", measure.paired(times[way], times["bare_launch"]))


def lines(found: Json) -> list[str]:
    """Microseconds, and multiples of the bare launch or of ours."""
    rows = []
    for row in found["rows"]:
        if "wrong" in row["ours"]:
            rows.append([row["id"], "WRONG", "", "", row["ours"]["wrong"]])
            continue
        for name, x in {**row["ours"], **row["peers"]}.items():
            if "us" not in x:
                rows.append([f"{row['id']} {name}", next(iter(x)), "", "", ""])
                continue
            low, high = x["us_5_95"]
            multiples = [f"{x[key]:.2f}" if key in x else "" for key in ("times_bare", "ratio", "ratio_planned")]
            rows.append([f"{row['id']} {name}", f"{x['us']:.2f} [{low:.2f}, {high:.2f}]", *multiples])
    return table(["host time of a call", "us", "x bare", "x one_shot", "x planned"], rows)
