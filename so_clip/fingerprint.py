"""Which run is which: one fingerprint over all that can change a run's result.

Options, lists, prompts and weights are known by their contents, the code by a number. Both hashes
that take time are remembered within the process, so that a sweep recognises a finished run at once.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from so_clip.config.protocols import ALL
from so_clip.config.settings import Settings
from so_clip.data.cards.card import PACKAGE_LAYOUT, load_card
from so_clip.data.examples import SKIP
from so_clip.data.find import user_dataset
from so_clip.data.run_data import Data, TestSet
from so_clip.version import RESULTS_VERSION

# Of the fingerprint's 64 digits, so many end a folder's name.
DIGITS = 12

Key = tuple[Any, ...]
_weights: dict[Key, str] = {}
# Beside the hash, what the files it was made from looked like.
_contents: dict[Key, tuple[str, dict[Path, Key]]] = {}


def run_fingerprint(
    settings: Settings, contents_sha256: str, weights_sha256: str, processes: int = 1
) -> str:
    """Return the SHA-256 of all that can change a run's result.

    Args:
        settings: resolved, so that what `auto` stands for counts.
        contents_sha256: see `contents_sha256`.
        weights_sha256: of the backbone before anything is trained.
        processes: that train together; each has a part of the memory and of the time.
    """
    values: dict[str, Any] = {
        "settings": settings.fingerprint,
        "data_root": _images_root(settings),
        "contents_sha256": contents_sha256,
        "weights_sha256": weights_sha256,
        "results_version": RESULTS_VERSION,
    }
    if processes > 1:
        values["processes"] = processes
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def run_dir(settings: Settings, fingerprint: str) -> Path:
    """Return a run's folder: readable in front, unique behind."""
    backbone = str(settings.backbone["architecture"]).lower().replace("/", "_")
    parts = [settings.dataset, backbone, settings.method]
    if settings.protocol != ALL:
        parts.append(settings.protocol)
    if settings.adapts:
        uneven = [] if settings.imbalance is None else [f"imbalance{settings.imbalance:g}"]
        parts += [f"{settings.shots}shot", *uneven, f"seed{settings.seed}"]
    return settings.results_dir / "-".join([*parts, fingerprint[:DIGITS]])


def prompts_sha256(data: Data, template: str) -> str:
    """Return the SHA-256 of what a run's prompts are made of, wherever it was read."""
    own = next(test_set for test_set in data.test_sets if not test_set.name)
    return hashlib.sha256(json.dumps(_prompts(own, template)).encode()).hexdigest()


def _prompts(test_set: TestSet, template: str) -> tuple[Any, Any, Any]:
    """Return class names, templates and, if there are any, descriptions."""
    names, described = test_set.splits.class_names, test_set.card.descriptions
    templates = test_set.card.template_sets.get(template, (template,))
    return names, templates, None if described is None else [described[name] for name in names]


def contents_sha256(data: Data, template: str) -> str:
    """Return the SHA-256 of a run's lists, class names and templates, for each of its test sets.

    The lists are those that the run has, which a script may have cut down; what they were read from
    counts, too, since draws go by the order of a whole list. Draws follow from lists and settings.

    Args:
        data: of the run.
        template: the run's setting: the name of a card's templates, or a template.
    """
    total = hashlib.sha256()
    for test_set in data.test_sets:
        splits = test_set.splits
        prompts = _prompts(test_set, template)
        values = test_set.name, test_set.columns, splits.sha256, *prompts[:2]
        total.update(json.dumps(values).encode())
        if prompts[2] is not None:
            total.update(json.dumps(prompts[2]).encode())
        for examples in (splits.train, splits.val, splits.test):
            # A list of a million takes a second so, and several as JSON.
            lines = "".join([f"{path}\0{label}\0" for path, label in examples])
            total.update(f"{len(examples)}\0{lines}".encode(errors="surrogatepass"))
    if data.skipped:  # what takes the place of training images follows from them
        total.update(json.dumps([(each.split, each.path) for each in data.skipped]).encode())
    return total.hexdigest()


def remember(settings: Settings, data: Data, weights_sha256: str) -> None:
    """Keep both hashes of a run for later runs of this process.

    Corrupt images that were passed over may be mended any time: such lists are not kept.
    """
    _weights[_weights_key(settings)] = weights_sha256
    if data.skipped:
        return
    files = {test_set.splits.file for test_set in data.test_sets} - {None}
    files |= {file for test_set in data.test_sets for file in test_set.splits.read_from}
    looks = {file: _look(file) for file in files if file is not None}
    _contents[_contents_key(settings)] = contents_sha256(data, settings.template), looks


def remembered_weights(settings: Settings) -> str | None:
    """Return the SHA-256 of a run's weights if this process has seen them, and None otherwise."""
    return _weights.get(_weights_key(settings))


def remembered_run(settings: Settings) -> tuple[Path, str] | None:
    """Return a run's folder and fingerprint if this process has seen its lists and its weights.

    A list file, a folder of classes or a checkpoint whose size or date is another was not seen.
    Which images are corrupt is looked up each time.
    """
    if settings.on_corrupt == SKIP:
        return None
    weights, contents = remembered_weights(settings), _contents.get(_contents_key(settings))
    if (
        weights is None
        or contents is None
        or any(_look(file) != seen for file, seen in contents[1].items())
    ):
        return None
    # Whoever remembers has imported torch, which this needs.
    from so_clip.config.resolve import resolved

    settings = resolved(settings)
    fingerprint = run_fingerprint(settings, contents[0], weights)
    return run_dir(settings, fingerprint), fingerprint


def _images_root(settings: Settings) -> str | None:
    """Return where the images lie, however that was written; None if they come in packages."""
    roots, layouts = set(), set()
    for name in (settings.dataset, *settings.transfer):
        own = settings.own
        if name != settings.dataset or own is None:
            test_set = user_dataset(name, settings.data_root)
            own = test_set and test_set[1]
        if own is not None:
            roots.add(os.path.realpath(own.folder))
        else:
            layouts.add(load_card(name).layout)
    if layouts - {"digits", PACKAGE_LAYOUT}:
        roots.add(os.path.realpath(settings.data_root))
    return "\0".join(sorted(roots)) or None


def _weights_key(settings: Settings) -> Key:
    backbone = settings.backbone
    checkpoint = backbone["checkpoint"]
    file = None if checkpoint is None else Path(checkpoint).expanduser()
    drawn = file is None and backbone["pretrained"] is None
    return (
        backbone["architecture"],
        backbone["pretrained"],
        *(file, file and _look(file), settings.seed if drawn else None),
    )


def _contents_key(settings: Settings) -> Key:
    place = settings.dataset, settings.data_root, settings.split_file
    return *place, settings.own, settings.protocol, settings.transfer, settings.template


def _look(file: Path) -> Key:
    """Return what tells a changed file at a glance; nothing where there is none."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
