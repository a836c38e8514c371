"""The places of trained tensors, as changed.csv records them."""

import torch

from so_clip.adapters.before import Before
from so_clip.adapters.changed import in_place
from so_clip.build import assemble_model
from so_clip.clip.engine.fixed_entries import fixed_entries
from so_clip.clip.prompts import templated
from so_clip.clip.roles import GROUPS
from tests.helpers.battery_parts import NAMES, settings_of
from tests.helpers.small_families import small_backbone


def places_of(method: str, family: str, *overrides: str) -> dict[str, tuple[str, int | None, str]]:
    prompts = templated(NAMES, ["a photo of a {}."])
    model = assemble_model(settings_of(method, 1, *overrides), small_backbone(family), prompts)
    rows = in_place(model.classifier.backbone, [(name, 1, 0) for name in model.parameters])
    return {row.tensor: (row.tower, row.block, row.role) for row in rows}


def test_a_models_own_tensors_have_their_role_and_the_number_of_their_block():
    places = places_of("so", "convnext")
    assert places["visual.trunk.stages.2.blocks.0.mlp.fc1.weight"] == ("vision", 2, "mlp_in")
    assert places["visual.trunk.stages.3.downsample.1.weight"] == ("vision", None, "convolution")
    text = "transformer.resblocks.1.attn.in_proj.weight"
    assert places[text] == ("text", 1, "attention_in")


def test_tensors_that_a_method_adds_have_their_block_and_their_name_inside_it():
    places = places_of("lora", "siglip")
    roles = {role for tower, block, role in places.values() if (tower, block) == ("vision", 1)}
    assert any(role.startswith("attn.qkv.") for role in roles)
    assert {*places_of("linear_probe", "siglip").values()} == {("", None, "")}


def test_values_of_fixed_entries_are_changes_of_their_weights():
    settings, backbone = settings_of("sparta", 1), small_backbone("convnext")
    model = assemble_model(settings, backbone, templated(NAMES, ["a photo of a {}."]))
    before = Before(model)
    with torch.no_grad():
        for value in model.parameters.values():
            value[0] += 1
    rows = {row.tensor: row for row in before.counts()}
    entries = [*fixed_entries(backbone.model)]
    assert {*rows} == {item.name for item in entries}
    for item in entries:
        row = rows[item.name]
        assert (row.parameters, row.changed) == (item.weight.numel(), 1)
        assert row.role in GROUPS["matrices"]
