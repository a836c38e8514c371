"""`python -m so_clip forecast`: memory, operations and disk space of a run before it starts."""
