"""Load a CLIP, for adaptation and for zero-shot predictions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.api.images import listed
from so_clip.api.options import python_words, settings_of
from so_clip.build import load as load_choice
from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.half_weights import NAME as HALF_WEIGHTS
from so_clip.clip.loading.architecture_names import check_architecture, is_place
from so_clip.clip.loading.weights_file import check_backbone
from so_clip.clip.prompts import templated
from so_clip.config.compose import choices
from so_clip.config.resolve import resolved
from so_clip.config.settings import BackboneChoice
from so_clip.errors import InputError, nearest
from so_clip.predict.pictures import Picture
from so_clip.predict.predictions import Prediction, Predictor
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import Precision
from so_clip.system.commands import override

AUTO = "auto"


@dataclass(frozen=True, eq=False, repr=False)
class Clip:
    """A loaded CLIP. `adapt` works on a copy of it.

    Attributes:
        backbone: a torch module: the open_clip model (`backbone.model`) with its tokenizer.
        precision: of matrix products: fp32, bf16, fp16 or fp16_authors.
        overrides: the options that chose it, as on the command line.
    """

    backbone: Backbone
    precision: str
    overrides: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Clip {self.backbone.description} on {self.device}, {self.precision}>"

    @property
    def device(self) -> str:
        """The device of the weights."""
        return str(self.backbone.mean.device)

    def predict(
        self,
        images: Sequence[Picture],
        class_names: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        top: int = 5,
    ) -> list[Prediction]:
        """Classify images without any training, by the names of classes.

        Args:
            images: paths, PIL images, uint8 tensors [3, height, width], or arrays
                [height, width, 3].
            class_names: two or more.
            template: the prompt of a class; {} stands for its name.
            top: classes per image.

        Returns:
            The best classes of each image, with confidences; see Prediction.

        Raises:
            InputError: an image cannot be read, or another argument cannot be used.

        Example:
            >>> clip = so_clip.load("vit_b16")
            >>> clip.predict(["a.jpg"], ["cat", "dog"])[0].name
            'cat'
        """
        check_class_names(class_names)
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(f"template={template!r}: must hold one {{}}, for the name of a class.")
        prompts = templated(class_names, [template])
        backbone = self.backbone
        if self.precision == HALF_WEIGHTS:
            backbone = backbone.copy()
            backbone.use_half_weights()
        classifier = Classifier(backbone, backbone.tokenize(prompts.texts)).to(self.device)
        precision = Precision(self.precision, backbone.mean.device)
        predictor = Predictor(classifier, class_names, None, precision, top=top)
        return list(predictor.predict(listed(images)))


def check_class_names(class_names: Any) -> None:
    """Raise InputError unless this is a list of two or more names."""
    is_list = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if not is_list or len(class_names) < 2 or not all(isinstance(x, str) for x in class_names):
        raise InputError(f"class_names={class_names!r}: must be a list of two or more names.")


# The architecture is the argument `name`.
_IN_PYTHON = {
    "set architecture=local-dir:FOLDER": "load the name 'local-dir:FOLDER'",
    "with architecture=": "as the name",
    "backbone=tiny needs": "the name 'tiny' needs",
}


def load(
    name: str,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    pretrained: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    resize_mode: str = AUTO,
    interpolation: str = AUTO,
    mean: str | Sequence[float] = AUTO,
    std: str | Sequence[float] = AUTO,
) -> Clip:
    """Load a CLIP model, as `backbone=NAME` does on the command line.

    Args:
        name: a group of backbones, such as vit_b16, siglip2_b16 or tiny (in the package, for
            trials); the name of an architecture of open_clip, such as "ViT-B-16-SigLIP"; a
            repository, "hf-hub:ORG/NAME"; a folder, "local-dir:PATH"; or an image model of timm,
            "timm:NAME", whose classes come from images with `so_clip.adapt`.
        checkpoint: a local file of weights, read in place of the published ones.
        pretrained: open_clip's or timm's tag of published weights, such as "laion2b_s34b_b88k";
            auto: those of the named model. An architecture of open_clip or timm needs a tag or a
            checkpoint. A repository or folder has weights of its own.
        device: auto | cpu | cuda | cuda:N | mps.
        precision: auto | fp32 | bf16 | fp16 | fp16_authors, of training and evaluation.
        resize_mode: auto (as the weights were trained) | shortest | squash | longest.
        interpolation: auto | bicubic | bilinear.
        mean: of pixels from 0 to 1: auto | three numbers, for red, green and blue.
        std: their standard deviation: auto | three numbers.

    Returns:
        The model, on its device. The first use downloads published weights.

    Raises:
        InputError: there is no such model, or its weights cannot be read or downloaded.

    Example:
        >>> clip = so_clip.load("vit_b16")
        >>> clip = so_clip.load("ViT-B-16", pretrained="laion2b_s34b_b88k", device="cuda")
    """
    overrides = [
        *_named(name, checkpoint, pretrained),
        override("device", device),
        override("precision", precision),
    ]
    pixels = {"resize_mode": resize_mode, "interpolation": interpolation, "mean": mean, "std": std}
    for option, value in pixels.items():
        if not isinstance(value, str) or value != AUTO:
            overrides.append(override(f"backbone.{option}", value))
    if checkpoint is not None:
        file = os.path.abspath(Path(checkpoint).expanduser())  # noqa: PTH100
        overrides.append(override("backbone.checkpoint", file))
    with python_words("backbone", BackboneChoice.model_fields, _IN_PYTHON):
        settings = settings_of(overrides)
        check_backbone(settings.backbone.architecture, settings.backbone.checkpoint)
        settings = resolved(settings)
        backbone = load_choice(settings.backbone, seed=0)
    placement = settings.placement
    return Clip(backbone.to(pick_device(placement.device)), placement.precision, tuple(overrides))


def _named(name: str, checkpoint: object, pretrained: str) -> list[str]:
    """Return the overrides that choose architecture and weights."""
    if not isinstance(name, str):
        raise InputError(f"name={name!r}: must be a text, such as 'vit_b16'.")
    if not isinstance(pretrained, str):
        raise InputError(
            f"pretrained={pretrained!r}: must be a tag of published weights. Few images cannot "
            "train random weights."
        )
    tag = [] if pretrained == AUTO else [override("backbone.pretrained", pretrained)]
    known = [file.stem for file in choices("backbone")]
    if name in known:
        return [override("backbone", name), *tag]
    if is_place(name):
        check_architecture(name)
        if tag:
            raise InputError(
                f"pretrained={pretrained!r}: {name} has weights of its own. Leave pretrained out, "
                "or give other weights with checkpoint=FILE."
            )
    else:
        _check_named(name, known, has_weights=bool(tag) or checkpoint is not None)
    weights = tag or [override("backbone.pretrained", None)]
    return ["backbone=vit_b16", override("backbone.architecture", name), *weights]


def _check_named(name: str, known: list[str], has_weights: bool) -> None:
    """Raise InputError unless this is an architecture of open_clip, with weights."""
    if name.endswith(".safetensors") or os.path.exists(name):  # noqa: PTH110
        raise InputError(
            f"name={name!r}: must be the name of a model, not a file. so_clip.load_adapted reads "
            "an adapter; checkpoint=FILE reads weights of a named model; a folder with "
            "open_clip_config.json is 'local-dir:PATH'."
        )
    try:
        check_architecture(name)
    except InputError as error:
        near = nearest(name, known)
        raise InputError(
            f"name={name!r}: there is no such model.{near} Known: {', '.join(known)}, the "
            "architectures of open_clip, 'hf-hub:ORG/NAME', 'local-dir:PATH' and 'timm:NAME'."
        ) from error
    if not has_weights:
        from so_clip.clip.loading.hub import pretrained_tags

        tags = ", ".join(pretrained_tags(name)) or "none"
        raise InputError(
            f"name={name!r}: say which weights: pretrained=TAG or checkpoint=FILE. Tags: {tags}."
        )
