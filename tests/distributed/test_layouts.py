"""One training or evaluation step over several devices against the same on one, by jit and by pmap."""

from __future__ import annotations

import os

import pytest
import quick
from shell import REPOSITORY, run_python

# Name of the network that needs the least compilation, test_step.Shallow.
SHALLOW = "shallow"

# Layouts MODE:NUMBER against one device, in double precision: parameters and statistics of the training step, and the
# evaluation step's outputs. Two slices of the first device and one of the last do not count: no device has the mean of
# all.
DOUBLE = """
import dataclasses, jax, sys, numpy as np
import test_step as t
from dagm_jax.distributed.devices import ParallelConfig, make_devices
from jax.sharding import AxisType, Mesh
batch = t.make_batch(8)
batch["label"][[0, 1, 3]] = -1
batch["valid"][7] = False
plain = dataclasses.replace(make_devices(ParallelConfig()), compiler_options=None)
step, state, network, task = t.shipped_step(sys.argv[1], None)
slicer = t.make_slicer(t.SlicingConfig(num_slices=2, slice_px=16), 32, 32)
image = np.random.default_rng(0).integers(0, 256, (8, 32, 32)).astype(np.uint8)
pixels = (image, image > 250, (image > 250).sum((1, 2)))
eval_step = t.make_sliced_step(network, task, slicer)
whole = jax.device_get(jax.jit(eval_step)(state.params, state.stats, *pixels))
one = jax.jit(step)(state, batch)
assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves((one[0].params, one[0].stats)))
for layout in sys.argv[2:]:
    mode, number = layout.split(":")
    mesh = Mesh(np.array(jax.devices()[:int(number)]), ("batch",), axis_types=(AxisType.Auto,))
    devices = dataclasses.replace(plain, mesh=mesh, mode=mode)
    step, state, *_ = t.shipped_step(sys.argv[1], devices.axis_name)
    state, sharded = devices.replicate(state), devices.shard_training_batch(batch)
    weights = devices.replicate(jax.tree.map(np.array, (state.params, state.stats)))
    split = devices.shard_batch(pixels)
    if mode == "jit":
        out = jax.device_get(devices.compile_eval_step(eval_step, *weights, *split)(*weights, *split))
        for name in whole:
            np.testing.assert_allclose(out[name], whole[name], rtol=1e-4, atol=1e-5)
    got = devices.compile_step(step, state, sharded)(state, sharded)
    jax.block_until_ready(got)
    assert all(leaf.sharding == devices.replicated for leaf in jax.tree.leaves(got))
    for a, b in zip(t.leaves((one[0].params, one[0].stats)), t.leaves((got[0].params, got[0].stats)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9)
print("equal")
"""


# pmap lowers one network: what it adds, sums over the axis, is the same in all.
LOWERED = """
import dataclasses, jax
import test_step as t
from dagm_jax.distributed.devices import ParallelConfig, make_devices
from jax import export
for name, mode in (("custom_unet", "jit"), ("conv_autoencoder", "jit"), ("unet3plus", "jit"), ("custom_unet", "pmap")):
    devices = dataclasses.replace(make_devices(ParallelConfig()), compiler_options=None, mode=mode)
    step, state, *_ = t.shipped_step(f"{name}.py", devices.axis_name)
    state, batch = devices.replicate(state), devices.shard_training_batch(t.make_batch(8))
    laid_out = devices.lay_out(step)
    # Only what jit returns can be exported.
    jitted = laid_out if mode == "jit" else jax.jit(laid_out)
    exported = export.export(jitted, platforms=("tpu", "cuda"))(state, batch)
    assert exported.platforms == ("tpu", "cuda")
    assert exported.nr_devices == 4
    assert ("all_reduce" in exported.mlir_module()) == (mode == "pmap")
print("equal")
"""


# A network whose input is grey less 100 over 2e-38: images of grey 100 alone are finite. Steps 1 and 3 show those, step
# 2 a single pixel of another, in the share of the last device. Every layout ends with the weights of steps 1 and 3,
# and, where no step may be skipped, with those of step 1. Last, a loss that only one device has for not finite.
SKIPPED = """
import dataclasses, jax, numpy as np, optax
import jax.numpy as jnp
import test_step as t
from flax import nnx
from dagm_jax.distributed.devices import ParallelConfig, make_devices
from dagm_jax.models.blocks import BatchNorm
from dagm_jax.train.step import Carry, skip_non_finite
from dagm_jax.types import NetworkOutput
assert jax.local_device_count() == 4
plain = dataclasses.replace(make_devices(ParallelConfig()), compiler_options=None)

class Dot(nnx.Module):
    def __init__(self, axis_name):
        self.weight, self.norm = nnx.Param(jnp.ones((1,))), BatchNorm(1, axis_name=axis_name)

    def __call__(self, x, *, train, key):
        return NetworkOutput(self.norm(x[..., :1] * self.weight[...], train=train))

good, bad = t.make_batch(8), t.make_batch(8)
good["image"] = np.full_like(good["image"], 100)
bad["image"] = good["image"].copy()
bad["image"][7, 0, 0] = 255
rate = lambda step, cooldown: jnp.float32(0.1)
sgd = optax.sgd(1.0)
ends, counts = {}, {}
for mode, parts in (("jit", 1), ("jit", 2), ("pmap", 1), ("pmap", 2)):
    devices = dataclasses.replace(plain, mode=mode)
    axis, shards = devices.axis_name, devices.num_shards
    network, params, stats = t.make_network(lambda rngs: Dot(axis), seed=0, in_channels=1, mean=100.0, std=2e-38)
    options = dict(accumulate=parts, num_shards=shards, average_decay=0.5)
    step = t.make_train_step(network, t.TASK, sgd, rate, 0, axis, **options)
    sharded = [devices.shard_training_batch(batch) for batch in (good, bad, good)]
    for most in (1, 0):
        carry = Carry(t.make_state(params, stats, sgd, averaged=True), jnp.int32(0))
        carry = devices.replicate(jax.tree.map(jnp.copy, carry))
        compiled = devices.compile_step(skip_non_finite(step, most, axis), carry, sharded[0])
        flags, after = [], []
        for batch in sharded:
            carry, metrics = compiled(carry, batch)
            jax.block_until_ready(carry)
            flags.append(float(metrics["non_finite"]))
            after.append(t.leaves((carry.state.params, carry.state.stats, carry.state.average)))
        assert flags == [0, 1, 0] and int(carry.num_skipped) == 1, (mode, parts, flags)
        assert int(carry.state.step) == (3 if most else 1)
        for leaf in jax.tree.leaves(carry):
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert len(copies) == 4 and all((copy == copies[0]).all() for copy in copies)
        assert all((a == b).all() for a, b in zip(after[0], after[1], strict=True)), (mode, parts)
        assert all((a == b).all() for a, b in zip(after[1], after[2], strict=True)) == (most == 0)
        assert all(np.isfinite(leaf).all() for leaf in after[2])
        ends[mode, parts, most] = after[2]
for key, end in ends.items():
    for a, b in zip(end, ends["jit", key[1], key[2]], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

def step(state, batch):
    new = dataclasses.replace(state, step=state.step + 1, params=state.params + 1)
    return new, {"loss": batch["x"].sum(), "grad_norm": jnp.float32(1)}

devices = dataclasses.replace(plain, mode="pmap")
first = t.TrainState(jnp.int32(0), jnp.zeros(2, jnp.int32), jnp.float32(0), {}, ())
carry = devices.replicate(Carry(first, jnp.int32(0)))
batch = devices.shard_training_batch({"x": np.float32([0, 0, 0, np.nan])})
carry, _ = devices.compile_step(skip_non_finite(step, 1, devices.axis_name), carry, batch)(carry, batch)
assert [float(shard.data) for shard in carry.state.params.addressable_shards] == [0, 0, 0, 0]
assert int(carry.num_skipped) == 1
print("equal")
"""


def run_on_devices(script: str, *arguments: str, number: int = 4, **more: str) -> None:
    """Runs the script in a process that sees that many devices; it ends by printing that all is equal."""
    more |= {"XLA_FLAGS": quick.xla_flags(number), "JAX_PLATFORMS": "cpu", "NPROC": "64"}
    paths = os.pathsep.join(str(REPOSITORY / name) for name in ("", "tests", "tests/train"))
    done = run_python("-c", script, *arguments, PYTHONPATH=paths, **more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")


def test_a_step_that_is_not_finite_is_skipped_by_all_devices_alike() -> None:
    """Would catch: NaN in a weight, statistic or average of a skipped step, devices that decide for themselves, a bound
    that later steps forget, and a state that moves on after training was to stop.
    """
    run_on_devices(SKIPPED)


EVERY_LAYOUT = [f"{mode}:{number}" for mode in ("jit", "pmap") for number in (1, 2, 4, 8)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("config", "layouts"),
    [
        (SHALLOW, ["jit:4", "pmap:2"]),
        pytest.param("custom_unet.py:segmentation", EVERY_LAYOUT, marks=pytest.mark.long),
        pytest.param("conv_autoencoder.py:reconstruction", EVERY_LAYOUT, marks=pytest.mark.long),
        pytest.param("unet3plus.py:segmentation", EVERY_LAYOUT, marks=pytest.mark.long),
        pytest.param("custom_unet.py:classification", ["pmap:4"], marks=pytest.mark.long),
        pytest.param("custom_unet.py:reconstruction", ["pmap:4"], marks=pytest.mark.long),
        pytest.param("unet3plus.py:classification", ["pmap:4"], marks=pytest.mark.long),
    ],
)
def test_layouts_are_equal_in_double_precision(config: str, layouts: list[str]) -> None:
    """Would catch: batch statistics, loss or gradients of one device's share instead of the global batch, a count off
    by one, sums divided twice, and dropout or hidden cells that every device draws alike.

    One step of plain gradient descent, in double precision, where rounding hides nothing.
    """
    run_on_devices(DOUBLE, config, *layouts, number=8, JAX_ENABLE_X64="1")


@pytest.mark.timeout(900)
def test_the_step_lowers_for_other_platforms() -> None:
    """Would catch: an operation that GPUs or TPUs do not have, in any network, by jit and by pmap."""
    run_on_devices(LOWERED)
