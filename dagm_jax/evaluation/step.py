"""The evaluation step, a pure function: images are cut, slices go through network and task, maps are stitched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dagm_jax.data.slicing import Slicer, slice_labels
from dagm_jax.models.network import Network
from dagm_jax.tasks.base import SlicePrediction, Task, count_right

# Limit of slices of one image that go through the network together.
MOST_SLICES = 32
# Limit of pixels of slices that go through the network together on CPUs: their maps then stay in caches.
CPU_PART_PX = 2**16


def most_slices(platform: str, slicer: Slicer, images_of_a_device: int) -> int:
    """The number of slices of each image that go through the network together on a device."""
    if platform != "cpu":
        return MOST_SLICES
    height, width = slicer.slice_shape
    return min(MOST_SLICES, max(1, CPU_PART_PX // (height * width * images_of_a_device)))


def make_eval_step(
    network: Network, task: Task, slicer: Slicer, most: int = MOST_SLICES
) -> Callable[[Any, Any, Array, Array, Array], dict[str, Array]]:
    """The function ``step(params, stats, image [b h w] uint8, mask [b h w] bool, mask_px [b] int32)``.

    mask_px: size of the mask without padding. most: limit of slices of an image that go through the network together.

    It returns map float32 ``[b h w]``, slice_scores float32 ``[b n]``, loss float32 ``[b]`` (mean over the
    image's slices that count), and int32 ``[b]`` num_right of num_counted slices whose decision agrees with their label
    (both 0 where the task makes no decisions on slices).
    """

    def step(params: Any, stats: Any, image: Array, mask: Array, mask_px: Array) -> dict[str, Array]:
        b, n = image.shape[0], slicer.num_slices

        def cut(x: Array) -> Array:
            slices: Array = jax.vmap(lambda one: slicer.cut(one, jnp))(x[..., None])
            return slices.reshape(b * n, *slicer.slice_shape, 1)

        def predict_slices(slices: tuple[Array, Array, Array]) -> SlicePrediction:
            image, mask, label = slices
            forward, _ = network.apply(params, stats, train=False)
            return task.predict(forward, network.preprocess(image, mask, label, jnp.arange(label.shape[0])))

        held = jax.vmap(lambda one: slicer.held(one, jnp))(mask)
        label = slice_labels(held, mask_px[:, None], jnp).reshape(-1)
        loss_output, maps, scores = in_parts(predict_slices, (cut(image), cut(mask), label), b, most)
        weight = loss_output.weight.reshape(b, n)
        right = counted = jnp.zeros((b * n,), jnp.int32)
        if loss_output.is_defective is not None:
            right, counted = count_right(loss_output.is_defective, label, jnp.ones_like(label))
        stitched = jax.vmap(lambda one: slicer.stitch(one, jnp))(maps.reshape(b, n, *maps.shape[1:]))
        return {
            # A weighted mean may leave the range of its parts by a rounding.
            "map": jnp.clip(stitched[..., 0], 0.0, 1.0),
            "slice_scores": scores.reshape(b, n),
            "loss": (loss_output.loss.reshape(b, n) * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0),
            "num_right": right.reshape(b, n).sum(1),
            "num_counted": counted.reshape(b, n).sum(1),
        }

    return step


def in_parts(function: Callable[[Any], Any], slices: Any, num_images: int, most: int) -> Any:
    """``function(slices)``, computed for at most ``most`` slices of each image at a time; ``function`` mixes no slices.

    Memory then stays the same however many slices an image has. Each part holds slices of all images, so that devices
    which share the images share every part. Slices are ordered by image, and so are the results.
    """
    number = jax.tree.leaves(slices)[0].shape[0] // num_images
    if number <= most:
        return function(slices)
    num_parts = -(-number // most)
    size = -(-number // num_parts)

    def split(x: Array) -> Array:
        rows = x.reshape(num_images, number, *x.shape[1:])
        padded = jnp.pad(rows, [(0, 0), (0, num_parts * size - number), *[(0, 0)] * (x.ndim - 1)])
        parts = padded.reshape(num_images, num_parts, size, *x.shape[1:])
        return jnp.moveaxis(parts, 1, 0).reshape(num_parts, num_images * size, *x.shape[1:])

    def join(x: Array) -> Array:
        parts = jnp.moveaxis(x.reshape(num_parts, num_images, size, *x.shape[2:]), 0, 1)
        return parts.reshape(num_images, num_parts * size, *x.shape[2:])[:, :number].reshape(-1, *x.shape[2:])

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, slices)))
