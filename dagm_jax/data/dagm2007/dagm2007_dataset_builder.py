"""The TFDS builder ``dagm2007``: ten classes of textures with weakly labelled defects, verified as published."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.util import DownloadError

from dagm_jax.data.archive import extract
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.formats.tfds_reader import CONFIGS, LABELS
from dagm_jax.data.formats.tfds_reader import VERSION as LATEST
from dagm_jax.data.images.load import load
from dagm_jax.data.verify import Truth, check_pixels, check_whole, read_truth
from dagm_jax.errors import UserError, printable
from dagm_jax.types import DAGM_SHAPE, Sample

_SHAPE = (*DAGM_SHAPE, 1)


class Builder(tfds.core.GeneratorBasedBuilder):
    """DAGM 2007; configurations ``class1`` … ``class10`` and ``all``, splits ``train`` and ``test``.

    ``TRUTH`` is what the source is checked against, ``URL`` the address of a class's archive.
    """

    VERSION = tfds.core.Version(LATEST)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {LATEST: "First release."}
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name=name, description=f"Classes {', '.join(map(str, classes))}.")
        for name, classes in CONFIGS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: a folder with the ClassN folders of DAGM 2007, unpacked (ClassN/Train, ClassN/Test). If the folder"
        " is missing or empty, the classes are downloaded."
    )
    TRUTH: ClassVar[Truth] = read_truth()
    URL: ClassVar[str] = "https://zenodo.org/records/8086136/files/Class{class_id}.zip"

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=_SHAPE, encoding_format="png"),
                    "mask": tfds.features.Image(shape=_SHAPE, encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                    "class_id": tfds.features.Scalar(dtype=np.int32),
                    "image_id": tfds.features.Text(),
                    "ellipse_box": tfds.features.BBoxFeature(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.5281/zenodo.8086136",
            license="CC BY 4.0",
            # By number, so that a record's place is the same in every copy of the set.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        samples: list[Sample] = []
        for class_id, root in self._roots(dl_manager).items():
            samples += check_whole(read_tree(root, (class_id,)), class_id, self.TRUTH)
        check_pixels(samples)
        return {
            split: self._generate_examples([sample for sample in samples if sample.half == split])
            for split in ("train", "test")
        }

    def _roots(self, dl_manager: tfds.download.DownloadManager) -> dict[int, Path]:
        """Class number -> the folder to read it from: the manual one, or a freshly unpacked download."""
        classes = CONFIGS[self.builder_config.name]
        try:
            return dict.fromkeys(classes, Path(dl_manager.manual_dir))
        except AssertionError:  # how TFDS says that there is no manual folder, or nothing in it
            pass
        urls = {str(c): self.URL.format(class_id=c) for c in classes}
        try:
            archives = dl_manager.download(urls)
        except (OSError, DownloadError) as error:
            reason = printable(" ".join(str(error).split()))
            raise UserError(
                f"{', '.join(urls.values())} could not be downloaded ({reason}); try again, or download it by other"
                " means, unpack it and name the folder"
            ) from error
        return {c: _unpacked(Path(archives[str(c)]), c) for c in classes}

    def _generate_examples(self, samples: Sequence[Sample]) -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate(map(example, samples))


def _unpacked(archive: Path, class_id: int) -> Path:
    """The folder that the archive is unpacked in, which is done once for each content of the archive."""
    status = archive.stat()
    # Named ClassN, so that it makes no difference whether the archive holds that folder or what is in it.
    version = f"{archive.name}-{status.st_size}-{status.st_mtime_ns}"
    folder = archive.parent / "extracted" / version / f"Class{class_id}"
    if not folder.is_dir():
        extract(archive, folder)
    return folder


def example(sample: Sample) -> dict[str, Any]:
    """The features of a sample, image and mask as PNG bytes; ``ellipse_box`` is the mask's box, 0 without a mask."""
    image, mask = load(sample, DAGM_SHAPE)
    return {
        "image": _png(image, sample.image),
        "mask": _png(mask.astype(np.uint8) * 255, sample.mask),
        "label": sample.label,
        "class_id": sample.class_id,
        "image_id": sample.image_id,
        "ellipse_box": box_of(mask),
    }


def box_of(mask: np.ndarray) -> tfds.features.BBox:
    """The box around the set pixels of a mask bool [h w], as shares of height and width, edges included.

    ymin, xmin: first row and column with a set pixel; ymax, xmax: those behind the last. All 0 without one.
    """
    (rows, cols), (height, width) = mask.nonzero(), mask.shape
    if not rows.size:
        return tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
    edges = rows.min() / height, cols.min() / width, (rows.max() + 1) / height, (cols.max() + 1) / width
    return tfds.features.BBox(*map(float, edges))


def _png(pixels: np.ndarray, source: object) -> bytes:
    """``pixels``, uint8 [h w], as PNG: the source file's own bytes where they are 8-bit grey, else written anew."""
    if isinstance(source, Path):
        data = source.read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.mode == "L" and "transparency" not in picture.info:
                return data
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
