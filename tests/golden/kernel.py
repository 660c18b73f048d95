"""A case of the golden files: a micro kernel, its inputs, and how near the emulator must come to the GPU's outputs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .values import DTYPES, Array, operands


@dataclass(frozen=True)
class Close:
    """How near an output must be.

    Attributes
    ----------
    kind : str
        "" for every bit, else the floating-point type of the output: NaNs of any payload are equal.
    ulps : int
        Units in the last place of `kind` by which values may differ; with 0 the signs of zeros count as well.
    absolute : float
        Differences up to this and the ulps together pass.
    why : str
        Where a tolerance that is not 0 comes from.
    """

    kind: str = ""
    ulps: int = 0
    absolute: float = 0.0
    why: str = ""


BITS = Close()


def same(kind: str) -> Close:
    """The same value, NaN for NaN: PTX leaves the payload of most NaN results open."""
    return Close(kind) if kind in ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64") else BITS


@dataclass(frozen=True)
class Output:
    """Memory that a kernel writes: what it holds before, and how near it must be after."""

    initial: Array
    close: Close = BITS


@dataclass(frozen=True)
class TensorMap:
    """A tensor map over an input or output, as ``cuTensorMapEncodeTiled`` takes it (innermost dimension first).

    `kind` and `swizzle` are the ends of the names in ``CUtensorMapDataType`` and ``CUtensorMapSwizzle``;
    `byte_strides` has one element fewer than `dims`.
    """

    array: str
    kind: str
    dims: tuple[int, ...]
    byte_strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    swizzle: str = "NONE"
    fill_nan: bool = False


@dataclass(frozen=True)
class Case:
    """One micro kernel, called ``golden``.

    Its parameters are the tensor maps, in order, and then one struct: the addresses of the inputs and of the outputs.
    """

    name: str
    section: str
    target: str
    ptx: str
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Output]
    threads: int
    blocks: int = 1
    maps: tuple[TensorMap, ...] = field(default=())

    @property
    def family(self) -> str:
        """The file that the case is recorded in."""
        return self.name.split("/")[0]

    def digest(self) -> str:
        """Hash of all that the outputs depend on: a golden with another one is stale."""
        h = hashlib.sha256()
        h.update(repr((self.target, self.ptx, self.threads, self.blocks, self.maps)).encode())
        for name, array in [*self.inputs.items(), *((n, o.initial) for n, o in self.outputs.items())]:
            h.update(repr((name, array.dtype.str, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
        return h.hexdigest()[:16]


SCRATCH = """\
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<16>, %thread, %lane;
    .reg .f32 %f<8>;
    .reg .b64 %rd<16>, %at, %index;
"""
"""Registers that every body may use; %thread counts over all blocks."""


def kernel(
    name: str, section: str, body: str, inputs: Mapping[str, Array], outputs: Mapping[str, Output], *,
    target: str = "sm_80", threads: int = 32, blocks: int = 1, declarations: str = "",
    maps: tuple[TensorMap, ...] = (), module: str = "",
) -> Case:  # fmt: skip
    """A case from the text between the prologue and ``ret``; ``%at_NAME`` is the address of each array.

    `declarations` go into the kernel, `module` before it.
    """
    arrays = [*inputs, *outputs]
    lines = [".version 9.0", f".target {target}", ".address_size 64", *module.strip().splitlines()]
    lines += [".visible .entry golden("]
    lines += [f"    .param .align 128 .b8 map{i}[128]," for i in range(len(maps))]
    lines += [
        f"    .param .align 8 .b8 arrays[{8 * len(arrays)}]",
        ")",
        f".maxntid {threads}, 1, 1",
        "{",
        SCRATCH.rstrip(),
    ]
    lines += [f"    .reg .b64 {', '.join(f'%at_{a}' for a in arrays)};"]
    lines += [f"    {line.strip()}" for line in declarations.strip().splitlines()]
    for i, array in enumerate(arrays):
        lines += [
            f"    ld.param.b64 %at_{array}, [arrays+{8 * i}];",
            f"    cvta.to.global.u64 %at_{array}, %at_{array};",
        ]
    lines += [
        "    mov.u32 %thread, %tid.x;", "    mov.u32 %r0, %ctaid.x;", "    mov.u32 %r1, %ntid.x;",
        "    mad.lo.u32 %thread, %r0, %r1, %thread;", "    mov.u32 %lane, %laneid;", "    cvt.u64.u32 %index, %thread;",
    ]  # fmt: skip
    lines += [f"    {line.strip()}" for line in body.strip().splitlines()]
    ptx = "\n".join([*lines, "    ret;", "}", ""])
    return Case(name, section, target, ptx, dict(inputs), dict(outputs), threads, blocks, maps)


def register_class(dtype: np.dtype) -> str:
    return {1: "b16", 2: "b16", 4: "b32", 8: "b64"}[dtype.itemsize]


def move(direction: str, array: str, dtype: np.dtype, registers: list[str]) -> list[str]:
    """Load ("ld") or store ("st") the registers of each thread: element [thread, i] of an array is register i."""
    size, access = dtype.itemsize, {1: "u8", 2: "b16", 4: "b32", 8: "b64"}[dtype.itemsize]
    lines = [f"mad.lo.u64 %at, %index, {size * len(registers)}, %at_{array};"]
    for i, register in enumerate(registers):
        address = f"[%at+{i * size}]"
        pair = f"{register}, {address}" if direction == "ld" else f"{address}, {register}"
        lines.append(f"{direction}.global.{access} {pair};")
    return lines


def copied(source: str, target: str, nbytes: int, threads: int) -> str:
    """Copy bytes (a multiple of 16) from one ``space:address`` to another, 16 by each thread at a time."""
    (from_space, a), (to_space, b) = source.split(":"), target.split(":")
    lines = ["mov.u32 %r2, %tid.x;", "shl.b32 %r2, %r2, 4;", "cvt.u64.u32 %rd1, %r2;"]
    for register, space, base in (("%rd2", from_space, a), ("%rd3", to_space, b)):
        lines += [f"mov.u64 {register}, {base};", f"add.u64 {register}, {register}, %rd1;"]
        assert space in ("global", "shared")
    for start in range(0, nbytes, 16 * threads):
        left = nbytes - start
        guard = ""
        if left < 16 * threads:
            lines += [f"setp.lt.u32 %p7, %r2, {left};"]
            guard = "@%p7 "
        lines += [
            f"{guard}ld.{from_space}.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd2+{start}];",
            f"{guard}st.{to_space}.v4.b32 [%rd3+{start}], {{%r4, %r5, %r6, %r7}};",
        ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Step:
    """Instructions of each thread, and the type and tolerance of the result that they leave in ``%d``."""

    name: str
    body: str
    kind: str
    close: Close | None = None


def steps(opcodes: Iterable[str], operands: str, kind: str, close: Close | None = None) -> list[Step]:
    """One instruction each, ``opcode %d, operands``."""
    return [Step(opcode, f"{opcode} %d, {operands};", kind, close) for opcode in opcodes]


def per_thread(
    name: str, section: str, kinds: tuple[str, ...], results: Iterable[Step], *, target: str = "sm_80",
    count: int = 256,    inputs: Mapping[str, Array] | None = None,
) -> Case:  # fmt: skip
    """Each thread loads its operands %a, %b, %c, %e, … and stores the result %d of every step."""
    names = list("abcefg"[: len(kinds)])
    if inputs is None:
        inputs = dict(zip(names, operands(name, kinds, count)))
    threads = min(count, 256)
    declare, body, outputs = [], [], {}
    for letter in names:
        declare.append(f".reg .{register_class(inputs[letter].dtype)} %{letter};")
        body += move("ld", letter, inputs[letter].dtype, [f"%{letter}"])
    for i, step in enumerate(results):
        dtype = np.dtype(DTYPES[step.kind])
        declare.append(f".reg .{register_class(dtype)} %d{i};")
        output = re.sub(r"\W", "_", step.name)
        outputs[output] = Output(np.zeros(count, dtype), same(step.kind) if step.close is None else step.close)
        body += re.sub(r"%d\b", f"%d{i}", step.body).splitlines()
        body += move("st", output, dtype, [f"%d{i}"])
    return kernel(
        name, section, "\n".join(body), inputs, outputs, target=target, threads=threads, blocks=count // threads,
        declarations="\n".join(declare),
    )  # fmt: skip
