"""peft's adapters in CLIP: where they are put, what they compute and keep, and how they draw.

Held against models with the adapter inside their weights and against counts from shapes alone.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adalora import AdaLoRA
from so_clip.adapt.clip_lora import ClipLoRA
from so_clip.adapt.peft_kinds import KINDS
from so_clip.adapt.peft_methods import Peft, adapted_layers
from so_clip.clip.attention import explicit_attention
from so_clip.clip.blocks import MEMORY_MODES, Memory
from so_clip.clip.classifier import Classifier
from so_clip.clip.packed_text import PackedPrompts
from so_clip.config import compose
from so_clip.errors import InputError
from so_clip.forecast.__main__ import main as forecast_main
from so_clip.settings import from_config
from tests.clip.small import small_backbone, weightless_backbone
from tests.command import call
from tests.oracles.peft_oracle import MATRICES, merged

PATTERNS = [
    *("attn.in_proj.weight", "attn.out_proj.weight"),
    *("mlp.c_fc.weight", "mlp.c_proj.weight"),
]
IN_PROJ = ["attn.in_proj.weight"]
PROMPTS = ["a photo of a dog.", "a photo of a very small cat.", "a drawing", "a photo of a cat."]
NO_CHUNKS = 1e9
IMAGES_BCHW = torch.randint(
    256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS_B = torch.tensor([1, 3])


def small(budget_mib: float = NO_CHUNKS, dtype: torch.dtype = torch.float32) -> Classifier:
    backbone = small_backbone().to(dtype)
    explicit_attention(backbone.model)
    return Classifier(backbone, backbone.tokenize(PROMPTS), budget_mib)


def moved(parameters: dict[str, nn.Parameter], by: float = 0.1) -> dict[str, nn.Parameter]:
    """Move what is trained away from its first values."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(torch.randn(value.shape, generator=draw, dtype=value.dtype), alpha=by)
    return parameters


def loss_of(classifier: Classifier) -> Tensor:
    return F.cross_entropy(classifier(IMAGES_BCHW) / 10, LABELS_B)


def options_of(method: str, *overrides: str) -> dict[str, Any]:
    settings = from_config(compose([f"method={method}", *overrides]))
    assert settings.adapter is not None
    return {key: value for key, value in settings.adapter.items() if not key.startswith("_")}


def vit_b16() -> Classifier:
    """Return a classifier that has every parameter's name and shape, and no memory."""
    backbone = weightless_backbone()
    return Classifier(backbone, backbone.tokenize(["a photo of a dog."]))


def matrices() -> list[tuple[int, int]]:
    """Outputs and inputs of SO's 96 matrices of ViT-B/16: towers 768 and 512 wide, 12 deep."""
    return [
        shape
        for width in (768, 512)
        for shape in (
            *((3 * width, width), (width, width)),
            *((4 * width, width), (width, 4 * width)),
        )
        for _ in range(12)
    ]


def lokr_count(out: int, into: int, rank: int = 8) -> int:
    # Sides as near to the roots as whole numbers go.
    sides = {512: (16, 32), 768: (24, 32), 1536: (32, 48), 2048: (32, 64), 2304: (48, 48)}
    sides[3072] = (48, 64)
    (out_1, out_2), (into_1, into_2) = sides[out], sides[into]
    assert rank < max(out_2, into_2) / 2
    return out_1 * into_1 + rank * (out_2 + into_2)


COUNTS = {
    "lora": sum(8 * (out + into) for out, into in matrices()),
    "dora": sum(8 * (out + into) + out for out, into in matrices()),
    "vera": sum(out + 256 for out, _ in matrices()),
    # keys, values and hidden values of each block
    "ia3": sum(12 * (width + width + 4 * width) for width in (768, 512)),
    "shira": sum(8 * (out + into) for out, into in matrices()),
    "loha": sum(2 * 4 * (out + into) for out, into in matrices()),
    "lokr": sum(lokr_count(*shape) for shape in matrices()),
    # the triangle of each block of 32 inputs
    "oft": sum(into // 32 * (32 * 31 // 2) for _, into in matrices()),
    # of each of the smaller side / 32 pairs: 32 scales, and one for each of the smaller side
    "randlora": sum(min(s) // 32 * (32 + min(s)) for s in matrices()),
    "fourierft": 96 * 1000,
    "miss": sum(8 * out for out, _ in matrices()),
    "delora": sum(8 * (out + into) + 1 for out, into in matrices()),
}


def test_the_matrices_are_sos_96() -> None:
    assert len(matrices()) == 96
    assert sum(out * into for out, into in matrices()) == 122_683_392
    assert COUNTS["lora"] == 8 * 16 * 12 * (768 + 512) == 1_966_080


@pytest.mark.parametrize("method", COUNTS)
def test_vit_b16_gets_as_many_parameters_as_the_shapes_say(method: str) -> None:
    classifier = vit_b16()
    parameters = Peft(**options_of(method))(classifier)
    assert sum(value.numel() for value in parameters.values()) == COUNTS[method]
    assert len(adapted_layers(classifier)) == (72 if method == "ia3" else 96)
    named = classifier.named()
    assert {name for name, value in named.items() if value.requires_grad} == set(parameters)
    assert {value.device.type for value in parameters.values()} == {"meta"}


OPTIONS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"rank": 4, "alpha": 6}, 6 / 4),
    "dora": ({"rank": 4, "alpha": 6}, 6 / 4),
    "adalora": ({"rank": 4, "target_rank": 2, "alpha": 6}, 6 / 4),
    "vera": ({"rank": 5}, 1.0),
    "ia3": ({"inputs": ["mlp.c_proj.weight"]}, 1.0),
    "loha": ({"rank": 3, "alpha": 2}, 2 / 3),
    "miss": ({"rank": 6}, 1.0),
    "delora": ({"rank": 3, "boundary": 2}, 1.0),
}


@pytest.mark.parametrize("split_qkv", [False, True])
@pytest.mark.parametrize("kind", MATRICES)
def test_logits_are_those_of_a_model_with_the_adapter_inside_its_weights(
    kind: str, split_qkv: bool
) -> None:
    classifier, own = small(dtype=torch.float64), small_backbone().to(torch.float64)
    options, scale = OPTIONS[kind]
    with torch.no_grad():
        before = classifier(IMAGES_BCHW)
    moved(build(kind, split_qkv=split_qkv, **options)(classifier))
    classifier.forget_classes()
    own.model = merged(own.model, classifier.backbone.model, MATRICES[kind], scale)
    expected = Classifier(own, own.tokenize(PROMPTS))
    with torch.no_grad():
        found = classifier(IMAGES_BCHW)
        # Embeddings are rounded to float32 on their way into logits.
        torch.testing.assert_close(found, expected(IMAGES_BCHW), rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.1


def test_it_can_be_what_clip_lora_is() -> None:
    options = {"rank": 2, "alpha": 1, "rank_stabilised": True, "split_qkv": True}
    parameters = Peft("lora", IN_PROJ, **options)(vit_b16())
    assert sum(value.numel() for value in parameters.values()) == 184_320
    theirs, ours = small(), small()
    factors = moved(ClipLoRA(rank=2, alpha=1, dropout=0)(theirs))
    with torch.no_grad():
        for name, value in Peft("lora", IN_PROJ, **options)(ours).items():
            name = name.replace("lora_A.default.weight", "down")
            name = name.replace("lora_B.default.weight", "up")
            for part in ("q", "k", "v"):
                name = name.replace(f"{part}_proj.", f"in_proj.updates.{part}.")
            value.copy_(factors.pop(name))
        assert not factors
        expected = theirs(IMAGES_BCHW)
        torch.testing.assert_close(ours(IMAGES_BCHW), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("encoder", ["vision", "text"])
def test_one_encoder_is_left_alone(encoder: str) -> None:
    # The text tower's names are what the vision tower's end in.
    classifier = small()
    parameters = Peft("lora", PATTERNS, encoder=encoder, rank=2)(classifier)
    assert {name.startswith("visual.") for name in parameters} == {encoder == "vision"}
    assert classifier.trains(encoder)
    assert not classifier.trains("text" if encoder == "vision" else "vision")
    assert len(parameters) == 2 * 2 * 4


@pytest.mark.parametrize("split_qkv", [False, True])
def test_the_models_own_names_and_values_stay(split_qkv: bool) -> None:
    classifier = small()
    own = {name: value.clone() for name, value in classifier.backbone.model.state_dict().items()}
    parameters = Peft("lora", PATTERNS, rank=2, split_qkv=split_qkv)(classifier)
    loss_of(classifier).backward()
    graded = {n for n, p in classifier.backbone.model.named_parameters() if p.grad is not None}
    assert graded == set(parameters)
    saved = classifier.backbone.model.state_dict()
    assert saved.keys() - own.keys() == set(parameters)
    for name, value in own.items():
        assert torch.equal(saved[name], value), name
    other = small_backbone(seed=1).model
    loaded = classifier.backbone.model.load_state_dict(other.state_dict(), strict=False)
    assert set(loaded.missing_keys) == set(parameters)
    assert not loaded.unexpected_keys
    saved = classifier.backbone.model.state_dict()
    for name, value in other.state_dict().items():
        assert torch.equal(saved[name], value), name


@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "adalora", "miss", "delora", "randlora"])
def test_dropout_is_active_in_training_alone(kind: str) -> None:
    classifier = small()
    options = OPTIONS.get(kind, ({"rank": 4}, 1.0))[0]
    moved(build(kind, dropout=0.25, **options)(classifier))
    before = torch.random.get_rng_state()
    with torch.no_grad():
        quiet = classifier(IMAGES_BCHW)
        assert torch.equal(classifier(IMAGES_BCHW), quiet)
    first, second = classifier(IMAGES_BCHW), classifier(IMAGES_BCHW)
    assert (first - second).abs().max() > 1e-3
    assert torch.equal(torch.random.get_rng_state(), before)
    classifier.eval()
    torch.testing.assert_close(classifier(IMAGES_BCHW), quiet, rtol=0, atol=2e-3)


def test_without_dropout_nothing_is_drawn_and_prompts_share_their_rows() -> None:
    classifier = small()
    shared = rows(classifier)
    moved(Peft("lora", PATTERNS)(classifier))
    assert rows(classifier) == shared
    assert not classifier._forward_pre_hooks
    assert torch.equal(classifier(IMAGES_BCHW), classifier(IMAGES_BCHW))
    Peft("vera", IN_PROJ, encoder="text", dropout=0.1)(fresh := small())
    assert rows(fresh) > shared
    Peft("vera", IN_PROJ, encoder="vision", dropout=0.1)(fresh := small())
    assert rows(fresh) == shared


def build(kind: str, **options: Any) -> Peft:
    """Return a kind on SO's matrices."""
    if kind == "adalora":
        return AdaLoRA(PATTERNS, 9, **options)
    return Peft(kind, PATTERNS, **options)


def rows(classifier: Classifier) -> int:
    chunks = [chunk for chunk in classifier.prompts.chunks if isinstance(chunk, PackedPrompts)]
    return sum(len(chunk.tokens_N) for chunk in chunks)


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("budget_mib", [NO_CHUNKS, 0.1])
def test_what_is_recomputed_drops_the_same_values(budget_mib: float, memory: Memory) -> None:
    """With the random numbers held fixed, the gradient is that of finite differences."""
    classifier = small(budget_mib, torch.float64)
    classifier.backbone.memory = memory
    factors = [*moved(Peft("lora", PATTERNS, rank=2, dropout=0.25)(classifier)).values()]
    before = [factor.detach().clone() for factor in factors]
    draw = torch.Generator().manual_seed(8)
    along = [torch.randn(b.shape, generator=draw, dtype=torch.float64) for b in before]
    (hook,) = classifier._forward_pre_hooks.values()

    def loss(offset: float) -> Tensor:
        for factor, origin, direction in zip(factors, before, along, strict=True):
            factor.data = origin + offset * direction
        hook.__self__.generator.manual_seed(5)
        return loss_of(classifier)

    numeric = (loss(1e-5).item() - loss(-1e-5).item()) / 2e-5
    loss(0).backward()
    pairs = zip(factors, along, strict=True)
    found = sum((f.grad * a).sum().item() for f, a in pairs if f.grad is not None)
    assert found == pytest.approx(numeric, rel=1e-3)


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("kind", [*OPTIONS, "shira", "lokr", "oft", "randlora", "fourierft"])
def test_gradients_are_the_same_in_every_memory_mode(kind: str, memory: Memory) -> None:
    def gradients(mode: Memory) -> list[Tensor]:
        classifier = small(dtype=torch.float64)
        classifier.backbone.memory = mode
        options = {"frequencies": 50} if kind == "fourierft" else {"rank": 2}
        options = {} if kind == "oft" else options
        options = OPTIONS.get(kind, (options, 1.0))[0]
        parameters = moved(build(kind, **options)(classifier), by=0.01)
        return [*torch.autograd.grad(loss_of(classifier), [*parameters.values()])]

    for found, expected in zip(gradients(memory), gradients("fast"), strict=True):
        # Logits are in float32.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_and_the_global_random_state_is_left_alone() -> None:
    def factors(seed: int) -> list[Tensor]:
        return [*Peft("lora", PATTERNS, rank=2, seed=seed)(small()).values()]

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = factors(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, factors(0)))
    assert not all(map(torch.equal, first, factors(1)))


def test_shiras_entries_differ_from_matrix_to_matrix_and_none_is_there_twice() -> None:
    classifier = small()
    Peft("shira", PATTERNS, rank=2)(classifier)
    places: dict[tuple[int, int], list[set[tuple[int, int]]]] = {}
    for layer in adapted_layers(classifier):
        out, into = layer.out_features, layer.in_features
        entries = {(int(row), int(column)) for row, column in layer.shira_indices["default"].T}
        assert len(entries) == 2 * (out + into)
        places.setdefault((out, into), []).append(entries)
    assert all(first != second for first, second, *_ in places.values())


def test_shiras_matrix_is_the_frozen_one_plus_its_entries() -> None:
    classifier = small(dtype=torch.float64)
    moved(Peft("shira", PATTERNS, rank=2)(classifier))
    layer = adapted_layers(classifier)[0]
    weight_OI = layer.base_layer.weight.clone()
    values = layer.shira_weight["default"]
    for (row, column), value in zip(layer.shira_indices["default"].T, values, strict=True):
        weight_OI[row, column] += value
    x_BI = torch.randn(3, layer.in_features, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BI), F.linear(x_BI, weight_OI, layer.base_layer.bias))


def test_low_rank_updates_keep_no_more_than_dense_training_does() -> None:
    def activations(method: str) -> float:
        done = call(f"method={method}", "precision=fp32", "--json", main=forecast_main)
        assert done.code == 0, done.err
        return float(json.loads(done.out)["activations_mib"])

    assert activations("lora") < 1.1 * activations("adamw")


@pytest.mark.parametrize("method", [*COUNTS, "adalora", "relora"])
def test_it_can_be_forecast(method: str) -> None:
    done = call(f"method={method}", main=forecast_main)
    assert done.code == 0, done.err


def test_doras_values_and_gradients_are_those_of_pefts_own_way() -> None:
    classifier = small(dtype=torch.float64)
    moved(Peft("dora", PATTERNS, rank=2)(classifier))
    layer = adapted_layers(classifier)[0]
    vector = layer.lora_magnitude_vector["default"]
    x_BI = torch.randn(3, layer.in_features, dtype=torch.float64, requires_grad=True)
    weights_BO = torch.randn(3, layer.out_features, dtype=torch.float64)
    wanted = [x_BI, *(p for p in layer.parameters() if p.requires_grad)]
    assert len(wanted) == 4

    def outcome() -> tuple[Tensor, ...]:
        y_BO = layer(x_BI)
        return y_BO, *torch.autograd.grad((y_BO * weights_BO).sum(), wanted)

    ours = outcome()
    del vector.forward
    for found, expected in zip(ours, outcome(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_zero_shot_and_learns_in_bf16(kind: str, memory: Memory) -> None:
    classifier = small()
    classifier.backbone.memory = memory
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            before = classifier(IMAGES_BCHW)
        options = {"oft": {}, "fourierft": {"frequencies": 50}}.get(kind, {"rank": 2})
        options = OPTIONS.get(kind, (options, 1.0))[0]
        parameters = build(kind, **options)(classifier).values()
        classifier.forget_classes()
        with torch.no_grad():
            assert torch.equal(classifier(IMAGES_BCHW), before)
    assert {value.dtype for value in parameters} == {torch.float32}
    lr = 1e-1 if kind in ("vera", "fourierft") else 1e-2
    optimizer, losses = torch.optim.AdamW(parameters, lr=lr), []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(loss_of(classifier))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("loraa", {}, "adapter.kind=loraa: must be one of lora"),
        ("lora", {"rank": 0}, "adapter.rank=0: must be 1 or more"),
        ("lora", {"rank": 1.5}, "adapter.rank=1.5: must be a whole number"),
        ("lora", {"alpha": 0}, "adapter.alpha=0: must be above 0"),
        ("lora", {"alpha": math.nan}, "adapter.alpha=nan: must be a finite number"),
        ("lora", {"dropout": 1}, "adapter.dropout=1: must be in [0, 1)"),
        ("lora", {"rank_stabilised": 1}, "adapter.rank_stabilised=1: must be true or false"),
        ("lora", {"split_qkv": "no"}, "adapter.split_qkv=no: must be true or false"),
        ("lora", {"rang": 1}, "adapter.rang=1: kind=lora has no such option"),
        ("loha", {"dropout": 0.1}, "adapter.dropout=0.1: kind=loha has no such option"),
        ("lora", {"seed": -1}, "adapter.seed=-1: must be 0 or more"),
        ("lora", {"encoder": "txt"}, "adapter.encoder=txt: must be vision, text, both"),
        ("lora", {"patterns": []}, "adapter.patterns=[]: must be a list"),
        ("lora", {"patterns": ["ln_1.weight"]}, "is not the weight of a linear layer"),
        ("lora", {"patterns": ["c_fc.bias"]}, "is not the weight of a linear layer"),
        ("lora", {"patterns": ["nothing.weight"]}, "'nothing.weight' matches no parameter"),
        ("lora", {"patterns": ["attn.q_proj.weight"]}, "'attn.q_proj.weight' matches no parameter"),
        ("miss", {"rank": 1000}, "adapter.kind=miss: `r` (1000) must be less"),
        ("shira", {"rank": 1000}, "adapter.kind=shira: The set rank 1000 results in more"),
        ("fourierft", {"frequencies": 10**6}, "adapter.kind=fourierft: `n_frequency` should be"),
    ],
)
def test_bad_arguments_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Peft(kind, **{"patterns": PATTERNS, **options})(small())
    assert message in str(caught.value)


def test_a_second_adapter_on_the_same_matrices_is_refused() -> None:
    classifier = small()
    Peft("lora", PATTERNS)(classifier)
    with pytest.raises(InputError, match="matches no parameter"):
        Peft("lora", PATTERNS)(classifier)


def test_without_peft_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r"kind=lora needs peft .*pip install 'so-clip\[methods\]'"
    ):
        Peft("lora", PATTERNS)(small())


def test_a_peft_without_the_kind_is_called_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    monkeypatch.delattr(peft, "MissConfig")
    with pytest.raises(InputError, match=r"kind=miss: peft .* is too old"):
        Peft("miss", PATTERNS)(small())


def test_a_resnets_text_tower_can_be_adapted() -> None:
    backbone = small_backbone(layers=(1, 1, 1, 1), width=8, head_width=16)
    explicit_attention(backbone.model)
    classifier = Classifier(backbone, backbone.tokenize(PROMPTS))
    assert Peft("lora", PATTERNS, encoder="text", split_qkv=True)(classifier)
    with pytest.raises(InputError, match=r"vision|matches no parameter"):
        Peft("lora", PATTERNS, split_qkv=True)(classifier)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "vera", "shira", "oft"])
def test_memory_is_forecast_as_a_real_run_has_it(method: str, tmp_path: Path) -> None:
    arguments = [f"method={method}", "schedule.max_steps=4", "evaluation.batch_size=64"]
    real = call(f"results_dir={tmp_path}", "evaluation.workers=0", "device=cpu", *arguments)
    assert real.code == 0, real.err
    (metrics,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")]
    done = call(*arguments, "device=cpu", "--json", main=forecast_main)
    assert done.code == 0, done.err
    expected = json.loads(done.out)
    assert expected["peak_memory_mib"] == pytest.approx(metrics["peak_memory_mib"], rel=0.1)
    assert expected["weights_mib"] == pytest.approx(metrics["weights_mib"], rel=0.01)
    assert expected["trainable_parameters"] == metrics["trainable_parameters"]


def test_a_whole_run_and_one_with_so(tmp_path: Path) -> None:
    for overrides in (["method=dora"], ["method=lora", "optimizer=so", "adapter.position=top"]):
        arguments = [*overrides, "shots=1", "schedule.max_steps=2", "evaluation.workers=0"]
        done = call(*arguments, f"results_dir={tmp_path}")
        assert done.code == 0, done.err
