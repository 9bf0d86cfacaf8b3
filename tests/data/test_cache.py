"""Tests of the cache of decoded images: what goes in comes out, once, whole, and only if it can be read."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dagm_jax.data import cache as cache_module
from dagm_jax.data.cache import build_cache
from dagm_jax.errors import UserError
from dagm_jax.types import Drawn, Ellipse, Manifest, Photo, Sample

SHAPE = (24, 37)  # 888 pixels: a mask of whole bytes in a row that is no multiple of 8
REFUSED = {
    errno.ENOSPC: r"`data\.cache_dir` \(=.*\) cannot be written \(No space .*\); make room",
    errno.EROFS: r"`data\.cache_dir` \(=.*\) cannot be written \(Read-only .*\); make it writable",
    errno.EACCES: r"work in `data\.cache_dir` \(=.*\) met an error of the machine \(Permission denied",
    errno.EEXIST: r"`data\.cache_dir` \(=.*\) cannot be written \(File exists: .*\); name another",
}


def manifest_of(samples: list[Sample]) -> Manifest:
    return Manifest(tuple(samples), (), "test images")


def noise(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def blot(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.random.default_rng(seed + 1000).random(shape) < 0.3
    mask[-1, -1] = seed % 2 == 0  # the very last bit, both ways
    return mask


def png_record(
    folder: Path, name: str, seed: int, label: int = 0, class_id: int = 1, shape: tuple[int, int] = SHAPE
) -> Sample:
    """A record whose PNG files are written; image noise(seed), mask blot(seed) if defective."""
    image, mask = folder / f"{name}.png", folder / f"{name}_label.png"
    Image.fromarray(noise(seed, shape)).save(image)
    if label:
        Image.fromarray(blot(seed, shape).astype(np.uint8) * 255).save(mask)
    kind: Any = label
    return Sample(name, class_id, kind, None, image, mask if label else None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def four(folder: Path) -> list[Sample]:
    return [png_record(folder, name, k, label=k % 2) for k, name in enumerate("abcd")]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The image ids of each decoding that a build starts."""
    calls: list[list[str]] = []
    load_all = cache_module.load_all

    def counting(samples: Any, shape: Any) -> Iterator[Any]:
        calls.append([sample.image_id for sample in samples])
        return load_all(samples, shape)

    monkeypatch.setattr(cache_module, "load_all", counting)
    return calls


def files(directory: Path) -> list[str]:
    return sorted(path.suffix for path in directory.iterdir()) if directory.exists() else []


# --- what is left out ---


def test_unusable_files_are_listed_and_the_rest_goes_on(folder: Path, tmp_path: Path) -> None:
    """Would catch: a run that dies of one bad file, the layout's own skips lost, later images moved against their
    records by one, and a defective image trained with an empty mask because its mask file is broken."""
    samples = [*four(folder), png_record(folder, "e", 4, label=1)]
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e_label.png").write_bytes(b"")
    progress: list[int] = []
    earlier = cache_module.Skip("litter.txt", "is no image")
    manifest = Manifest(tuple(samples), (earlier,), "test images")
    kept, cache = build_cache(manifest, tmp_path / "cache", SHAPE, on_image=lambda: progress.append(1))
    assert [r.image_id for r in kept.samples] == ["a", "c", "d"]
    assert len(cache) == 3
    for place, seed in enumerate((0, 2, 3)):
        np.testing.assert_array_equal(cache[place][0], noise(seed))
    already, first, second = kept.skipped
    assert already == earlier and kept.description == "test images"
    assert (first.what, second.what) == ("b", "e")
    assert "b.png: truncated" in first.reason and "e_label.png: file is empty" in second.reason
    assert len(progress) == 5


def test_a_class_with_nothing_readable_is_refused(folder: Path, tmp_path: Path) -> None:
    """Would catch: a run on classes (1, 8) that trains on class 1 alone without a word, or names a file of class 1."""
    samples = [*four(folder), png_record(folder, "x", 7, class_id=8), png_record(folder, "y", 8, class_id=8)]
    for name in ("a.png", "x.png"):
        (folder / name).write_bytes(b"")
    (folder / "y.png").unlink()
    with pytest.raises(
        UserError,
        match=r"`data\.classes`: no image of class 8 could be read; the first of 2: x: .*x\.png: file is empty",
    ):
        build_cache(manifest_of(samples), tmp_path / "cache", SHAPE)


def test_a_second_build_decodes_nothing(folder: Path, tmp_path: Path, decoded: list[list[str]]) -> None:
    """Would catch: a resumed run that decodes a thousand images again, or loses the list of skips."""
    samples = four(folder)
    (folder / "c.png").write_bytes(b"")
    first, cache = build_cache(manifest_of(samples), tmp_path / "cache", SHAPE)
    assert decoded == [["a", "b", "c", "d"]]
    again, same = build_cache(manifest_of(samples), tmp_path / "cache", SHAPE)
    assert len(decoded) == 1
    assert (again, same) == (first, cache)
    assert [skip.what for skip in again.skipped] == ["c"]
    assert len(files(tmp_path / "cache")) == 2


@pytest.mark.parametrize("changed", ["a.png", "b_label.png"])
def test_a_changed_file_is_decoded_again(
    folder: Path, tmp_path: Path, decoded: list[list[str]], changed: str
) -> None:
    """Would catch: a corrected image or mask that the run does not see, because a cache of old pixels is there."""
    samples = four(folder)
    build_cache(manifest_of(samples), tmp_path / "cache", SHAPE)
    status = (folder / changed).stat()
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[3, 4] = 255
    Image.fromarray(pixels).save(folder / changed)
    os.utime(folder / changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    _, cache = build_cache(manifest_of(samples), tmp_path / "cache", SHAPE)
    assert len(decoded) == 2
    seen = cache[0][0] if changed == "a.png" else cache[1][1]
    np.testing.assert_array_equal(np.flatnonzero(seen), [3 * SHAPE[1] + 4])


def test_other_records_and_shapes_have_their_own_cache(tmp_path: Path, decoded: list[list[str]]) -> None:
    """Would catch: a shared cache folder that gives one run another run's seed, label, half, ellipse or size."""
    ellipses = [Ellipse(9.0, 5.0, 0.1, 60.0, 60.0), Ellipse(9.0, 5.0, 0.1, 61.0, 60.0)]
    variants = [
        ([Sample("a", 1, 0, None, Drawn(0, 1, 0), None)], 128),
        ([Sample("a", 1, 0, None, Drawn(1, 1, 0), None)], 128),
        ([Sample("a", 1, 0, "test", Drawn(0, 1, 0), None)], 128),
        ([Sample("a", 1, 1, None, Drawn(0, 1, 0), Drawn(0, 1, 0))], 128),
        ([Sample("a", 1, 1, None, Drawn(0, 1, 0), ellipses[0])], 128),
        ([Sample("a", 1, 1, None, Drawn(0, 1, 0), ellipses[1])], 128),
        ([Sample("a", 1, 1, None, Drawn(0, 1, 0), None)], 128),
        ([Sample("a", 1, 0, None, Drawn(0, 1, 0), None)], 144),
    ]
    caches = [build_cache(manifest_of(r), tmp_path, (px, px))[1] for r, px in variants]
    assert len({cache.path for cache in caches}) == len(decoded) == len(variants)
    np.testing.assert_array_equal(caches[5][0][1], ellipses[1].rasterise((128, 128)))


@pytest.mark.parametrize(
    "damage",
    ["no list", "no pixels", "few pixels", b"{", b"\xff\xfe{}", b"[]", b"[" * 200_000,
     ('"kept": [0, 1, 2, 3]', '"kept": [0, 1, 3, 2]'), ('"white": null', '"white": 4095')],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_damaged_cache_is_written_again(
    folder: Path, tmp_path: Path, decoded: list[list[str]], damage: str | bytes | tuple[str, str]
) -> None:
    """Would catch: a trace, or images under other records' names, after a run killed between the two files, a folder
    cleaned up in part, a file cut by a failing disk, or a list that a disk or a stranger has changed."""
    manifest = manifest_of(four(folder))
    first, cache = build_cache(manifest, tmp_path / "cache", SHAPE)
    index = cache.path.with_suffix(".json")
    if isinstance(damage, tuple):
        before = index.read_text()
        assert damage[0] in before
        index.write_text(before.replace(*damage))
    elif isinstance(damage, bytes):
        index.write_bytes(damage)
    elif damage == "few pixels":
        cache.path.write_bytes(cache.path.read_bytes()[:100])
    else:
        (index if damage == "no list" else cache.path).unlink()
    again, same = build_cache(manifest, tmp_path / "cache", SHAPE)
    assert (again, same) == (first, cache) and len(decoded) == 2
    np.testing.assert_array_equal(same[3][0], noise(3))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Would catch: a trace instead of "make room"; half a cache under its final name; "the disk is full" where the
    folder may not be written. The write of the third image fails."""
    load_all = cache_module.load_all

    def failing(samples: Any, shape: Any) -> Iterator[Any]:
        for count, loaded in enumerate(load_all(samples, shape)):
            if count == 2:
                assert not any(s in (".bin", ".json") for s in files(tmp_path / "cache"))
                raise OSError(number, os.strerror(number))
            yield loaded

    manifest = manifest_of(four(folder))
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "load_all", failing)
        with pytest.raises(UserError, match=REFUSED[number]) as error:
            build_cache(manifest, tmp_path / "cache", SHAPE)
    assert "\n" not in str(error.value)
    assert files(tmp_path / "cache") == []
    assert len(build_cache(manifest, tmp_path / "cache", SHAPE)[1]) == 4
    assert files(tmp_path / "cache") == [".bin", ".json"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=REFUSED[errno.EEXIST]):
        build_cache(manifest, tmp_path / "file", SHAPE)


def test_images_of_many_sizes_come_out_as_they_went_in(folder: Path, tmp_path: Path) -> None:
    """Would catch: a row that begins where the first image's size would put it, exchanged edges, a mask of the next,
    mask bits in another order or lost in the last byte; all images copied into each worker; a negative index that
    reads another image."""
    shapes = [(24, 37), (5, 7), (37, 24), (1, 3), (24, 37)]
    samples = [png_record(folder, f"{k}", k, k % 2, shape=shape) for k, shape in enumerate(shapes)]
    kept, cache = build_cache(manifest_of(samples), tmp_path, None)
    assert kept == manifest_of(samples)
    assert (len(cache), cache.shape, cache.largest) == (5, None, (37, 37))
    cache[0]  # a map that was opened before must not travel to a worker process
    text = pickle.dumps(cache)
    assert len(text) < 1000
    for again in (cache, pickle.loads(text)):
        for index in (-1, 5):
            with pytest.raises(IndexError, match=f"image {index} of 5"):
                again[index]
        for k, shape in enumerate(shapes):
            image, mask = again[k]
            assert (image.dtype, mask.dtype) == (np.uint8, bool)
            np.testing.assert_array_equal(image, noise(k, shape))
            np.testing.assert_array_equal(mask, blot(k, shape) & bool(k % 2))
            assert again.mask_px(k) == mask.sum()
    _, whole = build_cache(manifest_of(samples), tmp_path, None)
    assert whole == cache


def test_the_white_level_is_kept_and_belongs_to_all_images(
    folder: Path, tmp_path: Path, decoded: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: 16-bit files decoded at every start for their white level; grey values on the scale that the set had
    before a brighter image joined it; records whose white level is not known when they are judged."""
    for name, value in (("a", 1000), ("b", 4000)):
        Image.fromarray(np.full(SHAPE, value, np.uint16)).save(folder / f"{name}.png")
    samples = [Sample(name, 1, 0, None, Photo(folder / f"{name}.png"), None) for name in "ab"]
    looked_into: list[int] = []

    def build(some: list[Sample]) -> tuple[set[int | None], int]:
        kept, cache = build_cache(
            manifest_of(some), tmp_path / "cache", None, heartbeat=lambda: looked_into.append(1)
        )
        whites = {sample.image.white for sample in kept.samples if isinstance(sample.image, Photo)}
        return whites, int(cache[0][0][0, 0])

    first = [build(samples[:1]), build(samples)]
    assert first == [({1023}, 249), ({4095}, 62)]
    assert (len(looked_into), len(decoded)) == (3, 2)
    monkeypatch.setattr(cache_module, "find_white", None)
    assert [build(samples[:1]), build(samples)] == first
    assert len(decoded) == 2
