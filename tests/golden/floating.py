"""Single and double precision, half precision and bfloat16."""

from __future__ import annotations

from .integer import COMPARISON, flags
from .kernel import Case, Close, Step, per_thread, steps
from .values import words

FLOATING, HALF = "Floating-Point Instructions", "Half Precision Floating-Point Instructions"
MODES = ("rn", "rz", "rm", "rp")
UNARY = 1024  # threads of an approximation, so that the largest error is seen
STAND_IN = "the emulator rounds the exact value once; the GPU's table and interpolation differ by what was measured"


def _group(name: str, section: str, operands: str, kind: str, opcodes: list[str], target: str = "sm_80") -> Case:
    letters = operands.split(", ")
    return per_thread(name, section, (kind,) * len(letters), steps(opcodes, operands, kind), target=target)


def _with_modes(op: str, t: str) -> list[str]:
    found = [f"{op}.{mode}.{t}" for mode in MODES]
    if t == "f32":
        found += [f"{op}.{mode}.ftz.{t}" for mode in MODES]
        found += [f"{op}.rn.sat.{t}", f"{op}.rz.ftz.sat.{t}"] if op in ("add", "sub", "mul", "fma") else []
    return found


def ieee() -> list[Case]:
    cases = []
    for t in ("f32", "f64"):
        for op in ("add", "sub", "mul", "div"):
            cases.append(_group(f"floating/{op}.{t}", f"{FLOATING}: {op}", "%a, %b", t, _with_modes(op, t)))
        cases.append(_group(f"floating/fma.{t}", f"{FLOATING}: fma", "%a, %b, %c", t, _with_modes("fma", t)))
        for op in ("rcp", "sqrt"):
            cases.append(_group(f"floating/{op}.{t}", f"{FLOATING}: {op}", "%a", t, _with_modes(op, t)))
        suffixes = ["", ".ftz", ".NaN", ".ftz.NaN", ".xorsign.abs", ".NaN.xorsign.abs"] if t == "f32" else [""]
        extremes = [f"{op}{s}.{t}" for op in ("min", "max") for s in suffixes]
        target = "sm_90" if t == "f32" else "sm_80"
        cases.append(_group(f"floating/min.{t}", f"{FLOATING}: min, max", "%a, %b", t, extremes, target))
        signs = [f"{op}{s}.{t}" for op in ("abs", "neg") for s in (("", ".ftz") if t == "f32" else ("",))]
        cases.append(_group(f"floating/abs.{t}", f"{FLOATING}: abs, neg", "%a", t, signs))
        cases.append(_group(f"floating/copysign.{t}", f"{FLOATING}: copysign", "%a, %b", t, [f"copysign.{t}"]))
        classes = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"]
        tests = [(f"testp.{c}.{t}", "%a") for c in classes]
        cases.append(per_thread(f"floating/testp.{t}", f"{FLOATING}: testp", (t,), [flags(tests)]))
    return cases


ORDERED = ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]


def comparisons() -> list[Case]:
    cases = []
    for t in ("f32", "f64", "f16", "bf16"):
        ftz = [".ftz"] if t in ("f32", "f16") else []
        tests = [(f"setp.{c}{f}.{t}", "%a, %b") for c in ORDERED for f in ["", *ftz]]
        target = "sm_90" if t == "bf16" else "sm_80"
        floating = "f32" if t in ("f32", "f64") else t
        values = [Step("set", f"set.le.u32.{t} %d, %a, %b;", "u32")]
        values += [Step("setf", f"set.gtu.{floating}.{t} %d, %a, %b;", floating)]
        case = per_thread(
            f"floating/setp.{t}", f"{COMPARISON}: setp, set", (t, t), [flags(tests), *values], target=target
        )
        cases.append(case)
    for t in ("f16x2", "bf16x2"):
        body = "mov.b32 %d, 0;"
        for i, c in enumerate(ORDERED):
            body += f"\nsetp.{c}.{t} %p1|%p2, %a, %b;\n@%p1 or.b32 %d, %d, {1 << i};\n@%p2 or.b32 %d, %d, {65536 << i};"
        target = "sm_90" if t == "bf16x2" else "sm_80"
        section = "Half Precision Comparison Instructions: setp"
        cases.append(per_thread(f"floating/setp.{t}", section, (t, t), [Step("flags", body, "b32")], target=target))
    return cases


APPROXIMATE = {
    # opcode: (ulps of the result, absolute error that passes too)
    "rcp.approx.f32": (1, 0.0), "rcp.approx.ftz.f32": (1, 0.0), "sqrt.approx.f32": (1, 0.0),
    "sqrt.approx.ftz.f32": (1, 0.0), "rsqrt.approx.f32": (1, 0.0), "rsqrt.approx.ftz.f32": (1, 0.0),
    "ex2.approx.f32": (2, 0.0), "ex2.approx.ftz.f32": (2, 0.0), "lg2.approx.f32": (1, 2.0**-22),
    "lg2.approx.ftz.f32": (1, 2.0**-22), "tanh.approx.f32": (128, 0.0),
}  # fmt: skip


def approximations() -> list[Case]:
    cases = []
    for opcode, (ulps, absolute) in APPROXIMATE.items():
        close = Close("f32", ulps, absolute, STAND_IN)
        step = steps([opcode], "%a", "f32", close)
        cases.append(
            per_thread(f"floating/{opcode}", f"{FLOATING}: {opcode.split('.')[0]}", ("f32",), step, count=UNARY)
        )
    angle = Close("f32", 0, 2.0**-20.5, "PTX ISA: absolute error 2^-20.5 for angles in -pi .. pi; " + STAND_IN)
    for op in ("sin", "cos"):
        both = steps([f"{op}.approx.f32", f"{op}.approx.ftz.f32"], "%a", "f32", angle)
        cases.append(per_thread(f"floating/{op}.approx.f32", f"{FLOATING}: {op}", ("angle",), both, count=UNARY))
    quotient = steps([f"div.{m}.f32" for m in ("approx", "approx.ftz", "full", "full.ftz")], "%a, %b", "f32",
                     Close("f32", 1, 0.0, "PTX ISA: 2 ulp for |b| in 2^-126 .. 2^126; measured 1"))  # fmt: skip
    a, b = (((words(f"div{i}", UNARY) >> 32) & 0x83FFFFFF) + (112 << 23) for i in range(2))
    inputs = {"a": a.astype("u4"), "b": b.astype("u4")}
    cases.append(
        per_thread("floating/div.approx.f32", f"{FLOATING}: div", ("f32", "f32"), quotient, inputs=inputs, count=UNARY)
    )
    for op in ("rcp", "rsqrt"):
        step = steps([f"{op}.approx.ftz.f64"], "%a", "f64", Close("f64", 2**32, 0.0, STAND_IN))
        cases.append(per_thread(f"floating/{op}.approx.ftz.f64", f"{FLOATING}: {op}", ("f64",), step))
    step = steps(["rsqrt.approx.f64"], "%a", "f64", Close("f64", 1, 0.0, STAND_IN))
    cases.append(per_thread("floating/rsqrt.approx.f64", f"{FLOATING}: rsqrt", ("f64",), step))
    return cases


def halves() -> list[Case]:
    cases = []
    for t in ("f16", "f16x2", "bf16", "bf16x2"):
        ieee_half, hopper = t.startswith("f16"), "sm_80" if t.startswith("f16") else "sm_90"
        suffixes = ["", ".rn", ".ftz", ".sat", ".ftz.sat"] if ieee_half else ["", ".rn"]
        suffixes = [s if s in ("", ".rn") else f".rn{s}" for s in suffixes]
        for op in ("add", "sub", "mul"):
            cases.append(
                _group(f"half/{op}.{t}", f"{HALF}: {op}", "%a, %b", t, [f"{op}{s}.{t}" for s in suffixes], hopper)
            )
        more = ["", ".ftz", ".sat", ".ftz.sat", ".relu", ".ftz.relu"] if ieee_half else ["", ".relu"]
        cases.append(_group(f"half/fma.{t}", f"{HALF}: fma", "%a, %b, %c", t, [f"fma.rn{s}.{t}" for s in more]))
        more = ["", ".ftz", ".NaN", ".ftz.NaN"] if ieee_half else ["", ".NaN"]
        opcodes = [f"{op}{s}.{t}" for op in ("min", "max") for s in more]
        cases.append(_group(f"half/min.{t}", f"{HALF}: min, max", "%a, %b", t, opcodes))
        opcodes = [f"{op}{s}.xorsign.abs.{t}" for op in ("min", "max") for s in ("", ".NaN")]
        cases.append(_group(f"half/min.xorsign.{t}", f"{HALF}: min, max", "%a, %b", t, opcodes, "sm_90"))
        opcodes = [f"{op}{s}.{t}" for op in ("abs", "neg") for s in (("", ".ftz") if ieee_half else ("",))]
        cases.append(_group(f"half/abs.{t}", f"{HALF}: abs, neg", "%a", t, opcodes))
        close = Close(t, 1, 0.0, STAND_IN)
        exponential = f"ex2.approx.{t}" if ieee_half else f"ex2.approx.ftz.{t}"
        for opcode in (exponential, f"tanh.approx.{t}"):
            section = f"{HALF}: {opcode.split('.')[0]}"
            cases.append(
                per_thread(f"half/{opcode}", section, (t,), steps([opcode], "%a", t, close), target=hopper, count=512)
            )
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return ieee() + comparisons() + approximations() + halves()
