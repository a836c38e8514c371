"""Finds the files of a dataset of sentences below the data root, and reads them."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from so_clip.data.plain_files import decoded
from so_clip.data.sentences.card import SentenceCard, how_to_get_sentences
from so_clip.data.sentences.pairs import Pair
from so_clip.data.sentences.parquet import read_parquet
from so_clip.data.sentences.tsv import read_tsv
from so_clip.errors import InputError, reason_of
from so_clip.system.safe_open import MAX_LIST_BYTES, open_plain, read_plain

# More than any archive of GLUE. The list of a zip's members is read whole.
_MAX_ARCHIVE_BYTES = 2**30
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class SentenceFiles:
    """The files of both splits, in order. An archive holds the tsv files of both."""

    kind: Literal["parquet", "tsv", "archive"]
    train: tuple[Path, ...]
    validation: tuple[Path, ...]


def find_sentences(card: SentenceCard, data_root: Path) -> SentenceFiles:
    """Return the files of a dataset: parquet files, tsv files, or GLUE's archive of tsv files.

    The card's folder comes first, then the folders of other code bases, then an archive in the
    data root. In each folder, parquet files come first.

    Raises:
        InputError: there are no such files, or only those of one split.
    """
    incomplete: list[str] = []
    for folder in (card.folder, *card.other_folders):
        for found in sets_of_files(card, data_root / folder):
            if isinstance(found, SentenceFiles):
                return found
            incomplete.append(found)
    if card.tsv and card.tsv.archive:
        archive = data_root / card.tsv.archive
        if os.path.exists(archive):  # noqa: PTH110 - Path.exists raises in a locked folder
            return SentenceFiles("archive", (archive,), (archive,))
    if incomplete:
        raise InputError(f"{incomplete[0]} {how_to_get_sentences(card, data_root)}")
    raise InputError(
        f"dataset={card.name}: the files of {card.title} are not in {data_root / card.folder}. "
        f"{how_to_get_sentences(card, data_root)}"
    )


def sets_of_files(card: SentenceCard, folder: Path) -> Iterator[SentenceFiles | str]:
    """Yield the sets of files in a folder; in place of an incomplete set, what is missing."""
    try:
        names = set(os.listdir(folder))  # noqa: PTH208 - only the names are needed
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {reason_of(error)}.") from error
    if card.parquet:
        stems = (card.parquet.train, card.parquet.validation)
        train, validation = ([*_parquet_files(names, stem, folder)] for stem in stems)
        if train and validation:
            yield SentenceFiles("parquet", tuple(train), tuple(validation))
        elif train or validation:
            yield f"{folder / stems[bool(train)]}.parquet: is missing."
    if card.tsv:
        files = (card.tsv.train, card.tsv.validation)
        there = [file in names for file in files]
        if all(there):
            yield SentenceFiles("tsv", (folder / files[0],), (folder / files[1],))
        elif any(there):
            yield f"{folder / files[there[0]]}: is missing."
        if card.tsv.archive in names:
            archive = folder / card.tsv.archive
            yield SentenceFiles("archive", (archive,), (archive,))


def _parquet_files(names: set[str], stem: str, folder: Path) -> Iterator[Path]:
    """Yield the parquet files of one split among the names in a folder, in order.

    Raises:
        InputError: one of several files is missing.
    """
    if (whole := f"{stem}.parquet") in names:
        yield folder / whole
        return
    shards = [_SHARD.fullmatch(name[len(stem) :]) for name in names if name.startswith(stem)]
    total = max((int(shard[2]) for shard in shards if shard), default=0)
    for number in range(total):
        name = f"{stem}-{number:05}-of-{total:05}.parquet"
        if name not in names:
            raise InputError(f"{folder / name}: is missing, and other parts of it are there.")
        yield folder / name


def read_sentences(files: SentenceFiles, card: SentenceCard) -> tuple[list[Pair], list[Pair]]:
    """Return the examples of train and of validation.

    Raises:
        InputError: a file cannot be read; the message names file, place and problem.
    """
    if files.kind == "parquet":
        assert card.parquet is not None
        train = read_parquet(files.train, card.parquet, card.label_names)
        return train, read_parquet(files.validation, card.parquet, card.label_names)
    assert card.tsv is not None
    contents: list[tuple[Path, bytes]]
    if files.kind == "tsv":
        contents = [(file, _content(file)) for file in (*files.train, *files.validation)]
    else:
        folder = f"{card.tsv.folder}/" if card.tsv.folder else ""
        members = [f"{folder}{file}" for file in (card.tsv.train, card.tsv.validation)]
        read = _members(files.train[0], members)
        contents = [(files.train[0] / name, data) for name, data in zip(members, read, strict=True)]
    train, validation = (
        read_tsv(decoded(file, data), str(file), card.tsv, card.label_names)
        for file, data in contents
    )
    return train, validation


def _content(file: Path) -> bytes:
    try:
        return read_plain(file, MAX_LIST_BYTES)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason_of(error)}.") from error


def _members(archive: Path, names: Sequence[str]) -> list[bytes]:
    """Return the contents of files in a zip. Nothing is unpacked to the disk."""
    try:
        with os.fdopen(open_plain(archive), "rb") as stream:
            if (size := os.fstat(stream.fileno()).st_size) > _MAX_ARCHIVE_BYTES:
                raise ValueError(f"it has {size / 2**20:.0f} MiB, more than any archive of GLUE")
            with zipfile.ZipFile(stream) as opened:
                return [_member(opened, name) for name in names]
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(
            f"{archive}: cannot be read as a zip archive: {reason_of(error)}. Get it again."
        ) from error


def _member(opened: zipfile.ZipFile, name: str) -> bytes:
    if name not in opened.namelist():
        raise ValueError(f"it holds no file {name}")
    info = opened.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in an unusual way")
    if info.file_size > MAX_LIST_BYTES:
        raise ValueError(
            f"{name} unpacks to {info.file_size / 2**20:.0f} MiB, and at most "
            f"{MAX_LIST_BYTES // 2**20} MiB are read"
        )
    return opened.read(name)  # zipfile reads no more than the size that it claims
