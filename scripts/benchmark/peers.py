"""What we are measured beside, each through an adapter: used where it can be imported, else named with the reason.

All read the very tensors that our kernels read, except JAX, which gets copies.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from flashcore_drv.dtypes import BF16
from flashcore_drv.runtime import DeviceArray, Graph, Stream

from .cases import Case, Tensors, head_of
from .measure import Replay, Sample, Timer, clock_sample
from .ours import cu_seqlens
from .results import Json


class Absent(Exception):
    """A peer cannot be used here: why."""


class Refused(Exception):
    """A peer does not take a case: why."""


class Prepared(ABC):
    """A peer on the tensors of a case."""

    @abstractmethod
    def rows(self, batch: int, head: int, where: slice) -> Any:
        """Some rows of its output on the host, [rows, head_dim]."""

    @abstractmethod
    def sample(self, timer: Timer, repeat: int) -> Sample:
        """The measurement of `repeat` launches, through all sets in turns."""


class Peer(ABC):
    """An implementation of attention by somebody else.

    Attributes
    ----------
    version : str
        Of the libraries that matter.
    how : str
        How it is called and timed.
    """

    version: str
    how: str

    @abstractmethod
    def prepare(self, sets: Sequence[Tensors], stream: Stream) -> Prepared:
        """Make it ready. Raises Refused, or whatever the library raises."""


def require(package: str, distribution: str) -> Any:
    """The package, imported. Raises Absent."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package may be there and fail in its own ways
        try:
            found = f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            found = f"{distribution} is not installed"
        raise Absent(f"{found}: {package} cannot be imported: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Kind of an error and the start of its message."""
    text = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ---- PyTorch


def torch_tensor(x: DeviceArray, case: Case) -> Any:
    """A PyTorch tensor on the same memory."""
    torch = importlib.import_module("torch")
    # bfloat16 has no type string in the CUDA Array Interface: the bits travel as integers
    interface = {
        "shape": x.shape,
        "typestr": "<i2",
        "data": (x.address, False),
        "strides": None,
        "version": 3,
    }
    holder = type("Memory", (), {"__cuda_array_interface__": interface, "array": x})()
    return torch.as_tensor(holder, device="cuda").view(getattr(torch, case.dtype.numpy_name))


def torch_graph(calls: Sequence[Callable[[], Any]], repeat: int) -> Replay:
    """A graph of PyTorch's of `repeat` calls, through all in turns, to be replayed in a stream of ours."""
    torch = importlib.import_module("torch")
    for call in calls:  # workspaces are made outside the capture
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeat):
            calls[i % len(calls)]()

    def replay(stream: Stream) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
            graph.replay()

    return replay


def torch_queue(calls: Sequence[Callable[[], Any]], repeat: int) -> Replay:
    """The same without a graph: calls queued one by one, for what cannot be captured and takes the GPU long enough."""
    torch = importlib.import_module("torch")

    def replay(stream: Stream) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
            for i in range(repeat):
                calls[i % len(calls)]()

    return replay


class TorchPrepared(Prepared):
    """Calls of PyTorch, one for each set, captured or queued."""

    def __init__(self, case: Case, calls: Sequence[Callable[[], Any]], captured: bool) -> None:
        self.case, self.calls, self.captured = case, calls, captured
        self.out = calls[0]()  # [batch, heads, rows, head_dim] or packed; refuses here what it does not take

    def rows(self, batch: int, head: int, where: slice) -> Any:
        """Some rows of the first set's output."""
        return head_of(self.case, self.out, batch, head)[where].double().cpu().numpy()

    def sample(self, timer: Timer, repeat: int) -> Sample:
        """GPU time of a graph's replay, or of a queue."""
        return timer((torch_graph if self.captured else torch_queue)(self.calls, repeat), repeat)


class TorchPeer(Peer):
    """A peer that is called with PyTorch tensors.

    Parameters
    ----------
    make : function (case, q, k, v) -> function () -> tensor
        Binds a call whose result is in the layout of the case.
    packed_captured : bool
        Whether a graph takes its calls on packed sequences.
    """

    def __init__(
        self, version: str, how: str, make: Callable[..., Callable[[], Any]], packed_captured: bool = True
    ) -> None:
        self.version, self.how, self.make, self.packed_captured = version, how, make, packed_captured

    def prepare(self, sets: Sequence[Tensors], stream: Stream) -> Prepared:
        """Bind the calls, and make one."""
        case = sets[0].case
        calls = [self.make(case, *(torch_tensor(x.device[name], case) for name in "qkv")) for x in sets]
        return TorchPrepared(case, calls, self.packed_captured or case.lengths is None)


def import_torch() -> Any:
    """PyTorch, if it sees the GPU. Raises Absent."""
    torch = require("torch", "torch")
    if not torch.cuda.is_available():
        raise Absent(f"torch {torch.__version__} sees no GPU")
    return torch


def sdpa(
    backend: str, what: Callable[[Any], str], packed: Callable[..., Callable[[], Any]] | None = None
) -> Callable[[], Peer]:
    """The adapter of a backend of PyTorch's scaled_dot_product_attention; `what` names it, given PyTorch."""

    def adapter() -> Peer:
        torch = import_torch()
        attention = importlib.import_module("torch.nn.attention")
        choice = getattr(attention.SDPBackend, backend)

        def make(case: Case, q: Any, k: Any, v: Any) -> Callable[[], Any]:
            if case.lengths is not None:
                if packed is None:
                    raise Refused("no packed sequences through scaled_dot_product_attention")
                return packed(case, q, k, v)
            grouped = {"enable_gqa": True} if case.num_heads != case.num_heads_kv else {}

            def call() -> Any:
                with attention.sdpa_kernel(choice):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=case.causal, **grouped)

            if case.causal and case.seqlen_q != case.seqlen_k:
                raise Refused("its causal mask is aligned to the top left")
            return call

        return TorchPeer(
            f"PyTorch {torch.__version__}, {what(torch)}",
            f"scaled_dot_product_attention, backend {backend}; a graph of PyTorch's, events"
            + (f"; packed sequences: {PACKED[backend]}" if backend in PACKED else ""),
            make,
            packed_captured=backend != "CUDNN_ATTENTION",
        )

    return adapter


PACKED = {
    "FLASH_ATTENTION": "aten._flash_attention_forward",
    "CUDNN_ATTENTION": "aten._cudnn_attention_forward, which no graph takes: calls queued one by one",
}


def packed_offsets(case: Case, q: Any) -> Any:
    """cu_seqlens as a PyTorch tensor beside q."""
    return importlib.import_module("torch").as_tensor(cu_seqlens(case)).to(q.device)


def packed_flash(case: Case, q: Any, k: Any, v: Any) -> Callable[[], Any]:
    """FlashAttention-2 on packed sequences: the operator below torch.nn.attention.varlen."""
    operator = importlib.import_module("torch").ops.aten._flash_attention_forward
    offsets, longest = packed_offsets(case, q), case.seqlen_q
    return lambda: operator(q, k, v, offsets, offsets, longest, longest, 0.0, case.causal, False)[0]


def packed_cudnn(case: Case, q: Any, k: Any, v: Any) -> Callable[[], Any]:
    """Packed sequences through cuDNN: the operator that nested tensors end in."""
    operator = importlib.import_module("torch").ops.aten._cudnn_attention_forward
    offsets, longest = packed_offsets(case, q), case.seqlen_q
    return lambda: operator(q, k, v, None, offsets, offsets, longest, longest, False, 0.0, case.causal, False)[0]


def cublas() -> Peer:
    """Attention as three operations: batched GEMM, softmax, batched GEMM. Raises Absent."""
    torch = import_torch()

    def make(case: Case, q: Any, k: Any, v: Any) -> Callable[[], Any]:
        stages, out = cublas_stages(case, q, k, v)

        def call() -> Any:
            for stage in stages.values():
                stage()
            return out

        return call

    return TorchPeer(
        f"PyTorch {torch.__version__}, cuBLAS of CUDA {torch.version.cuda}",
        "baddbmm, softmax, bmm with the scores in memory, rounded to the inputs' dtype; a graph of PyTorch's, events",
        make,
    )


def cublas_stages(case: Case, q: Any, k: Any, v: Any) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The three operations by name, and the output of the last, [batch, heads, rows, head_dim]."""
    torch = importlib.import_module("torch")
    if case.lengths is not None or case.causal or case.num_heads != case.num_heads_kv:
        raise Refused("only full attention with a key head for each query head")
    q3, k3, v3 = (x.flatten(0, 1) for x in (q, k, v))
    s = torch.empty(case.batch * case.num_heads, case.seqlen_q, case.seqlen_k, dtype=q.dtype, device=q.device)
    p, o = torch.empty_like(s), torch.empty_like(q)
    return {
        "qk": lambda: torch.baddbmm(s, q3, k3.mT, beta=0, alpha=case.softmax_scale, out=s),
        "softmax": lambda: torch.softmax(s, -1, out=p),
        "pv": lambda: torch.bmm(p, v3, out=o.flatten(0, 1)),
    }, o


def flash_attention_4() -> Peer:
    """FlashAttention-4 of the package flash-attn-4. Raises Absent."""
    import_torch()
    cute = require("flash_attn.cute", "flash-attn-4")

    def make(case: Case, q: Any, k: Any, v: Any) -> Callable[[], Any]:
        def output(found: Any) -> Any:
            return found[0] if isinstance(found, tuple) else found

        if case.lengths is not None:
            offsets, longest = packed_offsets(case, q), case.seqlen_q
            return lambda: output(
                cute.flash_attn_varlen_func(
                    q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=longest, max_seqlen_k=longest,
                    causal=case.causal,
                )
            )  # fmt: skip
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return lambda: output(cute.flash_attn_func(q, k, v, causal=case.causal)).transpose(1, 2)

    return TorchPeer(
        f"flash-attn-4 {version('flash-attn-4')}",
        "flash_attn.cute on transposed views; a graph of PyTorch's, events",
        make,
    )


# ---- cuDNN without PyTorch


class CudnnPrepared(Prepared):
    """A graph of cuDNN's for a case, executed in a stream of ours and captured there."""

    def __init__(self, cudnn: Any, handle: Any, sets: Sequence[Tensors], stream: Stream) -> None:
        case = self.case = sets[0].case
        self.handle, self.stream = handle, stream
        kind = cudnn.data_type.BFLOAT16 if case.dtype is BF16 else cudnn.data_type.HALF
        graph = self.graph = cudnn.pygraph(
            io_data_type=kind,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=handle,
        )

        def tensor(name: str) -> Any:
            x = sets[0].device[name]
            return graph.tensor(name=name, dim=list(x.shape), stride=list(x.strides), data_type=kind)

        q, k, v = (tensor(name) for name in "qkv")
        o, _ = graph.sdpa(
            name="sdpa", q=q, k=k, v=v, generate_stats=False, attn_scale=case.softmax_scale, use_causal_mask=case.causal
        )
        first = sets[0].device["q"]
        o.set_output(True).set_dim(list(first.shape)).set_stride(list(first.strides)).set_data_type(kind)
        graph.build([cudnn.heur_mode.A])
        self.out = DeviceArray.empty(case.shapes["o"], case.dtype.to_numpy(), stream.device)
        self.workspace = DeviceArray.empty((max(graph.get_workspace_size(), 1),), np.uint8, stream.device)
        stream.device.synchronize()  # other streams may use the memory from here on
        self.packs = [
            {q: x.device["q"].address, k: x.device["k"].address, v: x.device["v"].address, o: self.out.address}
            for x in sets
        ]
        self._execute(0)
        self._host = self.out.to_numpy(stream=stream)

    def _execute(self, i: int) -> None:
        with self.stream.device.active():
            self.graph.execute(self.packs[i % len(self.packs)], self.workspace.address, handle=self.handle)

    def rows(self, batch: int, head: int, where: slice) -> Any:
        """Some rows of the first set's output."""
        return head_of(self.case, self._host, batch, head)[where]

    def sample(self, timer: Timer, repeat: int) -> Sample:
        """GPU time of a graph's replay."""
        with Graph.capture(self.stream) as graph:
            for i in range(repeat):
                self._execute(i)
        return timer(graph.replay, repeat)


class CudnnFrontend(Peer):
    """The package nvidia-cudnn-frontend."""

    def __init__(self) -> None:
        self.cudnn = require("cudnn", "nvidia-cudnn-frontend")
        self.handles: dict[int, Any] = {}
        self.version = f"cudnn-frontend {self.cudnn.__version__}, cuDNN {self.cudnn.backend_version()}"
        self.how = "pygraph.sdpa on device addresses, no PyTorch; captured in our graph, events"

    def prepare(self, sets: Sequence[Tensors], stream: Stream) -> Prepared:
        """Build the graph, and execute it once."""
        case = sets[0].case
        if case.lengths is not None:
            raise Refused("packed sequences are not tried through this adapter")
        if case.causal and case.seqlen_q != case.seqlen_k:
            raise Refused("its causal mask is aligned to the top left")
        with stream.device.active():
            if stream.handle not in self.handles:
                self.handles[stream.handle] = self.cudnn.create_handle()
                self.cudnn.set_stream(handle=self.handles[stream.handle], stream=stream.handle)
            return CudnnPrepared(self.cudnn, self.handles[stream.handle], sets, stream)


# ---- JAX


HOST_US = 100.0  # a call from Python takes about half of it


class JaxPrepared(Prepared):
    """One compiled function of `repeat` attentions, each with queries of its own: equal ones would be merged."""

    def __init__(self, jax: Any, sets: Sequence[Tensors]) -> None:
        self.jax, self.case = jax, sets[0].case
        q, k, v = (np.ascontiguousarray(sets[0].host[name].swapaxes(1, 2)) for name in "qkv")
        self.q, self.k, self.v = q, jax.device_put(k), jax.device_put(v)
        self._host = np.asarray(jax.jit(self._attention)(jax.device_put(q), self.k, self.v))

    def _attention(self, q: Any, k: Any, v: Any) -> Any:
        attention = self.jax.nn.dot_product_attention
        return attention(q, k, v, scale=self.case.softmax_scale, is_causal=self.case.causal, implementation="cudnn")

    def rows(self, batch: int, head: int, where: slice) -> Any:
        """Some rows of the output."""
        return self._host[batch, where, head]

    def sample(self, timer: Timer, repeat: int) -> Sample:
        """Wall time: JAX's own streams take none of our events."""
        count = min(repeat, 20)
        rng = np.random.default_rng(1)
        queries = [self.jax.device_put(rng.permuted(self.q, axis=1)) for _ in range(count)]
        together = self.jax.jit(lambda qs, k, v: [self._attention(q, k, v) for q in qs])
        compiled = together.lower(queries, self.k, self.v).compile()
        calls = max(1, repeat // count)

        def work() -> None:
            found = None
            for _ in range(calls):
                found = compiled(queries, self.k, self.v)
            self.jax.block_until_ready(found)

        sample = clock_sample(work, calls * count)
        if min(sample() for _ in range(3)) < HOST_US:
            raise Refused("so short a call is the host's time as much as the GPU's, and no event can tell them apart")
        return sample


class Jax(Peer):
    """JAX's dot_product_attention on cuDNN."""

    def __init__(self) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the others their memory
        self.jax = require("jax", "jax")
        if self.jax.default_backend() != "gpu":
            raise Absent(f"jax {self.jax.__version__} sees no GPU")
        self.version = f"JAX {self.jax.__version__}"
        self.how = (
            'dot_product_attention(implementation="cudnn"), up to 20 calls a compiled function, each on queries of its '
            f"own; wall time of a queue of these, not events: only calls of more than {HOST_US:g} us"
        )

    def prepare(self, sets: Sequence[Tensors], stream: Stream) -> Prepared:
        """Compile a call, and make it."""
        if len(sets) > 1 or sets[0].case.lengths is not None:
            raise Refused("only one set of dense tensors through this adapter")
        return JaxPrepared(self.jax, sets)


ADAPTERS: dict[str, Callable[[], Peer]] = {
    "FA2": sdpa("FLASH_ATTENTION", lambda torch: "FlashAttention-2 of its own", packed_flash),
    "cuDNN": sdpa("CUDNN_ATTENTION", lambda torch: f"cuDNN {torch.backends.cudnn.version()}", packed_cudnn),
    "FA4": flash_attention_4,
    "cudnn-frontend": CudnnFrontend,
    "JAX": Jax,
    "efficient": sdpa("EFFICIENT_ATTENTION", lambda torch: "memory-efficient attention (CUTLASS)"),
    "math": sdpa("MATH", lambda torch: "unfused reference path"),
    "cuBLAS": cublas,
}
"""By name, in the order of tables. The first is the one that most readers would use instead."""


NOT_ASKED_FOR = "not asked for in this run (--peers)"


def find(asked: Iterable[str]) -> tuple[dict[str, Peer], dict[str, Json]]:
    """The peers that are here, and the member "peers" of the results: all adapters, the absent ones with the reason."""
    asked = set(asked)
    found: dict[str, Peer] = {}
    members: dict[str, Json] = {}
    for name, adapter in ADAPTERS.items():
        if name not in asked:
            members[name] = {"absent": NOT_ASKED_FOR}
            continue
        try:
            found[name] = adapter()
            members[name] = {"version": found[name].version, "how": found[name].how}
        except Absent as reason:
            members[name] = {"absent": str(reason)}
    return found, members
