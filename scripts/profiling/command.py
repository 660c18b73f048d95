"""The command line of scripts/profile.py."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from benchmark.conditions import commit

from flashcore_drv.errors import InvalidArgument, KernelImageError, Unsupported
from flashcore_drv.runtime import Device, DriverError, NoDriverError, is_emulated

from . import ncu
from .launch import WARM, Work, work_of
from .verdict import Verdict

SCRIPT = Path(__file__).resolve().parent.parent / "profile.py"
PAGES = {"raw.csv": ("raw", "--print-units", "base"), "source.csv": ("source", "--print-source", "cuda,sass")}
ABOUT = "about.json"  # the problem and the conditions


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; --help lists the options\n")


def conditions(device: Device) -> dict[str, str]:
    """What a reader needs to repeat the counts."""
    return {
        "gpu": device.name,
        "arch": f"sm_{device.arch}",
        "ncu": ncu.version(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "method": f"one launch after {WARM} others; clocks and caches left alone; standard normal inputs",
    }


def profile(work: Work, device: Device, child: list[str], folder: Path) -> None:
    """Run the launches under ncu and leave its CSV in a folder. Raises NcuError."""
    problem = f"{work.shape} {'causal' if work.causal else 'full'}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "launch.ncu-rep")
        ncu.collect(work.spec.stem, work.skip, [sys.executable, SCRIPT, "--launch", *child], report)
        for name, page in PAGES.items():
            (folder / name).write_text(ncu.export(report, *page))
    (folder / ABOUT).write_text(json.dumps({"problem": problem, "conditions": conditions(device)}, indent=1) + "\n")


def judge(folder: Path) -> tuple[Verdict, dict[str, str]]:
    """The verdict on the CSV of ncu in a folder, and the conditions of the launch. Raises NcuError."""
    if not (folder / "raw.csv").is_file() or not (folder / ABOUT).is_file():
        raise ncu.NcuError(f"{folder} has no raw.csv with {ABOUT}")
    about = json.loads((folder / ABOUT).read_text())
    launch, numbers = ncu.read_raw((folder / "raw.csv").read_text())
    source = folder / "source.csv"
    lines = ncu.read_source(source.read_text()) if source.is_file() else []
    kernel = launch["Kernel Name"].split("(")[0]
    verdict = Verdict(
        kernel, about["problem"], about["conditions"]["gpu"], ncu.metrics(numbers), ncu.stalls(numbers), lines
    )
    return verdict, about["conditions"]


def folders(root: Path) -> list[Path]:
    """Those of single launches: the one given, or those in it."""
    return [root] if (root / "raw.csv").is_file() else sorted(p.parent for p in root.glob("*/raw.csv"))


def envelope(judged: list[tuple[Verdict, dict[str, str]]]) -> dict[str, Any]:
    """The verdicts as results, with the conditions of the first."""
    return {"suite": "profile", "conditions": judged[0][1], "rows": [verdict.to_json() for verdict, _ in judged]}


def main() -> None:
    """See scripts/profile.py."""
    parser = Parser(description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="STEM|PROBLEM")
    parser.add_argument("--causal", action="store_true", help="of a problem")
    parser.add_argument("--dtype", choices=["f16", "bf16"], default="f16", help="of a problem")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the CSV of ncu here, in a folder for each")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="judge such folders; needs no GPU")
    parser.add_argument("--launch", action="store_true", help="only launch: what ncu runs")
    args = parser.parse_args()
    if bool(args.what) == bool(args.read):
        parser.error("give kernels or problems, or --read FOLDER")
    judged = []
    try:
        if args.read:
            judged = [judge(folder) for folder in folders(args.read)]
            if not judged:
                raise ncu.NcuError(f"{args.read} has no raw.csv")
        elif is_emulated() and not args.launch:
            raise NoDriverError("there is no GPU here, only the emulator; scripts/sanitize.py counts on it")
        device = None if args.read else Device.current()
        for what in args.what if device else ():
            work = work_of(what, args.causal, args.dtype, device.arch, device)
            if args.launch:
                work.run()
                continue
            child = [what, "--dtype", args.dtype, *(["--causal"] if args.causal else [])]
            with tempfile.TemporaryDirectory() as scratch:
                folder = args.save / what.replace("/", "-") if args.save else Path(scratch)
                profile(work, device, child, folder)
                judged.append(judge(folder))
    except (ncu.NcuError, NoDriverError, DriverError, KernelImageError, InvalidArgument, Unsupported, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    if judged:
        texts = "\n\n".join(verdict.text() for verdict, _ in judged)
        print(json.dumps(envelope(judged), indent=1) if args.json else texts)
