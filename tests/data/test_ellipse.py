"""The weak label's shape against hand values and, where the real data lies, the official masks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dagm_jax.data.formats.ellipse import rasterise
from dagm_jax.types import Ellipse


def test_hand_values() -> None:
    """Catches a 0-based centre, swapped axes, or a border pixel left out."""
    mask = rasterise(Ellipse(2, 1, 0.0, 3, 2), (5, 6))
    assert mask.dtype == bool
    assert mask.astype(int).tolist() == [
        [0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_angle_turns_from_columns_to_rows() -> None:
    """Catches an angle of the wrong sign: at 45 degrees the long axis runs to the lower right."""
    mask = rasterise(Ellipse(6, 1, np.pi / 4, 8, 8), (15, 15))
    assert mask[3, 3] and mask[11, 11]
    assert not mask[3, 11] and not mask[11, 3]


def test_window_changes_nothing() -> None:
    """Catches a bounding box that cuts the ellipse, also at and beyond the border."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:40, :60]
    for _ in range(200):
        e = Ellipse(*rng.uniform(0.5, 40, 2), rng.uniform(-4, 4), rng.uniform(-30, 90), rng.uniform(-30, 70))
        dx, dy = cols + 1 - e.center_x, rows + 1 - e.center_y
        u = dx * np.cos(e.angle_rad) + dy * np.sin(e.angle_rad)
        v = -dx * np.sin(e.angle_rad) + dy * np.cos(e.angle_rad)
        inside = (u / e.semi_a) ** 2 + (v / e.semi_b) ** 2 <= 1
        np.testing.assert_array_equal(rasterise(e, (40, 60)), inside)


def test_official_masks() -> None:
    """Catches any departure from the official pixels, and a wrong mapping of layout B's numbers to A's."""
    if "DAGM_ROOT" not in os.environ:
        pytest.skip("DAGM_ROOT is not set: no official masks to compare with")
    root = Path(os.environ["DAGM_ROOT"])
    labels = root / "mpi_labels" / "Class1_def.labels.txt"
    masks = sorted(root.glob("samples/Class1/*/Label/*_label.PNG"))
    if not labels.is_file() or not masks:
        pytest.skip(f"{root} holds no ellipse file or no masks of class 1")
    fields = [line.split() for line in labels.read_text().splitlines() if line.strip()]
    rows = {int(f[0]): [float(x) for x in f[1:6]] for f in fields}
    by_name = sorted(rows, key=str)
    halves = json.loads((root / "defective_index.json").read_text())["Class1"]
    numbers = sorted(halves["train_defective"] + halves["test_defective"])
    for path in masks:
        with Image.open(path) as file:
            official = np.asarray(file.convert("L")) > 127
        number = int(path.name.split("_")[0])
        drawn = rasterise(Ellipse(*rows[by_name[numbers.index(number)]]), official.shape)
        np.testing.assert_array_equal(drawn, official, err_msg=path.name)
