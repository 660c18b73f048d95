"""Counters of a launch through Nsight Compute: how they are asked for, read, and judged (scripts/profile.py)."""
