"""Adapters in models of open_clip and in classifiers: applied, exchanged, refused, removed."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from itertools import count

import pytest
import torch

from scripts.docs_site.blocks import blocks
from so_clip import adapters
from so_clip.adapters.change import Change
from so_clip.clip.backbone import sha256_of_weights
from so_clip.errors import InputError
from tests.helpers.battery_parts import images_of, logits_of, trained
from tests.helpers.command import ROOT
from tests.helpers.saved_adapters import bare_clip, plain_model, save_trained
from tests.helpers.small_models import TOKENIZER, small_clip

SLOW = pytest.mark.slow
PIXELS_BCHW = torch.stack(images_of(1)[0])[:, :, :32, :32].float() / 255
TOKENS_KL = TOKENIZER(["a photo of a red square.", "a photo of a blue square."])


def embeddings(model) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.encode_image(PIXELS_BCHW), model.encode_text(TOKENS_KL)])


def saved(method: str, tmp_path, *overrides: str) -> adapters.SavedAdapter:
    return save_trained(trained(method, *overrides), tmp_path / f"{method}.safetensors")


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return {*one} == {*other} and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", ["so", "clip_lora", pytest.param("lora", marks=SLOW)])
def test_a_model_of_open_clip_is_adapted_and_restored_bit_for_bit(method, tmp_path):
    adapter, model = saved(method, tmp_path), bare_clip()
    before, plain = state_of(model), embeddings(model)
    adapters.apply(model, adapter)
    assert adapters.applied_to(model) is adapter
    merged = trained(method).model.classifier.backbone.model
    torch.testing.assert_close(embeddings(model), embeddings(merged), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(embeddings(model), plain, rtol=1e-4, atol=1e-5)
    adapters.remove(model)
    assert same(state_of(model), before)
    assert adapters.applied_to(model) is None
    adapters.remove(model)  # nothing to remove


def documented_apply():
    page = ROOT / "docs" / "reference" / "adapter_file.md"
    (program,) = [block.text for block in blocks(page) if "def apply" in block.text]
    assert len([line for line in program.splitlines() if line.strip()]) <= 28
    names = {}
    exec(program, names)
    return names["apply"]


@pytest.mark.parametrize(
    "method",
    ["so", "layer_norm", "clip_lora", *(pytest.param(m, marks=SLOW) for m in ("full", "adalora"))],
)
def test_the_program_on_the_page_applies_a_file_without_so_clip(method, tmp_path):
    adapter, model, other = saved(method, tmp_path), bare_clip(), bare_clip()
    documented_apply()(model, tmp_path / f"{method}.safetensors")
    adapters.apply(other, adapter)
    if adapter.about.low_rank:  # its sum is in float32
        torch.testing.assert_close(embeddings(model), embeddings(other), rtol=1e-5, atol=1e-6)
    else:
        assert same(state_of(model), state_of(other))


def test_the_hash_is_made_as_the_page_says():
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(bare_clip().state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    assert digest.hexdigest() == plain_model().classifier.backbone.weights_sha256


@pytest.mark.slow
def test_fifty_adapters_take_turns_on_one_base(tmp_path):
    model = bare_clip()
    before, first = state_of(model), saved("so", tmp_path)
    fifty = [adapters.scale(first, 1 + number / 50) for number in range(50)]
    expected = []
    for adapter in fifty:
        alone = bare_clip()
        adapters.apply(alone, adapter)
        expected.append(sha256_of_weights(alone.state_dict()))
    assert len({*expected}) == 50
    for place in torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist():
        adapters.apply(model, fifty[place])
        assert sha256_of_weights(model.state_dict()) == expected[place]
    adapters.remove(model)
    assert same(state_of(model), before)


@SLOW
def test_classifiers_exchange_adapters_of_all_kinds(tmp_path):
    model = plain_model()
    zero_shot_BK = logits_of(model)
    methods = ("so", "linear_probe", "clip_lora", "coop", "layer_norm")
    loaded = {method: saved(method, tmp_path) for method in methods}
    for method in (*methods, *methods):
        adapters.apply(model.classifier, loaded[method])
        assert torch.equal(logits_of(model), trained(method).logits_BK), method
    adapters.remove(model.classifier)
    assert torch.equal(logits_of(model), zero_shot_BK)


def test_another_base_is_refused_with_both_hashes(tmp_path):
    adapter, other = saved("so", tmp_path), small_clip(seed=1)
    before = state_of(other)
    with pytest.raises(InputError, match=r"belongs to small \(\w{12}\), .*model \(\w{12}\)"):
        adapters.apply(other, adapter)
    assert same(state_of(other), before)


def test_a_base_that_was_trained_meanwhile_is_another_base(tmp_path):
    adapter, model = saved("so", tmp_path), bare_clip()
    adapters.apply(model, adapter)
    adapters.remove(model)
    with torch.no_grad():
        model.visual.proj.add_(1)
    with pytest.raises(InputError, match="other weights"):
        adapters.apply(model, adapter)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", ["coop", "linear_probe", "tip_adapter"])
def test_a_bare_model_has_no_place_for_prompts_heads_and_caches(method, tmp_path):
    adapter, model = saved(method, tmp_path), bare_clip()
    with pytest.raises(InputError, match="no place for"):
        adapters.apply(model, adapter)


def test_a_head_does_not_go_into_a_classifier_of_other_classes(tmp_path):
    adapter, model = saved("linear_probe", tmp_path), plain_model()
    classifier = model.classifier
    other = classifier.backbone.tokenize(["a photo of a dog."] * 4)
    with classifier.using_classes(other, ["a photo of a {}."]):
        with pytest.raises(InputError, match="belongs to its 4 classes"):
            adapters.apply(classifier, adapter)
        adapters.apply(classifier, saved("so", tmp_path))  # weights have no classes


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)]
)
def test_a_wrapped_model_is_refused_with_the_name_of_the_model_in_it(wrap, tmp_path):
    with pytest.raises(InputError, match=r"model\.(_orig_mod|module)"):
        adapters.apply(wrap(bare_clip()), saved("so", tmp_path))


def test_an_update_beyond_the_largest_number_is_refused_and_undone(tmp_path):
    adapter, model = saved("clip_lora", tmp_path), bare_clip()
    updates = [each.model_copy(update={"scale": 1e300}) for each in adapter.about.low_rank]
    about = adapter.about.model_copy(update={"low_rank": tuple(updates)})
    with pytest.raises(InputError, match="not finite"):
        adapters.apply(model, replace(adapter, about=about))
    assert same(state_of(model), bare_clip().state_dict())


def test_an_architecture_that_names_a_place_is_not_looked_up(tmp_path):
    adapter = saved("so", tmp_path)
    for name in (f"local-dir:{tmp_path}", "../tiny"):
        base = adapter.about.base.model_copy(update={"architecture": name})
        other = replace(adapter, about=adapter.about.model_copy(update={"base": base}))
        with pytest.raises(InputError, match=r"no such model|does not say where this folder is"):
            adapters.restore(other, device="cpu")


def test_other_objects_are_refused():
    with pytest.raises(InputError, match="Linear: an adapter goes into"):
        adapters.remove(torch.nn.Linear(2, 2))
    for call in (
        lambda: adapters.apply(bare_clip(), "mine.safetensors"),
        lambda: adapters.merge(["mine.safetensors"]),
        lambda: adapters.scale(None, 1),
        lambda: adapters.restore(None),
        lambda: adapters.save(None, "mine.safetensors"),
    ):
        with pytest.raises(InputError, match=r"adapter=(mine|None).*: is no adapter"):
            call()


@pytest.mark.parametrize("move", ["half", "clone", "channels_last"])
def test_an_adapter_is_removed_from_a_model_that_has_moved(move, tmp_path):
    model, adapter = bare_clip(), saved("so", tmp_path)
    expected = bare_clip().half() if move == "half" else bare_clip()
    if move == "channels_last":  # before, so that it is written to and read from this layout
        model = model.to(memory_format=torch.channels_last)
    adapters.apply(model, adapter)
    if move == "half":
        model.half()
    elif move == "clone":  # what a move to another device does with the parameters
        model._apply(lambda value: value.clone())
    adapters.remove(model)
    assert same(state_of(model), expected.state_dict())


def test_a_refused_adapter_leaves_the_one_in_the_model(tmp_path):
    classifier = plain_model().classifier
    first, second = saved("clip_lora", tmp_path), saved("so", tmp_path)
    adapters.apply(classifier, first)
    before = state_of(classifier)
    base = second.about.base.model_copy(update={"weights_sha256": "0" * 64})
    other = replace(second, about=second.about.model_copy(update={"base": base}))
    with pytest.raises(InputError, match="other weights"):
        adapters.apply(classifier, other)
    assert adapters.applied_to(classifier) is first
    assert same(state_of(classifier), before)
    adapters.remove(classifier)
    assert same(state_of(classifier), plain_model().classifier.state_dict())


def test_weights_trained_after_an_adapter_are_no_base_when_it_is_removed(tmp_path):
    model, adapter = bare_clip(), saved("so", tmp_path)
    adapters.apply(model, adapter)
    with torch.no_grad():
        model.visual.proj.add_(1)
    adapters.remove(model)
    with pytest.raises(InputError, match="other weights"):
        adapters.apply(model, adapter)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_interrupt_halfway_leaves_the_base(at, tmp_path, monkeypatch):
    model, adapter, calls = bare_clip(), saved("so", tmp_path), count(1)
    assert len(adapter.changes) > at
    write = Change.write_into

    def stopped(change, tensor):
        is_finite = write(change, tensor)
        if next(calls) == at:
            raise KeyboardInterrupt
        return is_finite

    monkeypatch.setattr(Change, "write_into", stopped)
    with pytest.raises(KeyboardInterrupt):
        adapters.apply(model, adapter)
    assert same(state_of(model), bare_clip().state_dict())


def test_threads_take_turns_on_one_model(tmp_path):
    model = bare_clip()
    pair = [saved("so", tmp_path), saved("clip_lora", tmp_path)]
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(lambda adapter: adapters.apply(model, adapter), pair * 6)]
    adapters.remove(model)
    assert same(state_of(model), bare_clip().state_dict())


def test_a_copy_of_an_adapted_model_loses_its_own_adapter(tmp_path):
    model, adapter = bare_clip(), saved("so", tmp_path)
    adapters.apply(model, adapter)
    copy = deepcopy(model)
    adapters.remove(copy)
    assert same(state_of(copy), bare_clip().state_dict())
    assert not same(state_of(model), bare_clip().state_dict())
