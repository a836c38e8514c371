"""docs/how_to/saved_adapters.md: one base serves many adapters, with the logits of each alone."""

import pytest
import torch

import so_clip
from scripts.docs_site.blocks import blocks
from tests.helpers.battery_parts import images_of
from tests.helpers.command import ROOT
from tests.helpers.made_datasets import write_class_folders


@pytest.mark.slow
def test_the_loop_of_the_page_gives_the_logits_of_each_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", ("elm", "oak"), images=8)
    clip = so_clip.load("tiny")
    few = so_clip.few_shot(tmp_path / "photos", shots=1)
    for method in ("so", "clip_lora"):
        result = so_clip.adapt(
            clip, few, method, experiment="demo", schedule={"max_steps": 2, "stop_loss": 0}
        )
        (tmp_path / "saved").mkdir(exist_ok=True)
        result.save(f"saved/{method}.safetensors")
    page = ROOT / "docs" / "how_to" / "saved_adapters.md"
    (loop,) = [block.text for block in blocks(page) if "files" in block.text]
    scope = {
        "adapters": so_clip.adapters,
        "images_BCHW": torch.stack(images_of(1)[0])[:, :, :32, :32],
    }
    scope["kept"] = []
    exec(f"{loop}    kept.append(logits_BK)\n", scope)
    assert len(scope["kept"]) == 2
    for file, logits_BK in zip(scope["files"], scope["kept"], strict=True):
        alone_BK = so_clip.load_adapted(file).model(scope["images_BCHW"])
        assert torch.equal(logits_BK, alone_BK)
    assert not torch.equal(*scope["kept"])
