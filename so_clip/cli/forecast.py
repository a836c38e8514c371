"""`python -m so_clip forecast`: memory, FLOPs and disk space of a run, without running it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from so_clip.cli.arguments import AsJson, Words
from so_clip.cli.run_checks import check_words
from so_clip.errors import InputError, show, show_progress

if TYPE_CHECKING:
    from so_clip.config.settings import Settings

HELP = """Forecast a run: peak memory by category, floating-point operations, and bytes on disk.

No weights, images or GPU are needed, and nothing is written. Two training steps and one batch of
evaluation run on tensors that have shapes but no values. Class names and sizes come from the
dataset's card.

\b
  python -m so_clip forecast dataset=imagenet backbone=vit_l14 shots=16
  python -m so_clip forecast rte model=bert_base method=so

For a run on sentences the first word is the dataset, as for the run. All examples count as long as
model.max_length tokens. transformers must be installed.

Options are those of runs. Give device=cuda to forecast a GPU run on a machine without a GPU;
precision=auto is then bf16.

Memory is the memory of tensors, as metrics.json of a CPU run has it. On CUDA the allocator adds
rounding and workspaces, other kernels may be chosen, and the few-shot images are on the GPU too.
FLOPs count matrix products, convolutions and attention; a multiplication and an addition are two.
Training may stop before the last step (schedule.stop_loss)."""
MIB = 2**20


def main(
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Print the forecast; see HELP."""
    from so_clip.config.compose import compose
    from so_clip.config.kinds import kind_of
    from so_clip.config.parse import from_config
    from so_clip.config.trees import SENTENCES

    tree, words = kind_of(words or [])
    check_words(words)
    config = compose(words, tree=tree)
    values = _of_sentences(config) if tree is SENTENCES else _of_images(from_config(config))
    show(json.dumps(values, indent=2) if as_json else table(values))


def _of_sentences(config: Any) -> dict[str, Any]:
    """Return the forecast of a run on sentences."""
    from so_clip.config.early_checks import check_packages
    from so_clip.config.sentence_checks import check_text_packages
    from so_clip.config.sentence_parse import sentence_settings
    from so_clip.data.sentences.card import load_sentence_card

    settings = sentence_settings(config)
    check_packages(settings.method)
    check_text_packages()
    card = load_sentence_card(settings.data.dataset, settings.data.cards_dir)
    from so_clip.forecast.sentences import forecast_sentences

    with shown_stages() as report:
        return forecast_sentences(settings, card, report)


def _of_images(settings: "Settings") -> dict[str, Any]:
    """Return the forecast of a run on images."""
    from so_clip.clip.loading.architecture_names import check_architecture
    from so_clip.config.early_checks import check_packages, check_smat_file
    from so_clip.data.find import find_card

    if settings.data.tasks:
        raise InputError(
            f"tasks={settings.data.tasks}: a forecast is about one training on all classes, and "
            "sampled tasks have fewer. Leave tasks out for an upper bound of their memory."
        )
    check_packages(settings.method)
    check_smat_file(settings.method)
    check_architecture(settings.backbone.architecture)
    choice = settings.data
    card = find_card(
        choice.dataset,
        choice.data_root,
        choice.user_data,
        template=choice.template,
        cards_dir=choice.cards_dir,
    )
    # torch takes seconds to import, so most bad input is refused before.
    from so_clip.forecast.predict import forecast

    with shown_stages() as report:
        return forecast(settings, card, report)


@contextmanager
def shown_stages() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a stage of the forecast on stderr.

    On a terminal one line changes. Into a pipe or a file each stage is a line.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: show_progress(f"forecast: {stage}")
        return
    with console.status("") as status:
        yield status.update


def table(values: Mapping[str, Any]) -> str:
    """Return the forecast as a table for a person."""
    from so_clip.results.summary import summary_table

    trains, is_text = values["steps"] > 0, "tokens" in values
    items = "examples" if is_text else "images"
    rows = {
        "run": f"{values['method']} of {values['backbone']} on {values['dataset']}, "
        f"{values['precision']}",
        "peak memory": mib_text(values["peak_memory_mib"]),
        "  weights": mib_text(values["weights_mib"]),
        "  gradients": mib_text(values["gradients_mib"]),
        "  optimizer state": mib_text(values["optimizer_state_mib"]),
        "  activations": mib_text(values["activations_mib"]),
        "peak memory of evaluation": mib_text(values["evaluation_peak_memory_mib"])
        + f", batches of {values['evaluation_batch_size']} {items}",
    }
    if is_text:
        rows["tokens of an example"] = f"{values['tokens']} at most, and so counted"
    if "start_peak_memory_mib" in values:
        rows["peak memory of the start"] = mib_text(values["start_peak_memory_mib"])
    if trains and not is_text:
        rows["images in memory"] = (
            bytes_text(values["few_shot_images_bytes"])
            + f" more, if an image has {values['image_pixels']:,} pixels"
        )
    if trains:
        rows |= {
            "one step": f"{flop_text(values['flops_per_step'])} for {values['batch_size']} {items}",
            "  forward": flop_text(values["forward_flops_per_step"]),
            "  backward": flop_text(values["backward_flops_per_step"]),
            "training": f"{flop_text(values['training_flops'])}, {values['steps']:,} steps at most",
        }
    rows |= {
        "evaluation": f"{flop_text(values['evaluation_flops'])}, {values['test_images']:,} {items}"
        + (", before and after" if trains and not is_text else ""),
        "whole run": flop_text(values["run_flops"]),
        "weights to download": bytes_text(values["weights_download_bytes"]),
    }
    folder = bytes_text(values["run_folder_bytes"]) + ", without a checkpoint"
    if is_text:  # such a run keeps neither features nor an adapter file
        rows["run folder"] = folder
    else:
        rows |= {
            "features kept on disk": bytes_text(values["features_bytes"]),
            "run folder": folder,
            "  adapter file": bytes_text(values["adapter_bytes"]) + " at most",
        }
    rows["modelled on"] = values["models"]
    return summary_table(rows)


def mib_text(value: float) -> str:
    return f"{value:,.1f} MiB"


def bytes_text(value: int) -> str:
    return (
        mib_text(value / MIB) if value >= MIB else f"{value / 1024:,.1f} KiB" if value else "none"
    )


def flop_text(value: int) -> str:
    scaled, units = value / 10**9, ["G", "T", "P"]
    while scaled >= 1000 and len(units) > 1:
        scaled /= 1000
        units.pop(0)
    return f"{scaled:,.2f} {units[0]}FLOP"
