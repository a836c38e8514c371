"""The direct mode: no gradient, no effect of the order, and the heads."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from so_clip.smat.direct import direct_accuracies
from so_clip.smat.placement import mask_rows, overlap_rows
from so_clip.smat.task import class_means, weights_in
from tests.helpers.smat_tasks import FP32, random_task, shake, shared_backbone, small_smat


@pytest.fixture
def no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    monkeypatch.setattr(torch.Tensor, "backward", refuse)


def shaken_smat():
    smat = small_smat(shared_backbone(), granularity="row", test_beta=1.0)
    shake(smat, spread=0.2)
    return smat


@pytest.mark.usefixtures("no_backward")
def test_accuracies_are_those_of_a_plain_calculation():
    backbone, smat = shared_backbone(), shaken_smat()
    task = random_task(backbone, ways=4, shots=2, queries=4)
    found = direct_accuracies(backbone, smat, task, FP32)
    with torch.no_grad():
        frozen_SD = backbone.encode_image(task.images_SCHW)
        prototype_ND = class_means(frozen_SD, task.labels_S, 4)
        logit_M = smat.eval().router(prototype_ND, task.class_ND)
        expert_M = torch.sigmoid(logit_M / float(smat.temperature))
        expert_M = expert_M / expert_M.sum()
        merged = {}
        for name, delta, log_alpha in zip(
            smat.experts.names, smat.experts.delta, smat.experts.log_alpha, strict=True
        ):
            masks = (1.2 * torch.sigmoid(log_alpha / 1.0) - 0.1).clamp(0, 1)
            mixed = sum(expert_M[m] * masks[m] for m in range(2))
            merged[name] = nn.Parameter(backbone.model.get_parameter(name) + mixed * delta)
        wanted = {}
        for prefix, weights in (("frozen_", {}), ("", merged)):
            with weights_in(backbone.model, weights):
                image_QD = backbone.encode_image(task.images_QCHW)
                mean_ND = class_means(backbone.encode_image(task.images_SCHW), task.labels_S, 4)
            text = backbone.logit_scale * image_QD @ task.class_ND.T
            cosine = 10 * image_QD @ F.normalize(mean_ND, dim=-1).T
            for head, logits in (
                ("text", text),
                ("prototype", cosine),
                ("mean", (text + cosine) / 2),
            ):
                right = logits.argmax(dim=1) == task.labels_Q
                wanted[prefix + head] = 100 * float(right.double().mean())
    assert found == wanted


def test_the_order_of_classes_has_no_effect():
    backbone, smat = shared_backbone(), shaken_smat()
    task = random_task(backbone, ways=4)
    order = torch.tensor([2, 0, 3, 1])
    place = torch.argsort(order)
    moved = dataclasses.replace(
        task,
        labels_S=place[task.labels_S],
        labels_Q=place[task.labels_Q],
        class_ND=task.class_ND[order],
    )
    prototypes = [
        class_means(backbone.encode_image(given.images_SCHW), given.labels_S, 4)
        for given in (task, moved)
    ]
    merged = [
        smat.merge(backbone.model, prototype_ND, given.class_ND)
        for prototype_ND, given in zip(prototypes, (task, moved), strict=True)
    ]
    for name, value in merged[0].items():
        assert torch.allclose(value, merged[1][name], atol=1e-14)
    assert direct_accuracies(backbone, smat, task, FP32) == direct_accuracies(
        backbone, smat, moved, FP32
    )


def test_an_encoder_without_text_has_prototypes_only():
    backbone, smat = shared_backbone(), shaken_smat()
    task = dataclasses.replace(random_task(backbone), class_ND=None)
    assert {*direct_accuracies(backbone, smat, task, FP32)} == {"prototype", "frozen_prototype"}


@pytest.mark.parametrize("granularity", ["weight", "row", "matrix"])
def test_rows_say_where_masks_keep_weights_and_how_experts_overlap(granularity):
    smat = small_smat(shared_backbone(), experts=3, granularity=granularity)
    with torch.no_grad():
        for index, log_alpha in enumerate(smat.experts.log_alpha):
            draws = torch.Generator().manual_seed(index)
            log_alpha.copy_(4 * torch.randn(log_alpha.shape, generator=draws))
    kept = [
        [
            (log_alpha[m] > -2 / 3 * torch.log(torch.tensor(11.0))).expand(delta.shape).flatten()
            for log_alpha, delta in zip(smat.experts.log_alpha, smat.experts.delta, strict=True)
        ]
        for m in range(3)
    ]
    rows = mask_rows(smat)
    assert len(rows) == 3 * 8
    for row in rows:
        index = smat.experts.names.index(row.tensor)
        share = kept[row.expert][index].double().mean()
        assert row.kept_share == pytest.approx(float(share))
        assert row.block == index // 4
    for row in overlap_rows(smat):
        first, second = torch.cat(kept[row.expert]), torch.cat(kept[row.other])
        wanted = (first & second).sum() / (first | second).sum()
        assert row.overlap == pytest.approx(float(wanted), rel=1e-5)
