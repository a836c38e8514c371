"""CSV tables with columns for the command, the hardware, the threads and torch's version."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from so_clip.runtime.device import describe
from so_clip.system.atomic import write_text

# The columns that `write_table` adds.
MADE_BY = ("command", "hardware", "threads", "torch")


def write_table(
    rows: Sequence[Mapping[str, Any]], path: Path, device: torch.device, command: str
) -> pd.DataFrame:
    """Write rows as CSV, numbers to four digits, with the columns MADE_BY.

    A row from an earlier table keeps its values in these columns.
    """
    table = pd.DataFrame(rows)
    made = (command, hardware(device), torch.get_num_threads(), torch.__version__)
    for name, value in zip(MADE_BY, made, strict=True):
        table[name] = table[name].fillna(value) if name in table else value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_csv(index=False, float_format="%.4g"))
    return table


def hardware(device: torch.device) -> str:
    """Return the device's name; for a CPU also the number of cores and the memory."""
    if device.type == "cuda":
        return describe(device)
    lines = _lines("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or '?'} cores, {_memory_mib('MemTotal') / 1024:.0f} GiB"


def available_mib(device: torch.device) -> float:
    """Return a device's free memory in MiB, or infinity if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    return _memory_mib("MemAvailable") or float("inf")


def _memory_mib(key: str) -> float:
    for line in _lines("/proc/meminfo"):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
