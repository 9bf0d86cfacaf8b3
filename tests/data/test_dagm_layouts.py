"""Tests of the reader of DAGM trees: both layouts, their variants, and all that a download can have wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.errors import UserError
from dagm_jax.types import Ellipse, Manifest

SPLITS = {"Train": (576, 4, (577, 579)), "Test": (1, 3, (2,))}  # first number, images, defective numbers
ELLIPSES = "1\t  60.24\t  37.55\t   0.65\t  69.04\t  87.60\n2\t  41.34\t  35.83\t  -0.37\t 315.40\t 172.29\n"
Edit = Callable[[Path], object]


def picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path, format="PNG")


def layout_a(root: Path, class_id: int = 1) -> Path:
    """A small layout A as the official archives have it; returns ``root``."""
    for split, (first, count, defective) in SPLITS.items():
        folder, rows = root / f"Class{class_id}" / split, ["1"]
        for n in range(first, first + count):
            picture(folder / f"{n:04d}.PNG")
            mask = f"{n:04d}_label.PNG" if n in defective else "0\t"
            rows.append(f"{n}\t{int(n in defective)}\t{n:04d}.PNG\t0\t{mask}")
        for n in defective:
            picture(folder / "Label" / f"{n:04d}_label.PNG", 255)
        (folder / "Label" / "Thumbs.db").write_bytes(b"\xd0\xcf")
        (folder / "Label" / "Labels.txt").write_bytes("".join(f"{row}\r\n" for row in rows).encode())
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
    """File left out -> reason; every entry must be one line."""
    found = read_tree(root, classes or (1,)).skipped
    assert all("\n" not in skip.what + skip.reason for skip in found)
    assert len({skip.what for skip in found}) == len(found)
    return {skip.what: skip.reason for skip in found}


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
    for path in sorted(root.glob("Class1/*/*.PNG")):
        (path.parent / "Image").mkdir(exist_ok=True)
        path.rename(path.parent / "Image" / path.name)


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


def masks_for_all(root: Path, named: bool = False) -> None:
    """Masks of good images too, which are empty; ``named`` in Labels.txt as those of defective ones are."""
    for split, (first, count, defective) in SPLITS.items():
        labels = root / "Class1" / split / "Label"
        text = (labels / "Labels.txt").read_bytes().decode()
        for n in set(range(first, first + count)) - set(defective):
            picture(labels / f"{n:04d}_label.PNG", 0)
            if named:
                text = text.replace(f"{n:04d}.PNG\t0\t0\t", f"{n:04d}.PNG\t0\t{n:04d}_label.PNG")
        (labels / "Labels.txt").write_bytes(text.encode())


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
    "masks for all, named in the rows": lambda root: masks_for_all(root, named=True),
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


def one_down(root: Path) -> list[Path]:
    layout_a(root / "DAGM_2007")
    return [root, root / "DAGM_2007", root / "DAGM_2007" / "Class1"]


def doubled(root: Path) -> list[Path]:
    layout_a(root / "Class1")
    return [root, root / "Class1", root / "Class1" / "Class1"]


def splits_in_two_trees(root: Path) -> list[Path]:
    layout_a(root)
    for split in SPLITS:
        (root / split / "Class1").mkdir(parents=True)
        (root / "Class1" / split).rename(root / split / "Class1" / split)
    (root / "Class1").rmdir()
    return [root]


def linked(root: Path) -> list[Path]:
    layout_a(root)
    (root / "link").symlink_to(root / "Class1")
    os.chdir(root / "Class1")
    return [root / "link", Path(".")]


@pytest.mark.parametrize("build", [one_down, doubled, splits_in_two_trees, linked])
def test_places_of_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[[Path], list[Path]]
) -> None:
    """Would catch: a root that is the class folder, one level too high, doubled by unzip, ".", a link to it, or one
    tree for each split, not being read."""
    monkeypatch.chdir(tmp_path)
    official = essence(read_tree(layout_a(tmp_path / "official"), (1,)))
    for place in build(tmp_path / "root"):
        assert essence(read_tree(place, (1,))) == official


def test_one_split_alone_and_gaps_are_legal(tmp_path: Path) -> None:
    """Would catch: a reader that insists on whole classes."""
    shutil.rmtree(layout_a(tmp_path) / "Class1" / "Test")
    (tmp_path / "Class1" / "Train" / "0578.PNG").unlink()
    rewrite(lambda text: text.replace("578\t0\t0578.PNG\t0\t0\t\r\n", ""))(tmp_path)
    manifest = read_tree(tmp_path, (1,))
    assert [r.image_id[-4:] for r in manifest.samples] == ["0576", "0577", "0579"]
    assert manifest.skipped == ()


def test_classes_are_sorted_numerically_and_only_the_given_ones_are_read(tmp_path: Path) -> None:
    """Would catch: Class10 before Class2, classes repeated, damage in a class that nobody asked for, and the layout
    chosen once for the whole tree."""
    layout_b(layout_a(tmp_path, 10), 2)
    picture(tmp_path / "Class3" / "Train" / "0001.PNG")
    manifest = read_tree(tmp_path, (10, 2, 10))
    assert [r.class_id for r in manifest.samples] == [2] * 5 + [10] * 7
    assert "layout A and B, from" in manifest.description
    assert "class 2: 5 images (2 defective); class 10: 7 images (3 defective)" in manifest.description


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: samples in the order of os.listdir, which differs between machines."""
    layout_a(tmp_path)
    picture(tmp_path / "Class1" / "Train" / "0576.png")
    expected = read_tree(tmp_path, (1,))
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert read_tree(tmp_path, (1,)) == expected


# --- layout B ---


def test_layout_b(tmp_path: Path) -> None:
    """Would catch: lexicographic order (10 before 2), columns of the ellipse swapped, CRLF in a number."""
    manifest = read_tree(layout_b(tmp_path, ellipses=ELLIPSES.replace("\n", "\r\n", 1)), (1,))
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


def test_places_of_layout_b(tmp_path: Path) -> None:
    """Would catch: a reader that needs ClassN beside ClassN_def; Class1/Class1 with Class1_def/Class1_def, or both
    below Class1, not being found."""
    expected = essence(read_tree(layout_b(tmp_path / "a"), (1,)))
    layout_b(tmp_path / "b" / "Class1")
    assert essence(read_tree(tmp_path / "b", (1,))) == expected
    (tmp_path / "b" / "Class1_def").mkdir()
    inner = tmp_path / "b" / "Class1" / "Class1_def"
    inner.rename(tmp_path / "b" / "Class1_def" / "Class1_def")
    assert essence(read_tree(tmp_path / "b", (1,))) == expected
    for folder in ("Class1", "Class1_def"):
        own = [row for row in expected if row[2] == int(folder == "Class1_def")]
        (tmp_path / "a" / folder).rename(tmp_path / folder)
        for root in (tmp_path, tmp_path / folder):
            assert essence(read_tree(root, (1,))) == own
        (tmp_path / folder).rename(tmp_path / "b" / f"done {folder}")


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
    with file.open("ab") as stream:
        stream.write("\n".join(rows).encode() + b"\n\xff\xfe\x00 not text \x0c\x85\n")
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
    # A line break and undecodable bytes, which would break the report when printed.
    for name in (b"a\nb.PNG", b"\xff\xfe.PNG"):
        picture(train / os.fsdecode(name))
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
    found = skips(tmp_path)
    expected = {
        "0700.PNG": "no usable row in Labels.txt",
        "0576.png": "second file for image 576; 0576.PNG is used",
        "0001 copy.PNG": "not a DAGM file name",
        "0001.jpg": "not a DAGM file name",
        "a\\nb.PNG": "not a DAGM file name",
        "\\udcff\\udcfe.PNG": "not a DAGM file name",
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
        assert "no usable row" in found.pop(f"Class1_def/{n}.png")
    assert "folder of neither layout" in found.pop("Class1/sub")
    assert found == {}


# --- what stops ---


def empty_split(root: Path) -> None:
    shutil.rmtree(layout_a(root) / "Class1" / "Test")
    (root / "Class1" / "Test").mkdir()


def split_in_the_class_folder(root: Path) -> None:
    (layout_a(root / "whole") / "Class1" / "Test").rename(root / "Class1")
    (root / "Class1" / "Label").rename(root / "Class1" / "label")
    (root / "Class1" / "label" / "Labels.txt").rename(root / "Class1" / "label" / "LABELS.TXT")


def without(name: str, layout: Callable[[Path], Path]) -> Edit:
    return lambda root: (layout(root) / name).unlink()


def with_file(name: str, layout: Callable[[Path], Path]) -> Edit:
    return lambda root: (layout(root) / name).write_text("")


NO_LABELS = "must hold one Label/Labels.txt, .* and holds"


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda root: None, "does not exist; give the folder"),
        (lambda root: root.write_text(""), "is not a folder"),
        (lambda root: (root / "data").mkdir(parents=True), r"holds no folder Class1 … Class10"),
        (lambda root: layout_b(layout_a(root, 7), 3), r"`data\.classes` \(=1\): .* that are there: 3, 7"),
        (without("Class1/Test/Label/Labels.txt", layout_a), f"Test {NO_LABELS} none; unpack"),
        (without("Class1_def/labels.txt", layout_b), "Class1_def must hold one labels.txt, .* holds none"),
        (with_file("Class1/Train/Label/labels.txt", layout_a), f"{NO_LABELS} 2"),
        (empty_split, f"Test {NO_LABELS} none; unpack"),
        (lambda root: layout_b(layout_a(root)), "twice: good images of layout B in .*, test .*; keep one"),
        (lambda root: layout_b(layout_a(root) / "Class1"), "class 1 twice: .* of layout"),
        (lambda root: (layout_a(root / "x"), layout_a(root / "y")), "twice: test images .*x/.* test images"),
        (split_in_the_class_folder, "one split of layout A lie directly in .*Class1; put them into Class1/"),
        (
            with_file("Class1/Labels.txt", layout_b),
            "directly in .*Class1; .* if the label file lists ellipses",
        ),
        (
            lambda root: rewrite(lambda text: text.replace("0", "x"))(layout_a(root)),
            r"no usable image of class 1 \(first of \d+ skipped: Class1/Train/Label/Labels.txt:2",
        ),
        (lambda root: (root / "Class1").mkdir(parents=True), "no usable image of class 1; unpack"),
    ],
)
def test_user_errors(tmp_path: Path, build: Edit, match: str) -> None:
    """Would catch: a traceback, or a message without argument, value, rule and remedy on one line."""
    root = tmp_path / "root"
    build(root)
    with pytest.raises(UserError, match=match) as caught:
        read_tree(root, (1,))
    text = str(caught.value)
    assert text.startswith("`data.") and "\n" not in text and str(root) in text


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


# --- the real images ---


def test_real_class_8(real: Path) -> None:
    """Would catch: a reader that fits the small trees of these tests but not the official files."""
    manifest = read_tree(real, (8,))
    truth = json.loads((real / "defective_index.json").read_text())["Class8"]["train_defective"]
    defective = {int(r.image_id[-4:]): r for r in manifest.samples if r.label == 1}
    assert sorted(defective) == truth
    assert all(r.half == "train" for r in manifest.samples)
    assert {1502, 1827, 1951} <= set(defective)  # their masks are degenerate
    assert manifest.description.endswith("class 8: 500 images (150 defective); 0 skipped")
