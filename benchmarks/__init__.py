"""Ratios of things measured in turns in one run; `python -m benchmarks` runs them."""
