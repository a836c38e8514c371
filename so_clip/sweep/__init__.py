"""Sweeps: launch, jobs, the closing summary. This folder runs Hydra."""
