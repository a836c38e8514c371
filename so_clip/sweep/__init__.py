"""Sweeps: launch, jobs, the closing summary. This room runs Hydra."""
