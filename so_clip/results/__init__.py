"""The files of a run and of a sweep. Nothing here imports torch."""
