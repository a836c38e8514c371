"""Small adapted models to export, and what they answer before the export."""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor

from so_clip.adapters import Restored, SavedAdapter
from so_clip.adapters.about import About, Base, LowRank
from so_clip.adapters.change import change_between
from so_clip.adapters.file import saved_adapter
from so_clip.build import assemble_model
from so_clip.clip.backbone import Backbone, sha256_of_weights
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.prompts import templated
from so_clip.export.write import Export, make_export, write_export
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from so_clip.runtime.precision import Precision
from tests.helpers.battery_parts import CPU, NAMES, batches_of, settings_of
from tests.helpers.small_models import CONFIG, MEAN, STD, TOKENIZER

TEMPLATES = ["a photo of a {}."]
ARCHITECTURE = "small-ViT"
STEPS = 3
_MODEL = "backbone.model."
# Heads of 64, as in all models of OpenAI.
OPENAI_SIZES: dict[str, Any] = CONFIG | {
    "vision_cfg": CONFIG["vision_cfg"] | {"head_width": 64},
    "text_cfg": CONFIG["text_cfg"] | {"width": 64, "heads": 1},
}
RESNET: dict[str, Any] = CONFIG | {
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
}
IMAGES_BCHW = torch.randint(
    256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
)


@dataclass
class Adapted:
    """An adapted model. Its export merges the classifier, so a case is used once.

    Attributes:
        logits_BK: of `IMAGES_BCHW`.
        zero_shot_BK: the same before the adaptation.
    """

    adapter: SavedAdapter
    restored: Restored
    logits_BK: Tensor
    zero_shot_BK: Tensor

    def export(self, target: str, file: str = "") -> Export:
        return make_export(self.adapter, self.restored, target, file)

    def write(self, folder: Path, target: str, file: str = "") -> Export:
        export = self.export(target, file)
        write_export(export, folder)
        return export


def adapted(
    method: str,
    *overrides: str,
    config: dict[str, Any] = CONFIG,
    quick_gelu: bool = False,
    class_names: tuple[str, ...] = NAMES,
) -> Adapted:
    """Train a method for a few steps on a small CLIP with random weights."""
    settings = settings_of(method, STEPS, *overrides)
    prompts = templated(class_names, TEMPLATES)
    model = assemble_model(settings, backbone_of(config, quick_gelu), prompts)
    classifier, adapter = model.classifier, model.adapter
    base = {name: value.clone() for name, value in classifier.backbone.model.state_dict().items()}
    zero_shot_BK = logits_of(classifier)
    if adapter is not None:
        with tempfile.TemporaryDirectory() as folder:
            batches = batches_of(settings, model)
            Run(settings, model, RunFolder(Path(folder)), batches).adapt(Progress(None, 0))
    state = classifier.state_dict()
    added = {name: value for name, value in state.items() if name not in model.base_names}
    pairs = {name: (base[name], state[f"{_MODEL}{name}"]) for name in base}
    changes = {
        name: change
        for name, (before, after) in pairs.items()
        if f"{_MODEL}{name}" in model.base_names
        and (change := change_between(before, after)) is not None
    }
    updates = [] if adapter is None else adapter.low_rank_updates(classifier)
    about = About(
        base=Base(
            architecture=ARCHITECTURE,
            weights_sha256=sha256_of_weights(base),
            logit_scale=classifier.backbone.logit_scale,
            quick_gelu=quick_gelu,
        ),
        dataset="eurosat",
        class_names=class_names,
        templates=tuple(TEMPLATES),
        method=method,
        method_title=settings.method.title,
        settings={"shots": 2, "seed": 1},
        low_rank=tuple(
            LowRank(**vars(update), shape=tuple(base[update.tensor].shape)) for update in updates
        ),
    )
    classifier.requires_grad_(False)
    restored = Restored(classifier, about, class_names, Precision("fp32", CPU), CPU, adapter)
    saved = saved_adapter(about, changes, added)
    return Adapted(saved, restored, logits_of(classifier), zero_shot_BK)


@cache
def adapted_so() -> Adapted:
    """Return SO's adapted model, shared by tests: its export merges nothing."""
    return adapted("so")


def backbone_of(config: dict[str, Any], quick_gelu: bool) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**config, quick_gelu=quick_gelu).eval()
    explicit_attention(model)
    architecture = config | {"quick_gelu": quick_gelu}
    backbone = Backbone(
        model, TOKENIZER, MEAN, STD, description=ARCHITECTURE, architecture=architecture
    )
    return backbone.eval().requires_grad_(False)


def logits_of(classifier: Any) -> Tensor:
    with torch.no_grad():
        return classifier(IMAGES_BCHW).clone()


def pixels_BCHW() -> Tensor:
    """Return the images as other libraries take them."""
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (IMAGES_BCHW / 255 - mean_C11) / std_C11


def tokens_KL(folder: Path) -> Tensor:
    """Return the prompts of an export, tokenised."""
    values = json.loads((folder / "classes.json").read_text())
    return TOKENIZER([prompt for prompts in values["prompts"] for prompt in prompts])


def snippet_logits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Run the code of an export's card on the first image, and return its logits_BK."""
    card = (folder / "README.md").read_text("utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    # A PNG by content: its pixels are exact.
    picture = Image.fromarray(IMAGES_BCHW[0].permute(1, 2, 0).numpy())
    picture.save(folder / "photo.jpg", format="png")
    names: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(compile(code, "README.md", "exec"), names)
    return names["logits_BK"]
