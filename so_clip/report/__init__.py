"""Runs -> tables, plots, page: `python -m so_clip report RESULTS_DIR -o OUT`."""
