"""Times of our kernels beside what one would use instead, with the conditions of the measurement.

    python scripts/bench.py                      every suite that this machine can run
    python scripts/bench.py forward --quick      fewer points, rounds and peers
    python scripts/bench.py --list               suites and rows, and what is here to compare with
    python scripts/bench.py --json benchmarks/nvidia-h200   also as data: <date>-<suite>.json in that folder
    python scripts/bench.py cold size --wheel dist/x.whl     what is installed is that wheel, in a folder of its own

suites, each described in scripts/benchmark/suite_<name>.py: reference, small, forward, cliff, accuracy (GPU), host,
cold, size, emulator (no GPU). On a Hopper both our families of kernels are measured, if the package has both. Results
are checked before anything is timed; what is wrong is reported, not timed. A run that was broken off goes on where it
stopped: rows that are in the file, of the same sources and conditions, stay. With --quick and --json the seconds of
each suite are data too, <date>-quick.json, unless rows were taken over.

Exit status: 0, 1 if a result of ours is wrong, 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmark import conditions, results, suites
from benchmark.peers import ADAPTERS, find
from benchmark.suites import Run, Suite

import flashcore_drv as fc
from flashcore_drv.runtime import Device, is_emulated

ROUNDS, QUICK_ROUNDS = 20, 8


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; --help lists the options\n")


def names(text: str) -> tuple[str, ...]:
    """Names of peers, separated by commas."""
    found = tuple(x.strip() for x in text.split(",") if x.strip())
    if unknown := [x for x in found if x not in ADAPTERS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known peers are {', '.join(ADAPTERS)}")
    return found


def at_least_two(text: str) -> int:
    """A number of rounds: a spread needs two."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 2 is wanted")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("suite", nargs="*", metavar="SUITE", help=f"of {', '.join(suites.SUITES)}; by default all that run here")
    add("--json", type=Path, metavar="FOLDER_OR_FILE", help="where to write the results as data, and to go on from")
    add("--quick", action="store_true", help="fewer points, rounds and peers: all suites in under 5 minutes")
    add("--filter", default="", metavar="TEXT", help="only rows whose id holds the text")
    add("--rounds", type=at_least_two, help=f"of each candidate (default: {ROUNDS}, quick {QUICK_ROUNDS})")
    add("--peers", type=names, metavar="A,B", help=f"of {', '.join(ADAPTERS)}; by default those of the suite")
    add("--wheel", type=Path, metavar="FILE", help="a built wheel of flashcore_drv, for cold and size")
    add("--list", action="store_true", help="suites, rows and peers, without measuring")
    args = parser.parse_args()
    if unknown := [x for x in args.suite if x not in suites.SUITES]:
        parser.error(f"suite {', '.join(unknown)}; known: {', '.join(suites.SUITES)}")
    if args.wheel is not None and not args.wheel.is_file():
        parser.error(f"--wheel {args.wheel}: there is no such file")
    return args


def lacks(suite: Suite) -> str | None:
    """Why a suite cannot run on this machine; None if it can."""
    if suite.NEEDS == "gpu" and is_emulated():
        return "it needs a GPU: emulated time says nothing of one"
    if suite.NEEDS == "emulator" and not is_emulated():
        return "it times the emulator: FLASHCORE_DRIVER=emulator"
    return None


def json_path(target: Path | None, date: str, suite: str, count: int) -> Path | None:
    """The file of a suite: the one that was named, or <date>-<suite>.json in the folder that was."""
    if target is None or target.suffix != ".json":
        return target and target / f"{date}-{suite}.json"
    if count > 1:
        sys.exit(f"error: --json {target} is one file and there are {count} suites: name a folder")
    return target


def show_list(chosen: list[str], args: argparse.Namespace) -> None:
    """Print what there is."""
    for name in chosen:
        suite = suites.load(name)
        reason = lacks(suite)
        print(f"{name}{f': not here: {reason}' if reason else ''}")
        for row in suite.ids(args.quick):
            if args.filter in row:
                print(f"    {row}")
    print("peers")
    for name, peer in find(args.peers if args.peers is not None else ADAPTERS)[1].items():
        what = f"absent: {peer['absent']}" if "absent" in peer else f"{peer['version']}; {peer['how']}"
        print(f"    {name}: {what}")


@dataclass(frozen=True)
class Measured:
    """A suite that was run: its results, and what they took."""

    found: results.Json
    seconds: float
    resumed: int


def measure(name: str, args: argparse.Namespace, count: int) -> Measured:
    """Run a suite."""
    began = time.monotonic()
    suite = suites.load(name)
    device = Device.get(0)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    method = dict(suite.METHOD) | (
        {"peers asked for": ", ".join(args.peers) or "none"} if args.peers is not None else {}
    )
    if args.wheel is not None and name in ("cold", "size"):
        method["package"] = f"flashcore_drv installed from {args.wheel.name}"
    found = conditions.conditions(method, quick=args.quick, packages=suite.PACKAGES)
    if name in results.ON_GPU | results.BESIDE_GPU:
        found |= conditions.gpu_conditions(device, rounds=rounds)
    record = results.Record(name, found, json_path(args.json, found["date"], name, count))
    if record.resumed:
        print(f"{name}: {record.resumed} rows are there already: {record.path}", file=sys.stderr)
    suite.run(Run(record, device, args.quick, rounds, args.filter, args.peers, args.wheel))
    record.save()
    return Measured(record.to_json(), time.monotonic() - began, record.resumed)


def report_times(measured: dict[str, Measured], args: argparse.Namespace) -> None:
    """Print the seconds of every suite and of all; of a quick run keep them."""
    parts = ", ".join(f"{name} {x.seconds:.0f}" for name, x in measured.items())
    print(f"{sum(x.seconds for x in measured.values()):.0f} s in all: {parts}")
    if not args.quick or args.filter or args.json is None or args.json.suffix == ".json" or is_emulated():
        return
    if resumed := [name for name, x in measured.items() if x.resumed]:
        print(f"not kept: rows of {', '.join(resumed)} were there already", file=sys.stderr)
        return
    found = conditions.conditions({"timing": "wall time of each suite with --quick, in one process"}, quick=True)
    found |= conditions.gpu_conditions(Device.get(0), rounds=args.rounds or QUICK_ROUNDS)
    record = results.Record("quick", found)
    record.path = json_path(args.json, found["date"], "quick", len(measured))
    for name, x in measured.items():
        record.rows[name] = {"id": name, "seconds": round(x.seconds, 1), "rows": len(x.found["rows"])}
    record.save()


def main() -> None:
    args = parse_arguments()
    try:
        Device.get(0)
    except (fc.NoDriverError, fc.DriverError, fc.HandleError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    chosen = args.suite or list(suites.SUITES)
    if args.list:
        show_list(chosen, args)
        return
    runnable = []
    for name in chosen:
        if reason := lacks(suites.load(name)):
            if args.suite:
                print(f"error: the suite {name} cannot run here: {reason}", file=sys.stderr)
                sys.exit(2)
        else:
            runnable.append(name)
    wrong, measured = [], {}
    for name in runnable:
        measured[name] = measure(name, args, len(runnable))
        found = measured[name].found
        print("\n".join(suites.load(name).lines(found)), end="\n\n", flush=True)
        wrong += [row["id"] for row in found["rows"] if results.wrong_members(row)]
    report_times(measured, args)
    if wrong:
        print(f"error: our result is wrong and was not timed: {', '.join(wrong)}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
