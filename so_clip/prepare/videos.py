"""UCF101's images: the middle frame of each video, as JPEG.

CoOp's archive of middle frames does not name its decoder and JPEG quality. So frames from here look
the same as CoOp's but are not equal bit for bit.
"""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from so_clip.errors import InputError
from so_clip.prepare.sources import SourceFailed
from so_clip.system.commands import install
from so_clip.system.threads import in_threads

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")
JPEG_QUALITY = 95


def find_videos(folder: Path, paths: Iterable[str]) -> dict[str, Path]:
    """Return the video below `folder` of each image in `paths`, matched by name without suffix."""
    found = {
        Path(name).stem: Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    }
    stems = {path: PurePosixPath(path).stem for path in paths}
    return {path: found[stem] for path, stem in stems.items() if stem in found}


def require_decoder() -> None:
    """Raise InputError, with the pip command, if PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the images are frames of videos, which needs PyAV ({error}): "
            f"{install('so-clip[prepare]')}."
        ) from error


def extract_frames(videos: dict[str, Path], target: Path) -> None:
    """Write the middle frame of each video to its path below `target`.

    Raises:
        SourceFailed: a video cannot be decoded; the message names it.
    """

    def extract(path: str) -> None:
        _extract(videos[path], target / path)

    list(in_threads(extract, list(videos), "middle frames", unit="video"))


def _extract(video: Path, place: Path) -> None:
    import av

    try:
        frame = _middle_frame(video)
        place.parent.mkdir(parents=True, exist_ok=True)
        frame.to_image().save(place, format="JPEG", quality=JPEG_QUALITY)
    except (av.FFmpegError, ValueError) as error:
        raise SourceFailed(
            f"{video}: the video cannot be decoded ({error}). Fetch it again."
        ) from error
    except OSError as error:
        raise SourceFailed(
            f"{video}: its middle frame cannot be written to {place}: {error.strerror}. Free the "
            "disk, or choose another folder with data_root=FOLDER."
        ) from error


def _middle_frame(video: Path) -> Any:
    """Return frame n // 2 of n. If the header does not give n, the frames are counted."""
    import av

    with av.open(str(video)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video stream")
        count = container.streams.video[0].frames
    if not count:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
    frame = _frame(video, count // 2)
    if frame is None:
        raise ValueError(f"it ends before the middle of its {count} frames")
    return frame


def _frame(video: Path, number: int) -> Any:
    import av

    with av.open(str(video)) as container:
        return next(islice(container.decode(video=0), number, None), None)
