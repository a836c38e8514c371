"""The command `backbones`: the list, one model in detail, and unknown names."""

import json

import pytest

from so_clip.config.compose import choices
from tests.helpers.command import call
from tests.helpers.places import write_place


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("siglip_b61", ["siglip_b61: open_clip has no such model.", "siglip_b16", "--matching"]),
        ("ViT-B-16-SigLIPP", ["Did you mean 'ViT-B-16-SigLIP'", "--matching TEXT"]),
        ("ViT-Q*", ["ViT-Q*: open_clip has no such model.", "lists all"]),
        ("--matching nonsense", ["--matching nonsense: open_clip has no such model."]),
        ("RN50 --matching RN", ["--matching RN: is for the list, without NAME."]),
        ("RN50 RN101", ["backbones: too many arguments: RN101."]),
    ],
)
def test_an_unknown_name_is_one_message_with_a_way_out(line, parts):
    done = call("backbones", *line.split())
    assert (done.code, done.out) == (2, "")
    assert len(done.messages) == 1
    for part in parts:
        assert part in done.err


@pytest.mark.slow
def test_a_pattern_lists_models_with_their_towers_and_methods():
    done = call("backbones", "vit_b16*")  # also the groups' names
    assert done.code == 0
    assert "ViT-B-16-quickgelu 224 VisionTransformer 12 x 768 86.2 TextTransformer" in done.cells
    assert "vit_b16" in done.out
    models = json.loads(call("backbones", "--matching", "siglip_b16", "--json").out)
    assert [model["architecture"] for model in models] == ["ViT-B-16-SigLIP"]
    assert models[0]["vision"]["blocks"] == 12
    assert models[0]["published"] == ["webli"]


@pytest.mark.slow
def test_a_group_is_shown_in_detail_with_pixels_roles_and_reasons():
    done = call("backbones", "siglip_b16")
    assert done.code == 0
    assert "ViT-B-16-SigLIP (backbone=siglip_b16)" in done.out
    assert "attention_in 12 21,233,664 2304x768 visual.trunk.blocks.0.attn.qkv.weight" in done.cells
    assert "squash, bicubic, mean [0.5,0.5,0.5], std [0.5,0.5,0.5]" in done.out
    assert max(map(len, done.out.splitlines())) <= 130
    document = json.loads(call("backbones", "siglip_b16", "--json").out)
    assert {*document["applies"]} | {*document["refused"]} >= {"so", "clip_lora", "coop"}
    assert all("." in reason for reason in document["refused"].values())


@pytest.mark.slow
def test_a_folder_is_shown_with_its_own_pixels(tmp_path):
    write_place(tmp_path / "mine")
    done = call("backbones", f"local-dir:{tmp_path / 'mine'}")
    assert done.code == 0
    assert "squash, bilinear, mean [0.5,0.4,0.3], std [0.2,0.25,0.3]" in done.out
    methods = len(choices("method")) - 1  # `head` is for sentences
    assert f"methods that apply: {methods} of {methods}" in done.out
