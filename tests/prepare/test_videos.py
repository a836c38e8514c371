"""UCF101's images from videos that the tests make."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from so_clip.prepare.sources import SourceFailed
from so_clip.prepare.videos import extract_frames
from tests.helpers.archives import (
    archive,
    below,
    laid_out,
    paths,
    prepare,
    prepare_without,
    split_bytes,
    split_source,
    write_card,
    zipped,
)

VIDEOS = {"kind": "videos", "holds": "images"}


def video(greys, suffix="avi"):
    """Return a video whose frames are of these grey values."""
    data = io.BytesIO()
    with av.open(data, "w", format=suffix) as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width = stream.height = 32
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 32, 3), grey, dtype=np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


def _videos(count=5):
    made = video(range(100, 100 + 20 * count, 20))
    return {path.replace(".jpg", ".avi"): made for path in paths()}


def _grey(data):
    return int(np.asarray(Image.open(io.BytesIO(data)).convert("L"))[16, 16])


def _card(server, root, *sources):
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(root.parent / "cards", *sources, split)


def test_the_users_videos_are_used_without_a_download(server, root):
    for path, data in below("UCF-101", _videos()).items():
        (root / "small" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "small" / path).write_bytes(data)
    _card(server, root, VIDEOS, archive(server.serve("never.zip", status=404)))
    done = prepare(root)
    assert done.code == 0
    assert not server.ranges("never.zip")
    there = laid_out(root)
    assert sorted(there) == sorted(paths())
    # The third of five frames, which are 100 to 180.
    assert all(abs(_grey(data) - 140) <= 3 for data in there.values())
    assert (root / "small" / "UCF-101" / "ant" / "ant_0.avi").is_file()


@pytest.mark.parametrize("kind", ["videos", "archive"])
def test_videos_in_an_archive_are_used(kind, server, root):
    url = server.serve("UCF-101.zip", zipped(below("UCF-101", _videos())))
    sources = [{"kind": "videos", "holds": "images", "files": [{"url": url}]}]
    if kind == "archive":
        sources = [archive(url), VIDEOS]
    _card(server, root, *sources)
    assert prepare(root).code == 0
    assert sorted(laid_out(root)) == sorted(paths())


def test_videos_are_used_only_if_all_are_there(server, root):
    some = dict(list(_videos().items())[:3])
    for path, data in some.items():
        (root / "small" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "small" / path).write_bytes(data)
    _card(server, root, VIDEOS)
    done = prepare(root)
    assert done.code == 1
    assert "9 of 12 are missing" in done.err


@pytest.mark.parametrize(("count", "grey"), [(1, 100), (2, 120), (5, 140)])
def test_the_middle_frame_is_extracted(count, grey, tmp_path):
    (tmp_path / "a.avi").write_bytes(video(range(100, 100 + 20 * count, 20)))
    extract_frames({"a.jpg": tmp_path / "a.avi"}, tmp_path / "out")
    assert abs(_grey((tmp_path / "out" / "a.jpg").read_bytes()) - grey) <= 3


def test_frames_are_counted_if_the_header_has_no_number(tmp_path):
    (tmp_path / "a.mkv").write_bytes(video(range(100, 200, 20), "matroska"))
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.video[0].frames == 0
    extract_frames({"a.jpg": tmp_path / "a.mkv"}, tmp_path)
    assert abs(_grey((tmp_path / "a.jpg").read_bytes()) - 140) <= 3


def test_a_video_that_ends_before_its_middle_is_named(tmp_path):
    data = video(range(60, 240, 4))
    first = data.index(b"movi")
    (tmp_path / "a.avi").write_bytes(data[: first + (len(data) - first) // 4])
    with pytest.raises(SourceFailed, match=r"a\.avi: the video cannot be decoded \("):
        extract_frames({"a.jpg": tmp_path / "a.avi"}, tmp_path)


@pytest.mark.parametrize("data", [b"", b"no video" * 99])
def test_a_file_that_is_not_a_video_is_named(data, tmp_path):
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(SourceFailed, match=r"a\.avi: the video cannot be decoded .*Fetch it again"):
        extract_frames({"a.jpg": tmp_path / "a.avi"}, tmp_path)


def test_without_a_decoder_the_pip_command_is_named(server, root):
    for path, data in _videos().items():
        (root / "small" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "small" / path).write_bytes(data)
    _card(server, root, VIDEOS)
    said = prepare_without("av", root)
    assert "frames of videos, which needs PyAV" in said
    assert "pip install 'so-clip[prepare]'" in said
    assert said.endswith("2\n")
