"""Files, locks, paths and the machine. Nothing here imports torch."""
