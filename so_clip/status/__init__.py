"""How far the runs of a folder are: `python -m so_clip status RESULTS_DIR`."""
