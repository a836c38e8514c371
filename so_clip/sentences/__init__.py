"""Runs on sentences: one run from top to bottom, beside the run on images in so_clip/run.py."""
