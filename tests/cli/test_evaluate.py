"""`python -m so_clip evaluate`: whole runs, and their adapters tested without training."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.command import Outcome, call
from tests.helpers.made_datasets import write_class_folders, write_dtd
from tests.helpers.whole_runs import STEPS, Run, run

FILES = ("predictions.csv", "per_class.csv")
METHODS = ("so", "clip_lora", "coop", "lora")
BOUND = ("tip_adapter", "linear_probe", "taskres")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dtd(folder)
    return folder


def trained(tmp_path: Path, root: Path, method: str, *words: str) -> Run:
    training = [] if method == "tip_adapter" else [f"schedule.max_steps={STEPS}"]
    training += ["adapter.length=8"] if method == "coop" else []
    return run(tmp_path / "runs", f"method={method}", f"data_root={root}", *training, *words)


def noted(done: Outcome) -> Run:
    """Return the run of a command, which may have printed notes."""
    assert done.code == 0, done.err
    return Run(Path(done.out.rpartition("run folder")[2].strip()))


def evaluated(source: Path | str, *words: str) -> Run:
    done = call("evaluate", source, "evaluation.workers=0", *words)
    assert done.messages == []
    return noted(done)


def refusal(source: Path | str, *words: str) -> str:
    """Return the one message of an evaluation that is refused."""
    done = call("evaluate", source, *words)
    assert done.code == 2, done.err
    (message,) = done.messages
    return message


def content(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_an_evaluation_equals_its_run_and_its_transfer_bit_for_bit(method, tmp_path, root):
    done = trained(tmp_path, root, method, "transfer=[dtd]")
    again = evaluated(done.folder)
    for file in FILES:
        assert (again.folder / file).read_bytes() == (done.folder / file).read_bytes()
    keys = ("accuracy_percent", "zero_shot_accuracy_percent", "temperature", "shots", "seed")
    assert [again.metrics[key] for key in keys] == [done.metrics[key] for key in keys]
    other = evaluated(done.folder, "dataset=dtd")
    for file in FILES:
        of_transfer = done.folder / file.replace(".csv", "_dtd.csv")
        assert (other.folder / file).read_bytes() == of_transfer.read_bytes()
    assert other.metrics["temperature"] is None  # it was fitted on other classes
    assert done.folder.name not in (again.folder.name, other.folder.name)


@pytest.mark.parametrize("method", BOUND)
@pytest.mark.slow
def test_a_method_of_its_classes_is_tested_on_these_only(method, tmp_path, root):
    done = trained(tmp_path, root, method)
    again = evaluated(done.folder)
    for file in FILES:
        assert (again.folder / file).read_bytes() == (done.folder / file).read_bytes()
    before = content(tmp_path / "runs")
    for option in ("dataset=dtd", "template=specific", "protocol=base_to_new"):
        message = refusal(done.folder, option)
        assert message.startswith(f"so_clip: {option}: what method={method} trained belongs")
        assert "10 classes" in message
    assert content(tmp_path / "runs") == before


@pytest.fixture(scope="module")
def done(tmp_path_factory, root):
    return trained(tmp_path_factory.mktemp("done"), root, "so")


def test_an_evaluation_is_a_run_of_its_own_that_names_the_adapter(done, tmp_path):
    results = f"results_dir={tmp_path}"
    again = evaluated(done.folder, results)
    assert {"config.yaml", "provenance.json", "summary.txt", "metrics.json"} <= content(
        again.folder
    )
    assert again.folder.parent == tmp_path
    metrics = again.metrics
    assert metrics["adapter_from"] == str(done.folder)
    assert (metrics["trained_on"], metrics["tested_on"], metrics["method"]) == (
        *("digits", "test"),
        "so",
    )
    assert metrics["peak_memory_mib"] > 0
    assert "memory (MiB)" not in (again.folder / "summary.txt").read_text()
    (again.folder / "mark").touch()
    skipped = call("evaluate", done.folder, results)
    assert "finished before: skipped" in skipped.out
    assert (again.folder / "mark").exists()


@pytest.mark.slow
def test_force_repeats_an_evaluation(done, tmp_path):
    again = evaluated(done.folder, f"results_dir={tmp_path}")
    (again.folder / "mark").touch()
    repeated = evaluated(done.folder, f"results_dir={tmp_path}", "force=true")
    assert repeated.folder == again.folder
    assert not (again.folder / "mark").exists()


@pytest.mark.slow
def test_a_file_alone_gives_what_its_run_gives(done, tmp_path):
    file = shutil.copy(done.folder / "adapter.safetensors", tmp_path / "mine.safetensors")
    alone = evaluated(file, f"results_dir={tmp_path}")
    for name in FILES:
        assert (alone.folder / name).read_bytes() == (done.folder / name).read_bytes()
    assert alone.metrics["adapter_from"] == str(file)


@pytest.mark.slow
def test_other_lists_and_prompts_are_tested(done, tmp_path):
    results = f"results_dir={tmp_path}"
    val = evaluated(done.folder, "split=val", results)
    assert val.metrics["tested_on"] == "val"
    assert len(val.rows("predictions.csv")) == val.metrics["test_images"] == 359
    prompts = evaluated(done.folder, "template='a drawn {}.'", results)
    assert prompts.metrics["prompts_sha256"] != done.metrics["prompts_sha256"]
    assert len({val.folder, prompts.folder}) == 2
    halves = evaluated(done.folder, "protocol=base_to_new", results)
    assert halves.metrics["new_classes"]["accuracy_percent"] > 0


@pytest.mark.slow
def test_tables_show_evaluations_apart_from_runs(done, root, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(done.folder, runs / done.folder.name)
    for words in ((), ("dataset=dtd",), ("split=val",)):
        evaluated(runs / done.folder.name, f"results_dir={runs}", *words)
    shown = call("table", runs)
    assert "1 run, 2 evaluations of saved adapters" in shown.out
    assert "SO (trained on digits)" in shown.out
    accuracy = (runs / "tables" / "accuracy.csv").read_text()
    assert "trained on" not in accuracy
    assert "dtd" not in accuracy
    assert "dtd" in (runs / "tables" / "evaluation.csv").read_text()
    assert "1 run not tested on test images but on others (val)" in shown.err
    status = call("status", runs, "--once", "--all")
    assert status.out.count("evaluation of") == 3
    only = tmp_path / "only"
    for folder in runs.glob("evaluation-*"):
        shutil.copytree(folder, only / folder.name)
    assert "SO (trained on digits)" in call("table", only).out
    report = call("report", only, "-o", tmp_path / "report")
    assert report.code == 0, report.err


def test_bad_input_is_refused_with_one_message(done, root, tmp_path):
    before = content(done.folder.parent)
    assert "belongs to training" in refusal(done.folder, "shots=8")
    assert "belongs to training" in refusal(done.folder, "method=coop")
    assert "belongs to training" in refusal(done.folder, "optimizer.lr=1")
    assert "one dataset at a time" in refusal(done.folder, "transfer=[dtd]")
    assert "Did you mean 'dataset'" in refusal(done.folder, "datset=dtd")
    assert "must be train or val or test" in refusal(done.folder, "split=all")
    assert f"{tmp_path / 'none'}" in refusal(tmp_path / "none")
    assert "data_root" in refusal(done.folder, "dataset=dtd", f"data_root={tmp_path / 'none'}")
    assert "DIR" in refusal(done.folder, "--config-dir", f"{tmp_path / 'none'}").upper()
    other = write_other_base(done.folder, tmp_path)
    assert "has other weights" in refusal(done.folder, f"backbone.checkpoint={other}")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((done.folder / "adapter.safetensors").read_bytes()[:-9])
    assert "is damaged" in refusal(torn)
    bare = tmp_path / "bare"
    shutil.copytree(done.folder, bare)
    (bare / "adapter.safetensors").unlink()
    assert "has no adapter.safetensors" in refusal(bare)
    assert content(done.folder.parent) == before


def write_other_base(folder: Path, tmp_path: Path) -> Path:
    """Write the weights of a run's base with one other entry."""
    import torch

    from so_clip import adapters

    adapter, _ = adapters.open_saved(folder)
    backbone = adapters.restore(adapter, folder=folder).classifier.backbone
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    torch.save(state, tmp_path / "other.pt")
    return tmp_path / "other.pt"


@pytest.mark.slow
def test_an_evaluation_is_no_source_of_runs(done, tmp_path):
    again = evaluated(done.folder, f"results_dir={tmp_path}")
    assert "is an evaluation, which has no adapter of its own" in refusal(again.folder)
    repeated = call("--from", again.folder)
    assert repeated.code == 2
    (message,) = repeated.messages
    assert "is an evaluation of a saved adapter" in message
    assert str(done.folder) in message


@pytest.mark.slow
def test_your_own_images_are_found_again(root, tmp_path):
    photos = tmp_path / "photos"
    write_class_folders(photos, ("apple_tree", "oak", "scots_pine"), images=6)
    words = ("dataset=folder", f"data_root={photos}", "shots=1", "schedule.max_steps=2")
    # Each note on the drawn split is a message too.
    done = noted(call(f"results_dir={tmp_path / 'runs'}", "evaluation.workers=0", *words))
    again = noted(call("evaluate", done.folder))
    assert (again.folder / FILES[0]).read_bytes() == (done.folder / FILES[0]).read_bytes()
    assert evaluated(done.folder, "dataset=dtd", f"data_root={root}").metrics["dataset"] == "dtd"
    file = done.folder / "adapter.safetensors"
    assert "was trained on photos" in refusal(file)
    alone = noted(call("evaluate", file, *words[:2], f"results_dir={tmp_path / 'alone'}"))
    assert (alone.folder / FILES[0]).read_bytes() == (done.folder / FILES[0]).read_bytes()
    shutil.rmtree(photos)
    assert str(photos) in refusal(done.folder)


@pytest.mark.slow
def test_a_file_of_other_images_asks_for_them(done, tmp_path):
    from so_clip import adapters

    adapter = adapters.load(done.folder / "adapter.safetensors")
    merged = adapters.merge([adapter, adapter])
    adapters.save(merged, tmp_path / "merged.safetensors")
    results = f"results_dir={tmp_path / 'runs'}"
    again = evaluated(tmp_path / "merged.safetensors", "dataset=digits", results)
    assert again.metrics["accuracy_percent"] == pytest.approx(done.metrics["accuracy_percent"])
    assert again.metrics["method_title"] == "Merged adapters"
    about = adapter.about.model_copy(update={"dataset": "my_flowers"})
    unknown = tmp_path / "unknown.safetensors"
    adapters.save(adapters.SavedAdapter(about, adapter.changes, adapter.added), unknown)
    assert "was trained on my_flowers" in refusal(unknown, results)
    assert json.loads((again.folder / "metrics.json").read_text())["trained_on"] == "digits"
