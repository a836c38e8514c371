"""How torchrun, if it was torchrun, started this process; told without importing torch."""

import os


def processes() -> int:
    """Return how many processes do this run together; 1 without torchrun."""
    # torchrun's own mark beside it: other launchers tell a WORLD_SIZE to processes that are alone.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return this process's number among them, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0
