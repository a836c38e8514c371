"""Folders of the package's own files: at a checkout's root, or inside the package in a wheel."""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parents[1]
ASSETS_DIR = PACKAGE_DIR / "assets"


def _shipped(folder: str) -> Path:
    inside = PACKAGE_DIR / folder
    return inside if inside.is_dir() else PACKAGE_DIR.parent / folder


CONF_DIR = _shipped("conf")
CARDS_DIR = _shipped("datasets")
