"""The wheel in dist/ put into an empty environment, and the README's example and ``info`` run from an empty folder.

python scripts/try_wheel.py              fetches what the wheel requires
python scripts/try_wheel.py --offline    takes that from this Python's environment: where there is no network

Kernels run where FLASHCORE_DRIVER says, by default on the GPU if there is one; there the README's example with arrays
of other libraries runs, too, with those that are installed. Nothing of the repository is used but the wheel and the
README.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_LINE = "(1, 128, 8, 64) (1, 8, 128)"  # of what the README's example prints
LIBRARIES = ("cupy", "jax", "torch")  # in the order of the README's example with their arrays
BEFORE_THEM = """
import numpy as np
import flashcore_drv as fc
q_np, k_np, v_np = (np.random.default_rng(i).standard_normal((1, 128, 8, 64)).astype(np.float16) for i in range(3))
q, k, v = (fc.DeviceArray.from_numpy(x) for x in (q_np, k_np, v_np))
"""


def find_wheel() -> Path:
    wheels = sorted((ROOT / "dist").glob("flashcore_drv-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"error: {len(wheels)} wheels in {ROOT / 'dist'}; make wheel leaves one")
    return wheels[0]


def clean_environment() -> dict[str, str]:
    """Without the variables that could lead to this repository."""
    return {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONPATH", "PYTHONHOME", "FLASHCORE_BUILD", "FLASHCORE_EMULATED_ARCH")
    }


def run(command: list[str | Path], folder: Path) -> str:
    """What a command prints. Exits if it fails."""
    done = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command[:4]))} …:\n{done.stdout}{done.stderr}")
    return done.stdout


def install(wheel: Path, folder: Path, offline: bool) -> Path:
    """A new environment with the wheel; its Python."""
    run([sys.executable, "-m", "venv", folder], folder.parent)
    python = folder / "bin" / "python"
    if offline:  # other packages of this environment are found after those of the new one
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "this.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")) + "\n")
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, *(["--no-deps", "--no-index", "--force-reinstall"] if offline else []), wheel], folder.parent)
    return python


def with_libraries(python: Path, folder: Path) -> str:
    """Runs the README's example with arrays of other libraries, those that are installed. Which it was."""
    (example,) = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    parts = dict(zip(LIBRARIES, re.split(r"\n(?=import )", example), strict=True))
    look = f"import importlib.util as u; print(*[n for n in {LIBRARIES} if u.find_spec(n)])"
    there = run([python, "-c", look], folder).split()
    run([python, "-c", "\n".join([BEFORE_THEM, *[part for name, part in parts.items() if name in there]])], folder)
    return ", ".join(name if name in there else f"{name} left out: not installed" for name in LIBRARIES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="requirements from this Python's environment")
    args = parser.parse_args()
    wheel = find_wheel()
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name) / "empty", time.monotonic()
        folder.mkdir()
        python = install(wheel, Path(name) / "environment", args.offline)
        print(f"{wheel.name} installed in {time.monotonic() - began:.1f} s", flush=True)
        info = json.loads(run([python, "-m", "flashcore_drv", "info", "--json", "--problem", "1,8,512,64"], folder))
        if not Path(info["kernels"]["folder"]).is_relative_to(Path(name).resolve()):
            sys.exit(f"error: kernels from {info['kernels']['folder']}, not from the wheel")
        example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        began = time.monotonic()
        said = run([python, "-c", "\n".join(example)], folder)
        if said.splitlines()[:1] != [FIRST_LINE]:
            sys.exit(f"error: the README's example printed {said!r}")
        served = f"{info['driver']['kind']} ({', '.join(d['name'] for d in info['devices'])})"
        print(f"the README's example on {served}: {time.monotonic() - began:.1f} s")
        if info["driver"]["kind"] == "cuda":
            print(f"the README's example with arrays of {with_libraries(python, folder)}")
        print(f"kernels in the wheel: {', '.join(info['kernels']['archs'])}; PTX: {info['kernels']['ptx']}")


if __name__ == "__main__":
    main()
