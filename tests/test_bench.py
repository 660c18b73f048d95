"""The benchmark's machinery without a GPU: order, spread, checks, resuming, schema. Times here are made up."""

import gc
import importlib
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from support import ROOT, run_python

import flashcore_drv as fc
from flashcore_drv import images, reference
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.runtime import Stream, is_emulated

sys.path.insert(0, str(ROOT / "scripts"))

from benchmark import (
    ceilings,
    conditions,
    headline,
    measure,
    ours,
    peers,
    results,
    suite_accuracy,
    suite_cliff,
    suite_forward,
    suite_reference,
    timed,
)
from benchmark.cases import Case, Pool, Truth, count_nan, elements
from benchmark.ours import Ours
from benchmark.suites import SUITES, Run, load

BENCH = ROOT / "scripts" / "bench.py"
TINY = Case("tiny", 1, 2, 2, 70, 70, 64, True)


@pytest.fixture(autouse=True)
def collecting():
    """A measurement that is not finished leaves the garbage collector off, and later tests would keep all they make."""
    yield
    gc.enable()


@pytest.fixture
def built(device):
    if not list(images.build_folder().rglob("*_sm89.*")):
        pytest.skip(f"nothing is built in {images.build_folder()}: make cubin")


def made_up(us=10.0):
    """A timer that runs nothing and says 10, 11, 12, … microseconds in every round."""

    def timer(replay, repeat):
        times = iter(range(10_000))
        return lambda: us + next(times) % 5

    return timer


class FakePrepared(peers.Prepared):
    def __init__(self, tensors, shift, us):
        self.tensors, self.shift, self.us = tensors, shift, us
        case = tensors.case
        q, k, v = (tensors.host[x] for x in "qkv")
        self.out = reference.truth(q, k, v, case.softmax_scale, causal=case.causal).o + shift

    def rows(self, batch, head, where):
        return self.out[batch, head, where].astype(self.tensors.case.dtype.to_numpy())

    def sample(self, timer, repeat):
        return made_up(self.us)(None, repeat)


class FakePeer(peers.Peer):
    def __init__(self, shift=0.0, us=20.0, refuses=""):
        self.version, self.how, self.shift, self.us, self.refuses = "1", "made up", shift, us, refuses

    def prepare(self, sets, stream):
        if self.refuses:
            raise peers.Refused(self.refuses)
        return FakePrepared(sets[0], self.shift, self.us)


def record_of(name, device, path=None, rounds=5, **changes):
    suite = load(name)
    found = conditions.conditions(suite.METHOD, quick=True, packages=suite.PACKAGES)
    return results.Record(name, found | conditions.gpu_conditions(device, rounds=rounds) | changes, path)


@pytest.fixture
def bench_of(monkeypatch, device):
    """A Bench of a suite with made-up ceilings, peers and times."""

    def make(name, adapters=None, record=None, rounds=5):
        monkeypatch.setattr(timed, "ceilings", lambda device, timer: dict.fromkeys(results.CEILINGS, 100.0))
        if adapters is not None:
            monkeypatch.setattr(peers, "ADAPTERS", {name: lambda peer=peer: peer for name, peer in adapters.items()})
        run = Run(record or record_of(name, device), device, True, rounds)
        return timed.Bench(run, tuple(adapters or ()), timer=made_up())

    return make


def row_of(bench, case):
    pool = Pool(bench.device, case.dtype, elements(case))
    return bench.row(case, [pool.tensors(case)])


# ---- timing


def test_candidates_take_turns_and_each_round_begins_with_the_next() -> None:
    order = []
    samples = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    times = measure.interleaved(samples, rounds=3, warm_up=1)
    assert order == [*"abc", *"bca", *"cab", *"abc"]
    assert times == {"a": [6.0, 8.0, 10.0], "b": [4.0, 9.0, 11.0], "c": [5.0, 7.0, 12.0]}


def test_the_spread_holds_the_median_and_stays_within_the_samples() -> None:
    values = [5.0, 1.0, 2.0, 4.0, 3.0]
    median, (low, high) = measure.spread(values)
    assert median == 3.0
    assert 1.0 <= low <= 1.3
    assert 4.7 <= high <= 5.0


def test_ratios_are_of_the_same_round() -> None:
    assert measure.paired([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]


def test_a_replay_outlasts_what_the_host_needs_to_queue_it() -> None:
    assert measure.repeat_for(2.0, 100.0) * 2.0 == measure.REPLAY_US
    assert measure.repeat_for(1e6, 3000.0) == 1


def test_a_timed_replay_follows_an_uncounted_one(device) -> None:
    stream, replays = Stream(device), []
    us = measure.EventTimer(stream)(replays.append, 4)()
    assert replays == [stream, stream]
    assert us >= 0


def test_wall_time_is_of_one_launch() -> None:
    calls = []
    us = measure.clock_sample(lambda: calls.append(sum(range(200_000))), 1)()
    assert us > 4 * measure.clock_sample(lambda: calls.append(sum(range(200_000))), 100)()


# ---- cases and their truth


@pytest.mark.parametrize(
    "case",
    [
        Case("gqa", 2, 6, 2, 50, 50, 64, True),
        Case("bf16", 1, 2, 1, 33, 90, 64, False, BF16),
        Case("no keys", 1, 1, 1, 90, 40, 64, True),
    ],
    ids=lambda case: case.id,
)
def test_sampled_truth_is_that_of_the_whole(device, case) -> None:
    tensors = Pool(device, case.dtype, elements(case)).tensors(case)
    whole = reference.truth(*(tensors.host[x] for x in "qkv"), case.softmax_scale, causal=case.causal).o
    truth = Truth(tensors)
    assert {(b, h) for b, h, *_ in truth.samples} >= {(0, 0), (case.batch - 1, case.num_heads - 1)}
    for batch, head, rows, true, _ in truth.samples:
        np.testing.assert_allclose(true, whole[batch, head, rows], rtol=1e-12, atol=1e-12)
    element = case.dtype.to_numpy()
    assert truth.verdict(lambda b, h, rows: whole[b, h, rows].astype(element)).ok
    assert not truth.verdict(lambda b, h, rows: (whole[b, h, rows] + 0.01).astype(element)).ok


def test_packed_sequences_are_taken_apart(device) -> None:
    case = Case("packed", 3, 2, 2, 40, 40, 32, True, F16, (40, 7, 20))
    tensors = Pool(device, F16, elements(case)).tensors(case)
    assert tensors.host["q"].shape == (67, 2, 32)
    assert np.array_equal(tensors.of_head("k", 1, 1), tensors.host["k"][40:47, 1])
    q, k, v = (tensors.of_head(x, 2, 1)[None, None] for x in "qkv")
    last = Truth(tensors).samples[-1]
    assert last[:3] == (2, 1, slice(4, 20))
    np.testing.assert_allclose(last[3], reference.truth(q, k, v, case.softmax_scale, causal=True).o[0, 0, 4:])
    assert case.flops == 4 * 2 * 32 * sum(n * (n + 1) // 2 for n in case.lengths)


def test_log_uniform_lengths_are_fixed_and_hold_all_tokens() -> None:
    lengths = suite_forward.log_uniform_lengths(8192)
    assert lengths == suite_forward.log_uniform_lengths(8192)
    assert sum(lengths) == suite_forward.TOKENS
    assert len(set(lengths)) > 3


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_nan_is_counted_and_infinity_is_not(dtype) -> None:
    x = np.array([0, 1, np.inf, -np.inf, np.nan, -np.nan]).astype(dtype.to_numpy())
    assert count_nan(x) == 2


def test_the_values_of_the_cliff_make_the_scores_that_they_say(device) -> None:
    case = Case("cliff", 1, 1, 1, 256, 256, 64)
    host = Pool(device, F16, elements(case)).tensors(case).host

    def scores(values):
        x = suite_cliff.KINDS[values](case, host)
        q, k = x["q"][0, 0].astype(np.float64), x["k"][0, 0].astype(np.float64)
        return q @ k.T * case.softmax_scale

    for values, sign in (("rising", 1), ("falling", -1)):
        tiles = scores(values).reshape(256, -1, suite_cliff.TILE).mean(2)
        assert np.abs(np.diff(tiles) - sign * suite_cliff.RISE).max() < 2
    assert np.ptp(scores("constant"), axis=1).max() < 1e-9
    assert np.abs(scores("outliers")).max() > 3 * np.abs(host_scores(case, host)).max()


def host_scores(case, host):
    return host["q"][0, 0].astype(np.float64) @ host["k"][0, 0].astype(np.float64).T * case.softmax_scale


# ---- a row


def test_a_row_has_our_time_and_the_peers(bench_of, built) -> None:
    bench = bench_of("forward", {"slow": FakePeer(us=20.0), "fast": FakePeer(us=5.0)})
    row = row_of(bench, TINY)
    bench.run.record.add(row)
    assert row["ours"]["stem"] == "flash_fwd_causal_f16_d64_sm89"
    assert row["ours"]["us"] == 12.0
    assert row["peers"]["slow"]["us"] == 22.0
    assert row["peers"]["slow"]["ratio"] == pytest.approx(22 / 12, rel=1e-5)
    assert row["peers"]["fast"]["ratio"] < 1
    assert row["ours"]["tflops"] == pytest.approx(TINY.flops / 12.0 / 1e6, rel=1e-5)
    found = bench.run.record.to_json()
    assert headline.ratios(found["rows"], ["slow"]) == [row["peers"]["slow"]["ratio"]]
    table = "\n".join(timed.lines(found))
    assert "1.83 [" in table
    assert "x slow" in table


def test_wrong_and_refusing_peers_are_named_and_not_timed(bench_of, built) -> None:
    adapters = {"off": FakePeer(shift=0.2), "nan": FakePeer(shift=np.nan), "no": FakePeer(refuses="not this one")}
    bench = bench_of("forward", adapters)
    row = row_of(bench, TINY)
    bench.run.record.add(row)
    assert row["peers"]["off"].keys() == row["peers"]["nan"].keys() == {"wrong"}
    assert row["peers"]["no"] == {"refused": "Refused: not this one"}
    assert "us" in row["ours"]
    assert "no refused: Refused: not this one (tiny)" in timed.lines(bench.run.record.to_json())


@pytest.mark.parametrize("how", ["value", "unwritten"])
def test_a_wrong_result_of_ours_is_reported_and_nothing_is_timed(bench_of, built, monkeypatch, how) -> None:
    def fetch(self):
        self._host = np.zeros(self.case.shapes["o"], np.float16)
        if how == "unwritten":
            self._host[0, 0, 20] = np.nan
        return self._host

    monkeypatch.setattr(Ours, "fetch", fetch)
    bench = bench_of("forward", {"peer": FakePeer()})
    bench.timer = lambda replay, repeat: pytest.fail("timed")
    row = row_of(bench, TINY)
    bench.run.record.add(row)
    assert ("written" if how == "unwritten" else "allowed") in row["ours"]["wrong"]
    assert row["peers"] == {}
    assert any("WRONG" in line for line in timed.lines(bench.run.record.to_json()))


def test_rotated_inputs_have_a_time_of_their_own(bench_of, built) -> None:
    bench = bench_of("small", {"peer": FakePeer()})
    pool = Pool(bench.device, F16, 3 * elements(TINY))
    sets = [pool.tensors(TINY, i * elements(TINY)) for i in range(3)]
    row = bench.row(TINY, sets[:1], sets)
    bench.run.record.add(row)
    assert row["ours"]["rotated"]["us"] == 12.0
    assert row["peers"]["peer"]["rotated"]["ratio"] > 1


# ---- two families


class Either(str):
    """The name of one family that passes for that of the other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


@pytest.fixture
def two_families(monkeypatch):
    """As on a Hopper with both families; the second is the first once more."""
    found = {"ours": ours.SM_80_IMPL, "sm_90": ours.SM_80_IMPL}
    for module in (ours, timed):
        monkeypatch.setattr(module, "impls", lambda device: found)
    monkeypatch.setattr(ours, "member_of", lambda stem: Either("sm_90"))


def test_the_families_are_those_of_the_gpu_and_of_the_package(monkeypatch) -> None:
    class Gpu:
        arch = 90

    assert ours.impls(Gpu) == {"ours": ours.SM_80_IMPL} | (
        {"sm_90": "flash_sm90"} if "flash_sm90" in ours.IMPLS else {}
    )
    monkeypatch.setattr(ours, "IMPLS", ("auto", "flash", "flash_sm80", "flash_sm90", "unfused"))
    assert ours.impls(Gpu)["sm_90"] == "flash_sm90"
    Gpu.arch = 100
    assert list(ours.impls(Gpu)) == ["ours"]
    stems = "flash_fwd_f16_d64_sm89", "flash_fwd_small_f16_d64_sm90a", "flash_fwd_tma_f16_d64_sm90a"
    assert [ours.member_of(stem) for stem in stems] == ["ours", "ours", "sm_90"]


def test_a_kernel_of_the_other_family_is_not_taken_for_this_one(bench_of, built, monkeypatch) -> None:
    monkeypatch.setattr(ours, "member_of", lambda stem: "sm_90")
    with pytest.raises(fc.Unsupported, match="takes flash_fwd"):
        row_of(bench_of("forward", {}), TINY)


def test_both_families_are_timed_with_ratios_to_each(bench_of, built, two_families) -> None:
    bench = bench_of("small", {"FA2": FakePeer(us=20.0), "cuDNN": FakePeer(us=16.0), "FA4": FakePeer(us=12.0)})
    order = []

    def timer(replay, repeat):
        times = iter([(8.0, 8.5, 9.0)[len(order) % 3]] * 100)
        order.append(None)
        return lambda: next(times)

    bench.timer = timer
    pool = Pool(bench.device, F16, 2 * elements(TINY))
    sets = [pool.tensors(TINY, i * elements(TINY)) for i in range(2)]
    row = bench.row(TINY, sets[:1], sets)
    bench.run.record.add(row)
    ours_us, hopper_us = row["ours"]["us"], row["sm_90"]["us"]
    assert ours_us != hopper_us
    assert json.dumps(row["auto"]) == '"sm_90"'
    assert row["sm_90"]["ratio"] == pytest.approx(hopper_us / ours_us, rel=1e-5)
    for peer in row["peers"].values():
        assert peer["ratio"] / peer["ratio_sm_90"] == pytest.approx(hopper_us / ours_us, rel=0.01)
    assert {"us", "ratio"} < row["sm_90"]["rotated"].keys()
    assert "ratio_sm_90" in row["peers"]["FA4"]["rotated"]
    best = headline.ratio_to_best(row, headline.HOPPER_PEERS, "sm_90")
    assert best == row["peers"]["FA4"]["ratio_sm_90"] < row["peers"]["cuDNN"]["ratio_sm_90"]
    lines = "\n".join(timed.lines(bench.run.record.to_json()))
    assert "sm_90: us" in lines
    assert f"sm_90: x the better of cuDNN, cudnn-frontend, FA4: geometric mean {best:.3f}" in lines
    assert f"ours: x FA2: geometric mean {row['peers']['FA2']['ratio']:.3f}" in lines


def test_packed_sequences_are_planned_with_their_kernel(bench_of, built, two_families) -> None:
    bench = bench_of("forward", {})
    row = row_of(bench, Case("packed", 3, 2, 2, 40, 40, 32, True, F16, (40, 7, 20)))
    bench.run.record.add(row)
    assert row["ours"]["stem"].startswith("flash_fwd")
    assert row["ours"]["max_error"] > 0
    assert "us" in row["sm_90"]


@pytest.mark.parametrize("kind", ["wrong", "refused"])
def test_a_second_family_that_is_not_right_or_not_there_is_named_and_the_first_is_timed(
    bench_of, built, two_families, monkeypatch, kind
) -> None:
    check, made = timed.Bench.check_ours, []

    def second_wrong(self, ours, truth):
        made.append(ours)
        return ("all of it", 0.0) if len(made) == 2 else check(self, ours, truth)

    def refuse(sets, device, stream, member):
        if member == "sm_90":
            raise fc.Unsupported("no TMA for this")
        return Ours(sets, device, stream, member)

    if kind == "wrong":
        monkeypatch.setattr(timed.Bench, "check_ours", second_wrong)
    else:
        monkeypatch.setattr(timed, "Ours", refuse)
    bench = bench_of("forward", {"peer": FakePeer()})
    row = row_of(bench, TINY)
    bench.run.record.add(row)
    assert row["sm_90"] == {kind: "all of it" if kind == "wrong" else "Unsupported: no TMA for this"}
    assert "ratio_sm_90" not in row["peers"]["peer"]
    assert results.wrong_members(row) == (["sm_90"] if kind == "wrong" else [])
    assert any(f"sm_90 {kind}: " in line for line in timed.lines(bench.run.record.to_json()))


def test_the_cliff_and_the_reference_have_both_families(bench_of, built, two_families, monkeypatch) -> None:
    for name, value in {"TOKENS": 192, "SEQLEN": 192, "WIDTH": 64}.items():
        monkeypatch.setattr(suite_cliff, name, value)
    bench = bench_of("cliff", {"peer": FakePeer()})
    group = [suite_cliff.shape(64, False, x) for x in ("random", *suite_cliff.KINDS)]
    rows = suite_cliff.measure(bench, group, Pool(bench.device, F16, elements(group[0])).tensors(group[0]))
    for row in rows:
        bench.run.record.add(row)
    assert all(row["slowdown_sm_90"] == 1.0 for row in rows[1:])
    assert suite_cliff.lines(bench.run.record.to_json())
    bench = bench_of("reference", {"peer": FakePeer()})
    rows = suite_reference.measure(bench, Case("tiny", 1, 2, 2, 48, 48, 64))
    for row in rows:
        bench.run.record.add(row)
    assert [row["part"] for row in rows if "sm_90" in row] == ["flash"]
    assert rows[-1]["peers"]["peer"]["ratio_sm_90"] > 0


def test_errors_of_all_are_compared_on_the_same_inputs(device, built, two_families, monkeypatch) -> None:
    monkeypatch.setattr(suite_accuracy, "SEQLEN", 48)
    monkeypatch.setattr(suite_accuracy, "HEAD_DIMS", (32,))
    adapters = {"close": FakePeer(), "off": FakePeer(shift=0.2), "no": FakePeer(refuses="not this one")}
    monkeypatch.setattr(peers, "ADAPTERS", {name: lambda peer=peer: peer for name, peer in adapters.items()})
    record = record_of("accuracy", device)
    suite_accuracy.run(Run(record, device, quick=True, peers=tuple(adapters)))
    found = record.to_json()
    assert [row["id"] for row in found["rows"]] == ["d32-full-f16", "d32-full-bf16"]
    for row in found["rows"]:
        assert row["ours"]["max_error"] > 3 * row["ours"]["rms_error"] > 0
        assert row["sm_90"] == row["ours"]
        assert row["peers"]["close"]["rms_error"] < row["ours"]["rms_error"]
        assert row["peers"]["off"].keys() == {"wrong"}
        assert row["peers"]["no"] == {"refused": "Refused: not this one"}
    assert suite_accuracy.lines(found)


# ---- suites


def test_the_reference_suite_checks_and_times_every_part(bench_of, built) -> None:
    bench = bench_of("reference", {"peer": FakePeer()})
    rows = suite_reference.measure(bench, Case("tiny", 1, 2, 2, 48, 48, 64))
    for row in rows:
        bench.run.record.add(row)
    assert [row["part"] for row in rows] == list(suite_reference.PARTS)
    assert [row["ours"]["stem"] is None for row in rows] == [False, False, False, True, False]
    assert rows[-1]["peers"].keys() == {"peer"}
    assert all(row["ours"]["max_error"] > 0 for row in rows)
    assert len(suite_reference.lines(bench.run.record.to_json())) > len(rows)


def test_the_cliff_is_relative_to_random_values_of_the_same_shape(bench_of, built, monkeypatch) -> None:
    monkeypatch.setattr(suite_cliff, "TOKENS", 192)
    monkeypatch.setattr(suite_cliff, "SEQLEN", 192)
    monkeypatch.setattr(suite_cliff, "WIDTH", 64)
    bench = bench_of("cliff", {"peer": FakePeer()})
    group = [suite_cliff.shape(64, True, x) for x in ("random", *suite_cliff.KINDS)]
    pool = Pool(bench.device, F16, elements(group[0]))
    rows = suite_cliff.measure(bench, group, pool.tensors(group[0]))
    for row in rows:
        bench.run.record.add(row)
    assert [row.get("base") for row in rows] == [None, *[group[0].id] * 4]
    assert all(row["slowdown"] == 1.0 for row in rows[1:])
    assert any("1.00 [1.00, 1.00]" in line for line in suite_cliff.lines(bench.run.record.to_json()))


# ---- ceilings


def test_the_mma_kernel_makes_the_instructions_that_are_counted(device) -> None:
    if not is_emulated():
        pytest.skip("the emulator counts instructions")
    from flashcore_drv.runtime import driver

    work = ceilings.MmaSync(device, blocks=1, steps=3)
    stream = Stream(device)
    with device.active():
        work.launch(stream)
    stream.synchronize()
    assert np.isfinite(work.out.to_numpy(stream=stream)).all()
    opcodes = driver.module().reports()[-1][1].totals.opcodes
    count = sum(n for opcode, n in opcodes.items() if opcode.startswith("mma.sync"))
    assert work.flops == count * ceilings.MMA_FLOPS


def test_a_ceiling_that_cannot_be_measured_says_why(device, monkeypatch) -> None:
    def mma_sync_tflops(device, stream, timer):
        raise peers.Absent("no nvcc")

    def copy_tb_s(device, stream, timer):
        raise MemoryError("too large")

    def gemm_tflops(device, stream, timer):
        return 700.0

    for made in (gemm_tflops, mma_sync_tflops, copy_tb_s):
        monkeypatch.setattr(ceilings, made.__name__, made)
    found = ceilings.ceilings(device, made_up())
    results.check_ceilings(found)
    assert found == {
        "gemm_tflops": 700.0,
        "mma_sync_tflops": {"absent": "no nvcc"},
        "copy_tb_s": {"absent": "MemoryError: too large"},
    }


# ---- records


def test_rows_of_the_same_conditions_are_not_measured_again(bench_of, device, built, tmp_path) -> None:
    path = tmp_path / "2026-01-01-forward.json"
    bench = bench_of("forward", {"peer": FakePeer()}, record_of("forward", device, path))
    bench.run.record.add(row_of(bench, TINY))
    again = record_of("forward", device, path)
    assert again.resumed == 1
    assert again.rows["tiny"] == bench.run.record.rows["tiny"]
    run = Run(again, device, filter="t")
    assert run.wanted(["tiny", "tall", "other"]) == ["tall", "other"]
    assert Run(again, device, filter="all").wanted(["tiny", "tall"]) == ["tall"]
    for name, value in {"sources": "x", "commit": "x", "quick": False, "rounds": 6, "seed": 1}.items():
        assert record_of("forward", device, path, **{name: value}).resumed == 0, name
    path.write_text("{")
    assert record_of("forward", device, path).resumed == 0


def test_a_run_that_is_broken_off_keeps_what_it_measured(bench_of, device, built, monkeypatch, tmp_path) -> None:
    path, cases = tmp_path / "2026-01-01-forward.json", [replace(TINY, id=name) for name in ("a", "b", "c")]
    monkeypatch.setattr(timed, "ceilings", lambda device, timer: dict.fromkeys(results.CEILINGS, 100.0))
    monkeypatch.setattr(timed, "EventTimer", lambda stream: made_up())
    monkeypatch.setattr(suite_forward, "cases", lambda quick: cases)
    measure_row, done = timed.Bench.row, []

    def row(self, case, sets):
        if case.id == "b" and not done:
            done.append(case.id)
            raise KeyboardInterrupt
        return measure_row(self, case, sets)

    monkeypatch.setattr(timed.Bench, "row", row)
    with pytest.raises(KeyboardInterrupt):
        suite_forward.run(Run(record_of("forward", device, path), device, True, 3, peers=()))
    assert [x["id"] for x in results.load(path)["rows"]] == ["a"]
    again = record_of("forward", device, path)
    suite_forward.run(Run(again, device, True, 3, peers=()))
    assert again.resumed == 1
    assert [x["id"] for x in results.load(path)["rows"]] == ["a", "b", "c"]


def test_a_wrong_row_is_measured_again(device, tmp_path) -> None:
    record = record_of("forward", device, tmp_path / "x.json")
    record.ceilings = dict.fromkeys(results.CEILINGS, 1.0)
    row = {"id": "tiny", "problem": TINY.to_json(), "flops": 1, "bytes": 1, "ours": {"wrong": "all of it"}, "peers": {}}
    record.add(row)
    assert record_of("forward", device, tmp_path / "x.json").resumed == 0
    assert results.wrong_members(row | {"sm_90": {"wrong": "too"}}) == ["ours", "sm_90"]


# ---- the schema


@pytest.fixture
def valid(bench_of, built):
    bench = bench_of("small", {"peer": FakePeer(), "no": FakePeer(refuses="no")})
    bench.run.record.add(row_of(bench, TINY))
    return json.loads(json.dumps(bench.run.record.to_json()))


def drop(found, *path):
    for name in path[:-1]:
        found = found[name]
    del found[path[-1]]


def put(value, *path):
    def change(found):
        for name in path[:-1]:
            found = found[name]
        found[path[-1]] = value

    return change


CHANGES = {
    "no conditions": lambda x: drop(x, "conditions"),
    "no seed": lambda x: drop(x, "conditions", "seed"),
    "no state after": lambda x: drop(x, "conditions", "after"),
    "a date of another form": put("23.11.2026", "conditions", "date"),
    "no commit": put("", "conditions", "commit"),
    "no ceilings": lambda x: drop(x, "ceilings"),
    "a ceiling of 0": put(0, "ceilings", "copy_tb_s"),
    "another schema": put(2, "schema"),
    "another suite": put("speed", "suite"),
    "an unknown member": put(1, "extra"),
    "a peer without a version": lambda x: drop(x, "peers", "peer", "version"),
    "a peer of a row that is not there": put({"absent": "gone"}, "peers", "peer"),
    "a row twice": lambda x: x["rows"].append(x["rows"][0]),
    "a row without an id": lambda x: drop(x, "rows", 0, "id"),
    "a median outside its spread": put([1.0, 2.0], "rows", 0, "ours", "us_5_95"),
    "no spread": lambda x: drop(x, "rows", 0, "ours", "us_5_95"),
    "no ratio": lambda x: drop(x, "rows", 0, "peers", "peer", "ratio"),
    "a rate that is not operations over time": put(1.0, "rows", 0, "ours", "tflops"),
    "an error that is not a number": put(float("nan"), "rows", 0, "ours", "max_error"),
    "a time that is not finite": put(float("inf"), "rows", 0, "ours", "us"),
    "a head_dim of 0": put(0, "rows", 0, "problem", "head_dim"),
    "a dtype by another name": put("f16", "rows", 0, "problem", "dtype"),
    "lengths without packing": put([1, 2], "rows", 0, "problem", "varlen"),
    "peers timed beside a wrong result": put({"wrong": "x"}, "rows", 0, "ours"),
    "a base that is no row": lambda x: x["rows"][0].update(base="x", slowdown=1.0, slowdown_5_95=[1.0, 1.0]),
    "a slowdown of nothing": lambda x: x["rows"][0].update(slowdown=1.0, slowdown_5_95=[1.0, 1.0]),
    "a row that is skipped too": put("why", "skipped", "tiny"),
    "no reason": put("", "skipped", "other"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_not_of_the_schema_is_refused(valid, change) -> None:
    results.validate(valid)
    change(valid)
    with pytest.raises(results.InvalidResults):
        results.validate(valid)


COMMITTED = sorted((ROOT / "benchmarks").rglob("*.json"))
OTHERS = [path for path in COMMITTED if "schema" not in json.loads(path.read_text())]


@pytest.mark.parametrize("path", [p for p in COMMITTED if p not in OTHERS], ids=lambda p: p.name)
def test_committed_results_are_of_the_schema(path) -> None:
    found = results.load(path)
    where = found["conditions"].get("gpu")
    assert path.name == f"{found['conditions']['date']}-{found['suite']}.json"
    assert where is None or path.parent.name == results.folder_of(where)


def test_files_that_are_not_of_the_schema_are_listed() -> None:
    listed = re.findall(r"^\| `([^`]*\.json)` \|", (ROOT / "benchmarks" / "README.md").read_text(), re.M)
    patterns = [re.sub(r"<[a-z]+>", "[a-z0-9-]+", re.escape(x).replace(r"\<", "<")) for x in listed]
    names = [path.relative_to(ROOT / "benchmarks").as_posix() for path in OTHERS]
    assert [name for name in names if not any(re.fullmatch(p, name) for p in patterns)] == []


# ---- conditions


def test_nvidia_smi_is_read() -> None:
    assert conditions.parse_state("1980, 3201, 46, 159.94, 0x0000000000000005") == {
        "sm_mhz": 1980.0,
        "memory_mhz": 3201.0,
        "temperature_c": 46.0,
        "power_w": 159.94,
        "throttle": ["software power cap"],
    }
    assert conditions.parse_state("1980, [N/A], 46, 159.94, [N/A]")["memory_mhz"] is None
    assert set(conditions.parse_state(None).values()) == {None}


def test_a_digest_is_of_names_and_contents(tmp_path) -> None:
    def digest():
        return conditions.sources([tmp_path])

    found = {digest()}
    (tmp_path / "a.py").write_text("1")
    found.add(digest())
    (tmp_path / "a.py").write_text("2")
    found.add(digest())
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    found.add(digest())
    assert len(found) == 4
    (tmp_path / "notes.txt").write_text("")
    assert digest() in found


# ---- the command


def bench(*args, **env):
    return run_python(BENCH, *args, **{"FLASHCORE_DRIVER": "emulator", **env})


def test_the_list_names_rows_and_absent_peers() -> None:
    ran = bench("forward", "--list", "--filter", "d128-causal-s")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    rows = [x.strip() for x in lines if x.startswith("    d")]
    assert rows == [x for x in suite_forward.ids(False) if "d128-causal-s" in x]
    assert any(line.startswith("    FA2: ") for line in lines)


def test_the_grid_has_36_points_and_six_of_each_other_kind() -> None:
    assert len(suite_forward.GRID) == 36
    assert len(suite_forward.MORE) == 18
    names = suite_forward.ids(False)
    assert len(set(names)) == 54
    assert set(suite_forward.ids(True)) < set(names)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_what_the_command_asks_of_it(name) -> None:
    suite = load(name)
    assert suite.NEEDS in ("gpu", "emulator", "any")
    assert suite.METHOD
    assert len(set(suite.ids(False))) == len(suite.ids(False)) > 0
    assert set(suite.ids(True)) <= set(suite.ids(False))
    assert callable(suite.run)
    assert callable(suite.lines)


def test_the_emulator_suite_writes_data_goes_on_and_prints_no_progress(built, tmp_path) -> None:
    first = bench("emulator", "--filter", "s128-d64-flash", "--json", tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    (path,) = tmp_path.iterdir()
    found = results.load(path)
    assert [row["id"] for row in found["rows"]] == ["b1-h2-s128-d64-flash"]
    second = bench("emulator", "--filter", "s128", "--json", tmp_path)
    assert second.returncode == 0
    assert "1 rows are there already" in second.stderr
    rows = results.load(path)["rows"]
    assert [row["id"] for row in rows] == ["b1-h2-s128-d64-flash", "b1-h2-s128-d64-unfused"]
    assert rows[0] == found["rows"][0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["forward"], "it needs a GPU"),
        (["speed"], "suite speed; known: reference"),
        (["emulator", "--rounds", "1"], "1: a number of at least 2"),
        (["emulator", "--peers", "FA2,FA9"], "FA9: known peers are FA2"),
        (["cold", "--wheel", "none.whl"], "--wheel none.whl: there is no such file"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(args, message) -> None:
    ran = bench(*args)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def test_a_wrong_result_is_exit_status_1(monkeypatch, capsys, device) -> None:
    command = importlib.import_module("bench")
    row = {"id": "tiny", "ours": {"wrong": "all of it"}}
    found = command.Measured({"rows": [row]}, 1.0, 0)
    monkeypatch.setattr(command, "measure", lambda name, args, count: found)
    monkeypatch.setattr(command.suites, "load", lambda name: FakeSuite)
    monkeypatch.setattr(sys, "argv", ["bench.py", "size"])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 1
    assert "tiny" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_the_seconds_of_a_quick_run_are_printed_and_kept(monkeypatch, capsys, device, tmp_path, kept) -> None:
    command = importlib.import_module("bench")
    monkeypatch.setattr(command, "is_emulated", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.py", "size", "--quick", "--json", str(tmp_path)])
    rows = {"rows": [{"id": "a"}, {"id": "b"}]}
    measured = {"size": command.Measured(rows, 4.0, 0), "host": command.Measured(rows, 2.5, 0 if kept else 1)}
    command.report_times(measured, command.parse_arguments())
    printed = capsys.readouterr()
    assert printed.out == "6 s in all: size 4, host 2\n"
    if kept:
        (path,) = tmp_path.iterdir()
        found = [(row["id"], row["seconds"], row["rows"]) for row in results.load(path)["rows"]]
        assert (path.name[10:], found) == ("-quick.json", [("size", 4.0, 2), ("host", 2.5, 2)])
    else:
        assert not list(tmp_path.iterdir())
        assert "not kept: rows of host were there already" in printed.err


class FakeSuite:
    NEEDS = "any"

    @staticmethod
    def lines(found):
        return []
