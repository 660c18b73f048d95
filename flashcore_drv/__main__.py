"""``python -m flashcore_drv info``: what is here, and what would run."""

from __future__ import annotations

import argparse
import json
import sys

from . import info
from .errors import InvalidArgument, Unsupported


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status: 0, or 1 if no kernel could run here, or 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m flashcore_drv", description="exact attention on NVIDIA GPUs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "driver, GPUs, kernels, versions, and what would be selected for a problem"
    command = commands.add_parser("info", help=about, description=about)
    command.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    command.add_argument(
        "--problem", metavar="B,H,S,D", help="batch, heads, length, head_dim; H may be heads/heads_kv, S q/k, D d/d_v"
    )
    command.add_argument("--dtype", choices=list(info.DTYPES), default="float16", help="of the problem")
    command.add_argument("--causal", action="store_true", help="of the problem")
    given = parser.parse_args(arguments)
    try:
        problem = info.problem_of(given.problem, given.dtype, given.causal) if given.problem else None
    except (InvalidArgument, Unsupported) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = info.collect(problem)
    print(json.dumps(found, indent=1) if given.json else "\n".join(info.lines(found)))
    return 1 if "error" in found["driver"] else 0


if __name__ == "__main__":
    sys.exit(main())
