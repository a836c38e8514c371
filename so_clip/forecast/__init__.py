"""What a run will take, told before it is begun: `python -m so_clip forecast`."""
