"""An attention problem: shapes, dtype, strides and options, frozen and hashable. No CUDA here, and no validation."""

from __future__ import annotations

from dataclasses import dataclass

from .dtypes import DType

MAX_SEQLEN = 1 << 30  # row and key indices stay far from the end of int32
MAX_EXTENT = 1 << 31  # batch and heads, as int32
UNBOUNDED = MAX_SEQLEN
"""A side of the window that hides nothing."""


@dataclass(frozen=True)
class Matrices:
    """A tensor [batch, heads, rows, cols] whose cols are contiguous; strides in elements, 0 along a dimension of 1.

    Packed sequences (varlen) have `batch` the number of sequences, `rows` their largest length and `batch_stride` 0:
    sequence b begins cu_seqlens[b] rows after the first.
    """

    batch: int
    heads: int
    rows: int
    cols: int
    batch_stride: int
    head_stride: int
    row_stride: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, rows, cols)."""
        return self.batch, self.heads, self.rows, self.cols


@dataclass(frozen=True)
class Bias:
    """What is added to the scores, as if it were [batch, num_heads, seqlen_q, seqlen_k].

    Attributes
    ----------
    dtype : DType
        float16, bfloat16 or float32.
    dims : Matrices
        The broadcast shape; strides are 0 along broadcast dimensions.
    col_stride : int
        1, or 0 where all keys have the same.
    """

    dtype: DType
    dims: Matrices
    col_stride: int


@dataclass(frozen=True)
class Packed:
    """Rows of q and o, and of k and v, of all sequences together."""

    total_q: int
    total_k: int


@dataclass(frozen=True)
class Problem:
    """softmax(scores) @ V for num_heads query heads on num_heads_kv key and value heads.

    With offset = seqlen_k - seqlen_q (of each sequence, where lengths vary), query i gives key j the score

        softcap(softmax_scale · q_i · k_j) + bias[i, j] - alibi_slope · |i + offset - j|

    if i + offset - window_left <= j <= i + offset + window_right, and does not see it otherwise.

    Attributes
    ----------
    q : Matrices
        [batch, num_heads, seqlen_q, head_dim]
    k : Matrices
        [batch, num_heads_kv, seqlen_k, head_dim]
    v : Matrices
        [batch, num_heads_kv, seqlen_k, head_dim_v]
    o : Matrices
        [batch, num_heads, seqlen_q, head_dim_v]
    dtype : DType
        Of q, k, v and o.
    softmax_scale : float
        Factor of the products.
    window_left, window_right : int
        Keys that a query sees before and after its own place; UNBOUNDED: all.
    softcap : float
        softcap(x) = softcap · tanh(x / softcap); 0: x.
    alibi_batch_stride : int or None
        Elements between the slopes of two sequences, 0 or num_heads; None: no ALiBi.
    bias : Bias or None
        Added to the scores.
    sinks : bool
        Whether each head has a logit that takes part in the softmax and attends to nothing.
    seqused_k : bool
        Whether each sequence has fewer keys, by an array of lengths.
    varlen : Packed or None
        Totals of packed sequences; None: all sequences are of the same length.
    return_lse : bool
        Whether log sum exp of the scores is wanted, float32 [batch, num_heads, seqlen_q]; packed: [num_heads, total_q].
    aligned : bool
        Whether every row of q, k, v and o starts on 16 bytes.
    batch_invariant : bool
        Whether the bits of a sequence must not depend on the batch.
    """

    q: Matrices
    k: Matrices
    v: Matrices
    o: Matrices
    dtype: DType
    softmax_scale: float
    window_left: int = UNBOUNDED
    window_right: int = UNBOUNDED
    softcap: float = 0.0
    alibi_batch_stride: int | None = None
    bias: Bias | None = None
    sinks: bool = False
    seqused_k: bool = False
    varlen: Packed | None = None
    return_lse: bool = False
    aligned: bool = True
    batch_invariant: bool = False

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.q.batch

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.q.heads

    @property
    def num_heads_kv(self) -> int:
        """Key and value heads."""
        return self.k.heads

    @property
    def seqlen_q(self) -> int:
        """Queries of a sequence; where lengths vary, of the longest."""
        return self.q.rows

    @property
    def seqlen_k(self) -> int:
        """Keys of a sequence; where lengths vary, of the longest."""
        return self.k.rows

    @property
    def head_dim(self) -> int:
        """Columns of q and k."""
        return self.q.cols

    @property
    def head_dim_v(self) -> int:
        """Columns of v and o."""
        return self.v.cols

    @property
    def windowed(self) -> bool:
        """Whether some key may be hidden from some query."""
        return self.window_left < UNBOUNDED or self.window_right < UNBOUNDED

    @property
    def causal(self) -> bool:
        """Whether a query sees all keys up to its own place and none after it."""
        return self.window_left >= UNBOUNDED and self.window_right == 0

    @property
    def one_length(self) -> bool:
        """Whether all sequences are of the same length, which is known here."""
        return self.varlen is None and not self.seqused_k

    @property
    def scored(self) -> bool:
        """Whether scores are more than softmax_scale · q · k."""
        return bool(self.softcap) or self.alibi_batch_stride is not None or self.bias is not None

    @property
    def lse_shape(self) -> tuple[int, ...]:
        """Of log sum exp, a contiguous array."""
        if self.varlen:
            return self.num_heads, self.varlen.total_q
        return self.batch, self.num_heads, self.seqlen_q

    @property
    def flops(self) -> int:
        """Floating-point operations of both products, of visible scores only; all sequences as long as the longest."""
        scores = visible_scores(self.seqlen_q, self.seqlen_k, self.window_left, self.window_right)
        return 2 * self.batch * self.num_heads * scores * (self.head_dim + self.head_dim_v)

    @property
    def min_bytes(self) -> int:
        """Bytes that any implementation must move: q, k, v and bias read once, o and lse written once."""
        packed = self.varlen or Packed(self.batch * self.seqlen_q, self.batch * self.seqlen_k)
        columns = self.head_dim + self.head_dim_v
        elements = columns * (self.num_heads * packed.total_q + self.num_heads_kv * packed.total_k)
        lse = self.num_heads * packed.total_q * 4 if self.return_lse else 0
        bias = 0
        if self.bias:
            x = self.bias.dims
            strides = x.batch_stride, x.head_stride, x.row_stride, self.bias.col_stride
            bias = self.bias.dtype.itemsize
            for n, stride in zip(x.shape, strides):
                bias *= n if stride else min(n, 1)
        return elements * self.dtype.itemsize + lse + bias


@dataclass(frozen=True)
class MergeProblem:
    """Two results over disjoint sets of keys, to be made one.

    Attributes
    ----------
    out_a, out_b, o : Matrices
        [batch, num_heads, seqlen_q, head_dim_v]; packed sequences are one batch.
    lse_a, lse_b, lse : Matrices
        [batch, num_heads, seqlen_q, 1]
    dtype : DType
        Of out_a, out_b and o.
    aligned : bool
        Whether every row of out_a, out_b and o starts on 16 bytes.
    """

    out_a: Matrices
    lse_a: Matrices
    out_b: Matrices
    lse_b: Matrices
    o: Matrices
    lse: Matrices
    dtype: DType
    aligned: bool


def visible_scores(seqlen_q: int, seqlen_k: int, window_left: int, window_right: int) -> int:
    """Pairs of a query and a key that it sees."""
    offset = seqlen_k - seqlen_q
    return _keys_up_to(seqlen_q, seqlen_k, offset + window_right) - _keys_up_to(
        seqlen_q, seqlen_k, offset - window_left - 1
    )


def _keys_up_to(seqlen_q: int, seqlen_k: int, diagonal: int) -> int:
    """Pairs with key <= query + diagonal: the sum of min(max(query + diagonal + 1, 0), seqlen_k)."""

    def positive(end: int) -> int:  # the sum of all positive integers below `end`
        return end * (end - 1) // 2 if end > 0 else 0

    first = diagonal + 1
    all_keys = positive(first + seqlen_q) - positive(first)
    beyond = positive(first + seqlen_q - seqlen_k) - positive(first - seqlen_k)
    return all_keys - beyond
