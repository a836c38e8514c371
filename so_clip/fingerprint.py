"""A run's identity: one SHA-256 over everything that can change its result.

Options, lists, prompts and weights count by their content, the code by a version number. Choices
count by their names (`adapter: coop`), never by module paths, so code can move.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from so_clip.clip.loading.architecture_names import (
    file_name,
    folder_of,
    is_place,
    repository_of,
)
from so_clip.clip.loading.sources import CONFIG_FILE, cached_weights, content_sha256
from so_clip.config.settings import (
    AUTO,
    NO_DIFFERENCE,
    PIXEL_OPTIONS,
    BackboneChoice,
    Settings,
)
from so_clip.data.cards.card import PACKAGE_LAYOUT, load_card
from so_clip.data.choice import DataChoice
from so_clip.data.examples import SKIP
from so_clip.data.find import user_dataset
from so_clip.data.run_data import Data, TestSet
from so_clip.data.user.dataset import UserData
from so_clip.results.run_files import smat_file
from so_clip.version import RESULTS_VERSION

# A run folder's name ends in this many of the fingerprint's 64 digits.
DIGITS = 12

Key = tuple[Any, ...]


class Base(NamedTuple):
    """A backbone as loaded.

    Attributes:
        weights_sha256: see Backbone.weights_sha256.
        pixels: how its pixels differ from CLIP's, if they do.
        logit_scale: the number that backbone.logit_scale=auto means.
    """

    weights_sha256: str
    pixels: Mapping[str, Any]
    logit_scale: float


def settings_sha256(settings: Settings) -> str:
    """Return the SHA-256 of all choices that can change the result."""
    return sha256_of(counting_options(settings))


def counting_options(settings: Settings) -> dict[str, Any]:
    """Return the options that can change a run's result, as config.yaml records them."""
    values = counting(settings.record(), NO_DIFFERENCE, settings.backbone)
    if settings.data.tasks:  # the sampler of tasks draws in a way of its own
        del values["split_protocol"]
    del values["user_data"]  # its lists, names and place count by their content
    adapter = values["adapter"]
    if adapter and adapter.get("checkpoint") is not None:  # a file may move
        adapter["checkpoint"] = file_sha256(smat_file(adapter["checkpoint"]))
    return values


def counting(
    values: dict[str, Any], without_effect: Iterable[str], backbone: BackboneChoice
) -> dict[str, Any]:
    """Return recorded options without those that cannot change a result.

    Args:
        values: a record; it is changed.
        without_effect: names of options without an effect.
        backbone: of the record.
    """
    without_options(values, without_effect)
    for option in PIXEL_OPTIONS:  # what `auto` means follows from the weights
        if values["backbone"][option] == AUTO:
            del values["backbone"][option]
    architecture = backbone.architecture
    if is_place(architecture):  # a folder may move, and a configuration may change
        place = repository_of(architecture) or "local-dir"
        values["backbone"]["architecture"] = f"{place} {content_sha256(architecture)}"
    return values


def without_options(values: dict[str, Any], without_effect: Iterable[str]) -> dict[str, Any]:
    """Return recorded options without those that cannot change a result, or the GPU's number.

    Args:
        values: a record; it is changed.
        without_effect: names of options without an effect.
    """
    for option in without_effect:
        group, _, key = option.rpartition(".")
        del (values[group] if group else values)[key]
    values["device"] = values["device"].partition(":")[0]  # any GPU of a machine
    return values


def run_fingerprint(
    settings: Settings,
    contents_sha256: str,
    base: Base,
    processes: int = 1,
) -> str:
    """Return the SHA-256 of everything that can change a run's result.

    Args:
        settings: with `auto` resolved, because its meaning depends on the machine and the weights.
        contents_sha256: see `contents_sha256`.
        base: the backbone before training.
        processes: that train together. Each has a share of the memory and the time.
    """
    choice = settings.data
    own = [(choice.dataset, choice.user_data), *((name, None) for name in choice.transfer)]
    return identity(
        settings_sha256(settings),
        images_root(own, choice.data_root, choice.cards_dir),
        contents_sha256,
        base,
        processes,
    )


def identity(
    settings_sha256: str,
    images_root: str | None,
    contents_sha256: str,
    base: Base,
    processes: int = 1,
) -> str:
    """Return the SHA-256 of a run from its parts.

    Args:
        settings_sha256: of all options that can change the result.
        images_root: see the function of that name.
        contents_sha256, base, processes: see run_fingerprint.
    """
    values: dict[str, Any] = {
        "settings": settings_sha256,
        "data_root": images_root,
        "contents_sha256": contents_sha256,
        "weights_sha256": base.weights_sha256,
        "results_version": RESULTS_VERSION,
    }
    if processes > 1:
        values["processes"] = processes
    if base.pixels:
        values["pixels"] = base.pixels
    return sha256_of(values)


def run_dir(settings: Settings, fingerprint: str) -> Path:
    """Return a run's folder. The start of its name is readable, the end is unique."""
    data = settings.data
    backbone = file_name(settings.backbone.architecture)
    parts = [data.dataset, backbone, settings.method.name]
    if data.base_to_new:
        parts.append(data.protocol)
    if data.tasks:
        parts.append(f"{data.tasks}tasks")
    if settings.adapts or data.tasks:
        parts.append(f"{data.shots}shot")
        if data.imbalance is not None:
            parts.append(f"imbalance{data.imbalance:g}")
        parts.append(f"seed{data.seed}")
    return settings.placement.results_dir / "-".join([*parts, fingerprint[:DIGITS]])


def prompts_sha256(data: Data, template: str) -> str:
    """Return the SHA-256 of class names, templates and descriptions of the run's own dataset."""
    (own,) = (test_set for test_set in data.test_sets if not test_set.name)
    return hashlib.sha256(json.dumps(_prompts(own, template)).encode()).hexdigest()


def _prompts(test_set: TestSet, template: str) -> tuple[Any, Any, Any]:
    """Return class names, templates, and descriptions or None."""
    names, described = test_set.splits.class_names, test_set.card.descriptions
    templates = test_set.card.template_sets.get(template, (template,))
    return names, templates, None if described is None else [described[name] for name in names]


def contents_sha256(data: Data, template: str) -> str:
    """Return the SHA-256 of the lists, class names and templates of all test sets of a run.

    The lists are the run's, and a script may have shortened them. The files that they came from
    count too, because a draw depends on the order of the whole list. The draw itself follows from
    the lists and the settings.

    Args:
        data: of the run.
        template: the run's option: the name of a card's templates, or a template.
    """
    total = hashlib.sha256()
    for test_set in data.test_sets:
        splits = test_set.splits
        names, templates, descriptions = _prompts(test_set, template)
        values = [test_set.name, test_set.columns, splits.sha256, names, templates]
        total.update(json.dumps(values).encode())
        if descriptions is not None:
            total.update(json.dumps(descriptions).encode())
        # It has the place of the images, which the lists do not have.
        total.update(test_set.card.user_sha256.encode())
        for examples in (splits.train, splits.val, splits.test):
            # Text is several times faster than JSON: a second for a million images.
            lines = "".join([f"{path}\0{label}\0" for path, label in examples])
            total.update(f"{len(examples)}\0{lines}".encode(errors="surrogatepass"))
    if data.skipped:  # they decide which images replace them in the draw
        total.update(json.dumps([(image.split, image.path) for image in data.skipped]).encode())
    return total.hexdigest()


class KnownRuns:
    """Hashes that earlier runs of this process have computed.

    They let a sweep recognise a finished run without reading its lists and weights again.
    """

    def __init__(self) -> None:
        self._bases: dict[Key, Base] = {}
        # Each hash, with the size and date of the files that it was computed from.
        self._contents: dict[Key, tuple[str, dict[Path, Key]]] = {}

    def remember(self, settings: Settings, data: Data, base: Base) -> str:
        """Keep a run's backbone and the hash of its lists; return that hash.

        Lists without corrupt images are not kept, because those images may be repaired any time.
        """
        self._bases[_base_key(settings.backbone, settings.data.seed)] = base
        contents = contents_sha256(data, settings.data.template)
        if data.skipped:
            return contents
        files = {test_set.splits.file for test_set in data.test_sets} - {None}
        files |= {file for test_set in data.test_sets for file in test_set.splits.read_from}
        states = {file: file_state(file) for file in files if file is not None}
        self._contents[_contents_key(settings.data)] = contents, states
        return contents

    def base(self, settings: Settings) -> Base | None:
        """Return a run's backbone; None if this process has not loaded it."""
        return self._bases.get(_base_key(settings.backbone, settings.data.seed))

    def find(self, settings: Settings) -> tuple[Path, str] | None:
        """Return a run's folder and fingerprint if its lists and weights are known.

        A list file, class folder or checkpoint that has another size or date is not known. Which
        images are corrupt is checked each time.
        """
        base = self.base(settings)
        contents = self._contents.get(_contents_key(settings.data))
        if settings.data.on_corrupt == SKIP or base is None or contents is None:
            return None
        if any(file_state(file) != state for file, state in contents[1].items()):
            return None
        # A known backbone means that torch is imported already.
        from so_clip.config.resolve import resolved

        settings = resolved(settings).with_logit_scale(base.logit_scale)
        fingerprint = run_fingerprint(settings, contents[0], base)
        return run_dir(settings, fingerprint), fingerprint


def images_root(
    datasets: Iterable[tuple[str, UserData | None]], data_root: Path, cards_dir: Path | None
) -> str | None:
    """Return the real paths of the images' folders; None for images that come in packages.

    Args:
        datasets: names, and the options of a user's own images where they are known.
        data_root, cards_dir: of the run.
    """
    roots, layouts = set(), set()
    for name, user in datasets:
        if user is None:
            found = user_dataset(name, data_root)
            user = found and found[1]
        if user is not None:
            roots.add(os.path.realpath(user.folder))
        else:
            layouts.add(load_card(name, cards_dir).layout)
    if layouts - {"digits", PACKAGE_LAYOUT}:
        roots.add(os.path.realpath(data_root))
    return "\0".join(sorted(roots)) or None


def _base_key(backbone: BackboneChoice, seed: int) -> Key:
    file = Path(backbone.checkpoint).expanduser() if backbone.checkpoint is not None else None
    folder = folder_of(backbone.architecture)
    place = is_place(backbone.architecture)
    random = file is None and backbone.pretrained is None and not place
    if file is None and place:
        file = cached_weights(backbone.architecture)
    state = file and file_state(file)
    pixels = folder and file_state(folder / CONFIG_FILE)
    options = (*backbone.preprocessing.items(), backbone.logit_scale, pixels)
    named = backbone.architecture, backbone.pretrained, file, state
    return *named, options, seed if random else None


def _contents_key(choice: DataChoice) -> Key:
    return (
        choice.dataset,
        choice.data_root,
        choice.split_file,
        choice.user_data,
        choice.cards_dir,
        choice.protocol,
        choice.transfer,
        choice.template,
    )


def file_state(file: Path) -> Key:
    """Return a file's size and date, which change with its content; nothing for a missing file."""
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file; the path itself if it cannot be read, for the check to name."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return str(file)


def sha256_of(values: Any) -> str:
    """Return the SHA-256 of JSON values; the order of keys does not count."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
