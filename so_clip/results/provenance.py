"""provenance.json: the versions, commit, hardware and command line of a run."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from so_clip.system.commands import as_typed
from so_clip.system.paths import PACKAGE_DIR
from so_clip.version import __version__

_REPORTED_VERSIONS = (
    "torchvision",
    "open_clip_torch",
    "transformers",
    "tokenizers",
    "hydra-core",
    "numpy",
    "pandas",
    "peft",
    "pytorch-optimizer",
)


def provenance(device_description: str, **more: Any) -> dict[str, Any]:
    """Return versions, commit, hardware and command line of this process, and `more`."""
    import torch  # here, so that this module can be read without torch

    return {
        "command": [sys.argv[0], *as_typed(sys.argv[1:])],
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        # torch's own version names its CUDA too; so_clip's is read here, as a checkout may not be
        # installed.
        "versions": {
            "python": platform.python_version(),
            "so-clip": __version__,
            "torch": str(torch.__version__),
        }
        | {name: version_of(name) for name in _REPORTED_VERSIONS},
        "hardware": {
            "device": device_description,
            "processor": _processor(),
            "platform": platform.platform(),
            "torch_threads": torch.get_num_threads(),
        },
        **more,
    }


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, and None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the checkout's commit, with "-dirty" if files differ from it; None in a wheel."""
    root = PACKAGE_DIR.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
