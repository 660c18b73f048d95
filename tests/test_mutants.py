"""Bugs planted in the kernels are caught; what cannot be is listed in mutants/table.py with the reason."""

import concurrent.futures
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from mutants.plant import PROBLEMS, ROOT, caught, planted, run
from mutants.table import ESCAPES, MUTANTS, Mutant, family_of

from flashcore_drv.images import build_folder

STEMS = sorted({mutant.stem for mutant in MUTANTS})


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Future[str | None]]]:
    """All mutants by name and their kernels without a bug by stem, two at a time, each in a process of its own."""
    if not (build_folder() / "compiler.txt").is_file() or not shutil.which("g++"):
        pytest.skip("mutants are compiled: this needs make cubin and a host compiler")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        mutants = {mutant.name: pool.submit(caught, mutant) for mutant in MUTANTS}
        yield mutants | {stem: pool.submit(run, stem) for stem in STEMS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_is_caught(outcomes: dict[str, Future[str | None]], mutant: Mutant) -> None:
    how = outcomes[mutant.name].result()
    print(how)
    assert how is not None, f"not caught in {mutant.stem} over {PROBLEMS[family_of(mutant.stem)]}"


@pytest.mark.parametrize("stem", STEMS)
def test_the_kernel_without_a_bug_passes(outcomes: dict[str, Future[str | None]], stem: str) -> None:
    assert outcomes[stem].result() is None


def test_texts_to_replace_are_those_of_today() -> None:
    assert all(planted(mutant) != (ROOT / "cuda" / mutant.source).read_text() for mutant in MUTANTS)


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 60
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert all(reason for reason in ESCAPES.values())
