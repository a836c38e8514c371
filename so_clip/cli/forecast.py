"""`python -m so_clip forecast`: tell what a run would take, from its command line alone."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from so_clip.cli.guard import guarded
from so_clip.config.compose import compose
from so_clip.config.settings import from_config
from so_clip.data.find import find_card
from so_clip.errors import InputError, nearest
from so_clip.results.run_folder import summary_table

USAGE = """\
Tell what a run would take before it is begun: peak memory by category, floating-point operations,
and bytes on disk. No weights, no images and no GPU are needed, and nothing is written.

  python -m so_clip forecast dataset=imagenet backbone=vit_l14 shots=16

Options are those of `python -m so_clip`. The code of the run itself is run for two training steps
and one batch of evaluation, on tensors that have shapes but no values; class names and sizes are
those of the dataset's card.

  --json   print one JSON document in place of the table

Give device=cuda to forecast a GPU run where there is none: precision=auto is then bf16. Memory is
that of tensors, as metrics.json has it of a run on the CPU. On CUDA the allocator adds
its rounding and workspaces, other kernels may be chosen, and the few shots lie there too. FLOPs are
those of matrix products, convolutions and attention; a multiplication and an addition are two.
Training may end earlier than after all its steps (schedule.stop_loss)."""
JSON = "--json"
MIB = 2**20


def main() -> int:
    """Run the command line of `python -m so_clip forecast`; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    overrides = [argument for argument in arguments if argument != JSON]
    for argument in overrides:
        if argument.startswith("-"):
            raise InputError(
                f"{argument}: there is no such flag.{nearest(argument, [JSON])} Options are "
                "written OPTION=VALUE; `python -m so_clip forecast --help` says more."
            )
    settings = from_config(compose(overrides))
    card = find_card(settings.dataset, settings.data_root, settings.own, settings.template)
    # Only now, since torch takes seconds to import and most bad input is refused without it.
    from so_clip.forecast.predict import forecast

    figures = forecast(settings, card)
    print(json.dumps(figures, indent=2) if JSON in arguments else table(figures))


def table(figures: Mapping[str, Any]) -> str:
    """Return what `forecast` returned as a table for people."""
    trains = figures["steps"] > 0
    rows = {
        "run": f"{figures['method']} of {figures['backbone']} on {figures['dataset']}, "
        f"{figures['precision']}",
        "peak memory": _mib(figures["peak_memory_mib"]),
        "  weights": _mib(figures["weights_mib"]),
        "  gradients": _mib(figures["gradients_mib"]),
        "  optimizer state": _mib(figures["optimizer_state_mib"]),
        "  activations": _mib(figures["activations_mib"]),
        "peak memory of evaluation": _mib(figures["evaluation_peak_memory_mib"]),
    }
    if trains:
        rows |= {
            "images in memory": _bytes(figures["few_shot_images_bytes"])
            + f" if of {figures['image_pixels']} pixels, on top",
            "one step": f"{_flop(figures['flops_per_step'])} for {figures['batch_size']} images",
            "  forward": _flop(figures["forward_flops_per_step"]),
            "  backward": _flop(figures["backward_flops_per_step"]),
            "training": f"{_flop(figures['training_flops'])}, {figures['steps']} steps at most",
        }
    rows |= {
        "evaluation": f"{_flop(figures['evaluation_flops'])}, {figures['test_images']} images"
        + (", before and after" if trains else ""),
        "whole run": _flop(figures["run_flops"]),
        "weights to download": _bytes(figures["weights_download_bytes"]),
        "features kept on disk": _bytes(figures["features_bytes"]),
        "run folder": _bytes(figures["run_folder_bytes"]) + ", no checkpoint in it",
        "modelled on": figures["models"],
    }
    return summary_table(rows)


def _mib(value: float) -> str:
    return f"{value:,.1f} MiB"


def _bytes(value: int) -> str:
    return _mib(value / MIB) if value >= MIB else f"{value / 1024:,.1f} KiB" if value else "none"


def _flop(value: int) -> str:
    scaled, units = value / 10**9, ["G", "T", "P"]
    while scaled >= 1000 and len(units) > 1:
        scaled /= 1000
        units.pop(0)
    return f"{scaled:,.2f} {units[0]}FLOP"


if __name__ == "__main__":
    sys.exit(main())
