"""Tests of the three conventions for a user's own images: which record comes of which file, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dagm_jax.data.cache import build_cache
from dagm_jax.data.config import DataConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.own_images import read_csv, read_flat, read_mvtec, read_plain, reader_of
from dagm_jax.data.images.load import load
from dagm_jax.errors import UserError
from dagm_jax.inspection.scan import make_source
from dagm_jax.types import Manifest, Photo, Sample


def touch(root: Path, *names: str) -> Path:
    """Files of one byte; no reader looks into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def rows(manifest: Manifest, root: Path) -> list[tuple[object, ...]]:
    """(name, label, half, mask's path under the root) of each record."""

    def relative(sample: Sample) -> str | None:
        assert isinstance(sample.image, Photo)
        assert sample.image.path == root / sample.image_id
        return sample.mask.path.relative_to(root).as_posix() if isinstance(sample.mask, Photo) else None

    return [(r.image_id, r.label, r.half, relative(r)) for r in manifest.samples]


def skips(manifest: Manifest) -> dict[str, str]:
    return {skip.what: skip.reason for skip in manifest.skipped}


MVTEC = (
    "train/good/000.png",
    "train/good/001.JPG",
    "train/readme.txt",
    "test/good/000.png",
    "test/hole/000.png",
    "test/hole/001.png",
    "test/hole/Thumbs.db",
    "test/hole/notes.md",
    "test/cut/000.tiff",
    "ground_truth/hole/000_mask.png",
    "ground_truth/hole/007_mask.png",
    "ground_truth/cut/000_mask.png",
    "ground_truth/Bent/000_mask.png",
)


def test_mvtec(tmp_path: Path) -> None:
    """Catches a mask of another defect's image of the same number, halves exchanged, a good image called defective."""
    manifest = read_mvtec(touch(tmp_path, *MVTEC))
    assert rows(manifest, tmp_path) == [
        ("train/good/000.png", 0, "train", None),
        ("train/good/001.JPG", 0, "train", None),
        ("test/cut/000.tiff", 1, "test", "ground_truth/cut/000_mask.png"),
        ("test/good/000.png", 0, "test", None),
        ("test/hole/000.png", 1, "test", "ground_truth/hole/000_mask.png"),
        ("test/hole/001.png", 1, "test", None),
    ]
    assert skips(manifest) == {
        "train/readme.txt": "not in a folder that says what it shows, such as good",
        "test/hole/notes.md": "not an image file",
        "ground_truth/hole/007_mask.png": "mask without its image",
        "ground_truth/Bent": "masks without a folder of images of this name",
    }
    assert "6 images (3 defective, 2 of them with masks); 4 skipped" in manifest.description
    # Good is no kind of defect.
    assert [sample.kind for sample in manifest.samples] == ["", "", "cut", "", "hole", "hole"]


@pytest.mark.parametrize("folder", ["test/Good", "test/GOOD", "train/Good", "test/good "])
def test_good_in_other_letters_is_one_line(tmp_path: Path, folder: str) -> None:
    """Would catch: all good images of a half taught, or counted, as defective because of one capital letter."""
    root = touch(tmp_path, "train/good/0.png", "test/hole/0.png", f"{folder}/1.png")
    with pytest.raises(UserError, match=rf"{folder} would be a defect named .* rename it") as caught:
        find_images(DataConfig(str(root)), 0)
    assert "\n" not in str(caught.value)
    # A name that only begins so is a defect.
    (root / folder).rename(root / "test" / "goodness")
    kinds = {sample.image_id: sample.label for sample in read_mvtec(root).samples}
    assert kinds == {"train/good/0.png": 0, "test/hole/0.png": 1, "test/goodness/1.png": 1}


def test_plain(tmp_path: Path) -> None:
    """Catches masks looked for under another name, or chosen by the order of the file system, and images of a folder
    within that vanish without a word."""
    names = (
        "good/a.png",
        "good/b.bmp",
        "defect/a.png",
        "defect/c.png",
        "defect/more/d.png",
        "defect/e.png",
        "defect/f.png",
        "masks/a.png",
        "masks/b.png",
        "masks/e_mask.png",
        "masks/f.bmp",
        "masks/f.png",
        "masks/z.png",
    )
    manifest = read_plain(touch(tmp_path, *names))
    assert rows(manifest, tmp_path) == [
        ("good/a.png", 0, None, None),
        ("good/b.bmp", 0, None, "masks/b.png"),
        ("defect/a.png", 1, None, "masks/a.png"),
        ("defect/c.png", 1, None, None),
        ("defect/e.png", 1, None, "masks/e_mask.png"),
    ]
    assert skips(manifest) == {
        "defect/f.png": "has 2 masks: f.bmp, f.png",
        "defect/more": "not a file; images lie one level up",
        "masks/z.png": "mask without its image",
    }


def test_masks_of_two_halves_are_not_shared(tmp_path: Path) -> None:
    """Catches train/hole/000 and test/hole/000 with one and the same mask."""
    touch(tmp_path, *MVTEC, "train/hole/000.png")
    with pytest.raises(UserError, match="train/hole and test/hole share the masks of ground_truth/hole"):
        read_mvtec(tmp_path)


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return folder / "list.csv"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path: Path, newline: str, encoding: str) -> None:
    """Catches columns taken by their place, a byte order mark in the first name, and rows lost to blank lines."""
    lines = [
        "Label, path ,split,mask,Kind",
        "good,a b.png,train,,",
        "",
        "1,ü/x.png,test,m/x.png,break",
        'DEFECTIVE,"c,d.tif",,,',
        "0,e.png,,,",
    ]
    manifest = read_csv(table(tmp_path, newline.join(lines), encoding))
    assert rows(manifest, tmp_path) == [
        ("a b.png", 0, "train", None),
        ("ü/x.png", 1, "test", "m/x.png"),
        ("c,d.tif", 1, None, None),
        ("e.png", 0, None, None),
    ]
    assert [sample.kind for sample in manifest.samples] == ["", "break", "", ""]
    assert not manifest.skipped


def test_csv_tells_a_file_in_both_halves_as_leakage(tmp_path: Path) -> None:
    """Would catch: a file of both halves passed over as a mere repetition, so that nobody mends the table."""
    table = touch(tmp_path, "a.png", "b.png") / "list.csv"
    (tmp_path / "link.png").symlink_to("a.png")
    lines = ("a.png,0,train", "b.png,0,test", "b.png,0,", "link.png,0,test", "b.png,0,train")
    table.write_text("\n".join(("path,label,split", *lines)))
    manifest = read_csv(table)
    assert rows(manifest, tmp_path) == [("a.png", 0, "train", None), ("b.png", 0, "test", None)]
    assert [(skip.what, skip.reason, skip.leaks) for skip in manifest.skipped] == [
        ("list.csv:4", "same file as line 3", False),
        (
            "list.csv:5",
            "leakage: same file as line 2 of the train split, and is itself of the test split; left out here",
            True,
        ),
        (
            "list.csv:6",
            "leakage: same file as line 3 of the test split, and is itself of the train split; left out here",
            True,
        ),
    ]


@pytest.mark.parametrize("masks", [("m.png", "n.png"), ("m.png", ""), ("", "n.png")])
def test_csv_with_two_masks_of_a_file_is_one_line(tmp_path: Path, masks: tuple[str, str]) -> None:
    """Would catch: the mask of whichever row comes first, where two rows contradict each other."""
    table = touch(tmp_path, "a.png", "m.png", "n.png") / "list.csv"
    table.write_text("path,label,mask\n" + "".join(f"a.png,1,{mask}\n" for mask in masks))
    match = rf"line 3: mask '{masks[1]}', but line 2 gives it another; correct that line"
    with pytest.raises(UserError, match=match):
        read_csv(table)
    # One mask under two names is no contradiction.
    table.write_text("path,label,mask\na.png,1,m.png\na.png,1,./m.png\n")
    assert skips(read_csv(table)) == {"list.csv:3": "same file as line 2"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "has no columns in its first line; it must name path, label,"),
        ("path\na.png\n", "has 'path' in its first line; it must name"),
        ("path,label,masks\na.png,0,\n", "has 'path', 'label', 'masks' in its first line"),
        ("path,label,label\na.png,0,1\n", "has 'path', 'label', 'label' in its first line"),
        ("path,label\na.png,2\n", r"line 2: label '2' must be of 0, good, 1, defective"),
        ("path,label\na.png,0\nb.png,bad\n", r"line 3: label 'bad' must be of"),
        ("path,label,split\na.png,0,val\n", r"line 2: split 'val' must be of train, test"),
        ("path,label\na.png\n", r"line 2: 1 fields, expected 2; correct that line"),
        ("path,label\n,0\n", "line 2: path is empty"),
        ("path,label\na.png,0\na.png,1\n", "line 3: label '1', but line 2 gives it another"),
        ("path,label,kind\na.png,good,crack\n", "line 2: kind 'crack' of an image that is good"),
        (
            "path,label,kind\na.png,1,crack\na.png,1,fray\n",
            "line 3: kind 'fray', but line 2 gives it another",
        ),
        ("path,label\na\0.png,0\n", "NUL"),
        ('path,label\n"a.png,0\n', "cannot be read as a CSV table in UTF-8"),
        ("path,label\n", "table list.csv, holds no image"),
    ],
)
def test_csv_that_means_nothing_is_one_line(tmp_path: Path, text: str, match: str) -> None:
    """Catches a label or a split that is guessed, a misspelt column that is not read, and a trace."""
    with pytest.raises(UserError, match=match) as caught:
        read_csv(table(tmp_path, text))
    assert "\n" not in str(caught.value)
    # A table that a spreadsheet saved in Latin-1.
    with pytest.raises(UserError, match="cannot be read as a CSV table in UTF-8"):
        read_csv(table(tmp_path, "path,label\nü.png,0\n", "latin-1"))


@pytest.mark.parametrize(
    ("names", "reader"),
    [
        (MVTEC, read_mvtec),
        (("good/a.png", "defect/b.png"), read_plain),
        (("good/a.png",), read_plain),
        (("Class1/Train/0001.PNG",), None),
    ],
)
def test_the_tree_says_which_convention_it_is(
    tmp_path: Path, names: tuple[str, ...], reader: Callable[[Path], Manifest] | None
) -> None:
    """Catches DAGM's folders read as one's own, and the reverse."""
    assert reader_of(touch(tmp_path, *names)) is reader
    assert reader_of(table(tmp_path, "path,label\n")) is read_csv


def test_good_images_alone(tmp_path: Path) -> None:
    """Would catch: good images that are refused because nobody has a defect; folders beside good/, which may hold
    defects under another name, that are left out without a word; files of a flat folder that are not counted."""
    assert rows(read_plain(touch(tmp_path / "one", "good/a.png", "good/b.png")), tmp_path / "one") == [
        ("good/a.png", 0, None, None),
        ("good/b.png", 0, None, None),
    ]
    with pytest.raises(
        UserError, match=r"has the folders good, masks, mist, and none that is known to hold def"
    ):
        read_plain(touch(tmp_path / "two", "good/a.png", "mist/b.png", "masks/b.png"))
    flat = touch(tmp_path / "three", "a.png", "b.jpg", "notes.txt")
    manifest, _ = find_images(DataConfig(root=str(flat), flat="good"), 0)
    assert manifest == read_flat(flat)
    assert [(one.image_id, one.label) for one in manifest.samples] == [("a.png", 0), ("b.jpg", 0)]
    assert skips(manifest) == {"notes.txt": "not an image file"}


def test_folders_have_common_names_or_those_that_are_given(tmp_path: Path) -> None:
    """Would catch: a folder of defects taken for nothing because of its name; labels exchanged; one of two folders that
    could be meant taken in silence; names that are given and not used; a mistyped name that finds other images."""
    labels = lambda found: {one.image_id: one.label for one in found.samples}  # noqa: E731
    for good, defect in (("OK", "NG"), ("Normal", "abnormal"), ("pass", "fail"), ("Good", "Defects")):
        root = touch(tmp_path / good, f"{good}/a.png", f"{defect}/b.png", "masks/b.png", "masks/b.json")
        found = find_images(DataConfig(root=str(root)), 0)[0]
        assert labels(found) == {f"{good}/a.png": 0, f"{defect}/b.png": 1}
        assert found.samples[1].mask is not None
        assert skips(found) == {"masks/b.json": "no mask: not an image file"}
    root = touch(tmp_path / "x", "gut/a.png", "schlecht/b.png", "neu/c.png")
    found = find_images(DataConfig(root=str(root), good="gut", defect="schlecht"), 0)[0]
    assert labels(found) == {"gut/a.png": 0, "schlecht/b.png": 1}
    assert skips(found) == {"neu": "neither the folder of good images, of defective ones, nor masks"}
    with pytest.raises(
        UserError, match=r"`data.good` \(=gutt\) is no folder in .*/x, which has the folders gut, neu"
    ):
        find_images(DataConfig(root=str(root), good="gutt"), 0)
    with pytest.raises(UserError, match=r"--config.data.good=NAME --config.data.defect=NAME"):
        find_images(DataConfig(root=str(root)), 0)
    touch(tmp_path / "OK", "good/a.png")
    with pytest.raises(
        UserError, match=r"has OK and good; say which holds the images with --config.data.good=NAME"
    ):
        find_images(DataConfig(root=str(tmp_path / "OK")), 0)
    with pytest.raises(UserError, match=r"`data.root` is missing"):
        find_images(DataConfig(flat="good"), 0)
    with pytest.raises(UserError, match=r"`data.flat` \(=good\) is of images without folders"):
        DataConfig(flat="good", good="ok")


def test_mvtec_ad_2_is_read_with_its_own_halves(tmp_path: Path) -> None:
    """Would catch: images for validation or the public test that nobody reads, masks taken for a kind of defect, and a
    part of the download that is left out without a word."""
    names = ["train/good/0.png", "validation/good/1.png", "test_public/good/2.png", "test_public/bad/3.png"]
    root = touch(tmp_path, *names, "test_public/ground_truth/bad/3_mask.png", "test_private/4.png")
    found = find_images(DataConfig(root=str(root)), 0)[0]
    assert rows(found, root) == [
        ("train/good/0.png", 0, "train", None),
        ("validation/good/1.png", 0, "train", None),
        ("test_public/bad/3.png", 1, "test", "test_public/ground_truth/bad/3_mask.png"),
        ("test_public/good/2.png", 0, "test", None),
    ]
    assert skips(found) == {"test_private": "a folder that the MVTec layout does not have"}
    files = {one.name: one.label for one in make_source(str(root), tmp_path / "out").files()}
    assert files == {**dict.fromkeys(names[:3], 0), names[3]: 1, "test_private/4.png": None}


def test_the_masks_of_mvtec_loco_are_one_together(tmp_path: Path) -> None:
    """Would catch: images of LOCO that count as without a mask; all parts of a defect but one taken for good."""
    spots = np.zeros((3, 20, 30), np.uint8)
    spots[0, 2:5, 2:5] = spots[1, 10:12, 20:25] = spots[2, 15:17, 3:9] = 255
    for name in ("train/good/0", "test/good/1", "test/logical/2", "test/logical/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30), int(name[-1]), np.uint8)).save(tmp_path / f"{name}.png")
    for k, spot in enumerate(spots[:2]):
        (tmp_path / "ground_truth/logical/2").mkdir(parents=True, exist_ok=True)
        Image.fromarray(spot).save(tmp_path / f"ground_truth/logical/2/00{k}.png")
    Image.fromarray(spots[2]).save(tmp_path / "ground_truth/logical/3.png")
    touch(
        tmp_path,
        "ground_truth/logical/2/notes.txt",
        "ground_truth/logical/4/000.png",
        "ground_truth/logical/5/a.txt",
    )
    found = find_images(DataConfig(root=str(tmp_path)), 0)[0]
    masks = {one.image_id: load(one, None)[1] for one in found.samples if one.label}
    np.testing.assert_array_equal(masks["test/logical/2.png"], spots[:2].any(axis=0))
    np.testing.assert_array_equal(masks["test/logical/3.png"], spots[2] > 0)
    assert skips(found) == {
        "ground_truth/logical/2/notes.txt": "no mask: not an image file",
        "ground_truth/logical/4": "mask without its image",
        "ground_truth/logical/5": "no mask: not an image file",
    }
    whole, cache = build_cache(found, tmp_path / "cache", None)
    again, same = build_cache(found, tmp_path / "cache", None)
    assert whole == again and cache == same and cache.mask_px(2) + cache.mask_px(3) == (spots > 0).sum()


def test_folder_without_images_is_one_line(tmp_path: Path) -> None:
    """Catches an empty manifest, which fails later with other words."""
    touch(tmp_path, "good/a.txt", "defect/b.heic")
    with pytest.raises(UserError, match=r"holds no image .* first of 2 left out: good/a\.txt; add images"):
        read_plain(tmp_path)


def test_own_images_come_in_any_size_with_one_white_for_all(tmp_path: Path) -> None:
    """Catches DAGM's 512 asked of them, and 12-bit images that come out nearly black or each on a scale of its own."""
    dark, bright = (np.full((20, 30), value, np.uint16) for value in (40, 4000))
    for name, pixels in (("good/a", dark), ("good/b", bright), ("defect/c", dark // 64)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels if name != "defect/c" else pixels.astype(np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    touch(tmp_path, "good/damaged.png")
    found, shape = find_images(DataConfig(str(tmp_path)), 0)
    assert shape is None
    manifest, _ = build_cache(found, tmp_path / "cache", shape)
    assert {sample.image.white for sample in manifest.samples if isinstance(sample.image, Photo)} == {4095}


def test_a_root_that_cannot_be_looked_at_is_one_line(tmp_path: Path) -> None:
    """Catches a trace of a name that the file system does not take."""
    with pytest.raises(UserError, match=r"`data\.root` .* cannot be looked at .*; name a folder that can be"):
        find_images(DataConfig(str(tmp_path / ("x" * 300))), 0)


def test_classes_of_dagm_are_not_those_of_own_images(tmp_path: Path) -> None:
    """Catches a field that is set and not read."""
    touch(tmp_path, "good/a.png", "defect/b.png")
    with pytest.raises(
        UserError, match=r"`data\.classes` \(=\(8,\)\) tells DAGM's textures apart, .*leave it at \(1,\)"
    ):
        find_images(DataConfig(str(tmp_path), classes=(8,)), 0)
