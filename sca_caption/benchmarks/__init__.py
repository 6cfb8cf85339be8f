"""Benchmarks, each run as a module: `python -m sca_caption.benchmarks.attention`. Their tables are in docs/."""
