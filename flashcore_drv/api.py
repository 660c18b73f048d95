"""What a user calls."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from . import unfused
from .arguments import check_flag
from .dispatch import IMPLS
from .dtypes import F32
from .errors import InvalidArgument
from .interop import ArrayView, refuse_immutable, view_of
from .operands import NewArray, Operands, one_device
from .plans import Expected, Plan, expected, expected_output
from .prepared import SIDES, Prepared, stream_handle, stream_number
from .recall import Again, Cache, fits, glance, look
from .runtime import Device, Stream
from .validation import make_problem

CACHE = Cache(256)
"""What calls prepared: by what a look at arrays on a GPU shows, and by problem where some are on the host."""


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    sinks: Any = None,
    seqused_k: Any = None,
    layout: str = "bshd",
    impl: str = "auto",
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """O = softmax(scores) @ V, exact, in float32 accumulation (FlashAttention-2, arXiv:2307.08691).

    A sequence's last query is at its last key: query i is at place i + seqlen_k - seqlen_q. Its score for key j is

        softcap(softmax_scale · q_i · k_j) + bias[i, j] - alibi_slope · |i + seqlen_k - seqlen_q - j|

    Parameters
    ----------
    q : array, [batch, seqlen_q, num_heads, head_dim] or, for layout "bhsd", [batch, num_heads, seqlen_q, head_dim]
        float16 or bfloat16 (as NumPy dtype: ml_dtypes). NumPy arrays are copied to the GPU and the result back. A
        DeviceArray, or an array on the GPU of a library that has ``__cuda_array_interface__`` or ``__dlpack__`` (CuPy,
        JAX, Numba, PyTorch; a StridedMemoryView of cuda.core), is used where it is, with any strides whose last is 1.
        head_dim is a multiple of 8, up to 256 (128 unfused).
    k : array, the same with seqlen_k and num_heads_kv
        num_heads_kv divides num_heads; query head h reads head h // (num_heads // num_heads_kv).
    v : array, as k, with head_dim_v columns
        head_dim_v, a multiple of 8 up to 256, may differ from head_dim.
    softmax_scale : float, optional
        Factor of the products; by default head_dim ** -0.5.
    causal : bool
        A query sees no key after its own place.
    window_size : (int or None, int or None), optional
        (left, right): keys before and after its own place that a query sees; None or -1: all. (w - 1, 0) is a sliding
        window of w keys. With `causal` the right side is 0.
    softcap : float
        softcap(x) = softcap · tanh(x / softcap), which keeps it between -softcap and softcap (Gemma 2,
        arXiv:2408.00118); 0: x.
    alibi_slopes : array, [num_heads] or [batch, num_heads], float32, optional
        What a score loses for each key between it and the query's place (ALiBi, arXiv:2108.12409).
    bias : array, [batch, num_heads, seqlen_q, seqlen_k], any of them may be 1, optional
        float16, bfloat16 or float32; the last dimension contiguous or broadcast. -inf hides a key.
    sinks : array, [num_heads], float32, optional
        The logit of each head's sink, which takes part in the softmax and adds nothing to the result: the denominator
        gains exp(sink), and so does that of `lse` (arXiv:2309.17453; a logit a head: gpt-oss, arXiv:2508.10925).
    seqused_k : array, [batch], int32, optional
        How many of its keys each sequence has; the rest of k and v is not read. It takes the place of seqlen_k above.
    layout : str
        "bshd" or "bhsd", of q, k, v and the result.
    impl : str
        "auto" or "flash": one fused kernel. On compute capability 9.0 that is of the family "flash_sm90" (TMA, wgmma)
        where TMA can express q, k and v, but for small problems and head_dim up to 32, where another was measured to
        be faster; elsewhere of "flash_sm80". Either can be asked for by name. "unfused": three, with the scores in
        memory between them, for sequences of at least 1 and without window_size and what follows it here (see
        :mod:`flashcore_drv.unfused`).
    return_lse : bool
        Also return log sum exp of the scores (natural logarithm), float32 [batch, num_heads, seqlen_q].
    batch_invariant : bool
        Make the bits of a sequence's result independent of the batch and of the number of heads. The order in which
        keys are added up depends on them only where small problems get a kernel of their own, which is left out (up to
        twice the time there), and where a window hides nothing even of the longest packed sequence; nothing elsewhere.
    out : array, optional
        Where to write the result: shape of q with head_dim_v columns, dtype of q, not overlapping an input. Not an
        array of JAX, which never change.
    stream : optional
        The CUDA stream to work on: an int handle or an object with ``__cuda_stream__``, ``cuda_stream`` or ``ptr``.
        By default the legacy default stream. With device arrays the call does not wait. The stream does, for what
        makes an array elsewhere, where its library tells: by the stream of its interface (CuPy, Numba) or by DLPack
        (all of bfloat16, JAX as long as it computes). PyTorch's float16 tells nothing.

    Returns
    -------
    array, or (array, array) with `return_lse`
        `out`, or a new NumPy array for NumPy inputs and a new DeviceArray otherwise. A query with nothing to attend to
        gets 0, and as lse its sink, -inf without sinks.

    Raises
    ------
    InvalidArgument
        Before anything reaches the GPU: the argument, its value and what is allowed.
    Unsupported
        If no kernel is built for the problem on this GPU.
    KernelImageError
        If the kernel's file is missing or stale.
    DriverError
        If the driver fails: OutOfMemory, LaunchError, ImageRefused, ContextLost, or another.
    NoDriverError
        Without a driver, with one that is too old (DriverTooOld), and in a process that was forked after the first use.

    Notes
    -----
    What a call works out is kept for the next one of the same shapes, strides, dtypes, alignment and options, for 256
    of them. With arrays on the GPU and `out` such a call takes microseconds; :func:`plan_attention` takes less still.
    What depends on addresses is checked every time, except that another library's array is believed to be in the
    allocation that the driver named when its address was first seen. Most is known again of the last 1024 quadruples of
    addresses of q, k, v and `out`, in half the time. An array of JAX in a layout other than C's is refused; at an
    address that was seen before, it is believed to be laid out as the one before.

    alibi_slopes, bias, sinks and seqused_k may be NumPy arrays beside q, k and v on the GPU: they are copied in the
    stream. NumPy values are checked (finite slopes, seqused_k from 0 to seqlen_k). Those on the GPU cannot be, without
    waiting for it; lengths are clamped there, so that wrong ones make the result wrong and nothing else.
    """
    options: tuple[Any, ...] | None = None
    if (
        out is not None
        and return_lse is False
        and alibi_slopes is bias is sinks is seqused_k is None
        and causal.__class__ is batch_invariant.__class__ is bool  # 1 equals True, and is no flag
        and (seen := glance(q, k, v, out)) is not None
    ):
        addresses, layouts, producer = seen
        options = softmax_scale, causal, softcap, layout, impl, batch_invariant, window_size
        if window_size is not None:
            options += _kinds(window_size)
        known = CACHE.again.get(addresses)
        if known is not None:
            layouts_then, options_then, prepared, launch = known
            try:
                again = layouts_then == layouts and options_then == options
            except ValueError:  # an array among the options, which is neither equal nor not
                again = False
            if again:
                prepared.recent = True
                if stream.__class__ is Stream and stream.device is prepared.device:
                    handle = stream.raw  # None of a closed one, which is refused when it fires
                else:
                    handle = stream_handle(prepared.device, stream)
                if producer is None or producer == (handle or 1):  # 0 and 1 are one stream
                    prepared.fire(launch, handle)
                    return out
    return _attend(
        (q, k, v, out, alibi_slopes, bias, sinks, seqused_k),
        stream,
        impl,
        softmax_scale,
        causal,
        window_size,
        softcap,
        layout,
        return_lse,
        batch_invariant,
        keep=None if options is None else (addresses, layouts, options),
    )


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    sinks: Any = None,
    seqused_k: Any = None,
    impl: str = "auto",
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Attention of sequences of different lengths, packed one after the other; see :func:`attention`.

    Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1] and the keys cu_seqlens_k[b] to
    cu_seqlens_k[b + 1], of which it uses the first seqused_k[b]. Either may be none.

    Parameters
    ----------
    q : array, [total_q, num_heads, head_dim]
        The queries of all sequences. Types, strides and places as in :func:`attention`.
    k, v : array, [total_k, num_heads_kv, head_dim], [total_k, num_heads_kv, head_dim_v]
        The keys and values of all sequences.
    cu_seqlens_q, cu_seqlens_k : array, [batch + 1], int32
        Where each sequence begins, and where the last ends: from 0, never falling, at most total_q (total_k). Rows of
        the result after the last sequence are not written (0 in a new NumPy array).
    max_seqlen_q, max_seqlen_k : int
        The longest sequence's queries and keys, or more. Queries past max_seqlen_q are not computed.
    softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, seqused_k, return_lse, batch_invariant
        As in :func:`attention`, with each sequence's own lengths; lse is [num_heads, total_q].
    bias : None
        Refused: a bias is a rectangle of one length for all.
    impl : str
        As in :func:`attention`, but not "unfused".
    out, stream
        As in :func:`attention`.

    Returns
    -------
    array, [total_q, num_heads, head_dim_v], or (array, array) with `return_lse`

    Raises
    ------
    InvalidArgument, Unsupported, KernelImageError, DriverError
        As :func:`attention`.

    Notes
    -----
    cu_seqlens_q and cu_seqlens_k may be NumPy arrays or on the GPU, as alibi_slopes in :func:`attention`, and so are
    they checked or clamped: to rows that there are, and to max_seqlen_q rows a sequence.
    """
    _refuse_bias(bias)
    return _attend(
        (q, k, v, out, alibi_slopes, None, sinks, seqused_k, cu_seqlens_q, cu_seqlens_k),
        stream,
        impl,
        softmax_scale,
        causal,
        window_size,
        softcap,
        "bshd",
        return_lse,
        batch_invariant,
        (max_seqlen_q, max_seqlen_k),
    )


def plan_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    sinks: Any = None,
    seqused_k: Any = None,
    layout: str = "bshd",
    impl: str = "auto",
    return_lse: bool = False,
    batch_invariant: bool = False,
    dependent_launch: bool = False,
    out: Any = None,
    device: Device | int | None = None,
) -> Plan:
    """Do all of :func:`attention` that does not depend on where the arrays are and what is in them.

    Parameters
    ----------
    q, k, v, alibi_slopes, bias, sinks, seqused_k, out : array or ArraySpec
        Only shape, dtype, strides and alignment of the address are looked at. A NumPy array stands for its C-contiguous
        copy on the GPU. Without `out` that is C-contiguous; without a small input calls have none. A plan for arrays
        that start on 16 bytes takes no others; one for less aligned arrays takes any.
    softmax_scale, causal, window_size, softcap, layout, return_lse, batch_invariant
        As in :func:`attention`.
    impl : str
        As in :func:`attention`. "unfused" needs memory for each call, and is refused.
    dependent_launch : bool
        Let the kernel begin while the kernel before it in the stream, or in a captured graph, ends, so that its set-up
        takes no time (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"). It reads and
        writes no array before that kernel has ended, whoever's it is: results are the same. The gain is a part of a
        small problem's time. On compute capability 9.0, for the kernels "flash_sm90" and that for small problems; for
        others it has no effect, which `dependent_launch` of the plan tells.
    device : Device or int, optional
        Where calls run; by default where the arrays are, or the current GPU.

    Returns
    -------
    Plan
        To be called with the arrays, or their addresses: :meth:`Plan.__call__`.

    Raises
    ------
    InvalidArgument, Unsupported, KernelImageError, DriverError
        As :func:`attention`.
    """
    likes = (q, k, v, out, alibi_slopes, bias, sinks, seqused_k)
    return _plan(
        likes,
        device,
        impl,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        layout=layout,
        return_lse=return_lse,
        batch_invariant=batch_invariant,
        dependent_launch=dependent_launch,
    )


def plan_attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    sinks: Any = None,
    seqused_k: Any = None,
    impl: str = "auto",
    return_lse: bool = False,
    batch_invariant: bool = False,
    dependent_launch: bool = False,
    out: Any = None,
    device: Device | int | None = None,
) -> Plan:
    """Do all of :func:`attention_varlen` that does not depend on where the arrays are and what is in them.

    Lengths may change from call to call: up to max_seqlen_q and max_seqlen_k a sequence, and the planned total_q and
    total_k together. Parameters, result and errors are those of :func:`plan_attention`, and

    Parameters
    ----------
    cu_seqlens_q, cu_seqlens_k : array or ArraySpec, [batch + 1], int32
        Their shape only.
    max_seqlen_q, max_seqlen_k : int
        The longest sequence that any call will have.
    """
    _refuse_bias(bias)
    likes = (q, k, v, out, alibi_slopes, None, sinks, seqused_k, cu_seqlens_q, cu_seqlens_k)
    return _plan(
        likes,
        device,
        impl,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        max_seqlens=(max_seqlen_q, max_seqlen_k),
        return_lse=return_lse,
        batch_invariant=batch_invariant,
        dependent_launch=dependent_launch,
    )


def _kinds(window_size: Any) -> tuple[type, ...]:
    """Classes of the sides of a window, where they have any: 1 equals True and 1.0, and is another side."""
    return tuple(map(type, window_size)) if isinstance(window_size, (tuple, list)) else (type(window_size),)


def _refuse_bias(bias: Any) -> None:
    if bias is not None:
        raise InvalidArgument(
            "bias of packed sequences: a bias is [batch, num_heads, seqlen_q, seqlen_k], of one length for all, and "
            "theirs differ; allowed: None (attention() takes a bias, and alibi_slopes work here)"
        )


def _plan(
    likes: tuple[Any, ...], device: Device | int | None, impl: str, dependent_launch: Any, **options: Any
) -> Plan:
    """The plan for q, k, v, out and the small inputs in the order of SIDES, None where there is none."""
    if impl == "unfused":
        allowed = ", ".join(x for x in IMPLS if x != impl)
        raise InvalidArgument(f"impl='unfused' needs memory for the scores of each call; allowed in a plan: {allowed}")
    (q, q_place), (k, k_place), (v, v_place) = (expected(x, name) for x, name in zip(likes, "qkv"))
    out, out_place = expected_output(likes[3], q, v)
    small = [expected(x, name) for x, name in zip(likes[4:], SIDES) if x is not None]
    sides: dict[str, Expected] = {x.name: x for x, _ in small}
    wanted = Device.get(device) if isinstance(device, int) else device
    places = {x for x in (wanted, q_place, k_place, v_place, out_place, *(x for _, x in small)) if x is not None}
    if len(places) > 1:
        raise InvalidArgument(f"arrays and device are on {', '.join(sorted(map(repr, places)))}; allowed: one GPU")
    dependent = check_flag(dependent_launch, "dependent_launch")
    problem = make_problem(q, k, v, out, sides, **options)
    arguments = q, k, v, out, *sides.values()
    return Plan(problem, next(iter(places), None) or Device.current(), impl, arguments, dependent)


def _attend(
    arrays: tuple[Any, ...],
    stream: Any,
    impl: str,
    softmax_scale: Any,
    causal: Any,
    window_size: Any,
    softcap: Any,
    layout: str,
    return_lse: Any,
    batch_invariant: Any,
    max_seqlens: tuple[Any, Any] | None = None,
    keep: tuple[tuple[int, ...], tuple[Any, ...], tuple[Any, ...]] | None = None,
) -> Any:
    """Attention of q, k, v into out, with the small inputs in the order of SIDES, None where there is none.

    `keep` is what a call of one kernel is remembered by: addresses, layouts and options.

    Views of the arrays make a problem, the problem is prepared, and what is prepared is launched. Where the arrays are
    on a GPU and look like those of an earlier call, what that one prepared is taken.
    """
    key: Hashable = None
    prepared = None
    with_out = arrays[3] is not None
    sight = look(arrays)
    if sight is not None:
        layouts, addresses, ends, producers = sight
        flags = causal, return_lse, batch_invariant
        kinds = causal.__class__, return_lse.__class__, batch_invariant.__class__  # 1 equals True, and is no flag
        try:
            if window_size is not None or max_seqlens is not None:
                kinds += tuple(map(type, (*(window_size or ()), *(max_seqlens or ()))))
            key = layouts, impl, softmax_scale, softcap, layout, flags, kinds, window_size, max_seqlens
            prepared = CACHE.get(key)
        except (TypeError, ValueError):  # something that cannot be hashed, or is no pair
            key = None
        if prepared is not None:
            if not fits(prepared, addresses, ends, with_out):
                prepared = None  # whatever is wrong is found below, and said
            elif with_out and prepared.fused and return_lse is False:
                handle = stream_handle(prepared.device, stream)
                if producers is None or producers == {handle or 1}:  # 0 and 1 are one stream
                    q, k, v, o, *small = addresses
                    launch = prepared.aim(q, k, v, o, 0, small)
                    prepared.fire(launch, handle)
                    if keep is not None:
                        CACHE.keep(keep[0], Again(*keep[1:], prepared, launch))
                    return arrays[3]
    number = stream_number(stream)
    views = view_of(arrays[0], "q", number), view_of(arrays[1], "k", number), view_of(arrays[2], "v", number)
    sides = {name: view_of(x, name, number) for name, x in zip(SIDES, arrays[4:]) if x is not None}
    out: ArrayView | NewArray
    if with_out:
        refuse_immutable(arrays[3], "out")
        out = view_of(arrays[3], "out", number)
    else:
        out = NewArray("out", views[0].shape[:-1] + views[2].shape[-1:], views[0].dtype)
    if prepared is None:
        problem = make_problem(
            *views,
            out,
            sides,
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
            layout=layout,
            max_seqlens=max_seqlens,
            return_lse=return_lse,
            batch_invariant=batch_invariant,
        )
        given = (*views, out) if isinstance(out, ArrayView) else views
        device = one_device(given, sides.values()) or Device.current()
    else:
        problem, device = prepared.problem, prepared.device
    operands = Operands(device, stream, on_host=views[0].device is None)
    handle = operands.stream.handle
    if prepared is None:
        low_bits = {name: x.gpu_address % 16 for name, x in sides.items()}
        if key is None:  # values on the host are checked at every call
            key = problem, str(impl), device.ordinal, tuple(low_bits.values())
            prepared = CACHE.get(key)
        if prepared is None:
            prepared = Prepared(problem, device, impl, low_bits)
            prepared.extents = tuple(x.span[1] - x.span[0] for x in (*given, *sides.values()))
            CACHE.put(key, prepared)
    with operands:
        partial = problem.varlen is not None
        address, result = operands.output(out, partial)
        places = {"o": address} | {x.name: operands.input(x) for x in views} | operands.side_inputs(sides.values())
        lse = None
        if problem.return_lse:
            places["lse"], lse = operands.output(NewArray("lse", problem.lse_shape, F32.to_numpy()), partial)
        if prepared.fused:
            q, k, v, o = (places[name] for name in "qkvo")
            launch = prepared.aim(q, k, v, o, places.get("lse", 0), [places[name] for name in prepared.sides])
            prepared.fire(launch, handle)
        else:
            unfused.attention(problem, prepared.kernels, operands, places)
    return (result, lse) if problem.return_lse else result
