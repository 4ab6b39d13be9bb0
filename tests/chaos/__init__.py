"""Scenarios that kill, stall and corrupt parts of a run on purpose.

From the repository's root: `python -m tests.chaos.faults` and `python -m tests.chaos.soak`.
"""
