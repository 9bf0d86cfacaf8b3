"""Images of a run: found, decoded, checked and split."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dagm_jax.config import RunConfig
from dagm_jax.console import console, show
from dagm_jax.data.cache import ImageCache, build_cache
from dagm_jax.data.config import FEW_DEFECTIVE, SlicingConfig, SplitRule
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.boxes import read_boxes
from dagm_jax.data.slicing import Slicer, slicer_for
from dagm_jax.data.split import Split, find_split, limit_labels
from dagm_jax.data.synthetic.draw import WithSynthetic
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import LEAST_GOOD
from dagm_jax.evaluation.programs import Shape, choose_shapes
from dagm_jax.evaluation.threshold import needs_normals, rule_for
from dagm_jax.experiment.trained_model import MOST_BATCH_PIXELS
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.types import MAX_PIXELS, Manifest, Photo


@dataclass(frozen=True)
class Data:
    """Images of a run: manifest, decoded cache, split, grey-level moments of the training split.

    rule: that of the split; slicing: the configuration's, with a mode for these images; slicer: of the largest image.
    seed: of synthetic defects that models are evaluated by.
    padded: sizes to which images are padded when they are judged whole, see `choose_shapes`.
    """

    manifest: Manifest
    cache: ImageCache
    rule: SplitRule
    split: Split
    slicing: SlicingConfig
    padded: tuple[Shape, ...]
    mean: float
    std: float
    seed: int

    @property
    def slicer(self) -> Slicer:
        return slicer_for(self.slicing, self.cache.largest, self.cache.largest)

    @cached_property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.manifest.samples]

    @property
    def splits(self) -> dict[str, Sequence[int]]:
        """Indices of the images of each split, by its name."""
        return vars(self.split)

    def of_label(self, indices: Sequence[int], label: int) -> list[int]:
        """The ``indices`` of images with this label."""
        return [i for i in indices if self.labels[i] == label]

    def masked(self, indices: Sequence[int]) -> list[int]:
        """The ``indices`` of defective images with a mask."""
        return [i for i in self.of_label(indices, 1) if self.manifest.samples[i].mask is not None]

    @cached_property
    def images(self) -> WithSynthetic:
        """The images, and good ones with synthetic defects."""
        return WithSynthetic(self.cache, self.of_label(self.split.train, 0), self.seed)

    @property
    def lacks_masks(self) -> bool:
        """Whether validation has no mask of a defect."""
        return not self.masked(self.split.validation)


def prepare_data(config: RunConfig, workdir: Workdir, processes: Processes = ALONE) -> Data:
    """The images, decoded, checked, split; raises UserError for too few, and if processes find others."""
    found, shape = find_images(config.data, config.seed)
    console.print(f"data: {found.description}")
    directory = Path(config.data.cache_dir).expanduser() if config.data.cache_dir else workdir.cache
    with show("decoding images", len(found.samples)) as bar:

        def on_image() -> None:
            processes.heartbeat()
            bar.advance()

        manifest, cache = processes.in_turns(
            lambda: build_cache(found, directory, shape, on_image, processes.heartbeat)
        )
    if config.data.boxes:
        manifest = add_boxes(manifest, found, cache, Path(config.data.boxes).expanduser())
    ids = [[sample.image_id, sample.label, sample.boxes] for sample in manifest.samples]
    processes.check_same("the images in `data.root`", json.dumps([ids, cache.shapes]))
    padded = choose_shapes(cache.shapes)
    check_sizes([cache.largest, *(padded if config.eval.tiling == "whole" else ())], config)
    print_skipped(manifest)
    mask_px = [cache.mask_px(i) for i in range(len(cache))]
    share, learns = config.data.validation_share, config.task.learns_from_defects
    needs_defects = learns and not config.task.learns_from_masks
    rule, split = find_split(manifest.samples, config.data.split, share, config.seed, mask_px, needs_defects)
    limits = config.data.max_masks, config.data.max_tags
    split, hidden = limit_labels(split, manifest.samples, *limits, config.seed)
    if hidden:
        samples = list(manifest.samples)
        for i in hidden:
            samples[i] = replace(samples[i], mask=None)
        manifest, cache = (
            replace(manifest, samples=tuple(samples)),
            replace(cache, unmarked=frozenset(hidden)),
        )
    if config.task.learns_from_masks:
        # Nothing is learnt from a tag: all of them help to choose the threshold.
        tagged = {i for i in split.train if manifest.samples[i].label and manifest.samples[i].mask is None}
        train = tuple(i for i in split.train if i not in tagged)
        split = Split(train, tuple(sorted({*split.validation, *tagged})), split.test)
    seen = [i for i in split.train if learns or not manifest.samples[i].label]
    mean, std = cache.intensity_moments(seen)
    are_own = any(isinstance(sample.image, Photo) for sample in manifest.samples)
    slicing = config.slicing.for_images(cache.shapes, are_own, config.task.out_channels == 1)
    if len(padded) > 1 and config.eval.tiling == "whole":
        shown = ", ".join(f"{height}x{width}" for height, width in padded)
        console.print(f"data: images are judged in {len(padded)} sizes, padded to {shown} px (h x w)")
    data = Data(manifest, cache, rule, split, slicing, padded, mean, std, config.seed)
    check_split(data, config)
    return data


def add_boxes(manifest: Manifest, found: Manifest, cache: ImageCache, table: Path) -> Manifest:
    """The ``manifest`` of the images in the cache with the boxes of the table, which may name all that were found."""
    shapes = {sample.image_id: shape for sample, shape in zip(manifest.samples, cache.shapes, strict=True)}
    boxes = read_boxes(table, found.samples, shapes)
    samples = tuple(replace(one, boxes=boxes.get(one.image_id, ())) for one in manifest.samples)
    num, num_kept = (sum(map(len, all_)) for all_ in (boxes.values(), [one.boxes for one in samples]))
    console.print(f"data: {num} boxes, {num - num_kept} of them on images that are left out")
    return replace(manifest, samples=samples)


def print_skipped(manifest: Manifest) -> None:
    """Prints what was left out of the data, such as copies of an image in both halves."""
    if skipped := manifest.skipped:
        shown = "; ".join(f"{skip.what}: {skip.reason}" for skip in skipped[:3])
        rest = ", …" if len(skipped) > 3 else ""
        console.print(f"data: {len(skipped)} left out ({shown}{rest}); all are listed in report.json")
    if leaked := [skip for skip in skipped if skip.leaks]:
        console.print(
            f"data: leakage: {len(leaked)} images are in both halves, train and test, such as {leaked[0].what}; one "
            "copy of each is left out, so that no image is tested on that was trained on"
        )


def check_split(data: Data, config: RunConfig) -> None:
    """Prints the sizes of the splits and what is learnt from; raises UserError where one lacks images of a label.

    Defective ones are needed by classification alone: without them the threshold follows from good images.
    """
    task = config.task
    needs_defects = task.learns_from_defects and not task.learns_from_masks
    sizes = [f"{name} {len(of)} ({len(data.of_label(of, 1))} defective)" for name, of in data.splits.items()]
    console.print(f"data: {', '.join(sizes)}; split {data.rule}")
    halves = {sample.half for sample in data.manifest.samples}
    if data.rule != "official" and halves >= {"train", "test"}:
        console.print("data: the set's own halves are mixed; --config.data.split=official keeps them")
    console.print(f"data: {task.name} learns from {describe_labels(data, config)}")
    for name, members in data.splits.items():
        for label, kind in ((1, "defective"), (0, "defect-free")):
            if (label == 0 or needs_defects) and not data.of_label(members, label):
                raise UserError(
                    f"`data`: the {name} split has no {kind} image, which {task.name} needs there; add some or change "
                    "`data.split`"
                )
    masked = {name: len(data.masked(members)) for name, members in data.splits.items()}
    if data.rule == "official" and masked["test"] and not masked["train"] and task.learns_from_masks:
        console.print(
            "data: all masks are in the test half; --config.data.split=random80_20 learns from a part of them"
        )
    if task.learns_from_masks and not masked["train"] and not config.data.synthetic_share:
        raise UserError(
            "`data.synthetic_share` (=0.0) leaves nothing to learn from: no training image has a mask; raise it"
        )
    check_threshold(data, config)
    if not data.of_label(data.split.test, 1):
        console.print("data: the test split has no defective image: nothing shows how real defects are found")


def check_threshold(data: Data, config: RunConfig) -> None:
    """Prints a threshold's rule that is not the configured one; raises UserError where good images are too few."""
    good, defective = (len(data.of_label(data.split.validation, label)) for label in (0, 1))
    by_synthetic = config.task.learns_from_masks and data.lacks_masks
    if needs_normals(defective, by_synthetic):
        console.print(
            f"data: validation has {defective} defective images, too few to choose a threshold by: it follows from the "
            f"{good} good ones (normals)"
        )
    verdict = rule_for([1] * defective, config.verdict, by_synthetic)
    if verdict.calibration == "normals" and good < LEAST_GOOD:
        raise UserError(
            f"`data`: validation has {good} good images; the threshold (normals) takes at least {LEAST_GOOD}: add "
            f"images, or raise `data.validation_share` (={config.data.validation_share})"
        )


def describe_labels(data: Data, config: RunConfig) -> str:
    """The labels that the network learns from, in words."""
    train = data.split.train
    good, defective = (len(data.of_label(train, label)) for label in (0, 1))
    if not config.task.learns_from_defects:
        return f"{good} good images alone"
    if not config.task.learns_from_masks:
        return f"{good} good and {defective} defective images"
    masked, share = len(data.masked(train)), synthetic_share(data, config)
    words = f"{good} good images, {share:.0%} of their slices with synthetic defects, and {masked} masks"
    validation = data.split.validation
    if tagged := len(data.of_label(validation, 1)) - len(data.masked(validation)):
        words += f"; {tagged} defective images without a mask help to choose the threshold alone"
    return words


def synthetic_share(data: Data, config: RunConfig) -> float:
    """The share of good slices with a synthetic defect: less the more masks there are."""
    masked = len(data.masked(data.split.train))
    share = config.data.synthetic_share * min(1.0, FEW_DEFECTIVE / max(masked, 1))
    return share if config.task.learns_from_masks else 0.0


def check_sizes(shapes: Sequence[Shape], config: RunConfig) -> None:
    """Raises UserError where a model of images that are continued to one of these (h, w) in px could not be loaded."""
    height, width = max(shapes, key=math.prod)
    size, num_px = f"{height}x{width} (height x width)", height * width
    if num_px > MAX_PIXELS:
        raise UserError(
            f"`data.root` (={config.data.root}): images are continued to a common size of {size}: {num_px} pixels, "
            f"more than the limit of {MAX_PIXELS}; crop or turn the images so that their sizes differ less"
        )
    batch_size = config.train.judge_batch_size
    if batch_size * num_px > MOST_BATCH_PIXELS:
        raise UserError(
            f"`train.judge_batch_size` (={batch_size}) images of {size}, the common size of all, are "
            f"{batch_size * num_px} pixels at a time, more than the limit of {MOST_BATCH_PIXELS}; use at most "
            f"{MOST_BATCH_PIXELS // num_px}"
        )
    if config.pools and config.eval.tiling == "whole" and num_px > config.eval.max_px:
        raise UserError(
            f"`model.norm` (=group) takes its statistics over an image, and tiles of one of {size} do not show it; "
            f"raise `eval.max_px` (={config.eval.max_px}), or train with norm=batch"
        )


def describe_data(data: Data, config: RunConfig) -> dict[str, Any]:
    """Source, sizes and what was left out, as JSON values; white: of 16-bit images, None without any."""
    photos = [s.image for s in data.manifest.samples if isinstance(s.image, Photo)]
    return {
        "source": data.manifest.description,
        "classes": list(config.data.classes),
        "split": data.rule,
        "learnt_from": describe_labels(data, config),
        "sides": {
            name: {"images": len(members), "defective_images": len(data.of_label(members, 1))}
            for name, members in data.splits.items()
        },
        "largest_px": list(data.cache.largest),
        "padded_px": [list(shape) for shape in data.padded],
        "white": max((photo.white or 0 for photo in photos), default=None),
        "num_skipped": len(data.manifest.skipped),
        "num_leaked": sum(skip.leaks for skip in data.manifest.skipped),
        "skipped": [{"what": skip.what, "reason": skip.reason} for skip in data.manifest.skipped],
    }
