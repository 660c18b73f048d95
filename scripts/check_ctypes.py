"""Proves that our sources do not use ctypes: they neither import it nor name it (as ``array.ctypes`` does).

cuda.bindings and NumPy import ctypes themselves, so this looks at our files' syntax trees, not at ``sys.modules``.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

FORBIDDEN = ("ctypes", "_ctypes", "ctypeslib")


def uses(tree: ast.AST) -> list[int]:
    """Lines that import or name ctypes, also as a literal: importlib, __import__, getattr, sys.modules[...]."""
    lines = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(a.name for a in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, (ast.Call, ast.Subscript)):
            values = (
                [node.slice] if isinstance(node, ast.Subscript) else [*node.args, *(k.value for k in node.keywords)]
            )
            names = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
        if any(part in FORBIDDEN for name in names for part in name.split(".")):
            lines.append(node.lineno)  # type: ignore[attr-defined]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="+", type=Path)
    files = [f for folder in parser.parse_args().folder for f in sorted(folder.rglob("*.py"))]
    found = [f"{f}:{line}: uses ctypes" for f in files for line in uses(ast.parse(f.read_text(), str(f)))]
    print("\n".join(found) or f"no ctypes in {len(files)} files")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
