"""`python -m so_clip doctor`: what it prints of whole, absent and unusual datasets."""

import json

import pytest
from PIL import Image

from so_clip.cli.doctor import DoctorOptions
from tests.helpers.archives import (
    SPLIT_FILE,
    archive,
    doctor,
    picture,
    served_dataset,
    split_lists,
    split_source,
    write_card,
)
from tests.helpers.command import call
from tests.helpers.made_datasets import write_class_folders


@pytest.fixture
def root(tmp_path):
    with served_dataset(tmp_path / "data") as root:
        yield root


def test_a_whole_dataset_ends_with_a_first_run(root):
    done = doctor(root)
    assert (done.code, done.err) == (0, "")
    places = f"data_root={root} cards_dir={root.parent / 'cards'}"
    run = f"python -m so_clip dataset=small {places} backbone=vit_b16"
    assert done.out == (
        f"small: whole, 12 images, 12 of them checked\n1 dataset is whole. Next: {run}\n"
    )


def test_a_shorter_split_file_is_a_note_and_no_fault(root):
    lists = {part: entries[:2] for part, entries in split_lists().items()}
    lists["train"] = split_lists()["train"][::2]
    lists["test"] = split_lists()["test"]
    (root / "small" / SPLIT_FILE).write_text(json.dumps(lists))
    done = doctor(root)
    assert done.code == 0
    assert (
        "note: the split file is your own, not the published one: 3 of 6 train images" in done.out
    )


def test_an_absent_dataset_is_a_fault_only_if_it_is_named(root):
    gone = archive("https://example.org/b.zip")
    write_card(root.parent / "cards", gone, name="other", folder="other")
    done = doctor(root)
    assert done.code == 0
    cards = root.parent / "cards"
    command = f"python -m so_clip prepare dataset=NAME data_root={root} cards_dir={cards}"
    assert done.out.splitlines()[1] == f"absent: other; each is fetched by: {command}"
    assert doctor(root, "dataset=other").code == 1
    assert doctor(root, "dataset=small,other").code == 1
    assert doctor(root, "dataset=small").code == 0
    (root.parent / "empty").mkdir()
    done = call("doctor", f"data_root={root.parent / 'empty'}")
    assert done.code == 1
    assert "none of the datasets is there. Next: python -m so_clip prepare dataset=" in done.err


def test_lists_without_a_split_file_must_have_the_published_sizes(root):
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
    done = doctor(root, "dataset=planes")
    assert done.code == 1
    assert "1 of 2 test images are there" in done.out


def test_a_folder_of_another_code_base_is_noted(root):
    split = split_source("https://example.org/split_small.json")
    write_card(root.parent / "cards", split, folder="coop", other_folders=["tv", "small"])
    done = doctor(root)
    assert done.code == 0
    assert f"used in place, where another code base keeps it: {root / 'small'}" in done.out


def test_links_of_folders_are_noted_as_those_of_files(root):
    ant = root / "small" / "pictures" / "ant"
    ant.rename(root.parent / "elsewhere")
    ant.symlink_to(root.parent / "elsewhere")
    done = doctor(root)
    assert done.code == 0
    assert "images links that lead out of" in done.out


def test_json_has_all_facts(root):
    (root / "small" / "pictures" / "ant" / "ant_0.jpg").unlink()
    done = doctor(root, "--json")
    (found,) = json.loads(done.out)
    assert (found["name"], found["state"], found["images"]) == ("small", "faulty", 12)
    assert found["faults"] == ["1 of 12 images missing: ant/ant_0.jpg"]
    assert found["bad_images"] == {"ant/ant_0.jpg": "missing"}
    assert found["remedy"].startswith("python -m so_clip prepare dataset=small")


def test_json_lists_every_bad_image_and_formats_that_are_not_read_are_not_damaged(tmp_path):
    write_class_folders(tmp_path, ("ant", "bee"), images=6)
    with Image.open(tmp_path / "ant" / "0.png") as image:
        for index in range(5):
            image.save(tmp_path / "ant" / f"{index}.png", format="JPEG2000")
    for index in range(4):
        (tmp_path / "bee" / f"{index}.png").write_bytes(b"<html>")
    words = "dataset=folder", f"data_root={tmp_path}", "check=all"
    (found,) = json.loads(call("doctor", *words, "--json").out)
    assert sorted(found["bad_images"]) == [
        *(f"ant/{index}.png" for index in range(5)),
        *(f"bee/{index}.png" for index in range(4)),
    ]
    assert "JPEG 2000 image, a format that is not read" in found["bad_images"]["ant/4.png"]
    damaged, unread = found["faults"]
    assert damaged.startswith("4 of 12 images damaged: bee/")
    assert unread.startswith("5 of 12 images in formats that are not read: ant/")
    assert "Convert it to PNG or JPEG" in call("doctor", *words).out


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
    done = call("doctor", *line.split())
    assert done.code == 2
    assert said in done.err


def test_help_names_every_option_and_package_datasets_are_whole(tmp_path):
    help_text = call("doctor", "--help").out
    for option in DoctorOptions.model_fields:
        assert f" {option}=" in help_text
    done = call("doctor", f"data_root={tmp_path}", "dataset=digits")
    assert done.code == 0
    assert done.out.startswith("digits: whole, 1797 images")


def test_the_available_real_images_are_whole(shared):
    done = call("doctor", f"data_root={shared / 'data'}", "dataset=eurosat", "check=all")
    assert done.code == 0
    assert done.out.startswith("eurosat: whole, 2494 images, 2494 of them checked")
