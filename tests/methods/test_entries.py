"""A fixed number of entries: which ones are chosen, in which rows, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.fixed_entries import FixedEntries, fixed_entries
from so_clip.errors import InputError
from so_clip.methods.entries import Entries
from so_clip.methods.entry_choice import Candidates, largest, shares, split_places
from so_clip.methods.smat_masks import SmatMasks
from so_clip.methods.weights import Weights
from so_clip.optim.so import SO
from so_clip.smat.checkpoint_file import load_checkpoint, save_checkpoint
from so_clip.smat.experts import mask
from tests.helpers.small_families import small_backbone
from tests.helpers.smat_tasks import random_checkpoint, small_smat
from tests.helpers.tiny_classifiers import PROMPTS, Given, classifier


def entries_of(adapter: Entries, made: Classifier | None = None) -> dict[str, FixedEntries]:
    made = made or classifier()
    adapter(made)
    return {item.name: item for item in fixed_entries(made.backbone.model)}


def count_of(entries: dict[str, FixedEntries]) -> int:
    return sum(len(item.support_M) for item in entries.values())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.data())
def test_shares_are_proportional_up_to_one_entry(numels, data):
    count = data.draw(st.integers(0, sum(numels)))
    parts = shares(count, numels)
    assert sum(parts) == count
    for part, numel in zip(parts, numels, strict=True):
        assert abs(part - count * numel / sum(numels)) < 1


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1), st.data())
def test_the_largest_scores_are_chosen_and_equal_ones_are_drawn(rows, data):
    scores = [torch.tensor(row, dtype=torch.float64) for row in rows]
    count = data.draw(st.integers(0, sum(map(len, rows))))
    seed = data.draw(st.integers(0, 5))
    places = largest(scores, count, seed)
    chosen = torch.cat([score[place] for score, place in zip(scores, places, strict=True)])
    assert chosen.sort().values.equal(
        torch.cat(scores).sort().values[len(torch.cat(scores)) - count :]
    )
    assert all(place.equal(place.unique()) for place in places)  # ascending, none twice
    again = largest(scores, count, seed)
    assert all(place.equal(other) for place, other in zip(places, again, strict=True))


def test_every_equal_score_can_be_drawn():
    equal = [torch.ones(2), torch.ones(2)]
    drawn = {str([place.tolist() for place in largest(equal, 1, seed)]) for seed in range(40)}
    assert len(drawn) == 4


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_places_are_split_at_the_ends_of_tensors(numels, data):
    place = torch.tensor(
        sorted(data.draw(st.sets(st.integers(0, sum(numels) - 1)))), dtype=torch.int64
    )
    parts = split_places(place, numels)
    whole = torch.arange(sum(numels))
    rows = [row[part] for row, part in zip(whole.split(numels), parts, strict=True)]
    assert torch.cat(rows).equal(place)


def test_places_among_ranges_are_flat_indices():
    tensor = torch.arange(12)
    candidates = Candidates("weight", tensor, ((2, 4), (7, 12)))
    assert candidates.values_of(tensor).tolist() == [2, 3, 7, 8, 9, 10, 11]
    place_M = torch.tensor([1, 2, 6])
    assert candidates.index_of(place_M).equal(candidates.values_of(tensor)[place_M])


@pytest.mark.parametrize("per_matrix", [True, False])
@pytest.mark.parametrize("selection", ["random", "magnitude"])
def test_exactly_that_many_entries_are_trained(selection, per_matrix):
    entries = entries_of(Entries(selection, count=1001, per_matrix=per_matrix, seed=3))
    assert count_of(entries) == 1001
    for item in entries.values():
        assert item.support_M.equal(item.support_M.unique())
        assert 0 <= item.support_M[0] <= item.support_M[-1] < item.weight.numel()


def test_a_density_ratio_trains_the_entries_of_sos_static_support():
    entries = entries_of(Entries(density_ratio=0.03, seed=5))
    made = classifier()
    opened = Weights()(made)
    optimizer = SO([*opened.values()], density_ratio=0.03, T=0, seed=5)
    assert {*opened} == {*entries}
    for name, weight in opened.items():
        assert entries[name].support_M.equal(optimizer.support(weight))


@pytest.mark.parametrize("options", [{"roles": ["attention_out"]}, {"position": "top"}])
def test_a_density_ratio_means_the_same_number_in_every_selection(options: dict[str, Any]):
    whole = count_of(entries_of(Entries(density_ratio=0.03)))
    assert count_of(entries_of(Entries(density_ratio=0.03, **options))) == whole


def test_another_seed_draws_other_entries():
    first, other = (entries_of(Entries(count=500, seed=seed)) for seed in (0, 1))
    assert any(not item.support_M.equal(other[name].support_M) for name, item in first.items())


def test_magnitude_takes_the_largest_weights_of_each_matrix_or_of_all():
    made = classifier()
    weights = {name: value.detach().clone() for name, value in Weights().select(made).items()}
    each = entries_of(Entries("magnitude", count=800))
    for name, item in each.items():
        top = weights[name].abs().flatten().topk(len(item.support_M)).indices
        assert item.support_M.equal(top.sort().values)
    together = entries_of(Entries("magnitude", count=800, per_matrix=False))
    found = torch.cat([weights[name].take(item.support_M) for name, item in together.items()])
    every = torch.cat([value.flatten() for value in weights.values()]).abs()
    assert found.abs().sort().values.equal(every.sort().values[-800:])


def test_value_is_the_last_third_of_a_fused_matrix():
    entries = entries_of(Entries(roles=["value", "attention_out"], count=3000))
    assert {name.rpartition("attn.")[2] for name in entries} == {
        "in_proj.weight",
        "out_proj.weight",
    }
    for name, item in entries.items():
        rows = item.support_M // item.weight.shape[1]
        first = 2 * len(item.weight) // 3 if "in_proj" in name else 0
        assert first <= rows.min() <= rows.max() < len(item.weight)
    query = entries_of(Entries(roles=["query"], count=1000))
    assert all(item.support_M.max() < item.weight.numel() // 3 for item in query.values())


def test_value_is_a_matrix_of_its_own_where_the_model_has_one():
    backbone = small_backbone("siglip_i18n").double()
    made = Classifier(backbone, backbone.tokenize(list(PROMPTS)))
    parts = [part for part in backbone.role_map() if "value" in part.roles]
    entries = entries_of(Entries(roles=["value"], encoder="text", count=50), made)
    separate = {part.name for part in parts if part.tower == "text"}
    assert separate <= {*entries}


def test_fewer_entries_are_all_trained_if_that_is_allowed():
    made = classifier()
    numel = sum(value.numel() for value in Weights(["norm"]).select(made).values())
    adapter = Entries(roles=["norm"], count=numel + 1, allow_fewer=True)
    assert count_of(entries_of(adapter, made)) == numel
    part = Entries(roles=["norm"], count=10, allow_fewer=True)
    assert count_of(entries_of(part)) == 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("smat") / "smat.safetensors"
    return random_checkpoint(file, classifier().backbone, "", granularity="weight")


def with_masks(checkpoint: Path, **options: Any) -> dict[str, FixedEntries]:
    made, adapter = classifier(), SmatMasks(str(checkpoint), **options)
    adapter.check(made, "")
    return entries_of(adapter, made)


@pytest.mark.parametrize("per_matrix", [True, False])
def test_the_masks_of_experts_choose_the_largest_mean_values(checkpoint, per_matrix):
    entries = with_masks(checkpoint, count=700, per_matrix=per_matrix)
    experts = load_checkpoint(checkpoint).smat.experts
    means = {
        name: mask(log_alpha.double()).mean(dim=0)
        for name, log_alpha in zip(experts.names, experts.log_alpha, strict=True)
    }
    assert {*entries} <= {*means}
    assert count_of(entries) == 700
    groups = [[name] for name in entries] if per_matrix else [[*entries]]
    for names in groups:
        chosen = torch.cat([means[name].take(entries[name].support_M) for name in names])
        every = torch.cat([means[name].flatten() for name in (names if per_matrix else means)])
        assert chosen.sort().values.equal(every.sort().values[-len(chosen) :])


def test_equal_masks_are_chosen_by_their_logits(tmp_path):
    backbone = classifier().backbone
    smat = small_smat(backbone, experts=1, granularity="weight", first_spread=10).float()
    options = {"architecture": "small", "weights_sha256": "", "about": {}}
    save_checkpoint(tmp_path / "smat.safetensors", smat, **options)
    entries = with_masks(tmp_path / "smat.safetensors", count=200)
    logits = dict(zip(smat.experts.names, smat.experts.log_alpha, strict=True))
    chosen = torch.cat([logits[name][0].take(item.support_M) for name, item in entries.items()])
    every = torch.cat([value.flatten() for value in logits.values()])
    assert mask(every).sort().values[-2000] == 1, "too few masks are equal"
    assert chosen.sort().values.equal(every.sort().values[-200:])


def test_roles_that_the_experts_do_not_change_are_refused(checkpoint):
    with pytest.raises(
        InputError, match=r"adapter.roles=\['norm'\]: the experts of .* change none"
    ):
        with_masks(checkpoint, roles=["norm"], count=10)


def test_masks_need_a_checkpoint():
    with pytest.raises(InputError, match=r"adapter\.checkpoint=null: the method starts from"):
        SmatMasks(count=1).check(classifier(), "0" * 64)


def test_a_checkpoint_of_another_backbone_is_refused(checkpoint):
    backbone = small_backbone("siglip").double()
    made = Classifier(backbone, backbone.tokenize(list(PROMPTS)))
    with pytest.raises(InputError, match="belongs to another backbone"):
        SmatMasks(str(checkpoint), count=1).check(made, "")


@pytest.mark.parametrize("share", [0, 0.25])
def test_a_share_of_the_change_is_kept(share):
    made, adapter = classifier(), Entries(count=300, interpolation=share)
    opened = adapter(made)
    before = {name: value.detach().clone() for name, value in made.named().items()}
    adapter.start(made, Given([0, 1, 2]))
    with torch.no_grad():
        for value in opened.values():
            value += 1
    adapter.after_step(made, 1)
    adapter.finish(made)
    for item in fixed_entries(made.backbone.model):
        change = item.weight - before[item.name]
        expected = torch.zeros_like(change).put_(
            item.support_M, torch.full((len(item.support_M),), float(share)).double()
        )
        torch.testing.assert_close(change, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": "randon", "count": 1}, "adapter.selection=randon.*'random'"),
        ({}, "adapter.count=None, adapter.density_ratio=None: give one"),
        (
            {"count": 5, "density_ratio": 0.1},
            "adapter.count=5, adapter.density_ratio=0.1: give one",
        ),
        ({"count": 0}, "adapter.count=0: must be"),
        ({"density_ratio": 1.5}, r"adapter.density_ratio=1.5: must be in \(0, 1\]"),
        ({"count": 1, "per_matrix": 1}, "adapter.per_matrix=1: must be true or false"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Entries(**options)


def test_a_number_above_the_selection_is_refused_with_the_way_out():
    with pytest.raises(InputError, match=r"count=99999: .*\['norm'\] has \d+ entries.*allow_fewer"):
        Entries(roles=["norm"], count=99999)(classifier())
