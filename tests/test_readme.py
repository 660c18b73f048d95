"""What the README says to type works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

# Commands that this very CI runs (.ci/run), or that tests/test_build.py and tests/test_sanitize.py do.
ELSEWHERE = {
    "make run", "make test", "make cubin", 'make cubin ARCHS="80 86 89 90"', "make wheel", "make docs",
    "pip install -e .", "python scripts/try_wheel.py", "python scripts/sanitize.py --quick",
}  # fmt: skip
SCRIPTS = sorted(set(re.findall(r"`(python (?:scripts/|-m flashcore_drv )[^`]+)`", README)) - ELSEWHERE)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run([sys.executable, "-c", "\n".join(examples)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 128, 8, 64) (1, 8, 128)\n"


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_command_runs(command: str) -> None:
    arguments = [sys.executable, *command.split()[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_other_command_is_named() -> None:
    assert SCRIPTS
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    typed = set(re.findall(r"`((?:make|pip|python)\b[^`]*)`", prose)) - {"make"}
    block = re.findall(r"```sh\n(.*?)```", README, re.S)
    typed |= {line.split("#")[0].strip() for text in block for line in text.splitlines() if line.strip()}
    assert typed - set(SCRIPTS) <= ELSEWHERE


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)", README + CONTRIBUTING))))
def test_a_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


PATH = r"`((?:docs|scripts|tests|cuda|benchmarks|flashcore_drv)/[^` <*]*)`"


@pytest.mark.parametrize("path", sorted(set(re.findall(PATH, README + CONTRIBUTING))))
def test_a_path_exists(path: str) -> None:
    assert (ROOT / path).exists()
