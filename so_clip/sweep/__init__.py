"""Sweeps: launch, jobs, the closing summary. Runs Hydra."""
