"""What binds a kernel: one warm launch under Nsight Compute (ncu), and a verdict that fits a screen.

    python scripts/profile.py flash_fwd_causal_f16_d128_sm89     a kernel, on 16 k tokens of S 4096 (small: S 512)
    python scripts/profile.py 4x32x4096x4096x64 [--causal]       batch x heads x seqlen_q x seqlen_k x head_dim:
                                                                 the kernel that dispatch takes; heads may be 32/8
    python scripts/profile.py … --save FOLDER                    keeps the CSV of ncu
    python scripts/profile.py --read FOLDER                      the verdict on that, without a GPU

Needs a GPU, ncu (CUDA toolkit) and leave to read performance counters. Clocks are left alone (--clock-control none),
and so are the caches between ncu's passes (--cache-control none). Exit status: 0, or 2 where something is missing.
"""

from __future__ import annotations

import sys

if __name__ == "profile":
    # This folder is on sys.path of its scripts, and the standard library's cProfile, which PyTorch imports, imports
    # `profile`: hand it the one that it means.
    import importlib.util
    import sysconfig
    from pathlib import Path as _Path

    _spec = importlib.util.spec_from_file_location("profile", _Path(sysconfig.get_path("stdlib"), "profile.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["profile"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["profile"])
else:
    from profiling.command import main

    if __name__ == "__main__":
        main()
