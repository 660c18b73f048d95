"""Problems on a command line: ``4x32/8x4096x4096x128``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashcore_drv.dtypes import F16, DType
from flashcore_drv.interop import view_of
from flashcore_drv.problem import Problem
from flashcore_drv.validation import make_problem

_PATTERN = r"(\d+)x(\d+)(?:/(\d+))?x(\d+)x(\d+)x(\d+)"


@dataclass(frozen=True)
class Shape:
    """A problem by its sizes, in the layout bhsd."""

    batch: int
    heads: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int

    @staticmethod
    def parse(text: str) -> Shape | None:
        """Read batch x heads x seqlen_q x seqlen_k x head_dim, where heads may be 32/8; None if the text is none."""
        match = re.fullmatch(_PATTERN, text)
        if match is None:
            return None
        return Shape(*(int(x or match[2]) for x in match.groups()))

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.heads_kv else f"{self.heads}/{self.heads_kv}"
        return f"{self.batch}x{heads}x{self.seqlen_q}x{self.seqlen_k}x{self.head_dim}"

    @property
    def dims(self) -> dict[str, tuple[int, int, int, int]]:
        """The sizes of q, k, v and o."""
        q = (self.batch, self.heads, self.seqlen_q, self.head_dim)
        kv = (self.batch, self.heads_kv, self.seqlen_k, self.head_dim)
        return {"q": q, "k": kv, "v": kv, "o": q}

    def problem(self, causal: bool, dtype: DType = F16, arrays: dict[str, Any] | None = None) -> Problem:
        """The problem on arrays q, k, v, o of these sizes; without them on memory that nobody touches."""
        if arrays is None:
            arrays = {name: np.empty(dims, dtype.to_numpy()) for name, dims in self.dims.items()}
        return make_problem(*(view_of(x, name) for name, x in arrays.items()), causal=causal, layout="bhsd")
