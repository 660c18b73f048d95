"""Integers: arithmetic, extended precision, logic, shifts, comparison and selection."""

from __future__ import annotations

from .kernel import Case, Step, per_thread, steps

INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
ARITHMETIC, LOGIC = "Integer Arithmetic Instructions", "Logic and Shift Instructions"
COMPARISON = "Comparison and Selection Instructions"
COMPARISONS = {"u": "eq ne lo ls hi hs lt le gt ge", "s": "eq ne lt le gt ge", "b": "eq ne"}


def arithmetic() -> list[Case]:
    cases = []
    for t in INTEGERS:
        saturated = [".sat.s32"] if t == "s32" else []
        two = steps([f"{op}.{t}" for op in ("add", "sub", "mul.lo", "mul.hi", "min", "max")], "%a, %b", t)
        two += steps([f"{op}{s}" for op in ("add", "sub") for s in saturated], "%a, %b", t)
        three = steps([f"mad.lo.{t}", f"mad.hi.{t}", f"sad.{t}"], "%a, %b, %c", t)
        cases.append(per_thread(f"integer/arithmetic.{t}", ARITHMETIC, (t, t), two))
        cases.append(per_thread(f"integer/mad.{t}", f"{ARITHMETIC}: mad, sad", (t, t, t), three))
        quotients = steps([f"div.{t}", f"rem.{t}"], "%a, %b", t)
        cases.append(per_thread(f"integer/div.{t}", f"{ARITHMETIC}: div, rem", (t, f"divisor{t[1:]}"), quotients))
        if t in WIDER:
            wide = steps([f"mul.wide.{t}"], "%a, %b", WIDER[t]) + steps([f"mad.wide.{t}"], "%a, %b, %c", WIDER[t])
            cases.append(per_thread(f"integer/wide.{t}", f"{ARITHMETIC}: mul, mad", (t, t, WIDER[t]), wide))
        if t[0] == "s":
            one = steps([f"abs.{t}", f"neg.{t}"], "%a", t)
            cases.append(per_thread(f"integer/abs.{t}", f"{ARITHMETIC}: abs, neg", (t,), one))
    for t in ("u32", "s32"):
        two = steps([f"mul24.{half}.{t}" for half in ("lo", "hi")], "%a, %b", t)
        three = steps([f"mad24.{half}.{t}" for half in ("lo", "hi")], "%a, %b, %c", t)
        cases.append(per_thread(f"integer/mul24.{t}", f"{ARITHMETIC}: mul24, mad24", (t, t, t), two + three))
    for a in ("u32", "s32"):
        for b in ("u32", "s32"):
            d = "u32" if a == b == "u32" else "s32"
            dots = steps([f"{op}.{a}.{b}" for op in ("dp4a", "dp2a.lo", "dp2a.hi")], "%a, %b, %c", d)
            cases.append(per_thread(f"integer/dp4a.{a}.{b}", f"{ARITHMETIC}: dp4a, dp2a", ("b32", "b32", "b32"), dots))
    for bits in ("32", "64"):
        u = f"u{bits}"
        chain = [
            Step("low", f"add.cc.{u} %d, %a, %b;", u),
            Step("middle", f"addc.cc.{u} %d, %b, %c;", u),
            Step("high", f"addc.{u} %d, %a, %c;", u),
            Step("low_difference", f"sub.cc.{u} %d, %a, %b;", u),
            Step("middle_difference", f"subc.cc.{u} %d, %b, %c;", u),
            Step("high_difference", f"subc.{u} %d, %a, %c;", u),
        ]
        section = "Extended-Precision Integer Arithmetic Instructions"
        cases.append(per_thread(f"integer/add.cc.{u}", section, (u, u, u), chain))
    return cases


def logic() -> list[Case]:
    cases = []
    for bits in ("16", "32", "64"):
        b = f"b{bits}"
        ops = steps([f"{op}.{b}" for op in ("and", "or", "xor")], "%a, %b", b)
        ops += steps([f"not.{b}", f"cnot.{b}"], "%a", b)
        cases.append(per_thread(f"integer/logic.{b}", LOGIC, (b, b), ops))
        shifts = steps([f"shl.{b}", f"shr.u{bits}", f"shr.s{bits}", f"shr.{b}"], "%a, %b", b)
        cases.append(per_thread(f"integer/shift.{b}", f"{LOGIC}: shl, shr", (b, "count"), shifts))
        if bits == "16":
            continue
        ops = steps([f"popc.{b}", f"clz.{b}"], "%a", "u32") + steps([f"brev.{b}"], "%a", b)
        ops += steps([f"bfind{s}.{sign}{bits}" for s in ("", ".shiftamt") for sign in "us"], "%a", "u32")
        cases.append(
            per_thread(f"integer/bits.{b}", "Integer Arithmetic Instructions: popc, clz, brev, bfind", (b,), ops)
        )
        fields = steps([f"bfe.u{bits}", f"bfe.s{bits}"], "%a, %b, %c", b)
        cases.append(per_thread(f"integer/bfe.{b}", f"{ARITHMETIC}: bfe", (b, "count", "count"), fields))
        insert = steps([f"bfi.{b}"], "%a, %b, %c, %e", b)
        cases.append(per_thread(f"integer/bfi.{b}", f"{ARITHMETIC}: bfi", (b, b, "count", "count"), insert))
    modes = ["prmt.b32", *(f"prmt.b32.{mode}" for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"))]
    cases.append(per_thread("integer/prmt", f"{LOGIC}: prmt", ("b32",) * 3, steps(modes, "%a, %b, %c", "b32")))
    tables = (0x00, 0x1E, 0x78, 0x80, 0x96, 0xCA, 0xE8, 0xFE, 0x2D)
    lut = [Step(f"lop3_{t:02x}", f"lop3.b32 %d, %a, %b, %c, {t};", "b32") for t in tables]
    cases.append(per_thread("integer/lop3", f"{LOGIC}: lop3", ("b32",) * 3, lut))
    funnel = steps([f"shf.{way}.{mode}.b32" for way in "lr" for mode in ("clamp", "wrap")], "%a, %b, %c", "b32")
    cases.append(per_thread("integer/shf", f"{LOGIC}: shf", ("b32", "b32", "count"), funnel))
    masks = steps(["bmsk.clamp.b32", "bmsk.wrap.b32"], "%a, %b", "b32")
    masks += steps([f"szext.{mode}.{t}" for mode in ("clamp", "wrap") for t in ("u32", "s32")], "%a, %b", "b32")
    cases.append(per_thread("integer/bmsk", f"{ARITHMETIC}: bmsk, szext", ("count", "count"), masks[:2]))
    cases.append(per_thread("integer/szext", f"{ARITHMETIC}: bmsk, szext", ("b32", "count"), masks[2:]))
    nth = [Step(f"fns{n}", f"mov.s32 %r2, {n};\nfns.b32 %d, %a, %b, %r2;", "b32") for n in (0, 1, 3, -2)]
    low = [Step(s.name, "and.b32 %r3, %b, 31;\n" + s.body.replace("%b,", "%r3,"), s.kind) for s in nth]
    cases.append(per_thread("integer/fns", f"{ARITHMETIC}: fns", ("b32", "b32"), low))
    return cases


def flags(tests: list[tuple[str, str]]) -> Step:
    """One bit for each test: an opcode and its operands, which leave a predicate in %p1."""
    body = ["mov.b32 %d, 0;"]
    for i, (opcode, operands) in enumerate(tests):
        body += [f"{opcode} %p1, {operands};", f"@%p1 or.b32 %d, %d, {1 << i};"]
    return Step("flags", "\n".join(body), "b32")


def comparison() -> list[Case]:
    cases = []
    types = [*INTEGERS, "b16", "b32", "b64"]
    for t in types:
        tests = [(f"setp.{c}.{t}", "%a, %b") for c in COMPARISONS[t[0]].split()]
        near = [Step("set", f"set.{tests[0][0].split('.')[1]}.u32.{t} %d, %a, %b;", "u32")]
        near += [Step("setf", f"set.ne.f32.{t} %d, %a, %b;", "b32")]
        cases.append(per_thread(f"integer/setp.{t}", f"{COMPARISON}: setp, set", (t, t), [flags(tests), *near]))
    combined = [
        Step(
            f"{op}{'_not' if sign else ''}",
            f"setp.lt.u32 %p2, %c, 128;\nsetp.lt.{op}.s32 %p3|%p4, %a, %b, {sign}%p2;\nselp.b32 %d, 1, 0, %p3;\n"
            "@%p4 or.b32 %d, %d, 2;",
            "b32",
        )
        for op in ("and", "or", "xor")
        for sign in ("", "!")
    ]
    cases.append(per_thread("integer/setp.combined", f"{COMPARISON}: setp", ("s32", "s32", "u32"), combined))
    logic_of_predicates = [
        Step(
            op,
            f"setp.lt.s32 %p2, %a, 0;\nsetp.lt.s32 %p3, %b, 0;\n{op}.pred %p4, %p2, %p3;\nnot.pred %p5, %p4;\n"
            "selp.b32 %d, 1, 0, %p4;\n@%p5 or.b32 %d, %d, 2;",
            "b32",
        )
        for op in ("and", "or", "xor")
    ]
    cases.append(per_thread("integer/predicates", f"{LOGIC}: and, or, xor, not", ("s32", "s32"), logic_of_predicates))
    for bits in ("16", "32", "64"):
        b = f"b{bits}"
        body = f"setp.lt.s32 %p2, %c, 7;\nselp.{b} %d, %a, %b, %p2;"
        slct = [*steps([f"slct.{b}.s32"], "%a, %b, %c", b), Step("selp", body, b)]
        cases.append(per_thread(f"integer/selp.{b}", f"{COMPARISON}: selp, slct", (b, b, "s32"), slct))
    by_sign = [
        Step("slct", "slct.b32.f32 %d, %a, %b, %c;", "b32"),
        Step("ftz", "slct.ftz.b32.f32 %d, %a, %b, %c;", "b32"),
    ]
    cases.append(per_thread("integer/slct.f32", f"{COMPARISON}: slct", ("b32", "b32", "f32"), by_sign))
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return arithmetic() + logic() + comparison()
