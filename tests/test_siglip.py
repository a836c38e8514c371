"""A SigLIP in a folder, adapted in a few steps: run, predict, evaluate, export and report."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from so_clip.clip.loading.architecture import build_model
from tests.helpers.command import Outcome, call
from tests.helpers.local_tokenizers import local_tokenizer
from tests.helpers.made_datasets import ANIMALS, write_eurosat
from tests.helpers.small_families import randomize
from tests.helpers.whole_runs import Run, run

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    # timm's smallest ViT, with SigLIP's pooling.
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 400,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 64,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
PIXELS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
STEPS = 20
PROMPT = "a photo of a {}."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the images and a finished run's results."""
    root = tmp_path_factory.mktemp("siglip")
    local_tokenizer("siglip", root, 16)
    model = build_model(CONFIG, quick_gelu=False, seed=0)
    randomize(model, seed=0)
    with torch.no_grad():
        model.logit_scale.fill_(torch.tensor(20.0).log())
    save_file(model.state_dict(), root / "siglip" / "open_clip_model.safetensors")
    content = {"model_cfg": CONFIG, "preprocess_cfg": PIXELS}
    (root / "siglip" / "open_clip_config.json").write_text(json.dumps(content))
    write_eurosat(root / "data")
    return root


def options(root: Path) -> list[str]:
    return [
        "dataset=eurosat",
        f"data_root={root / 'data'}",
        f"backbone.architecture=local-dir:{root / 'siglip'}",
        "backbone.logit_scale=auto",
        "shots=4",
        "template=plain",
        "evaluation.workers=0",
    ]


@pytest.fixture(scope="module")
def adapted(root: Path) -> Run:
    schedule = [f"schedule.max_steps={STEPS}", "optimizer.lr=3e-3", "optimizer.density_ratio=0.05"]
    return run(root / "runs", "method=so", *options(root), *schedule)


def succeeds(*words: object) -> Outcome:
    done = call(*words)
    assert done.code == 0, done.err
    return done


def test_so_learns_the_training_images(adapted: Run) -> None:
    losses = adapted.column("history.csv", "loss")
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_its_adapter_predicts_what_the_run_predicted(root: Path, adapted: Run) -> None:
    rows = adapted.rows("predictions.csv")
    images = [root / "data" / "eurosat" / "2750" / row["path"] for row in rows]
    done = succeeds("predict", adapted.folder, *images, "--format", "jsonl")
    best = [json.loads(line)["predictions"][0] for line in done.out.splitlines()]
    assert [one["class"] for one in best] == [row["prediction_name"] for row in rows]


def test_its_adapter_is_evaluated_again(root: Path, adapted: Run) -> None:
    done = succeeds("evaluate", adapted.folder, f"results_dir={root / 'again'}")
    again = Run(Path(done.out.rpartition("run folder")[2].strip()))
    assert again.rows("predictions.csv") == adapted.rows("predictions.csv")


def test_open_clip_reads_the_export_and_answers_the_same(
    root: Path, adapted: Run, tmp_path: Path
) -> None:
    """open_clip's own model, pixels and tokenizer; the tokenizer's files are copied."""
    place = tmp_path / "adapted"
    file = place / "open_clip_model.safetensors"
    before = load_file(root / "siglip" / file.name)
    succeeds("export", adapted.folder, "--to", "open_clip", file)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(root / "siglip" / name, place / name)
    changed = [name for name, value in load_file(file).items() if not value.equal(before[name])]
    assert any(name.startswith("visual.trunk.blocks.") for name in changed)
    assert any(name.startswith("text.transformer.resblocks.") for name in changed)
    assert not any(".norm" in name or name.endswith("bias") for name in changed)
    name = f"local-dir:{place}"
    model, pixels = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokens_KL = open_clip.get_tokenizer(name)([PROMPT.format(animal) for animal in ANIMALS])
    rows = adapted.rows("predictions.csv")
    images = [Image.open(root / "data" / "eurosat" / "2750" / row["path"]) for row in rows]
    with torch.no_grad():
        image_BD = F.normalize(model.encode_image(torch.stack([*map(pixels, images)])), dim=-1)
        class_KD = F.normalize(model.encode_text(tokens_KL), dim=-1)
        scale = model.logit_scale.exp()
        probabilities_BK = (scale * image_BD @ class_KD.T).softmax(dim=-1)
    top_B, best_B = probabilities_BK.max(dim=-1)
    assert [ANIMALS[label] for label in best_B] == [row["prediction_name"] for row in rows]
    confidences = [float(row["confidence"]) for row in rows]
    assert top_B.tolist() == pytest.approx(confidences, abs=0.03)


def test_it_is_compared_with_another_method_in_a_report(root: Path, adapted: Run) -> None:
    run(root / "runs", "method=zero_shot", *options(root))
    done = succeeds("report", root / "runs", "--out", root / "report")
    assert done.messages == [] or "zero_shot" in done.err + done.out
    page = (root / "report" / "index.html").read_text()
    assert "siglip" in page
