"""Tests of the reader of DAGM trees: both layouts, their variants, and all that a download can have wrong."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.errors import UserError
from dagm_jax.types import Ellipse, Manifest

SPLITS = {"Train": (576, 4, (577, 579)), "Test": (1, 3, (2,))}  # first number, images, defective numbers
ELLIPSES = "1\t  60.24\t  37.55\t   0.65\t  69.04\t  87.60\n2\t  41.34\t  35.83\t  -0.37\t 315.40\t 172.29\n"
Edit = Callable[[Path], None]


def picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path, format="PNG")


def label_text(first: int, count: int, defective: tuple[int, ...], eol: str = "\r\n") -> str:
    rows = ["1"]
    for n in range(first, first + count):
        mask = f"{n:04d}_label.PNG" if n in defective else "0\t"
        rows.append(f"{n}\t{int(n in defective)}\t{n:04d}.PNG\t0\t{mask}")
    return eol.join(rows) + eol


def layout_a(root: Path, class_id: int = 1) -> Path:
    """A small layout A as the official archives have it; returns ``root``."""
    for split, (first, count, defective) in SPLITS.items():
        folder = root / f"Class{class_id}" / split
        for n in range(first, first + count):
            picture(folder / f"{n:04d}.PNG")
        for n in defective:
            picture(folder / "Label" / f"{n:04d}_label.PNG", 255)
        (folder / "Label" / "Thumbs.db").write_bytes(b"\xd0\xcf")
        (folder / "Label" / "Labels.txt").write_bytes(label_text(first, count, defective).encode())
    return root


def layout_b(root: Path, class_id: int = 1, ellipses: str = ELLIPSES) -> Path:
    """A small layout B: three good and two defective images; returns ``root``."""
    for n in (1, 2, 10):
        picture(root / f"Class{class_id}" / f"{n}.png")
    for n in (1, 2):
        picture(root / f"Class{class_id}_def" / f"{n}.png")
    (root / f"Class{class_id}_def" / "labels.txt").write_text(ellipses, newline="")
    return root


def essence(manifest: Manifest) -> list[tuple[object, ...]]:
    """The manifest without paths; of a good image it makes no difference whether there is an empty mask."""
    return [
        (r.image_id, r.class_id, r.label, r.half, r.label == 0 or r.mask is None) for r in manifest.samples
    ]


def skips(root: Path, *classes: int) -> dict[str, str]:
    """What was left out -> why; every entry must be one line."""
    found = read_tree(root, classes or (1,)).skipped
    assert all("\n" not in skip.what + skip.reason for skip in found)
    assert len({skip.what for skip in found}) == len(found)
    return {skip.what: skip.reason for skip in found}


def append(path: Path, text: str) -> None:
    with path.open("a", newline="") as file:
        file.write(text)


# --- layout A ---


def test_layout_a_gives_labels_masks_splits_and_order(tmp_path: Path) -> None:
    """Would catch: splits swapped (Test is the LOW half), masks tied to wrong images, file system order."""
    manifest = read_tree(layout_a(tmp_path), (1,))
    assert essence(manifest) == [
        ("Class1/Train/0576", 1, 0, "train", True),
        ("Class1/Train/0577", 1, 1, "train", False),
        ("Class1/Train/0578", 1, 0, "train", True),
        ("Class1/Train/0579", 1, 1, "train", False),
        ("Class1/Test/0001", 1, 0, "test", True),
        ("Class1/Test/0002", 1, 1, "test", False),
        ("Class1/Test/0003", 1, 0, "test", True),
    ]
    assert manifest.samples[1].image == tmp_path / "Class1/Train/0577.PNG"
    assert manifest.samples[1].mask == tmp_path / "Class1/Train/Label/0577_label.PNG"
    assert manifest.skipped == ()
    expected = f"DAGM 2007, layout A, from {tmp_path}: class 1: 7 images (3 defective); 0 skipped"
    assert manifest.description == expected


def image_folder(root: Path) -> None:
    for split in SPLITS:
        folder = root / "Class1" / split
        (folder / "Image").mkdir()
        for path in folder.glob("*.PNG"):
            path.rename(folder / "Image" / path.name)


def lower_case_files(root: Path) -> None:
    for path in sorted(root.rglob("*.PNG")):
        path.rename(path.with_suffix(".png"))


def lower_case_folders(root: Path) -> None:
    for split in SPLITS:
        folder = root / "Class1" / split
        (folder / "Label" / "Labels.txt").rename(folder / "Label" / "labels.TXT")
        (folder / "Label").rename(folder / "label")
        folder.rename(folder.with_name(split.lower()))
    (root / "Class1").rename(root / "CLASS1")


def rewrite(change: Callable[[str], str]) -> Edit:
    def edit(root: Path) -> None:
        for path in root.rglob("Labels.txt"):
            path.write_bytes(change(path.read_bytes().decode()).encode())

    return edit


def litter(root: Path) -> None:
    for folder in ("", "Class1", "Class1/Train", "Class1/Train/Label", "Class1/Test"):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._0576.PNG", "README.txt", "readme.md"):
            (root / folder / name).write_bytes(b"\x00\x05\x16\x07")
    picture(root / "__MACOSX" / "Class1" / "Train" / "0001.PNG")
    picture(root / "Class1" / "__MACOSX" / "0001.PNG")


def masks_for_all(root: Path) -> None:
    for split, (first, count, defective) in SPLITS.items():
        for n in range(first, first + count):
            if n not in defective:
                picture(root / "Class1" / split / "Label" / f"{n:04d}_label.PNG", 0)


def masks_for_all_named(root: Path) -> None:
    masks_for_all(root)
    for split, (first, count, defective) in SPLITS.items():
        text = label_text(first, count, tuple(range(first, first + count)))
        for n in range(first, first + count):
            text = text if n in defective else text.replace(f"{n}\t1\t", f"{n}\t0\t")
        (root / "Class1" / split / "Label" / "Labels.txt").write_bytes(text.encode())


VARIANTS: dict[str, Edit] = {
    "image folder": image_folder,
    "lower-case .png": lower_case_files,
    "folders in other case": lower_case_folders,
    "LF": rewrite(lambda text: text.replace("\r\n", "\n")),
    "CR": rewrite(lambda text: text.replace("\r\n", "\r")),
    "no first line 1": rewrite(lambda text: text.removeprefix("1\r\n")),
    "no trailing tab": rewrite(lambda text: text.replace("\t\r\n", "\r\n")),
    "no end of line at the end": rewrite(lambda text: text.rstrip()),
    "byte order mark, blank lines": rewrite(lambda text: "\ufeff" + text + "\r\n\r\n"),
    "padded by spaces": rewrite(lambda text: text.replace("\t", " \t ")),
    "rows in other order": rewrite(lambda text: "\r\n".join(["1", *reversed(text.split("\r\n")[1:])])),
    "litter": litter,
    "masks for all": masks_for_all,
    "masks for all, named in the rows": masks_for_all_named,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_layout_a_are_one_manifest(tmp_path: Path, variant: str) -> None:
    """Would catch: a redistribution that reads as other images, or a label taken from a mask's existence."""
    official = essence(read_tree(layout_a(tmp_path / "official"), (1,)))
    root = layout_a(tmp_path / "variant")
    VARIANTS[variant](root)
    manifest = read_tree(root, (1,))
    assert essence(manifest) == official
    assert manifest.skipped == ()


@pytest.mark.parametrize("folder", ["DAGM_2007", "Class1"])
def test_places_of_class_folders(tmp_path: Path, folder: str) -> None:
    """Would catch: a root that is the class folder, or one level too high, or doubled, not being read."""
    official = essence(read_tree(layout_a(tmp_path / "official"), (1,)))
    root = tmp_path / "root"
    layout_a(root / folder)
    for place in (root, root / folder, root / folder / "Class1"):
        assert essence(read_tree(place, (1,))) == official


def test_root_given_as_dot_or_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a class folder not recognised because "." or a link to it carries no class name."""
    official = essence(read_tree(layout_a(tmp_path), (1,)))
    (tmp_path / "link").symlink_to(tmp_path / "Class1")
    assert essence(read_tree(tmp_path / "link", (1,))) == official
    monkeypatch.chdir(tmp_path / "Class1")
    assert essence(read_tree(Path("."), (1,))) == official


def test_one_split_alone_and_gaps_are_legal(tmp_path: Path) -> None:
    """Would catch: a reader that insists on whole classes."""
    layout_a(tmp_path)
    train = tmp_path / "Class1" / "Train"
    (tmp_path / "Class1" / "Test").rename(tmp_path / "elsewhere")
    (train / "0578.PNG").unlink()
    rewrite(lambda text: text.replace("578\t0\t0578.PNG\t0\t0\t\r\n", ""))(tmp_path)
    manifest = read_tree(tmp_path, (1,))
    assert [r.image_id[-4:] for r in manifest.samples] == ["0576", "0577", "0579"]
    assert manifest.skipped == ()


def test_splits_in_two_trees_are_one_class(tmp_path: Path) -> None:
    """Would catch: root/train/Class1/Train beside root/test/Class1/Test losing a split."""
    official = essence(read_tree(layout_a(tmp_path / "official"), (1,)))
    root = tmp_path / "root"
    for split in SPLITS:
        (root / split / "Class1").mkdir(parents=True)
        (tmp_path / "official" / "Class1" / split).rename(root / split / "Class1" / split)
    assert essence(read_tree(root, (1,))) == official


def test_classes_are_sorted_numerically_and_only_the_given_ones_are_read(tmp_path: Path) -> None:
    """Would catch: Class10 before Class2, classes repeated, and damage in a class that nobody asked for."""
    for class_id in (2, 10):
        layout_a(tmp_path, class_id)
    picture(tmp_path / "Class3" / "Train" / "0001.PNG")
    manifest = read_tree(tmp_path, (10, 2, 10))
    assert [r.class_id for r in manifest.samples] == [2] * 7 + [10] * 7
    assert "class 2: 7 images (3 defective); class 10: 7 images (3 defective)" in manifest.description


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: records in the order of os.listdir, which differs between machines."""
    layout_a(tmp_path)
    picture(tmp_path / "Class1" / "Train" / "0576.png")
    expected = read_tree(tmp_path, (1,))
    listdir = os.listdir

    def shuffled(path: Path) -> list[str]:
        names = listdir(path)
        random.Random(3).shuffle(names)
        return names

    monkeypatch.setattr(os, "listdir", shuffled)
    assert read_tree(tmp_path, (1,)) == expected


# --- layout B ---


@pytest.mark.parametrize("eol", ["\n", "\r\n"])
def test_layout_b(tmp_path: Path, eol: str) -> None:
    """Would catch: lexicographic order (10 before 2), columns of the ellipse swapped, CRLF in a number."""
    manifest = read_tree(layout_b(tmp_path, ellipses=ELLIPSES.replace("\n", eol)), (1,))
    assert essence(manifest) == [
        ("Class1/1", 1, 0, None, True),
        ("Class1/2", 1, 0, None, True),
        ("Class1/10", 1, 0, None, True),
        ("Class1_def/1", 1, 1, None, False),
        ("Class1_def/2", 1, 1, None, False),
    ]
    assert manifest.samples[4].mask == Ellipse(41.34, 35.83, -0.37, 315.40, 172.29)
    assert manifest.skipped == ()
    assert "layout B" in manifest.description


@pytest.mark.parametrize("folder", ["Class1", "Class1_def"])
def test_one_side_of_layout_b_alone(tmp_path: Path, folder: str) -> None:
    """Would catch: a reader that needs ClassN beside ClassN_def, and a root that is one of them."""
    layout_b(tmp_path / "full")
    (tmp_path / "part").mkdir()
    (tmp_path / "full" / folder).rename(tmp_path / "part" / folder)
    for root in (tmp_path / "part", tmp_path / "part" / folder):
        labels = {r.label for r in read_tree(root, (1,)).samples}
        assert labels == {int(folder.endswith("_def"))}


def test_layout_b_doubled_by_unzip(tmp_path: Path) -> None:
    """Would catch: Class1/Class1 with Class1_def/Class1_def, or both below Class1, not being found."""
    expected = essence(read_tree(layout_b(tmp_path / "a"), (1,)))
    layout_b(tmp_path / "b" / "Class1")
    (tmp_path / "c" / "Class1_def").mkdir(parents=True)
    layout_b(tmp_path / "c" / "Class1")
    inner = tmp_path / "c" / "Class1" / "Class1_def"
    inner.rename(tmp_path / "c" / "Class1_def" / "Class1_def")
    for tree in ("b", "c"):
        assert essence(read_tree(tmp_path / tree, (1,))) == expected


def test_layouts_may_differ_between_classes(tmp_path: Path) -> None:
    """Would catch: the layout chosen once for the whole tree."""
    layout_a(tmp_path, 7)
    layout_b(tmp_path, 1)
    manifest = read_tree(tmp_path, (1, 7))
    assert "layout A and B, from" in manifest.description
    assert "class 1: 5 images (2 defective); class 7: 7 images (3 defective)" in manifest.description


# --- what is left out ---


def test_rows_of_layout_a_that_are_left_out(tmp_path: Path) -> None:
    """Would catch: a crash on, or a silent loss of, a malformed, repeated, conflicting or imageless row."""
    layout_a(tmp_path)
    file = tmp_path / "Class1" / "Train" / "Label" / "Labels.txt"
    rows = {
        "600\t0\t0600.PNG\t0\t0": "image 600 is not there",
        "576\t0\t0576.PNG\t0\t0": "second row of image 576",
        "577\t0\t0577.PNG\t0\t0": "second row of image 577",
        "601\t0": "malformed, expected number, label (0 or 1), image, 0, mask or 0: '601 0'",
        "602\t0\t0602.PNG\t0\t0\textra": "malformed",
        "603\t2\t0603.PNG\t0\t0": "malformed",
        "604\t0\t0605.PNG\t0\t0": "number, image and mask disagree",
        "606\t1\t0606.PNG\t0\t0607_label.PNG": "number, image and mask disagree",
        "²\t0\t0608.PNG\t0\t0": "malformed",
        "9" * 5000 + "\t0\t0608.PNG\t0\t0": "malformed",
        "609\t0\t../0609.PNG\t0\t0": "malformed",
        "1": "malformed",
    }
    append(file, "\n".join(rows))
    append(file, "\n")
    with file.open("ab") as out:
        out.write(b"\xff\xfe\x00 not text \x0c\x85\n")
    found = skips(tmp_path)
    for line, reason in enumerate(rows.values(), start=6):
        assert reason in found.pop(f"Class1/Train/Label/Labels.txt:{line}")
    assert "malformed" in found.pop("Class1/Train/Label/Labels.txt:18")
    assert "no usable row" in found.pop("Class1/Train/0577.PNG")
    assert found == {}


def test_files_of_layout_a_that_are_left_out(tmp_path: Path) -> None:
    """Would catch: an image used with a guessed label or mask, and a stray file lost without a word."""
    layout_a(tmp_path)
    train = tmp_path / "Class1" / "Train"
    picture(train / "0700.PNG")
    picture(train / "0576.png")
    picture(train / "0001 copy.PNG")
    picture(train / "0001.jpg")
    picture(train / "Image" / "0578.PNG")
    picture(train / "more" / "0002.PNG")
    picture(train / "Label" / "0701_label.PNG")
    picture(train / "Label" / "0577_label.png")
    picture(train / "Label" / "0577.PNG")
    (train / "Label" / "0579_label.PNG").unlink()
    (train / "0703.PNG").mkdir()
    (train / "0704.PNG").symlink_to(tmp_path / "nowhere")
    (train / "0705.PNG").symlink_to(train / "0705.PNG")
    picture(tmp_path / "Class1" / "overview.png")
    (tmp_path / "Class1" / "Val").mkdir()
    (tmp_path / "Class1" / "Test").rename(tmp_path / "away")
    (tmp_path / "Class1" / "Test").mkdir()
    found = skips(tmp_path)
    expected = {
        "0700.PNG": "no usable row in Labels.txt",
        "0576.png": "second file for image 576; 0576.PNG is used",
        "0001 copy.PNG": "not a DAGM file name",
        "0001.jpg": "not a DAGM file name",
        "Image/0578.PNG": "second file for image 578",
        "more": "folder of neither layout",
        "Label/0701_label.PNG": "mask without its image",
        "Label/0577_label.png": "second file for mask 577",
        "Label/0577.PNG": "not a DAGM file name",
        "0579.PNG": "labelled defective, but Label/0579_label.PNG is missing",
        "0703.PNG": "not a file",
        "0704.PNG": "not a file",
        "0705.PNG": "not a file",
        "../overview.png": "not a DAGM file name",
        "../Val": "folder of neither layout",
        "../Test": "split without images",
    }
    for name, reason in expected.items():
        what = f"Class1/{name[3:]}" if name.startswith("../") else f"Class1/Train/{name}"
        assert reason in found.pop(what), name
    assert found == {}
    assert "Class1/Train/0579" not in [r.image_id for r in read_tree(tmp_path, (1,)).samples]


def test_rows_and_images_of_layout_b_that_are_left_out(tmp_path: Path) -> None:
    """Would catch: a NaN or negative axis that reaches the rasteriser, and a guessed ellipse."""
    rows = {
        "3 nan 1 0 5 5": "malformed, expected six numbers",
        "4 5 inf 0 5 5": "malformed, expected six numbers",
        "5 0 3 0 5 5": "semi-axes must be at least 0.001 px",
        "6 3 -2 0 5 5": "semi-axes must be at least 0.001 px",
        "7 3 2 0 5": "malformed, expected six numbers",
        "8 3 2 zero 5 5": "malformed, expected six numbers",
        "x 3 2 0 5 5": "malformed, expected six numbers",
        "9 3 2 0 5 1e300": "no value beyond 1e+06",
        "5 3 1e-320 0 5 5": "semi-axes must be at least 0.001 px",
        "2 41.34 35.83 -0.37 315.40 172.29": "second row of image 2",
        "1 1 1 0 5 5": "second row of image 1",
        "99 3 2 0 5 5": "image 99 is not there",
    }
    layout_b(tmp_path, ellipses=ELLIPSES + "\n".join(rows))
    for n in range(3, 10):
        picture(tmp_path / "Class1_def" / f"{n}.png")
    picture(tmp_path / "Class1" / "sub" / "1.png")
    found = skips(tmp_path)
    for line, reason in enumerate(rows.values(), start=3):
        assert reason in found.pop(f"Class1_def/labels.txt:{line}")
    for n in (1, *range(3, 10)):
        assert "its ellipse is unknown" in found.pop(f"Class1_def/{n}.png")
    assert "folder of neither layout" in found.pop("Class1/sub")
    assert found == {}


def test_skips_are_printable(tmp_path: Path) -> None:
    """Would catch: a file name with a line break or undecodable bytes that breaks the report when printed."""
    layout_a(tmp_path)
    for name in (b"a\nb.PNG", b"\xff\xfe.PNG"):
        (tmp_path / "Class1" / "Train" / os.fsdecode(name)).write_bytes(b"")
    for what in skips(tmp_path):
        what.encode("utf-8")
        assert what.isprintable()


# --- what stops ---


def no_class(root: Path) -> None:
    (root / "data").mkdir(parents=True)


def no_labels(root: Path) -> None:
    layout_a(root)
    (root / "Class1" / "Test" / "Label" / "Labels.txt").unlink()


def no_ellipses(root: Path) -> None:
    layout_b(root)
    (root / "Class1_def" / "labels.txt").unlink()


def two_label_files(root: Path) -> None:
    layout_a(root)
    (root / "Class1" / "Train" / "Label" / "labels.txt").write_text("1\n")


def both_layouts(root: Path) -> None:
    layout_a(root)
    layout_b(root)


def split_in_the_class_folder(root: Path) -> None:
    layout_a(root / "whole")
    (root / "whole" / "Class1" / "Test").rename(root / "Class1")


def split_in_the_class_folder_in_lower_case(root: Path) -> None:
    split_in_the_class_folder(root)
    (root / "Class1" / "Label").rename(root / "Class1" / "label")
    (root / "Class1" / "label" / "Labels.txt").rename(root / "Class1" / "label" / "LABELS.TXT")


def labels_beside_good_images(root: Path) -> None:
    layout_b(root)
    (root / "Class1" / "Labels.txt").write_text(ELLIPSES)


def split_twice(root: Path) -> None:
    layout_a(root / "one")
    layout_a(root / "two")


def nothing_usable(root: Path) -> None:
    layout_a(root)
    rewrite(lambda text: text.replace("0", "x"))(root)


def empty_class(root: Path) -> None:
    (root / "Class1").mkdir(parents=True)


def other_classes(root: Path) -> None:
    layout_a(root, 7)
    layout_b(root, 3)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda root: None, "does not exist; give the folder"),
        (lambda root: root.write_text(""), "is not a folder"),
        (no_class, r"holds no folder Class1 … Class10"),
        (other_classes, r"`data\.classes` \(=1\): .* the classes that are there: 3, 7"),
        (no_labels, "Test must hold one Label/Labels.txt, .* and holds none; unpack"),
        (no_ellipses, "Class1_def must hold one labels.txt, .* and holds none; unpack"),
        (two_label_files, "must hold one Label/Labels.txt, .* and holds 2"),
        (both_layouts, "class 1 in both layouts, .* leak"),
        (
            split_in_the_class_folder,
            "one split of layout A lie directly in .*Class1; put them into Class1/Train or",
        ),
        (
            split_in_the_class_folder_in_lower_case,
            "one split of layout A lie directly in .*Class1; put them into",
        ),
        (
            labels_beside_good_images,
            "lie directly in .*Class1; .* Class1_def if the label file lists ellipses",
        ),
        (split_twice, "holds the test images of class 1 twice"),
        (
            nothing_usable,
            r"no usable image of class 1 \(first of \d+ skipped: Class1/Train/Label/Labels.txt:2",
        ),
        (empty_class, "no usable image of class 1; unpack"),
    ],
)
def test_user_errors(tmp_path: Path, build: Edit, match: str) -> None:
    """Would catch: a traceback, or a message without argument, value, rule and remedy on one line."""
    root = tmp_path / "root"
    build(root)
    with pytest.raises(UserError, match=match) as caught:
        read_tree(root, (1,))
    text = str(caught.value)
    assert text.startswith("`data.") and "\n" not in text
    assert str(root) in text


def test_both_layouts_one_of_them_doubled(tmp_path: Path) -> None:
    """Would catch: a leak through layout B that lies inside layout A's class folder."""
    layout_a(tmp_path)
    layout_b(tmp_path / "Class1")
    with pytest.raises(UserError, match="both layouts"):
        read_tree(tmp_path, (1,))


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a PermissionError with a traceback."""
    layout_a(tmp_path)
    listdir = os.listdir

    def guarded(path: Path) -> list[str]:
        if path.name == "Label":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", guarded)
    with pytest.raises(UserError, match=r"Label cannot be listed \(Permission denied\); check"):
        read_tree(tmp_path, (1,))


# --- any content at all ---


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=0, max_size=3)), max_size=6),
    end=st.integers(0, 200),
    layout=st.sampled_from("AB"),
)
def test_mutated_label_file(tmp_path: Path, edits: list[tuple[int, bytes]], end: int, layout: str) -> None:
    """Would catch: any exception but UserError from a damaged label file, and an image counted nowhere."""
    root = tmp_path / layout
    name = "Class1/Train/Label/Labels.txt" if layout == "A" else "Class1_def/labels.txt"
    if not root.exists():
        (layout_a if layout == "A" else layout_b)(root)
        (root / name).rename(tmp_path / f"{layout}.txt")
    data = bytearray((tmp_path / f"{layout}.txt").read_bytes())
    for position, new in edits:
        data[position : position + 1] = new
    (root / name).write_bytes(bytes(data[:end]))
    manifest = read_tree(root, (1,))
    left_out = {skip.what for skip in manifest.skipped if skip.what.lower().endswith(".png")}
    assert len(manifest.samples) + len(left_out) == (7 if layout == "A" else 5)
    assert {r.image_id for r in manifest.samples if r.label == 1 and r.mask is None} == set()


# --- the real images ---


def test_real_class_8() -> None:
    """Would catch: a reader that fits the small trees of these tests but not the official files."""
    root = os.environ.get("DAGM_ROOT")
    if not root:
        pytest.skip("DAGM_ROOT is not set: no real images here")
    manifest = read_tree(Path(root), (8,))
    truth = json.loads((Path(root) / "defective_index.json").read_text())["Class8"]["train_defective"]
    assert len(manifest.samples) == 500
    assert manifest.skipped == ()
    defective = {int(r.image_id[-4:]): r for r in manifest.samples if r.label == 1}
    assert sorted(defective) == truth
    assert len(defective) == 150
    assert all(r.half == "train" for r in manifest.samples)
    assert {1502, 1827, 1951} <= set(defective)  # their masks are degenerate
    assert manifest.description.endswith("class 8: 500 images (150 defective); 0 skipped")
