"""Measurements whose tables stand in docs/: `python -m sca_caption.benchmarks.attention` and the like."""
