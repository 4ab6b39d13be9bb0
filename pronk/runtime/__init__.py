"""Loops, sources, actors and the learner."""
