"""TFDS's own test case for the builder, and tfds.load, with TensorFlow: ``pip install -e '.[tfds-test]'``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import small_dagm

pytestmark = [
    pytest.mark.tfds,
    # Warnings of TensorFlow and TFDS about themselves.
    pytest.mark.filterwarnings("ignore"),
]
MISSING = "the extra tfds-test (pip install -e '.[tfds-test]') is not installed"
tf = pytest.importorskip("tensorflow", reason=MISSING)
pytest.importorskip("dill", reason=MISSING)

import tensorflow_datasets as tfds  # noqa: E402

from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder  # noqa: E402
from dagm_jax.data.verify import read_truth  # noqa: E402

TRUTH = read_truth(small_dagm.DUMMY_DATA / "truth.json")


class OnDummyData(tfds.testing.DatasetBuilderTestCase):
    """The base of the cases below: the dummy data are the published set for as long as they run."""

    DATASET_CLASS = Builder
    SKIP_CHECKSUMS = True  # none are published
    __test__ = False

    def setUp(self) -> None:
        patch = mock.patch.object(Builder, "TRUTH", TRUTH)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


class TestEachClass(OnDummyData):
    """Would catch: whatever TFDS asks of a builder and ours lacks, in each configuration of one class."""

    SPLITS = {"train": 3, "test": 2}  # noqa: RUF012
    BUILDER_CONFIG_NAMES_TO_TEST = [f"class{c}" for c in range(1, 11)]  # noqa: RUF012
    __test__ = True


class TestAllClasses(OnDummyData):
    """Would catch: the same in the configuration of all classes."""

    SPLITS = {"train": 30, "test": 20}  # noqa: RUF012
    BUILDER_CONFIG_NAMES_TO_TEST = ["all"]  # noqa: RUF012
    __test__ = True


@pytest.fixture
def _dummy_truth() -> Iterator[None]:
    with mock.patch.object(Builder, "TRUTH", TRUTH):
        yield


@pytest.mark.usefixtures("_dummy_truth")
def test_load_gives_what_the_data_source_gives(tmp_path: Path) -> None:
    """Would catch: images that TensorFlow decodes otherwise than Pillow; a tfrecord set in another order."""
    config = tfds.download.DownloadConfig(manual_dir=small_dagm.DUMMY_DATA, try_download_gcs=False)
    where = {"split": "train", "data_dir": tmp_path / "tf"}
    options = {"download_config": config}
    loaded = tfds.load("dagm2007/class1", **where, download_and_prepare_kwargs=options)
    assert list((tmp_path / "tf/dagm2007/class1/1.0.0").glob("*.tfrecord-*"))
    builder = tfds.builder("dagm2007/class1", data_dir=tmp_path / "np")
    builder.download_and_prepare(download_config=config, file_format="array_record")
    source = builder.as_data_source("train")
    found = list(tfds.as_numpy(loaded))
    assert len(found) == len(source) == 3
    for one, two in zip(found, source, strict=True):
        assert set(one) == set(two)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    pairs = tfds.as_numpy(tfds.load("dagm2007/class1", **where, as_supervised=True))
    assert [(image.shape, int(label)) for image, label in pairs] == [((512, 512, 1), n) for n in (0, 1, 0)]
