"""Faults on demand: a call that fails, memory that runs out, a context that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cuda.bindings.driver import CUresult

from .errors import Failure
from .process import API, Process, process


class Fault:
    """Makes a call of a function fail.

    Attributes
    ----------
    name : str
        The function.
    call : int or None
        Which of its calls from now on, counted from 1; None is every one.
    result : CUresult
        What it returns instead of doing its work.
    sticky : bool
        Whether the current context is lost with it: every later call that needs one returns ``result`` as well.
    struck : int
        How often it has struck so far.
    """

    def __init__(self, name: str, call: int | None, result: CUresult, sticky: bool) -> None:
        self.name, self.call, self.result, self.sticky = name, call, result, sticky
        self.calls = self.struck = 0

    def strike(self, state: Process, name: str) -> None:
        """Fail if this is the call."""
        if name != self.name:
            return
        self.calls += 1
        if self.call not in (None, self.calls):
            return
        self.struck += 1
        if self.sticky and state.thread.contexts:
            state.corrupt(state.thread.contexts[-1], self.result, None)
        raise Failure(self.result)


@contextmanager
def inject(name: str, *, call: int | None = 1, result: CUresult, sticky: bool = False) -> Iterator[Fault]:
    """Let a call of a driver function fail, for as long as the context manager is open.

    An error of earlier work that shows late is one injected into the call that would wait for it, for example
    ``inject("cuStreamSynchronize", result=CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, sticky=True)``. A context that was
    lost stays lost afterwards, until it is released for good or :func:`reset` is called.

    Parameters
    ----------
    name : str
        A function of this driver.
    call : int or None
        Which call from now on, counted from 1; None: every call.
    result : CUresult
        What it returns.
    sticky : bool
        Whether the context is lost with it.

    Yields
    ------
    Fault
        Says how often it struck.

    Raises
    ------
    ValueError
        If there is no such function, or the call is not counted from 1.
    """
    if name not in API:
        raise ValueError(f"the emulated driver has no function {name!r}")
    if call is not None and call < 1:
        raise ValueError(f"call={call}: calls are counted from 1")
    fault, state = Fault(name, call, result, sticky), process()
    with state.lock:
        state.faults.append(fault)
    try:
        yield fault
    finally:
        with state.lock:
            state.faults.remove(fault)


@contextmanager
def memory_limit(limit_bytes: int, device: int = 0) -> Iterator[None]:
    """Let device memory run out beyond a number of bytes in use, for as long as the context manager is open."""
    state = process()
    context = state.device(device)
    before, context.memory_limit = context.memory_limit, limit_bytes
    try:
        yield
    finally:
        context.memory_limit = before


def calls() -> dict[str, int]:
    """Return how often each function was called since the last :func:`reset`."""
    state = process()
    with state.lock:
        return dict(state.calls)
