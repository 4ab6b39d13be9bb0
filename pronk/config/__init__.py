"""Settings: of runs and populations, and what a run is; imports neither jax nor an environment."""
