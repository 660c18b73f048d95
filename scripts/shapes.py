"""Problems of contiguous tensors by their sizes; on a command line ``4x32/8x4096x4096x128``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.plan import contiguous
from flashcore_drv.problem import UNBOUNDED, Problem

_PATTERN = r"(\d+)x(\d+)(?:/(\d+))?x(\d+)x(\d+)x(\d+)"
DTYPES = {d.name: d for d in (F16, BF16)}


@dataclass(frozen=True)
class Shape:
    """A problem of contiguous tensors [batch, heads, rows, head_dim]."""

    batch: int
    heads: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    dtype: str = "f16"
    causal: bool = False

    @staticmethod
    def parse(text: str) -> Shape | None:
        """Read batch x heads x seqlen_q x seqlen_k x head_dim, where heads may be 32/8; None if the text is none."""
        match = re.fullmatch(_PATTERN, text)
        if match is None:
            return None
        return Shape(*(int(x or match[2]) for x in match.groups()))

    def __str__(self) -> str:
        """The sizes, as :meth:`parse` reads them."""
        heads = f"{self.heads}" if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        return f"{self.batch}x{heads}x{self.seqlen_q}x{self.seqlen_k}x{self.head_dim}"

    @property
    def dims(self) -> dict[str, tuple[int, int, int, int]]:
        """The sizes of q, k, v and o."""
        q = (self.batch, self.heads, self.seqlen_q, self.head_dim)
        kv = (self.batch, self.heads_kv, self.seqlen_k, self.head_dim)
        return {"q": q, "k": kv, "v": kv, "o": q}

    @property
    def problem(self) -> Problem:
        """As dispatch sees it."""
        q, k, v, o = (contiguous(*dims) for dims in self.dims.values())
        right = 0 if self.causal else UNBOUNDED
        return Problem(q, k, v, o, DTYPES[self.dtype], self.head_dim**-0.5, window_right=right)
