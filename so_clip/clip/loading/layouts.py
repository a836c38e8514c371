"""The layouts of files with CLIP weights: which entry holds them, and under which names.

Training programs wrap a state dict, put a prefix before every name, and add entries of their own.
Hugging Face's transformers has other names and shapes for the same tensors.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from so_clip.clip.loading import siglip_layout
from so_clip.clip.loading.weights_file import WAY_OUT
from so_clip.data.plain_files import read_values, shortened
from so_clip.errors import InputError

# Names of modules that torch puts around a model, or around its parts: data-parallel training,
# torch.compile, and fully sharded training.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_DEEPEST = 3  # entries within entries of a training checkpoint
_SHOWN = 3
# A second state dict, or second model, with this share of the first one's tensors is a rival.
_RIVAL_SHARE = 0.5

# Names in transformers' CLIPModel, and open_clip's names without "visual.".
_HF_TOWERS = re.compile(r"(text|vision)_model\.(.+)")
_HF_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_HF_FUSED = re.compile(r"(.*attn\.)([qkv])_proj\.(weight|bias)")
_HF_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
}
_HF_PARTS = {
    "pre_layrnorm": "ln_pre",  # the published name has this spelling
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}
_HF_PROJECTIONS = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
# The same parts in open_clip.
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_FUSED = re.compile(r"(.*attn\.)in_proj_(weight|bias)")
_HF_ACTIVATIONS = {"quick_gelu": True, "gelu": False}

_LORA = ("lora_", "a LoRA adapter. Merge it into its model first, and save the model")
_IMAGE_ONLY = "Load it with backbone=dino_s16, or with another backbone.architecture=timm:NAME"
# Parts of names in files without the weights of a whole CLIP.
_OTHER_MODELS = (
    (
        ".attention.attention.query.",
        f"a vision transformer of Hugging Face, without a text encoder. {_IMAGE_ONLY}",
    ),
    (
        "blocks.0.attn.qkv.",
        f"a vision transformer of timm or DINO, without a text encoder. {_IMAGE_ONLY}",
    ),
    ("encoder.layer.0.attention.", "a language model such as BERT"),
    ("layer1.0.conv1.weight", "a ResNet of torchvision, without a text encoder"),
)  # fmt: skip


def state_dict_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the only state dict in what a file holds: the mapping of names to tensors.

    Other entries, such as the optimizer's state and the epoch, are left out.

    Raises:
        InputError: there is none, or there are several of similar size.
    """
    found = sorted(_state_dicts(content), key=lambda entry: -len(entry[1]))
    if not found:
        raise InputError(f"{path} holds no state dict{_what_else(content)}. {WAY_OUT}")
    place, state = found[0]
    rivals = [
        ".".join(other) or "the file itself"
        for other, tensors in found
        if len(tensors) > _RIVAL_SHARE * len(state)
    ]
    if len(rivals) > 1:
        keys = "".join(f"[{key!r}]" for key in place)
        raise InputError(
            f"{path} holds {len(rivals)} state dicts: {', '.join(rivals[:_SHOWN])}. Save the "
            f"one that you want in its own file: torch.save(torch.load({str(path)!r}){keys}, FILE)."
        )
    return state


def _state_dicts(
    content: Any, place: tuple[str, ...] = ()
) -> Iterable[tuple[tuple[str, ...], Any]]:
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(isinstance(key, str) for key in tensors):
        yield place, tensors
    if len(place) < _DEEPEST:
        for key, value in content.items():
            yield from _state_dicts(value, (*place, str(key)))


def _what_else(content: Any) -> str:
    if not isinstance(content, Mapping) or not content:
        return f", but a {type(content).__name__}"
    if {"made_by", "states"} <= content.keys():
        return (
            ": it is the checkpoint of a run of this program. It continues that run, and holds "
            "only what the run changed"
        )
    key, value = next(iter(content.items()))
    return f": its entry {shortened(key)} is a {type(value).__name__}, not a tensor"


def without_prefix(
    state: Mapping[str, Tensor], expected: Iterable[str], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the names of wrappers, and the prefix before the names of the model.

    Args:
        state: the tensors of a file.
        expected: the names of the model.
        source: the file, for messages.

    Returns:
        The model's tensors, and the names of tensors that do not have the model's prefix.

    Raises:
        InputError: there are two models with different prefixes.
    """
    plain = {_without_wrappers(name): value for name, value in state.items()}
    plain = plain if len(plain) == len(state) else dict(state)
    known = set(expected)
    # open_clip has two layouts of the text tower: in the model, or in its part `text`.
    known |= {name.removeprefix("text.") for name in known}
    known |= {f"text.{name}" for name in known if not name.startswith(("visual.", "text."))}
    counts = Counter(
        prefix for name in plain if (prefix := _prefix(name, known)) is not None
    ).most_common(2)
    if not counts:
        return plain, []
    (best, most), *others = counts
    if others and others[0][1] > _RIVAL_SHARE * most:
        raise InputError(
            f"{source} holds two models, with the prefixes {best!r} and {others[0][0]!r}. Save the "
            "one that you want in a file of its own."
        )
    if not best:
        return plain, []
    left_out = [name for name in plain if not name.startswith(best)]
    inside = {name: value for name, value in plain.items() if name.startswith(best)}
    return {name.removeprefix(best): value for name, value in inside.items()}, left_out


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefix(name: str, known: set[str]) -> str | None:
    """Return the prefix of the name of a known tensor; None for an unknown tensor."""
    parts = name.split(".")
    for start in range(len(parts)):
        if start and parts[start - 1] == "visual":
            continue  # open_clip's image tower, whose blocks have the names of the text tower's
        rest = ".".join(parts[start:])
        if rest in known or rest in _HF_PROJECTIONS or _HF_TOWERS.match(rest):
            return name.removesuffix(rest)
    return None


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of transformers' CLIPModel under open_clip's names and in its shapes.

    open_clip holds query, key and value as one matrix, and the projections transposed. Other
    tensors do not change. Those of a SiglipModel get the names of open_clip's SigLIP.

    Source: `CLIPModel` in src/transformers/models/clip of github.com/huggingface/transformers.
    """
    if siglip_layout.is_hugging_face(state):
        return siglip_layout.from_hugging_face(state)
    if not any(_HF_TOWERS.match(name) for name in state):
        return dict(state)
    converted: dict[str, Tensor] = {}
    fused: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, value in state.items():
        new = _open_clip_name(name)
        if name.endswith(".position_ids"):  # a buffer of older versions
            continue
        if name in _HF_PROJECTIONS and value.ndim == 2:
            converted[_HF_PROJECTIONS[name]] = value.t()
        elif part := _HF_FUSED.fullmatch(new):
            fused.setdefault(f"{part[1]}in_proj_{part[3]}", {})[part[2]] = name, value
        else:
            converted[new] = value
    for new, parts in fused.items():
        if len(parts) == len("qkv"):
            converted[new] = torch.cat([parts[kind][1] for kind in "qkv"])
        else:
            converted |= dict(parts.values())
    return converted


def _open_clip_name(name: str) -> str:
    tower = _HF_TOWERS.fullmatch(name)
    if not tower:
        return name
    rest, layer = tower[2], _HF_LAYER.fullmatch(tower[2])
    if layer:
        rest = layer[2]
    rest = _HF_NAMES.get(rest, rest)
    for old, new in _HF_PARTS.items():
        if rest.startswith(f"{old}."):
            rest = new + rest.removeprefix(old)
    if layer:
        rest = f"transformer.resblocks.{layer[1]}.{rest}"
    return rest if tower[1] == "text" else f"visual.{rest}"


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an open_clip CLIP's tensors under transformers' names; inverts `from_hugging_face`.

    Args:
        state: of a model that transformers' CLIPModel can hold, with or without the part `text`.
    """
    converted: dict[str, Tensor] = {}
    transposed = {new: old for old, new in _HF_PROJECTIONS.items()}
    for full_name, value in state.items():
        name = full_name.removeprefix("text.")
        if name in transposed:
            converted[transposed[name]] = value.t()
        elif name == "logit_scale":
            converted[name] = value.reshape(())
        elif fused := _FUSED.fullmatch(name):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[hugging_face_name(f"{fused[1]}{part}_proj.{fused[2]}")] = rows
        else:
            converted[hugging_face_name(name)] = value
    return converted


def hugging_face_name(name: str) -> str:
    """Return transformers' name for a tensor or module of an open_clip CLIP.

    Args:
        name: of anything but projections to the embedding, and with query, key and value split into
            attn.q_proj, attn.k_proj and attn.v_proj.
    """
    name = name.removeprefix("text.")
    tower = "vision" if name.startswith("visual.") else "text"
    rest, layer = name.removeprefix("visual."), ""
    if block := _LAYER.fullmatch(rest):
        layer, rest = f"encoder.layers.{block[1]}.", block[2]
    rest = {new: old for old, new in _HF_NAMES.items()}.get(rest, rest)
    for old, new in _HF_PARTS.items():
        if f"{rest}.".startswith(f"{new}."):
            rest = old + rest.removeprefix(new)
    return f"{tower}_model.{layer}{rest}"


def stated_quick_gelu(path: Path, state: Mapping[str, Tensor]) -> bool | None:
    """Return whether Hugging Face's config.json beside a file says QuickGELU; None if unknown.

    Args:
        path: the file.
        state: its tensors; other layouts than Hugging Face's have no such config.json.
    """
    config = path.parent / "config.json"
    names = "\n".join(state)
    # SigLIP's activation is no choice, and its configuration leaves it out.
    if "vision_model." not in names or "vision_model.head." in names or not config.exists():
        return None
    try:
        values = read_values(config, "config.json")
    except InputError:
        return None
    towers = [values.get(key) for key in ("vision_config", "text_config")]
    acts = {tower.get("hidden_act", "quick_gelu") for tower in towers if isinstance(tower, dict)}
    return _HF_ACTIVATIONS.get(acts.pop()) if len(acts) == 1 else None


def other_model(names: Iterable[str]) -> str:
    """Return what a file holds in place of a CLIP, with the way out; "" if that is unknown."""
    text = "\n".join(f".{name}" for name in names)
    has_text = ".token_embedding." in text or ".text." in text
    # The towers of a CLIP have names like those of single models.
    marks = (_LORA,) if ".visual." in text and has_text else (_LORA, *_OTHER_MODELS)
    return next((what for mark, what in marks if mark in text), "")
