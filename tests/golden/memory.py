"""Loads, stores, atomics, cp.async and mbarriers."""

from __future__ import annotations

import numpy as np

from .kernel import Case, Output, Step, copied, kernel, per_thread, same
from .values import DTYPES, integers, operands, words

MOVEMENT = "Data Movement and Conversion Instructions"
SYNCHRONISATION = "Parallel Synchronization and Communication Instructions"


def _bytes(name: str, count: int) -> np.ndarray:
    return (words(name, count) >> np.uint64(17)).astype("u1")


def loads() -> list[Case]:
    """Narrow loads into wider registers, and narrow stores of wide registers."""
    results = []
    address = "mad.lo.u64 %rd1, %index, 8, %at_a;\n"
    for t in ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64"):
        size = int(t[1:]) // 8
        for kind in ("b16", "b32", "b64"):
            if size <= int(kind[1:]) // 8:
                body = f"{address}ld.global.{t} %d, [%rd1+{8 - 2 * size if size < 8 else 0}];"
                results.append(Step(f"ld_{t}_to_{kind}", body, kind))
    cases = [per_thread("memory/ld", f"{MOVEMENT}: ld", ("b64",), results, count=64)]
    body = "mad.lo.u64 %rd1, %index, 8, %at_a;\nld.global.b64 %rd2, [%rd1];\ncvt.u32.u64 %r2, %rd2;\n"
    body += "mad.lo.u64 %rd3, %index, 16, %at_d;\n"
    body += "st.global.u8 [%rd3+1], %rd2;\nst.global.b16 [%rd3+2], %r2;\nst.global.b32 [%rd3+4], %rd2;\n"
    body += "st.global.s8 [%rd3+9], %r2;\nst.global.u16 [%rd3+12], %rd2;\n"
    inputs = {"a": words("st", 32)}
    outputs = {"d": Output(np.full(512, 0xA5, "u1"))}
    cases.append(kernel("memory/st", f"{MOVEMENT}: st", body, inputs, outputs))
    return cases


def vectors() -> list[Case]:
    cases = []
    qualifiers = [
        "",
        ".ca",
        ".cg",
        ".cs",
        ".lu",
        ".cv",
        ".nc",
        ".nc.L1::no_allocate",
        ".L2::128B",
        ".volatile",
        ".relaxed.gpu",
    ]
    stores = ["", ".wb", ".cg", ".cs", ".wt", ".volatile", ".release.gpu"]
    for v, t in (("v2", "u8"), ("v4", "u8"), ("v2", "u16"), ("v4", "s16"), ("v2", "b32"), ("v4", "f32"), ("v2", "b64")):
        count, size = int(v[1]), int(t[1:]) // 8
        r = "%rd" if size == 8 else "%r"
        registers = "{" + ", ".join(f"{r}{4 + i}" for i in range(count)) + "}"
        body = f"mad.lo.u64 %rd1, %index, {count * size}, %at_a;\nmad.lo.u64 %rd2, %index, {count * size}, %at_d;\n"
        for i, (load, store) in enumerate(zip(qualifiers, stores * 2)):
            prefix = lambda op, q: f"{op}{q}.global" if q[1:4] in ("vol", "rel") else f"{op}.global{q}"  # noqa: E731
            body += f"{prefix('ld', load)}.{v}.{t} {registers}, [%rd1];\n"
            body += f"{prefix('st', store)}.{v}.{t} [%rd2+{i * 32 * count * size}], {registers};\n"
        inputs = {"a": _bytes(f"{v}{t}", 32 * count * size)}
        outputs = {"d": Output(np.zeros(len(qualifiers) * 32 * count * size, "u1"))}
        cases.append(kernel(f"memory/copy.{v}.{t}", f"{MOVEMENT}: ld, st", body, inputs, outputs))
    return cases


def spaces() -> list[Case]:
    """Through shared, local and constant memory, and by generic addresses."""
    body = copied("global:%at_a", "shared:tile", 1024, 64)
    body += """
        bar.sync 0;
        mov.u32 %r2, %tid.x;
        xor.b32 %r2, %r2, 63;
        shl.b32 %r2, %r2, 4;
        mov.u32 %r3, tile;
        add.u32 %r3, %r3, %r2;
        mad.lo.u64 %rd5, %index, 48, %at_d;
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3];
        st.global.v4.u32 [%rd5], {%r4, %r5, %r6, %r7};
        cvt.u64.u32 %rd6, %r3;
        cvta.shared.u64 %rd6, %rd6;
        ld.s8 %r4, [%rd6+3];
        ld.v2.u16 {%r5, %r6}, [%rd6+4];
        cvta.to.shared.u64 %rd7, %rd6;
        ld.shared.u8 %r7, [%rd7+15];
        st.global.v4.u32 [%rd5+16], {%r4, %r5, %r6, %r7};
        cvta.global.u64 %rd8, %at_a;
        ld.u32 %r4, [%rd8+4];
        isspacep.shared %p1, %rd6;
        isspacep.global %p2, %rd8;
        isspacep.shared %p3, %rd8;
        selp.b32 %r5, 1, 0, %p1;
        selp.b32 %r6, 1, 0, %p2;
        selp.b32 %r7, 1, 0, %p3;
        st.global.v4.u32 [%rd5+32], {%r4, %r5, %r6, %r7};
    """
    tile = ".shared .align 16 .b8 tile[1024];"
    inputs, outputs = {"a": _bytes("shared", 1024)}, {"d": Output(np.zeros(64 * 12, "u4"))}
    section = f"{MOVEMENT}: ld, st, cvta, isspacep"
    cases = [kernel("memory/shared", section, body, inputs, outputs, threads=64, declarations=tile)]
    body = """
        mad.lo.u64 %rd1, %index, 16, %at_a;
        ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd1];
        st.local.v4.b32 [stack], {%r4, %r5, %r6, %r7};
        and.b32 %r2, %lane, 15;
        mov.u32 %r3, stack;
        add.u32 %r3, %r3, %r2;
        ld.local.s8 %r8, [%r3];
        and.b32 %r2, %lane, 3;
        shl.b32 %r2, %r2, 2;
        mov.u64 %rd3, table;
        cvt.u64.u32 %rd2, %r2;
        add.u64 %rd3, %rd3, %rd2;
        ld.const.b32 %r9, [%rd3];
        ld.const.u16 %r10, [table+6];
        ld.param.u8 %r11, [arrays+7];
        mad.lo.u64 %rd5, %index, 16, %at_d;
        st.global.v4.b32 [%rd5], {%r8, %r9, %r10, %r11};
    """
    inputs, outputs = {"a": _bytes("local", 512)}, {"d": Output(np.zeros(128, "u4"))}
    cases.append(
        kernel(
            "memory/local",
            f"{MOVEMENT}: ld",
            body,
            inputs,
            outputs,
            declarations=".local .align 16 .b8 stack[16];",
            module=".const .align 4 .b32 table[4] = {305419896, 0xdeadbeef, 7, 0x80000000};",
        )
    )
    return cases


ATOMICS = [
    *(("add", t) for t in ("u32", "s32", "u64", "f32", "f64")),
    *(("add", f"noftz.{t}") for t in ("f16", "f16x2", "bf16", "bf16x2")),
    *((op, t) for op in ("min", "max") for t in ("u32", "s32", "u64", "s64")),
    *((op, f"b{bits}") for op in ("and", "or", "xor", "exch", "cas") for bits in ("32", "64")),
    ("cas", "b16"), ("inc", "u32"), ("dec", "u32"),
]  # fmt: skip


def atomics() -> list[Case]:
    """At an address of each thread's own, and (where the order cannot matter) at four that all share."""
    cases = []
    for op, t in ATOMICS:
        kind = t.split(".")[-1]
        dtype = np.dtype(DTYPES[kind])
        size, register = dtype.itemsize, {2: "%h", 4: "%r", 8: "%rd"}[dtype.itemsize]
        name = f"memory/atom.{op}.{t}"
        before, value, other = operands(name, (kind, kind, kind), 64)
        if op == "cas":
            value = np.where(np.arange(64) % 2 == 0, before, value)
        floating = kind[0] == "f" or kind.startswith("bf")
        if kind == "f16x2":
            small = integers(name, 0, 3, 128).astype(np.float16).view("u4")
        elif kind == "bf16x2":
            small = (integers(name, 0, 3, 128).astype("f4").view("u4") >> 16).astype("u2").view("u4")
        elif floating:
            small = integers(name, 0, 3, 64).astype("f4")
            small = (small.view("u4") >> 16).astype("u2") if kind == "bf16" else small.astype(f"f{size}").view(dtype)
        else:
            small = (
                np.full(64, 9, dtype) if op in ("inc", "dec") else value
            )  # with one limit for all, order cannot matter
        operand = f"{register}5, {register}6" if op == "cas" else f"{register}5"
        section = f"{SYNCHRONISATION}: atom, red"
        shared_order = op not in ("exch", "cas")
        inputs = {"value": value, "other": other, "small": small}
        outputs = {
            "old": Output(np.zeros(64, dtype), same(kind)), "own": Output(before, same(kind)),
            "shared_old": Output(np.zeros(64, dtype), same(kind)), "shared": Output(before.copy(), same(kind)),
            "many": Output(np.zeros(4, dtype) if floating else before[:4]), "many_shared": Output(np.zeros(4, dtype)),
        }  # fmt: skip
        at = lambda array, size=size: f"mad.lo.u64 %rd1, %index, {size}, %at_{array};"  # noqa: E731
        body = f"""
            {at("value")}
            ld.global.b{8 * size} {register}5, [%rd1];
            {at("other")}
            ld.global.b{8 * size} {register}6, [%rd1];
            {at("own")}
            atom.global.{op}.{t} {register}7, [%rd1], {operand};
            {at("old")}
            st.global.b{8 * size} [%rd1], {register}7;
            {at("shared")}
            ld.global.b{8 * size} {register}7, [%rd1];
            mov.u32 %r2, tile;
            mad.lo.u32 %r2, %thread, {size}, %r2;
            st.shared.b{8 * size} [%r2], {register}7;
            bar.sync 0;
            atom.shared.{op}.{t} {register}4, [%r2], {operand};
            ld.shared.b{8 * size} {register}7, [%r2];
            st.global.b{8 * size} [%rd1], {register}7;
            {at("shared_old")}
            st.global.b{8 * size} [%rd1], {register}4;
        """
        if shared_order:
            body += f"""
                and.b32 %r8, %thread, 3;
                cvt.u64.u32 %rd9, %r8;
                mad.lo.u64 %rd1, %rd9, {size}, %at_many;
                mov.u32 %r2, tile;
                mad.lo.u32 %r9, %r8, {size}, %r2;
                setp.lt.u32 %p1, %thread, 4;
                ld.global.b{8 * size} {register}7, [%rd1];
                bar.sync 0;
                @%p1 st.shared.b{8 * size} [%r9], {register}7;
                bar.sync 0;
                {at("small").replace("%rd1", "%rd2")}
                ld.global.b{8 * size} {register}5, [%rd2];
                red.global.{op}.{t} [%rd1], {register}5;
                red.shared.{op}.{t} [%r9], {register}5;
                bar.sync 0;
                mad.lo.u64 %rd1, %rd9, {size}, %at_many_shared;
                ld.shared.b{8 * size} {register}7, [%r9];
                @%p1 st.global.b{8 * size} [%rd1], {register}7;
            """
        target = "sm_90" if "bf16" in t else "sm_80"
        cases.append(kernel(name, section, body, inputs, outputs, threads=64, target=target,
                            declarations=f".shared .align 8 .b8 tile[{64 * size}];"))  # fmt: skip
    return cases


def cp_async() -> list[Case]:
    cases = []
    for size, caches in ((4, ("ca",)), (8, ("ca",)), (16, ("ca", "cg"))):
        for cache in caches:
            source = [(f"plain.{cache}", ""), (f"zero_fill.{cache}", ", %r9"), (f"ignored.{cache}", ", %p1")]
            for name, last in source:
                body = copied("global:%at_before", "shared:tile", 512, 32) + f"""
                    bar.sync 0;
                    mad.lo.u64 %rd4, %index, 4, %at_bytes;
                    ld.global.u32 %r9, [%rd4];
                    and.b32 %r8, %lane, 1;
                    setp.eq.u32 %p1, %r8, 1;
                    mad.lo.u64 %rd4, %index, 16, %at_a;
                    mov.u32 %r3, tile;
                    mad.lo.u32 %r3, %lane, 16, %r3;
                    cp.async.{cache}.shared.global [%r3], [%rd4], {size}{last};
                    cp.async.commit_group;
                    cp.async.wait_group 0;
                    bar.sync 0;
                """ + copied("shared:tile", "global:%at_d", 512, 32)  # fmt: skip
                inputs = {
                    "a": _bytes(f"cp{size}", 512), "before": np.full(512, 0x11, "u1"),
                    "bytes": integers(f"size{size}", 0, size, 32).astype("u4"),
                }  # fmt: skip
                section = f"{MOVEMENT}: cp.async"
                outputs = {"d": Output(np.zeros(512, "u1"))}
                tile = ".shared .align 16 .b8 tile[512];"
                cases.append(
                    kernel(f"memory/cp.async.{size}.{name}", section, body, inputs, outputs, declarations=tile)
                )
    return cases


def mbarriers() -> list[Case]:
    """One thread goes through phases and notes what each test says."""

    class Script:
        def __init__(self, counts: bool = False) -> None:
            self.counts = counts
            self.lines, self.notes = ["setp.ne.u32 %p5, %thread, 0;", "@%p5 bra DONE;", "mov.u32 %r2, bar;"], 0

        def do(self, text: str) -> None:
            self.lines.append(text)

        def note(self, text: str) -> None:
            """The instruction leaves %p1, or a count in %r8."""
            result = "selp.b32 %r8, 1, 0, %p1;" if "%p1" in text else ""
            self.lines += [text, result, f"st.global.u32 [%at_d+{4 * self.notes}], %r8;"]
            self.notes += 1

        def phases(self, state: str) -> None:
            self.note(f"mbarrier.test_wait.shared.b64 %p1, [%r2], {state};")
            self.note("mbarrier.test_wait.parity.shared.b64 %p1, [%r2], 0;")
            self.note("mbarrier.test_wait.parity.shared.b64 %p1, [%r2], 1;")
            if self.counts:
                self.note(f"mbarrier.pending_count.b64 %r8, {state};")

    def phases(script: Script) -> Script:
        script.do("mbarrier.init.shared.b64 [%r2], 4;")
        for arrive in (
            "arrive",
            "arrive",
            "arrive.noComplete|1",
            "arrive_drop",
            "arrive",
            "arrive",
            "arrive_drop",
            "arrive.noComplete|1",
            "arrive",
            "arrive",
        ):
            opcode, _, count = arrive.partition("|")
            opcode, dot, modifier = opcode.partition(".")
            script.do(f"mbarrier.{opcode}{dot}{modifier}.shared.b64 %rd4, [%r2]{', ' + count if count else ''};")
            script.phases("%rd4")
        script.do("mbarrier.inval.shared.b64 [%r2];")
        return script

    hopper = Script()
    hopper.do("mbarrier.init.shared::cta.b64 [%r2], 2;")
    hopper.do("mbarrier.arrive.expect_tx.shared::cta.b64 %rd4, [%r2], 128;")
    hopper.phases("%rd4")
    hopper.do("mbarrier.arrive.shared::cta.b64 %rd5, [%r2];")
    hopper.phases("%rd4")
    hopper.do("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r2], 96;")
    hopper.phases("%rd4")
    hopper.do("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r2], 32;")
    hopper.phases("%rd4")
    hopper.note("mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0;")
    hopper.note("mbarrier.try_wait.shared::cta.b64 %p1, [%r2], %rd4;")
    hopper.do("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r2], 64;")
    hopper.do("mbarrier.arrive.shared::cta.b64 %rd4, [%r2], 2;")
    hopper.phases("%rd4")
    hopper.do("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r2], 64;")
    hopper.phases("%rd4")
    cases = []
    scripts = [("phases", phases(Script()), "sm_80"), ("pending_count", phases(Script(counts=True)), "sm_80")]
    for name, script, target in [*scripts, ("transactions", hopper, "sm_90")]:
        outputs = {"d": Output(np.full(script.notes, 0xEEEEEEEE, "u4"))}
        body = "\n".join([*script.lines, "DONE:"])
        section = f"{SYNCHRONISATION}: mbarrier"
        case = kernel(f"memory/mbarrier.{name}", section, body, {}, outputs, target=target,
                      declarations=".shared .align 8 .b64 bar;")  # fmt: skip
        cases.append(case)
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return loads() + vectors() + spaces() + atomics() + cp_async() + mbarriers()
