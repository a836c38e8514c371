"""Models outside open_clip's list: repositories of the Hugging Face hub, and folders.

open_clip names them `hf-hub:ORG/NAME` and `local-dir:PATH`. Such a place holds
open_clip_config.json with the sizes of the model and the preparation of its images, one file of
weights, and the tokenizer's files if the tokenizer is not open_clip's own. This module needs no
torch.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from so_clip.clip.loading import hub
from so_clip.clip.loading.architecture_names import FOLDER, folder_of, is_place, repository_of
from so_clip.data.plain_files import read_values, shortened
from so_clip.errors import InputError, reason_of
from so_clip.system.commands import install
from so_clip.system.safe_open import read_plain

CONFIG_FILE = "open_clip_config.json"
# The files that open_clip takes from a repository and from a folder, best first.
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FOLDER_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
# The files that a tokenizer of Hugging Face reads, and those that end in ".model".
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_SHOWN = 3
_MOST_BLOCKS = 1000  # in a row; the deepest model of open_clip has 64
EXTRA = "so-clip[backbones]"


def place_config(name: str) -> dict[str, Any]:
    """Return the sizes of a model, open_clip's model_cfg.

    Raises:
        InputError: the place has no such configuration, or it has another form.
    """
    return dict(_content(name)["model_cfg"])


def place_pixels(name: str) -> dict[str, Any]:
    """Return open_clip's preprocess_cfg, the preparation of a model's images, and its quick_gelu.

    open_clip's entries of published weights have the same form.

    Raises:
        InputError: see `place_config`.
    """
    content = _content(name)
    quick_gelu = bool(content["model_cfg"].get("quick_gelu"))
    return {**content.get("preprocess_cfg", {}), "quick_gelu": quick_gelu}


def place_weights(name: str) -> Path:
    """Return the file of a place's weights; it is downloaded if necessary.

    Raises:
        InputError: the place has no file of weights, it has several and open_clip prefers none
            of them, or the download fails.
    """
    folder, repository = folder_of(name), repository_of(name)
    if folder is not None:
        return _folder_weights(folder)
    assert repository is not None
    return hub.fetch_file(repository, _HUB_FILES, f"the weights of {name}")


def cached_weights(name: str) -> Path | None:
    """Return the file of a place's weights if it is on this machine."""
    folder, repository = folder_of(name), repository_of(name)
    if folder is not None:
        return _folder_weights(folder)
    assert repository is not None
    return hub.cached_file(repository, _HUB_FILES)


def content_sha256(name: str) -> str:
    """Return the SHA-256 of a place's model_cfg, and of the tokenizer in a folder.

    Weights and pixels have their own hashes.

    Raises:
        InputError: see `place_config`.
    """
    config, folder = place_config(name), folder_of(name)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    if folder is not None and config["text_cfg"].get("hf_tokenizer_name"):
        for file in tokenizer_files(folder):
            content = read_plain(file)
            digest.update(f"\n{file.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files in a folder that a tokenizer of Hugging Face reads, by name."""
    return sorted(
        file for file in folder.iterdir() if file.name in TOKENIZER_FILES or file.suffix == ".model"
    )


def check_folder(name: str, needs_weights: bool) -> Path | None:
    """Check the folder of `local-dir:PATH`, and return its file of weights.

    Args:
        name: of an architecture; other names are not checked.
        needs_weights: whether the folder's weights are used. If not, None is returned.

    Raises:
        InputError: the folder, its configuration or its weights are missing or cannot be used.
    """
    folder = folder_of(name)
    if folder is None:
        return None
    check_packages(name, place_config(name))
    return _folder_weights(folder) if needs_weights else None


def check_packages(name: str, config: Mapping[str, Any]) -> None:
    """Raise InputError if the text encoder or its tokenizer needs transformers and it is missing.

    Args:
        name: of the architecture.
        config: its sizes, open_clip's model_cfg.
    """
    text = config["text_cfg"]
    needs = {"hf_model_name": "text encoder", "hf_tokenizer_name": "tokenizer"}
    parts = [part for key, part in needs.items() if text.get(key)]
    if parts and find_spec("transformers") is None:
        raise InputError(
            f"backbone.architecture={name}: its {' and its '.join(parts)} needs the package "
            f"transformers, and it is not installed: {install(EXTRA)}"
        )


def place_in(path: Path) -> str | None:
    """Return the name of a folder that open_clip reads; None for other paths."""
    return f"{FOLDER}{path}" if (path / CONFIG_FILE).is_file() else None


def tokenizer_source(name: str, tokenizer: str) -> str:
    """Return where the tokenizer of Hugging Face is that a configuration names.

    Args:
        name: of the architecture. A folder has the tokenizer's files beside the configuration.
        tokenizer: hf_tokenizer_name of the configuration.
    """
    folder = folder_of(name)
    return tokenizer if folder is None else str(folder)


def _content(name: str) -> dict[str, Any]:
    assert is_place(name), name
    folder, repository = folder_of(name), repository_of(name)
    if folder is not None:
        _check_is_there(folder)
        file = folder / CONFIG_FILE
    else:
        assert repository is not None
        file = hub.fetch_file(repository, [CONFIG_FILE], f"the configuration of {name}")
    place = str(file) if folder is not None else f"{name}: {CONFIG_FILE}"
    values = read_values(file, "backbone.architecture")
    if not isinstance(values, Mapping) or not isinstance(values.get("model_cfg"), Mapping):
        raise InputError(f"{place}: has no model_cfg. open_clip's own files have it.")
    _check_model(values["model_cfg"], place)
    if not isinstance(values.get("preprocess_cfg", {}), Mapping):
        raise InputError(f"{place}: preprocess_cfg is no object. open_clip's own files have one.")
    return dict(values)


def _check_is_there(folder: Path) -> None:
    option = f"backbone.architecture={FOLDER}{folder}"
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{option}: the folder cannot be read: {reason_of(error)}. Give a folder with "
            f"{CONFIG_FILE} and the weights."
        ) from error
    if CONFIG_FILE not in names:
        ours = "config.json" in names
        way_out = (
            "It may be a folder of transformers: choose open_clip's name of the architecture with "
            "backbone.architecture=, and give the file of weights with backbone.checkpoint=."
            if ours
            else f"Give a folder with {CONFIG_FILE} and the weights, as "
            "`python -m so_clip export --to open_clip` writes it."
        )
        raise InputError(f"{option}: the folder has no {CONFIG_FILE}. {way_out}")


def _check_model(model: Mapping[str, Any], place: str) -> None:
    size = model.get("embed_dim")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"{place}: embed_dim is {shortened(size)}; it must be a number above 0.")
    for tower in ("vision_cfg", "text_cfg"):
        config = model.get(tower)
        if not isinstance(config, Mapping):
            raise InputError(f"{place}: model_cfg has no {tower}. open_clip's own files have it.")
        _check_tower(config, f"{place}: {tower}")
    asked = model["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(asked, Mapping) or asked.get("trust_remote_code"):
        raise InputError(
            f"{place}: tokenizer_kwargs is {shortened(asked)}. A tokenizer with code of its own is "
            "refused, because that code would run here."
        )


def _check_tower(config: Mapping[str, Any], place: str) -> None:
    for key in ("timm_model_name", "hf_model_name", "hf_tokenizer_name"):
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{place}: {key} is {shortened(value)}; it must be a name.")
    # transformers would read a folder of that name below the current one, if there is one.
    encoder = config.get("hf_model_name", "")
    if ".." in PurePosixPath(encoder).parts:
        raise InputError(
            f"{place}: hf_model_name {shortened(encoder)} is no repository of the hub. Give its "
            "name, ORG/NAME."
        )
    # timm would read a model with a prefix from another place.
    if ":" in config.get("timm_model_name", ""):
        raise InputError(
            f"{place}: timm_model_name is {shortened(config['timm_model_name'])}; it must be a "
            "name that timm lists, without a place."
        )
    layers = config.get("layers")
    stages = layers if isinstance(layers, list) else [layers]
    if any(isinstance(blocks, (int, float)) and blocks > _MOST_BLOCKS for blocks in stages):
        raise InputError(
            f"{place}: layers is {shortened(layers)}; more than {_MOST_BLOCKS} are not supported."
        )


def _folder_weights(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    known = [folder / name for name in _FOLDER_FILES if folder / name in found]
    if known:
        return known[0]
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(
            f"{folder}: has no file of weights. Copy {_FOLDER_FILES[0]} into it, or give "
            "backbone.checkpoint=FILE."
        )
    names = ", ".join(path.name for path in found[:_SHOWN])
    raise InputError(
        f"{folder}: has {len(found)} files of weights ({names}{', ...' * (len(found) > _SHOWN)}), "
        f"and none has a name that open_clip prefers. Rename one to {_FOLDER_FILES[0]}, or give "
        "backbone.checkpoint=FILE."
    )
