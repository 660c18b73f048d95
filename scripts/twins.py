"""The same launches from the same bytes on a GPU and on the emulator: are their results and their counts the same?

    python scripts/twins.py record                   on a GPU: results to tests/golden/twins.npz
    ncu … python scripts/twins.py run > ncu.csv      on a GPU: the launches alone, under ncu (--metrics prints which)
    python scripts/twins.py counters ncu.csv         counts of ncu to tests/golden/twins.json
    python scripts/twins.py compare                  anywhere: runs the emulator and prints the table

Exit status of compare: 1 if a result differs by more than its ulps or a count that must be equal is not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import flashcore_drv as fc
from flashcore_drv.dtypes import BF16, F16, F32, DType
from flashcore_drv.runtime import Device, is_emulated
from flashcore_drv.runtime import driver as runtime_driver

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"

# ncu's counter, and what the emulator counts for the same thing
TENSOR = "sm__inst_executed_pipe_tensor_op_hmma.sum"
LDSM = "smsp__inst_executed_op_ldsm.sum"
LOAD_SECTORS = "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"
STORE_SECTORS = "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum"
ASYNC_COPIES = "smsp__inst_executed_op_ldgsts.sum"
SHARED_LOAD_CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum"
SHARED_STORE_CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum"
CONFLICT_NOISE = 32  # largest difference between two runs of ncu that was seen: 28
LDGSTS_SECTORS = 1.2  # largest ratio that was seen: 282 / 236
METRICS = (TENSOR, LDSM, LOAD_SECTORS, STORE_SECTORS, ASYNC_COPIES, SHARED_LOAD_CONFLICTS, SHARED_STORE_CONFLICTS)


@dataclass(frozen=True)
class Twin:
    """A launch: kernel family, dtype, sizes."""

    family: str
    dtype: DType
    batch: int
    heads: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    ulps: float  # of the largest element; see the comment at TWINS

    @property
    def name(self) -> str:
        """Unique, and readable in the table."""
        return (
            f"{self.family} {self.dtype} {self.heads}/{self.heads_kv} {self.seqlen_q}x{self.seqlen_k} d{self.head_dim}"
        )

    def run(self) -> Any:
        """The result, from inputs that depend on the launch alone."""
        rng = np.random.default_rng(20)
        dtype = self.dtype.to_numpy()
        q = rng.standard_normal((self.batch, self.heads, self.seqlen_q, self.head_dim)).astype(dtype)
        kv = rng.standard_normal((self.batch, self.heads_kv, self.seqlen_k, self.head_dim)).astype(dtype)
        if self.family == "flash":
            v = rng.standard_normal(kv.shape).astype(dtype)
            return fc.attention(q, kv, v, causal=True, layout="bhsd", impl="flash_sm80")
        if self.family == "qk":
            return fc.unfused.qk(q, kv, layout="bhsd")
        s = rng.standard_normal((self.batch, self.heads, self.seqlen_q, self.seqlen_k)).astype(np.float32)
        if self.family == "softmax":
            return fc.unfused.softmax(s, dtype=dtype, causal=True)
        p = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
        return fc.unfused.pv(p.astype(dtype), kv, layout="bhsd")


# Tensor cores add the products of one instruction at a common exponent and cut off what lies below it; the emulator
# adds in float32. So sums may differ by a few ulps of the largest term, and ex2.approx by two.
TWINS = (
    Twin("qk", F16, 1, 2, 1, 70, 136, 64, 8),
    Twin("qk", BF16, 2, 2, 2, 64, 64, 128, 16),
    Twin("qk", F16, 1, 1, 1, 33, 61, 40, 8),
    Twin("softmax", F16, 1, 2, 2, 40, 96, 64, 1),
    Twin("softmax", BF16, 1, 1, 1, 3, 1500, 64, 1),
    Twin("pv", F16, 1, 2, 1, 70, 136, 64, 1),
    Twin("pv", BF16, 1, 1, 1, 64, 200, 128, 1),
    Twin("flash", F16, 1, 2, 1, 140, 200, 64, 2),
    Twin("flash", BF16, 1, 2, 2, 130, 130, 128, 2),
)


def record(args: argparse.Namespace) -> None:
    """Save what the GPU computes."""
    if is_emulated():
        sys.exit("error: there is no GPU here to record from")
    results = {twin.name: twin.run() for twin in TWINS}
    raw = {
        name: x if x.dtype.kind == "f" and x.dtype.itemsize > 2 else x.view(np.uint16) for name, x in results.items()
    }
    np.savez_compressed(args.folder / "twins.npz", **raw)
    print(f"{len(raw)} results of {Device.current().name}")


def run(args: argparse.Namespace) -> None:
    """The launches alone."""
    for twin in TWINS:
        twin.run()


def counters(args: argparse.Namespace) -> None:
    """Save the counts of ncu, launch by launch."""
    lines = args.csv.read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        sys.exit(f"error: {args.csv} has no table of ncu")
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"].split("(")[0]})
        if row["Metric Name"] in METRICS:
            value = row["Metric Value"].replace(",", "")
            launch[row["Metric Name"]] = int(float(value)) if value[:1].isdigit() else None
    if len(launches) != len(TWINS):
        sys.exit(f"error: {args.csv} has {len(launches)} launches, expected {len(TWINS)}")
    found = {twin.name: launch for twin, launch in zip(TWINS, launches.values())}
    (args.folder / "twins.json").write_text(json.dumps(found, indent=1) + "\n")


def emulated_counts(report: Any) -> dict[str, int]:
    """The emulator's counts under ncu's names.

    ptxas makes one HMMA of an mma m16n8k16 and one LDSM of an ldmatrix,
    two HMMA of a wmma.mma m16n16k16, one LDSM of a wmma.load of fp16 in shared memory, and one LDGSTS of a
    cp.async. Of a wmma.load of bf16, whose address nvcc leaves generic, it makes plain loads.
    """
    counts = dict.fromkeys(METRICS, 0)
    for opcode, count in report.totals.opcodes.items():
        if opcode.startswith("wmma.mma"):
            counts[TENSOR] += 2 * count
        elif opcode.startswith("wmma.load") and ".shared" in opcode:
            counts[LDSM] += count
        elif opcode.startswith("mma.sync"):
            counts[TENSOR] += count
        elif opcode.startswith("ldmatrix"):
            counts[LDSM] += count
        elif opcode.startswith("cp.async.c") and "group" not in opcode:
            counts[ASYNC_COPIES] += count
    for line in report.lines.values():
        stores = any(opcode.startswith("st.global") for opcode in line.opcodes)
        counts[STORE_SECTORS if stores else LOAD_SECTORS] += line.global_sectors
        writes = any(opcode.startswith(("st.shared", "wmma.store")) for opcode in line.opcodes)
        counts[SHARED_STORE_CONFLICTS if writes else SHARED_LOAD_CONFLICTS] += line.bank_conflicts
    return counts


def explanation(twin: Twin, metric: str, gpu: int, emulator: int) -> str | None:
    """Why two counts may differ as they do; None if they may not."""
    if metric == TENSOR and twin.family in ("softmax", "flash") and gpu >= emulator:
        return "the counter includes HFMA2.MMA, by which ptxas moves constants"
    if metric == LDSM and twin.family == "flash" and gpu <= emulator:
        return "ptxas keeps fragments of Q that the PTX reads again"
    if metric in (SHARED_LOAD_CONFLICTS, SHARED_STORE_CONFLICTS) and abs(gpu - emulator) <= CONFLICT_NOISE:
        return "the counter varies from run to run by as much"
    if metric == LOAD_SECTORS and twin.family != "softmax" and emulator <= gpu <= LDGSTS_SECTORS * emulator:
        return "ncu counts more sectors for LDGSTS in these kernels; alone in a kernel they agree; cause not found"
    return None


def compare_all(folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """Rows of the table (launch, what, GPU, emulator, why it may differ), and whether everything is as it must be."""
    golden, counted = np.load(folder / "twins.npz"), json.loads((folder / "twins.json").read_text())
    rows: list[dict[str, Any]] = []
    ok = True
    for twin in TWINS:
        mine = twin.run()
        dtype = mine.dtype
        theirs = golden[twin.name].view(dtype)
        bits = F32.mantissa_bits if twin.family == "qk" else twin.dtype.mantissa_bits
        mine, theirs = mine.astype(np.float64), theirs.astype(np.float64)
        ulp = 2.0 ** (np.floor(np.log2(np.abs(theirs).max())) - bits)
        ulps = float(np.abs(mine - theirs).max() / ulp)
        ok &= ulps <= twin.ulps
        rows.append(
            {"launch": twin.name, "what": f"result, ulps (up to {twin.ulps:g})", "gpu": 0, "emulator": ulps, "why": ""}
        )
        counts = emulated_counts(runtime_driver.module().reports()[-1][1])
        for metric in METRICS:
            theirs_count = counted[twin.name][metric]
            same = theirs_count == counts[metric]
            why = None if same else explanation(twin, metric, theirs_count, counts[metric])
            ok &= same or why is not None
            row = {"launch": twin.name, "what": metric, "gpu": theirs_count, "emulator": counts[metric]}
            rows.append(row | {"why": "" if same else why or "MUST BE EQUAL"})
    return rows, ok


def compare(args: argparse.Namespace) -> None:
    """Print the table."""
    if not is_emulated():
        sys.exit("error: compare runs on the emulator: FLASHCORE_DRIVER=emulator")
    rows, ok = compare_all(args.folder)
    print(f"{'launch':26} {'what':56} {'GPU':>8} {'emulator':>9}")
    for row in rows:
        print(f"{row['launch']:26} {row['what']:56} {row['gpu']:>8} {row['emulator']:>9.4g} {row['why']}")
    wrong = [f"{row['launch']}: {row['what']}" for row in rows if row["why"] == "MUST BE EQUAL"]
    print("as it must be" if ok else f"NOT as it must be: {', '.join(wrong) or 'results'}")
    sys.exit(not ok)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = {"record": record, "run": run, "counters": counters, "compare": compare}
    parser.add_argument("step", choices=steps, nargs="?")
    parser.add_argument("csv", nargs="?", type=Path, help="output of ncu, for counters")
    parser.add_argument("--folder", type=Path, default=GOLDEN, help="where twins.npz and twins.json are")
    parser.add_argument("--metrics", action="store_true", help="print the metrics for ncu and leave")
    args = parser.parse_args()
    if args.metrics:
        print(",".join(METRICS))
    elif args.step is None or (args.step == "counters") != (args.csv is not None):
        parser.error("give a step: record, run, counters FILE or compare")
    else:
        os.environ["FLASHCORE_EMULATOR_CHECKS"] = "all"  # counts included
        steps[args.step](args)


if __name__ == "__main__":
    main()
