"""Sources and targets of a meta-training: opened, complete, and without shared images."""

import json
import shutil
from pathlib import Path

import pytest

from so_clip.clip.prompts import templated
from so_clip.errors import MAX_MESSAGE, InputError
from so_clip.meta.sources import check_disjoint, open_datasets
from tests.helpers.made_datasets import write_class_folders, write_dtd, write_eurosat, write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with EuroSAT and DTD."""
    write_eurosat(tmp_path)
    write_dtd(tmp_path)
    return tmp_path


def opened(root: Path, sources, targets=(), **options):
    return open_datasets(sources, targets, data_root=root, cards_dir=None, **options)


def birds(folder: Path) -> str:
    """Write a user's own images; return the dataset's name for the program."""
    write_class_folders(folder, ("jay", "owl", "tit"), images=5)
    return f"folder:{folder}"


def test_datasets_with_cards_and_user_folders_are_opened(root: Path, tmp_path: Path):
    sources, targets = opened(root, ["eurosat", birds(tmp_path / "birds")], ["dtd", "digits"])
    assert [source.name for source in sources] == ["eurosat", "birds"]
    assert [target.name for target in targets] == ["dtd", "digits"]
    for source in (*sources, *targets):
        image = source.images.read(source.splits.train[0].path)
        assert image.mode == "RGB"
    names = sources[0].splits.class_names
    assert sources[0].prompts("plain") == templated(names, ["a photo of a {}."])
    assert sources[1].prompts("a {}!").texts == ["a jay!", "a owl!", "a tit!"]
    with pytest.raises(InputError, match=r"^birds: template=specific: "):
        sources[1].prompts("specific")


def test_every_dataset_that_cannot_be_used_is_named(root: Path, tmp_path: Path):
    (root / "eurosat" / "2750" / "ant" / "train_3.png").unlink()
    (root / "dtd" / "images" / "grid" / "test_0.png").unlink()
    sources = ["eurosat", "dtd", "imagenet_v2", "food101", "eurosatt", "folder:/no/such"]
    with pytest.raises(InputError) as caught:
        opened(root, sources, ["dtd"])
    lines = str(caught.value).split("\n")
    expected = [  # no source task has dtd's test images
        ("sources=eurosat: ", "1 of 30 images of EuroSAT (RGB) are missing, first ant/train_3.png"),
        ("sources=imagenet_v2: ", "has test images only, and tasks need training images. Leave "),
        ("sources=food101: ", "the split file of dataset=food101 was not found"),
        ("sources=eurosatt: ", "Did you mean 'eurosat'?"),
        ("sources=folder:/no/such: ", "/no/such: "),
        ("targets=dtd: ", "1 of 27 images of Describable Textures Dataset are missing, first grid"),
    ]
    assert lines[0] == "6 datasets cannot be used:"
    for line, (start, reason) in zip(lines[1:], expected, strict=True):
        assert line.startswith(start)
        assert reason in line
    with pytest.raises(InputError, match=r"^targets=dtd: .*images of .* are missing"):
        opened(root, ["dtd"], ["dtd"])


def test_many_long_reasons_stay_within_one_message(tmp_path: Path):
    names = [f"folder:{tmp_path}/{'long_name_' * 8}{index}" for index in range(12)]
    with pytest.raises(InputError) as caught:
        opened(tmp_path, names)
    assert len(str(caught.value)) <= MAX_MESSAGE
    assert all(f"\nsources={name}: " in str(caught.value) for name in names)


def test_a_source_among_the_targets_is_refused_unless_allowed(root: Path):
    message = (
        r"^sources and targets: dtd is in both, such as dotted/test_0\.png\. The test of a target "
        r"would know its images: leave it out of sources or targets, or add allow_overlap=true\.$"
    )
    with pytest.raises(InputError, match=message):
        opened(root, ["eurosat", "dtd"], ["dtd"])
    sources, targets = opened(root, ["eurosat", "dtd"], ["dtd"], allow_overlap=True)
    assert targets[0].name == sources[1].name == "dtd"


def test_one_dataset_under_two_names_is_found(root: Path, tmp_path: Path):
    inside = f"folder:{root}/eurosat/2750"
    link = tmp_path / "link"
    link.symlink_to(root / "eurosat" / "2750")
    copy = tmp_path / "copy"
    shutil.copytree(root / "eurosat" / "2750", copy)
    for other in (inside, f"folder:{link}", f"folder:{copy}"):
        with pytest.raises(
            InputError, match=r"targets: eurosat and \S+ share images, such as ant/"
        ):
            opened(root, ["eurosat"], [other])
        with pytest.raises(InputError, match=r"^sources: eurosat and \S+ share images.* Leave one"):
            opened(root, ["eurosat", other], allow_overlap=True)


def test_a_dataset_inside_the_folder_of_another_is_found(root: Path, tmp_path: Path):
    files = sorted((root / "eurosat" / "2750").glob("*/*.png"))
    lines = [f"2750/{file.parent.name}/{file.name},{file.parent.name}" for file in files]
    (root / "eurosat" / "list.csv").write_text("\n".join(["path,label", *lines]))
    link = tmp_path / "link"
    link.symlink_to(root / "eurosat")
    for pair in (("eurosat", f"csv:{link}"), (f"csv:{link}", "eurosat")):
        with pytest.raises(InputError, match=r"share images, such as 2750/ant/test_0\.png"):
            opened(root, pair[:1], pair[1:])


def test_the_same_paths_with_other_images_are_another_dataset(root: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(root / "eurosat" / "2750", other)
    for number, file in enumerate(sorted(other.glob("*/*.png"))):
        write_image(file, 5000 + number)
    sources, targets = opened(root, ["eurosat"], [f"folder:{other}"])
    check_disjoint(sources, targets, allow_overlap=False)


def test_parts_of_one_folder_without_a_shared_image_are_two_datasets(root: Path, tmp_path: Path):
    cards = tmp_path / "cards"
    cards.mkdir()
    split = json.loads((root / "eurosat" / "split_zhou_EuroSAT.json").read_text())
    for name, animals in (("small", ("ant", "bee")), ("large", ("cat", "dog"))):
        part = {
            key: [[path, animals.index(c), c] for path, _, c in rows if c in animals]
            for key, rows in split.items()
        }
        (root / "eurosat" / f"{name}.json").write_text(json.dumps(part))
        sizes = {"classes": 2, **{key: len(rows) for key, rows in part.items()}}
        (cards / f"{name}.yaml").write_text(
            f"""{{name: {name}, title: {name}, layout: split_file, folder: eurosat,
            image_dir: "2750", split_file: {name}.json, sizes: {json.dumps(sizes)},
            templates: {{plain: "a {{}}.", specific: "the {{}}."}}, licence: CC0, homepage: none,
            citation: none, class_names: {json.dumps(animals)}, sources: []}}"""
        )
    sources, targets = open_datasets(["small"], ["large"], data_root=root, cards_dir=cards)
    assert sources[0].card.name == "small"
    assert targets[0].splits.class_names == ["cat", "dog"]
    with pytest.raises(InputError, match="small and eurosat share images, such as ant/"):
        open_datasets(["small"], ["eurosat"], data_root=root, cards_dir=cards)


def test_datasets_with_one_name_are_refused(root: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"^sources=dtd: the name is there twice\. Give it once"):
        opened(root, ["dtd", "dtd"])
    both = [birds(tmp_path / "a" / "birds"), birds(tmp_path / "b" / "birds")]
    with pytest.raises(InputError, match=r"^sources=birds: 2 folders have this name\. Rename"):
        opened(root, both)
    with pytest.raises(InputError, match=r"birds and targets=\S+birds are both named birds\. Ren"):
        opened(root, both[:1], both[1:], allow_overlap=True)
