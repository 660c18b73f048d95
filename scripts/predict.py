"""Predicts the time of the fused kernels on a GPU that is not at hand, by counting the pipes' cycles in their SASS.

    python scripts/predict.py --gpu l4                        every plain kernel, and the problems of the issue
    python scripts/predict.py --gpu l4 1x8x512x512x64         a problem: batch x heads x seqlen_q x seqlen_k x head_dim
    python scripts/predict.py --gpu h200                      the same beside what was measured (benchmarks/nvidia-h200)
    python scripts/predict.py --gpu l4 --save                 benchmarks/predicted/<date>-l4.json

Needs the kernels for the GPU's architecture (make cubin ARCHS=89) and nvdisasm (pip install nvidia-cuda-nvdisasm), but
no GPU. How it works, what it assumes and how far it is off: docs/predict.md.
Exit status: 0, or 2 where something is missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from benchmark.conditions import commit
from prediction import compare, table
from prediction.gpus import GPUS, Gpu
from prediction.model import KernelModel
from prediction.sass import MissingTool
from shapes import Shape

from flashcore_drv.catalog import CATALOG, KernelSpec, kernels_of
from flashcore_drv.dispatch import select_flash
from flashcore_drv.dtypes import F16
from flashcore_drv.errors import InvalidArgument, Unsupported

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Shape(1, 8, 8, 512, 512, 64)
HEAD_DIMS, TOKENS, WIDTH, SEQLEN = (64, 128, 256), 16384, 2048, 4096


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; --help lists the options\n")


class Models:
    """The models of a GPU's kernels, each made once."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.made: dict[str, KernelModel] = {}

    def of(self, spec: KernelSpec) -> KernelModel:
        """The model of a kernel."""
        if spec.stem not in self.made:
            self.made[spec.stem] = KernelModel(spec, self.gpu)
        return self.made[spec.stem]

    def plain(self) -> list[KernelModel]:
        """Every kernel in float16 but the general ones."""
        return [
            self.of(spec)
            for spec in kernels_of(self.gpu.arch)
            if spec.dtype == F16 and spec.family in ("flash_fwd", "flash_fwd_causal", "flash_fwd_small")
        ]

    def predict_kernel(self, stem: str, shape: Shape, causal: bool) -> dict[str, Any]:
        """A problem, with the kernel that is named, or the one that is there in its place."""
        named = next(spec for spec in CATALOG if spec.stem == stem)
        key = named.family, named.dtype, named.size
        there = next(s for s in kernels_of(self.gpu.arch) if (s.family, s.dtype, s.size) == key)
        return self.of(there).predict(shape, causal)

    def predict(self, shape: Shape, causal: bool) -> dict[str, Any]:
        """A problem, with the kernel that dispatch takes of the families for every GPU: no others are modelled."""
        spec = select_flash(replace(shape, causal=causal).problem, self.gpu.arch, self.gpu, "flash_sm80")
        if spec.family == "flash_fwd_general":
            raise Unsupported(f"{shape}: the general kernel is not modelled; head_dim 32, 64, 96, 128, 192 or 256")
        return self.of(spec).predict(shape, causal)


def default_problems() -> list[tuple[Shape, bool]]:
    """The reference problem, and 16 k tokens with heads * head_dim = 2048 at S 4096."""
    problems = [(REFERENCE, False)]
    for head_dim in HEAD_DIMS:
        heads = WIDTH // head_dim
        shape = Shape(TOKENS // SEQLEN, heads, heads, SEQLEN, SEQLEN, head_dim)
        problems += [(shape, False), (shape, True)]
    return problems


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help="default: the reference problem and S 4096")
    parser.add_argument("--gpu", choices=GPUS, required=True)
    parser.add_argument("--causal", action="store_true", help="of the problems that are given")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    parser.add_argument("--save", action="store_true", help="write it to benchmarks/predicted/, too")
    args = parser.parse_args()
    shapes = [Shape.parse(text) for text in args.problems]
    if None in shapes:
        parser.error(f"{args.problems[shapes.index(None)]!r} is no problem; for example 1x8x512x512x64")
    if args.save and shapes:
        parser.error("--save is for the default problems")
    problems = [(shape, args.causal) for shape in shapes if shape] or default_problems()
    gpu = GPUS[args.gpu]
    models = Models(gpu)
    try:
        found: dict[str, Any] = {
            "suite": "predicted",
            "gpu": gpu.name,
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "is": "a prediction from SASS and published rates: nothing was measured on this GPU",
            "rates": gpu.to_json(),
            "kernels": [] if args.problems else [model.to_json() for model in models.plain()],
            "rows": [models.predict(shape, causal) for shape, causal in problems],
        }
        found["nvcc"] = next(iter(models.made.values())).nvcc
        if not args.problems and (measured := compare.measured(ROOT, args.gpu)):
            found["is"] = "a prediction from SASS and published rates, beside what was measured"
            found["measured"] = compare.beside(measured, models.predict, gpu)
        if not args.problems and (profiled := compare.profiled(ROOT, args.gpu)):
            found["profiled"] = compare.beside_cycles(profiled, models.predict_kernel)
    except (InvalidArgument, Unsupported, MissingTool, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    if args.save:
        path = ROOT / "benchmarks" / "predicted" / f"{found['date']}-{args.gpu}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)
    print(json.dumps(found, indent=1) if args.json else table.text(found))


if __name__ == "__main__":
    main()
