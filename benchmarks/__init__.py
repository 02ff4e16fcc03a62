"""Benchmarks: ratios of quantities measured in turns in one run; `python -m benchmarks` runs them."""
