"""The state of runs and sweeps, for `python -m so_clip status`."""
