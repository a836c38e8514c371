"""Folders for transformers and peft, loaded by these libraries: the logits of the adapted model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from so_clip.clip.loading.layouts import from_hugging_face, to_hugging_face
from so_clip.errors import InputError
from so_clip.export.sizes import check_fits
from so_clip.export.targets import Plain, clip_model, plain_state
from tests.helpers.exports import (
    ARCHITECTURE,
    RESNET,
    Adapted,
    adapted,
    adapted_so,
    backbone_of,
    pixels_BCHW,
    tokens_KL,
)
from tests.helpers.small_models import CONFIG, TOKENIZER, small_clip

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SPLIT = "adapter.split_qkv=true"


def logits_BK(model: Any, folder: Path) -> Tensor:
    with torch.no_grad():
        outputs = model(input_ids=tokens_KL(folder), pixel_values=pixels_BCHW())
    return outputs.logits_per_image


def assert_equal(found_BK: Tensor, case: Adapted, least: float = 0.05) -> None:
    assert (case.logits_BK - case.zero_shot_BK).abs().max() > least
    torch.testing.assert_close(found_BK, case.logits_BK, rtol=1e-5, atol=1e-4)


def base_model(quick_gelu: bool = False) -> Any:
    backbone = backbone_of(CONFIG, quick_gelu)
    return clip_model(Plain(backbone, plain_state(backbone), ARCHITECTURE, None))


def test_the_two_directions_of_the_layout_undo_each_other() -> None:
    state = small_clip(seed=4).state_dict()
    back = from_hugging_face(to_hugging_face(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("quick_gelu", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transformers_loads_a_folder(quick_gelu: bool, tmp_path: Path) -> None:
    case = adapted("so", quick_gelu=quick_gelu)
    case.write(tmp_path, "transformers")
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    assert_equal(logits_BK(model, tmp_path), case)


def test_the_processor_needs_no_network_and_gives_the_same_tokens(tmp_path: Path) -> None:
    texts = ["a photo of a cat.", "It's 42 % Caf\u00e9, e\u0301clair!", "sea_lake (type  b)"]
    adapted_so().write(tmp_path, "transformers")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path, local_files_only=True)
    rows = processor.tokenizer(texts, padding="max_length")["input_ids"]
    assert len(rows[0]) == CONFIG["text_cfg"]["context_length"]
    # transformers pads with the end token, and open_clip with zeros after it.
    ends = [row.index(49407) + 1 for row in rows]
    expected = [row[row > 0].tolist() for row in TOKENIZER(texts)]
    assert [row[:end] for row, end in zip(rows, ends, strict=True)] == expected


def test_transformers_refuses_a_resnet() -> None:
    with pytest.raises(InputError, match=r"--to transformers: small-ViT has a ResNet .*open_clip"):
        check_fits(RESNET, "transformers", ARCHITECTURE)


def test_an_option_that_only_open_clip_knows_is_named() -> None:
    config = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"pool_type": "avg"}}
    with pytest.raises(InputError, match=r"has vision_cfg.pool_type=avg, which only open_clip"):
        check_fits(config, "transformers", ARCHITECTURE)
    with pytest.raises(InputError, match=r"has the option multimodal_cfg, which only open_clip"):
        check_fits(CONFIG | {"multimodal_cfg": {}}, "peft", ARCHITECTURE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clip_lora", "lora", "adalora"])
def test_peft_loads_low_rank_updates(method: str, tmp_path: Path) -> None:
    assert_loads_with_peft(adapted(method), tmp_path)


def test_clip_loras_scale_is_pefts_rank_stabilised_scale(tmp_path: Path) -> None:
    case = adapted("clip_lora", "adapter.rank=3", "adapter.alpha=2", "adapter.encoder=vision")
    assert_loads_with_peft(case, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"]) == (True, 3)
    assert config["lora_alpha"] == pytest.approx(2)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("text_model" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", ("adapter.rank_stabilised=true", SPLIT)),
        ("lora", ("adapter.position=up", "adapter.roles=[mlp_in]")),
        ("clip_lora", ("adapter.interpolation=0.5",)),
        ("adalora", (SPLIT,)),
        ("dora", ()),
        ("loha", ()),
        ("miss", ()),
        ("oft", ()),
        ("ia3", ()),
        *((method, (SPLIT,)) for method in ("dora", "vera", "loha", "lokr", "oft", "randlora")),
        *((method, (SPLIT,)) for method in ("fourierft", "miss", "delora")),
    ],
)
def test_peft_loads_every_kind_that_it_has(
    method: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    assert_loads_with_peft(adapted(method, *options), tmp_path)


def assert_loads_with_peft(case: Adapted, folder: Path) -> None:
    case.write(folder, "peft")
    model = peft.PeftModel.from_pretrained(base_model(), folder).eval()
    assert_equal(logits_BK(model, folder), case, least=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("so", (), "so changes CLIP's own weights"),
        ("coop", (), "coop is none of peft's methods"),
        ("vera", (), "kind=vera has one adapter for query, key and value together.*split_qkv=true"),
        ("shira", (SPLIT,), "holds no places of the entries that kind=shira trains"),
        ("lora", ("adapter.interpolation=0.5",), "lora changes CLIP's own weights"),
    ],
)
def test_what_peft_cannot_hold_is_refused_with_the_way_out(
    method: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--to peft: .*{message}.*Take --to transformers"):
        adapted(method, *options).write(tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": (1, 33)}, "rows 1 to 33 of .* fits no layer"),
        ({}, "two updates of text_model"),
    ],
)
def test_updates_that_are_no_lora_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    case = adapted("clip_lora", "adapter.encoder=text", "adapter.position=last-1")
    first, *others = case.adapter.about.low_rank
    records = [first.model_copy(update=change), *others, *([] if change else [first])]
    about = case.adapter.about.model_copy(update={"low_rank": tuple(records)})
    case.adapter = replace(case.adapter, about=about)
    with pytest.raises(InputError, match=f"--to peft: .*{message}"):
        case.write(tmp_path / "out", "peft")
    assert not (tmp_path / "out").exists()
