"""PTX text to instructions with resolved scopes, labels, symbols and source lines (PTX ISA, "Syntax", "Directives")."""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from flashcore_drv.emulator.errors import EmulationError

SIZES = {
    "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "e4m3x2": 2, "e5m2x2": 2,
    "b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4,
    "b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16, "pred": 1,
}  # fmt: skip
"""Bytes of every fundamental type."""


@dataclass(frozen=True, slots=True)
class SourceLine:
    """Where an instruction comes from: a file number of the module (0: the PTX itself) and a line.

    ``callers`` are the places, innermost first, from which inlined code was called.
    """

    file: int
    line: int
    callers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Register:
    """A declared register; names in inner scopes are made unique."""

    name: str


@dataclass(frozen=True, slots=True)
class Special:
    """A special register such as ``%tid.x``."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant: the bits of a float (``0f…``, ``0d…``) with its width, or an integer (width 0)."""

    value: int
    float_bits: int = 0


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable, parameter, function or label."""

    name: str


@dataclass(frozen=True, slots=True)
class Address:
    """``[base + offset]``."""

    base: Operand | None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class TensorAddress:
    """``[tensor map, {coordinates}]``."""

    base: Address
    coordinates: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """``{a, b, …}``, or the parenthesised list of a call."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """``a|b``: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Not:
    """``!p``."""

    operand: Operand


@dataclass(frozen=True, slots=True)
class Sink:
    """``_``: a destination that is dropped."""


Operand = Register | Special | Immediate | Symbol | Address | TensorAddress | Vector | Pair | Not | Sink


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``@predicate name.modifiers operands``."""

    opcode: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: Register | None
    negated: bool
    source: SourceLine

    @property
    def type(self) -> str:
        """The last type modifier."""
        for modifier in reversed(self.modifiers):
            if modifier in SIZES:
                return modifier
        return "b32"

    @property
    def types(self) -> tuple[str, ...]:
        """All type modifiers, in order."""
        return tuple(m for m in self.modifiers if m in SIZES)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in ``.shared`` (``dynamic``: without a size), ``.local`` or a call's ``.param`` space."""

    name: str
    space: str
    size: int
    align: int
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class GlobalVariable:
    """A module variable in ``.global`` or ``.const`` space; `data` is its initial value, None where it has none."""

    name: str
    space: str
    size: int
    align: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Param:
    """A kernel parameter: its place in the parameter bank, in bytes."""

    name: str
    offset: int
    size: int
    align: int


@dataclass
class Function:
    """The body of an entry or a device function before linking.

    ``registers`` maps unique names to types, ``labels`` to indices into ``code``, ``tables`` are ``.branchtargets``.
    """

    name: str
    inputs: tuple[Param, ...] = ()
    outputs: tuple[Param, ...] = ()
    code: list[Instruction] = field(default_factory=list)
    register_types: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)


@dataclass
class Entry:
    """A kernel, with the device functions that it calls expanded in place.

    Attributes
    ----------
    params : tuple of Param
        As laid out in the parameter bank.
    max_threads, min_blocks : int or None
        Product of ``.maxntid`` (or ``.reqntid``) and ``.minnctapersm``.
    max_registers : int or None
        ``.maxnreg``, of a thread.
    registers : dict
        Number of declared (virtual) registers by type.
    shared_static_bytes, local_bytes : int
        Bytes a block, bytes a thread.
    source_files : dict
        File number to path, of ``.loc`` lines.
    """

    name: str
    params: tuple[Param, ...]
    max_threads: int | None
    min_blocks: int | None
    max_registers: int | None
    registers: dict[str, int]
    shared_static_bytes: int
    local_bytes: int
    source_files: dict[int, str]
    code: list[Instruction]
    register_types: dict[str, str]
    labels: dict[str, int]
    tables: dict[str, tuple[str, ...]]
    shared: dict[str, int]
    shared_align: int
    local: dict[str, int]

    def where(self, source: SourceLine) -> str:
        """``file:line`` of a source line, with the file's name alone."""
        if source.file == 0:
            return f"{self.name}.ptx:{source.line}"
        return self._place(source.file, source.line)

    def callers(self, source: SourceLine) -> str:
        """`` (from file:line, …)`` for inlined code, else ""."""
        places = ", ".join(self._place(*caller) for caller in source.callers)
        return f" (from {places})" if places else ""

    def _place(self, file: int, line: int) -> str:
        return f"{PurePath(self.source_files.get(file, str(file))).name}:{line}"


@dataclass
class Program:
    """A module: its kernels, variables and device functions."""

    target: str
    version: tuple[int, int]
    entries: dict[str, Entry]
    globals: dict[str, GlobalVariable]
    functions: dict[str, Function]


def parse(text: str) -> Program:
    """Parse a PTX module.

    Parameters
    ----------
    text : str
        PTX, such as ``nvcc -ptx`` writes.

    Returns
    -------
    Program

    Raises
    ------
    EmulationError
        Of kind "parse", with the PTX line, for what is not understood.
    """
    return _Module(text).program()


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.M)
_DIRECTIVE = re.compile(r"\s*\.(version|target|address_size|file|loc|section|pragma|alias)\b([^\n;{]*);?")
_FUNCTION = re.compile(r"\s*((?:\.(?:visible|weak|extern|common)\s+)*)\.(entry|func)\b([^{;]*)([{;])")
_VARIABLE = re.compile(r"\s*((?:\.(?:visible|weak|extern|common)\s+)*\.(?:global|const|shared)\b[^;=]*)(?:=([^;]*))?;")
_STATEMENT = re.compile(r"\s*(?:(\.loc\s[^\n;]*);?|([\w$]+)\s*:(?!:)|([{}])|((?:[^;{}]|\{[^{}]*\})+);)")
_TOOLKIT = re.compile(r"/(cuda[^/]*|cu\d+)/.*\binclude/")  # code that is inlined from there is shown where it is called
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_PREDICATED = re.compile(r"(?:@(!?)\s*([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_DECLARATION = re.compile(
    r"\.(shared|local|param|global|const)\s+(?:\.align\s+(\d+)\s+)?(?:\.attribute\([^)]*\)\s*)?"
    r"\.(\w+)\s+([\w$]+)\s*((?:\[\s*\d*\s*\]\s*)*)$"
)
_PARAM = re.compile(
    r"\.(param|reg)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s*(?:\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+)?\s*)?([\w$%]+)\s*(?:\[\s*(\d+)\s*\])?"
)
_REG = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.S)
_ADDRESS = re.compile(r"([%\w$.]+)?\s*(?:\+?\s*(-?\s*(?:0[xX][0-9a-fA-F]+|\d+)))?$")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?$")
_FLOAT = re.compile(r"0[fFdD][0-9a-fA-F]+$")
_SPECIAL = re.compile(
    r"%(tid|ntid|ctaid|nctaid|cluster_ctaid|cluster_nctaid|clusterid|nclusterid)\.[xyzw]$"
    r"|%(laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock_hi|clock64|globaltimer|globaltimer_lo|globaltimer_hi"
    r"|lanemask_(eq|le|lt|ge|gt)|dynamic_smem_size|total_smem_size|aggr_smem_size|cluster_ctarank|cluster_nctarank"
    r"|is_explicit_cluster|envreg\d+)$"
)


def split_operands(text: str) -> list[str]:
    """Split at commas outside brackets."""
    if not any(c in text for c in "[{("):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "[{(":
            depth += 1
        elif c in "]})":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return parts


def align_up(value: int, align: int) -> int:
    """The next multiple of `align`."""
    return -(-value // align) * align


def _array_size(dimensions: str) -> tuple[int, bool]:
    """Elements of ``[2][3]`` and whether a dimension is left open."""
    count, is_open = 1, False
    for digits in re.findall(r"\[\s*(\d*)\s*\]", dimensions):
        is_open |= not digits
        count *= int(digits or 0)
    return count, is_open


class _Scopes:
    """Names visible in nested ``{ }`` blocks of one body."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.stack: list[dict[str, str]] = [{}]
        self.identity: list[int] = [0]
        self.count = 0

    def push(self) -> None:
        self.count += 1
        self.stack.append({})
        self.identity.append(self.count)

    def pop(self) -> None:
        self.stack.pop()
        self.identity.pop()

    def unique(self, name: str) -> str:
        return name if len(self.stack) == 1 else f"{name}@{self.identity[-1]}"

    def declare(self, name: str) -> str:
        unique = self.unique(name)
        self.stack[-1][name] = unique
        return unique

    def find(self, name: str) -> str | None:
        for scope in reversed(self.stack):
            if name in scope:
                return scope[name]
        return None


class _Module:
    """A recursive descent over one module's text."""

    def __init__(self, text: str) -> None:
        self.files = {int(number): path for number, path in _FILE.findall(text)}
        self.text = _COMMENT.sub(lambda m: "\n" * m[0].count("\n"), text)
        self.newlines = [m.start() for m in re.finditer("\n", self.text)]
        self.target, self.version = "", (0, 0)
        self.globals: dict[str, GlobalVariable] = {}
        self.shared: dict[str, Variable] = {}
        self.functions: dict[str, Function] = {}
        self.headers: dict[str, str] = {}
        self.inlined: dict[tuple[int, int, int], tuple[tuple[int, int], ...]] = {}

    def fail(self, position: int, message: str) -> EmulationError:
        return EmulationError("parse", message, f"ptx:{self.line(position)}")

    def line(self, position: int) -> int:
        return bisect.bisect_left(self.newlines, position) + 1

    def program(self) -> Program:
        position = 0
        while self.text[position:].strip():
            position = self.module_statement(position)
        entries = {name: self.link(self.functions[name], header) for name, header in self.headers.items()}
        functions = {name: f for name, f in self.functions.items() if name not in entries}
        return Program(self.target, self.version, entries, self.globals, functions)

    # Module scope.

    def module_statement(self, position: int) -> int:
        if m := _DIRECTIVE.match(self.text, position):
            if m[1] == "version":
                major, minor = m[2].split(".")
                self.version = int(major), int(minor)
            elif m[1] == "target":
                self.target = m[2].split(",")[0].strip()
            elif m[1] == "section":
                return self.text.index("}", m.end()) + 1
            return m.end()
        if m := _FUNCTION.match(self.text, position):
            return self.function(m)
        if m := _VARIABLE.match(self.text, position):
            self.variable(m)
            return m.end()
        stripped = self.text[position:].lstrip()
        start = len(self.text) - len(stripped)
        raise self.fail(start, f"cannot parse {stripped.splitlines()[0]!r}")

    def variable(self, m: re.Match[str]) -> None:
        text = re.sub(r"\.(visible|weak|extern|common)\s+", "", m[1]).strip()
        parts = _DECLARATION.match(" ".join(text.split()))
        if not parts:
            raise self.fail(m.start(1), f"cannot parse the variable {text!r}")
        space, align, kind, name, dimensions = parts.groups()
        count, is_open = _array_size(dimensions)
        size, alignment = count * SIZES[kind], int(align or SIZES[kind])
        if space == "shared":
            self.shared[name] = Variable(name, space, size, alignment, dynamic=is_open)
            return
        data = None if m[2] is None else self.initialiser(m, kind, size)
        self.globals[name] = GlobalVariable(name, space, size, alignment, data)

    def initialiser(self, m: re.Match[str], kind: str, size: int) -> bytes:
        out = b""
        for token in re.findall(r"[^\s{},]+", m[2]):
            width = SIZES[kind]
            if _FLOAT.match(token):
                out += int(token[2:], 16).to_bytes(width, "little")
            elif _NUMBER.match(token):
                out += (int(token.rstrip("U"), 0) & (1 << 8 * width) - 1).to_bytes(width, "little")
            elif kind in ("f32", "f64"):
                out += struct.pack("<f" if kind == "f32" else "<d", float(token))
            else:
                raise self.fail(m.start(2), f"cannot parse the initial value {token!r}")
        return out.ljust(size, b"\0")

    def function(self, m: re.Match[str]) -> int:
        header = " ".join(m[3].split())
        parts = re.match(r"(?:\((?P<out>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*(?:\((?P<params>[^)]*)\))?(?P<rest>.*)", header)
        if not parts:
            raise self.fail(m.start(), f"cannot parse {header!r}")
        name = parts["name"]
        function = Function(name, self.params(parts["params"] or "", m), self.params(parts["out"] or "", m))
        if m[4] == ";":
            return m.end()
        self.functions[name] = function
        end = self.body(function, m.end())
        if m[2] == "entry":
            self.headers[name] = parts["rest"]
        return end

    def params(self, text: str, m: re.Match[str]) -> tuple[Param, ...]:
        params, offset = [], 0
        for part in text.split(","):
            if not part.strip():
                continue
            p = _PARAM.match(part.strip())
            if not p or p[1] != "param":
                raise self.fail(m.start(), f"cannot parse the parameter {part.strip()!r}")
            size = SIZES[p[3]] * int(p[5] or 1)
            align = int(p[2] or SIZES[p[3]])
            offset = align_up(offset, align)
            params.append(Param(p[4], offset, size, align))
            offset += size
        return tuple(params)

    # Bodies.

    def location(self, text: str) -> SourceLine:
        """A ``.loc`` line; where it says from where the code was inlined, the ``.loc`` of that place came before."""
        numbers = [int(n) for n in _LOC.match(text).groups("0")]  # type: ignore[union-attr]
        file, line, column, caller_file, caller_line, caller_column = numbers
        callers: tuple[tuple[int, int], ...] = ()
        if caller_line:
            caller = caller_file, caller_line, caller_column
            callers = ((caller_file, caller_line), *self.inlined.get(caller, ()))
        self.inlined[file, line, column] = callers
        while callers and _TOOLKIT.search(self.files.get(file, "")):
            (file, line), *rest = callers
            callers = tuple(rest)
        return SourceLine(file, line, callers)

    def body(self, function: Function, position: int) -> int:
        scopes, source, has_loc = _Scopes(function), SourceLine(0, 0), False
        pending: list[tuple[int, tuple[str, ...]]] = []  # where a name that may be declared later is used
        last_label = ""
        cache: dict[str, Operand] = {}
        while True:
            m = _STATEMENT.match(self.text, position)
            if not m:
                raise self.fail(position, f"cannot parse {self.text[position : position + 60].strip()!r}")
            position = m.end()
            if m[1]:
                place = self.location(m[1])
                if place.line:
                    source, has_loc = place, True
            elif m[2]:
                last_label = scopes.declare(m[2])
                function.labels[last_label] = len(function.code)
            elif m[3] == "{":
                scopes.push()
                cache = {}
            elif m[3] == "}":
                if len(scopes.stack) == 1:
                    break
                scopes.pop()
                cache = {}
            elif m[4].startswith("."):
                cache = {}
                self.body_directive(function, scopes, m, last_label)
            else:
                here = source if has_loc else SourceLine(0, self.line(m.start(4)))
                function.code.append(self.instruction(m, scopes, here, cache))
                pending.append((len(function.code) - 1, tuple(str(i) for i in scopes.identity)))
        self.resolve_labels(function, pending)
        return position

    def body_directive(self, function: Function, scopes: _Scopes, m: re.Match[str], last_label: str) -> None:
        text = " ".join(m[4].split())
        if r := _REG.match(text):
            for name in r[2].split(","):
                base = re.match(r"\s*([%\w$]+)\s*(?:<(\d+)>)?", name)
                if not base:
                    raise self.fail(m.start(4), f"cannot parse {text!r}")
                names = [base[1]] if base[2] is None else [f"{base[1]}{i}" for i in range(int(base[2]))]
                for n in names:
                    function.register_types[scopes.declare(n)] = r[1]
        elif v := _DECLARATION.match(text):
            count, is_open = _array_size(v[5])
            name = scopes.declare(v[4])
            function.variables[name] = Variable(name, v[1], count * SIZES[v[3]], int(v[2] or SIZES[v[3]]), is_open)
        elif text.startswith(".branchtargets"):
            function.tables[last_label] = tuple(t.strip() for t in text[len(".branchtargets") :].split(","))
        elif not text.startswith((".pragma", ".callprototype")):
            raise self.fail(m.start(4), f"cannot parse {text!r}")

    def instruction(
        self, m: re.Match[str], scopes: _Scopes, source: SourceLine, cache: dict[str, Operand]
    ) -> Instruction:
        parts = _PREDICATED.match(m[4])
        if not parts:
            raise self.fail(m.start(4), f"cannot parse {m[4].strip()!r}")
        operands = []
        for token in split_operands(parts[4]):
            if token not in cache:
                cache[token] = self.operand(token, scopes, m)
            operands.append(cache[token])
        predicate = self.operand(parts[2], scopes, m) if parts[2] else None
        if predicate is not None and not isinstance(predicate, Register):
            raise self.fail(m.start(4), f"the predicate {parts[2]} is not declared")
        name, *modifiers = parts[3].split(".")
        return Instruction(parts[3], name, tuple(modifiers), tuple(operands), predicate, bool(parts[1]), source)

    def operand(self, token: str, scopes: _Scopes, m: re.Match[str]) -> Operand:
        first = token[0]
        if first == "%" or first.isalpha() or first in "$_":
            if token == "_":
                return Sink()
            if "|" in token:
                a, b = token.split("|")
                return Pair(self.operand(a.strip(), scopes, m), self.operand(b.strip(), scopes, m))
            found = scopes.find(token)
            if found is not None:
                return Register(found) if found in scopes.function.register_types else Symbol(found)
            if token == "WARP_SZ":
                return Immediate(32)
            if first == "%":
                if _SPECIAL.match(token):
                    return Special(token)
                if "." in token and scopes.find(token.rsplit(".", 1)[0]):
                    raise self.fail(m.start(4), f"vector element {token} is not supported")
                raise self.fail(m.start(4), f"{token} is not declared")
            return Symbol(token)
        if first == "[":
            inner = token[1:-1].strip()
            if "{" in inner:
                base, rest = inner.split(",", 1)
                coordinates = self.operand(rest.strip(), scopes, m)
                assert isinstance(coordinates, Vector)
                return TensorAddress(self.address(base.strip(), scopes, m), coordinates.items)
            return self.address(inner, scopes, m)
        if first in "{(":
            return Vector(tuple(self.operand(t, scopes, m) for t in split_operands(token[1:-1])))
        if first == "!":
            return Not(self.operand(token[1:].strip(), scopes, m))
        if _FLOAT.match(token):
            return Immediate(int(token[2:], 16), 32 if token[1] in "fF" else 64)
        if _NUMBER.match(token):
            return Immediate(int(token.rstrip("U"), 0))
        try:
            return Immediate(int.from_bytes(struct.pack("<d", float(token)), "little"), 64)
        except ValueError:
            raise self.fail(m.start(4), f"cannot parse the operand {token!r}") from None

    def address(self, inner: str, scopes: _Scopes, m: re.Match[str]) -> Address:
        parts = _ADDRESS.match(inner)
        if not parts:
            raise self.fail(m.start(4), f"cannot parse the address [{inner}]")
        if parts[1] and _NUMBER.match(parts[1]):
            return Address(None, int(parts[1], 0) + int((parts[2] or "0").replace(" ", ""), 0))
        base = self.operand(parts[1], scopes, m) if parts[1] else None
        return Address(base, int((parts[2] or "0").replace(" ", ""), 0))

    def resolve_labels(self, function: Function, pending: list[tuple[int, tuple[str, ...]]]) -> None:
        """Bind branch targets: the innermost scope around the branch that has the label."""
        for index, scopes in pending:
            instruction = function.code[index]
            if instruction.name not in ("bra", "brx"):
                continue
            operand = instruction.operands[-1]
            if not isinstance(operand, Symbol) or operand.name in function.labels:
                continue
            for scope in reversed(scopes):
                unique = f"{operand.name}@{scope}"
                if unique in function.labels:
                    function.code[index] = replace(instruction, operands=(*instruction.operands[:-1], Symbol(unique)))
                    break
            else:
                raise EmulationError("parse", f"label {operand.name} is not defined in {function.name}")

    # Linking.

    def link(self, function: Function, header: str) -> Entry:
        linked = _Linker(self.functions)
        linked.expand(function, "", {}, ())
        names = {o.name for i in linked.code for o in _symbols(i.operands)}
        variables = [v for v in (*self.shared.values(), *linked.variables.values()) if v.space == "shared"]
        offset, shared, align, dynamic = 0, {}, 1, []
        for v in variables:
            if v.name not in names:
                continue
            align = max(align, v.align)
            if v.dynamic:
                dynamic.append(v)
                continue
            offset = align_up(offset, v.align)
            shared[v.name] = offset
            offset += v.size
        static = offset
        for v in dynamic:
            shared[v.name] = align_up(static, max(16, *(d.align for d in dynamic)))
        if dynamic and static:
            static = shared[dynamic[0].name]
        local_offset, local = 0, {}
        for v in linked.variables.values():
            if v.space in ("local", "param"):
                local_offset = align_up(local_offset, max(v.align, 8))
                local[v.name] = local_offset
                local_offset += v.size
        counts: dict[str, int] = {}
        for kind in linked.register_types.values():
            counts[kind] = counts.get(kind, 0) + 1
        threads = re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", header)
        blocks = re.search(r"\.minnctapersm\s+(\d+)", header)
        most = re.search(r"\.maxnreg\s+(\d+)", header)
        max_threads = None
        if threads:
            max_threads = 1
            for n in threads[1].split(","):
                max_threads *= int(n)
        return Entry(
            name=function.name,
            params=function.inputs,
            max_threads=max_threads,
            min_blocks=int(blocks[1]) if blocks else None,
            max_registers=int(most[1]) if most else None,
            registers=counts,
            shared_static_bytes=static,
            local_bytes=align_up(local_offset, 16),
            source_files=self.files,
            code=linked.code,
            register_types=linked.register_types,
            labels=linked.labels,
            tables=linked.tables,
            shared=shared,
            shared_align=align,
            local=local,
        )


def _symbols(operands: tuple[Operand, ...]) -> Iterator[Symbol]:
    for o in operands:
        if isinstance(o, Symbol):
            yield o
        elif isinstance(o, Vector):
            yield from _symbols(o.items)
        elif isinstance(o, Address) and isinstance(o.base, Symbol):
            yield o.base
        elif isinstance(o, TensorAddress):
            yield from _symbols((o.base,))


def _renamed(operand: Operand, register: Callable[[str], str], symbol: Callable[[str], str]) -> Operand:
    match operand:
        case Register(name):
            return Register(register(name))
        case Symbol(name):
            return Symbol(symbol(name))
        case Address(base, offset):
            return Address(None if base is None else _renamed(base, register, symbol), offset)
        case Vector(items):
            return Vector(tuple(_renamed(o, register, symbol) for o in items))
        case TensorAddress(base, coordinates):
            address = _renamed(base, register, symbol)
            assert isinstance(address, Address)
            return TensorAddress(address, tuple(_renamed(o, register, symbol) for o in coordinates))
        case Pair(a, b):
            return Pair(_renamed(a, register, symbol), _renamed(b, register, symbol))
        case Not(inner):
            return Not(_renamed(inner, register, symbol))
        case _:
            return operand


class _Linker:
    """Expands calls in place, so that the machine needs no call stack; recursion is refused."""

    def __init__(self, functions: dict[str, Function]) -> None:
        self.functions = functions
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.register_types: dict[str, str] = {}
        self.tables: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, Variable] = {}
        self.calls = 0

    def expand(self, function: Function, prefix: str, arguments: dict[str, str], active: tuple[str, ...]) -> None:
        if function.name in active:
            raise EmulationError("parse", f"the recursive call of {function.name} is not supported")
        for name, kind in function.register_types.items():
            self.register_types[prefix + name] = kind
        for name, variable in function.variables.items():
            # A shared variable is one for the block, however often its function is expanded.
            unique = name if variable.space == "shared" else prefix + name
            self.variables[unique] = replace(variable, name=unique)

        def symbol(name: str) -> str:
            if name in arguments:
                return arguments[name]
            own = name in function.labels or name in function.variables
            shared = own and name in function.variables and function.variables[name].space == "shared"
            return prefix + name if own and not shared else name

        by_index: dict[int, list[str]] = {}
        for label, index in function.labels.items():
            by_index.setdefault(index, []).append(label)
        for label, targets in function.tables.items():
            self.tables[prefix + label] = tuple(prefix + t for t in targets)
        for index, instruction in enumerate(function.code):
            for label in by_index.get(index, ()):
                self.labels[prefix + label] = len(self.code)
            if prefix:
                instruction = replace(
                    instruction,
                    operands=tuple(_renamed(o, lambda n: prefix + n, symbol) for o in instruction.operands),
                    predicate=Register(prefix + instruction.predicate.name) if instruction.predicate else None,
                )
                if instruction.name == "ret":
                    instruction = replace(
                        instruction, opcode="bra", name="bra", modifiers=(), operands=(Symbol(prefix + "<return>"),)
                    )
            if instruction.name == "call":
                self.call(instruction, (*active, function.name))
            else:
                self.code.append(instruction)
        for label in by_index.get(len(function.code), ()):
            self.labels[prefix + label] = len(self.code)

    def call(self, instruction: Instruction, active: tuple[str, ...]) -> None:
        operands = list(instruction.operands)
        lists = [o.items if isinstance(o, Vector) else None for o in operands]
        at = 1 if lists[0] is not None else 0
        outputs, target, inputs = lists[0] or (), operands[at], (lists[at + 1 :] or [None])[0] or ()
        if not isinstance(target, Symbol) or target.name not in self.functions:
            self.code.append(instruction)  # an external or indirect call: an error only if it is executed
            return
        function = self.functions[target.name]
        self.calls += 1
        prefix = f"{function.name}#{self.calls}:"
        arguments = {}
        for parameter, operand in zip((*function.outputs, *function.inputs), (*outputs, *inputs)):
            assert isinstance(operand, Symbol)
            arguments[parameter.name] = operand.name
        if instruction.predicate:
            skip = replace(
                instruction, opcode="bra", name="bra", modifiers=(), operands=(Symbol(prefix + "<return>"),),
                negated=not instruction.negated,
            )  # fmt: skip
            self.code.append(skip)
        self.expand(function, prefix, arguments, active)
        self.labels[prefix + "<return>"] = len(self.code)
