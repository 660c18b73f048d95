"""Small kernels for the tests: from PTX text or CUDA C++, run with NumPy arrays."""

import functools
import hashlib
import pathlib
import subprocess
import tempfile

import numpy as np

from flashcore_drv.emulator import Checks, DeviceMemory, launch, parse

DEFAULT = Checks()
HERE = pathlib.Path(__file__).parent
HEADER = ".version 9.0\n.target sm_90a\n.address_size 64\n"
BITS = {"pred": "pred", 1: "b16", 2: "b16", 4: "b32", 8: "b64"}
DTYPES = {
    "u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32,
    "u64": np.uint64,
    "s64": np.int64, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64, "f32": np.float32, "f64": np.float64,
    "f16": np.uint16, "bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32, "pred": np.uint32,
    "e4m3x2": np.uint16, "e5m2x2": np.uint16,
}  # fmt: skip


class Run:
    """What a launch left behind."""

    def __init__(self, memory, addresses, arrays, report):
        self.memory, self.addresses, self.arrays, self.report = memory, addresses, arrays, report

    def __getitem__(self, i):
        like = self.arrays[i]
        return self.memory.read(self.addresses[i], like.nbytes).view(like.dtype).reshape(like.shape)


def execute(
    program, name, arguments, *, grid=(1, 1, 1), block=(32, 1, 1), shared=0, seed=0, checks=DEFAULT, names=(),
    memory=None, limits=None, dependent=False,
):  # fmt: skip
    """Launch with arrays (by address), ``Output`` shapes and scalars (NumPy or bytes), in the kernel's order."""
    entry = program.entries[name]
    memory = memory or DeviceMemory()
    bank = bytearray(max((p.offset + p.size for p in entry.params), default=0))
    addresses, arrays = {}, {}
    for i, (param, argument) in enumerate(zip(entry.params, arguments, strict=True)):
        if isinstance(argument, Output):
            argument.array = np.zeros(argument.shape, argument.dtype)
            addresses[i] = memory.allocate(argument.array.nbytes, names[i] if names else f"argument {i}")
            arrays[i] = argument.array
            value = np.uint64(addresses[i]).tobytes()
        elif isinstance(argument, np.ndarray):
            addresses[i] = memory.allocate(argument.nbytes, names[i] if names else f"argument {i}")
            memory.write(addresses[i], argument)
            arrays[i] = argument
            value = np.uint64(addresses[i]).tobytes()
        else:
            value = argument if isinstance(argument, bytes) else argument.tobytes()
        bank[param.offset : param.offset + len(value)] = value
    variables = {}
    for variable in program.globals.values():
        variables[variable.name] = memory.allocate(variable.size, variable.name)
        if variable.data is not None:
            memory.write(variables[variable.name], variable.data)
    report = launch(
        entry, program, params=bytes(bank), grid=grid, block=block, dynamic_shared_bytes=shared, memory=memory,
        globals_=variables, seed=seed, checks=checks, limits=limits, dependent=dependent,
    )  # fmt: skip
    return Run(memory, addresses, arrays, report)


class Output:
    """An argument that the kernel writes."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


def entry(body, params="", name="kernel", before=""):
    """A module with one kernel."""
    return f"{HEADER}{before}\n.visible .entry {name}({params})\n{{\n{body}\n}}\n"


def compute(text, sources, result="b32", n=None, block=None):
    """Run one thread an element: `text` computes %d from %a, %b, %c; `sources` are (type, array)."""
    n = n or len(sources[0][1])
    lines, params = [], []
    for name, (kind, _) in zip("abc", sources):
        dtype = np.dtype(DTYPES[kind])
        register = kind if kind in ("f32", "f64") else BITS[dtype.itemsize]
        params.append(f".param .u64 p_{name}")
        lines.append(
            f".reg .{register} %{name}; ld.param.u64 %rd, [p_{name}]; mad.wide.u32 %rd, %i, {dtype.itemsize}, %rd;"
        )
        load = {1: "s8" if kind == "s8" else "u8", 2: "u16", 4: "u32", 8: "u64"}[dtype.itemsize]
        lines.append(f"ld.global.{kind if register in ('f32', 'f64') else load} %{name}, [%rd];")
    dtype = np.dtype(DTYPES[result])
    params.append(".param .u64 p_d")
    if result == "pred":
        lines += [".reg .pred %d; .reg .b32 %out;", text, "selp.b32 %out, 1, 0, %d;"]
    else:
        register = result if result in ("f32", "f64") else BITS[dtype.itemsize]
        lines += [f".reg .{register} %d;", text]
    store = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}[dtype.itemsize]
    store = result if result in ("f32", "f64") else store
    lines.append(f"ld.param.u64 %rd, [p_d]; mad.wide.u32 %rd, %i, {dtype.itemsize}, %rd;")
    lines.append(f"st.global.{store} [%rd], {'%out' if result == 'pred' else '%d'};")
    start = """.reg .b64 %rd; .reg .b32 %i, %j, %k;
               mov.u32 %i, %tid.x; mov.u32 %j, %ctaid.x; mov.u32 %k, %ntid.x; mad.lo.u32 %i, %j, %k, %i;"""
    program = parse(entry("\n".join([start, *lines, "ret;"]), ", ".join(params)))
    threads = block or n
    assert n % threads == 0
    arguments = [*(np.ascontiguousarray(a, DTYPES[k]) for k, a in sources), Output(n, dtype)]
    return execute(program, "kernel", arguments, grid=(n // threads, 1, 1), block=(threads, 1, 1))[len(sources)]


@functools.cache
def compile_cuda(source, arch="89"):
    """PTX of CUDA C++ text, or of a file in kernels/."""
    path = HERE / "kernels" / source if source.endswith(".cu") else None
    text = path.read_text() if path else source
    with tempfile.TemporaryDirectory() as directory:
        name = path.name if path else f"kernel_{hashlib.sha1(text.encode()).hexdigest()[:6]}.cu"
        file = pathlib.Path(directory, name)
        file.write_text(text)
        command = ["nvcc", f"-arch=compute_{arch}", "-ptx", "-lineinfo", "-O3", "-std=c++20", f"-I{HERE / 'kernels'}"]
        done = subprocess.run([*command, "-o", f"{directory}/kernel.ptx", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return parse(pathlib.Path(directory, "kernel.ptx").read_text())
