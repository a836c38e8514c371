"""Each family of encoders: its roles, its memory modes, its padding, and its forecast."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.clip.roles import GROUPS
from so_clip.data.sentence_batches import padded
from so_clip.encoder.classifier import SentenceClassifier
from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.load import load_encoder
from so_clip.encoder.tokens import tokenize
from tests.helpers.tiny_encoders import FAMILIES, PAIRS, POSITIONS, encoder_folder, tiny_encoder

# The tensors of each family in [matrices], and in [attention, mlp], for two blocks.
COUNTS = {
    "bert": (15, 12),
    "roberta": (15, 12),
    "xlm-roberta": (15, 12),
    "mpnet": (15, 12),
    "distilbert": (14, 12),
    "electra": (16, 12),
    "albert": (10, 6),
    "deberta-v2": (15, 12),
    "modernbert": (9, 8),
}


FAST = {"bert", "roberta"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FAMILIES
    ],
)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / request.param, request.param)


def family_of(encoder: SentenceEncoder) -> str:
    return str(encoder.model.config.model_type)


def batch(encoder: SentenceEncoder, length: int | None = None) -> Tensor:
    rows, _ = tokenize(encoder, PAIRS, POSITIONS, token_types=True)
    return padded(rows, encoder.pad_id, length)


def gradients(encoder: SentenceEncoder, tokens_B3L: Tensor, training: bool) -> list[Tensor]:
    """Return logits_BK and the gradients of all parameters after one pass."""
    classifier = SentenceClassifier(encoder, seed=5).train(training)
    encoder.requires_grad_(True)
    logits_BK = classifier(tokens_B3L)
    labels_B = torch.arange(len(tokens_B3L)) % 2
    F.cross_entropy(logits_BK, labels_B).backward()
    found = [logits_BK.detach(), *(value.grad for value in encoder.parameters())]
    encoder.zero_grad()
    encoder.eval().requires_grad_(False)
    return [value for value in found if value is not None]


def test_matrices_are_all_tensors_of_two_dimensions_but_those_of_the_task(encoder):
    parts = encoder.role_map()
    matrices, inner = ({*GROUPS[group]} for group in ("matrices", "attention"))
    inner |= {*GROUPS["mlp"]}
    chosen = {part.name for part in parts if part.roles & matrices}
    for_task = {part.name for part in parts if part.roles & {"pooling", "head"}}
    assert chosen == {part.name for part in parts if len(part.shape) > 1} - for_task
    count = len(chosen), sum(bool(part.roles & inner) for part in parts)
    assert count == COUNTS[family_of(encoder)]
    assert not any("other" in part.roles for part in parts)
    assert any("head" in part.roles for part in parts)


def test_all_parameters_reach_the_logits_and_each_in_a_block_has_its_number(encoder):
    parts = encoder.role_map()
    assert [part.name for part in parts] == [name for name, _ in encoder.model.named_parameters()]
    for number, (name, _) in enumerate(encoder.named_blocks("text")):
        inside = {part.name for part in parts if part.block == number}
        assert inside == {part.name for part in parts if part.name.startswith(f"{name}.")}
        assert inside
    assert encoder.block_count("text") == (1 if family_of(encoder) == "albert" else 2)


@pytest.mark.parametrize("memory", ["small", "balanced"])
def test_a_memory_mode_changes_no_bit_of_a_step_with_dropout(encoder, memory):
    encoder.memory = "fast"
    plain = gradients(encoder, batch(encoder), training=True)
    encoder.memory = memory
    lean = gradients(encoder, batch(encoder), training=True)
    encoder.memory = "fast"
    assert len(plain) > 10
    assert all(map(torch.equal, plain, lean))
    without = gradients(encoder, batch(encoder), training=False)
    assert not torch.equal(plain[0], without[0])


def test_padding_changes_neither_logits_nor_gradients(encoder):
    # ModernBERT computes attention's softmax in float32.
    exact = family_of(encoder) != "modernbert"
    dtype, atol = (torch.float64, 1e-10) if exact else (torch.float32, 1e-5)
    encoder.to(dtype)
    longest = gradients(encoder, batch(encoder), training=False)
    full = gradients(encoder, batch(encoder, POSITIONS), training=False)
    encoder.float()
    assert batch(encoder).shape[-1] < POSITIONS
    assert longest[0].dtype == dtype
    for one, other in zip(longest, full, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_leaving_padding_out_changes_neither_logits_nor_gradients(encoder):
    packs = family_of(encoder) in ("bert", "roberta", "xlm-roberta", "electra")
    assert encoder.packs == packs
    if not packs:
        return
    encoder.double()
    for tokens_B3L in (batch(encoder), batch(encoder)[:1, :, :5], batch(encoder, POSITIONS)):
        packed = gradients(encoder, tokens_B3L, training=False)
        encoder.packs = False
        whole = gradients(encoder, tokens_B3L, training=False)
        encoder.packs = True
        for one, other in zip(packed, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    encoder.float()


def test_an_encoder_without_weights_has_the_same_parts_and_steps(encoder):
    source = encoder.description.split(" (")[0]
    with FakeTensorMode():
        fake = load_encoder(source, classes=2, seed=1, max_length=POSITIONS, weightless=True)
        assert fake.role_map() == encoder.role_map()
        found = gradients(fake, torch.ones(8, 3, 6, dtype=torch.int64), training=True)
    real = gradients(encoder, batch(encoder), training=True)
    assert [value.shape for value in found] == [value.shape for value in real]


def test_positions_limit_the_length(encoder):
    assert encoder.most_tokens == POSITIONS
    tokens_B3L = batch(encoder, encoder.most_tokens)
    assert encoder.logits(tokens_B3L).isfinite().all()


def test_a_classifier_of_the_right_size_is_kept_and_another_is_new(tmp_path: Path):
    encoder_folder(tmp_path / "own", head=3)
    source = f"folder:{tmp_path / 'own'}"
    own = load_encoder(source, classes=3, seed=1, max_length=POSITIONS)
    assert own.description == f"{source} (bert, its own classifier)"
    assert own.new == frozenset()
    other = load_encoder(source, classes=2, seed=1, max_length=POSITIONS)
    assert other.description == f"{source} (bert, new classifier)"
    assert other.new == {"classifier.weight", "classifier.bias"}
    assert other.model.classifier.weight.shape == (2, 16)
