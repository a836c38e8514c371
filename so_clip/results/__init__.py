"""The files of runs and of sweeps. No module here needs torch to be imported."""
