"""The evaluation step, a pure function of a batch of images: network, task, and the map put together.

Images go through the network whole, or in slices as in training, whose maps are stitched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dagm_jax.data.slicing import Slicer, slice_labels
from dagm_jax.evaluation.postprocess import inside
from dagm_jax.models.network import Network
from dagm_jax.tasks.base import Forward, SlicePrediction, Task, count_right
from dagm_jax.types import NetworkOutput

# Limit of slices of one image that go through the network together.
MOST_SLICES = 32
# Limit of pixels of slices that go through the network together on CPUs: their maps then stay in caches.
CPU_PART_PX = 2**16

# ``step(params, stats, image [b h w] uint8, mask [b h w] bool, mask_px [b] int32, size [b 2] int32)`` takes padded
# images; mask_px is the size of each mask, and size the (h, w) of each image, without padding. It returns map float32
# ``[b h w]``, slice_scores float32 ``[b n]`` (n = 1 for whole images), loss float32 ``[b]``, and int32 ``[b]``
# num_right of num_counted decisions, on slices or the image, that agree with the label (0 where the task makes none).
EvalStep = Callable[[Any, Any, Array, Array, Array, Array | None], dict[str, Array]]


def make_whole_step(
    network: Network,
    task: Task,
    slice_shape: tuple[int, int],
    flips: bool = False,
    tile_px: int | None = None,
    halo_px: int = 0,
) -> EvalStep:
    """The step for whole images of a network that is trained on slices of ``slice_shape``.

    Pixels beyond ``size`` count in no loss, score or decision; None: there are none. Decision and label are those of
    the image. flips: the mean over four mirror images. tile_px: edge of the tiles with a halo of ``halo_px`` in which
    images go through the network, None for all at once.
    """

    def step(
        params: Any, stats: Any, image: Array, mask: Array, mask_px: Array, size: Array | None = None
    ) -> dict[str, Array]:
        forward, _ = network.apply(params, stats, train=False)
        if tile_px is not None:
            forward = in_tiles(forward, tile_px, halo_px)
        valid = None if size is None else inside(image.shape[1:], size)[..., None]
        label = (mask_px > 0).astype(jnp.int32)
        place = jnp.arange(image.shape[0])

        def predict(*dims: int) -> SlicePrediction:
            """The prediction for the images flipped along ``dims``, its map turned back."""
            seen, marked, counts = jax.tree.map(
                partial(jnp.flip, axis=dims), (image.reshape(*image.shape, 1), mask[..., None], valid)
            )
            slices = network.preprocess(seen, marked, label, place, counts, slice_shape)
            found = task.predict(forward, slices)
            return found._replace(map=jnp.flip(found.map, dims))

        views = [predict(*dims) for dims in (((), (1,), (2,), (1, 2)) if flips else ((),))]
        loss, is_defective = views[0].loss_output.loss, views[0].loss_output.is_defective
        right = counted = jnp.zeros_like(label)
        if is_defective is not None:
            right, counted = count_right(is_defective, label, jnp.ones_like(label))
        return {
            "map": jnp.mean(jnp.stack([view.map[..., 0] for view in views]), axis=0),
            "slice_scores": jnp.mean(jnp.stack([view.score[:, None] for view in views]), axis=0),
            "loss": loss,
            "num_right": right,
            "num_counted": counted,
        }

    return step


def in_tiles(forward: Forward, tile_px: int, halo_px: int) -> Forward:
    """``forward``, computed for tiles of ``tile_px`` with a halo of ``halo_px`` around them, one after the other.

    The output is that of the whole image where the halo is at least the network's receptive field, and edges of images,
    tiles and halo are multiples of its down-sampling. At the image's border a tile ends where the image does.
    """

    def tiled(x: Float[Array, "b h w c"], key: PRNGKeyArray | None) -> NetworkOutput:
        size = x.shape[1:3]
        tile = [min(tile_px, length) for length in size]
        window = [min(length, core + 2 * halo_px) for length, core in zip(size, tile, strict=True)]
        counts = [math.ceil(length / core) for length, core in zip(size, tile, strict=True)]

        def see(first: Any) -> NetworkOutput:
            shape = (x.shape[0], *window, x.shape[3])
            output: NetworkOutput = forward(jax.lax.dynamic_slice(x, (0, *first, 0), shape), key)
            return output

        def whole(part: Any) -> Array:
            height, width = (
                n * length // w for n, length, w in zip(part.shape[1:3], size, window, strict=True)
            )
            return jnp.zeros((part.shape[0], height, width, part.shape[3]), part.dtype)

        def add(number: Array, outputs: NetworkOutput) -> NetworkOutput:
            # The last tile reaches into its neighbour where the edge of the image is no multiple of the tile's.
            start = [
                jnp.minimum(place * core, length - core)
                for place, core, length in zip(divmod(number, counts[1]), tile, size, strict=True)
            ]
            first = [
                jnp.clip(begin - halo_px, 0, length - w)
                for begin, length, w in zip(start, size, window, strict=True)
            ]

            def put(output: Array, part: Array) -> Array:
                step = size[0] // output.shape[1]
                inside = [(begin - edge) // step for begin, edge in zip(start, first, strict=True)]
                core = (part.shape[0], *(length // step for length in tile), part.shape[3])
                cut = jax.lax.dynamic_slice(part, (0, *inside, 0), core)
                return jax.lax.dynamic_update_slice(output, cut, (0, *(begin // step for begin in start), 0))

            together: NetworkOutput = jax.tree.map(put, outputs, see(first))
            return together

        empty: NetworkOutput = jax.tree.map(whole, jax.eval_shape(see, [0, 0]))
        output: NetworkOutput = jax.lax.fori_loop(0, counts[0] * counts[1], add, empty)
        return output

    return tiled


def most_slices(platform: str, slicer: Slicer, images_of_a_device: int) -> int:
    """The number of slices of each image that go through the network together on a device."""
    if platform != "cpu":
        return MOST_SLICES
    height, width = slicer.slice_shape
    return min(MOST_SLICES, max(1, CPU_PART_PX // (height * width * images_of_a_device)))


def make_sliced_step(network: Network, task: Task, slicer: Slicer, most: int = MOST_SLICES) -> EvalStep:
    """The step for images that are cut by ``slicer``, as in training; ``most`` slices of an image go together.

    Losses are means over the image's slices that count. Pixels beyond ``size`` are mirror images, and count.
    """

    def step(
        params: Any, stats: Any, image: Array, mask: Array, mask_px: Array, size: Array | None = None
    ) -> dict[str, Array]:
        del size
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
