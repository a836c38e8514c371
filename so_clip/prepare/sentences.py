"""Completes or examines one dataset of sentences below the data root."""

from collections.abc import Callable
from pathlib import Path

from so_clip.data.sentences.card import SentenceCard, how_to_get_sentences, words_of_runs
from so_clip.data.sentences.find import (
    SentenceFiles,
    find_sentences,
    read_sentences,
    sets_of_files,
)
from so_clip.data.sentences.parquet import NoPyarrow
from so_clip.errors import InputError, RunFailed
from so_clip.prepare.dataset import WORK_DIR, SetAside, writable_root
from so_clip.prepare.diagnosis import ABSENT, FAULTY, WHOLE, Diagnosis, Place
from so_clip.prepare.images import Supply
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.parquet import require_pyarrow
from so_clip.prepare.place import copy, move, remove, remove_empty_folders
from so_clip.prepare.sources import NO_SOURCE, SENTENCES, Source, SourceFailed, read_sources
from so_clip.system.commands import command, install


def prepare_sentences(
    card: SentenceCard, options: PrepareOptions, say: Callable[[str], None]
) -> str:
    """Complete one dataset of sentences below the data root; existing files are kept.

    A file appears in its final place only when all files of its source are there and are read. If
    the process is killed, the next call resumes.

    Args:
        card: the dataset.
        options: target and sources.
        say: gets one line for a wait and for each source that failed.

    Returns:
        One line about the dataset's state.

    Raises:
        InputError: the data root or the card cannot be used, or the files that are there are
            damaged; repair=true replaces them.
        RunFailed: no source worked. `say` got the reasons, and the message names the ways out.
    """
    with writable_root(options, say):
        work = options.data_root / WORK_DIR / card.name
        set_aside = SetAside(work / "damaged")
        try:
            found = _existing(card, options, set_aside)
            if found is not None:
                return f"is complete: {_state(found, card)}"
            _obtain(card, options, work, say)
            state = _state(find_sentences(card, options.data_root), card)
            # Damaged files must not come back: they may come before those of another format.
            set_aside.drop()
            if not options.keep_archives:
                remove(work)
            return f"completed: {state}"
        finally:
            remove(work / "staged")
            set_aside.give_back()
            remove_empty_folders(work.parent)


def examine_sentences(card: SentenceCard, place: Place) -> Diagnosis:
    """Examine one dataset of sentences: all of its files are read. Nothing is written.

    Args:
        card: the dataset.
        place: the folder of all datasets.
    """
    found = Diagnosis(card.name, ABSENT, place.root / card.folder, run_words=words_of_runs(card))
    prepare = ["prepare", f"dataset={card.name}", *place.options]
    try:
        files = find_sentences(card, place.root)
        found.state, found.folder = FAULTY, files.train[0].parent
        train, validation = map(len, read_sentences(files, card))
    except NoPyarrow as error:
        found.faults.append(str(error))
        found.remedy = install("so-clip[text]")
        return found
    except InputError as error:
        advice = how_to_get_sentences(card, place.root)
        found.faults.append(str(error).removesuffix(advice).strip())
        repair = ["repair=true"] if found.state == FAULTY else []
        found.remedy = command(*prepare, *repair) if card.sources else ""
        return found
    found.state = WHOLE
    found.notes.append(f"{train} training and {validation} validation examples")
    if card.sizes and (train, validation) != (card.sizes.train, card.sizes.validation):
        found.notes.append(
            f"{card.sizes.train} training and {card.sizes.validation} validation examples were "
            "published"
        )
    return found


def _state(files: SentenceFiles, card: SentenceCard) -> str:
    train, validation = map(len, read_sentences(files, card))
    folder = files.train[0].parent
    return f"{train} training and {validation} validation examples in {folder}"


def _existing(
    card: SentenceCard, options: PrepareOptions, set_aside: SetAside
) -> SentenceFiles | None:
    """Return the files that are there, or None; with repair=true, damaged ones are moved away.

    Raises:
        InputError: they are damaged, and repair is false.
    """
    try:
        files = find_sentences(card, options.data_root)
    except InputError:
        return None
    try:
        read_sentences(files, card)
        return files
    except NoPyarrow:
        raise
    except InputError as error:
        if not options.repair:
            raise InputError(f"{error} repair=true downloads it again.") from error
    for file in dict.fromkeys((*files.train, *files.validation)):
        set_aside.add(file)
    return None


def _obtain(
    card: SentenceCard, options: PrepareOptions, work: Path, say: Callable[[str], None]
) -> None:
    """Place the files of the first source that has them; RunFailed if none has."""
    if options.offline_from is not None:
        _take_given(card, options.offline_from, options.data_root, work)
        return
    supply = Supply(card, options, work)
    sources = read_sources(card, SENTENCES)
    for source in sources:
        try:
            files = _download(card, source, supply)
            _place(card, files, source.kind == "archive", options.data_root, work)
            return
        except SourceFailed as error:
            say(str(error))
            if error.spoiled:
                for remote in source.files:
                    supply.forget(remote)
    if not sources:
        say(NO_SOURCE)
    names = [file.name for source in sources[-1:] for file in source.files]
    raise RunFailed(
        f"dataset={card.name}: no source of the sentences worked. Repeat the command when the "
        f"network is available; or download {' and '.join(names) or 'the files'} elsewhere "
        f"({card.homepage}) into a FOLDER and repeat with --offline-from FOLDER."
    )


def _download(card: SentenceCard, source: Source, supply: Supply) -> list[Path]:
    if source.kind == "parquet":
        require_pyarrow(source.files[0].url)  # before anything is downloaded
    elif source.kind != "archive":
        raise SourceFailed(f"{card.name}: a source of sentences is parquet or archive.")
    return [supply.obtain(remote) for remote in source.files]


def _take_given(card: SentenceCard, given: Path, root: Path, work: Path) -> None:
    """Copy the files from the user's folder, or the user's archive."""
    if given.is_dir():
        sets = [found for found in sets_of_files(card, given) if isinstance(found, SentenceFiles)]
        files = sets[0] if sets else find_sentences(card, given)
    elif card.tsv and card.tsv.archive:
        files = SentenceFiles("archive", (given,), (given,))
    else:
        raise InputError(
            f"--offline-from {given}: {card.title} has no archive. Give the folder of its files."
        )
    read_sentences(files, card)  # before any is copied: it may be a pipe
    given_files = list(dict.fromkeys((*files.train, *files.validation)))
    try:
        _place(card, given_files, files.kind == "archive", root, work)
    except SourceFailed as error:
        raise InputError(str(error)) from error


def _place(card: SentenceCard, files: list[Path], is_archive: bool, root: Path, work: Path) -> None:
    """Copy files beside their place, read them, and move them into place.

    Raises:
        SourceFailed: they cannot be read, or have other numbers of examples than published.
    """
    staged = work / "staged"
    remove(staged)
    folder = staged / card.folder
    folder.mkdir(parents=True)
    names = [card.tsv.archive] if is_archive and card.tsv else [file.name for file in files]
    for file, name in zip(files, names, strict=True):
        copy(file, folder / str(name))
    try:
        train, validation = map(len, read_sentences(find_sentences(card, staged), card))
    except NoPyarrow:
        raise
    except InputError as error:
        raise SourceFailed(str(error), spoiled=True) from error
    if card.sizes and (train, validation) != (card.sizes.train, card.sizes.validation):
        raise SourceFailed(
            f"{files[0]}: holds {train} training and {validation} validation examples, but "
            f"{card.sizes.train} and {card.sizes.validation} were published.",
            spoiled=True,
        )
    (root / card.folder).mkdir(parents=True, exist_ok=True)
    for name in map(str, names):
        if not (root / card.folder / name).exists():
            move(folder / name, root / card.folder / name)
