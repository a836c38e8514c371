"""Every file in conf/ composes and fits the code that it names. Mistakes have clear messages."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from so_clip.config.compose import compose
from so_clip.config.kinds import kind_of_file
from so_clip.config.parse import from_config
from so_clip.config.settings import Component
from so_clip.config.trees import SENTENCES
from so_clip.data.cards.card import card_names
from so_clip.errors import InputError
from so_clip.fingerprint import run_dir, settings_sha256
from so_clip.system.paths import CONF_DIR
from tests.helpers.command import call, python, shell_words

SAMPLED = "sampled_gradients"  # an option of the model's layers, see build_optimizer
# tests/meta/ has those of meta-trainings, test_sentence_settings.py those of sentences.
FILES = sorted(
    file.relative_to(CONF_DIR)
    for file in CONF_DIR.rglob("*.yaml")
    if file.relative_to(CONF_DIR).parts[0] not in ("meta", "sentences.yaml")
    and kind_of_file(file) is not SENTENCES
)
# Methods that use files of all kinds. A composition takes a tenth of a second.
FAST = ("so", "so_official", "zero_shot", "clip_lora", "lora", "coop", "two_stage", "linear_probe")
FAST_AND_SLOW = [
    pytest.param(
        file,
        id=str(file),
        marks=() if file.parts[0] == "method" and file.stem in FAST else pytest.mark.slow,
    )
    for file in FILES
]


def _choosing(file: Path) -> list[str]:
    """Return the overrides that bring a file below conf/ into a configuration."""
    return [] if file.name == "config.yaml" else [f"{file.parent.as_posix()}={file.stem}"]


def _bind(component: Component, *arguments: object) -> None:
    """Bind the options to the constructor's parameters."""
    options = {key: value for key, value in component.options.items() if key != SAMPLED}
    inspect.signature(get_object(component.target)).bind(*arguments, **options)


def test_the_search_reaches_every_group():
    assert {file.parts[0] for file in FILES} == {
        "config.yaml",
        *(
            "adapter",
            "backbone",
            "dataset",
            "experiment",
            "hydra",
            "method",
            "optimizer",
            "schedule",
        ),
    }


@pytest.mark.parametrize("file", FAST_AND_SLOW)
def test_every_file_makes_a_run_and_fits_what_it_configures(file):
    # schedule=none contradicts method=so, and its message says so.
    overrides = [*_choosing(file), *(["method=zero_shot"] if file.stem == "none" else [])]
    settings = from_config(compose(overrides))
    method = settings.method
    if method.adapter:
        _bind(method.adapter)
    if method.optimizer:
        _bind(method.optimizer, [])
    for group, component in (("adapter", method.adapter), ("optimizer", method.optimizer)):
        if component:
            named = OmegaConf.load(CONF_DIR / group / f"{component.name}.yaml")
            assert named["_target_"] == component.target
    assert run_dir(settings, settings_sha256(settings)).name


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("so_clip.methods.two_stage.TwoStage", {"encoder": "both"}),  # without roles
        ("so_clip.methods.weights.Weights", {"roles": [], "depth": 1}),
        ("torch.optim.AdamW", {"params": [], "density_ratio": 1}),
    ],
)
def test_options_that_do_not_fit_are_found(target, options):
    with pytest.raises(TypeError):
        _bind(Component(name="x", target=target, options=options))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", card_names())
def test_every_dataset_card_is_a_choice(name):
    settings = from_config(compose([f"dataset={name}"]))
    assert settings.data.dataset == name
    assert settings.data.split_file is None


def test_a_dataset_takes_its_split_file():
    settings = from_config(compose(["dataset=dtd", "dataset.split_file=mine.json"]))
    assert settings.data.split_file == Path("mine.json")


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("how", ["method=so_official", "optimizer=so_official"])
@pytest.mark.parametrize("shots", [1, 16])
def test_the_released_code_takes_2000_steps_a_shot(how, shots):
    settings = from_config(compose([how, f"shots={shots}"]))
    assert settings.schedule.max_steps == 2000 * shots
    assert settings.schedule.stop_loss == 0.01
    assert settings.method.optimizer.options["density_ratio"] == 5e-5
    assert settings.method.optimizer.options["T"] == 5
    assert settings.method.optimizer.options["order"] == "update_first"
    assert settings.method.optimizer.target == "so_clip.optim.so.SO"
    # A choice on the command line replaces the choice of the method.
    assert from_config(compose([how, "schedule=few_shot"])).schedule.max_steps == 2000
    shorter = from_config(compose([how, "schedule.max_steps=5", "optimizer.T=7"]))
    assert (shorter.schedule.max_steps, shorter.method.optimizer.options["T"]) == (5, 7)


def test_an_optimizer_and_its_seed_follow_the_choices():
    settings = from_config(compose(["method=adamw", "seed=3"]))
    assert settings.method.optimizer.target == "torch.optim.AdamW"
    assert from_config(compose(["seed=3"])).method.optimizer.options["seed"] == 3


def test_the_demo_is_tiny_on_digits():
    settings = from_config(compose(["experiment=demo"]))
    assert (settings.data.dataset, settings.backbone.architecture) == ("digits", "tiny")
    assert (settings.method.name, settings.data.shots) == ("so", 4)
    assert settings.method.optimizer.options["density_ratio"] > 5e-4
    assert settings.method.optimizer.options["lr"] > 2e-4
    # An option on the command line replaces the value of the experiment.
    assert (
        from_config(compose(["experiment=demo", "optimizer.lr=1"])).method.optimizer.options["lr"]
        == 1
    )


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "optimizer", [file.stem for file in FILES if file.parent.as_posix() == "optimizer"]
)
def test_the_demo_changes_the_options_of_so_only(optimizer):
    chosen = ["method=zero_shot"] if optimizer == "none" else [f"optimizer={optimizer}"]
    plain, demo = (from_config(compose([*chosen, *more])) for more in ([], ["experiment=demo"]))
    if optimizer.startswith("so"):
        assert demo.method.optimizer.record() == plain.method.optimizer.record() | {
            "density_ratio": 2e-2,
            "lr": 2e-3,
        }
    else:
        assert demo.method.optimizer == plain.method.optimizer


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("dataset=eurosta", ["dataset=eurosta", "Did you mean 'eurosat'", "ucf101"]),
        ("backbone=vit_b_16", ["backbone=vit_b_16", "'vit_b16'", "tiny"]),
        ("method=zeroshot", ["method=zeroshot", "'zero_shot'", "so_official"]),
        ("adapter=weight", ["adapter=weight", "'weights'", "none"]),
        ("optimizer=adamx", ["optimizer=adamx", "'adam'"]),
        ("schedule=few_shots", ["schedule=few_shots", "'few_shot'"]),
        ("experiment=domo", ["experiment=domo", "'demo'"]),
        ("shot=4", ["shot: there is no such option", "'shots'", "--help"]),
        ("optimizer.density=1", ["optimizer.density", "'optimizer.density_ratio'"]),
        ("density_ratio=1", ["density_ratio", "'optimizer.density_ratio'"]),
        ("lr=1e-3", ["lr: there is no such option", "'optimizer.lr'"]),
        ("optimizr=so", ["optimizr", "'optimizer'"]),
        ("shots", ["cannot be read", "'shots'", "OPTION=VALUE"]),
        ("shots=[1", ["cannot be read", "OPTION=VALUE"]),
        ("data_root=~/data", ["cannot be read", "~/data", "quotes"]),
        ("shots=1,2", ["shots=1,2", "-m"]),
        ("dataset=../x", ["dataset=../x: there is no dataset", "ucf101"]),
        ("schedule=[1]", ["cannot be read", "other than a name", "GROUP=CHOICE"]),
        ("+=", ["cannot be read", "OPTION=VALUE"]),
        ("method=null", ["GROUP=CHOICE", "--help"]),
        ("~nothing", ["nothing", "--help"]),
    ],
)
def test_bad_choices_are_named_with_a_way_out(override, messages):
    with pytest.raises(InputError) as caught:
        compose([override])
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.slow
def test_composing_does_not_import_torch():
    code = (
        "import sys; from so_clip.config.compose import compose; compose([]); "
        "print('torch' in sys.modules)"
    )
    assert python(code).strip() == "False"


@pytest.mark.slow
def test_a_sweep_makes_a_folder_for_each_run(tmp_path):
    common = [f"results_dir={tmp_path}", "evaluation.workers=0", "method=zero_shot"]
    done = call("-m", *common, "template=plain,'a blurred photo of a {}.'")
    assert done.code == 0, done.err
    runs = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert sorted(len([*run.glob("metrics.json")]) for run in runs) == [1, 1]
    templates = {OmegaConf.load(run / "config.yaml").template for run in runs}
    assert templates == {"plain", "a blurred photo of a {}."}


@pytest.mark.slow
def test_a_refused_sweep_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    bad = ("-m", "optimizer.density_ratio=2,3")
    assert call(*bad).code == 2
    assert call(*bad, "results_dir=mine/runs").code == 2
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]


@pytest.mark.slow
def test_flags_may_stand_among_overrides(tmp_path):
    done = call(f"results_dir={tmp_path}", "shots=0", "-m", "seed=1,2")
    assert done.code == 2
    assert done.messages == ["so_clip: shots=0: must be 1 or more."] * 2


def test_cfg_job_prints_the_configuration_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("--cfg", "job", "experiment=demo")
    assert done.code == 0
    assert OmegaConf.create(done.out) == compose(["experiment=demo"])
    assert [*tmp_path.iterdir()] == []


def test_an_option_of_another_choice_is_not_suggested() -> None:
    with pytest.raises(InputError, match="the chosen optimizer has no such option"):
        compose(["method=clip_lora", "optimizer.density_ratio=0.1"])


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("choice", "precision"),
    [
        ("method=so_official", "fp32"),
        ("experiment=so_main", "fp32"),
        ("experiment=so_ablations", "fp32"),
        ("experiment=kappa_t", "fp32"),
        ("experiment=clip_lora_main", "fp16_authors"),
    ],
)
def test_published_experiments_have_their_authors_precision(choice, precision):
    assert from_config(compose([choice])).placement.precision == precision
    assert from_config(compose([choice, "precision=bf16"])).placement.precision == "bf16"


def test_an_option_that_cannot_be_read_is_printed_as_it_must_be_written() -> None:
    with pytest.raises(InputError, match="cannot be read") as refused:
        compose(["data_root=my photos (2)"])
    words = shell_words("python " + str(refused.value).partition("twice: ")[2].removesuffix("."))
    assert compose(words).data_root == "my photos (2)"
