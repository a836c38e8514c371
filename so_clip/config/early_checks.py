"""Checks of methods that need no torch, so that a mistake is refused before torch is imported.

The constructors of adapters check the same options again, for programs that call them directly.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from so_clip.checks import flag, number, one_of, path, whole
from so_clip.clip.loading.weights_file import check_backbone
from so_clip.config.settings import MethodChoice, Settings
from so_clip.data.choice import MAX_SEED
from so_clip.errors import InputError
from so_clip.results.run_files import SMAT_FILE, smat_file
from so_clip.results.writable import check_writable
from so_clip.system.commands import install

# The packages of the extra `methods`, by the module of the class that needs them.
_EXTRA = "so-clip[methods]"
_PACKAGES = {
    "so_clip.methods.peft_adapter": "peft",
    "so_clip.methods.adalora": "peft",
    "so_clip.methods.relora": "peft",
    "so_clip.optim.galore": "pytorch_optimizer",
}
# Options with the same meaning in every adapter of the program.
_ADAPTER_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "rank": partial(whole, least=1),
    "every": partial(whole, least=1),
    "steps": partial(whole, least=0),
    "views": partial(whole, least=0),
    "reduction": partial(whole, least=1),
    "seed": partial(whole, least=0, most=MAX_SEED),
    "constants": partial(one_of, allowed=("paper", "released")),
    "alpha": number,
    "normalize": flag,
    "encoder": partial(one_of, allowed=("vision", "text", "both")),
}


def check_adapter_options(options: Mapping[str, Any]) -> None:
    """Raise InputError for an option of an adapter of the program that is out of range."""
    for name, check in _ADAPTER_CHECKS.items():
        # The adapter refuses alpha=null: Tip-Adapter's authors released none for the dataset.
        late = name == "alpha" and options.get("alpha") is None
        if name in options and options[name] != "auto" and not late:
            check(f"adapter.{name}", options[name])
    for name, bound, closed in (("dropout", "[0, 1)", False), ("interpolation", "[0, 1]", True)):
        if name in options:
            value = number(f"adapter.{name}", options[name])
            if value < 0 or value > 1 or (value == 1 and not closed):
                raise InputError(f"adapter.{name}={options[name]}: must be in {bound}.")


def check_packages(method: MethodChoice) -> None:
    """Raise InputError if the method's classes need a package that is not installed."""
    for component in filter(None, (method.adapter, method.optimizer)):
        package = _PACKAGES.get(component.target.rpartition(".")[0])
        if package is not None and find_spec(package) is None:
            raise InputError(
                f"method={method.name} needs the package {package.replace('_', '-')}, and it is "
                f"not installed: {install(_EXTRA)}"
            )


def check_places(settings: Settings) -> None:
    """Raise InputError if results, features or weights cannot be where the settings say."""
    check_writable(settings.placement.results_dir)
    check_backbone(settings.backbone.architecture, settings.backbone.checkpoint)
    cache_dir = settings.evaluation.cache_dir
    if cache_dir is not None and cache_dir.is_file():
        raise InputError(f"evaluation.cache_dir={cache_dir}: is a file. Give a folder, or null.")


def check_smat_file(method: MethodChoice) -> None:
    """Refuse a method that starts from a meta-trained checkpoint and has none."""
    options = method.adapter.options if method.adapter else {}
    if "checkpoint" not in options:
        return
    checkpoint = options["checkpoint"]
    if checkpoint is None:
        raise InputError(
            f"method={method.name} starts from a meta-trained checkpoint, and adapter.checkpoint "
            "is null. Give the file that `python -m so_clip meta` wrote: adapter.checkpoint=FILE."
        )
    file = smat_file(path("adapter.checkpoint", checkpoint))
    if not file.exists():
        raise InputError(
            f"adapter.checkpoint={checkpoint}: {file} does not exist. Give the {SMAT_FILE} of a "
            "meta-training, or its run's folder."
        )
