"""Nsight Compute: which counters, how it is called, how its CSV is read."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_WAVEFRONTS = "l1tex__data_pipe_lsu_wavefronts"
_CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared"
_ACTIVE, _ELAPSED = "avg.pct_of_peak_sustained_active", "avg.pct_of_peak_sustained_elapsed"

METRICS = {
    "ns": "gpu__time_duration.sum",
    "cycles": "sm__cycles_elapsed.max",
    "hz": "sm__cycles_elapsed.avg.per_second",
    "issue": f"smsp__issue_active.{_ACTIVE}",
    "tensor": f"sm__pipe_tensor_op_hmma_cycles_active.{_ACTIVE}",
    "fma": f"sm__pipe_fma_cycles_active.{_ACTIVE}",
    "alu": f"sm__pipe_alu_cycles_active.{_ACTIVE}",
    "mufu": f"sm__inst_executed_pipe_xu.{_ACTIVE}",
    "lsu": f"sm__inst_executed_pipe_lsu.{_ACTIVE}",
    "shared_memory": f"{_WAVEFRONTS}.{_ELAPSED}",
    "l2": f"lts__t_sectors.{_ELAPSED}",
    "l2_hits": "lts__t_sector_hit_rate.pct",
    "dram": f"dram__cycles_active.{_ELAPSED}",
    "hmma": "sm__inst_executed_pipe_tensor_op_hmma.sum",
    "ldsm": "smsp__inst_executed_op_ldsm.sum",
    "load_wavefronts": f"{_WAVEFRONTS}_mem_shared_op_ld.sum",
    "store_wavefronts": f"{_WAVEFRONTS}_mem_shared_op_st.sum",
    "copy_wavefronts": "smsp__sass_l1tex_data_pipe_lsu_wavefronts_mem_shared_op_ldgsts.sum",
    "load_conflicts": f"{_CONFLICTS}_op_ld.sum",
    "store_conflicts": f"{_CONFLICTS}_op_st.sum",
    "warps": f"sm__warps_active.{_ACTIVE}",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block_dynamic",
    "threads": "launch__block_size",
    "blocks": "launch__grid_size",
    "sms": "launch__sm_count",
    "blocks_by_registers": "launch__occupancy_limit_registers",
    "blocks_by_shared_memory": "launch__occupancy_limit_shared_mem",
    "blocks_by_warps": "launch__occupancy_limit_warps",
    "blocks_by_blocks": "launch__occupancy_limit_blocks",
    "waves": "launch__waves_per_multiprocessor",
}
"""Our names for ncu's counters; sm_80 to sm_90 have them all (ncu 2025.3 --query-metrics --chip ad104, gh100)."""

SECTIONS = ("WarpStateStats", "SourceCounters")  # why warps wait: on the whole, and by line
_STALL, _PER_ISSUE = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
_SAMPLES = "Warp Stall Sampling (All Samples)"


class NcuError(RuntimeError):
    """ncu cannot do it here: why, and what to do."""


def find_ncu() -> str:
    """The program. Raises NcuError."""
    found = shutil.which("ncu") or next((str(p) for p in [Path("/usr/local/cuda/bin/ncu")] if p.is_file()), None)
    if found is None:
        raise NcuError("ncu is not on PATH; it comes with the CUDA toolkit (or the package nsight-compute)")
    return found


def version() -> str:
    """Its version. Raises NcuError."""
    said = subprocess.run([find_ncu(), "--version"], capture_output=True, text=True).stdout
    return next((line.strip() for line in said.splitlines() if line.startswith("Version")), "unknown")


def collect(kernel: str, skip: int, program: Sequence[str | Path], report: Path) -> None:
    """Run a program under ncu and write what it counts of one launch of a kernel. Raises NcuError."""
    command = [
        find_ncu(),
        *("--clock-control", "none", "--cache-control", "none"),
        *("--kernel-name", kernel, "--launch-skip", str(skip), "--launch-count", "1"),
        *("--metrics", ",".join(METRICS.values())),
        *(x for section in SECTIONS for x in ("--section", section)),
        *("--force-overwrite", "--export", str(report)),
        *map(str, program),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if "ERR_NVGPUCTRPERM" in said:
        raise NcuError(
            "no leave to read performance counters: run as root, or load the driver with "
            "NVreg_RestrictProfilingToAdminUsers=0 (https://developer.nvidia.com/ERR_NVGPUCTRPERM)"
        )
    if done.returncode or not report.is_file():
        raise NcuError(f"ncu failed ({done.returncode}):\n{said.strip()[-2000:]}")


def export(report: Path, page: str, *options: str) -> str:
    """A page of a report as CSV: ``raw``, or ``source`` with ``--print-source cuda,sass``. Raises NcuError."""
    command = [find_ncu(), "--import", report, "--page", page, "--csv", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NcuError(f"ncu --import failed ({done.returncode}):\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return done.stdout


@dataclass
class Line:
    """Samples of a source line: of all warps that were there, and by what they waited for."""

    file: str
    number: int
    samples: int
    stalls: dict[str, int] = field(default_factory=dict)


def read_raw(text: str) -> tuple[dict[str, str], dict[str, float]]:
    """The page ``raw`` (``--print-units base``): what was launched, and every counter that has a number.

    Three rows in quotes: names, units, values; ncu's warnings may stand around them. Raises NcuError.
    """
    rows = list(csv.reader(line for line in text.splitlines() if line.startswith('"')))
    if len(rows) < 3 or rows[0][0] != "ID":
        raise NcuError("ncu's CSV has no launch")
    named = dict(zip(rows[0], rows[2]))
    numbers = {}
    for name, value in named.items():
        try:
            numbers[name] = float(value.replace(",", ""))
        except ValueError:
            continue
    return {name: named[name] for name in ("Kernel Name", "CC", "Block Size", "Grid Size") if name in named}, numbers


def metrics(numbers: dict[str, float]) -> dict[str, float]:
    """The counters under our names; what the GPU does not have is left out."""
    return {name: numbers[metric] for name, metric in METRICS.items() if metric in numbers}


def stalls(numbers: dict[str, float]) -> dict[str, float]:
    """Why a warp waited before an instruction: cycles, by reason, the largest first."""
    found = {
        name.removeprefix(_STALL).removesuffix(_PER_ISSUE): value
        for name, value in numbers.items()
        if name.startswith(_STALL) and name.endswith(_PER_ISSUE) and value >= 0.005
    }
    return dict(sorted(found.items(), key=lambda x: -x[1]))


def read_source(text: str) -> list[Line]:
    """Lines with samples from the page ``source`` with ``--print-source cuda,sass``, most samples first.

    For every file its path, a head, and its lines, each followed by its instructions, which have no number. The text of
    a line is not escaped, so its columns are counted from the end.
    """
    file, columns, found = "", [], []
    for row in text.splitlines():
        if row.startswith('"File Path"'):
            file = row.split('","')[1].strip().rstrip(",").rstrip('"')
        elif row.startswith('"Line No"'):
            columns = row.strip().rstrip(",").strip('"').split('","')
        elif columns and row[1:2].isdigit() and row.startswith('"'):
            cells = row.strip().rstrip(",").rsplit('","', len(columns) - 2)
            number = cells[0].split('"')[1]
            values = {name: int(x.strip('"')) for name, x in zip(columns[2:], cells[1:]) if x.strip('"').isdigit()}
            if values.get(_SAMPLES):
                by_reason = {
                    name.removeprefix("stall_"): value
                    for name, value in values.items()
                    if name.startswith("stall_") and "(" not in name and value
                }
                found.append(Line(_within_repository(file), int(number), values[_SAMPLES], by_reason))
    return sorted(found, key=lambda x: -x.samples)


def _within_repository(path: str) -> str:
    """``cuda/attention/softmax.cuh`` of a path on the machine where the kernel was compiled."""
    _, found, rest = path.rpartition("/cuda/")
    return f"cuda/{rest}" if found else path.rsplit("/", 1)[-1]
