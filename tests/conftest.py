"""Fixtures every test may use."""

import signal
from pathlib import Path

import pytest

# A shell starts what runs in its background deaf to Ctrl-C, which processes of tests would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material beside the checkout: real split files and EuroSAT images."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared material at {folder}, which is not on this machine")
    return folder
