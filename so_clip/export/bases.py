"""The names of base models on the Hugging Face hub."""

from so_clip.clip.loading.hub import pretrained_config
from so_clip.errors import InputError

# OpenAI's weights in transformers' layout. open_clip's tag `openai` names other repositories.
_OPENAI = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
    "ViT-L-14-336": "openai/clip-vit-large-patch14-336",
}
# Its repositories hold each model in both layouts.
_BOTH_LAYOUTS = "laion/"


def hub_name(architecture: str, pretrained: str | None) -> str | None:
    """Return the repository of published weights in open_clip's layout; None if there is none.

    Args:
        architecture: open_clip's name, or "tiny".
        pretrained: open_clip's tag; None for weights from elsewhere.
    """
    if pretrained is None:
        return None
    try:
        hub = pretrained_config(architecture, pretrained).get("hf_hub")
    except InputError:  # the embedded weights
        return None
    return "/".join(str(hub).split("/")[:2]) if hub else None


def transformers_name(architecture: str, pretrained: str | None) -> str | None:
    """Return the same for transformers' layout."""
    if pretrained == "openai":
        return _OPENAI.get(architecture.removesuffix("-quickgelu"))
    name = hub_name(architecture, pretrained)
    return name if name and name.startswith(_BOTH_LAYOUTS) else None
