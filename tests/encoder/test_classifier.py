"""The classifier of sentences: transformers' own logits, and dropout from one generator."""

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.engine.blocks import MEMORY_MODES
from so_clip.data.sentence_batches import padded
from so_clip.encoder.classifier import SentenceClassifier
from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.tokens import tokenize
from so_clip.methods.random_draws import DropoutDraws
from tests.helpers.kept_tensors import kept_bytes
from tests.helpers.tiny_encoders import PAIRS, POSITIONS, tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def tokens_B3L(encoder: SentenceEncoder) -> Tensor:
    return padded(tokenize(encoder, PAIRS, POSITIONS, True).rows, encoder.pad_id, None)


def test_the_logits_are_those_of_transformers(encoder, tokens_B3L):
    firsts, seconds = zip(*PAIRS, strict=True)
    options = {"padding": True, "return_tensors": "pt", "return_token_type_ids": True}
    batch = encoder.tokenizer([*firsts], [*seconds], **options)
    with torch.no_grad():
        expected = encoder.model(**batch).logits
        logits_BK = SentenceClassifier(encoder, 1).eval()(tokens_B3L)
    assert torch.equal(logits_BK, expected)
    assert logits_BK.std(dim=0).min() > 1e-3


def test_dropout_leaves_the_global_random_state_and_evaluation_has_none(encoder, tokens_B3L):
    classifier, before = SentenceClassifier(encoder, 1), torch.get_rng_state()
    classifier.train()
    one, other = classifier(tokens_B3L), classifier(tokens_B3L)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one, other)
    classifier.eval()
    assert torch.equal(classifier(tokens_B3L), classifier(tokens_B3L))


def test_a_checkpoint_of_the_draws_continues_them(encoder, tokens_B3L):
    classifier = SentenceClassifier(encoder, 1).train()
    classifier(tokens_B3L)
    state = classifier.training_state()
    expected = classifier(tokens_B3L)
    again = SentenceClassifier(encoder, 2).train()
    assert not torch.equal(again(tokens_B3L), expected)
    again.load_training_state(state)
    assert torch.equal(again(tokens_B3L), expected)


def test_an_adapter_with_draws_of_its_own_takes_none_of_them(encoder, tokens_B3L):
    expected = SentenceClassifier(encoder, 1).train()(tokens_B3L)
    classifier = SentenceClassifier(encoder, 1).train()
    of_adapter, before = DropoutDraws(3, torch.device("cpu")), torch.get_rng_state()
    of_adapter.attach(classifier)
    state = of_adapter.generator.get_state()
    assert torch.equal(classifier(tokens_B3L), expected)
    assert torch.equal(of_adapter.generator.get_state(), state)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_frozen_until_an_adapter_opens_parameters(encoder):
    encoder.requires_grad_(True)
    classifier = SentenceClassifier(encoder, 1)
    assert not classifier.trains("text")
    name = "bert.encoder.layer.1.output.dense.weight"
    parameter = classifier.named()[name]
    assert isinstance(parameter, nn.Parameter)
    parameter.requires_grad_(True)
    assert classifier.trains("text")
    assert not classifier.trains("vision")
    parameter.requires_grad_(False)
    assert "different lengths" in str(classifier.not_capturable())


def test_logits_are_float32_under_autocast(encoder, tokens_B3L):
    with torch.autocast("cpu", torch.bfloat16):
        logits_BK = SentenceClassifier(encoder, 1).eval()(tokens_B3L)
    assert logits_BK.dtype == torch.float32


def test_lean_modes_keep_less_for_the_backward_pass(tmp_path, tokens_B3L):
    encoder = tiny_encoder(tmp_path / "deep", num_hidden_layers=6)
    classifier = SentenceClassifier(encoder, 1).train()
    encoder.requires_grad_(True)
    known, kept = [*encoder.state_dict(keep_vars=True).values(), tokens_B3L], {}
    for memory in MEMORY_MODES:
        encoder.memory = memory
        kept[memory] = kept_bytes(lambda: classifier(tokens_B3L), known)
    assert kept["balanced"] < 0.95 * kept["fast"]
    assert kept["small"] < 0.4 * kept["fast"]
