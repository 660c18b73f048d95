"""Bugs planted in the kernels are caught; what cannot be is listed in mutants/table.py with the reason."""

import concurrent.futures
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from mutants.plant import PROBLEMS, caught, run
from mutants.table import ESCAPES, MUTANTS, Mutant, family_of

from flashcore_drv.images import build_folder


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Future[str | None]]]:
    """All mutants, two at a time, each in a process of its own."""
    if not (build_folder() / "compiler.txt").is_file() or not shutil.which("g++"):
        pytest.skip("mutants are compiled: this needs make cubin and a host compiler")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        yield {mutant.name: pool.submit(caught, mutant) for mutant in MUTANTS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_is_caught(outcomes: dict[str, Future[str | None]], mutant: Mutant) -> None:
    how = outcomes[mutant.name].result()
    print(how)
    assert how is not None, f"not caught in {mutant.stem} over {PROBLEMS[family_of(mutant.stem)]}"


@pytest.mark.parametrize("stem", sorted({m.stem for m in MUTANTS}))
def test_the_kernel_without_a_bug_passes(stem: str) -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(run, stem).result() is None


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 60
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    assert all(reason for reason in ESCAPES.values())
