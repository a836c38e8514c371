"""The architectures of open_clip that have the sizes of some weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.clip.loading.architecture import build_model
from so_clip.errors import InputError

_SCALARS = ("logit_scale", "logit_bias")
_CLIP_WORDS, _CLIP_CONTEXT = 49408, 77  # open_clip's defaults
_MOST_BUILT = 24  # candidates; each takes up to half a second
_TRUNK = "visual.trunk."
# Parts of timm's image towers, and the beginnings of the names of models that have them.
_TIMM = {
    "patch_embed.backbone.": ("vitamin", "vit_base_mci"),
    "stages.": ("convnext", "fastvit"),
    "layers.": ("swin",),
}
Shapes = dict[str, tuple[int, ...]]


def architectures_of(state: Mapping[str, Tensor]) -> list[str]:
    """Return open_clip's names of architectures with the sizes of a model's weights.

    Few architectures have the sizes of its text transformer and its kind of image tower. They are
    built without values, and compared name by name. Text encoders of Hugging Face are not
    recognised, because their sizes are on the hub.

    Args:
        state: the tensors under open_clip's names.
    """
    import open_clip

    wanted = _shapes(state)
    text, kind, embedding = _text_sizes(wanted), _image_kind(wanted), _embedding(wanted)
    if text is None or kind is None:
        return []
    configs = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    likely = [
        name
        for name, config in configs.items()
        if (config["embed_dim"], _text_of(config), _kind_of(config)) == (embedding, text, kind)
    ]
    fitting = [name for name in likely[:_MOST_BUILT] if _built(configs[name]) == wanted]
    return sorted(fitting, key=len)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor, alike for both layouts of the text tower."""
    return {
        name.removeprefix("text."): tuple(value.shape)
        for name, value in state.items()
        if name not in _SCALARS
    }


def _built(config: Mapping[str, Any]) -> Shapes:
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            return _shapes(build_model(dict(config), False, seed=0).state_dict())
        except InputError:  # for example, timm is too old for it
            return {}


def _text_sizes(shapes: Shapes) -> tuple[int, ...] | None:
    """Return words, width, blocks and context of the text transformer; None without one."""
    words, positions = shapes.get("token_embedding.weight"), shapes.get("positional_embedding")
    if words is None or positions is None or len(words) != 2 or not positions:
        return None
    return (*words, _blocks(shapes, "transformer.resblocks."), positions[0])


def _embedding(shapes: Shapes) -> int | None:
    """Return the size of the embeddings, from the text tower's projection."""
    linear = shapes.get("text_projection.weight")
    projection = shapes.get("text_projection", (0,))[::-1] if linear is None else linear
    return projection[0] if projection else None


def _text_of(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    text = config["text_cfg"]
    if "hf_model_name" in text:
        return None
    words = text.get("vocab_size", _CLIP_WORDS), text.get("width", 512), text.get("layers", 12)
    # A class token of CoCa takes a position of its own.
    context = text.get("context_length", _CLIP_CONTEXT) + bool(text.get("embed_cls"))
    return (*words, context)


def _image_kind(shapes: Shapes) -> tuple[Any, ...] | None:
    """Return the facts about the image tower that names and sizes show without building it."""
    patches = shapes.get("visual.conv1.weight")
    if any(name.startswith(_TRUNK) for name in shapes):
        parts = {".".join(name.removeprefix(_TRUNK).split(".")[:2]) for name in shapes}
        marks = (mark for mark in _TIMM if any(f"{part}.".startswith(mark) for part in parts))
        return "timm", next(marks, "")
    if "visual.layer1.0.conv1.weight" in shapes:
        return ("ResNet",)
    if patches is None or not patches:
        return None
    return "ViT", patches[0], _blocks(shapes, "visual.transformer.resblocks."), patches[-1]


def _kind_of(config: Mapping[str, Any]) -> tuple[Any, ...]:
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        kinds = (
            mark for mark, names in _TIMM.items() if vision["timm_model_name"].startswith(names)
        )
        return "timm", next(kinds, "")
    if isinstance(vision.get("layers"), list):
        return ("ResNet",)
    sizes = (("width", 768), ("layers", 12), ("patch_size", 16))
    return "ViT", *(vision.get(name, usual) for name, usual in sizes)


def _blocks(shapes: Shapes, prefix: str) -> int:
    inside = [name.removeprefix(prefix) for name in shapes if name.startswith(prefix)]
    return len({name.split(".")[0] for name in inside})
