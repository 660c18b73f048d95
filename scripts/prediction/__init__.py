"""Time of a fused kernel on a GPU that is not at hand, from its SASS and published rates (scripts/predict.py)."""
