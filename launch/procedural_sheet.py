"""A contact sheet of the procedural look-alikes beside real images, the statistics of both, and the drawing speed.

``python -m launch.procedural_sheet --root=DIR[,DIR] --output=docs/procedural.jpg``

DIR holds ``ClassN`` folders of layout A (any part of one will do; masks in ``Label/``); the first DIR that has a class
counts. Without ``--root`` the sheet and the table are of the look-alikes alone. The images of the sheet are numbers 0
and 1 of ``--seed``, taken as they come. ``--rounds=0`` leaves out the timing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from absl import flags
from PIL import Image, ImageDraw
from scipy import ndimage

from dagm_jax import command_line
from dagm_jax.data.images.png import read_image, read_mask
from dagm_jax.data.procedural import CLASSES, draw
from dagm_jax.main import guarded
from dagm_jax.types import UserError

SIZE_PX = 512
TILE_PX = 150
LAGS = (1, 4, 16, 64)
_MAX_REAL = 40
_GAP_PX, _MARGIN_PX, _CAPTION_PX = 3, 92, 14
_OUTLINE = (255, 60, 40)
_JPEG_QUALITY = 78


@dataclass(frozen=True)
class Picture:
    """image uint8 [512 512] and its mask bool [512 512], all False where nothing is defective or known."""

    image: np.ndarray
    mask: np.ndarray


# --- pictures ---


def find_real(roots: Sequence[Path], class_id: int) -> list[Picture]:
    """Up to 40 real images of a class, those with a known mask first; none where no root has the class."""
    for root in roots:
        paths = [
            path
            for path in sorted((root / f"Class{class_id}").rglob("*"))
            if path.suffix.lower() == ".png" and path.parent.name != "Label"
        ]
        if paths:
            labels = {path: path.parent / "Label" / f"{path.stem}_label.PNG" for path in paths}
            chosen = sorted(paths, key=lambda path: not labels[path].exists())[:_MAX_REAL]
            return [_read(path, labels[path]) for path in chosen]
    return []


def _read(path: Path, label: Path) -> Picture:
    """The picture in ``path``, with the mask in ``label`` if there is one."""
    shape = (SIZE_PX, SIZE_PX)
    mask = read_mask(label, shape) if label.exists() else np.zeros(shape, bool)
    return Picture(read_image(path, shape), mask)


def draw_picture(class_id: int, index: int, seed: int, defective: bool) -> Picture:
    """The look-alike as a picture."""
    drawing = draw(class_id, index, seed=seed, defective=defective, size_px=SIZE_PX)
    return Picture(drawing.image, drawing.mask)


def whole(picture: Picture) -> np.ndarray:
    """The picture at the size of a tile, its mask's outline in red, uint8 [150 150 3]."""
    small = Image.fromarray(picture.image).resize((TILE_PX, TILE_PX), Image.Resampling.BOX)
    rgb = np.array(small.convert("RGB"))
    mask = np.asarray(Image.fromarray(picture.mask).resize((TILE_PX, TILE_PX)), bool)
    rgb[mask & ~ndimage.binary_erosion(mask)] = _OUTLINE
    return rgb


def detail(picture: Picture) -> np.ndarray:
    """150 x 150 px of the picture as they are, about the middle of its mask or of the image, uint8 [150 150 3]."""
    row, col = ndimage.center_of_mass(picture.mask) if picture.mask.any() else (SIZE_PX / 2, SIZE_PX / 2)
    top, left = (int(np.clip(center - TILE_PX / 2, 0, SIZE_PX - TILE_PX)) for center in (row, col))
    cut = picture.image[top : top + TILE_PX, left : left + TILE_PX]
    return np.repeat(cut[:, :, None], 3, axis=2)


def compose(columns: dict[int, list[np.ndarray | None]], rows: Sequence[str]) -> Image.Image:
    """The sheet: a column for each class, a row for each kind of tile, empty where a tile is None."""
    step = TILE_PX + _GAP_PX
    sheet = Image.new(
        "RGB", (_MARGIN_PX + step * len(columns), _CAPTION_PX + step * len(rows)), (255, 255, 255)
    )
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        pen.text((2, _CAPTION_PX + step * y + TILE_PX // 2), row, fill=(0, 0, 0))
    for x, (class_id, tiles) in enumerate(columns.items()):
        pen.text((_MARGIN_PX + step * x + TILE_PX // 2 - 20, 1), f"class {class_id}", fill=(0, 0, 0))
        for y, tile in enumerate(tiles):
            if tile is not None:
                sheet.paste(Image.fromarray(tile), (_MARGIN_PX + step * x, _CAPTION_PX + step * y))
    return sheet


ROWS = ("real", "real, 1:1", "procedural,\ngood", "procedural,\ndefective", "procedural,\n1:1")


def make_column(class_id: int, real: list[Picture], seed: int) -> list[np.ndarray | None]:
    """The tiles of a class in the order of ROWS."""
    good, bad = (draw_picture(class_id, 0, seed, defective) for defective in (False, True))
    shown = real[0] if real else None
    return [
        None if shown is None else whole(shown),
        None if shown is None else detail(shown),
        *(whole(good), whole(bad), detail(bad)),
    ]


# --- numbers ---


def autocorrelation(image: np.ndarray, lag: int) -> float:
    """Autocorrelation along a row about the image's mean: mean(x[:, lag:] x[:, :-lag]) / mean(x^2)."""
    x = image.astype(np.float64) - image.mean()
    return float((x[:, lag:] * x[:, :-lag]).mean() / (x * x).mean())


def shared_background(images: Sequence[np.ndarray]) -> float:
    """Mean correlation of the means of 16-px blocks between two images; nan for a single one."""
    if len(images) < 2:
        return float("nan")
    n = SIZE_PX // 16
    blocks = [image.reshape(n, 16, n, 16).mean(axis=(1, 3)).ravel() for image in images]
    return float(np.corrcoef(blocks)[np.triu_indices(len(blocks), 1)].mean())


def row_of(name: str, images: Sequence[np.ndarray]) -> str:
    """The line of the Markdown table: means over images, ± sd of the level between them."""
    means = [float(image.mean()) for image in images]
    along = [
        " ".join(f"{np.mean([autocorrelation(turn(x), lag) for x in images]):.2f}" for lag in LAGS)
        for turn in (np.asarray, np.transpose)
    ]
    shared = shared_background(images)
    cells = [
        *(name, f"{len(images)}", f"{np.mean(means):.0f} ± {np.std(means):.0f}"),
        *(f"{np.mean([x.std() for x in images]):.0f}", *along, "" if np.isnan(shared) else f"{shared:.2f}"),
    ]
    return f"| {' | '.join(cells)} |"


def mask_row(class_id: int, seed: int, num_images: int) -> str:
    """The line of the Markdown table of masks: areas and the share of them that the defect changes."""
    areas = [int(draw_picture(class_id, i, seed, True).mask.sum()) for i in range(num_images)]
    return f"| {class_id} | {np.mean(areas):.0f} | {np.median(areas):.0f} | {min(areas)} | {max(areas)} |"


def seconds_per_image(class_id: int, rounds: int) -> float:
    """Best of ``rounds`` medians over 10 draws: other work on the machine only ever makes a round slower."""
    medians = []
    draw_picture(class_id, 0, 0, True)  # fills the caches that all later images of the class share
    for _ in range(rounds):
        times = []
        for index in range(10):
            start = time.perf_counter()
            draw_picture(class_id, index, 0, index % 2 == 1)
            times.append(time.perf_counter() - start)
        medians.append(median(times))
    return min(medians)


# --- command ---


@dataclass(frozen=True)
class Request:
    """What the command line asks for; the flags say what each means."""

    roots: Sequence[Path]
    output: Path
    classes: Sequence[int]
    seed: int
    num_images: int
    rounds: int


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    flags.DEFINE_list("root", [], "Folders with real images.", flag_values=values)
    flags.DEFINE_string("output", "procedural.jpg", "The contact sheet.", flag_values=values)
    flags.DEFINE_list("classes", list(map(str, CLASSES)), "Which classes.", flag_values=values)
    for name, default, meaning, least in (
        ("seed", 0, "Seed of the look-alikes.", 0),
        ("num_images", 20, "Look-alikes that the statistics are taken over.", 2),
        ("rounds", 5, "Rounds of timing; 0 for none.", 0),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=least, flag_values=values)
    return values


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    values = command_line.parse(make_flags(), argv, __doc__)
    roots = [Path(root).expanduser() for root in values.root]
    for root in roots:
        if not root.is_dir():
            raise UserError(
                f"`--root` (={root}) must be a folder with Class1, Class2, … in it; name an existing one"
            )
    known = {str(c): c for c in CLASSES}
    for name in values.classes:
        if name not in known:
            raise UserError(f"`--classes` (={name}) must be of {', '.join(known)}")
    classes = [known[name] for name in values.classes]
    return Request(roots, Path(values.output), classes, values.seed, values.num_images, values.rounds)


def print_statistics(request: Request, real: dict[int, list[Picture]]) -> None:
    """Two Markdown tables: the textures, real and procedural, and the procedural masks."""
    print("| class | images | mean | std | along a row, 1 4 16 64 px | along a column | shared |")
    print("|---|---|---|---|---|---|---|")
    for c in request.classes:
        if real[c]:
            print(row_of(f"{c} real", [picture.image for picture in real[c]]))
        drawn = [draw_picture(c, i, request.seed, False).image for i in range(request.num_images)]
        print(row_of(f"{c} procedural", drawn))
    print("\n| class | mean mask area, px | median | least | most |\n|---|---|---|---|---|")
    for c in request.classes:
        print(mask_row(c, request.seed, request.num_images))


def print_speed(request: Request) -> None:
    """A Markdown table of the milliseconds per 512x512 image, and images/s: classes over the sum of their seconds."""
    print("\n| class | ms per image |\n|---|---|")
    seconds = {c: seconds_per_image(c, request.rounds) for c in request.classes}
    for c, value in seconds.items():
        print(f"| {c} | {1000 * value:.1f} |")
    print(f"\n{len(seconds) / sum(seconds.values()):.0f} images/s, averaged over these classes")


def main(argv: Sequence[str]) -> None:
    """Writes the sheet, prints the tables."""
    request = parse_flags(argv)
    real = {c: find_real(request.roots, c) for c in request.classes}
    sheet = compose({c: make_column(c, real[c], request.seed) for c in request.classes}, ROWS)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(request.output, quality=_JPEG_QUALITY)
    print_statistics(request, real)
    if request.rounds:
        print_speed(request)
    print(f"\n{request.output}: {request.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    guarded(main, sys.argv)
