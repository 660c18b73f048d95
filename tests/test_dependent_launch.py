"""Plans whose kernels begin while the kernel before them ends: results with dependent data, streams, graphs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import recorded, small_where

import flashcore_drv as fc
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.runtime import Device, DeviceArray, Graph, Stream, driver, is_emulated

SIZES = (1, 1, 20, 140) if is_emulated() else (1, 8, 512, 512)
"""batch, heads, seqlen_q, seqlen_k"""
CHAINS = 2 if is_emulated() else 50
KERNELS = pytest.mark.parametrize(
    ("impl", "options"),
    [
        ("flash_sm80", {}),
        ("flash_sm80", {"dtype": BF16}),
        ("flash_sm90", {}),
        ("flash_sm90", {"causal": True}),
        ("flash_sm90", {"window_size": (100, 20)}),
        ("flash_sm90", {"softcap": 30.0}),
    ],
    ids=["small", "small bf16", "tma", "tma causal", "tma window", "tma scored"],
)


@pytest.fixture
def small(hopper: Device) -> Iterator[Device]:
    """A device on which dispatch takes the kernel for small problems wherever it can."""
    with pytest.MonkeyPatch.context() as patch:
        small_where(patch, lambda _: True)
        yield hopper


def normal(seed: int, *shape: int, dtype=F16) -> DeviceArray:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return DeviceArray.from_numpy(values.astype(dtype.to_numpy()))


class Chain:
    """Attention over attention: each reads as queries what the one before wrote, over what that one had read.

    The softmax is so sharp that every row depends on its query. `dependent`: launches may begin early, but the first,
    whose scale differs, so that a graph can tell.
    """

    LINKS = 3 if is_emulated() else 9

    def __init__(self, device: Device, dependent: bool, impl: str, dtype=F16, **options: Any) -> None:
        b, h, s, t = SIZES
        self.q = [normal(seed, b, h, s, 64, dtype=dtype) for seed in range(3)]
        self.k, self.v = (normal(seed, b, h, t, 64, dtype=dtype) for seed in (3, 4))
        self.parts = [DeviceArray.empty(self.q[0].shape, dtype.to_numpy(), device) for _ in range(2)]
        self.sums = [DeviceArray.empty((b, h, s), np.float32, device) for _ in range(2)]
        arguments = self.q[0], self.k, self.v
        options |= {"layout": "bhsd", "impl": impl, "return_lse": True}
        self.first = fc.plan_attention(*arguments, **options, softmax_scale=0.9)
        self.plan = fc.plan_attention(*arguments, **options, softmax_scale=1.0, dependent_launch=dependent)

    def launch(self, stream: Stream, q: DeviceArray) -> None:
        """Queue all links."""
        for i in range(self.LINKS):
            source = q if i == 0 else self.parts[(i - 1) % 2]
            plan = self.first if i == 0 else self.plan
            plan(source, self.k, self.v, self.parts[i % 2], self.sums[i % 2], stream=stream)

    def results(self, stream: Stream, replay: Callable[[DeviceArray], None]) -> list[bytes]:
        """The bits after each of many chains, through a kernel that reads what the last two links wrote."""
        found = []
        for i in range(CHAINS):
            replay(self.q[i % 3])
            parts = self.parts[0], self.sums[0], self.parts[1], self.sums[1]
            merged = fc.attention_merge(*parts, layout="bhsd", stream=stream)
            found.append(b"".join(x.to_numpy(stream=stream).tobytes() for x in merged))
        return found


@KERNELS
def test_dependent_data_in_a_stream(small, impl, options) -> None:
    results = []
    for dependent in (False, True):
        chain = Chain(small, dependent, impl, **options)
        assert chain.plan.dependent_launch is dependent
        assert ("_tma" in chain.plan.kernel) == (impl == "flash_sm90")
        with Stream(small) as stream:
            small.synchronize()
            results.append(chain.results(stream, lambda q: chain.launch(stream, q)))  # noqa: B023 (used at once)
    assert results[0] == results[1]
    assert len(set(results[0])) == min(CHAINS, 3), "queries do not matter"


@KERNELS
def test_dependent_data_in_a_graph(small, impl, options) -> None:
    """Captured, replayed, and updated: the first link gets other queries, the last ones other places to write to."""
    chains = [Chain(small, dependent, impl, **options) for dependent in (False, True)]
    results = []
    for chain in chains:
        with Stream(small) as stream:
            small.synchronize()
            with Graph.capture(stream) as graph:
                chain.launch(stream, chain.q[0])

            def replay(q, graph=graph, chain=chain, stream=stream) -> None:
                graph.update(chain.first, q, chain.k, chain.v, chain.parts[0], chain.sums[0])
                graph.replay(stream)

            results.append(chain.results(stream, replay))
            *arguments, sums = chain.parts[1], chain.k, chain.v, chain.q[2], chain.sums[0]
            graph.update(chain.plan, *arguments, sums, call=chain.LINKS - 2)
            graph.replay(stream)
            results[-1].append(chain.q[2].to_numpy(stream=stream).tobytes())
            assert edges_of(graph) == [chain is chains[1]] * (chain.LINKS - 1)
            graph.close()
    assert results[0] == results[1]
    assert len(set(results[0])) == min(CHAINS, 3) + 1


def edges_of(graph: Graph) -> list[bool]:
    """Whether the second node of each edge may begin early."""
    programmatic = driver.module().CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
    with graph.device.active():
        count = driver.call("cuGraphGetEdges", graph._recorded, 0)[-1]
        _, _, data, _ = driver.call("cuGraphGetEdges", graph._recorded, count)
    return [edge.type == int(programmatic) for edge in data]


def test_packed_sequences(hopper) -> None:
    """Their lengths are read by the kernel, and so may not be read early either."""
    q, k, v = (normal(i, n, 2, 64) for i, n in enumerate((90, 300, 300)))
    starts = [DeviceArray.from_numpy(np.array(x, np.int32)) for x in ((0, 40, 90), (0, 200, 300))]
    used, sinks = DeviceArray.from_numpy(np.int32([150, 100])), DeviceArray.from_numpy(np.float32([0.5, -1]))
    found = []
    for dependent in (False, True):
        plan = fc.plan_attention_varlen(
            q, k, v, *starts, 50, 200, seqused_k=used, sinks=sinks, impl="flash_sm90", dependent_launch=dependent
        )
        assert plan.dependent_launch is dependent
        sides = {"seqused_k": used, "sinks": sinks, "cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1]}
        outs = [DeviceArray.empty(q.shape, np.float16) for _ in range(2)]
        plan(q, k, v, outs[0], **sides)
        plan(outs[0], k, v, outs[1], **sides)
        found.append(outs[1].to_numpy().tobytes())
    assert found[0] == found[1]


def test_rows_without_keys(small) -> None:
    """There is nothing to read, and the kernel waits all the same before it writes."""
    q, k = normal(0, 1, 2, 40, 64), DeviceArray.empty((1, 2, 0, 64), np.float16)
    out = DeviceArray.from_numpy(np.ones(q.shape, np.float16))
    plan = fc.plan_attention(q, k, k, layout="bhsd", dependent_launch=True)
    assert plan.dependent_launch
    assert "small" in plan.kernel
    plan(q, k, k, out)
    assert not out.to_numpy().any()


def attributes(plan: fc.Plan, *arrays: DeviceArray) -> list[int]:
    """The kinds of the attributes of a call's launch."""
    with plan.device.active(), recorded() as calls:
        plan(*arrays)
    ((_, (config, *_)),) = (call for call in calls if call[0] == "cuLaunchKernelEx")
    return [int(x.id) for x in (config.attrs or [])[: config.numAttrs]]


def test_what_is_launched(small) -> None:
    q, k, v = (normal(i, 1, 2, 40, 64) for i in range(3))
    out = DeviceArray.empty(q.shape, np.float16)
    kinds = driver.module().CUlaunchAttributeID
    early = int(kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
    for impl in ("flash_sm80", "flash_sm90"):
        plan = fc.plan_attention(q, k, v, layout="bhsd", impl=impl)
        assert (plan.dependent_launch, attributes(plan, q, k, v, out)) == (False, [])
        plan = fc.plan_attention(q, k, v, layout="bhsd", impl=impl, dependent_launch=True)
        assert (plan.dependent_launch, attributes(plan, q, k, v, out)) == (True, [early])
        assert attributes(plan, q, k, v, out) == [early]  # the call that is remembered


def test_kernels_that_do_not_wait_begin_after_the_one_before(hopper) -> None:
    """Asking for it is no error: the same program runs everywhere."""
    q, k, v = (normal(i, 1, 2, 40, 40) for i in range(3))
    out = DeviceArray.empty(q.shape, np.float16)
    plan = fc.plan_attention(q, k, v, layout="bhsd", impl="flash_sm80", dependent_launch=True)
    assert plan.kernel == "flash_fwd_general_f16_d64_sm89"
    assert (plan.dependent_launch, attributes(plan, q, k, v, out)) == (False, [])


def test_gpus_that_cannot(device) -> None:
    if device.arch >= 90:
        pytest.skip("needs a GPU of compute capability below 9.0")
    q, k, v = (normal(i, 1, 2, 40, 64) for i in range(3))
    out = DeviceArray.empty(q.shape, np.float16)
    plan = fc.plan_attention(q, k, v, layout="bhsd", dependent_launch=True)
    assert (plan.dependent_launch, attributes(plan, q, k, v, out)) == (False, [])
    plan = fc.plan_attention(q, k, v, layout="bhsd")
    again = DeviceArray.empty(q.shape, np.float16)
    plan(q, k, v, again)
    assert out.to_numpy().tobytes() == again.to_numpy().tobytes()


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_what_is_no_flag(device, wrong) -> None:
    spec = fc.ArraySpec((1, 40, 2, 64), np.float16)
    with pytest.raises(fc.InvalidArgument, match="dependent_launch"):
        fc.plan_attention(spec, spec, spec, dependent_launch=wrong)
