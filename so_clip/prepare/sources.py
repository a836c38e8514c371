"""Where a card says that its images and split file can be had, checked key by key.

`sources` in a card is a list, in the order of trial. A source is a mapping:

    kind: archive | parquet | videos | file | registration
    holds: images | split file
    files:                        # all are needed
      - url: https://…            # http or https
        name: EuroSAT.zip         # the file's name on disk; by default the last part of the URL
        md5: …  or  sha256: …     # only where published; otherwise counts are checked
        below: cars_train         # parquet: images of this file lie below this folder
    name_column: image_id         # parquet: where file names are, if not in the image itself
    listing: https://…            # parquet: JSON that names the files, in place of `files`

`archive` is a zip or tar, whatever its folders are called; `parquet` a set in Hugging Face's
layout; of `videos` the middle frames are the images: without files, of videos that the user has
already, with files, of those in archives; `registration` is never fetched, it tells people where
to go (`url`).

torchvision's loaders fetch the very archives that are listed here as their authors' own; the
checksums are those that torchvision publishes, and Hugging Face's pinned revisions need none.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from so_clip.data.cards.card import DatasetCard
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError

IMAGES, SPLIT = "images", "split file"
NO_SOURCE = "the card names no source."
KINDS = ("archive", "parquet", "videos", "file", "registration")
_DIGITS = {"md5": 32, "sha256": 64}
_SOURCE_KEYS = ("kind", "holds", "files", "name_column", "listing", "url")
_FILE_KEYS = ("url", "name", "below", *_DIGITS)


class SourceFailed(Exception):
    """One source cannot be used, and the next one is tried. The message names URL, file, way out.

    Attributes:
        spoiled: the source's files themselves are bad and are not to be tried again.
    """

    def __init__(self, message: str, spoiled: bool = False) -> None:
        super().__init__(message)
        self.spoiled = spoiled


@dataclass(frozen=True)
class RemoteFile:
    """One file of a source: its URL, its name on disk, and its checksum where one is known."""

    url: str
    name: str
    md5: str | None = None
    sha256: str | None = None
    below: str = ""


@dataclass(frozen=True)
class Source:
    """One way to get a dataset's images or its split file; see the module's text."""

    kind: str
    holds: str
    files: tuple[RemoteFile, ...] = ()
    name_column: str | None = None
    listing: RemoteFile | None = None
    url: str | None = None


def read_sources(card: DatasetCard, holds: str) -> list[Source]:
    """Return the sources of a card that hold `holds`, in order.

    Args:
        card: the dataset. The checksum of its split file goes with every source of it.
        holds: `IMAGES` or `SPLIT`.

    Raises:
        InputError: a malformed source, by card, place and key.
    """
    read = [_source(card, index, entry) for index, entry in enumerate(card.sources)]
    return [source for source in read if source.holds == holds]


def _source(card: DatasetCard, index: int, entry: dict[str, Any]) -> Source:
    place = f"{card.name}.yaml: sources[{index}]"
    _refuse_unknown(place, entry, _SOURCE_KEYS)
    kind, holds = entry.get("kind"), entry.get("holds")
    if kind not in KINDS:
        raise InputError(f"{place}.kind: must be one of {', '.join(KINDS)}, not {kind!r}.")
    if holds not in (IMAGES, SPLIT):
        raise InputError(f"{place}.holds: must be {IMAGES!r} or {SPLIT!r}, not {holds!r}.")
    files, listing = entry.get("files", []), entry.get("listing")
    wanted = kind not in ("videos", "registration") and (listing is None or kind != "parquet")
    if not isinstance(files, list) or (not files if wanted else files and kind == "registration"):
        raise InputError(f"{place}.files: must be a list of files for kind: {kind}, not {files!r}.")
    for key in ("name_column", "url"):
        if not isinstance(entry.get(key, ""), str):
            raise InputError(f"{place}.{key}: must be text, not {entry[key]!r}.")
    sha256 = card.split_sha256 if holds == SPLIT else None
    read = [_file(f"{place}.files[{at}]", each, sha256) for at, each in enumerate(files)]
    listed = {"url": listing, "name": "listing.json"}
    return Source(
        kind,
        holds,
        tuple(read),
        entry.get("name_column"),
        None if listing is None else _file(f"{place}.listing", listed, None),
        entry.get("url"),
    )


def _file(place: str, entry: Any, sha256: str | None) -> RemoteFile:
    if not isinstance(entry, dict):
        raise InputError(f"{place}: must be a mapping with a url, not {entry!r}.")
    _refuse_unknown(place, entry, _FILE_KEYS)
    url = entry.get("url")
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{place}.url: must begin with http:// or https://, not {url!r}.")
    name = entry.get("name", unquote(PurePosixPath(urlsplit(url).path).name))
    below = entry.get("below", "")
    for key, value in (("name", name), ("below", below or "none")):
        if not isinstance(value, str) or why_outside(value) or (key == "name" and "/" in value):
            raise InputError(f"{place}.{key}: must name something below a folder, not {value!r}.")
    for key, digits in _DIGITS.items():
        value = entry.get(key)
        if value is not None and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", str(value)):
            raise InputError(f"{place}.{key}: must be {digits} hexadecimal digits, not {value!r}.")
    return RemoteFile(url, name, entry.get("md5"), entry.get("sha256", sha256), below)


def _refuse_unknown(place: str, entry: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in entry:
        if key not in known:
            raise InputError(f"{place}.{key}: is unknown; known: {', '.join(known)}.")
