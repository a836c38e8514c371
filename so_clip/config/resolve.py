"""The meaning of `auto` on this machine. The only module of this room that imports torch."""

from typing import cast

from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.packed_text import default_text_budget_mib
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.config.settings import Settings
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import pick_precision


def resolved_placement(settings: SentenceSettings) -> SentenceSettings:
    """Return the settings of a run on sentences with `auto` replaced; see `resolved`."""
    placement = settings.placement
    device = pick_device(placement.device)
    update = {"device": str(device), "precision": pick_precision(placement.precision, device)}
    return settings.model_copy(update={"placement": placement.model_copy(update=update)})


def resolved(settings: Settings) -> Settings:
    """Return the settings with `auto` replaced, so that fingerprints differ between machines."""
    placement = settings.placement
    device = pick_device(placement.device)
    text_budget_mib = placement.text_budget_mib
    if device.type == "cuda":  # fingerprints of CPU runs hold None for auto
        text_budget_mib = resolved_text_budget(text_budget_mib, placement.memory, on_cuda=True)
    placement = placement.model_copy(
        update={
            "device": str(device),
            "precision": pick_precision(placement.precision, device),
            "text_budget_mib": text_budget_mib,
        }
    )
    evaluation_precision = pick_precision(settings.evaluation_precision, device)
    evaluation = settings.evaluation.model_copy(update={"precision": evaluation_precision})
    return settings.model_copy(update={"placement": placement, "evaluation": evaluation})


def resolved_text_budget(text_budget_mib: float | None, memory: str, on_cuda: bool) -> float:
    """Return the text budget in MiB; None becomes the default of the memory mode and the device."""
    if text_budget_mib is not None:
        return text_budget_mib
    return default_text_budget_mib(cast(Memory, memory), on_cuda)
