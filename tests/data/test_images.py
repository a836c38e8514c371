"""Images are decoded as in CLIP's reference, or refused by name."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from so_clip.data import decode
from so_clip.data.cards.card import load_card
from so_clip.data.digits import load_digits
from so_clip.data.examples import Example
from so_clip.data.images import (
    DigitArray,
    ImageFolder,
    load_uint8,
    open_images,
    require_images,
    to_tensor,
)
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError


def _picture(width=20, height=10, mode="RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def _encoded(image: Image.Image, kind="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "good.jpg").write_bytes(_encoded(_picture()))
    return ImageFolder(tmp_path)


def test_real_images_are_decoded_as_pil_does(eurosat_images):
    root = eurosat_images[0].parent.parent
    source = ImageFolder(root)
    for file in eurosat_images[:5]:
        image = source.read(file.relative_to(root).as_posix())
        assert image.mode == "RGB"
        reference = Image.open(file).convert("RGB")
        assert image.tobytes() == reference.tobytes()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA"),
        ("GIF", "P"), ("BMP", "RGB"), ("PPM", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"),
    ],
)  # fmt: skip
def test_every_mode_and_format_becomes_rgb_for_any_file_name(kind, mode, tmp_path):
    data = _encoded(_picture(mode="L").convert(mode) if mode == "LA" else _picture(mode=mode), kind)
    (tmp_path / "x.jpg").write_bytes(data)
    image = ImageFolder(tmp_path).read("x.jpg")
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_camera_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.jpg").write_bytes(_encoded(_picture(20, 10), exif=exif))
    assert ImageFolder(tmp_path).read("x.jpg").size == (20, 10)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_truncated_image_is_named(kept, folder):
    data = _encoded(_picture(200, 100))
    (folder.root / "a" / "cut.jpg").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=r"a/cut\.jpg: the image cannot be decoded .*truncated"):
        folder.read("a/cut.jpg")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@settings(max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), st.data())
def test_damaged_images_are_decoded_or_refused_by_name(tmp_path_factory, kind, data):
    content = bytearray(_encoded(_picture(), kind))
    cut = data.draw(st.integers(0, len(content)))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    root = tmp_path_factory.getbasetemp()
    (root / "x.jpg").write_bytes(content[:cut])
    try:
        image = ImageFolder(root).read("x.jpg")
    except InputError as error:
        assert str(error).startswith(str(root / "x.jpg"))  # noqa: PT017 - either outcome is right
    else:
        assert image.mode == "RGB"


def test_missing_empty_folder_text_and_pipe_are_refused(folder):
    root = folder.root
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("<html>404</html>")
    (root / "script.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    os.mkfifo(root / "pipe.jpg")
    for path, problem in {
        "b/none.jpg": r"the image is missing.*complete the dataset",
        "empty.jpg": r"the image is empty \(0 bytes\)\. Fetch it again",
        "a": "this is a folder",
        "text.jpg": "this is a web page, not an image. The download failed",
        "script.jpg": "this is a PostScript document, a format that is not read. Export",
        "pipe.jpg": "this is not a plain file",
        "a/good.jpg/x.jpg": r"cannot be read \(Not a directory\)",
    }.items():
        with pytest.raises(InputError, match=problem) as caught:
            folder.read(path)
        assert str(caught.value).startswith(f"{root / path}: ")


@pytest.mark.parametrize("path", ["../x.jpg", "/etc/passwd", "C:/x.jpg", "a\\b.jpg", "a\0.jpg", ""])
def test_paths_never_leave_the_folder(path, folder):
    (folder.root.parent / "x.jpg").write_bytes(_encoded(_picture()))
    with pytest.raises(InputError, match="is refused: it"):
        folder.read(path)
    with pytest.raises(InputError, match="is refused: it"):
        folder.missing([path])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_gigantic_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    # 400 million black pixels, compressed to 50 kB.
    bomb = _encoded(Image.new("1", (20_000, 20_000)), "PNG")
    (tmp_path / "bomb.png").write_bytes(bomb)
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=r"bomb\.png: the image is too large.*Scale it down"):
            ImageFolder(tmp_path).read("bomb.png")


def test_the_pixel_limit_equals_that_of_pillow():
    code = "from PIL import Image; print(2 * Image.MAX_IMAGE_PIXELS)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(fresh.stdout) == decode.MAX_PIXELS


def test_contents_are_the_bytes_of_the_files(folder):
    assert folder.content("a/good.jpg") == (folder.root / "a" / "good.jpg").read_bytes()
    (folder.root / "text.jpg").write_text("no image, but a file")
    assert folder.content("text.jpg") == b"no image, but a file"
    (folder.root / "empty.jpg").write_bytes(b"")
    for path, said in (
        ("none.jpg", "the image is missing"),
        ("empty.jpg", "the image is empty"),
        ("a", "this is a folder"),
        ("../x.jpg", "is refused"),
    ):
        with pytest.raises(InputError, match=said):
            folder.content(path)


def test_missing_images_are_listed_in_order(folder):
    assert folder.missing(["z.jpg", "a/good.jpg", "a", "b.jpg"]) == ["z.jpg", "a", "b.jpg"]


def test_missing_images_are_counted_before_a_run(folder, make_card):
    examples = [Example(path, 0) for path in ("a/good.jpg", "z.jpg", "b.jpg", "z.jpg")]
    with pytest.raises(InputError, match=r"2 of 3 images of Small set are missing, first z\.jpg"):
        require_images(folder, examples, make_card())
    require_images(folder, examples[:1], make_card())


def test_images_are_opened_in_the_folder_on_the_card(tmp_path, make_card):
    card = make_card(image_dir="")
    with pytest.raises(InputError, match=r"/small: the image folder of Small set does not exist"):
        open_images(card, tmp_path)
    with pytest.raises(InputError, match="data_root is not given"):
        open_images(card, None)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "x.png").write_bytes(_encoded(_picture(), "PNG"))
    assert open_images(card, tmp_path).read("x.png").tobytes() == _picture().tobytes()


def test_linked_datasets_are_followed(folder, tmp_path_factory, make_card):
    root = tmp_path_factory.mktemp("links")
    (root / "small").symlink_to(folder.root)
    assert open_images(make_card(image_dir="a"), root).read("good.jpg").size == (20, 10)


def test_digits_are_read_from_the_package():
    source = open_images(load_card("digits"), None)
    assert isinstance(source, DigitArray)
    splits = load_splits(load_card("digits"), None)
    require_images(source, splits.train + splits.val + splits.test, load_card("digits"))
    image = source.read("digit_0042.png")
    assert np.array_equal(np.asarray(image)[..., 1], load_digits().images_NHW[42])
    assert image.mode == "RGB"
    assert source.missing(["digit_0000.png", "digit_9999.png"]) == ["digit_9999.png"]
    assert source.content("digit_0042.png") == load_digits().images_NHW[42].tobytes()
    for take in (source.read, source.content):
        with pytest.raises(InputError, match=r"digit_9999\.png: there is no such .*_1796\.png"):
            take("digit_9999.png")


def test_few_shots_are_decoded_in_order_and_repeats_share_memory(tmp_path):
    for index, size in enumerate([(4, 7), (9, 2), (1, 1)]):
        (tmp_path / f"{index}.png").write_bytes(_encoded(_picture(*size), "PNG"))
    examples = [Example(f"{index}.png", 0) for index in (2, 0, 1, 0)]
    tensors = load_uint8(ImageFolder(tmp_path), examples, progress=False)
    assert [tuple(tensor.shape) for tensor in tensors] == [
        (3, 1, 1),
        (3, 7, 4),
        (3, 2, 9),
        (3, 7, 4),
    ]
    assert tensors[1] is tensors[3]
    for tensor, example in zip(tensors, examples, strict=True):
        assert tensor.dtype == torch.uint8
        assert tensor.is_contiguous()
        pixels_HWC = np.asarray(Image.open(tmp_path / example.path))
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels_HWC)
    assert load_uint8(ImageFolder(tmp_path), [], progress=False) == []


def test_first_unreadable_few_shot_is_the_one_reported(folder):
    paths = ["a/good.jpg", "first.jpg", "second.jpg"]
    with pytest.raises(InputError, match=r"first\.jpg: the image is missing"):
        load_uint8(folder, [Example(path, 0) for path in paths], progress=False)


def test_progress_is_shown_only_on_terminals(folder, capsys):
    load_uint8(folder, [Example("a/good.jpg", 0)])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_tensor_is_writable_and_its_own(folder):
    image = folder.read("a/good.jpg")
    tensor = to_tensor(image)
    before = image.tobytes()
    tensor.zero_()
    assert image.tobytes() == before
