"""Plans, and what attention() keeps of earlier calls: the same bits as the first call, pointers, checks, threads."""

import gc
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from support import Exported, context, recorded, run_python

import flashcore_drv as fc
from flashcore_drv import abi, api, interop, prepared
from flashcore_drv.dtypes import BF16
from flashcore_drv.recall import Cache
from flashcore_drv.runtime import Device, DeviceArray, Stream, driver

B, H, HK, SQ, SK, D = 2, 4, 2, 20, 33, 32
ALLOCATES_OR_WAITS = ("cuMemAlloc", "cuMemFree", "cuMemcpy", "cuStreamSynchronize", "cuCtx", "cuEvent", "cuFuncSet")


def make(seed=0, dtype=np.float16, head_dim=D, head_dim_v=D):
    """q, k, v with a mean."""
    rng = np.random.default_rng(seed)
    shapes = (B, SQ, H, head_dim), (B, SK, HK, head_dim), (B, SK, HK, head_dim_v)
    return [(rng.standard_normal(s, np.float32) + 0.5).astype(dtype) for s in shapes]


def sides(*names):
    found = {
        "alibi_slopes": np.linspace(0.1, 0.5, B * H, dtype=np.float32).reshape(B, H),
        "bias": np.linspace(-1, 1, H * SK, dtype=np.float32).reshape(1, H, 1, SK),
        "sinks": np.linspace(-1, 1, H, dtype=np.float32),
        "seqused_k": np.array([SK, 10], np.int32),
    }
    return {name: found[name] for name in names}


def packed():
    """q, k, v of three sequences with a row to spare, their starts, and the longest."""
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in make())
    return [q, k, v, np.array([0, 20, 20, 39], np.int32), np.array([0, 33, 50, 65], np.int32), 20, 33]


def up(*arrays):
    return [DeviceArray.from_numpy(x) for x in arrays]


def up_by_name(arrays):
    return {name: DeviceArray.from_numpy(x) for name, x in arrays.items()}


def poisoned(shape, dtype=np.float16):
    """An output full of NaN, complete for every stream."""
    made = DeviceArray.empty(shape, dtype)
    made.fill_bytes(0xFF)
    made.device.synchronize()
    return made


def host(*arrays):
    return [x.to_numpy() for x in arrays]


@pytest.fixture
def current(device):
    """The GPU's context, current in this thread."""
    with device.active():
        yield


FEATURES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, ()),
    "causal": ({"causal": True, "softmax_scale": 0.2}, ()),
    "window": ({"window_size": (7, 3)}, ()),
    "sinks": ({"causal": True}, ("sinks",)),
    "used": ({"batch_invariant": True}, ("seqused_k",)),
    "scored": ({"softcap": 2.0}, ("alibi_slopes", "bias")),
    "all": ({"window_size": (9, 0), "softcap": 3.0}, ("alibi_slopes", "bias", "sinks", "seqused_k")),
}


# ---- results


@pytest.mark.parametrize("with_lse", [False, True], ids=["o", "lse"])
@pytest.mark.parametrize("name", FEATURES)
def test_a_plan_computes_what_attention_does(device, current, name, with_lse) -> None:
    options, names = FEATURES[name]
    options = options | {"return_lse": with_lse}
    arrays, small = up(*make()), up_by_name(sides(*names))
    expected = fc.attention(*make(), **sides(*names), **options)
    expected = expected if with_lse else (expected,)
    plan = fc.plan_attention(*make(), **sides(*names), **options)
    assert plan.sides == names
    outputs = [poisoned(x.shape, x.dtype) for x in expected]
    for check in (False, True):
        with recorded() as calls:
            assert plan(*arrays, *outputs, check=check, **small) is None
        assert [x.tobytes() for x in host(*outputs)] == [x.tobytes() for x in expected]
        for x in outputs:
            x.fill_bytes(0xFF)
        if not check:
            assert calls.count("cuLaunchKernelEx") == 1
            assert [c for c in calls.names() if c.startswith(ALLOCATES_OR_WAITS) and c != "cuCtxGetCurrent"] == []


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v"), [(BF16.to_numpy(), D, D), (np.float16, 40, 24)])
def test_a_plan_from_descriptions(device, layout, dtype, head_dim, head_dim_v) -> None:
    arrays = make(dtype=dtype, head_dim=head_dim, head_dim_v=head_dim_v)
    if layout == "bhsd":
        arrays = [np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays]
    expected = fc.attention(*arrays, layout=layout)
    name = np.dtype(dtype).name
    plan = fc.plan_attention(*(fc.ArraySpec(x.shape, name) for x in arrays), layout=layout, device=0)
    out = poisoned(expected.shape, dtype)
    plan(*up(*arrays), out, check=True)
    assert out.to_numpy().tobytes() == expected.tobytes()


def test_a_plan_for_strided_arrays(device) -> None:
    q, k, v = make()
    expected = fc.attention(q, k, v)
    room = DeviceArray.from_numpy(np.full((B, SQ, H, 2 * D), 7, np.float16))
    strides = SQ * H * 2 * D, H * 2 * D, 2 * D, 1
    wide = DeviceArray.from_numpy(np.concatenate([q, q], -1)).as_strided(q.shape, strides)
    plan = fc.plan_attention(fc.ArraySpec(q.shape, q.dtype, strides), k, v, out=fc.ArraySpec(q.shape, q.dtype, strides))
    plan(wide, *up(k, v), room.as_strided(q.shape, strides, D), check=True)
    assert np.array_equal(room.to_numpy()[..., D:], expected)
    assert (room.to_numpy()[..., :D] == 7).all()


def test_pointers_change_between_calls(device) -> None:
    plan = fc.plan_attention(*make(), **sides("sinks"))
    for seed in range(4):
        arrays, sinks = make(seed), np.linspace(-1, seed, H, dtype=np.float32)
        there, out = up(*arrays, sinks), poisoned(arrays[0].shape)
        *addresses, sink = ([x.address for x in there], there, [Exported(x) for x in there])[seed % 3]
        plan(*addresses, out.address if seed == 3 else out, sinks=sink)
        assert np.array_equal(out.to_numpy(), fc.attention(*arrays, sinks=sinks))


def test_arrays_of_several_kinds_in_one_call(device) -> None:
    """In any order, again and again: what is known of one must not serve another, and only numbers are kept."""
    small = [x[:1, :4, :1, :8] for x in make()]
    plan, expected = fc.plan_attention(*small), fc.attention(*small)
    there, out = up(*small), poisoned(expected.shape)
    kinds = (lambda x: x, lambda x: x.address, Exported)
    for _, first, second, third in itertools.product(range(2), kinds, kinds, (0, 1)):
        wanted = (first, second, second, first) if third else (first, second, first, second)
        out.fill_bytes(0xFF)
        plan(*(kind(x) for kind, x in zip(wanted, (*there, out))))
        assert np.array_equal(out.to_numpy(), expected)
    assert all(x is None or type(x) is int for key in plan._rules.calls for x in key)


def test_what_is_known_of_a_stream_is_not_believed_of_another(device, current) -> None:
    """A closed stream, the default stream of another GPU and None have no handle, one handle, and one that is 0."""
    plan, arrays, out = planned()
    other = object.__new__(Device)
    other.__dict__ |= {"ordinal": 7, "name": "Other", "arch": 80}
    stream = Stream(device)
    for _ in range(3):
        for given, used in ((stream, stream.handle), (stream.handle, stream.handle), (None, 0), (0, 0), (1, 1)):
            with recorded() as calls:
                plan(*arrays, out, stream=given)
            assert [int(args[0].hStream) for name, args in calls if name == "cuLaunchKernelEx"] == [used]
        with recorded() as calls, pytest.raises(fc.InvalidArgument, match="stream belongs to <Device 7"):
            plan(*arrays, out, stream=Stream(other, 0))
        assert calls.work() == []
    stream.synchronize()
    stream.close()
    with recorded() as calls, pytest.raises(fc.HandleError, match=r"stream: used after close\(\)"):
        plan(*arrays, out, stream=stream)
    assert calls.work() == []


def test_a_plan_of_packed_sequences_whose_lengths_change(device) -> None:
    *arrays, starts_q, starts_k, most_q, most_k = packed()
    plan = fc.plan_attention_varlen(*arrays, starts_q, starts_k, most_q, most_k, causal=True, return_lse=True)
    there = up(*arrays)
    total = len(arrays[0])
    for lengths in (starts_q, starts_k), (np.array([0, 3, 23, 30], np.int32), np.array([0, 1, 2, 35], np.int32)):
        expected = fc.attention_varlen(*arrays, *lengths, most_q, most_k, causal=True, return_lse=True)
        out, lse = poisoned(expected[0].shape), poisoned(expected[1].shape, np.float32)
        small = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), up(*lengths)))
        plan(*there, out, lse, check=True, **small)
        end = lengths[0][-1]
        assert end < total
        assert np.array_equal(out.to_numpy()[:end], expected[0][:end])
        assert np.array_equal(lse.to_numpy()[:, :end], expected[1][:, :end])


def test_a_plan_without_queries_does_nothing(device) -> None:
    plan = fc.plan_attention(*(fc.ArraySpec((1, n, 1, D), "float16") for n in (0, 5, 5)))
    k, v = up(*(np.ones((1, 5, 1, D), np.float16),) * 2)
    with recorded() as calls:
        plan(0, k, v, 0)
    assert calls == []


def test_a_plan_without_keys_takes_null_for_them_only(device) -> None:
    plan = fc.plan_attention(*(fc.ArraySpec((1, n, 1, D), "float16") for n in (3, 0, 0)))
    (q,), out = up(np.ones((1, 3, 1, D), np.float16)), poisoned((1, 3, 1, D))
    plan(q, 0, 0, out)
    assert not out.to_numpy().any()
    for wrong in ((0, 0, 0, out), (q, 0, 0, 0)):
        with pytest.raises(fc.InvalidArgument, match="null pointer"):
            plan(*wrong)


# ---- where it runs


@pytest.mark.parametrize("kind", ["Stream", "int", "ptr", None])
def test_a_plan_runs_in_the_callers_stream(device, current, kind) -> None:
    arrays = up(*make())
    plan, out = fc.plan_attention(*arrays), poisoned((B, SQ, H, D))
    with Stream(device) as stream:
        foreign = type("Foreign", (), {"ptr": stream.handle})()
        given = {"Stream": stream, "int": stream.handle, "ptr": foreign, None: None}[kind]
        with recorded() as calls:
            plan(*arrays, out, stream=given)
        ((config, *_),) = [args for name, args in calls if name == "cuLaunchKernelEx"]
        assert int(config.hStream) == (stream.handle if kind else 0)
        stream.synchronize()
    for wrong in ("default", -1, True, 1.5):
        with pytest.raises(fc.InvalidArgument, match="is not a stream"):
            plan(*arrays, out, stream=wrong)


def test_many_streams(device) -> None:
    """More than a launch keeps configurations of."""
    arrays = up(*make())
    plan, out = fc.plan_attention(*arrays), poisoned((B, SQ, H, D))
    expected = fc.attention(*make())
    streams = [Stream(device) for _ in range(70)]
    for stream in streams:
        out.fill_bytes(0xFF, stream)
        plan(*arrays, out, stream=stream)
        assert np.array_equal(out.to_numpy(stream=stream), expected)
        stream.close()


def test_a_thread_without_a_context(device) -> None:
    """It needs none, and is left with none."""
    arrays = up(*make())
    plan, outs = fc.plan_attention(*arrays), [poisoned((B, SQ, H, D)) for _ in range(2)]
    fc.attention(*arrays, out=outs[1])
    seen = []

    def run() -> None:
        seen.append(context())
        plan(*arrays, outs[0])
        fc.attention(*arrays, out=outs[1])
        seen.append(context())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0, 0]
    expected = fc.attention(*make())
    assert all(np.array_equal(x, expected) for x in host(*outs))


def test_threads_share_a_plan_and_what_is_kept(device) -> None:
    """Each with its own arrays: a parameter block of two threads at once would mix them."""
    api.CACHE.clear()
    plan = fc.plan_attention(*make())
    wrong, start = [], threading.Barrier(8)

    def run(seed: int) -> None:
        arrays = make(seed)
        there, out = up(*arrays), poisoned((B, SQ, H, D))
        expected = fc.attention(*arrays)
        start.wait()
        with Stream(device) as stream:
            for i in range(6):
                out.fill_bytes(0xFF, stream)
                if i % 2:
                    fc.attention(*there, out=out, stream=stream)
                else:
                    plan(*there, out, stream=stream)
                if not np.array_equal(out.to_numpy(stream=stream), expected):
                    wrong.append((seed, i))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert len(api.CACHE) == 2  # from NumPy, and on the GPU with out


def test_a_captured_plan_replays_with_changed_data(device) -> None:
    q, k, v = there = up(*make())
    plan, out = fc.plan_attention(*there), poisoned((B, SQ, H, D))
    small = poisoned((B, SQ, H, D))
    fc.attention(*there, out=small)
    with Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            plan(*there, out, stream=stream)
            fc.attention(*there, out=small, stream=stream)
        for seed in range(2):
            arrays = make(seed)
            for x, values in zip((q, k, v), arrays):
                x.copy_from(values, stream)
            graph.replay(stream)
            stream.synchronize()
            expected = fc.attention(*arrays)
            assert all(np.array_equal(x, expected) for x in host(out, small))
        graph.close()


def test_a_captured_plan_is_given_other_arrays(device) -> None:
    """The graph goes on with them; what it was captured with is left alone, and other nodes are as they were."""
    plan, causal = fc.plan_attention(*make()), fc.plan_attention(*make(), causal=True)
    there, there2 = up(*make()), up(*make(1))
    outs = [poisoned((B, SQ, H, D)) for _ in range(4)]
    with Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            plan(*there, outs[0], stream=stream)
            causal(*there, outs[1], stream=stream)
            plan(*there, outs[2], stream=stream)
        expected, expected2 = (fc.attention(*make(seed)) for seed in (0, 1))

        def replayed():
            graph.replay(stream)
            stream.synchronize()
            found = host(*outs)
            for x in outs:
                x.fill_bytes(0xFF, stream)
            stream.synchronize()
            return [x if np.isfinite(x).all() else None for x in found]

        same = [expected, fc.attention(*make(), causal=True), expected, None]
        assert all(np.array_equal(x, y) for x, y in zip(replayed(), same))
        with recorded() as calls:
            graph.update(plan, *there2, outs[3], call=1)
        assert calls.count("cuGraphExecKernelNodeSetParams") == 1
        assert calls.count("cuGraphInstantiate", "cuStreamSynchronize", "cuGraphLaunch") == 0
        first, second, third, fourth = replayed()
        assert np.array_equal(first, expected)
        assert np.array_equal(second, same[1])
        assert third is None
        assert np.array_equal(fourth, expected2)
        graph.update(plan, *(x.address for x in there2), outs[2].address)
        graph.update(plan, *there, outs[3], call=1, check=True)
        first, second, third, fourth = replayed()
        assert first is None
        assert np.array_equal(third, expected2)
        assert np.array_equal(fourth, expected)
        other = fc.plan_attention(*make(), softmax_scale=0.5)
        for wrong, call, times in ((plan, 2, 2), (plan, -1, 2), (other, 0, 0)):
            with pytest.raises(fc.HandleError, match=rf"graph: <Plan of .*> was captured {times} times; call={call} "):
                graph.update(wrong, *there, outs[0], call=call)
        with pytest.raises(fc.InvalidArgument, match="q has a null pointer"):
            graph.update(plan, 0, *there[1:], outs[0])
        graph.close()
        with pytest.raises(fc.HandleError, match=r"graph: .* after close\(\)"):
            graph.update(plan, *there, outs[0])


def test_an_update_does_not_reach_what_is_queued(device) -> None:
    plan, there, outs = fc.plan_attention(*make()), up(*make()), [poisoned((B, SQ, H, D)) for _ in range(2)]
    with Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            plan(*there, outs[0], stream=stream)
        graph.replay(stream)
        graph.update(plan, *there, outs[1])
        stream.synchronize()
        assert [bool(np.isnan(x).all()) for x in host(*outs)] == [False, True]
        graph.replay(stream)
        stream.synchronize()
        assert np.array_equal(*host(*outs))


def test_an_update_of_packed_sequences_with_lse(device) -> None:
    *arrays, starts_q, starts_k, most_q, most_k = packed()
    plan = fc.plan_attention_varlen(*arrays, starts_q, starts_k, most_q, most_k, return_lse=True)
    there, other = up(*arrays), (np.array([0, 3, 23, 30], np.int32), np.array([0, 1, 2, 35], np.int32))
    expected, sums = fc.attention_varlen(*arrays, *other, most_q, most_k, return_lse=True)
    places = [[poisoned(expected.shape), poisoned(sums.shape, np.float32)] for _ in range(2)]
    first, second = (dict(zip(("cu_seqlens_q", "cu_seqlens_k"), up(*x))) for x in ((starts_q, starts_k), other))
    with Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            plan(*there, *places[0], stream=stream, **first)
        graph.update(plan, *there, *places[1], **second)
        graph.replay(stream)
        stream.synchronize()
    out, lse = host(*places[1])
    assert np.array_equal(out[:30], expected[:30])
    assert np.array_equal(lse[:, :30], sums[:, :30])
    assert np.isnan(places[0][0].to_numpy()).all()


def test_a_replay_asks_for_nothing(device) -> None:
    """With the context current it is one call of the driver; without, it is made again with it, and that is undone."""
    plan, there, out = fc.plan_attention(*make()), up(*make()), poisoned((B, SQ, H, D))
    with Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            plan(*there, out, stream=stream)
        with device.active(), recorded() as calls:
            graph.replay(stream)
        assert calls.names() == ["cuGraphLaunch"]
        before = context()
        for where in (stream, Stream(device, 0)):
            graph.replay(where)
            stream.synchronize()
            assert np.array_equal(out.to_numpy(), fc.attention(*make()))
            out.fill_bytes(0xFF)
            device.synchronize()
        assert context() == before


def test_a_forgotten_graph_is_destroyed(device) -> None:
    with Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            pass
        with recorded() as calls:
            del graph
            gc.collect()
        assert (calls.count("cuGraphExecDestroy"), calls.count("cuGraphDestroy")) == (1, 1)


# ---- what is refused


def planned(**options):
    arrays = up(*make())
    return fc.plan_attention(*arrays, **options), arrays, poisoned((B, SQ, H, D))


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("address", [0, 0x1008, -16, 1 << 64], ids=["null", "misaligned", "negative", "large"])
def test_an_address_that_cannot_be_right(device, which, address) -> None:
    plan, arrays, out = planned()
    given = [*arrays, out]
    given[which] = address
    with recorded() as calls, pytest.raises(fc.InvalidArgument) as refusal:
        plan(*given)
    name = ("q", "k", "v", "out")[which]
    words = {0: f"{name} has a null pointer", 0x1008: f"{name} is at 0x1008; allowed by the plan: a multiple of 16"}
    assert words.get(address, f"{name}={address:#x}; allowed: addresses of 64 bits") in str(refusal.value)
    assert calls.work() == []
    plan(*arrays, out)
    assert np.array_equal(out.to_numpy(), fc.attention(*make()))


@pytest.mark.parametrize("name", ["alibi_slopes", "bias", "sinks", "seqused_k", "lse"])
@pytest.mark.parametrize("address", [0, 0x1002], ids=["null", "misaligned"])
def test_an_address_of_a_small_array_that_cannot_be_right(device, name, address) -> None:
    small = sides("alibi_slopes", "bias", "sinks", "seqused_k")
    plan, arrays, out = planned(return_lse=True, **small)
    given = up_by_name(small) | {"lse": poisoned((B, H, SQ), np.float32)} | {name: address}
    with recorded() as calls, pytest.raises(fc.InvalidArgument, match=f"^{name} "):
        plan(*arrays, out, **given)
    assert calls.work() == []


def test_a_plan_for_less_aligned_arrays_takes_any(device) -> None:
    q, k, v = make()
    expected = fc.attention(q, k, v)
    spec = fc.ArraySpec(q.shape, q.dtype, alignment=2)
    plan, out = fc.plan_attention(spec, k, v), poisoned(q.shape)
    room = DeviceArray.from_numpy(np.concatenate([np.zeros(1, np.float16), q.reshape(-1)]))
    for there in (room.as_strided(q.shape, (SQ * H * D, H * D, D, 1), 1), *up(q)):
        out.fill_bytes(0xFF)
        plan(there, *up(k, v), out)
        np.testing.assert_allclose(out.to_numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("check", [False, True])
def test_small_inputs_and_lse_are_those_that_were_planned(device, check) -> None:
    plan, arrays, out = planned(sinks=sides("sinks")["sinks"])
    (sinks,), lse = up(*sides("sinks").values()), poisoned((B, H, SQ), np.float32)
    with pytest.raises(fc.InvalidArgument, match=r"small inputs are none; allowed: .* sinks"):
        plan(*arrays, out, check=check)
    with pytest.raises(fc.InvalidArgument, match=r"small inputs are sinks, bias; allowed: .* sinks"):
        plan(*arrays, out, sinks=sinks, bias=sinks, check=check)
    with pytest.raises(fc.InvalidArgument, match="lse is given; allowed: None"):
        plan(*arrays, out, lse, sinks=sinks, check=check)
    other, *_ = planned(return_lse=True)
    with pytest.raises(fc.InvalidArgument, match="lse is None; allowed: an array"):
        other(*arrays, out, check=check)


@pytest.mark.parametrize("check", [False, True])
def test_what_is_no_device_array(device, check) -> None:
    plan, arrays, out = planned()
    for wrong in (make()[0], None, "q", 1.5):
        with pytest.raises(fc.InvalidArgument, match=r"^q (is a|is on|on) "):
            plan(wrong, *arrays[1:], out, check=check)
    arrays[1].free()
    with pytest.raises(fc.InvalidArgument, match=r"^k: device memory .* used after free"):
        plan(*arrays, out, check=check)


def test_check_finds_what_is_not_as_planned(device) -> None:
    plan, arrays, out = planned(return_lse=True)
    q, k, v = arrays
    lse = poisoned((B, H, SQ), np.float32)
    base = {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    whole = DeviceArray.from_numpy(np.zeros(4 * B * SK * H * D, np.float16))
    contiguous = out.strides
    gaps = (*(2 * s for s in contiguous[:3]), 1)
    wrong = {
        "k has shape": {"k": k.as_strided((B, SK - 1, HK, D), k.strides)},
        "v has dtype": {"v": DeviceArray.from_numpy(np.zeros(v.shape, np.float32))},
        "q has strides": {"q": whole.as_strided(q.shape, gaps)},
        "lse has shape": {"lse": poisoned((B, SQ, H), np.float32)},
        "out is read-only": {"out": Exported(out, data=(out.address, True))},
        "out (bytes": {"out": q.as_strided(out.shape, contiguous)},
        "lse (bytes": {"lse": DeviceArray(v.buffer, lse.shape, lse.dtype, lse.strides)},
        "overlaps out": {"lse": DeviceArray(out.buffer, lse.shape, lse.dtype, lse.strides)},
        "outside its allocation": {"v": v.address + 16},
        "not device memory": {"q": make()[0].__array_interface__["data"][0] // 16 * 16},
    }
    for words, change in wrong.items():
        with recorded() as calls, pytest.raises(fc.InvalidArgument) as refusal:
            plan(**(base | change), check=True)
        assert words in str(refusal.value)
        assert calls.work() == []
    plan(**base, check=True)
    plan(**{name: x.address for name, x in base.items()}, check=True)
    assert np.array_equal(out.to_numpy(), fc.attention(*make()))
    v.free()
    with pytest.raises(fc.InvalidArgument, match=r"used after free"):
        plan(**base, check=True)


def test_without_check_shapes_are_not_looked_at(device) -> None:
    """What is documented: the plan's layout is applied to whatever is at the address."""
    plan, (q, k, v), out = planned()
    flat = DeviceArray(q.buffer, (B * SQ * H * D,), q.dtype, (1,))
    plan(flat, k, v, out)
    assert np.array_equal(out.to_numpy(), fc.attention(*make()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"impl": "unfused"}, "impl='unfused'"),
        ({"impl": "other"}, "impl='other'"),
        ({"causal": 1}, "causal=1"),
        ({"q": fc.ArraySpec((B, SQ, H, D), "nonsense")}, "q has dtype 'nonsense'"),
        ({"q": fc.ArraySpec((B, SQ, H, D), "float16", (1, 2))}, "q has shape"),
        ({"q": fc.ArraySpec((B, SQ, H, D), "float16", alignment=3)}, "q has alignment=3"),
        ({"q": fc.ArraySpec((B, SQ, H, D), "float16", alignment=1)}, "q is at 0x1"),
        ({"k": fc.ArraySpec((B, SK, 3, D), "float16")}, "k has 3"),
        ({"sinks": fc.ArraySpec((H + 1,), "float32")}, "sinks has shape"),
    ],
)
def test_a_plan_that_cannot_be_made(device, options, words) -> None:
    found = dict(zip("qkv", make())) | options
    with recorded() as calls, pytest.raises(fc.InvalidArgument, match=words):
        fc.plan_attention(**found)
    assert calls.work() == []


def test_a_launch_that_fails_says_so_and_the_plan_lives_on(device) -> None:
    from support import emulated_driver

    emulated = emulated_driver()
    plan, arrays, out = planned()
    for result in (emulated.CUresult.CUDA_ERROR_UNKNOWN, emulated.CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES):
        with emulated.inject("cuLaunchKernelEx", result=result), pytest.raises(fc.DriverError) as failure:
            plan(*arrays, out)
        assert (failure.value.call, failure.value.code) == ("cuLaunchKernelEx", int(result))
    plan(*arrays, out)
    assert np.array_equal(out.to_numpy(), fc.attention(*make()))


def test_a_forked_process_is_refused(device) -> None:
    code = """
import os, numpy as np, flashcore_drv as fc
x = fc.DeviceArray.from_numpy(np.ones((1, 8, 1, 32), np.float16))
out = fc.DeviceArray.from_numpy(np.ones((1, 8, 1, 32), np.float16))
plan = fc.plan_attention(x, x, x)
fc.attention(x, x, x, out=out)
if os.fork() == 0:
    said = []
    for call in (lambda: plan(x, x, x, out), lambda: fc.attention(x, x, x, out=out)):
        try:
            call()
        except fc.NoDriverError as error:
            said.append("spawn" in str(error))
    os._exit(42 if said == [True, True] else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert run_python("-c", code).stdout == "42\n"


# ---- what attention() keeps


@pytest.fixture
def builds(monkeypatch):
    """Every preparation, as it happens, from an empty cache."""
    api.CACHE.clear()
    found = []

    class Counted(prepared.Prepared):
        def __init__(self, *args: Any) -> None:
            found.append(args)
            super().__init__(*args)

    monkeypatch.setattr(api, "Prepared", Counted)
    yield found
    api.CACHE.clear()


@pytest.mark.parametrize("name", FEATURES)
def test_a_second_call_only_launches(device, current, builds, name) -> None:
    options, names = FEATURES[name]
    arrays, small, out = up(*make()), up_by_name(sides(*names)), poisoned((B, SQ, H, D))
    expected = fc.attention(*make(), **sides(*names), **options)
    builds.clear()
    for kind in (lambda x: x, Exported):
        given = [kind(x) for x in arrays], {n: kind(x) for n, x in small.items()}, kind(out)
        for call in range(3):
            out.fill_bytes(0xFF)
            with recorded() as calls:
                fc.attention(*given[0], **given[1], **options, out=given[2])
            assert np.array_equal(out.to_numpy(), expected)
            assert call == 0 or calls.names() == ["cuLaunchKernelEx"]
    assert len(builds) == 2


@pytest.mark.parametrize("place", ["host", "device"])
def test_new_outputs_come_from_what_is_kept_too(device, builds, place) -> None:
    arrays = make() if place == "host" else up(*make())
    found = [fc.attention(*arrays, return_lse=True, causal=True) for _ in range(3)]
    assert len(builds) == 1
    if place == "device":
        found = [host(*x) for x in found]
    assert len({(o.tobytes(), lse.tobytes()) for o, lse in found}) == 1


def test_packed_sequences_are_kept(device, builds) -> None:
    arrays = packed()
    expected = fc.attention_varlen(*arrays)
    there, out = up(*arrays[:5]), poisoned(expected.shape)
    builds.clear()
    for starts in ((arrays[3], arrays[4]), (np.array([0, 1, 9, 20], np.int32), np.array([0, 30, 31, 60], np.int32))):
        expected = fc.attention_varlen(*arrays[:3], *starts, 20, 33)
        builds.clear()
        fc.attention_varlen(*there[:3], *up(*starts), 20, 33, out=out)
        end = starts[0][-1]
        assert np.array_equal(out.to_numpy()[:end], expected[:end])
    assert builds == []
    fc.attention_varlen(*there, 20, 32, out=out)
    assert len(builds) == 1


def test_arrays_of_other_addresses_and_alignments(device, builds) -> None:
    """Hits have the bits of a call that finds nothing kept, whatever came before."""
    found = []
    for seed, shift in ((0, 0), (1, 0), (0, 1), (1, 8), (2, 1), (0, 0)):
        q, k, v = make(seed)
        room = DeviceArray.from_numpy(np.concatenate([np.zeros(shift, np.float16), k.reshape(-1)]))
        there = *up(q), room.as_strided(k.shape, (SK * HK * D, HK * D, D, 1), shift), *up(v)
        out = poisoned(q.shape)
        fc.attention(*there, out=out)
        found.append((out.to_numpy(), there))
    assert len(builds) == 2  # 8 elements are 16 bytes
    for out, there in found:
        api.CACHE.clear()
        assert np.array_equal(fc.attention(*there).to_numpy(), out)


def test_what_is_kept_is_bounded(device, builds, monkeypatch) -> None:
    monkeypatch.setattr(api, "CACHE", Cache(4))
    q, k, v = up(*make())
    out = poisoned(q.shape)
    for i in range(12):
        fc.attention(q, k, v, softmax_scale=0.1 + i, out=out)
        fc.attention(q, k, v, softmax_scale=0.1, out=out)
        assert len(api.CACHE) <= 4
    assert len(builds) == 12, "what was in use was forgotten"


def test_the_longest_unused_is_forgotten_first() -> None:
    class Entry:
        recent = False

    cache = Cache(3)
    for key in "abc":
        cache.put(key, Entry())
    cache.put("d", Entry())
    assert cache.get("a") is None
    assert cache.get("b")
    cache.put("e", Entry())
    assert [key for key in "abcde" if cache._entries.get(key)] == ["b", "d", "e"]
    cache.put("e", Entry())
    assert len(cache) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"causal": 1}, "causal=1"),
        ({"return_lse": 0}, "return_lse=0"),
        ({"batch_invariant": 0}, "batch_invariant=0"),
        ({"window_size": (True, 0)}, "window_size=(True, 0)"),
        ({"window_size": (1.0, 0)}, "window_size=(1.0, 0)"),
        ({"window_size": 5}, "window_size=5"),
        ({"window_size": [1, [0]]}, "window_size=[1, [0]]"),
        ({"softmax_scale": "0.5"}, "softmax_scale='0.5'"),
        ({"layout": "other"}, "layout='other'"),
        ({"impl": "other"}, "impl='other'"),
        ({"impl": []}, "impl=[]"),
        ({"stream": "other"}, "stream='other'"),
    ],
)
def test_options_that_look_like_those_of_an_earlier_call(device, options, words) -> None:
    arrays, out = up(*make()), poisoned((B, SQ, H, D))
    for good in ({}, {"causal": True}, {"window_size": (1, 0)}):
        fc.attention(*arrays, out=out, **good)
    for given in (arrays, make()):
        with pytest.raises(fc.InvalidArgument) as refusal:
            fc.attention(*given, out=out if given is arrays else None, **options)
        assert words in str(refusal.value)


def test_what_depends_on_addresses_is_checked_every_time(device) -> None:
    whole = DeviceArray.from_numpy(np.zeros(8 * B * SK * H * D, np.float16))
    _, k, v = up(*make())
    shape, strides = (B, SQ, H, D), (SQ * H * D, H * D, D, 1)
    size = B * SQ * H * D
    q, out = whole.as_strided(shape, strides), whole.as_strided(shape, strides, size)
    fc.attention(q, k, v, out=out)
    for offset in (0, size - 8, -8):
        wrong = whole.as_strided(shape, strides, 2 * size + offset)
        with pytest.raises(fc.InvalidArgument, match="overlaps q"):
            fc.attention(whole.as_strided(shape, strides, 2 * size), k, v, out=wrong)
    fc.attention(Exported(q), Exported(k), Exported(v), out=Exported(out))
    with pytest.raises(fc.InvalidArgument, match="out is read-only"):
        fc.attention(Exported(q), Exported(k), Exported(v), out=Exported(out, data=(out.address, True)))
    end = whole.address + whole.nbytes
    with pytest.raises(fc.InvalidArgument, match=r"q reaches from .* outside its allocation"):
        fc.attention(Exported(q, data=(end - 4096, False)), Exported(k), Exported(v), out=Exported(out))
    fc.attention(q, k, v, out=out)
    k.free()
    with pytest.raises(fc.InvalidArgument, match=r"k: device memory .* used after free"):
        fc.attention(q, k, v, out=out)


def test_the_driver_is_asked_once_where_another_librarys_array_is(device, current, monkeypatch) -> None:
    monkeypatch.setattr(interop.arrays, "_KNOWN", {})  # arrays of other tests were at these addresses
    arrays, out = up(*make()), poisoned((B, SQ, H, D))
    exported = [Exported(x) for x in (*arrays, out)]
    with recorded() as calls:
        fc.attention(*exported[:3], out=exported[3])
    assert calls.count("cuPointerGetAttributes") >= 4
    with recorded() as calls:
        fc.attention(*exported[:3], out=exported[3])
    assert calls.names() == ["cuLaunchKernelEx"]


def test_the_legacy_stream_has_two_names(device) -> None:
    """A producer in stream 1 is in order with a call in stream 0; one elsewhere is waited for, on hits too."""
    arrays, out = up(*make()), poisoned((B, SQ, H, D))
    with Stream(device) as stream:
        for _ in range(2):
            for producer, own, waits in ((1, None, 0), (1, 1, 0), (stream.handle, stream, 0), (stream.handle, 0, 1)):
                q = Exported(arrays[0], stream=producer)
                with recorded() as calls:
                    fc.attention(q, *arrays[1:], out=out, stream=own)
                assert calls.count("cuStreamWaitEvent") == waits
        stream.synchronize()


# ---- what the parameters are


def test_both_structs_begin_with_the_pointers_of_every_kernel() -> None:
    plain, scored = abi.FLASH_FWD_PARAMS.offsets, abi.FLASH_FWD_SCORED_PARAMS.offsets
    assert all(scored[f"fwd.{name}"] == place for name, place in plain.items())
    for name in (*prepared.SIDES.values(), *(f"fwd.{x}.data" for x in ("q", "k", "v", "o", "lse"))):
        offset, kind = scored[name]
        assert (offset % 8, kind) == (0, "Q")


def test_the_driver_is_called_through_its_module(device) -> None:
    """So that what replaces a function there, as these tests do, is seen."""
    plan, arrays, out = planned()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.module(), "cuLaunchKernelEx", lambda *args: (driver.module().CUresult.CUDA_SUCCESS,))
        plan(*arrays, out)
    assert np.isnan(out.to_numpy()).all()


def test_a_graph_tells_plans_apart_that_differ_in_batch_alone(device, monkeypatch) -> None:
    """Where heads run in groups that is gridDim.y, and nothing in the parameters."""
    monkeypatch.setattr("flashcore_drv.plan.heads_in_a_group", lambda *_: 2)
    rng = np.random.default_rng(0)

    def arrays(batch: int) -> list[fc.DeviceArray]:
        return [fc.DeviceArray.from_numpy(rng.standard_normal((batch, 32, 1, 64)).astype(np.float16)) for _ in range(4)]

    few, many, other = arrays(2), arrays(4), arrays(2)
    plans = [fc.plan_attention(*x[:3], causal=True, impl="flash_sm80") for x in (few, many)]
    with fc.Stream(device) as stream:
        with fc.Graph.capture(stream) as graph:
            plans[1](*many, stream=stream)
            plans[0](*few, stream=stream)
        graph.update(plans[0], *other)
        graph.replay(stream)
        found = [x.to_numpy(stream=stream) for x in (many[3], other[3])]
    for out, x in zip(found, (many, other)):
        assert np.array_equal(out, fc.attention(*x[:3], causal=True, impl="flash_sm80").to_numpy())
