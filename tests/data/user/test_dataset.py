"""A user's own images as a dataset: card, lists, their hash, and bad folders."""

import json
import unicodedata
from pathlib import Path

import pytest

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.data.find import find_card, find_dataset
from so_clip.data.run_data import gather
from so_clip.data.user.dataset import UserData, check_name, read_user_data, user_name
from so_clip.errors import InputError
from so_clip.fingerprint import contents_sha256, settings_sha256
from so_clip.prepare.examine import examine_user_images
from tests.helpers.made_datasets import ANIMALS, write_class_folders, write_image


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return root


def pets(root: Path, images: int = 10) -> Path:
    return touch(root, *(f"{name}/{n}.jpg" for name in ANIMALS for n in range(images)))


def settings(*overrides: object) -> Settings:
    return from_config(compose([str(override) for override in overrides]))


def sha256(root: Path, **options: object) -> str | None:
    return read_user_data(UserData("folder", root, **options), "mine")[1].sha256  # type: ignore[arg-type]


def test_a_folder_becomes_a_card_and_lists(tmp_path: Path):
    card, splits, _ = read_user_data(UserData("folder", pets(tmp_path)), "mine")
    assert (card.name, card.title, card.class_names) == ("mine", "mine", ANIMALS)
    assert card.sizes == {"classes": 5, "train": 25, "val": 10, "test": 15}
    assert splits.class_names == list(ANIMALS)
    assert splits.dataset == "mine"
    assert splits.train == sorted(splits.train, key=lambda example: (example.label, example.path))
    assert len({*splits.train, *splits.val, *splits.test}) == 50


def test_the_hash_depends_on_lists_and_file_names(tmp_path: Path):
    one, other = pets(tmp_path / "a"), pets(tmp_path / "b")
    known = sha256(one)
    assert sha256(other) == known
    assert sha256(one, split_seed=2) != known
    assert sha256(one, split_shares=(0.6, 0.1, 0.3)) != known
    touch(other, "ant/readme.txt")
    assert sha256(other) == known
    touch(other, "ant/new.jpg")
    assert sha256(other) != known


def test_a_copy_in_another_unicode_form_has_the_same_split(tmp_path: Path):
    paths = [f"{name}/é{n}.jpg" for name in ("café", "bar") for n in range(4)]
    hashes = {
        sha256(touch(tmp_path / form, *(unicodedata.normalize(form, path) for path in paths)))
        for form in ("NFC", "NFD")
    }
    assert len(hashes) == 1


def test_folders_and_a_csv_file_give_the_same_split(tmp_path: Path):
    _, splits, _ = read_user_data(UserData("folder", pets(tmp_path)), "mine")
    rows = [
        f"{example.path},{ANIMALS[example.label]},{split}"
        for split in ("test", "train", "val")
        for example in getattr(splits, split)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    assert read_user_data(UserData("csv", tmp_path), "mine")[1].sha256 == splits.sha256


def test_class_names_of_a_csv_file_with_numbers_come_from_a_file(tmp_path: Path):
    rows = [f"{label}/{n}.jpg,{label}" for label in (10, 9, 2) for n in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    card, splits, listing = read_user_data(UserData("csv", tmp_path), "mine")
    assert card.class_names == ("2", "9", "10")
    assert "the classes are numbers, and prompts say 'a photo of a 2.'" in listing.notes[0]
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"2": "ant", "9": "bee", "10": "cat"}))
    named = read_user_data(UserData("csv", tmp_path, class_names=names), "mine")
    assert named[0].class_names == ("ant", "bee", "cat")
    assert named[1].sha256 == splits.sha256  # names are hashed with the prompts
    assert names in named[1].read_from


def test_labels_that_are_numbers_follow_their_value(tmp_path: Path):
    rows = [f"{label}/{n}.jpg,{label}.0" for label in range(12) for n in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    card, _, listing = read_user_data(UserData("csv", tmp_path), "mine")
    assert card.class_folders == tuple(f"{label}.0" for label in range(12))
    assert "the classes are numbers, and prompts say 'a photo of a 0.0.'" in listing.notes[0]
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"number {label}" for label in range(12)))
    user = UserData("csv", tmp_path, class_names=names)
    card, splits, listing = read_user_data(user, "mine")
    assert listing.pairs == [(f"{label}.0", f"number {label}") for label in range(12)]
    assert {path.split("/")[0]: card.class_names[label] for path, label in splits.examples} == {
        str(label): f"number {label}" for label in range(12)
    }
    (note,) = find_dataset("mine", None, user=user).notes[-1:]
    shown = "0.0 = number 0, 1.0 = number 1, 2.0 = number 2, ..., 9.0 = number 9, "
    assert note.startswith(f"{names} names the classes by position: {shown}")
    every = ", ".join(f"{label}.0 = number {label}" for label in range(12))
    notes = examine_user_images("mine", user, 0).notes
    assert f"{names} names the classes by position: {every}" in notes


@pytest.mark.parametrize(("listed", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_list_finds_files_in_the_other_unicode_form(listed: str, disk: str, tmp_path: Path):
    paths = [f"{name}/é{n}.png" for name in ("café", "bär") for n in range(4)]
    for number, path in enumerate(paths):
        write_image(tmp_path / unicodedata.normalize(disk, path), number)
    rows = [f"{path},{path.split('/')[0]}" for path in paths]
    text = unicodedata.normalize(listed, "\n".join(["path,label", *rows]))
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    user = UserData("csv", tmp_path)
    found = examine_user_images("mine", user, None)
    assert (found.state, found.decoded) == ("whole", 8), found.faults
    data = gather(settings("dataset=csv", f"data_root={tmp_path}", "shots=1").data)
    for example in data.splits.examples:
        data.images.read(example.path).close()


REFUSED = {
    "one class": (("ant/a.jpg",), "holds one class, 'ant'. A classifier needs two or more"),
    "too deep": (("in/ant/a.jpg", "in/bee/b.jpg"), "holds one class, 'in', with the folders ant,"),
    "empty": (("ant/a.jpg", "bee/b.txt"), "the class 'bee' has no image. Add images, or rem"),
    "no test": (("ant/a.jpg", "bee/b.jpg"), "each of 2 classes has one image, so a drawn"),
    "one number": (
        ("train/1/a.jpg", "train/2/b.jpg", "test/01/a.jpg", "test/2/b.jpg"),
        "the classes '01' and '1' are the same numb",
    ),
    "no test split": (
        ("train/a/a.jpg", "train/b/b.jpg", "test/a/x.txt"),
        "no image is in test. Add images.",
    ),
    "no train": (("train/a/x.txt", "test/a/a.jpg", "test/b/b.jpg"), "no image is in train"),
}


@pytest.mark.parametrize(("paths", "message"), REFUSED.values(), ids=REFUSED)
def test_folders_that_cannot_be_a_dataset_are_refused(
    paths: tuple[str, ...], message: str, tmp_path: Path
):
    with pytest.raises(InputError) as caught:
        read_user_data(UserData("folder", touch(tmp_path, *paths)), "mine")
    assert message in str(caught.value)


def test_a_missing_folder_and_an_empty_list_are_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none: there is no such folder\. Give the folder of"):
        read_user_data(UserData("folder", tmp_path / "none"), "mine")
    (tmp_path / "list.csv").write_text("path,label\n")
    with pytest.raises(InputError, match=r"list\.csv: holds no images"):
        read_user_data(UserData("csv", tmp_path), "mine")


def test_the_draw_names_a_class_without_training_images(tmp_path: Path):
    write_class_folders(tmp_path / "train", ("ant",))
    write_class_folders(tmp_path / "test", ("ant", "bee"))
    chosen = settings("dataset=folder", f"data_root={tmp_path}")
    with pytest.raises(InputError, match=r"class 1 \('bee'\) has no train image"):
        gather(chosen.data)
    assert gather(settings("dataset=folder", f"data_root={tmp_path}", "method=zero_shot").data)


def test_names_come_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert user_name("folder", Path("/x/land use (2024)")) == "land-use-2024"
    assert user_name("folder", Path("/x/écoles/")) == "écoles"
    assert user_name("csv", Path("/x/eurosat")) == "eurosat-csv"
    assert user_name("folder", Path("/")) == "folder"
    assert len(user_name("folder", Path("/é" + "é" * 100)).encode()) == 64
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    assert user_name("folder", Path("in/..")) == user_name("folder", Path()) == tmp_path.name
    for name in ("a/b", "", "a b", "é" * 33, "eurosat"):
        with pytest.raises(InputError, match=f"dataset.name={name}: "):
            check_name(name)


def test_options_reach_the_settings(tmp_path: Path):
    chosen = settings(
        "dataset=folder",
        f"data_root={tmp_path}",
        "dataset.name=mine",
        "dataset.split=drawn",
        "dataset.split_shares=[0.6,0,0.4]",
        "dataset.split_seed=3",
        "dataset.follow_links=true",
        "dataset.folder='~/x'",
        "dataset.class_names=names.txt",
        "dataset.train_folder=[2019,2020]",
        "dataset.test_folder=a/b",
    )
    where = Path.home() / "x"
    how = ("drawn", (0.6, 0.0, 0.4), 3, Path("names.txt"), True, ("2019", "2020"), (), ("a/b",))
    assert chosen.data.dataset == "mine"
    assert chosen.data.user_data == UserData("folder", where, None, *how)
    assert UserData.from_json(chosen.record()["user_data"]) == chosen.data.user_data
    columns = ("dataset.path_column=a", "dataset.label_column=7", "dataset.split_column='b c'")
    ways = ("dataset.split=drawn", "dataset.follow_links=true")
    chosen = settings("dataset=csv", "dataset.csv_file=a.csv", *columns, *ways)
    assert chosen.data.user_data == UserData(
        "csv",
        Path("data"),
        Path("a.csv"),
        "drawn",
        follow_links=True,
        path_column="a",
        label_column="7",
        split_column="b c",
    )
    assert UserData.from_json(chosen.record()["user_data"]) == chosen.data.user_data
    assert UserData.from_json(settings().record()["user_data"]) is None


BAD_OPTIONS = {
    "dataset.split_shares=[0.5,0.5]": "must be three numbers",
    "dataset.split_shares=[0.5,0.2,0.2]": "must add up to 1",
    "dataset.split_shares=[0.5,0.5,0]": "with something for train and for test",
    "dataset.split_shares=[1.5,-1,0.5]": "must add up to 1",
    "dataset.split_shares=3": "must be three numbers",
    "dataset.split_seed=-1": "must be 0 or more",
    "dataset.split=none": "must be auto or folders or drawn",
    "dataset.follow_links=3": "must be true or false",
    "dataset.train_folder={a:b}": "dataset.train_folder={'a': 'b'}: must be a path",
    "dataset.train_folder=true": "dataset.train_folder=True: must be a path",
    "dataset.val_folder=['']": "dataset.val_folder is empty",
    "dataset.name=eurosat": "is the name of a published dataset",
    "dataset.name=[a]": "must consist of letters",
    "dataset.layout=csv": "dataset.csv_file is missing",
    "dataset.csv_file=a.csv": "the chosen dataset has no such option|there is no such option",
    "~dataset.split": "dataset.split is missing",
    "+dataset.shares=1": "dataset.shares: there is no such option",
}


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize(("option", "message"), BAD_OPTIONS.items(), ids=BAD_OPTIONS)
def test_bad_options_are_refused(option: str, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        settings("dataset=folder", f"data_root={tmp_path}", option)


@pytest.mark.parametrize("option", ["dataset.path_column=''", "dataset.label_column=[a]"])
def test_names_of_columns_are_texts(option: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"_column=.*must be the name of a column"):
        settings("dataset=csv", f"data_root={tmp_path}", option)


def test_the_options_of_a_list_count_by_its_content(tmp_path: Path):
    rows = [f"{name}/{n}.png,{name},{n}" for name in ANIMALS for n in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,number", *rows]))
    write_class_folders(tmp_path, ANIMALS, images=4)
    where = ("dataset=csv", f"data_root={tmp_path}", "shots=1")
    plain, same, other = (
        settings(*where, *more)
        for more in ((), ("dataset.label_column=LABEL",), ("dataset.label_column=number",))
    )
    assert len({settings_sha256(chosen) for chosen in (plain, same, other)}) == 1
    first, second, third = (
        contents_sha256(gather(chosen.data), "plain") for chosen in (plain, same, other)
    )
    assert first == second != third


@pytest.mark.slow
def test_the_place_of_the_lists_does_not_make_another_run(tmp_path: Path):
    one = settings("dataset=folder", f"data_root={tmp_path}", "dataset.name=mine")
    other = settings("dataset=csv", f"dataset.folder={tmp_path}", "dataset.name=mine")
    assert settings_sha256(one) == settings_sha256(other)


def test_epochs_depend_on_the_number_of_classes(tmp_path: Path):
    where = ("dataset=folder", f"data_root={pets(tmp_path)}", "method=tip_adapter_f", "shots=4")
    assert settings(*where).schedule.max_steps == 20  # 20 epochs of 5 classes in one batch
    with pytest.raises(InputError, match=r"nowhere: there is no such folder"):
        settings(*where, f"data_root={tmp_path / 'nowhere'}")


@pytest.mark.parametrize("option", ['transfer=["folder:~nobody9/x"]', 'template="~nobody9/t.json"'])
def test_an_unknown_home_folder_is_refused(option: str, tmp_path: Path):
    where = ("dataset=folder", f"data_root={pets(tmp_path)}")
    with pytest.raises(InputError, match=r"=~nobody9/.*: there is no such home"):
        gather(settings(*where, option).data)


def test_user_images_are_test_sets_by_layout_and_folder(tmp_path: Path):
    pets(tmp_path / "zoo")
    assert find_dataset(f"folder:{tmp_path / 'zoo'}", None).card.name == "zoo"
    assert find_card("folder", tmp_path / "zoo").class_names == ANIMALS
    with pytest.raises(InputError, match="folder: needs a folder, such as folder:FOLDER"):
        find_dataset("folder", None)
    clash = ["dataset=folder", f"data_root={tmp_path / 'zoo'}", f"transfer=[folder:{tmp_path}/zoo]"]
    write_class_folders(tmp_path / "zoo", ANIMALS, images=10)
    with pytest.raises(InputError, match="transfer: 2 test sets have the name zoo"):
        gather(settings(*clash).data)


def test_a_test_set_with_the_name_of_the_new_classes_is_refused(tmp_path: Path):
    write_class_folders(tmp_path / "new_classes", ANIMALS, images=10)
    clash = ["protocol=base_to_new", f"transfer=[folder:{tmp_path}/new_classes]"]
    with pytest.raises(InputError, match="transfer: 2 test sets have the name new_classes"):
        gather(settings(*clash).data)


def test_skipped_files_of_a_test_set_are_noted(tmp_path: Path, capsys):
    write_class_folders(tmp_path / "zoo", ANIMALS, images=10)
    (tmp_path / "zoo" / "ant" / "why.txt").touch()
    gather(settings(f"transfer=[folder:{tmp_path}/zoo]").data)
    assert "so_clip: zoo: files without the suffix of an image" in capsys.readouterr().err
