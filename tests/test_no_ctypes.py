"""The check that our sources do not use ctypes: it passes on them and sees every way to use it."""

import pytest
from support import ROOT, run_python

CHECK = ROOT / "scripts" / "check_ctypes.py"

USES = {
    "import": "import ctypes",
    "import among others": "import os, ctypes",
    "import under another name": "import ctypes as c",
    "import of a submodule": "import ctypes.util",
    "import of the extension": "import _ctypes",
    "from import": "from ctypes import c_int",
    "from import of a submodule": "from ctypes.util import find_library",
    "import from another module": "from numpy import ctypes",
    "import of a module of NumPy": "import numpy.ctypeslib",
    "import from NumPy": "from numpy import ctypeslib",
    "attribute": "address = array.ctypes.data",
    "name": "print(ctypes)",
    "importlib": 'importlib.import_module("ctypes")',
    "importlib with a keyword": 'importlib.import_module(name="ctypes")',
    "__import__": '__import__("ctypes")',
    "sys.modules": 'sys.modules["ctypes"]',
    "getattr": 'getattr(array, "ctypes")',
    "inside a function": "def f():\n    if x:\n        import ctypes",
}

HARMLESS = """
'''This text names ctypes, and so does the next line.'''
# import ctypes
word = "we do not use ctypes"
my_ctypes_free_module = 1
"""


def test_our_sources_pass() -> None:
    ran = run_python(CHECK, "flashcore_drv", "scripts")
    assert ran.returncode == 0, ran.stdout
    files = sum(1 for folder in ("flashcore_drv", "scripts") for _ in (ROOT / folder).rglob("*.py"))
    assert ran.stdout.strip() == f"no ctypes in {files} files"


@pytest.mark.parametrize("use", USES)
def test_a_use_is_found(use, tmp_path) -> None:
    source = USES[use]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "planted.py").write_text(f"'''A module.'''\n{source}\n")
    (tmp_path / "clean.py").write_text("x = 1\n")
    ran = run_python(CHECK, tmp_path)
    line = 2 + source[: source.index("ctypes")].count("\n")
    assert ran.returncode == 1
    assert ran.stdout.splitlines()[0] == f"{tmp_path / 'deep' / 'planted.py'}:{line}: uses ctypes"


def test_talk_about_it_is_no_use(tmp_path) -> None:
    (tmp_path / "clean.py").write_text(HARMLESS)
    ran = run_python(CHECK, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "no ctypes in 1 files\n")
