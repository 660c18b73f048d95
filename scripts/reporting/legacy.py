"""The results of 2026-11-23, written before there was a schema, in its form. To be deleted with these files."""

from __future__ import annotations

from typing import Any


def convert(found: dict[str, Any]) -> dict[str, Any] | None:
    """Results in today's form; None where they have none."""
    if found.get("suite") == "forward":
        return _forward(found)
    if found.get("suite") == "gpu-check":
        return _reference(found)
    return None


def _envelope(suite: str, found: dict[str, Any], peers: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": 0, "suite": suite, "conditions": found["conditions"], "peers": peers, "rows": rows}


def _problem(batch: int, heads: int, seqlen: int, head_dim: int, causal: bool) -> dict[str, Any]:
    return {
        "batch": batch,
        "num_heads": heads,
        "num_heads_kv": heads,
        "seqlen_q": seqlen,
        "seqlen_k": seqlen,
        "head_dim": head_dim,
        "dtype": "float16",
        "causal": causal,
        "layout": "bhsd",
        "varlen": None,
    }


def _forward(found: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for old in found["rows"]:
        d, s, causal = old["head_dim"], old["seqlen"], old["causal"]
        timed = {
            name: {
                "us": old["us"][name],
                "us_5_95": old["us_5_to_95_percent"][name],
                "max_error": old["max_error"][name],
                "tflops": old["tflops"][name],
                "ratio": old["us"][name] / old["us"]["ours"],
            }
            for name in old["us"]
        }
        rows.append(
            {
                "id": f"d{d}-{'causal' if causal else 'full'}-s{s}-f16",
                "problem": _problem(16384 // s, 2048 // d, s, d, causal),
                "ours": {"stem": old["stem"], **timed.pop("ours")},
                "peers": timed,
            }
        )
    peers = {name: {"version": how, "how": how} for name, how in found["peers"].items()}
    return _envelope("forward", found, peers, rows)


def _reference(found: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for old in found["reference"]["rows"]:
        name = "FA2" if old["stage"] == "flash" else "cuBLAS"
        quoted = {"predecessor": {"us": old["predecessor_l4_us"], "where": "its own record, on an NVIDIA L4"}}
        rows.append(
            {
                "id": f"reference-{old['stage']}",
                "problem": _problem(1, 8, 512, 64, False),
                "part": old["stage"],
                "ours": {"stem": old["stem"], "us": old["ours_us"], "max_error": old["max_error"]}
                | {"us_5_95": old["ours_us_5_to_95_percent"]},
                "quoted": quoted if old["predecessor_l4_us"] else {},
                "peers": {
                    name: {
                        "us": old["peer_us"],
                        "us_5_95": old["peer_us_5_to_95_percent"],
                        "ratio": old["peer_us"] / old["ours_us"],
                    }
                },
            }
        )
    version = found["reference"]["peer"]["name"]
    return _envelope("reference", found, {name: {"version": version} for name in ("cuBLAS", "FA2")}, rows)
