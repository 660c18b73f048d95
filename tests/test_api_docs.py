"""The check of the reference (``make docs``) finds what is wrong with a docstring."""

import importlib
import sys
import types

import pytest
from support import ROOT

import flashcore_drv as fc

sys.path.insert(0, str(ROOT / "scripts"))
pytest.importorskip("pdoc")
docs = importlib.import_module("docs")

TEXT = '''
def good(q, *, scale=1):
    """Scale.

    Parameters
    ----------
    q : array
        What.
    scale : float
        By how much: see :func:`attention` and :class:`~flashcore_drv.Device`.
    """


def other(q, k, *, scale=1):
    """As :func:`good`, of two.

    Parameters
    ----------
    k : array
        The other.

    Returns
    -------
    array
        Both.
    """
'''


def complaints(text):
    """Of a module with this text, as those of the package."""
    module = types.ModuleType("flashcore_drv.written")
    sys.modules[module.__name__] = module
    try:
        exec(text, module.__dict__)
        for x in vars(module).values():
            if isinstance(x, types.FunctionType):
                x.__module__ = module.__name__
        seen = list(docs.members(docs.pdoc.doc.Module(module)))
        functions = {of.qualname: of for of in seen if isinstance(of, docs.pdoc.doc.Function)}
        return [f"{of.name}: {what}" for of in seen for what in docs.complaints(of, functions)]
    finally:
        del sys.modules[module.__name__]


def test_what_is_right() -> None:
    assert complaints(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("q, *, scale=1", "q, *, scale=1, causal=False", "good: parameter causal is not documented"),
        ("q : array", "x : array", "good: parameter x does not exist"),
        ("As :func:`good`", "As good", "other: parameter q is not documented"),
        (":func:`attention`", ":func:`attentive`", "good: attentive does not exist"),
        ("~flashcore_drv.Device", "~flashcore_drv.Devise", "good: flashcore_drv.Devise does not exist"),
        ('"""As :func:`good`, of two.', '"""', "other: parameter scale is not documented"),
    ],
)
def test_what_is_wrong(old, new, complaint) -> None:
    assert old in TEXT
    assert complaint in complaints(TEXT.replace(old, new))


def test_no_docstring() -> None:
    assert complaints("def bare(): ...") == ["bare: no docstring"]


def test_the_reference_has_what_the_package_offers_and_nothing_else() -> None:
    of = docs.pdoc.doc.Module(fc)
    assert {m.qualname.split(".")[0] for m in docs.members(of) if m.modulename == "flashcore_drv"} == (
        set(fc.__all__) - {"unfused"}
    )
