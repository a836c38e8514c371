"""The small commands for those of a page that need weights, published data or many runs."""

import pytest

from scripts.docs_site.stand_ins import small

CASES = {
    "dataset=eurosat backbone=vit_b16 backbone.checkpoint=a.pt shots=4": (
        "dataset=eurosat shots=4 schedule.max_steps=1"
    ),
    "experiment=demo schedule.max_steps=100 seed=2": "experiment=demo seed=2 schedule.max_steps=1",
    "experiment=demo method=zero_shot": "experiment=demo method=zero_shot",
    "-m method=so,clip_lora,adamw dataset=eurosat,dtd seed=1,2,3": (
        "-m method=so,clip_lora,adamw dataset=eurosat seed=1 schedule.max_steps=1"
    ),
    "-m hydra/launcher=joblib method=so,adamw seed=1,2": (
        "-m hydra/launcher=joblib method=so,adamw seed=1 schedule.max_steps=1"
    ),
    "-m method=so adapter.roles=[a,b] seed=1,2,3,4,5,6,7,8,9": (
        "-m method=so adapter.roles=[a,b] seed=1,2,3,4 schedule.max_steps=1"
    ),
    "-m experiment=paper_table method=so,clip_lora": (
        "-m experiment=paper_table method=so,clip_lora dataset=eurosat shots=1 seed=1 "
        "backbone=tiny schedule.max_steps=1"
    ),
    "-m experiment=kappa_t dataset=dtd optimizer.T=5,10": (
        "-m experiment=kappa_t dataset=dtd optimizer.T=5,10 optimizer.density_ratio=5e-5 seed=1 "
        "backbone=tiny shots=1 schedule.max_steps=1"
    ),
    "rte experiment=rte_official model=bert_base": (
        "rte experiment=rte_official model=minilm schedule.max_steps=1"
    ),
    "rte model=folder model.source=mine": (
        "rte model=folder model.source=mine schedule.max_steps=1"
    ),
    "dataset=dtd tasks=600": "dataset=dtd tasks=2 schedule.max_steps=1",
    "forecast dataset=eurosat backbone=vit_l14 shots=4": "forecast dataset=eurosat shots=4",
    "backbones --matching siglip": "backbones --matching ViT-S-32",
    "backbones siglip_b16": "backbones tiny",
    "meta experiment=smat": (
        "meta experiment=smat training.tasks=4 validate_every=4 validation_tasks=1 test_tasks=2 "
        "backbone=tiny sources=[digits] targets=[eurosat] episodes.ways=[2,5]"
    ),
    "meta backbone=tiny training.tasks=40 test_tasks=0": (
        "meta backbone=tiny training.tasks=4 validate_every=4 validation_tasks=1 test_tasks=0"
    ),
    "--help options": "--help options",
    "table results/runs": "table results/runs",
}


@pytest.mark.parametrize(("page", "run"), CASES.items())
def test_a_command_becomes_small(page: str, run: str) -> None:
    assert small(page.split()) == (run.split(), (0,))


def test_the_doctor_may_find_fewer_images() -> None:
    assert small(["doctor", "data_root=data"]) == (["doctor", "data_root=data"], (0, 1))
