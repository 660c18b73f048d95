"""Record on a GPU what the golden cases give, as tests/golden/*.npz. `--list` shows the cases; nothing is emulated.

Each case runs in a worker process, so that one that faults or hangs costs only itself: it is reported, and the rest
goes on. Recorded cases replace those of the same name in the files; cases that left the table are dropped.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from golden import files  # noqa: E402
from golden.cases import CASES  # noqa: E402
from golden.kernel import Case, TensorMap  # noqa: E402

from flashcore_drv.runtime import Device, DeviceArray, Module, Stream, driver, is_emulated  # noqa: E402

TIMEOUT_S = 5.0


class _HostMemory:
    """Memory of another owner as a NumPy array."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (address, True), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def runs_on(arch: int, target: str) -> bool:
    """Whether a GPU of this compute capability takes PTX of a target."""
    number = target.removeprefix("sm_")
    return int(number[:-1]) == arch if number.endswith("a") else int(number) <= arch


def encoded(tensor_map: TensorMap, arrays: dict[str, DeviceArray]) -> bytes:
    """The 128 bytes of a tensor map, from the driver."""
    d: Any = driver.module()
    made = driver.call(
        "cuTensorMapEncodeTiled",
        getattr(d.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{tensor_map.kind}"),
        len(tensor_map.dims),
        arrays[tensor_map.array].address,
        [d.cuuint64_t(n) for n in tensor_map.dims],
        [d.cuuint64_t(n) for n in tensor_map.byte_strides or (16,)],  # without any, the driver says INVALID_VALUE
        [d.cuuint32_t(n) for n in tensor_map.box],
        [d.cuuint32_t(n) for n in tensor_map.steps],
        d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(d.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{tensor_map.swizzle}"),
        d.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_NONE,
        d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
        if tensor_map.fill_nan
        else d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    return np.array(_HostMemory(int(made.getPtr()), 128), copy=False).tobytes()


def run(case: Case, device: Device) -> bytes:
    """The output bytes of a case. Raises DriverError."""
    with device.active():
        stream = Stream(device, 0)
        initial = {**case.inputs, **{name: output.initial for name, output in case.outputs.items()}}
        arrays = {name: DeviceArray.from_numpy(np.ascontiguousarray(a), device) for name, a in initial.items()}
        handle = driver.call("cuModuleGetFunction", Module(device, case.ptx.encode() + b"\0").handle, b"golden")
        maps = [np.frombuffer(bytearray(encoded(m, arrays)), np.uint8) for m in case.maps]
        params = [*maps, np.array([a.address for a in arrays.values()], np.uint64)]
        table = np.array([p.__array_interface__["data"][0] for p in params], np.uint64)
        address = int(table.__array_interface__["data"][0])
        driver.call("cuLaunchKernel", handle, case.blocks, 1, 1, case.threads, 1, 1, 0, stream.handle, address, 0)
        device.synchronize()
        return files.joined(case, {name: arrays[name].to_numpy() for name in case.outputs})


def serve(pipe: Any) -> None:
    """A worker: takes names of cases, answers with bytes or the text of an error."""
    device = Device.current()
    pipe.send(None)
    while (name := pipe.recv()) is not None:
        try:
            pipe.send((True, run(CASES[name], device)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
            return  # the context may be lost


class Worker:
    """A process that runs cases, replaced when one of them breaks it."""

    def __init__(self) -> None:
        self.process: Any = None

    def record(self, name: str) -> tuple[bool, bytes | str]:
        """Whether a case ran, and its bytes or what went wrong."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            self.pipe.recv()
        self.pipe.send(name)
        try:
            answer: tuple[bool, bytes | str] = (
                self.pipe.recv() if self.pipe.poll(TIMEOUT_S) else (False, f"no answer in {TIMEOUT_S:.0f} s")
            )
        except EOFError:
            answer = False, "the worker process died"
        if not answer[0]:
            self.process.kill()
            self.process = None
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.pipe.send(None)
            self.process.join()


def conditions(device: Device, commit: str) -> dict[str, str]:
    """What belongs to a recording."""
    version = int(driver.call("cuDriverGetVersion"))
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        release = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError):
        release = "unknown"
    return {
        "gpu": device.name,
        "compute_capability": f"{device.arch // 10}.{device.arch % 10}",
        "driver": release,
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit,
    }


def head() -> str:
    """The commit that is checked out."""
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def save(folder: Path, made: dict[str, bytes], run_conditions: dict[str, str]) -> None:
    """Merge new goldens into the files, and their conditions into the list of recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in sorted({CASES[name].family for name in made}):
        goldens = {name: held for name, held in files.read(family).items() if name in CASES}
        goldens |= {n: (CASES[n].digest(), data) for n, data in made.items() if CASES[n].family == family}
        files.write(family, goldens, folder)
    path = files.FOLDER / files.RECORDED
    recordings = json.loads(path.read_text()) if path.exists() else []
    for earlier in recordings:
        earlier["cases"] = [name for name in earlier["cases"] if name in CASES and name not in made]
    same = [r for r in recordings if {**run_conditions, "cases": r["cases"]} == r]
    together = sorted({*made, *(name for r in same for name in r["cases"])})
    recordings = [r for r in recordings if r["cases"] and r not in same] + [{**run_conditions, "cases": together}]
    (folder / files.RECORDED).write_text(json.dumps(recordings, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cases to record, such as 'wgmma/*'")
    parser.add_argument("--list", action="store_true", help="list the cases and their golden's state; needs no GPU")
    parser.add_argument("--out", type=Path, default=files.FOLDER, help="folder to write to")
    parser.add_argument("--commit", help="what to note as the commit (default: git's HEAD)")
    options = parser.parse_args()
    names = [name for name in CASES if fnmatch.fnmatch(name, options.only)]
    if options.list:
        held = {name: h for family in {c.family for c in CASES.values()} for name, h in files.read(family).items()}
        for name in names:
            digest = held.get(name, ("",))[0]
            state = "missing" if not digest else "recorded" if digest == CASES[name].digest() else "stale"
            print(f"{state:9}{CASES[name].target:8}{name}")
        return 0
    if is_emulated():
        print(
            "error: golden files are recorded on a GPU, and there is none: the emulator is what they test",
            file=sys.stderr,
        )
        return 2
    device = Device.current()
    start, worker, made, failed = time.monotonic(), Worker(), {}, []
    for i, name in enumerate(names, 1):
        if not runs_on(device.arch, CASES[name].target):
            failed.append((name, f"needs {CASES[name].target}, this is {device.name}"))
            continue
        good, answer = worker.record(name)
        if isinstance(answer, bytes):
            made[name] = answer
        else:
            failed.append((name, answer))
        if i % 50 == 0 or not good or i == len(names):
            print(
                f"{time.monotonic() - start:6.1f} s  {i}/{len(names)}  {name}{'' if good else f'  FAILED: {answer}'}",
                flush=True,
            )
    worker.close()
    if made:
        save(options.out, made, conditions(device, options.commit or head()))
    print(f"{len(made)} cases recorded in {options.out}, {len(failed)} not")
    for name, reason in failed:
        print(f"  {name}: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
