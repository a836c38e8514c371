"""A run's details against slow counts of its files, and with damaged files."""

import base64
import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from so_clip.data.digits import load_digits
from so_clip.report.page.run_details import MISTAKES, WRONG_EXAMPLES, read_details
from so_clip.report.page.thumbnails import SIDE, Thumbnails, thumbnail
from so_clip.results.scores import scores
from tests.helpers.page_runs import DIGITS, write_csv, write_run
from tests.helpers.sentence_folders import write_sentence_run

SETTINGS = {"dataset": "digits", "data_root": "data"}


def _details(folder: Path, settings=SETTINGS):
    return read_details(folder, settings, Thumbnails())


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_confusion_matrix_counts_every_image_once(tmp_path):
    folder = write_run(tmp_path)
    triples = _details(folder).values["confusion"]["triples"]
    cells = {
        (label, guess): count for label, guess, count in zip(*[iter(triples)] * 3, strict=True)
    }
    assert cells == Counter((int(row["label"]), int(row["prediction"])) for row in _rows(folder))
    assert _details(folder).values["confusion"]["left_out"] == 0


def test_rare_confusions_of_many_classes_are_only_counted(tmp_path):
    names = [f"c{n}" for n in range(900)]
    folder = write_run(tmp_path, class_names=names, test_images=6000, accuracy_percent=20.0)
    confusion = _details(folder).values["confusion"]
    kept = confusion["triples"][2::3]
    assert len(kept) == 3000
    assert sum(kept) + confusion["left_out"] == 6000
    assert min(kept) == 1


def test_the_reliability_diagram_sums_to_the_calibration_error(tmp_path):
    folder = write_run(tmp_path)
    rows = _rows(folder)
    expected = scores({key: [row[key] for row in rows] for key in rows[0]})
    for name, prefix in (("adapted", ""), ("zero_shot", "zero_shot_")):
        bins = _details(folder).values["reliability"][name]
        assert len(bins["images"]) == 15
        gaps = [
            images * abs(accuracy - confidence) / 200
            for images, accuracy, confidence in zip(
                bins["images"], bins["accuracy_percent"], bins["confidence_percent"], strict=True
            )
            if images
        ]
        error = expected[f"{prefix}expected_calibration_error_percent"]
        assert sum(gaps) == pytest.approx(error, abs=0.01)


def test_mistakes_are_the_most_confident_wrong_predictions_with_their_images(tmp_path):
    folder = write_run(tmp_path)
    details = _details(folder)
    wrong = [row for row in _rows(folder) if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: (-float(row["confidence"]), row["path"]))
    shown = details.values["mistakes"]
    assert [mistake["path"] for mistake in shown] == [row["path"] for row in wrong[:MISTAKES]]
    assert details.values["no_pictures"] == ""
    uri = details.pictures[shown[0]["path"]]
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    index = int(shown[0]["path"][6:10])
    pixels = list(Image.open(io.BytesIO(content)).convert("L").tobytes())
    assert pixels == load_digits().images_NHW[index].ravel().tolist()


def test_class_names_are_unchanged_and_a_class_without_images_stays(tmp_path):
    names = ["nan", "", "</script>", "ÅΩ 数", *DIGITS[4:], "never seen"]
    folder = write_run(tmp_path, class_names=names, test_images=30)
    details = _details(folder)
    assert [name for _, name in details.names] == names
    json.dumps(details.values, allow_nan=False)


def test_curves_keep_their_first_and_last_step(tmp_path):
    values = _details(write_run(tmp_path, steps=1000)).values
    assert len(values["history"]["step"]) == len(values["history"]["loss"]) == 120
    assert (values["history"]["step"][0], values["history"]["step"][-1]) == (1, 1000)
    assert values["curve"]["step"] == [0, 200, 400, 600, 800, 1000]


@pytest.mark.parametrize(
    ("file", "content", "lost"),
    [
        ("predictions.csv", None, {"confusion", "reliability", "mistakes", "no_pictures"}),
        ("predictions.csv", "path,label\na,1\n", {"confusion", "reliability", "mistakes"}),
        ("predictions.csv", "\x00\x01\x02", {"confusion"}),
        ("per_class.csv", "label,name\n", {"per_class"}),
        ("history.csv", "step,loss\n1,much\n", {"history"}),
        ("curve.csv", "", {"curve"}),
        ("provenance.json", "{", set()),
    ],
)
def test_a_damaged_file_loses_only_its_own_part(tmp_path, file, content, lost):
    folder = write_run(tmp_path)
    whole = set(_details(folder).values)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    left = set(_details(folder).values)
    assert lost <= whole - left
    assert {"confusion", "per_class", "history", "curve"} - lost <= left


def test_a_file_with_nan_confidences_is_damaged(tmp_path):
    folder = write_run(tmp_path)
    rows = _rows(folder)
    rows[0]["confidence"] = "nan"
    write_csv(folder / "predictions.csv", rows[0], [list(row.values()) for row in rows])
    assert "reliability" not in _details(folder).values


def test_images_from_the_datasets_folder_become_small_jpegs(tmp_path):
    images = tmp_path / "data" / "eurosat" / "2750"
    (images / "Forest").mkdir(parents=True)
    paths = [f"Forest/Forest_{n}.jpg" for n in range(20)]
    for path in paths[1:]:
        Image.new("RGB", (400, 300), (30, 120, 40)).save(images / path)
    folder = write_run(
        tmp_path / "runs", dataset="eurosat", paths=paths, test_images=20, accuracy_percent=0.0
    )
    settings = {"dataset": "eurosat", "data_root": str(tmp_path / "data")}
    details = _details(folder, settings)
    shown = [mistake["path"] for mistake in details.values["mistakes"]]
    assert set(details.pictures) == set(shown) - {paths[0]}  # its file is missing
    uri = details.pictures[next(iter(details.pictures))]
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (SIDE, SIDE * 3 // 4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dataset": "eurosat", "data_root": "/nowhere"}, "/nowhere"),
        ({"dataset": "eurosat", "data_root": None}, "data_root is not given"),
        ({"dataset": "gone"}, "there is no dataset of that name"),
        ({"dataset": "x", "user_data": {"folder": "/nowhere"}}, "/nowhere: the folder of the"),
        ({"dataset": "x", "own": {"folder": "/nowhere"}}, "/nowhere: the folder of the"),
    ],
)
def test_the_reason_for_missing_images_is_given(tmp_path, settings, reason):
    details = _details(write_run(tmp_path), settings)
    assert details.pictures == {}
    assert reason in details.values["no_pictures"]


def test_a_path_outside_the_datasets_folder_is_refused(tmp_path):
    (tmp_path / "data" / "eurosat" / "2750").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    settings = {"dataset": "eurosat", "data_root": str(tmp_path / "data")}
    assert Thumbnails().uri(settings, "../../../secret.png") is None


def test_an_icon_is_not_scaled():
    assert thumbnail(Image.new("RGB", (28, 28))).startswith("data:image/png;")
    assert thumbnail(Image.new("RGB", (280, 28))).startswith("data:image/jpeg;")


def test_sentences_have_rows_in_place_of_paths_and_pictures(tmp_path):
    folder = write_sentence_run(tmp_path, right=200)
    settings = json.loads((folder / "metrics.json").read_text())["settings"]
    details = _details(folder, settings)
    assert details.pictures == {}
    assert "no_pictures" not in details.values
    worst = details.values["mistakes"]
    assert len(worst) == WRONG_EXAMPLES
    wrong = [row for row in _rows(folder) if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: (-float(row["confidence"]), int(row["row"])))
    assert [mistake["row"] for mistake in worst] == [
        int(row["row"]) for row in wrong[:WRONG_EXAMPLES]
    ]
    assert set(worst[0]) == {"row", "label", "prediction", "confidence"}
    assert sum(details.values["confusion"]["triples"][2::3]) == 277
    assert set(details.values["reliability"]) == {"adapted"}
    assert details.names == ((0, "entailment"), (1, "not_entailment"))
    even, odd = details.values["draw"]
    assert even == {"label": 0, "rows": list(range(100, 132, 2))}
    assert odd == {"label": 1, "rows": list(range(101, 132, 2))}


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [1], "labels": []}', '{"rows": "a"}'])
def test_a_damaged_draw_is_left_out(tmp_path, content):
    folder = write_sentence_run(tmp_path)
    (folder / "fewshot.json").write_text(content)
    assert _details(folder).values["draw"] is None
