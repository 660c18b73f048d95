"""Bugs planted in the kernels are caught; what cannot be is listed in mutants/table.py with the reason."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
from mutants.plant import PROBLEMS, ROOT, caught, planted, run
from mutants.table import ESCAPES, MUTANTS, Mutant, family_of

from flashcore_drv.images import build_folder

STEMS = sorted({mutant.stem for mutant in MUTANTS})


@pytest.fixture(scope="module")
def alone() -> Callable:
    """Calls a function in a process of its own, a fork of one that has imported what it needs and no more."""
    if not (build_folder() / "compiler.txt").is_file() or not shutil.which("g++"):
        pytest.skip("mutants are compiled: this needs make cubin and a host compiler")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mutants.plant"])
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])

    def call(function, argument):
        with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=context) as pool:
            patch.setenv("PYTHONPATH", path)  # the server's: before Python 3.12 it gets no sys.path
            return pool.submit(function, argument).result()

    return call


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_is_caught(alone: Callable, mutant: Mutant) -> None:
    how = alone(caught, mutant)
    print(how)
    assert how is not None, f"not caught in {mutant.stem} over {PROBLEMS[family_of(mutant.stem)]}"


@pytest.mark.parametrize("stem", STEMS)
def test_the_kernel_without_a_bug_passes(alone: Callable, stem: str) -> None:
    assert alone(run, stem) is None


def test_texts_to_replace_are_those_of_today() -> None:
    assert all(planted(mutant) != (ROOT / "cuda" / mutant.source).read_text() for mutant in MUTANTS)


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 60
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert all(reason for reason in ESCAPES.values())
