"""A folder of small images, and a cache of decoded images."""

from pathlib import Path

import pytest
from PIL import Image

from so_clip.data.cache.decode_cache import DecodeCache
from tests.helpers.decode_caches import MIB, NAMES, Watched


@pytest.fixture
def images(tmp_path: Path) -> Watched:
    root = tmp_path / "images"
    root.mkdir()
    for index, name in enumerate(NAMES):
        Image.effect_noise((20 + index, 30), 20 + 9 * index).convert("RGB").save(root / name)
    return Watched(root)


@pytest.fixture
def cache(tmp_path: Path) -> DecodeCache:
    return DecodeCache(tmp_path / "cache" / "decoded", MIB, reserve_bytes=0)
