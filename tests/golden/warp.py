"""Instructions of a warp or a block: shuffles, votes, matches, reductions, special registers, barriers that reduce."""

from __future__ import annotations

import numpy as np

from .kernel import Case, Step, per_thread, steps
from .values import integers, words

MOVEMENT = "Data Movement and Conversion Instructions"
SYNCHRONISATION = "Parallel Synchronization and Communication Instructions"
COUNT = 128
FLAG = "selp.b32 %d, 1, 0, %p1;"


def _words(name: str, count: int = COUNT) -> np.ndarray:
    return words(name, count).astype("u4")


def shuffles() -> list[Case]:
    cases = []
    for mode in ("up", "down", "bfly", "idx"):
        name = f"warp/shfl.{mode}"
        results = []
        for clamp in (0x1F, 0, 0x1C1F, 0x1807, 0x101F, 0x1800, 0x0F03):
            # with the lane of each thread its own, then the same for all
            results.append(Step(f"own_{clamp:x}", f"shfl.sync.{mode}.b32 %d|%p1, %a, %b, {clamp}, -1;", "b32"))
            results.append(Step(f"own_{clamp:x}_inside", FLAG, "b32"))
        for lane in (0, 1, 5, 16, 31):
            clamp = 0 if mode == "up" else 31
            results.append(Step(f"all_{lane}", f"shfl.sync.{mode}.b32 %d|%p1, %a, {lane}, {clamp}, -1;", "b32"))
            results.append(Step(f"all_{lane}_inside", FLAG, "b32"))
        inputs = {"a": _words(name), "b": integers(name + "b", 0, 40, COUNT).astype("u4")}
        cases.append(per_thread(name, f"{MOVEMENT}: shfl.sync", ("b32", "b32"), results, inputs=inputs, count=COUNT))
        inputs = inputs | {"c": (_words(name + "c") & 0x1F1F).astype("u4")}
        own = [Step("own", f"shfl.sync.{mode}.b32 %d|%p1, %a, %b, %c, -1;", "b32"), Step("inside", FLAG, "b32")]
        case = per_thread(f"{name}.any", f"{MOVEMENT}: shfl.sync", ("b32",) * 3, own, inputs=inputs, count=COUNT)
        cases.append(case)
    parts = [
        Step(
            "lower_half",
            "setp.lt.u32 %p2, %lane, 16;\nmov.b32 %d, 7;\n@%p2 shfl.sync.idx.b32 %d, %a, %b, 0x101f, 0xffff;",
            "b32",
        ),
        Step(
            "odd_lanes",
            "and.b32 %r2, %lane, 1;\nsetp.eq.u32 %p2, %r2, 1;\nmov.b32 %d, 7;\n"
            "@%p2 shfl.sync.bfly.b32 %d, %a, 6, 31, 0xaaaaaaaa;",
            "b32",
        ),
    ]
    inputs = {"a": _words("part"), "b": integers("partb", 0, 15, COUNT).astype("u4")}
    cases.append(
        per_thread("warp/shfl.part", f"{MOVEMENT}: shfl.sync", ("b32", "b32"), parts, inputs=inputs, count=COUNT)
    )
    return cases


def votes() -> list[Case]:
    # every warp has another share of ones: none, few, half, all
    a = np.concatenate([np.zeros(32), _words("few", 32) % 9 == 0, _words("half", 32) % 2, np.ones(32)]).astype("u4")
    results = []
    for where, mask in (("", "-1"), ("@%p3 ", "0x00ffff00")):
        prepare = "setp.ne.u32 %p2, %a, 0;\nsub.u32 %r2, %lane, 8;\nsetp.lt.u32 %p3, %r2, 16;\n"
        part = "part_" if where else ""
        for mode in ("all", "any", "uni"):
            for sign in ("", "!"):
                body = (
                    f"{prepare}setp.ne.u32 %p1, %a, %a;\n{where}vote.sync.{mode}.pred %p1, {sign}%p2, {mask};\n{FLAG}"
                )
                results.append(Step(f"{part}{mode}{'_not' if sign else ''}", body, "b32"))
        body = f"{prepare}mov.b32 %d, 3;\n{where}vote.sync.ballot.b32 %d, %p2, {mask};"
        results.append(Step(f"{part}ballot", body, "b32"))
    section = f"{SYNCHRONISATION}: vote.sync"
    return [per_thread("warp/vote", section, ("b32",), results, inputs={"a": a}, count=COUNT)]


def matches() -> list[Case]:
    cases = []
    for bits in ("32", "64"):
        a = words(f"match{bits}", COUNT) % np.uint64(5) * np.uint64(0x100000001)
        a[:32] = 9
        results = [Step("any", f"match.any.sync.b{bits} %d, %a, -1;", "b32")]
        results += [Step("all", f"match.all.sync.b{bits} %d|%p1, %a, -1;", "b32"), Step("all_equal", FLAG, "b32")]
        part = f"setp.lt.u32 %p2, %lane, 20;\nmov.b32 %d, 1;\n@%p2 match.any.sync.b{bits} %d, %a, 0xfffff;"
        results.append(Step("part", part, "b32"))
        inputs = {"a": a.astype(f"u{int(bits) // 8}")}
        section = f"{SYNCHRONISATION}: match.sync"
        cases.append(per_thread(f"warp/match.b{bits}", section, (f"b{bits}",), results, inputs=inputs, count=COUNT))
    return cases


def reductions() -> list[Case]:
    opcodes = [f"redux.sync.{op}.{t}" for t in ("u32", "s32") for op in ("add", "min", "max")]
    opcodes += [f"redux.sync.{op}.b32" for op in ("and", "or", "xor")]
    results = steps(opcodes, "%a, -1", "b32")
    for opcode in opcodes:
        body = f"setp.gt.u32 %p2, %lane, 11;\nmov.b32 %d, 5;\n@%p2 {opcode} %d, %a, 0xfffff000;"
        results.append(Step(f"part_{opcode}", body, "b32"))
    a = _words("redux")
    a[32:64] |= 0x0F0F0F0F
    a[64:96] &= 0xFFFF0FF0
    section = f"{SYNCHRONISATION}: redux.sync"
    cases = [per_thread("warp/redux", section, ("b32",), results, inputs={"a": a}, count=COUNT)]
    barrier = []
    for op in ("and", "or"):
        body = f"setp.ne.u32 %p2, %a, 0;\nbarrier.cta.red.{op}.pred %p1, 0, %p2;\n{FLAG}"
        barrier.append(Step(op, body, "b32"))
        barrier.append(Step(f"{op}_not", body.replace("0, %p2", "1, !%p2"), "b32"))
    barrier.append(Step("popc", "setp.ne.u32 %p2, %a, 0;\nbar.red.popc.u32 %d, 2, %p2;", "b32"))
    part = (
        "setp.ne.u32 %p2, %a, 0;\nsetp.lt.u32 %p3, %thread, 64;\nmov.b32 %d, 1;\n"
        "@%p3 barrier.cta.red.popc.aligned.u32 %d, 3, 64, %p2;"
    )
    barrier.append(Step("popc_part", part, "b32"))
    inputs = {"a": (_words("bar") % 3).astype("u4")}
    section = f"{SYNCHRONISATION}: barrier.cta"
    cases.append(per_thread("warp/bar.red", section, ("b32",), barrier, inputs=inputs, count=COUNT))
    return cases


def special() -> list[Case]:
    names = ["tid.x", "tid.y", "ntid.x", "ntid.y", "ctaid.x", "ctaid.y", "nctaid.x", "nctaid.z", "laneid"]
    names += [f"lanemask_{c}" for c in ("eq", "le", "lt", "ge", "gt")]
    results = [Step(name, f"mov.u32 %d, %{name};", "u32") for name in names]
    inputs = {"a": np.zeros(512, "u4")}
    cases = [per_thread("warp/special", "Special Registers", ("b32",), results, inputs=inputs, count=512)]
    results = [Step("all", "activemask.b32 %d;", "b32")]
    elect = [Step("leader", "elect.sync %d|%p1, -1;", "b32"), Step("is_leader", FLAG, "b32")]
    part = "setp.gt.u32 %p2, %lane, 5;\nmov.b32 %d, 77;\n@%p2 elect.sync %d|%p1, 0xffffffc0;"
    elect.append(Step("leader_of_part", part, "b32"))
    section = f"{SYNCHRONISATION}: activemask"
    inputs = {"a": np.zeros(COUNT, "u4")}
    cases.append(per_thread("warp/activemask", section, ("b32",), results, inputs=inputs, count=COUNT))
    section = f"{SYNCHRONISATION}: elect.sync"
    cases.append(per_thread("warp/elect", section, ("b32",), elect, inputs=inputs, count=COUNT, target="sm_90"))
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return shuffles() + votes() + matches() + reductions() + special()
