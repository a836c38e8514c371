"""What the export for each library holds: its files, and how the library loads them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from so_clip.clip.backbone import Backbone
from so_clip.clip.loading import siglip_layout
from so_clip.clip.loading.architecture_names import TINY
from so_clip.clip.loading.layouts import to_hugging_face
from so_clip.clip.pixels import Preprocessing, preprocessing_of
from so_clip.errors import InputError
from so_clip.export import siglip, snippets
from so_clip.export.bases import hub_name, transformers_name
from so_clip.export.card import Loading
from so_clip.export.files import SAFETENSORS, save_tensors
from so_clip.export.hugging_face import model_config, processor_files
from so_clip.export.sizes import OPEN_CLIP, OPENAI, is_siglip
from so_clip.system import atomic

_SUFFIXES = {
    OPEN_CLIP: (SAFETENSORS, ".pt", ".pth", ".bin"),
    OPENAI: (".pt", ".pth"),
}
_CONFIG_FILE = "open_clip_config.json"
# open_clip has no architectures of these names, so the export brings their configuration.
_TINY_NAME, _PLACE_NAME = "so_clip_tiny", "so_clip_model"
# A model at such a place gets its weights there: open_clip then ignores `pretrained`.
_PLACES = ("hf-hub:", "local-dir:")
_QUICK_GELU = "-quickgelu"
_UNKNOWN_BASE = "BASE"
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Content:
    """The files of an export.

    Attributes:
        names: of the files.
        write: writes them into a folder.
        loading: for the card.
        hub_names: names of files on the hub that differ.
        hub_loading: returns what the card in a repository says, if it differs.
    """

    names: Sequence[str]
    write: Callable[[Path], None]
    loading: Loading
    hub_names: Mapping[str, str] = field(default_factory=dict)
    hub_loading: Callable[[str], Loading] | None = None


@dataclass(frozen=True)
class Plain:
    """An adapted model as CLIP's weights.

    Attributes:
        backbone: gives sizes, pixels and tokenizer; its model may hold more than these weights.
        state: the tensors by open_clip's names, in float32, with the classifier's factor on cosines
            as logit_scale.
        architecture, pretrained: of the base; `pretrained` is None for other weights.
    """

    backbone: Backbone
    state: Mapping[str, Tensor]
    architecture: str
    pretrained: str | None


def split_place(place: Path, target: str) -> tuple[Path, str]:
    """Return the folder of an export, and the name of its checkpoint; "" for a whole folder.

    Raises:
        InputError: the file has a suffix that the library does not read.
    """
    suffixes = _SUFFIXES.get(target)
    if suffixes is None:
        return place, ""
    if place.suffix not in suffixes:
        raise InputError(
            f"{place}: --to {target} writes a file, and its name must end in "
            f"{' or '.join(suffixes)}."
        )
    return place.parent, place.name


def plain_state(backbone: Backbone, without: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of a model for `Plain`.

    Args:
        backbone: its model.
        without: names in the state dict that are not CLIP's.
    """
    left_out = {*without}
    state = {
        name: value.detach().float() if value.is_floating_point() else value
        for name, value in backbone.model.state_dict().items()
        if name not in left_out
    }
    scale = torch.tensor(math.log(backbone.logit_scale))
    return state | {"logit_scale": scale.reshape(state["logit_scale"].shape)}


def open_clip_content(plain: Plain, name: str) -> Content:
    """Return a checkpoint for `open_clip.create_model(ARCHITECTURE, pretrained=FILE)`.

    Args:
        plain: the model.
        name: of the file; its suffix decides the format.
    """
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    architecture: dict[str, Any] = json.loads(json.dumps(plain.backbone.architecture))
    preprocess = preprocessing_of(plain.backbone)
    values: dict[str, Any] = {
        _CONFIG_FILE: {"model_cfg": architecture, "preprocess_cfg": preprocess.record()}
    }
    known_name, forced = _known_name(plain)
    config_file = f"{known_name}.json" if known_name in (_TINY_NAME, _PLACE_NAME) else None
    if config_file:
        values[config_file] = architecture
    loading = Loading(
        library="open_clip",
        title="a checkpoint for open_clip",
        snippet=snippets.open_clip_snippet(
            known_name,
            name,
            config_file=config_file,
            force_quick_gelu=forced,
            preprocess=preprocess.differences(Preprocessing()),
        ),
        base_model=hub_name(plain.architecture, plain.pretrained),
    )

    def write(folder: Path) -> None:
        save_tensors(folder / name, plain.state)
        for file, value in values.items():
            atomic.write_json(folder / file, value)

    hub_file = HF_SAFE_WEIGHTS_NAME if name.endswith(SAFETENSORS) else HF_WEIGHTS_NAME
    return Content(
        [name, *values],
        write,
        loading,
        {name: hub_file},
        lambda repository: replace(loading, snippet=snippets.hub_snippet(repository)),
    )


def openai_content(plain: Plain, name: str) -> Content:
    """Return a checkpoint in the layout of OpenAI's released state dicts.

    Args:
        plain: the model.
        name: of the file.
    """
    backbone = plain.backbone
    state = {key.removeprefix("text."): value for key, value in plain.state.items()}
    marks = {
        "input_resolution": backbone.image_size,
        "context_length": backbone.context_length,
        "vocab_size": len(state["token_embedding.weight"]),
    }
    state |= {key: torch.tensor(value) for key, value in marks.items()}
    loading = Loading(
        library="open_clip",
        title="a checkpoint in the layout of OpenAI's CLIP",
        snippet=snippets.openai_snippet(
            name, preprocessing_of(backbone).differences(Preprocessing())
        ),
        base_model=hub_name(plain.architecture, plain.pretrained),
        notes=[
            "OpenAI's own reader and open_clip's round most of these float32 weights to float16."
        ],
    )
    return Content([name], lambda folder: save_tensors(folder / name, state), loading)


def transformers_content(plain: Plain) -> Content:
    """Return a folder for transformers: a CLIPModel or SiglipModel, and its processor."""
    if is_siglip(plain.backbone.architecture):
        return _siglip_content(plain)
    config = model_config(plain.backbone.architecture, plain.backbone.logit_scale)
    texts = processor_files(plain.backbone)
    loading = Loading(
        library="transformers",
        title="a CLIPModel for transformers",
        snippet=snippets.transformers_snippet(),
        base_model=hub_name(plain.architecture, plain.pretrained),
    )

    def write(folder: Path) -> None:
        save_tensors(folder / "model.safetensors", to_hugging_face(plain.state))
        atomic.write_json(folder / "config.json", config)
        _write_texts(folder, texts)

    return Content(["config.json", "model.safetensors", *texts], write, loading)


def _siglip_content(plain: Plain) -> Content:
    """Return a folder for SiglipModel, with a tokenizer if the backbone has one of transformers."""
    config, texts = siglip.model_config(plain.backbone), siglip.pixels_file(plain.backbone)
    state = siglip_layout.to_hugging_face(plain.state)
    tokenizer = siglip.tokenizer_files(plain.backbone)
    note = (
        "The folder has no tokenizer, because the one of this backbone is not a tokenizer of "
        "transformers. Its classes need none."
    )
    loading = Loading(
        library="transformers",
        title="a SiglipModel for transformers",
        snippet=snippets.siglip_snippet(),
        base_model=hub_name(plain.architecture, plain.pretrained),
        notes=() if tokenizer else (note,),
    )

    def write(folder: Path) -> None:
        save_tensors(folder / "model.safetensors", state)
        atomic.write_json(folder / "config.json", config)
        _write_texts(folder, texts)
        for name, content in tokenizer.items():
            (folder / name).write_bytes(content)

    names = ["config.json", "model.safetensors", *texts, *tokenizer]
    return Content(names, write, loading)


def peft_content(plain: Plain, save: Callable[[Any, Path, str | None], None]) -> Content:
    """Return a folder for peft, on top of transformers' CLIPModel.

    Args:
        plain: the base.
        save: writes `PEFT_FILES`, given a CLIPModel with the base's weights, a folder, and the
            base's name on the hub.
    """
    base = transformers_name(plain.architecture, plain.pretrained)
    texts = processor_files(plain.backbone)
    note = (
        f"`{_UNKNOWN_BASE}` is the base as a CLIPModel. Export a run with method=zero_shot on the "
        "same backbone with `--to transformers` to make it."
    )
    loading = Loading(
        library="peft",
        title="an adapter for peft, on the base as transformers' CLIPModel",
        snippet=snippets.peft_snippet(base or _UNKNOWN_BASE),
        base_model=base,
        notes=[] if base else [note],
    )

    def write(folder: Path) -> None:
        save(clip_model(plain), folder, base)
        _write_texts(folder, texts)

    return Content([*PEFT_FILES, *texts], write, loading)


def clip_model(plain: Plain) -> Any:
    """Return a transformers' CLIPModel with a model's weights."""
    from transformers import CLIPConfig, CLIPModel

    config = model_config(plain.backbone.architecture, plain.backbone.logit_scale)
    model: Any = CLIPModel(CLIPConfig(**config))
    model.load_state_dict(to_hugging_face(plain.state))
    return model.eval()


def _known_name(plain: Plain) -> tuple[str, bool]:
    """Return open_clip's name of the architecture, and whether it says GELU for QuickGELU."""
    import open_clip

    if plain.architecture == TINY:
        return _TINY_NAME, False
    if plain.architecture.startswith(_PLACES):
        return _PLACE_NAME, False
    if not plain.backbone.architecture.get("quick_gelu"):
        return plain.architecture, False
    named = f"{plain.architecture.removesuffix(_QUICK_GELU)}{_QUICK_GELU}"
    if named in open_clip.list_models():
        return named, False
    return plain.architecture, True


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        atomic.write_text(folder / name, text)
