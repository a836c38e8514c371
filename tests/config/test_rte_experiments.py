"""The experiments on RTE: the released settings with every confound, the fair ones with none."""

from typing import Any

import pytest
import yaml

from so_clip.config.compose import compose
from so_clip.config.sentence_parse import sentence_settings
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.config.trees import SENTENCES
from so_clip.system.paths import CONF_DIR

# What differs between the experiments, by the names of the recorded options.
CONFOUNDS: dict[str, tuple[Any, Any]] = {  # (released, fair)
    "subset": ("official", "balanced"),
    "model.token_types": (False, True),
    "dense_bias_correction": ("twice", "step"),
    "optimizer.order": ("update_first", "prune_first"),
    "model.padding": ("max_length", "longest"),
}
# What the released scripts of both methods have, and the fair experiment keeps.
SAME: dict[str, Any] = {
    "shots": 32,
    "precision": "fp32",
    "dense_rest": True,
    "model.max_length": 128,
    "schedule.batch_size": 8,
    "schedule.max_steps": 10000,
    "schedule.stop_loss": 1e-3,
    "schedule.stop_on": "batch",
    "schedule.lr_min": 1e-6,
    "optimizer.lr": 2e-5,
}


def settings_of(*words: str) -> SentenceSettings:
    return sentence_settings(compose(words, tree=SENTENCES))


def option(settings: SentenceSettings, name: str) -> Any:
    value: Any = settings.record()
    for key in name.split("."):
        value = value[key]
    return value


def sweep_of(experiment: str) -> dict[str, str]:
    """Return what an experiment sweeps over."""
    text = (CONF_DIR / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    found: dict[str, str] = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    return found


@pytest.mark.parametrize(("experiment", "at"), [("rte_official", 0), ("rte_fair", 1)])
def test_so_has_every_confound_of_the_released_code_or_none(experiment, at):
    settings = settings_of(f"experiment={experiment}", "method=so")
    found = {name: option(settings, name) for name in (*CONFOUNDS, *SAME)}
    assert found == {name: values[at] for name, values in CONFOUNDS.items()} | SAME
    # Not in conf/optimizer/so.yaml: at least 1 without it.
    assert option(settings, "optimizer").get("least_entries", 1) == at
    assert option(settings, "optimizer.density_ratio") == 1e-4
    assert option(settings, "optimizer.T") == 5
    assert option(settings, "adapter.roles") == ["matrices"]


@pytest.mark.parametrize("rank", [2, 16])
def test_lora_has_the_scale_of_the_released_code_or_one(rank):
    words = ("method=lora", f"adapter.rank={rank}")
    official = settings_of("experiment=rte_official", *words)
    assert option(official, "adapter.alpha") == 1
    # Stock Adam, also for the dense weights.
    assert option(official, "optimizer.weight_decay") == 0
    assert option(official, "dense_bias_correction") == "step"
    assert {name: option(official, name) for name in SAME} == SAME
    fair = settings_of("experiment=rte_fair", *words)
    assert option(fair, "adapter.alpha") == rank
    for settings in (official, fair):
        assert not option(settings, "adapter.rank_stabilised")
        assert option(settings, "adapter.roles") == ["attention", "mlp"]


def test_the_released_settings_have_one_seed_and_bert_base():
    official = settings_of("experiment=rte_official")
    assert (official.data.seed, official.model.name) == (42, "bert_base")
    assert settings_of("experiment=rte_official", "model=minilm").model.name == "minilm"
    assert len(sweep_of("rte_fair")["seed"].split(",")) == 5
    assert sweep_of("rte_fair")["method"] == "so,lora"


@pytest.mark.parametrize(
    ("method", "rest"), [("adamw", True), ("bitfit", "head"), ("head", "head")]
)
def test_methods_without_a_density_or_a_rank_take_the_fair_experiment(method, rest):
    settings = settings_of("experiment=rte_fair", f"method={method}")
    assert settings.dense_rest == rest


@pytest.mark.parametrize(
    ("grid", "method", "params"),
    [
        (
            "rte_so_grid",
            "so",
            {"optimizer.density_ratio": "1e-2,1e-3,1e-4,1e-5", "optimizer.T": "5,10,20"},
        ),
        ("rte_lora_grid", "lora", {"adapter.rank": "2,4,8,16"}),
    ],
)
def test_the_grids_have_the_released_values_and_settings(grid, method, params):
    assert sweep_of(grid) == params
    official = settings_of("experiment=rte_official", f"method={method}")
    assert settings_of(f"experiment={grid}").record() == official.record()
