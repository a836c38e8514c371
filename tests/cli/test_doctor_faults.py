"""`python -m so_clip doctor` finds planted faults, and each can be repaired."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.archives import (
    SPLIT_FILE,
    doctor,
    images,
    laid_out,
    paths,
    picture,
    served_dataset,
    split_bytes,
    split_lists,
)
from tests.helpers.command import call, environment

IMAGE = "ant/ant_0.jpg"


@pytest.fixture
def root(tmp_path):
    with served_dataset(tmp_path / "data") as root:
        yield root


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


def _other_ending(root):
    file = root / "small" / "pictures" / IMAGE
    file.rename(file.with_suffix(".JPG"))


def _pipe(root):
    file = root / "small" / "pictures" / IMAGE
    file.unlink()
    os.mkfifo(file)


def _lists(change):
    def changed(data):
        lists = json.loads(data)
        change(lists)
        return json.dumps(lists).encode()

    return _split(changed)


def _two_classes(lists):
    for part, entries in lists.items():
        lists[part] = [entry for entry in entries if entry[1] < 2]


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
    "other ending": (_other_ending, f"{IMAGE[:-4]}.JPG is there, but the lists name ant_0.jpg"),
    "a pipe": (_pipe, "1 of 12 images not plain files: ant/ant_0.jpg"),
    "a label too far": (
        _lists(lambda lists: lists["train"].append(["x.jpg", 99, "gnu"])),
        "label 3 has no images, though labels reach 99",
    ),
    "a label that is none": (
        _lists(lambda lists: lists["val"][0].__setitem__(1, -1)),
        "val[0] has the label -1, which is not a whole number from 0",
    ),
    "two of three classes": (_lists(_two_classes), "not the published one: 2 of 3 classes"),
}


@pytest.mark.parametrize(("plant", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_its_command_repairs_it(plant, fault, root):
    plant(root)
    before = sorted(root.rglob("*"))
    done = doctor(root)
    assert done.code == 1
    assert done.out.startswith("small: faulty")
    assert fault in done.out
    assert sorted(root.rglob("*")) == before
    (remedy,) = [line.strip() for line in done.out.splitlines() if line.startswith("  repair: ")]
    command = shlex.split(remedy.removeprefix("repair: "))
    assert command[:4] == ["python", "-m", "so_clip", "prepare"]
    next_command = remedy.removeprefix("repair: ")
    assert done.messages == [f"so_clip: 1 of 1 datasets is not whole. Next: {next_command}"]
    repaired = call(*command[3:])
    assert repaired.code == 0, repaired.err
    assert {path: laid_out(root)[path] for path in paths()} == images()
    assert doctor(root, "check=all").code == 0


def test_a_sample_and_suspicious_images_are_decoded(root):
    assert "3 of them checked" in doctor(root, "samples=3").out
    assert "0 of them" not in doctor(root, "samples=0").out
    _spoil("cat/cat_3.jpg", picture(0)[:-9])(root)
    done = doctor(root, "samples=0")
    assert "1 of them checked" in done.out
    assert "1 of 12 images damaged: cat/cat_3.jpg" in done.out
    # Damage in the middle of a file is found only by decoding it.
    middle = bytearray(picture(0))
    middle[20:-20] = bytes(len(middle) - 40)
    _spoil("cat/cat_3.jpg", bytes(middle))(root)
    assert doctor(root, "samples=0").code == 0
    assert doctor(root, "check=all").code == 1


def test_several_faults_are_all_printed(root):
    _remove(IMAGE)(root)
    _spoil("bee/bee_0.jpg", b"")(root)
    _spoil("cat/cat_0.jpg", b"x")(root)
    out = doctor(root).out
    assert out.count("  fault: ") == 3
    assert out.count("  repair: ") == 1
    assert out.rstrip().endswith("repair=true")


def test_twelve_faults_of_one_dataset_are_all_named(root):
    """Faults of the split file do not hide faults of images."""
    pictures = root / "small" / "pictures"
    (pictures / "ant/ant_0.jpg").unlink()
    (pictures / "ant/ant_1.jpg").write_bytes(picture(1)[:-20])
    (pictures / "ant/ant_2.jpg").write_bytes(b"")
    (pictures / "ant/ant_3.jpg").write_bytes(b"<html>404</html>")
    pipe = pictures / "bee/bee_0.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    (pictures / "bee/bee_1.jpg").unlink()
    (pictures / "bee/bee_1.jpg").symlink_to(root / "gone.jpg")
    (pictures / "bee/bee_2.jpg").rename(pictures / "bee/bee_2.JPG")
    (root / "elsewhere.jpg").write_bytes(picture(3))
    (pictures / "bee/bee_3.jpg").unlink()
    (pictures / "bee/bee_3.jpg").symlink_to(root / "elsewhere.jpg")
    (pictures / "dog").mkdir()
    (pictures / "dog" / "dog_0.jpg").write_bytes(picture(4))
    lists = split_lists()
    lists["test"] += [["../../x.jpg", 0, "ant"], ["cat/cat_0.jpg", 2, "cat"], ["y.jpg", 7, "gnu"]]
    (root / "small" / SPLIT_FILE).write_text(json.dumps(lists))
    done = doctor(root)
    assert done.code == 1
    for line in (
        "fault: 4 of 13 images missing: ant/ant_0.jpg, bee/bee_1.jpg, bee/bee_2.jpg, ...",
        "fault: 1 of 13 images not plain files: bee/bee_0.jpg",
        "fault: 1 of 13 images empty files: ant/ant_2.jpg",
        "fault: 2 of 13 images damaged: ant/ant_1.jpg, ant/ant_3.jpg",
        "test[3] names '../../x.jpg', outside the dataset's image folder",
        "test[4] repeats the image 'cat/cat_0.jpg' of train[4]",
        "label 3 has no images, though labels reach 7",
        "note: " + str(pictures / "bee/bee_2.JPG") + " is there, but the lists name bee_2.jpg",
        f"note: 1 of 13 images links that lead out of {pictures}, and are followed: bee/bee_3.jpg",
        "note: folders of images that no list names, and no run reads: dog",
    ):
        assert line in done.out, line
    assert done.messages[0].endswith("repair=true")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("locked", ["small", "small/pictures", "small/pictures/ant"])
def test_a_folder_without_permission_is_named(locked, root):
    code = """
import os, sys
from so_clip.__main__ import main

main()  # imports everything: the other user may not read Python's files
os.setgroups([])
os.setuid(65534)
sys.exit(main())
"""
    with tempfile.TemporaryDirectory() as folder:  # other users may enter it
        data = Path(folder) / "data"
        shutil.copytree(root.parent / "cards", Path(folder) / "cards")
        shutil.copytree(root, data)
        Path(folder).chmod(0o755)
        (data / locked).chmod(0)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                "doctor",
                f"data_root={data}",
                f"cards_dir={folder}/cards",
            ],
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 1, done.stderr
        assert f"fault: {data / locked} cannot be read" in done.stdout
        assert "missing" not in done.stdout
        assert f"  repair: chmod -R u+rX {data / locked}\n" in done.stdout
        (data / locked).chmod(0o755)


def test_a_data_root_that_is_the_dataset_itself_is_named(root):
    done = call("doctor", f"data_root={root / 'small'}", f"cards_dir={root.parent / 'cards'}")
    assert done.code == 1
    assert f"fault: data_root={root / 'small'} is the folder of " in done.out
    assert f"itself. Give the folder around it: data_root={root}\n" in done.out
    again = f"doctor dataset=small data_root={root} cards_dir={root.parent / 'cards'}"
    assert done.err.rstrip().endswith(f"Next: python -m so_clip {again}")
    assert call(*again.split()).code == 0
    done = call(*f"prepare dataset=small data_root={root / 'small'}".split(), *again.split()[-1:])
    assert done.code == 2
    assert f"itself. Give the folder around it: data_root={root}." in done.err
    assert not (root / "small" / "small").exists()


def test_a_folder_with_capitals_is_named(root):
    (root / "small").rename(root / "Small")
    done = doctor(root)
    assert done.code == 1
    assert f"fault: {root / 'Small'} is there, but the folder must have the name small" in done.out
    move = done.err.rstrip().partition("Next: ")[2]
    assert move == f"mv {root / 'Small'} {root / 'small'}"
    subprocess.run(shlex.split(move), check=True)
    assert doctor(root).code == 0
