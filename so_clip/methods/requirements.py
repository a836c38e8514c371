"""What a method needs of classes, backbone and precision. It is checked before any work."""

from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.half_weights import NAME as HALF_WEIGHTS
from so_clip.clip.loading.architecture_names import is_image_only
from so_clip.config.settings import MethodChoice, Settings
from so_clip.data.cards.card import load_card
from so_clip.data.choice import DataChoice
from so_clip.data.find import user_dataset
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter
from so_clip.methods.construct import make_adapter


def check_classes(method: MethodChoice, choice: DataChoice) -> None:
    """Refuse, before any work, to test a method on classes that it cannot predict.

    Raises:
        InputError: the trained weights belong to the training classes, and others are to be tested.
    """
    adapter = make_adapter(method.adapter) if method.adapter else None
    if adapter is None or not adapter.class_bound:
        return
    bound = f"what method={method.name} trains belongs to the classes of its training images"
    if choice.base_to_new:
        raise InputError(
            f"protocol=base_to_new: {bound}, and cannot predict new ones. Leave protocol out, or "
            "take another method."
        )
    for name in choice.transfer:
        is_users = user_dataset(name, choice.data_root) is not None
        if is_users or load_card(name, choice.cards_dir).classes_of != choice.dataset:
            raise InputError(
                f"transfer={name}: {bound}, and {name} has others. Leave it out, or take another "
                "method."
            )


def check_text(settings: Settings, backbone: Backbone | None = None) -> None:
    """Refuse, before any work, a method whose classes come from text on a backbone without text.

    Args:
        settings: of the run.
        backbone: as loaded; None: the name of the architecture decides.

    Raises:
        InputError: the method needs a text tower and there is none.
    """
    method, architecture = settings.method, settings.backbone.architecture
    has_text = not is_image_only(architecture) if backbone is None else backbone.has_text
    whose = f"method={method.name}: its classes come from text, and the backbone {architecture}"
    if backbone is not None:  # the same text for all methods, which `backbones NAME` shows once
        whose = f"the classes of the method come from text, and {backbone.description}"
    if has_text or (method.adapter is not None and not make_adapter(method.adapter).needs_text):
        return
    raise InputError(
        f"{whose} has no text tower. Use method=prototypes or method=linear_probe, or a CLIP such "
        "as backbone=vit_b16."
    )


def check_half_weights(adapter: Adapter | None, method: str) -> None:
    """Refuse float16 weights for a method that computes with float32 ones."""
    if adapter is not None and not adapter.half_weights:
        raise InputError(
            f"precision={HALF_WEIGHTS}: method={method} computes with float32 weights. The option "
            "is for clip_lora, zero_shot, and methods that train CLIP's own weights, such as so "
            "and adamw. Use precision=fp16."
        )
