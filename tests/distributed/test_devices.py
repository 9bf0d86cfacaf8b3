"""The rule for batch sizes, and who decides about compiler options."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

from dagm_jax.distributed import devices as devices_module
from dagm_jax.distributed.devices import Devices, ParallelConfig, make_devices
from dagm_jax.errors import UserError

needs_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the option is read on CPUs only")


def devices_of(number: int) -> Devices:
    """Stand-in for a number of devices, which only counts them."""
    return Devices(cast(Any, SimpleNamespace(devices=np.empty(number))), None)


@pytest.mark.parametrize(("value", "following"), [(10, 12), (1, 4), (0, 4), (-3, 4), (5, 8)])
def test_other_batch_sizes_are_refused_with_the_next_one(value: int, following: int) -> None:
    """Would catch: a batch that jax would refuse to split with a trace back, a remedy that does not help, a rule that
    refuses what can be divided, and a batch that divides by the devices, but not on each of them by the parts."""
    for right in (4, 8, 400):
        devices_of(4).check_batch_size("train.batch_size", right)
    message = (
        rf"^`train.batch_size` \(={value}\) must be a positive multiple of the 4 devices; "
        rf"the next one is {following}$"
    )
    with pytest.raises(UserError, match=message):
        devices_of(4).check_batch_size("train.batch_size", value)
    devices_of(2).check_batch_size("train.batch_size", 16, 4)
    message = "2 devices times the 4 parts of `train.accumulate`; the next one is 16"
    with pytest.raises(UserError, match=message):
        devices_of(2).check_batch_size("train.batch_size", 12, 4)


def test_prefetching_keeps_every_batch_in_order() -> None:
    """Would catch: batches lost at the end, given twice, or out of step with their copy on the devices."""
    devices = make_devices(ParallelConfig(cpu_convolutions="default"))
    for length in range(6):
        batches = [{"image": np.full((devices.num_devices, 1), k)} for k in range(length)]
        pairs = list(devices.prefetch(iter(batches)))
        assert [host["image"][0, 0] for host, _ in pairs] == list(range(length))
        assert [int(there["image"][0, 0]) for _, there in pairs] == list(range(length))


def test_batches_are_on_their_way_before_they_are_needed() -> None:
    """Would catch: a transfer that begins when the step waits for it."""
    devices = make_devices(ParallelConfig(cpu_convolutions="default"))
    drawn: list[int] = []

    def draw() -> Iterator[dict[str, np.ndarray]]:
        for k in range(9):
            drawn.append(k)
            yield {"image": np.zeros((devices.num_devices, 1))}

    pairs = devices.prefetch(draw())
    next(pairs)
    assert drawn == [0, 1, 2]


@needs_cpu
def test_eigen_convolutions_are_the_default() -> None:
    """Would catch: the slow default of the compiler coming back unnoticed."""
    assert make_devices(ParallelConfig()).compiler_options == devices_module.EIGEN_CONVOLUTIONS
    assert make_devices(ParallelConfig(cpu_convolutions="default")).compiler_options is None


@needs_cpu
def test_the_users_flags_win() -> None:
    """Would catch: options that overrule XLA_FLAGS; other flags of the user must not switch them off."""
    flags = "--xla_dump_to=x --xla_cpu_experimental_ynn_fusion_type=dot"
    assert make_devices(ParallelConfig(), flags).compiler_options is None
    assert make_devices(ParallelConfig(), "--xla_dump_to=x").compiler_options is not None


@needs_cpu
def test_an_option_that_this_compiler_does_not_know_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a trace back from deep inside the compiler after an upgrade that dropped the option."""
    monkeypatch.setattr(devices_module, "EIGEN_CONVOLUTIONS", {"xla_cpu_no_such_option": ""})
    message = r"`parallel.cpu_convolutions` \(=eigen\) needs .*xla_cpu_no_such_option; set it to default"
    with pytest.raises(UserError, match=message):
        make_devices(ParallelConfig())


def test_batches_are_split_and_states_copied_over_the_devices() -> None:
    """Would catch: a batch that is replicated, or a state that lies on one device."""
    devices = make_devices(ParallelConfig(cpu_convolutions="default"))
    assert devices.num_devices == jax.local_device_count()
    batch = devices.shard_batch({"image": np.zeros((2 * devices.num_devices, 3))})
    assert batch["image"].sharding == devices.split
    assert devices.replicate(np.zeros(3)).sharding == devices.replicated
    assert devices.platform in devices.kind


def test_devices_are_in_the_order_of_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: blocks of a batch that go to other processes than made them, and processes of unequal size."""
    devices = [SimpleNamespace(process_index=p, id=i) for i, p in enumerate([1, 0, 1, 0])]
    monkeypatch.setattr(devices_module.jax, "devices", lambda: devices)
    monkeypatch.setattr(devices_module, "_mesh_of", lambda chosen: SimpleNamespace(devices=np.array(chosen)))
    made = make_devices(ParallelConfig(cpu_convolutions="default"))
    assert [(d.process_index, d.id) for d in made.mesh.devices.flat] == [(0, 1), (0, 3), (1, 0), (1, 2)]
    assert (made.num_devices, made.num_processes) == (4, 2)
    devices.pop()
    with pytest.raises(
        UserError, match="the processes have 1, 2 devices; each must have as many as the others"
    ):
        make_devices(ParallelConfig(cpu_convolutions="default"))
