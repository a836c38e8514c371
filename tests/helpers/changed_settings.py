"""Settings of a run with some values in place of those that were composed."""

from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings


@cache
def composed(*overrides: str) -> DictConfig:
    return compose(overrides)


def composed_with(changes: dict[str, Any], *overrides: str) -> DictConfig:
    config = composed(*overrides).copy()
    with open_dict(config):
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
    return config


def settings_with(changes: dict[str, Any], *overrides: str) -> Settings:
    return from_config(composed_with(changes, *overrides))
