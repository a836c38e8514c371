"""From a composed configuration of sentences to SentenceSettings, or a message about a value."""

from typing import Any

from omegaconf import DictConfig

from so_clip.checks import check_names, validated
from so_clip.config.parse import from_config, method_choice, plain
from so_clip.config.sentence_checks import (
    check_dataset,
    check_graph,
    check_method,
    check_model,
    check_schedule,
)
from so_clip.config.sentence_settings import (
    DATA_OPTIONS,
    DENSE_OPTIONS,
    GROUPS,
    PARTS,
    TOP_LEVEL,
    SentencePlacement,
    SentenceSettings,
)
from so_clip.config.settings import Settings
from so_clip.data.sentences.choice import SentenceChoice


def settings_of_kind(config: DictConfig, parallel_runs: int = 1) -> Settings | SentenceSettings:
    """Return a composed configuration as the settings of its kind of run; see `from_config`."""
    parsed = sentence_settings if DENSE_OPTIONS[0] in config else from_config
    return parsed(config, parallel_runs)


def sentence_settings(config: DictConfig, parallel_runs: int = 1) -> SentenceSettings:
    """Check a composed configuration and return it as SentenceSettings.

    Args:
        config: as Hydra composes it from conf/sentences.yaml.
        parallel_runs: how many runs share this machine's cores and memory. `auto` takes a share.

    Raises:
        InputError: naming the option, its value, and the values it may take.
    """
    check_schedule(config)
    values = plain(config)
    check_names(values, (*GROUPS, *TOP_LEVEL))
    context = {"parallel_runs": parallel_runs}
    top = {name: values[name] for name in SentencePlacement.model_fields}
    dataset = check_dataset(values["dataset"], values["cards_dir"])
    data = {"dataset": dataset} | {name: values[name] for name in DATA_OPTIONS}
    parts: dict[str, Any] = {
        name: validated(options, values[name], f"{name}.", context=context)
        for name, options in PARTS.items()
    }
    chosen = {
        "data": validated(SentenceChoice, data),
        "method": method_choice(values),
        "placement": validated(SentencePlacement, top, context=context),
        "parallel_runs": parallel_runs,
        **{name: values[name] for name in DENSE_OPTIONS},
        **parts,
    }
    settings = validated(SentenceSettings, chosen)
    check_model(settings.model)
    check_method(settings)
    check_graph(settings.placement)
    return settings
