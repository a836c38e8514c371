"""SO on a tiny BERT, by the settings of a run, against a restatement of the released optimizer."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from so_clip.build import build_optimizer
from so_clip.sentences.build import assemble_model
from tests.helpers.sentence_runs import settings_of
from tests.helpers.tiny_encoders import WORDS, tiny_encoder
from tests.oracles.released_bert_oracle import ReleasedOptimizer, is_sparse

KAPPA, T, LR, STEPS = 0.01, 5, 1e-3, 20
# The weights move by about 0.02.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 5e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoder")


def _words(order: str) -> list[str]:
    return [
        *("experiment=rte_official", "method=so", "model=folder", "model.source=/nowhere"),
        *(f"optimizer.density_ratio={KAPPA}", f"optimizer.T={T}", f"optimizer.lr={LR}"),
        *(f"optimizer.order={order}", "device=cpu", "model.max_length=16"),
    ]


def _batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    ids_BL = torch.randint(4, WORDS, (8, 12), generator=draw)
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[:4, 9:] = 0
    ids_BL = ids_BL.where(mask_BL.bool(), 0)
    tokens_B3L = torch.stack([ids_BL, mask_BL, torch.zeros_like(ids_BL)], dim=1)
    return tokens_B3L, torch.randint(2, (8,), generator=draw)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("order", "dtype"),
    [
        ("update_first", torch.float64),
        ("prune_first", torch.float64),
        ("update_first", torch.float32),
    ],
    ids=str,
)
def test_twenty_steps_are_those_of_the_released_optimizer(
    folder: Path, order: str, dtype: torch.dtype
) -> None:
    """In float64 each side has a model, and ours samples gradients.

    Gradients of key biases are 0 but for rounding, and Adam makes whole steps of rounding in
    float32. So there both sides take the gradients of our model.
    """
    encoder = tiny_encoder(
        folder / "bert",
        hidden_size=32,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder.to(dtype)
    samples = dtype == torch.float64
    words = [*_words(order), f"optimizer.sampled_gradients={samples}"]
    settings = settings_of(words)
    model = assemble_model(settings, encoder)
    twin = copy.deepcopy(model.classifier)
    theirs = twin.named()
    optimizer = build_optimizer(settings.method.optimizer, model)
    before = {name: value.detach().clone() for name, value in model.parameters.items()}

    def draw(name: str, count: int) -> list[int]:
        support = optimizer.support(model.parameters[name])
        assert len(support) == count
        return support.tolist()

    trained = {name: theirs[name].detach() for name in model.parameters}
    released = ReleasedOptimizer(trained, KAPPA, T, LR, order, draw)
    for step in range(STEPS):
        tokens_B3L, labels_B = _batch(step)
        cross_entropy(model.classifier(tokens_B3L), labels_B).backward()
        twin.zero_grad()
        if samples:
            cross_entropy(twin(tokens_B3L), labels_B).backward()
        source = theirs if samples else model.parameters
        released.step({name: source[name].grad for name in trained})
        optimizer.step()
        optimizer.zero_grad()
        for name, value in model.parameters.items():
            error = (value - theirs[name]).abs().max()
            assert error <= TOLERANCES[dtype], (step, name)

    sparse = {name for name, value in model.parameters.items() if is_sparse(name, value.ndim)}
    assert model.parameters.keys() - sparse == model.dense
    assert sparse | model.dense == set(twin.named())
    assert len(sparse) == 3 + 2 * 6
    # Token types have 64 entries, so M is 0 and they stay.
    moved = {
        name for name, value in model.parameters.items() if not torch.equal(value, before[name])
    }
    still = "bert.embeddings.token_type_embeddings.weight"
    assert trained.keys() - moved == {still}
    assert not theirs[still].equal(0 * theirs[still])


def test_the_first_steps_of_dense_weights_are_those_that_were_measured(folder: Path) -> None:
    settings = settings_of(_words("update_first"))
    model = assemble_model(settings, tiny_encoder(folder / "other"))
    optimizer = build_optimizer(settings.method.optimizer, model)
    bias = model.parameters["classifier.bias"]
    adams = torch.nn.Parameter(bias.detach().clone())
    adam = torch.optim.Adam([adams], lr=LR)
    ratios = []
    for step in range(30):
        before, adam_before = bias.detach().clone(), adams.detach().clone()
        tokens_B3L, labels_B = _batch(step)
        cross_entropy(model.classifier(tokens_B3L), labels_B).backward()
        assert bias.grad is not None
        adams.grad = bias.grad.clone()
        optimizer.step()
        adam.step()
        optimizer.zero_grad()
        ratios.append(((bias - before) / (adams - adam_before)).detach()[0].item())
    expected = [10.0, 5.26, 2.44, 1.04]
    assert [ratios[step - 1] for step in (1, 2, 5, 30)] == pytest.approx(expected, abs=0.01)
