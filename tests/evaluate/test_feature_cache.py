"""The feature cache: keys from everything that matters; damage never fails a run."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.data.batches import TestStream
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder
from so_clip.data.transforms import TestPixels
from so_clip.evaluate import feature_cache as features
from so_clip.evaluate.feature_cache import FeatureCache, feature_key
from so_clip.system.code_hash import code_sha256
from so_clip.system.paths import PACKAGE_DIR
from tests.helpers.command import environment
from tests.helpers.small_models import small_backbone

CPU = torch.device("cpu")
KEY = "0123456789abcdef" * 4
IMAGE_ND = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def _compute() -> Tensor:
    return IMAGE_ND.clone()


def _never() -> Tensor:
    raise AssertionError("the cache has them already")


def _fetch(
    folder: Path, make: Any = _compute, current: Any = lambda _: True
) -> tuple[Tensor, bool]:
    return FeatureCache(folder).fetch(KEY, len(IMAGE_ND), current, make)


# The key.


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for index in range(4):
        pixels = Image.effect_noise((40, 36), 50 + index).convert("RGB")
        pixels.save(tmp_path / f"{index}.png", compress_level=0)
    return ImageFolder(tmp_path)


def _stream(images: ImageFolder, names: str = "0123", **changes: Any) -> TestStream:
    examples = [Example(f"{name}.png", int(name) % 2) for name in names]
    return TestStream(
        images, examples, **{"pixels": TestPixels(32), "batch_size": 2, "workers": 2} | changes
    )


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


def _key(backbone: Backbone, stream: TestStream, weights: str = "w", precision="fp32") -> str:
    return feature_key(backbone, weights, stream, CPU, precision)


def test_a_key_is_a_file_name_and_repeats(backbone, folder):
    key = _key(backbone, _stream(folder))
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")
    assert key == _key(small_backbone(), _stream(folder))


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_the_folder_and_the_workers_do_not_change_the_key(
    backbone, folder, workers, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in folder.root.iterdir():
        shutil.copyfile(file, elsewhere / file.name)
        os.utime(elsewhere / file.name, (1e9, 1e9))
    moved = _stream(ImageFolder(elsewhere), workers=workers)
    assert _key(backbone, moved) == _key(backbone, _stream(folder))


@pytest.mark.parametrize("names", ["012", "0132", "01233", "1023"])
def test_another_test_list_changes_the_key(backbone, folder, names):
    assert _key(backbone, _stream(folder, names)) != _key(backbone, _stream(folder))


def test_an_image_that_changes_at_equal_size_and_date_changes_the_key(backbone, folder):
    before, file = _key(backbone, _stream(folder)), folder.root / "2.png"
    status, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert _key(backbone, _stream(folder)) != before


def test_weights_batch_size_precision_pixels_and_code_change_the_key(backbone, folder, monkeypatch):
    stream = _stream(folder)
    keys = [
        _key(backbone, stream),
        _key(backbone, stream, weights="v"),
        _key(backbone, stream, precision="bf16"),
        _key(backbone, _stream(folder, batch_size=3)),
        _key(backbone, _stream(folder, pixels=TestPixels(32, "squash"))),
        _key(backbone, _stream(folder, pixels=TestPixels(32, "squash", "bilinear"))),
    ]
    monkeypatch.setattr(features, "code_sha256", lambda *parts: "another")
    keys.append(_key(backbone, stream))
    assert len({*keys}) == len(keys)


def test_architecture_and_pixel_format_change_the_key(folder):
    """The activation, the number of heads, and the pixels' mean and deviation."""
    stream, keys = _stream(folder), []
    for changes in ({}, {"quick_gelu": True}, {"vision_cfg": {"head_width": 16}}):
        backbone = small_backbone()
        backbone.architecture.update(changes)
        keys.append(_key(backbone, stream))
    for name in ("mean", "std"):
        backbone = small_backbone()
        getattr(backbone, name).mul_(0.9)
        keys.append(_key(backbone, stream))
    assert len({*keys}) == len(keys)


def test_only_code_that_computes_features_changes_the_key(tmp_path):
    package = tmp_path / "so_clip"
    shutil.copytree(PACKAGE_DIR, package)
    sums = [code_sha256(*features.CODE)]
    for changed in ("optim/so.py", "clip/backbone.py", "data/transforms.py"):
        with (package / changed).open("a") as file:
            file.write("# changed\n")
        code_sha256.cache_clear()
        sums.append(code_sha256(*features.CODE, package=package))
    assert sums[0] == sums[1]
    assert len({*sums}) == 3


# The file.


def test_cached_features_are_equal_to_the_last_bit(tmp_path, capsys):
    made, from_cache = _fetch(tmp_path / "new" / "folder")
    assert not from_cache
    cached, from_cache = _fetch(tmp_path / "new" / "folder", _never)
    assert from_cache
    assert torch.equal(cached, made)
    assert (cached.dtype, cached.is_inference()) == (torch.float32, False)
    cached.add_(1)  # not read-only
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [f"{KEY}.safetensors"]
    assert capsys.readouterr().err == ""


def test_another_key_has_another_file(tmp_path):
    _fetch(tmp_path)
    other, from_cache = FeatureCache(tmp_path).fetch(
        KEY[::-1], 2, lambda _: True, lambda: torch.zeros(2, 3)
    )
    assert not from_cache
    assert other.shape == (2, 3)
    assert torch.equal(_fetch(tmp_path, _never)[0], IMAGE_ND)


def _cached_file(folder: Path) -> tuple[Path, bytearray]:
    _fetch(folder)
    file = FeatureCache(folder).path(KEY)
    return file, bytearray(file.read_bytes())


DAMAGES = {
    "cut": lambda data: data[:-1],
    "cut in the header": lambda data: data[:60],
    "cut in the header's length": lambda data: data[:5],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a flipped bit": lambda data: data[:-5] + bytes([data[-5] ^ 4]) + data[-4:],
    "two numbers swapped": lambda data: data[:-8] + data[-4:] + data[-8:-4],
    "longer": lambda data: data + b"\0",
    "a text": lambda data: b"not features at all, but long enough to have a header",
    "a huge header": lambda data: b"\xff" * 8 + data[8:],
    "an odd header": lambda data: (2).to_bytes(8, "little") + b"[]",
}


def _replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Fetch features whose file is damaged; return the one message about it."""
    made, from_cache = _fetch(folder)
    assert not from_cache
    assert torch.equal(made, IMAGE_ND)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"so_clip: {folder / KEY}.safetensors is ignored: ")
    assert line.endswith("Its features are computed again.")
    cached, from_cache = _fetch(folder, _never)
    assert from_cache
    assert torch.equal(cached, IMAGE_ND)
    assert capsys.readouterr().err == ""
    return line


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced_with_a_message(tmp_path, capsys, damage):
    file, data = _cached_file(tmp_path)
    file.write_bytes(DAMAGES[damage](data))
    _replaced(tmp_path, capsys)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"image_ND": IMAGE_ND}, None, "other features"),
        ({"image_ND": IMAGE_ND}, {"key": KEY[::-1]}, "other features"),
        ({"image_ND": IMAGE_ND}, {"key": KEY}, "checksum"),
        ({"image_ND": IMAGE_ND[:5].clone()}, {"key": KEY}, "[5, 4]"),
        ({"image_ND": IMAGE_ND.half()}, {"key": KEY}, "float16"),
        ({"image_ND": IMAGE_ND[None]}, {"key": KEY}, "[1, 6, 4]"),
        ({"other": IMAGE_ND}, {"key": KEY}, "image_ND"),
    ],
)
def test_a_foreign_file_is_replaced(tmp_path, capsys, tensors, metadata, message):
    save_file(tensors, FeatureCache(tmp_path).path(KEY), metadata)
    assert message in _replaced(tmp_path, capsys)


def test_a_file_renamed_from_another_key_is_replaced(tmp_path, capsys):
    cache = FeatureCache(tmp_path)
    cache.fetch(KEY[::-1], len(IMAGE_ND), lambda _: True, lambda: IMAGE_ND + 1)
    cache.path(KEY[::-1]).rename(cache.path(KEY))
    _replaced(tmp_path, capsys)


def test_features_of_another_tower_are_replaced(tmp_path, capsys):
    cache = FeatureCache(tmp_path)
    cache.fetch(KEY, len(IMAGE_ND), lambda _: True, lambda: IMAGE_ND + 1)
    made, from_cache = _fetch(tmp_path, current=lambda cached_ND: torch.equal(cached_ND, IMAGE_ND))
    assert not from_cache
    assert torch.equal(made, IMAGE_ND)
    assert "not the features that this image tower computes" in capsys.readouterr().err
    assert torch.equal(_fetch(tmp_path, _never)[0], IMAGE_ND)


@settings(max_examples=60)
@given(st.data())
def test_random_damage_never_changes_a_number(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cache")
    file, whole = _cached_file(folder)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged[: data.draw(st.integers(0, len(whole)))])
    assert torch.equal(_fetch(folder)[0], IMAGE_ND)


# The folder.


@contextmanager
def _full_disk() -> Iterator[None]:
    """Make writing beyond 100 bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_gives_one_message_and_no_file(tmp_path, capsys):
    with _full_disk():
        made, from_cache = _fetch(tmp_path)
    assert not from_cache
    assert torch.equal(made, IMAGE_ND)
    (line,) = capsys.readouterr().err.splitlines()
    assert "features are not cached" in line
    assert f"evaluation.cache_dir={tmp_path}" in line
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("place", ["{}/file", "{}/file/folder", "/proc/so_clip"])
def test_a_folder_that_cannot_be_created_gives_one_message(tmp_path, capsys, place):
    (tmp_path / "file").write_text("in the way")
    made, from_cache = _fetch(Path(place.format(tmp_path)))
    assert not from_cache
    assert torch.equal(made, IMAGE_ND)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_in_place_of_the_file_gives_one_message(tmp_path, capsys):
    FeatureCache(tmp_path).path(KEY).mkdir()
    assert torch.equal(_fetch(tmp_path)[0], IMAGE_ND)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_concurrent_threads_never_read_a_torn_file(tmp_path, capsys):
    def work(number: int) -> None:
        for round_ in range(20):
            assert torch.equal(_fetch(tmp_path)[0], IMAGE_ND)
            if (number + round_) % 5 == 0:
                FeatureCache(tmp_path).path(KEY).unlink(missing_ok=True)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_concurrent_processes_never_read_a_torn_file(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; import torch\n"
        "from so_clip.evaluate.feature_cache import FeatureCache\n"
        "cache, key = FeatureCache(Path(sys.argv[1])), 'k'\n"
        "(cache.folder / sys.argv[2]).touch()\n"
        "while len([*cache.folder.glob('ready*')]) < 2: time.sleep(0.01)\n"
        "for turn in range(40):\n"
        "    image_ND, _ = cache.fetch(key, 50, lambda _: True, lambda: torch.ones(50, 64))\n"
        "    assert image_ND.eq(1).all()\n"
        "    if turn % 3 == 0: cache.path(key).unlink(missing_ok=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), f"ready{number}"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for number in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
