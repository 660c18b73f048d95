# ruff: noqa: N802 (the driver's names)
"""Modules and functions (driver API sections "Module Management", "Execution Control" and "Occupancy")."""

from __future__ import annotations

import functools
from typing import Any

from cuda.bindings.driver import CUdeviceptr, CUfunction, CUfunction_attribute, CUmodule

from .. import parse
from ..errors import EmulationError
from ..parser import Entry, Program
from .errors import Failure, fail
from .hostmemory import host_string, void_pointer
from .process import Context, api, integer, process, unsigned
from .queue import finish_all, forbid_in_capture

ELF = b"\x7fELF"
SHARED_GRANULARITY = 128


class Module:
    """A loaded module: its program, its global variables in device memory and the functions handed out."""

    def __init__(self, context: Context, program: Program) -> None:
        self.handle = 0
        self.context, self.program = context, program
        self.addresses: dict[str, int] = {}
        self.functions: dict[str, Function] = {}
        self.loaded = False

    def load(self) -> None:
        """Give the global variables their memory and their initial values."""
        for variable in self.program.globals.values():
            size = max(variable.size, 1)
            try:
                address = self.context.take(size, variable.name)
            except Failure:
                self.unload()
                raise
            self.addresses[variable.name] = address
            data = variable.data if variable.data is not None else b""
            self.context.memory.write(address, data.ljust(size, b"\0"))
        self.loaded = True

    def unload(self) -> None:
        """Free the global variables."""
        for name, address in self.addresses.items():
            self.context.give_back(address, max(self.program.globals[name].size, 1))
        self.addresses.clear()
        self.loaded = False


class Function:
    """A kernel of a module, with what the host may set."""

    def __init__(self, module: Module, entry: Entry) -> None:
        self.handle = 0
        self.module, self.entry, self.context = module, entry, module.context
        arch = self.context.arch
        self.max_threads = entry.max_threads or arch.max_threads_per_block
        self.max_dynamic_shared = max(0, arch.shared_per_block - entry.shared_static_bytes)
        self.carveout = -1


@functools.lru_cache(maxsize=256)
def _parse(image: bytes) -> Program:
    return parse(image.decode(errors="replace"))


@api(1)
def cuModuleLoadData(image: Any) -> CUmodule:
    """Load a module from PTX text.

    Parameters
    ----------
    image : bytes or int
        The text, or the address of text that ends with a NUL. A cubin is no image that the emulator can run.
    """
    state = process()
    forbid_in_capture(state)
    context = state.current()
    if isinstance(image, bytes):
        text = image.split(b"\0", 1)[0] if not image.startswith(ELF) else image
    else:
        address = void_pointer(image)
        if not address:
            raise fail("INVALID_VALUE")
        text = host_string(address)
    if text.startswith(ELF):
        raise fail("NO_BINARY_FOR_GPU")
    if b".version" not in text:
        raise fail("INVALID_IMAGE")
    try:
        program = _parse(text)
    except EmulationError as error:
        state.last_error = error
        raise fail("INVALID_PTX") from error
    if not context.arch.runs(program.target):
        state.last_error = EmulationError("parse", f"PTX for {program.target} cannot run on {context.arch.name}")
        raise fail("INVALID_PTX")
    module = Module(context, program)
    module.load()
    context.modules.append(module)
    return CUmodule(state.register(module))


def _name(name: Any) -> str:
    if not isinstance(name, bytes):
        raise TypeError(f"expected bytes, {type(name).__name__} found")
    return name.decode()


@api()
def cuModuleUnload(hmod: Any) -> None:
    """Unload a module after what is queued has run."""
    state = process()
    forbid_in_capture(state)
    module = state.resolve(hmod, Module)
    finish_all(state, module.context)
    module.unload()
    module.context.modules.remove(module)
    for function in module.functions.values():
        state.forget(function)
    state.forget(module)


@api(1)
def cuModuleGetFunction(hmod: Any, name: bytes) -> CUfunction:
    """Return a kernel by its name."""
    state = process()
    module, key = state.resolve(hmod, Module), _name(name)
    if key not in module.program.entries:
        raise fail("NOT_FOUND")
    if key not in module.functions:
        module.functions[key] = Function(module, module.program.entries[key])
        state.register(module.functions[key])
    return CUfunction(module.functions[key].handle)


@api(2)
def cuModuleGetGlobal(hmod: Any, name: bytes) -> tuple[CUdeviceptr, int]:
    """Return address and size in bytes of a ``.global`` or ``.const`` variable."""
    module, key = process().resolve(hmod, Module), _name(name)
    if key not in module.addresses:
        raise fail("NOT_FOUND")
    return CUdeviceptr(module.addresses[key]), module.program.globals[key].size


def function_of(handle: Any) -> Function:
    """Return the function of a handle."""
    return process().resolve(handle, Function)


def _capability(pair: tuple[int, int]) -> int:
    return 10 * pair[0] + pair[1]


@api(1)
def cuFuncGetAttribute(attrib: CUfunction_attribute, hfunc: Any) -> int:
    """Return a property of a kernel.

    ``NUM_REGS`` is 0: registers are assigned by ptxas, of which PTX knows nothing.
    """
    function = function_of(hfunc)
    entry, program = function.entry, function.module.program
    target = "".join(filter(str.isdigit, program.target))
    constants = sum(variable.size for variable in program.globals.values() if variable.space == "const")
    values = {
        "MAX_THREADS_PER_BLOCK": function.max_threads,
        "SHARED_SIZE_BYTES": entry.shared_static_bytes,
        "CONST_SIZE_BYTES": constants,
        "LOCAL_SIZE_BYTES": entry.local_bytes,
        "NUM_REGS": 0,
        "PTX_VERSION": int(target),
        "BINARY_VERSION": _capability(function.context.arch.compute_capability),
        "MAX_DYNAMIC_SHARED_SIZE_BYTES": function.max_dynamic_shared,
        "PREFERRED_SHARED_MEMORY_CARVEOUT": function.carveout,
    }
    return values.get(attrib.name.removeprefix("CU_FUNC_ATTRIBUTE_"), 0)


@api()
def cuFuncSetAttribute(hfunc: Any, attrib: CUfunction_attribute, value: Any) -> None:
    """Set how much dynamic shared memory a kernel may be launched with, or its carveout (which changes nothing)."""
    function, number = function_of(hfunc), integer(value)
    if attrib == CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
        most = function.context.arch.shared_per_block_optin - function.entry.shared_static_bytes
        if not 0 <= number <= most:
            raise fail("INVALID_VALUE")
        function.max_dynamic_shared = number
    elif attrib == CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        if not -1 <= number <= 100:
            raise fail("INVALID_VALUE")
        function.carveout = number
    else:
        raise fail("INVALID_VALUE")


@api(2)
def cuFuncGetParamInfo(func: Any, paramIndex: Any) -> tuple[int, int]:
    """Return offset and size in bytes of a parameter in the parameter space."""
    params, index = function_of(func).entry.params, unsigned(paramIndex, 64)
    if index >= len(params):
        raise fail("INVALID_VALUE")
    return params[index].offset, params[index].size


@api(1)
def cuFuncGetModule(hfunc: Any) -> CUmodule:
    """Return the module of a kernel."""
    return CUmodule(function_of(hfunc).module.handle)


@api(1)
def cuFuncGetName(hfunc: Any) -> bytes:
    """Return the name of a kernel."""
    return function_of(hfunc).entry.name.encode()


def _resident_blocks(function: Function, block_size: int, dynamic_shared: int) -> int:
    arch = function.context.arch
    if block_size <= 0 or dynamic_shared < 0:
        raise fail("INVALID_VALUE")
    if block_size > function.max_threads:
        return 0
    threads = -(-block_size // arch.warp_size) * arch.warp_size
    shared = function.entry.shared_static_bytes + dynamic_shared
    if shared > arch.shared_per_block_optin:
        return 0
    shared += arch.shared_reserved_per_block
    shared = -(-shared // SHARED_GRANULARITY) * SHARED_GRANULARITY
    return min(
        arch.max_blocks_per_multiprocessor,
        arch.max_threads_per_multiprocessor // threads,
        arch.shared_per_multiprocessor // shared,
    )


@api(1)
def cuOccupancyMaxActiveBlocksPerMultiprocessor(func: Any, blockSize: Any, dynamicSMemSize: Any) -> int:
    """Return the blocks that fit into an SM by threads and shared memory; registers are not known from PTX."""
    return _resident_blocks(function_of(func), integer(blockSize), unsigned(dynamicSMemSize, 64))


@api(1)
def cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    func: Any, blockSize: Any, dynamicSMemSize: Any, flags: Any
) -> int:
    """Return the same; the flags change nothing."""
    unsigned(flags, 32)
    return _resident_blocks(function_of(func), integer(blockSize), unsigned(dynamicSMemSize, 64))
