"""``make docs``: the reference of what ``import flashcore_drv`` offers, as HTML in build/docs, from docstrings.

Fails on a warning of pdoc, a public name without a docstring, parameters of a docstring that are not those of the
signature, and a cross-reference to what does not exist.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pdoc
import pdoc.doc
import pdoc.render

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "flashcore_drv"
ROLE = re.compile(r":(?:mod|func|data|class|meth|attr|exc):`~?([\w.]+)`")
ROW = re.compile(r"^(\**\w+(?:, \**\w+)*)(?: :.*)?$", re.M)
PARAMETERS = re.compile(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", re.M | re.S)


def members(of: pdoc.doc.Namespace[Any]) -> Iterator[pdoc.doc.Doc[Any]]:
    """What is shown of a module or class, and what is shown of that."""
    for member in of.own_members:
        if not member.name.startswith("_"):
            yield member
            if isinstance(member, pdoc.doc.Namespace):
                yield from members(member)


def complaints(of: pdoc.doc.Doc[Any], functions: dict[str, pdoc.doc.Function]) -> list[str]:
    """What is wrong with the docstring of one name, given every function by its name in the package."""
    text = of.docstring
    if not text.strip():  # a class describes its attributes itself
        return [] if isinstance(of, pdoc.doc.Variable) else ["no docstring"]
    references = ROLE.findall(text)
    found = [f"{name} does not exist" for name in references if not exists(name, of)]
    if isinstance(of, pdoc.doc.Function) and "Parameters\n--" in text:
        taken = {name for name in of.signature.parameters if name not in ("self", "cls")}
        there, elsewhere = documented(of), [documented(functions[name]) for name in references if name in functions]
        found += [f"parameter {name} is not documented" for name in sorted(taken.difference(there, *elsewhere))]
        found += [f"parameter {name} does not exist" for name in sorted(there - taken)]
    return found


def documented(of: pdoc.doc.Function) -> set[str]:
    """The names in the section Parameters of a docstring."""
    rows = [r for section in PARAMETERS.findall(of.docstring) for r in ROW.findall(section)]
    return {name.lstrip("*") for row in rows for name in row.split(", ")}


def exists(name: str, of: pdoc.doc.Doc[Any]) -> bool:
    """Whether a reference means something: in the package, the module or class where it stands, or as a full name."""
    module, (outermost, *_) = of.taken_from[0], of.taken_from[1].split(".")
    owner = sys.modules[module]
    top, _, rest = name.partition(".")
    places = [sys.modules[PACKAGE], owner, getattr(owner, outermost, None)]
    return any(resolves(place, name) for place in places) or (rest != "" and resolves(sys.modules.get(top), rest))


def resolves(place: object, name: str) -> bool:
    """Whether a dotted name leads somewhere from an object."""
    for part in name.split("."):
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


def main() -> None:
    warnings.simplefilter("error")
    pdoc.render.configure(docformat="numpy", show_source=False, search=False)
    pdoc.pdoc(PACKAGE, output_directory=ROOT / "build" / "docs")
    module = pdoc.doc.Module(sys.modules[PACKAGE])
    seen = list(members(module))
    functions = {of.qualname: of for of in seen if isinstance(of, pdoc.doc.Function)}
    wrong = [f"{of.fullname}: {what}" for of in [module, *seen] for what in complaints(of, functions)]
    if wrong:
        sys.exit("\n".join(["error:", *wrong]))
    print(f"build/docs/{PACKAGE}.html: {len(seen)} names")


if __name__ == "__main__":
    main()
