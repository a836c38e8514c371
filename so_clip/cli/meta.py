"""`python -m so_clip meta`: meta-train SMAT's experts on tasks of many datasets."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from so_clip.checks import path
from so_clip.cli.arguments import Words
from so_clip.cli.config_folders import CONFIG_DIR, check_config_folders
from so_clip.cli.forecast import bytes_text, flop_text, mib_text, shown_stages
from so_clip.cli.program import COMMANDS
from so_clip.data.episodes.options import EpisodeOptions
from so_clip.errors import InputError, nearest, show
from so_clip.meta.settings import MetaSettings, declared_options
from so_clip.system.commands import command, override, shell_word
from so_clip.system.paths import CONF_DIR

if TYPE_CHECKING:
    from so_clip.meta.run import MetaResult

# Tasks of each dataset in the printed command.
_TASKS = 600
# Where the help texts of options begin.
_COLUMN = 40


def _options() -> str:
    """Return names, defaults and help texts of all options."""
    lines = ["\b", "Options, written OPTION=VALUE:"]
    for name, field in declared_options().items():
        shown = f"{name}=" if field.is_required() else override(name, field.get_default())
        head = f"  {shown}".ljust(_COLUMN - 1) + " "
        if len(head) > _COLUMN:
            lines += textwrap.wrap(shown, 96, initial_indent="  ", subsequent_indent=" " * 6)
            head = " " * _COLUMN
        text = field.description or ""
        lines += textwrap.wrap(text, 96, initial_indent=head, subsequent_indent=" " * _COLUMN)
    return "\n".join(lines)


HELP = f"""Meta-train sparse experts (SMAT) on few-shot tasks of many datasets.

The frozen encoder gets one update of its weights, which M sparse masks (experts) share, and a
router that mixes the experts for a task. The run folder ends with smat.safetensors, for
method=smat adapter.checkpoint=FILE.

\b
  python -m so_clip meta experiment=smat data_root=data
  python -m so_clip meta backbone=tiny sources=[dtd,eurosat] targets=[food101] training.tasks=2000

--forecast prints the peak memory of the largest task, and needs neither images nor weights.

Tasks to train on have classes of the first half of each source, tasks to validate on those of the
second half. Targets are tested once, after training, and choose nothing. A finished run is not
repeated; an interrupted one continues with the same command. docs/how_to/experts.md has the files.

\b
Groups, written GROUP=CHOICE:
  experiment             smat (CLIP ViT-B/16) | smat_released (with the faults of the released code)
  backbone               those of runs: `python -m so_clip --help backbone`

{_options()}

Exit codes: 0 done, 1 the run failed, 2 the input cannot be used, 130 or 143 interrupted."""


def main(
    words: Words = None,
    config_dir: Annotated[
        str | None,
        typer.Option("-cd", CONFIG_DIR, metavar="FOLDER", help="A folder with more choices."),
    ] = None,
    forecasts: Annotated[
        bool,
        typer.Option("--forecast", help="Print memory, FLOPs and disk space, and train nothing."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the forecast as a JSON document.")
    ] = False,
) -> None:
    """Meta-train; see HELP."""
    from so_clip.meta.parse import META, meta_settings

    given = words or []
    _check_words(given)
    if config_dir is not None:
        check_config_folders({CONFIG_DIR: config_dir}, (META.folder, CONF_DIR))
    settings = meta_settings(given, None if config_dir is None else path(CONFIG_DIR, config_dir))

    if forecasts:
        _forecast(settings, as_json)
        return
    if as_json:
        raise InputError("--json: prints a forecast. Give --forecast too, or leave it out.")

    from so_clip.clip.loading.weights_file import check_backbone
    from so_clip.meta.tasks import gather_tasks
    from so_clip.results.interval import check_intervals
    from so_clip.results.writable import check_writable

    if settings.data.validation_tasks or settings.targets:
        check_intervals()
    check_writable(settings.placement.results_dir)
    check_backbone(settings.backbone.architecture, settings.backbone.checkpoint)
    tasks = gather_tasks(settings)
    # torch takes seconds to import, so most bad input is refused before.
    from so_clip.meta.run import meta_run
    from so_clip.runtime.device import cpu_threads

    with cpu_threads(settings.placement.threads):
        result = meta_run(settings, tasks, overrides=given)
    skipped = "finished before: skipped. force=true repeats it.\n\n" if result.skipped else ""
    show(f"\n{skipped}{result.table}\n\n{_next_commands(settings, result)}")


def _forecast(settings: MetaSettings, as_json: bool) -> None:
    """Print what the meta-training needs. Cards are read, and no images or weights."""
    from so_clip.clip.loading.architecture_names import check_architecture
    from so_clip.forecast.meta import largest_task

    check_architecture(settings.backbone.architecture)
    largest_task(settings)
    # torch takes seconds to import, so most bad input is refused before.
    from so_clip.forecast.meta_task import meta_forecast

    with shown_stages() as report:
        values = meta_forecast(settings, report)
    show(json.dumps(values, indent=2) if as_json else forecast_table(values))


def forecast_table(values: Mapping[str, Any]) -> str:
    """Return the forecast as a table for a person, with a way out if the memory is too small."""
    from so_clip.results.summary import summary_table

    masks = values["mask_mib"]
    rows = {
        "meta-training": f"{values['experts']} experts of {values['backbone']}, "
        f"{values['precision']}, training.head={values['head']}",
        "largest task": f"{values['ways']} classes, {values['few_shot_images']} few-shot and "
        f"{values['query_images']} query images",
        "peak memory": mib_text(values["peak_memory_mib"]),
        "  weights": mib_text(values["weights_mib"]),
        "  gradients": mib_text(values["gradients_mib"]),
        "  optimizer state": mib_text(values["optimizer_state_mib"]),
        "  activations": mib_text(values["activations_mib"]),
        "masks and their gradients": ", ".join(
            f"{mib_text(size)} (adapter.granularity={name})" for name, size in masks.items()
        ),
        "images of the task": bytes_text(values["task_images_bytes"]) + " more",
        "one task": flop_text(values["flops_per_task"]),
        "training": f"{flop_text(values['training_flops'])}, {values['tasks']} tasks at most "
        "this large",
        "checkpoint file": bytes_text(values["checkpoint_bytes"]),
        "state to resume from": bytes_text(values["resume_bytes"]),
        "modelled on": values["models"],
    }
    here = values["memory_here_mib"]
    if here is None or values["peak_memory_mib"] < here:
        return summary_table(rows)
    ways_out = ["smaller tasks take less: fewer episodes.images, episodes.queries, episodes.ways"]
    if values["memory"] != "small":
        ways_out.insert(0, "memory=small keeps fewer activations")
    if values["granularity"] == "weight":
        saved = mib_text(masks["weight"] - masks["row"])
        ways_out.insert(0, f"adapter.granularity=row takes {saved} less")
    way_out = "\n".join(f"- {text}" for text in ways_out)
    return f"{summary_table(rows)}\n\nThis machine has {mib_text(here)}:\n{way_out}"


def _check_words(words: Sequence[str]) -> None:
    """Raise InputError for a word that is no option, or for one of Hydra's own."""
    from so_clip.meta.parse import META

    for word in words:
        name, equals, value = word.partition("=")
        name = name.lstrip("+~")
        if word == "forecast":
            raise InputError("forecast: is a flag here: python -m so_clip meta --forecast ...")
        if word in COMMANDS:
            raise InputError(f"{word}: a command comes first: python -m so_clip {word} ...")
        if not equals and not word.startswith("~"):
            known = [choice.stem for choice in (META.folder / "experiment").glob("*.yaml")]
            meant = f" Did you mean experiment={word}?" if word in known else nearest(word, known)
            raise InputError(f"{word}: is no OPTION=VALUE.{meant} `{META.help}` lists all options.")
        if name.partition(".")[0].partition("/")[0] == "hydra":
            raise InputError(f"{word[:80]}: an option of Hydra has no effect here. Leave it out.")
        if name in ("backbone", "experiment") and value.startswith(("{", "[")):
            raise InputError(
                f"{shell_word(word)}: a group takes the name of a choice, {name}=NAME. A single "
                f"option is written {name}.OPTION=VALUE."
            )


def _next_commands(settings: MetaSettings, result: "MetaResult") -> str:
    """Return the command that uses the experts, on tasks like those of the test."""
    names, data = settings.targets or settings.data.sources, settings.data
    datasets, root = ",".join(name for name in names if ":" not in name), str(data.data_root)
    if not datasets:  # a run takes one folder of the user's own images
        datasets, _, root = names[0].partition(":")
    words = [f"tasks={_TASKS}", *_episodes(settings.episodes)]
    if not settings.episodes.varied_shots:
        words.append(override("shots", data.shots))
    if settings.training.head != "text":
        words.append(override("adapter.head", settings.training.head))
    if data.template != "plain":
        words.append(override("template", data.template))
    words += [*_backbone(settings), override("data_root", root)]
    if data.cards_dir is not None:
        words.append(override("cards_dir", data.cards_dir))
    checkpoint = override("adapter.checkpoint", result.file)
    run = command("-m", "method=smat", checkpoint, f"dataset={datasets}", *words)
    return f"Use the experts, here on {_TASKS} tasks of each dataset:\n  {run}"


def _episodes(options: EpisodeOptions) -> list[str]:
    """Return the words of the options of episodes that differ from the defaults of runs."""
    default = EpisodeOptions().model_dump()
    return [
        override(f"episodes.{name}", value)
        for name, value in options.model_dump(include=set(default)).items()
        if value != default[name]
    ]


def _backbone(settings: MetaSettings) -> list[str]:
    """Return the words that choose the backbone: a group of conf/backbone, and other values."""
    from so_clip.backbones.models import groups

    chosen = settings.backbone.model_dump(mode="json")
    for name, values in groups().items():
        if all(values[key] == chosen[key] for key in ("architecture", "pretrained")):
            others = {key: chosen[key] for key, value in values.items() if chosen[key] != value}
            words = [f"backbone={name}"]
            break
    else:
        others = {key: chosen[key] for key in ("architecture", "pretrained", "checkpoint")}
        words = []
    return [*words, *(override(f"backbone.{key}", value) for key, value in others.items())]
