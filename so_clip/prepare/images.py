"""The images of one dataset, from the first of its sources that has all of them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.decode import why_too_large
from so_clip.data.lists.splits import dataset_folder, load_splits
from so_clip.data.sentences.card import SentenceCard
from so_clip.errors import InputError
from so_clip.prepare.download import fetch, wrong_checksum
from so_clip.prepare.missing import missing_images
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.parquet import Names, extract, listed_files, require_pyarrow
from so_clip.prepare.place import copy, find_folder, find_images, merge, remove
from so_clip.prepare.sources import (
    IMAGES,
    NO_SOURCE,
    RemoteFile,
    Source,
    SourceFailed,
    read_sources,
)
from so_clip.prepare.unpack import Budget, nested_archives, unpack
from so_clip.prepare.videos import extract_frames, find_videos, require_decoder

GIB = 2**30
Take = Callable[[Path, Path], object]


@dataclass
class Supply:
    """The files of sources, from the user's folder or from the network.

    Args:
        card: the dataset.
        options: decide whether files are downloaded.
        work: a folder for this dataset only, on the file system of the data root.
    """

    card: DatasetCard | SentenceCard
    options: PrepareOptions
    work: Path

    def obtain(self, remote: RemoteFile) -> Path:
        """Return the file, downloaded if necessary; SourceFailed if it is not available."""
        given = self.options.offline_from
        if given is None:
            return fetch(remote, self._folder(remote), self.options)
        file = self.given_file(remote)
        if file is None:
            raise SourceFailed(
                f"{remote.name} is not in {_folder_of(given)} (published at {remote.url})."
            )
        if file != given and (problem := wrong_checksum(file, remote)):
            raise SourceFailed(
                f"{file}: {problem}. It is damaged or another version: download it again from "
                f"{remote.url}, or name the file itself, --offline-from {file}, to use it without "
                "its checksum."
            )
        return file

    def given_file(self, remote: RemoteFile) -> Path | None:
        """Return the user's copy of a file; None without one."""
        given = self.options.offline_from
        if given is None or remote.url == str(given):
            return given
        base = _folder_of(given)
        folders = (base, base / self.card.folder, base / self.card.name, base / "splits")
        files = [folder / remote.name for folder in folders]
        return next((file for file in files if file.is_file()), None)

    def forget(self, remote: RemoteFile) -> None:
        """Remove a bad download; the user's own files stay."""
        remove(self._folder(remote))

    def _folder(self, remote: RemoteFile) -> Path:
        # Several sources may have files of one name.
        key = hashlib.sha256(remote.url.encode()).hexdigest()[:12]
        return self.work / "downloads" / key


def _folder_of(given: Path) -> Path:
    return given if given.is_dir() else given.parent


class ImageSources:
    """Tries the sources of a card's images in order.

    Args:
        card: the dataset.
        options: target and limits.
        supply: gives the files; its work folder is used.
        say: gets one line for each source that failed.
    """

    def __init__(
        self, card: DatasetCard, options: PrepareOptions, supply: Supply, say: Callable[[str], None]
    ) -> None:
        self.card, self.supply, self.say = card, supply, say
        self.root, self.given = options.data_root, options.offline_from
        self.budget_bytes = int(options.max_unpacked_gib * GIB)
        self.budget = Budget(self.budget_bytes)
        self.tree, self.staged = supply.work / "unpacked", supply.work / "staged"

    def complete(self) -> bool:
        """Place the missing images from the first source that has them; return whether one has."""
        sources = read_sources(self.card, IMAGES)
        if self.given is not None and self.given.is_file():
            file = RemoteFile.model_construct(url=str(self.given), name=self.given.name)
            kind = "parquet" if self.given.suffix == ".parquet" else "archive"
            sources = [Source.model_construct(kind=kind, holds=IMAGES, files=[file])]
        if self._place_unpacked(sources):
            return True
        for source in sources:
            self.clear()
            try:
                if self._place_from(source):
                    return True
            except SourceFailed as error:
                self.say(str(error))
                if error.spoiled:
                    for remote in source.files:
                        self.supply.forget(remote)
        if not sources:
            self.say(NO_SOURCE)
        return False

    def _place_unpacked(self, sources: Sequence[Source]) -> bool:
        """Copy the images from the user's folder if it is unpacked; return whether they are there.

        A folder with an archive of a source is not searched.
        """
        files = [remote for source in sources for remote in source.files]
        if self.given is None or not self.given.is_dir() or any(map(self.supply.given_file, files)):
            return False
        self.clear()
        try:
            problem = self._place(self.given, copy)
        except SourceFailed as error:
            problem = str(error)
        if problem:
            self.say(f"{self.given} is not this dataset unpacked: {problem.rstrip('.')}.")
        return not problem

    def clear(self) -> None:
        """Remove unpacked images that are not in place."""
        remove(self.tree)
        remove(self.staged)

    def _place_from(self, source: Source) -> bool:
        """Place the images of one source; return False if it offers nothing."""
        if source.kind == "registration":
            self.say(f"{source.url}: registration is required.")
            return False
        self.tree.mkdir(parents=True)
        self.budget = Budget(self.budget_bytes)
        if source.kind == "videos":
            if not self._extract_videos(source):
                return False
        elif source.kind == "parquet":
            self._read_parquet(source)
        else:
            self._unpack(source)
        problem = self._place(self.tree)
        if problem and source.kind not in ("videos", "parquet") and self._open_nested():
            problem = self._place(self.tree)
        if problem:
            raise SourceFailed(f"{_name(source, self.card)}: {problem}.", spoiled=True)
        return True

    def _unpack(self, source: Source) -> None:
        for remote in source.files:
            unpack(self.supply.obtain(remote), self.tree, self.budget)

    def _open_nested(self) -> bool:
        """Unpack archives in the archive and extract frames; return whether there were any."""
        nested = nested_archives(self.tree)
        for archive in nested:
            inner = archive.with_name(f"{archive.name}.unpacked")
            inner.mkdir()
            unpack(archive, inner, self.budget, inside_another=True)
            archive.unlink()
        sources = read_sources(self.card, IMAGES)
        has_videos = any(source.kind == "videos" for source in sources)
        return (has_videos and self._extract_frames([self.tree])) or bool(nested)

    def _read_parquet(self, source: Source) -> None:
        require_pyarrow(_name(source, self.card))
        files = list(source.files)
        if source.listing is not None:
            # The content of a listing may change.
            self.supply.forget(source.listing)
            files += listed_files(self.supply.obtain(source.listing), source.listing.url)
        splits = load_splits(self.card, self.root)
        paths = [example.path for example in splits.examples]
        names = Names(paths, [splits.class_names[label] for _, label in splits.examples])
        for remote in files:
            file = self.supply.obtain(remote)
            if not extract(file, self.tree, names, source.name_column, remote.below, self.budget):
                raise SourceFailed(
                    f"{remote.url}: no row of {remote.name} has the file name of an image in the "
                    "split file, so its images cannot be identified.",
                    spoiled=True,
                )

    def _extract_videos(self, source: Source) -> bool:
        """Extract the frames of a source's videos, or of the user's; False without videos."""
        if not source.files:
            given = [self.given] if self.given and self.given.is_dir() else []
            return self._extract_frames([dataset_folder(self.card, self.root), *given])
        try:
            require_decoder()
        except InputError as error:
            # Before gigabytes are downloaded. Another source may need no decoder.
            raise SourceFailed(f"{source.files[0].url}: {error}") from error
        self._unpack(source)
        self._open_nested()
        return True

    def _extract_frames(self, folders: Sequence[Path]) -> bool:
        """Extract the missing frames if the folders hold all their videos; return whether."""
        missing = missing_images(self.card, self.root)
        videos: dict[str, Path] = {}
        for folder in folders:
            videos |= find_videos(folder, missing)
        if len(videos) < len(missing):
            if videos:
                first = next(path for path in missing if path not in videos)
                self.say(
                    f"videos in {', '.join(map(str, folders))}: {len(missing) - len(videos)} of "
                    f"{len(missing)} are missing, first that of {first}; no video is used."
                )
            return False
        require_decoder()
        extract_frames(videos, self.tree / "frames")
        return True

    def _place(self, tree: Path, take: Take = Path.rename) -> str:
        """Stage the images in the tree, check them and move them into place; return a problem.

        Args:
            tree: the folder of an unpacked source.
            take: brings a file of the tree to its staged path.
        """
        stage = self._stage_listed if self.card.layout == "split_file" else self._stage_folder
        if problem := stage(tree, take):
            return problem
        _check_pixels(self.staged)
        if hasattr(os, "sync"):
            # After a power cut, no name may be in place whose content is not on the disk.
            os.sync()
        merge(self.staged / self.card.folder, dataset_folder(self.card, self.root))
        return ""

    def _stage_listed(self, tree: Path, take: Take) -> str:
        missing = missing_images(self.card, self.root)
        found = find_images(tree, missing)
        if len(found) < len(missing):
            first = next(path for path in missing if path not in found)
            count = len(missing) - len(found)
            return f"{count} of {len(missing)} images are not in it, first {first}"
        images = self.staged / self.card.folder / self.card.image_dir
        for path, file in found.items():
            (images / path).parent.mkdir(parents=True, exist_ok=True)
            take(file, images / path)
        return ""

    def _stage_folder(self, tree: Path, take: Take) -> str:
        found = find_folder(tree, self.card)
        if found is None:
            return "the folders of this dataset are not in it"
        has_lists = self.card.layout == "fgvc_aircraft"
        place = self.staged / self.card.folder / ("" if has_lists else self.card.image_dir)
        place.parent.mkdir(parents=True)
        take(found, place)
        if missing := missing_images(self.card, self.staged):
            raise SourceFailed(f"{self.card.title}: {missing[0]}.", spoiled=True)
        return ""


def _name(source: Source, card: DatasetCard) -> str:
    files = [*source.files, *([source.listing] if source.listing else [])]
    return files[0].url if files else card.title


def _check_pixels(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with Path(root, name).open("rb") as stream:
                if reason := why_too_large(stream):
                    raise SourceFailed(f"{name}: {reason}. Its source is refused.", spoiled=True)
