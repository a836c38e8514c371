"""doctor on datasets with planted faults: each is found, and its one command mends it."""

import io
import json
import shlex

import pytest
from PIL import Image

from so_clip.doctor.__main__ import DEFAULTS, USAGE, main
from tests.command import call, spawn
from tests.prepare.given import (
    SPLIT_FILE,
    archive,
    images,
    laid_out,
    paths,
    picture,
    prepare,
    split_bytes,
    split_lists,
    split_source,
    write_card,
    zipped,
)
from tests.prepare.server import running

IMAGE = "ant/ant_0.jpg"


@pytest.fixture
def server():
    with running() as server:
        yield server


@pytest.fixture
def root(server, tmp_path):
    """A data root with one whole dataset, whose sources are served."""
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(tmp_path / "cards", archive(server.serve("a.zip", zipped(images()))), split)
    assert prepare(tmp_path / "data").code == 0
    return tmp_path / "data"


def _doctor(root, *arguments):
    return call(f"data_root={root}", f"cards_dir={root.parent / 'cards'}", *arguments, main=main)


def _giant():
    data = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(data, "PNG")
    return data.getvalue()


def _spoil(name, data):
    def plant(root):
        (root / "small" / "pictures" / name).write_bytes(data)

    return plant


def _remove(name):
    return lambda root: (root / "small" / "pictures" / name).unlink()


def _folder_instead(root):
    (root / "small" / "pictures" / IMAGE).unlink()
    (root / "small" / "pictures" / IMAGE).mkdir()


def _link_to_nowhere(root):
    file = root / "small" / "pictures" / IMAGE
    file.unlink()
    file.symlink_to(root / "gone.jpg")


def _other_capitals(root):
    (root / "small" / "pictures" / "ant").rename(root / "small" / "pictures" / "Ant")


def _too_deep(root):
    folder = root / "small" / "pictures"
    folder.rename(root / "small" / "inner")
    folder.mkdir()
    (root / "small" / "inner").rename(folder / "pictures")


def _no_pictures(root):
    (root / "small" / "pictures").rename(root / "elsewhere")


def _split(change):
    return lambda root: (root / "small" / SPLIT_FILE).write_bytes(change(split_bytes()))


def _twice(data):
    lists = json.loads(data)
    lists["test"].append(lists["train"][0])
    return json.dumps(lists).encode()


FAULTS = {
    "an image is missing": (_remove(IMAGE), "1 of 12 images missing: ant/ant_0.jpg"),
    "cut short": (_spoil(IMAGE, picture(0)[:-20]), "1 of 12 images damaged: ant/ant_0.jpg"),
    "a page": (_spoil(IMAGE, b"<html>404</html>"), "1 of 12 images damaged: ant/ant_0.jpg"),
    "empty": (_spoil(IMAGE, b""), "1 of 12 images empty files: ant/ant_0.jpg"),
    "too large": (_spoil(IMAGE, _giant()), "1 of 12 images damaged: ant/ant_0.jpg"),
    "a folder instead": (_folder_instead, "1 of 12 images not plain files: ant/ant_0.jpg"),
    "a link to nowhere": (_link_to_nowhere, "1 of 12 images missing: ant/ant_0.jpg"),
    "other capitals": (_other_capitals, "4 of 12 images missing: ant/ant_0.jpg"),
    "too deep": (_too_deep, "12 of 12 images missing: ant/ant_0.jpg"),
    "no image folder": (_no_pictures, "pictures is missing"),
    "no split file": (lambda root: (root / "small" / SPLIT_FILE).unlink(), "was not found"),
    "split cut short": (_split(lambda data: data[:99]), "the split file is not JSON"),
    "split climbs": (
        _split(lambda data: data.replace(IMAGE.encode(), b"../../x.jpg")),
        "outside the dataset's image folder: it climbs out",
    ),
    "an image twice": (_split(_twice), "test[3] repeats the image"),
}


@pytest.mark.parametrize(("plant", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_its_one_command_mends_it(plant, fault, root):
    plant(root)
    before = sorted(root.rglob("*"))
    done = _doctor(root)
    assert done.code == 1
    assert done.out.startswith("small: faulty")
    assert fault in done.out
    assert done.messages == ["so_clip: 1 of 1 datasets are not well; see the commands above."]
    assert sorted(root.rglob("*")) == before
    (remedy,) = [line.strip() for line in done.out.splitlines() if line.startswith("  mend: ")]
    command = shlex.split(remedy.removeprefix("mend: "))
    assert command[:3] == ["python", "-m", "so_clip.prepare"]
    mended = prepare(root, *[each for each in command[3:] if not each.startswith("dat")])
    assert mended.code == 0, mended.err
    assert {path: laid_out(root)[path] for path in paths()} == images()
    assert _doctor(root, "check=all").code == 0


def test_all_is_well(root):
    done = _doctor(root)
    assert (done.code, done.err) == (0, "")
    assert done.out == "small: whole, 12 images, 12 of them decoded\n"


def test_a_sample_and_what_looks_odd_is_decoded(root):
    assert "3 of them decoded" in _doctor(root, "samples=3").out
    assert "0 of them" not in _doctor(root, "samples=0").out
    _spoil("cat/cat_3.jpg", picture(0)[:-9])(root)
    done = _doctor(root, "samples=0")
    assert "1 of them decoded" in done.out
    assert "1 of 12 images damaged: cat/cat_3.jpg" in done.out
    # Damage in the midst of a file takes a look at all of it.
    middle = bytearray(picture(0))
    middle[20:-20] = bytes(len(middle) - 40)
    _spoil("cat/cat_3.jpg", bytes(middle))(root)
    assert _doctor(root, "samples=0").code == 0
    assert _doctor(root, "check=all").code == 1


def test_several_faults_are_all_told(root):
    _remove(IMAGE)(root)
    _spoil("bee/bee_0.jpg", b"")(root)
    _spoil("cat/cat_0.jpg", b"x")(root)
    out = _doctor(root).out
    assert out.count("  fault: ") == 3
    assert out.count("  mend: ") == 1
    assert out.rstrip().endswith("mend=true")


def test_a_split_that_was_cut_down_is_noted_and_no_fault(root):
    lists = {part: entries[:2] for part, entries in split_lists().items()}
    lists["train"] = split_lists()["train"][::2]
    lists["test"] = split_lists()["test"]
    (root / "small" / SPLIT_FILE).write_text(json.dumps(lists))
    done = _doctor(root)
    assert done.code == 0
    assert "note: the split file is not the published one: 3 of 6 train images" in done.out


def test_what_is_absent_is_a_fault_only_where_it_is_asked_for(root):
    gone = archive("https://example.org/b.zip")
    write_card(root.parent / "cards", gone, name="other", folder="other")
    done = _doctor(root)
    assert done.code == 0
    command = f"python -m so_clip.prepare dataset=other data_root={root}"
    assert f"other: absent    {command}\n" in done.out
    assert _doctor(root, "dataset=other").code == 1
    assert _doctor(root, "dataset=small,other").code == 1
    assert _doctor(root, "dataset=small").code == 0
    (root.parent / "empty").mkdir()
    done = call(f"data_root={root.parent / 'empty'}", main=main)
    assert done.code == 1
    assert "datasets is there" in done.err


def test_lists_without_a_split_file_are_held_to_the_published_numbers(root):
    folder = root / "planes"
    for part in ("train", "val", "test"):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{part}.jpg").write_bytes(picture(1))
        (folder / f"images_variant_{part}.txt").write_text(f"{part} 707\n")
    (folder / "variants.txt").write_text("707\n")
    sizes = {"classes": 1, "train": 1, "val": 1, "test": 2}
    changes = {"layout": "fgvc_aircraft", "split_file": None, "image_dir": "images"}
    more = {"name": "planes", "folder": "planes", "sizes": sizes, "class_names": ["707"]}
    write_card(root.parent / "cards", archive("https://example.org/p.tgz"), **changes, **more)
    done = _doctor(root, "dataset=planes")
    assert done.code == 1
    assert "1 of 2 test images are there" in done.out


def test_a_place_of_another_code_base_is_noted(root):
    split = split_source("https://example.org/split_small.json")
    write_card(root.parent / "cards", split, folder="coop", other_folders=["tv", "small"])
    done = _doctor(root)
    assert done.code == 0
    assert f"used in place, where another code base keeps it: {root / 'small'}" in done.out


def test_as_json(root):
    _remove(IMAGE)(root)
    done = _doctor(root, "--json")
    (found,) = json.loads(done.out)
    assert (found["name"], found["state"], found["images"]) == ("small", "faulty", 12)
    assert found["faults"] == ["1 of 12 images missing: ant/ant_0.jpg"]
    assert found["remedy"].startswith("python -m so_clip.prepare dataset=small")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("data_root=/no/such", "data_root=/no/such: there is no such folder"),
        ("data_root=/tmp check=some", "check=some: must be sampled or all"),
        ("data_root=/tmp samples=-1", "samples=-1"),
        ("data_root=/tmp samples=few", "samples=few: must be a whole number"),
        ("data_root=/tmp dataset=eurosta", "'eurosat'"),
        ("data_root=/tmp --jason", "--jason: there is no such flag. Did you mean '--json'?"),
        ("data_root=/tmp data_root=/tmp", "data_root is given twice"),
        ("data_root=/tmp chck=all", "chck=all: there is no such option. Did you mean 'check'?"),
    ],
)
def test_bad_input_is_named(line, said):
    done = call(*line.split(), main=main)
    assert done.code == 2
    assert said in done.err


def test_help_and_a_process_of_its_own(tmp_path):
    for option in DEFAULTS:
        assert f"\n  {option} " in USAGE
    done = spawn("--help", module="so_clip.doctor")
    assert (done.code, done.out) == (0, USAGE + "\n")
    done = spawn(f"data_root={tmp_path}", "dataset=digits", module="so_clip.doctor")
    assert done.code == 0
    assert done.out.startswith("digits: whole, 1797 images")


def test_the_real_images_at_hand_are_whole(shared):
    done = call(f"data_root={shared / 'data'}", "dataset=eurosat", "check=all", main=main)
    assert done.code == 0
    assert done.out.startswith("eurosat: whole, 2494 images, 2494 of them decoded")
