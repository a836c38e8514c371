"""The images of one dataset, from the first of its sources that has them all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.images import why_too_large
from so_clip.data.lists.splits import dataset_folder, load_splits
from so_clip.errors import InputError
from so_clip.prepare.download import fetch, wrong_checksum
from so_clip.prepare.missing import all_examples, lacking
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.parquet import Names, extract, listed_files, require_pyarrow
from so_clip.prepare.place import find_folder, find_images, merge, remove
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


class Supply:
    """Files of sources, from the user's folder or from the network, in a folder for work.

    Args:
        card: the dataset.
        options: say whether the network may be used.
        work: a folder of this dataset's own, on the file system of the data root.
    """

    def __init__(self, card: DatasetCard, options: PrepareOptions, work: Path) -> None:
        self.card, self.options, self.work = card, options, work

    def obtain(self, remote: RemoteFile) -> Path:
        """Return the file, downloaded if need be; SourceFailed says why it cannot be had."""
        given = self.options.offline_from
        if given is None:
            return fetch(remote, self._folder(remote), self.options.patience)
        if remote.url == str(given):
            return given
        base = given if given.is_dir() else given.parent
        places = (base, base / self.card.folder, base / self.card.name, base / "splits")
        file = next((p / remote.name for p in places if (p / remote.name).is_file()), None)
        if file is None:
            raise SourceFailed(f"{remote.name} is not in {base} (published at {remote.url}).")
        if problem := wrong_checksum(file, remote):
            raise SourceFailed(
                f"{file}: {problem}. It is damaged or another version: fetch it again from "
                f"{remote.url}, or give the file itself, --offline-from {file}, to go by what is "
                "in it."
            )
        return file

    def forget(self, remote: RemoteFile) -> None:
        """Drop a download that turned out to be bad; what the user gave stays."""
        remove(self._folder(remote))

    def _folder(self, remote: RemoteFile) -> Path:
        # Several sources may have files of one name.
        key = hashlib.sha256(remote.url.encode()).hexdigest()[:12]
        return self.work / "downloads" / key


class ImageSources:
    """Tries the sources of a card's images in order.

    Args:
        card: the dataset.
        options: where to, and how.
        supply: where files come from; its folder for work is used.
        say: is told of every source that failed.
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
        """Place what is lacking from the first source that has it; say why others failed.

        Returns:
            Whether one worked.
        """
        sources = read_sources(self.card, IMAGES)
        if self.given is not None and self.given.is_file():
            kind = "parquet" if self.given.suffix == ".parquet" else "archive"
            sources = [Source(kind, IMAGES, (RemoteFile(str(self.given), self.given.name),))]
        for source in sources:
            self.clear()
            if self._attempt(source):
                return True
        if not sources:
            self.say(NO_SOURCE)
        return False

    def _attempt(self, source: Source) -> bool:
        """Return whether the source had it all; if it failed, say why."""
        if source.kind == "registration":
            self.say(f"{source.url}: wants you to register.")
            return False
        try:
            return self._try(source)
        except SourceFailed as error:
            self.say(str(error))
            if error.spoiled:
                for remote in source.files:
                    self.supply.forget(remote)
            return False

    def clear(self) -> None:
        """Remove what is unpacked but not in place."""
        remove(self.tree)
        remove(self.staged)

    def _try(self, source: Source) -> bool:
        """Place the images of one source; False where it has nothing to offer."""
        self.tree.mkdir(parents=True)
        self.budget = Budget(self.budget_bytes)
        if source.kind == "videos":
            if not self._frames_from_videos(source):
                return False
            problem = self._place()
        elif source.kind == "parquet":
            self._read_parquet(source)
            problem = self._place()
        else:
            self._unpack(source)
            problem = self._place()
            if problem and self._open_nested():
                problem = self._place()
        if problem:
            raise SourceFailed(f"{_name(source, self.card)}: {problem}.", spoiled=True)
        return True

    def _unpack(self, source: Source) -> None:
        for remote in source.files:
            unpack(self.supply.obtain(remote), self.tree, self.budget)

    def _open_nested(self) -> bool:
        """Unpack archives within the archive, and take frames of videos; tell if there were any."""
        nested = nested_archives(self.tree)
        for archive in nested:
            inner = archive.with_name(f"{archive.name}.unpacked")
            inner.mkdir()
            unpack(archive, inner, self.budget)
            archive.unlink()
        has_videos = any(each.kind == "videos" for each in read_sources(self.card, IMAGES))
        return (has_videos and self._frames_of([self.tree])) or bool(nested)

    def _read_parquet(self, source: Source) -> None:
        require_pyarrow(_name(source, self.card))
        files = list(source.files)
        if source.listing is not None:
            # What a listing says may be other the next time.
            self.supply.forget(source.listing)
            files += listed_files(self.supply.obtain(source.listing), source.listing.url)
        splits = load_splits(self.card, self.root)
        examples = all_examples(splits)
        classes = [splits.class_names[example.label] for example in examples]
        names = Names([example.path for example in examples], classes)
        for remote in files:
            file = self.supply.obtain(remote)
            if not extract(file, self.tree, names, source.name_column, remote.below, self.budget):
                raise SourceFailed(
                    f"{remote.url}: no row of {remote.name} bears the name of an image that the "
                    "split file lists, so which image is which cannot be told.",
                    spoiled=True,
                )

    def _frames_from_videos(self, source: Source) -> bool:
        if not source.files:
            given = [self.given] if self.given and self.given.is_dir() else []
            return self._frames_of([dataset_folder(self.card, self.root), *given])
        try:
            require_decoder()
        except InputError as error:
            # Better known before gigabytes are fetched; and another source may do without.
            raise SourceFailed(f"{source.files[0].url}: {error}") from error
        self._unpack(source)
        self._open_nested()
        return True

    def _frames_of(self, folders: list[Path]) -> bool:
        """Extract the frames that are lacking if their videos are there; tell whether they were."""
        wanted = lacking(self.card, self.root)
        videos: dict[str, Path] = {}
        for folder in folders:
            videos |= find_videos(folder, wanted)
        if len(videos) < len(wanted):
            if videos:
                gone = next(path for path in wanted if path not in videos)
                self.say(
                    f"videos in {', '.join(map(str, folders))}: {len(wanted) - len(videos)} of "
                    f"{len(wanted)} are missing, first that of {gone}; they are left alone."
                )
            return False
        require_decoder()
        extract_frames(videos, self.tree / "frames")
        return True

    def _place(self) -> str:
        """Lay out what is in the tree, check it, and move it into place; or say what it lacks."""
        stage = self._stage_listed if self.card.layout == "split_file" else self._stage_folder
        if problem := stage():
            return problem
        _check_pixels(self.staged)
        if hasattr(os, "sync"):
            # A power cut must not leave names in place whose content never reached the disk.
            os.sync()
        merge(self.staged / self.card.folder, dataset_folder(self.card, self.root))
        return ""

    def _stage_listed(self) -> str:
        wanted = lacking(self.card, self.root)
        found = find_images(self.tree, wanted)
        if len(found) < len(wanted):
            gone = next(path for path in wanted if path not in found)
            return f"{len(wanted) - len(found)} of {len(wanted)} images are not in it, first {gone}"
        images = self.staged / self.card.folder / self.card.image_dir
        for path, file in found.items():
            (images / path).parent.mkdir(parents=True, exist_ok=True)
            file.rename(images / path)
        return ""

    def _stage_folder(self) -> str:
        found = find_folder(self.tree, self.card)
        if found is None:
            return "the folders of this dataset are not in it"
        whole = self.card.layout == "fgvc_aircraft"
        place = self.staged / self.card.folder / ("" if whole else self.card.image_dir)
        place.parent.mkdir(parents=True)
        found.rename(place)
        lacks = lacking(self.card, self.staged)
        if lacks:
            raise SourceFailed(f"{self.card.title}: {lacks[0]}.", spoiled=True)
        return ""


def _name(source: Source, card: DatasetCard) -> str:
    """Return what a message calls a source."""
    files = (*source.files, *([source.listing] if source.listing else []))
    return files[0].url if files else card.title


def _check_pixels(folder: Path) -> None:
    """Refuse a source with an image of more pixels than will ever be decoded."""
    for root, _, names in os.walk(folder):
        for name in names:
            with Path(root, name).open("rb") as stream:
                if reason := why_too_large(stream):
                    raise SourceFailed(f"{name}: {reason}. Its source is refused.", spoiled=True)
