"""Tokenizers of open_clip's models: its own, and those of Hugging Face's transformers."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from so_clip.clip.loading.architecture_names import TINY, folder_of, is_place
from so_clip.clip.loading.hub import cached_file, check_reachable
from so_clip.clip.loading.sources import EXTRA, check_packages, tokenizer_source
from so_clip.clip.whole_prompts import Tokenizer
from so_clip.errors import InputError
from so_clip.system.commands import install

_PACKAGES = ("sentencepiece", "protobuf")  # that tokenizers without tokenizer.json need


def build_tokenizer(name: str, config: Mapping[str, Any]) -> Tokenizer:
    """Return an architecture's tokenizer, which maps texts to token ids [texts, context].

    A tokenizer of Hugging Face comes from the hub's cache if it is there, and never runs code of
    its repository.

    Args:
        name: of the architecture.
        config: its sizes, open_clip's model_cfg.

    Raises:
        InputError: the tokenizer needs a package that is not installed, or files that the hub or
            the folder does not have.
    """
    import open_clip
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

    text = config["text_cfg"]
    options = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    source = text.get("hf_tokenizer_name")
    if not source and not is_place(name):
        return _built_in(name, length)
    if not source:
        try:
            return open_clip.SimpleTokenizer(context_length=length, **options)
        except Exception as error:  # options that it does not have raise almost any exception
            raise _cannot_load(name, error) from error
    check_packages(name, config)
    options |= {"context_length": length, "tokenizer_mode": text.get("tokenizer_mode")}
    options["trust_remote_code"] = False
    place = tokenizer_source(name, source)
    try:
        # Without this option, transformers asks the hub for a newer version of a cached file.
        return HFTokenizer(place, **options, local_files_only=True)
    except Exception as error:  # transformers raises many kinds, also for files that are missing
        if place != source:
            raise _cannot_load(name, error) from error
    check_reachable(place, "tokenizer_config.json", f"the tokenizer of {name}")
    try:
        return HFTokenizer(place, **options)
    except Exception as error:
        raise _cannot_load(name, error) from error


@cache  # a process with many runs reads the vocabulary once
def _built_in(name: str, length: int) -> Tokenizer:
    import open_clip

    if name == TINY:
        return open_clip.SimpleTokenizer(context_length=length)
    return open_clip.get_tokenizer(name)


def check_text_encoder(name: str, config: Mapping[str, Any]) -> None:
    """Raise InputError if transformers cannot build the text encoder, before it tries.

    Args:
        name: of the architecture.
        config: its sizes, open_clip's model_cfg.
    """
    check_packages(name, config)
    encoder = config["text_cfg"].get("hf_model_name")
    if not encoder:
        return
    is_here = Path(encoder).is_dir() or cached_file(encoder, ["config.json"]) is not None
    if not is_here:
        check_reachable(encoder, "config.json", f"the sizes of the text encoder of {name}")
    from transformers import AutoConfig

    try:
        # Without this option, transformers asks at the terminal whether to run a model's own code.
        AutoConfig.from_pretrained(encoder, trust_remote_code=False, local_files_only=is_here)
    except Exception as error:  # transformers raises many kinds
        text = " ".join(str(error).split())[:300].rstrip(" .")
        raise InputError(
            f"the sizes of the text encoder of {name}, {encoder}, cannot be read: {text}."
        ) from error


def _cannot_load(name: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())[:300].rstrip(" .")
    asked = [package for package in _PACKAGES if package in text.lower() and _is_missing(package)]
    way_out = f" Install {' and '.join(asked)}: {install(EXTRA)}" if asked else ""
    if folder_of(name) is not None:
        way_out = f" Put the tokenizer's files into the folder, such as tokenizer.json.{way_out}"
    return InputError(f"the tokenizer of {name} cannot be loaded: {text}.{way_out}")


def _is_missing(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return True
    return False
