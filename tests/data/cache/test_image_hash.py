"""The checksum of a list of images: of all their files, in order."""

import pytest
from PIL import Image

from so_clip.data.cache.image_hash import images_sha256
from so_clip.data.images import ImageFolder
from so_clip.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        Image.effect_noise((40, 36), 50 + index).save(tmp_path / f"{index}.png")
    return ImageFolder(tmp_path)


def test_images_that_cannot_be_read_are_named(folder):
    (folder.root / "1.png").unlink()
    (folder.root / "2.png").write_bytes(b"")
    for workers in (0, 3):
        with pytest.raises(InputError, match=r"1\.png: the image is missing"):
            images_sha256(folder, ["0.png", "1.png", "2.png"], workers)
        with pytest.raises(InputError, match=r"2\.png: the image is empty"):
            images_sha256(folder, ["0.png", "2.png"], workers)


def test_many_images_are_read_in_order(tmp_path):
    for index in range(200):
        (tmp_path / str(index)).write_text(str(index))
    names, images = [str(index) for index in range(200)], ImageFolder(tmp_path)
    assert images_sha256(images, names, 0) == images_sha256(images, names, 7)
    for other in (names[::-1], names[:-1], [*names[:100], "101", "100", *names[102:]]):
        assert images_sha256(images, other, 2) != images_sha256(images, names, 2)


def test_no_bar_is_shown_in_a_log(folder, monkeypatch, capsys):
    monkeypatch.setattr("so_clip.data.cache.image_hash._PATIENCE_SECONDS", 0)
    images_sha256(folder, ["0.png", "1.png"], 1)
    assert capsys.readouterr().err == ""
