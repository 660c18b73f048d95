"""The state behind the functions: what a process has open, and what every function does before and after its work.

One lock covers the whole state, so any number of host threads may call. A function runs to its end under the lock;
kernels run under it as well, in the call that waits for them.
"""

from __future__ import annotations

import functools
import itertools
import operator
import os
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from cuda.bindings.driver import CUdevice, CUdeviceptr, CUresult, CUstreamCaptureMode, cuuint32_t, cuuint64_t

from .. import Checks, DeviceMemory, EmulationError
from ..arch import Arch, named
from .errors import SUCCESS, Failure, fail

if TYPE_CHECKING:
    from .. import Report
    from .graph import Capture
    from .modules import Module
    from .queue import Stream

Arguments = ParamSpec("Arguments")
Kind = TypeVar("Kind")

REPORTS_KEPT = 256


@dataclass(eq=False)
class Allocation:
    """Device memory that a caller owns.

    Attributes
    ----------
    context : Context
        Whose memory it is.
    address : int
        Device address.
    size : int
        Bytes.
    name : str
        What messages call it.
    pooled : bool
        Whether it came from the stream-ordered pool.
    born : tuple of int or None
        (stream number, position) of a stream-ordered allocation: work that uses it has to come after that.
    freeing : bool
        Whether a stream-ordered free of it has been queued.
    """

    context: Context
    address: int
    size: int
    name: str
    pooled: bool
    born: tuple[int, int] | None
    freeing: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.size} bytes)"


@dataclass(eq=False)
class Pool:
    """The default memory pool of a device: how much of it is used and reserved, in bytes.

    Attributes
    ----------
    reuse : dict of int to int
        Value of the attributes that say what may be reused, where they were set.
    """

    context: Context
    handle: int = 0
    release_threshold: int = 0
    used: int = 0
    used_high: int = 0
    reserved: int = 0
    reserved_high: int = 0
    reuse: dict[int, int] = field(default_factory=dict)

    def allocated(self, size: int) -> None:
        """Account for an allocation."""
        self.used += size
        self.used_high = max(self.used_high, self.used)
        self.reserved = max(self.reserved, self.used)
        self.reserved_high = max(self.reserved_high, self.reserved)

    def trim(self, keep: int) -> None:
        """Give back what is unused beyond ``keep`` bytes."""
        self.reserved = max(self.used, min(self.reserved, keep))


@dataclass(eq=False)
class Context:
    """The primary context of a device, and the device with it.

    Attributes
    ----------
    memory : DeviceMemory
        The address space, which all devices share.
    memory_limit, used : int
        Bytes that may be and are allocated on this device.
    retained : int
        How often the context is retained; it is active while that is not 0.
    error : CUresult or None
        What every call returns once work in it has failed.
    """

    ordinal: int
    arch: Arch
    memory: DeviceMemory
    memory_limit: int
    handle: int = 0
    retained: int = 0
    used: int = 0
    error: CUresult | None = None
    modules: list[Module] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    legacy: Stream | None = None
    per_thread: dict[int, Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = Pool(self)

    def take(self, size: int, name: str) -> int:
        """Allocate device memory within the device's limit and return its address."""
        if self.used + size > self.memory_limit:
            raise fail("OUT_OF_MEMORY")
        try:
            address = self.memory.allocate(size, name)
        except MemoryError as error:
            raise fail("OUT_OF_MEMORY") from error
        self.used += size
        return address

    def give_back(self, address: int, size: int) -> None:
        """Free device memory."""
        self.memory.free(address)
        self.used -= size


class _Thread(threading.local):
    """What belongs to one host thread: its stack of current contexts and its attitude to captures."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.capture_mode = CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL


class Process:
    """Everything that the emulated driver holds for this process."""

    def __init__(self, arch: str, devices: int, memory_limit: int | None, seed: int, checks: Checks) -> None:
        self.lock = threading.RLock()
        self.seed = seed
        self.checks = checks
        self.random = random.Random(seed)
        self.initialised = False
        self.thread = _Thread()
        self.objects: dict[int, Any] = {}
        self.pinned: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.captures: list[Capture] = []
        self.host_clock: dict[int, int] = {}
        self.calls: Counter[str] = Counter()
        self.faults: list[Any] = []
        self.launches = 0
        self.reports: deque[tuple[str, Report]] = deque(maxlen=REPORTS_KEPT)
        self.last_error: EmulationError | None = None
        self.memory = DeviceMemory()
        self.allocations: dict[int, Allocation] = {}
        device = named(arch)
        limit = device.memory_bytes if memory_limit is None else memory_limit
        self.contexts = [Context(ordinal, device, self.memory, limit) for ordinal in range(devices)]
        for context in self.contexts:
            self.register(context)
            self.register(context.pool)

    def register(self, thing: Any) -> int:
        """Give an object a handle, which is never used again for another."""
        thing.handle = next(_handles)
        self.objects[thing.handle] = thing
        return int(thing.handle)

    def forget(self, thing: Any) -> None:
        """Make an object's handle invalid."""
        self.objects.pop(thing.handle, None)

    def resolve(self, handle: Any, kind: type[Kind], error: str = "INVALID_HANDLE") -> Kind:
        """Return the object of a handle.

        Parameters
        ----------
        handle : handle object, int or None
            As the bindings take it.
        kind : type
            The class that the object must have.
        error : str
            What to fail with where it is none.
        """
        thing = self.objects.get(integer(handle))
        if not isinstance(thing, kind):
            raise fail(error)
        return thing

    def current(self) -> Context:
        """Return the calling thread's current context, in working order."""
        stack = self.thread.contexts
        if not stack:
            raise fail("INVALID_CONTEXT")
        context = stack[-1]
        if not context.retained:
            raise fail("CONTEXT_IS_DESTROYED")
        if context.error is not None:
            raise Failure(context.error)
        return context

    def device(self, ordinal: Any) -> Context:
        """Return the device of an ordinal."""
        index = integer(ordinal)
        if not 0 <= index < len(self.contexts):
            raise fail("INVALID_DEVICE")
        return self.contexts[index]

    def corrupt(self, context: Context, result: CUresult, error: EmulationError | None) -> None:
        """Put a context into the state from which only its release leads: every later call returns ``result``."""
        context.error = result
        if error is not None:
            self.last_error = error
        for stream in context.streams:
            stream.abandon()

    def owner(self, address: int) -> Allocation | None:
        """Return the caller's allocation that an address lies in."""
        found = self.memory.find(address)
        return None if found is None else self.allocations.get(found.address)

    def release(self, allocation: Allocation) -> None:
        """Give an allocation's memory back."""
        allocation.context.give_back(allocation.address, allocation.size)
        del self.allocations[allocation.address]
        if allocation.pooled:
            allocation.context.pool.used -= allocation.size

    def empty(self, context: Context) -> None:
        """Destroy all that a context holds; what is queued in it does not run."""
        for stream in context.streams:
            stream.abandon()
        for module in context.modules:
            module.unload()
        for allocation in [each for each in self.allocations.values() if each.context is context]:
            self.release(allocation)
        lost = [thing for thing in self.objects.values() if getattr(thing, "context", None) is context]
        for thing in lost:
            if thing is not context.pool:
                self.forget(thing)
        self.captures = [capture for capture in self.captures if capture.origin.context is not context]
        self.pinned.clear()
        context.modules, context.streams = [], []
        context.legacy, context.per_thread, context.error = None, {}, None
        context.pool.used = context.pool.reserved = 0


_handles = itertools.count(0x5EED_0000_0100, 0x10)
_process: Process | None = None
_process_lock = threading.Lock()


def _default_arch() -> str:
    return os.environ.get("FLASHCORE_EMULATED_ARCH", "sm_89")


def _default_checks() -> Checks:
    names = os.environ.get("FLASHCORE_EMULATOR_CHECKS")
    return Checks() if names is None else Checks.parse(names)


def process() -> Process:
    """Return the state of this process, made from the environment at the first call."""
    if _process is None:
        with _process_lock:
            if _process is None:
                _start(_default_arch(), 1, None, 0, _default_checks())
    assert _process is not None
    return _process


def _start(arch: str, devices: int, memory_limit: int | None, seed: int, checks: Checks) -> None:
    global _process
    _process = Process(arch, devices, memory_limit, seed, checks)


def reset(
    arch: str | None = None,
    memory_limit: int | None = None,
    seed: int = 0,
    checks: Checks | None = None,
    devices: int = 1,
) -> None:
    """Start over as a process that has not called ``cuInit`` yet: every handle and address becomes invalid.

    Parameters
    ----------
    arch : str, optional
        Architecture to emulate, ``sm_89`` for example. Default: ``FLASHCORE_EMULATED_ARCH``, else ``sm_89``.
    memory_limit : int, optional
        Bytes of memory of each device after which allocations fail. Default: what the representative device has.
    seed : int
        Order in which warps, blocks and streams proceed. With 0 work starts as late as allowed: only when a call
        waits for it. With any other seed streams proceed at random, also on their own.
    checks : Checks, optional
        What the emulator checks and counts. Default: ``FLASHCORE_EMULATOR_CHECKS``, else every check and no counts.
    devices : int
        Number of devices.

    Raises
    ------
    ValueError
        If there is no such architecture.
    """
    _start(
        _default_arch() if arch is None else arch,
        devices,
        memory_limit,
        seed,
        _default_checks() if checks is None else checks,
    )


API: dict[str, Callable[..., tuple[Any, ...]]] = {}
"""The driver's functions by name."""


def api(
    outputs: int = 0, *, context: bool = True, initialised: bool = True
) -> Callable[[Callable[Arguments, Any]], Callable[Arguments, tuple[Any, ...]]]:
    """Make a driver function of one that returns its outputs and raises :class:`Failure`.

    The result has the bindings' form: ``(CUresult, *outputs)``, the outputs None after a failure.

    Parameters
    ----------
    outputs : int
        Number of values beside the result code.
    context : bool
        Whether it needs a current context in working order.
    initialised : bool
        Whether it needs ``cuInit`` first.
    """

    def decorate(function: Callable[Arguments, Any]) -> Callable[Arguments, tuple[Any, ...]]:
        name = function.__name__

        @functools.wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> tuple[Any, ...]:
            state = process()
            with state.lock:
                state.calls[name] += 1
                try:
                    if initialised and not state.initialised:
                        raise fail("NOT_INITIALIZED")
                    for fault in state.faults:
                        fault.strike(state, name)
                    if context:
                        state.current()
                    value = function(*args, **kwargs)
                except Failure as failure:
                    return (failure.result, *(None,) * outputs)
            if outputs == 0:
                return (SUCCESS,)
            return (SUCCESS, value) if outputs == 1 else (SUCCESS, *value)

        API[name] = call
        return call

    return decorate


_NUMBERS = (CUdevice, CUdeviceptr, cuuint32_t, cuuint64_t)  # of the bindings' types, these have no __index__


def integer(handle: Any) -> int:
    """Return the value of a handle, device pointer or device; None is 0.

    Raises
    ------
    TypeError
        For what the bindings refuse as well: a float, a string.
    """
    if handle is None:
        return 0
    return int(handle) if isinstance(handle, _NUMBERS) else operator.index(handle)


def unsigned(value: Any, bits: int) -> int:
    """Return an argument of an unsigned C type.

    Raises
    ------
    TypeError, OverflowError
        As the bindings do, for what is no integer or out of range.
    """
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise OverflowError(f"{number} does not fit into an unsigned integer of {bits} bits")
    return number
