"""DAGM 2007 compared with the table of the published data set: each image's number, split and label.

Training takes a part of a class; what calls itself the data set has to be whole, and is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dagm_jax.console import show
from dagm_jax.data.formats.tfds_reader import LABELS
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import in_threads, load, read_image
from dagm_jax.errors import UserError, printable
from dagm_jax.types import DAGM_SHAPE, Manifest, Sample

_TABLE = Path(__file__).parent / "dagm2007" / "truth.json"
# Names of one kind of difference in a message.
_MAX_NAMED = 5

# Class number -> id of each image, train before test, rising -> its label, 0 or 1.
Truth = Mapping[int, Mapping[str, int]]


def read_truth(path: Path = _TABLE) -> Truth:
    """The truth in a JSON table ``{"1": {"test": {"first", "count", "defective"}, "train": …}, …}``.

    first, count: the split's numbers, without gaps; defective: those of defective images. Without an argument the
    published data set's: ten classes, 16,100 images.
    """
    truth: dict[int, dict[str, int]] = {}
    for class_id, splits in json.loads(path.read_text()).items():
        labels = truth[int(class_id)] = {}
        for name in ("train", "test"):
            split, defective = splits[name], set(splits[name]["defective"])
            for number in range(split["first"], split["first"] + split["count"]):
                labels[f"Class{class_id}/{name.capitalize()}/{number:04d}"] = int(number in defective)
    return truth


def check_whole(manifest: Manifest, class_id: int, truth: Truth) -> tuple[Sample, ...]:
    """The samples of the class in the order of the truth: train before test, by number.

    ``manifest`` holds this class alone, in layout A or a prepared set. Raises one UserError that names the differences
    from the truth, or refuses layout B, where images have other numbers.
    """
    if manifest.samples[0].half is None:
        raise UserError(
            f"class {class_id} is there in layout B (Class{class_id}_def), whose numbers are not those of the published"
            " splits; take layout A (Train, Test), or train on this folder without preparing it"
        )
    labels, found = truth[class_id], {sample.image_id: sample for sample in manifest.samples}
    differences = {
        "labelled otherwise": [
            f"{name} (is {LABELS[found[name].label]}, should be {LABELS[label]})"
            for name, label in labels.items()
            if name in found and found[name].label != label
        ],
        "not part of the data set": [name for name in found if name not in labels],
        "missing": [name for name in labels if name not in found],
    }
    if any(differences.values()):
        differences["left out"] = [f"{skip.what} ({skip.reason})" for skip in manifest.skipped]
        parts = [f"{len(names)} {kind}: {_first_few(names)}" for kind, names in differences.items() if names]
        raise UserError(
            f"class {class_id} differs from the published data set ({manifest.description}): {'; '.join(parts)};"
            f" unpack Class{class_id} again, whole"
        )
    return tuple(found[name] for name in labels)


def _first_few(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def check_pixels(samples: Sequence[Sample]) -> None:
    """Decodes every image and mask: 512x512, 8-bit grey, masks in {0, 255} with some 255.

    Raises one UserError that names the files at fault.
    """
    problems = []
    with show("checking images", len(samples)) as bar:
        for problem in in_threads(_find_problem, samples):
            if problem is not None:
                problems.append(problem)
            bar.advance()
    if problems:
        raise UserError(
            f"{len(problems)} of {len(samples)} images differ from the published data set: {_first_few(problems)};"
            " unpack them again"
        )


def _find_problem(sample: Sample) -> str | None:
    """The fault of a sample's files, or None."""
    try:
        load(sample, DAGM_SHAPE)
        if isinstance(sample.mask, Path):
            between = np.setdiff1d(read_image(sample.mask, DAGM_SHAPE), (0, 255))
            if between.size:
                return f"{printable(sample.mask)}: mask holds {between[0]}, should hold 0 and 255 alone"
    except BadImage as error:
        return str(error)
    return None
