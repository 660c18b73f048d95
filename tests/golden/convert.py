"""Conversions between all types, with their rounding modes (PTX ISA, "cvt")."""

from __future__ import annotations

from .kernel import Case, Step, per_thread

SECTION = "Data Movement and Conversion Instructions: cvt"
INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
MODES = ("rn", "rz", "rm", "rp")


def _cvt(modifiers: str, d: str, a: str, kind: str | None = None) -> Step:
    opcode = ".".join(part for part in ("cvt", modifiers, d, a) if part)
    return Step(opcode, f"{opcode} %d, %a;", kind or d)


def _holds(d: str, a: str) -> bool:
    """Whether every value of one integer type is one of the other."""
    wide, narrow = int(d[1:]), int(a[1:])
    return wide > narrow if (a[0], d[0]) == ("u", "s") else a[0] == d[0] and wide >= narrow


def from_integers() -> list[Case]:
    cases = []
    for a in INTEGERS:
        # an 8-bit destination is a 16-bit register that holds it extended
        results = [_cvt("", d, a, f"{d[0]}16" if d[1:] == "8" else d) for d in INTEGERS if d != a]
        results += [_cvt("sat", d, a, f"{d[0]}16" if d[1:] == "8" else d) for d in INTEGERS if not _holds(d, a)]
        cases.append(per_thread(f"convert/integer.{a}", SECTION, (a,), results))
        results = [_cvt(mode, d, a) for d in ("f16", "f32", "f64") for mode in MODES]
        results += [_cvt("rn.sat", "f32", a), _cvt("rz.sat", "f16", a)]
        cases.append(per_thread(f"convert/float.{a}", SECTION, (a,), results))
        if a[1:] == "8":  # ptxas has no such conversion
            continue
        results = [_cvt(mode, "bf16", a) for mode in MODES]
        cases.append(per_thread(f"convert/bf16.{a}", SECTION, (a,), results, target="sm_90"))
    return cases


def to_integers() -> list[Case]:
    cases = []
    for a in ("f16", "f32", "f64", "bf16"):
        for d in INTEGERS:
            if a == "bf16" and d[1:] == "8":  # ptxas has no such conversion
                continue
            saturations = ("",) if a == "bf16" else ("", ".sat")
            modes = [f"{mode}{s}" for mode in ("rni", "rzi", "rmi", "rpi") for s in saturations]
            modes += ["rni.ftz", "rpi.ftz.sat"] if a == "f32" else []
            results = [_cvt(mode, d, a, f"{d[0]}16" if d[1:] == "8" else d) for mode in modes]
            target = "sm_90" if a == "bf16" else "sm_80"
            cases.append(per_thread(f"convert/{d}.{a}", SECTION, (a,), results, target=target))
    return cases


def floats() -> list[Case]:
    cases = []
    rounds = ("rni", "rzi", "rmi", "rpi")
    table = {  # source: destinations, each with its modifiers ("-" for none)
        "f64": [
            ("f32", "rn rz rm rp"),
            ("f16", "rn rz rm rp"),
            ("f32", "rn.sat rz.ftz"),
            ("f64", "rni rzi rmi rpi rni.sat"),
        ],
        "f32": [
            ("f64", "- ftz sat"),
            ("f16", "rn rz rm rp rn.ftz rn.sat rn.relu rz.relu"),
            ("f32", "rni rni.ftz rzi rzi.ftz rmi rmi.ftz rpi rpi.ftz sat ftz.sat rni.sat"),
        ],
        "f16": [("f32", "- ftz sat"), ("f64", "-"), ("f16", "rni rzi rmi rpi sat rni.sat")],
    }
    for a, rows in table.items():
        results = [_cvt(m.replace("-", ""), d, a) for d, modifiers in rows for m in modifiers.split()]
        cases.append(per_thread(f"convert/float.{a}", SECTION, (a,), results))
    to_bf16 = [_cvt(f"{m}{s}", "bf16", "f32") for m in ("rn", "rz") for s in ("", ".relu")]
    cases.append(per_thread("convert/bf16.f32", SECTION, ("f32",), to_bf16))
    for a in ("f16", "f64"):
        rows = [_cvt(m, "bf16", a) for m in MODES]
        cases.append(per_thread(f"convert/bf16.{a}", SECTION, (a,), rows, target="sm_90"))
    rows = [_cvt("", "f32", "bf16"), *(_cvt(m, "f16", "bf16") for m in MODES), _cvt("", "f64", "bf16")]
    rows += [_cvt(r, "bf16", "bf16") for r in rounds]
    cases.append(per_thread("convert/float.bf16", SECTION, ("bf16",), rows, target="sm_90"))
    tf32 = [Step("cvt.rna.tf32.f32", "cvt.rna.tf32.f32 %d, %a;", "f32")]
    cases.append(per_thread("convert/tf32.f32", SECTION, ("f32",), tf32))
    tf32 = [Step(f"cvt.{m}.tf32.f32", f"cvt.{m}.tf32.f32 %d, %a;", "f32") for m in ("rn", "rz", "rn.relu", "rz.relu")]
    cases.append(per_thread("convert/tf32.rn.f32", SECTION, ("f32",), tf32, target="sm_90"))
    return cases


def packed() -> list[Case]:
    cases = []
    for d in ("f16x2", "bf16x2"):
        modes = [f"{m}{s}" for m in ("rn", "rz") for s in ("", ".relu")]
        results = [Step(f"cvt.{m}.{d}.f32", f"cvt.{m}.{d}.f32 %d, %a, %b;", d) for m in modes]
        cases.append(per_thread(f"convert/{d}.f32", SECTION, ("f32", "f32"), results, count=512))
    for d in ("e4m3x2", "e5m2x2"):
        modes = [f"rn.satfinite{s}" for s in ("", ".relu")]
        results = [Step(f"cvt.{m}.{d}.f32", f"cvt.{m}.{d}.f32 %d, %a, %b;", "b16") for m in modes]
        cases.append(per_thread(f"convert/{d}.f32", SECTION, ("f32", "f32"), results, target="sm_89", count=512))
        results = [Step(f"cvt.{m}.{d}.f16x2", f"cvt.{m}.{d}.f16x2 %d, %a;", "b16") for m in modes]
        cases.append(per_thread(f"convert/{d}.f16x2", SECTION, ("f16x2",), results, target="sm_89", count=512))
        modes = [f"rn{s}" for s in ("", ".relu")]
        results = [Step(f"cvt.{m}.f16x2.{d}", f"cvt.{m}.f16x2.{d} %d, %a;", "f16x2") for m in modes]
        cases.append(per_thread(f"convert/f16x2.{d}", SECTION, (d,), results, target="sm_89", count=512))
    return cases


def build() -> list[Case]:
    """All cases of this family."""
    return from_integers() + to_integers() + floats() + packed()
