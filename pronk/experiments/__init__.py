"""Benchmarks and experiments: `pronk bench` and `pronk reproduce`."""
