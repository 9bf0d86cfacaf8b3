"""Tests of bad sets: copies in both halves, labels that masks contradict, images without contrast or numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from small_dagm import layout_a
from small_run import write_own

from dagm_jax.command_line import read_config
from dagm_jax.data.cache import build_cache
from dagm_jax.data.config import DataConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.images import decode, load
from dagm_jax.data.split import split_samples
from dagm_jax.errors import UserError
from dagm_jax.evaluation.baselines import local_energy_score
from dagm_jax.experiment.data import describe_data, prepare_data
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.types import Manifest, Sample, Stored

Label = Literal[0, 1]
SHAPE = (12, 17)


def picture(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def spot() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 3:9] = 255
    return mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def used_and_listed(root: Path, cache: Path, **options: Any) -> tuple[Manifest, dict[str, str]]:
    """(the manifest of what is used, what was left out → why) of a run's `data.root`."""
    found, shape = find_images(DataConfig(root=str(root), **options), 0)
    whole, _ = build_cache(found, cache, shape)
    return whole, {skip.what: skip.reason for skip in whole.skipped}


def table(folder: Path, rows: list[tuple[str, int, Label, str]]) -> Path:
    """A CSV table of (name, seed of its pixels, label, half), and its images."""
    lines = ["path,label,mask,split"]
    for name, seed, label, half in rows:
        save(folder / name, picture(seed))
        save(folder / f"mask_{name}", spot())
        lines.append(f"{name},{label},{f'mask_{name}' if label else ''},{half}")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


def test_copies_in_both_halves_are_told_as_leakage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: an image tested on that was trained on, and a copy of which nobody learns on which side it lies."""
    rows: list[tuple[str, int, Label, str]] = [
        (f"{half}{label}{i}.png", 10 * label + i + 100 * (half == "test"), label, half)
        for half in ("train", "test")
        for label in (0, 1)
        for i in range(4)
    ]
    rows += [("again.bmp", 0, 0, "test"), ("defect.png", 11, 1, "test"), ("twice.png", 2, 0, "train")]
    root = table(tmp_path / "set", rows)
    overrides = ["data.split=official", f"data.root={root}", "slicing.slice_px=16", "slicing.num_slices=2"]
    config = read_config("configs/smoke.py", [f"--config.{override}" for override in overrides])
    data = prepare_data(config, Workdir(tmp_path / "run"))
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "leakage: 2 images are in both halves, train and test, such as again.bmp; one copy of each is" in out
    )
    told = describe_data(data, config)
    assert told["num_leaked"] == 2
    assert {skip["what"]: skip["reason"] for skip in told["skipped"]} == {
        "again.bmp": "leakage: has the same pixels as train00.png of the train half, and is itself of the test half; "
        "left out here",
        "defect.png": "leakage: has the same pixels as train11.png of the train half, and is itself of the test half; "
        "left out here",
        "twice.png": "has the same pixels as train02.png",
    }
    train, test = ({data.cache[i][0].tobytes() for i in part} for part in (data.split.train, data.split.test))
    assert not train & test


@pytest.mark.parametrize("mask_of_e", ["missing", "broken", "empty"])
def test_copies_leave_no_gaps_among_those_that_are_used(tmp_path: Path, mask_of_e: str) -> None:
    """Would catch: rows of the cache that move when a copy is taken out; a run that drops defective images without a
    usable mask before it looks for copies of them."""
    rows: list[tuple[str, int, Label, str]] = [
        ("a.png", 1, 0, ""), ("b.png", 2, 0, ""), ("c.png", 3, 1, ""), ("d.png", 2, 1, ""), ("e.png", 4, 1, ""),
        ("f.png", 5, 1, ""), ("g.png", 4, 0, ""), ("h.png", 1, 0, ""),
    ]  # fmt: skip
    root = table(tmp_path / "set", rows)
    if mask_of_e == "missing":
        root.write_text(root.read_text().replace("mask_e.png", ""))
    elif mask_of_e == "broken":
        (root.parent / "mask_e.png").write_bytes(b"")
    else:
        save(root.parent / "mask_e.png", 0 * spot())
    found, shape = find_images(DataConfig(root=str(root)), 0)
    whole, cache = build_cache(found, tmp_path / "cache", shape)
    assert [sample.image_id for sample in whole.samples] == ["a.png", "c.png", "f.png"]
    for place, seed in enumerate((1, 3, 5)):
        np.testing.assert_array_equal(cache[place][0], picture(seed))
        np.testing.assert_array_equal(cache[place][1], (spot() > 0) & (seed != 1))
    listed = {skip.what: skip.reason for skip in whole.skipped}
    assert listed.pop("h.png") == "has the same pixels as a.png"
    assert set(listed) == {"b.png", "d.png", "e.png", "g.png"}
    assert all("one label is wrong" in reason for reason in listed.values())


def test_layout_a_lists_labels_that_masks_contradict(tmp_path: Path) -> None:
    """Would catch: a defective image taught as good all over, and a good one whose mask nobody has looked at."""
    root = layout_a(tmp_path / "dagm")
    folder = root / "Class1" / "Train"
    save(folder / "Label" / "0011_label.PNG", np.zeros((512, 512), np.uint8))
    save(folder / "Label" / "0012_label.PNG", np.eye(512, dtype=np.uint8) * 255)
    save(folder / "Label" / "0013_label.PNG", np.zeros((512, 512), np.uint8))
    whole, listed = used_and_listed(root, tmp_path / "cache")
    assert "labelled defective, but mask is empty" in listed.pop("Class1/Train/0011")
    assert "labelled good, but mask marks 512 px" in listed.pop("Class1/Train/0012")
    assert listed == {} and len(whole.samples) == 20


@pytest.mark.parametrize("convention", ["mvtec", "plain", "table"])
def test_own_images_list_labels_that_masks_contradict(tmp_path: Path, convention: str) -> None:
    """Would catch: one convention whose masks of good images are passed over."""
    good, bad, masks_of_good, masks = {
        "mvtec": ("test/good", "test/hole", "ground_truth/good", "ground_truth/hole"),
        "plain": ("good", "defect", "masks", "masks"),
        "table": (".", ".", "m", "m"),
    }[convention]
    root = tmp_path / "set"
    if convention == "mvtec":
        save(root / "train/good/0.png", picture(20))
    places = [(good, masks_of_good)] * 2 + [(bad, masks)] * 2
    for number, ((folder, mask_folder), is_marked) in enumerate(zip(places, (1, 0, 0, 1), strict=True)):
        mask = is_marked * spot()
        save(root / folder / f"{number}.png", picture(number))
        save(root / mask_folder / f"{number}_mask.png", mask)
    if convention == "table":
        lines = [f"{n}.png,{int(n > 1)},m/{n}_mask.png" for n in range(4)]
        (root / "list.csv").write_text("\n".join(["path,label,mask", *lines]))
    whole, listed = used_and_listed(root / "list.csv" if convention == "table" else root, tmp_path / "cache")
    prefix = {"mvtec": "test/", "plain": "", "table": ""}[convention]
    names = [f"{prefix}{Path(folder).name}/".removeprefix("/") for folder in (good, bad)]
    assert "labelled good, but mask marks 18 px" in listed.pop(f"{names[0]}0.png".removeprefix("./"))
    assert "labelled defective, but mask is empty" in listed.pop(f"{names[1]}2.png".removeprefix("./"))
    assert listed == {}
    assert {Path(r.image_id).name for r in whole.samples} - {"0.png"} == {"1.png", "3.png"}


def test_prepared_sets_list_labels_that_masks_contradict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Would catch: the mask of a good record passed over."""
    save(tmp_path / "x.png", picture(0))
    save(tmp_path / "m.png", spot())
    image, mask = ((tmp_path / name).read_bytes() for name in ("x.png", "m.png"))
    sample = Sample("x", 1, 0, "train", Stored(tmp_path, "train", 0), None)
    monkeypatch.setattr(load, "read_example", lambda stored: (sample, image, mask))
    with pytest.raises(decode.BadImage, match="good, but mask marks 18 px"):
        load.load(sample, None)


@pytest.mark.parametrize(
    ("edge_px", "judged_at_a_time", "match"),
    [
        (8200, 1, r"`data\.root` .* size of 8200x8200 .*: 67240000 pixels, more than the limit of 6710886"),
        (
            8000,
            5,
            r"`train\.judge_batch_size` \(=5\) images of 8000x8000 .*more than the limit .*use at most 4",
        ),
    ],
)
def test_a_common_size_that_no_detector_may_have_is_refused_before_training(
    tmp_path: Path, edge_px: int, judged_at_a_time: int, match: str
) -> None:
    """Would catch: a run of hours whose report is then refused as damaged, because of one tall and one wide image."""
    for i in range(8):
        for kind, label in (("good", 0), ("defect", 1)):
            size = {0: (edge_px, 16), 1: (16, edge_px)}.get(i, (48, 80))
            save(tmp_path / "own" / kind / f"{kind}{i}.png", np.full(size, 20 * i + label, np.uint8))
            save(tmp_path / "own" / "masks" / f"{kind}{i}.png", np.full(size, 255 * label, np.uint8))
    overrides = [f"data.root={tmp_path / 'own'}", f"train.judge_batch_size={judged_at_a_time}"]
    config = read_config("configs/smoke.py", [f"--config.{override}" for override in overrides])
    with pytest.raises(UserError, match=match) as caught:
        prepare_data(config, Workdir(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_flat_images_and_nan_harm_no_statistic(tmp_path: Path) -> None:
    """Would catch: a mean, spread or baseline score of NaN, and a NaN that comes out of a file as some grey."""
    root = write_own(tmp_path / "own", num_good=10, num_defective=10)
    save(root / "good" / "flat.png", np.full((48, 80), 77, np.uint8))
    save(root / "good" / "black.tif", np.zeros((48, 80), np.uint8))
    floats = np.full((48, 80), 0.5, np.float32)
    floats[3, 3] = np.nan
    save(root / "good" / "nan.tif", floats)
    found, shape = find_images(DataConfig(root=str(root)), 0)
    whole, cache = build_cache(found, tmp_path / "cache", shape)
    ((what, reason),) = ((skip.what, skip.reason) for skip in whole.skipped)
    assert what == "good/nan.tif" and "image of kind F" in reason
    ids = [sample.image_id for sample in whole.samples]
    assert {"good/flat.png", "good/black.tif"} <= set(ids)
    pixels = np.concatenate([cache[i][0].ravel() for i in range(len(cache))]).astype(np.float64)
    assert cache.intensity_moments(range(len(cache))) == pytest.approx((pixels.mean(), pixels.std()))
    flat = ids.index("good/flat.png")
    assert cache.intensity_moments([flat]) == (77, 0)
    scores = [local_energy_score(cache[i][0]) for i in range(len(cache))]
    assert np.isfinite(scores).all() and scores[flat] == 0
    split = split_samples(
        whole.samples, "random80_20", 0.25, 0, [cache.mask_px(i) for i in range(len(cache))]
    )
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(len(cache)))
