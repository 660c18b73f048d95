"""The generated blocks of a Markdown text: ``<!-- report:NAME -->`` … ``<!-- /report:NAME -->``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_BLOCK = re.compile(r"(<!-- report:(\w+) -->\n)(.*?)(<!-- /report:\2 -->)", re.S)
_MARKER = re.compile(r"<!-- /?report:\w+ -->")


class MarkerError(ValueError):
    """The markers of a text are not those of the blocks."""


def read(text: str, names: Sequence[str]) -> dict[str, str]:
    """The blocks of a text, by name. Raises MarkerError unless every name has one pair of markers, and no other has."""
    found = [match[2] for match in _BLOCK.finditer(text)]
    broken = set(_MARKER.findall(_BLOCK.sub("", text)))
    if broken:
        raise MarkerError(f"{', '.join(sorted(broken))}: without its counterpart")
    missing, unknown = sorted(set(names) - set(found)), sorted(set(found) - set(names))
    if missing:
        pairs = "; ".join(f"<!-- report:{name} --> and <!-- /report:{name} -->" for name in missing)
        raise MarkerError(f"lines are missing: {pairs}")
    if unknown:
        raise MarkerError(f"no such block: {', '.join(unknown)}; there are {', '.join(names)}")
    if len(found) != len(set(found)):
        raise MarkerError(f"a block is there twice: {', '.join(sorted({x for x in found if found.count(x) > 1}))}")
    return {match[2]: match[3] for match in _BLOCK.finditer(text)}


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """The text with other contents in its blocks."""
    return _BLOCK.sub(lambda match: match[1] + blocks[match[2]] + match[4], text)
