"""The rule for batch sizes, and who decides about compiler options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

from dagm_jax.train import parallel
from dagm_jax.train.parallel import Devices, ParallelConfig, make_devices
from dagm_jax.types import UserError

needs_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the option is read on CPUs only")


def devices_of(number: int) -> Devices:
    """That many devices, as far as counting them goes."""
    return Devices(cast(Any, SimpleNamespace(devices=np.empty(number))), None)


@pytest.mark.parametrize("value", [4, 8, 400])
def test_multiples_of_the_devices_are_taken(value: int) -> None:
    """Catches a rule that refuses what can be divided."""
    devices_of(4).check_batch_size("train.batch_size", value)


@pytest.mark.parametrize(("value", "following"), [(10, 12), (1, 4), (0, 4), (-3, 4), (5, 8)])
def test_other_batch_sizes_are_refused_with_the_next_one(value: int, following: int) -> None:
    """Catches a batch that jax would refuse to split with a trace back, and a remedy that does not help."""
    message = (
        rf"^`train.batch_size` \(={value}\) must be a positive multiple of the 4 devices; "
        rf"the next one is {following}$"
    )
    with pytest.raises(UserError, match=message):
        devices_of(4).check_batch_size("train.batch_size", value)


@needs_cpu
def test_eigen_convolutions_are_the_default() -> None:
    """Catches the slow default of the compiler coming back unnoticed."""
    assert make_devices(ParallelConfig()).compiler_options == parallel.EIGEN_CONVOLUTIONS
    assert make_devices(ParallelConfig(cpu_convolutions="default")).compiler_options is None


@needs_cpu
def test_the_users_flags_win() -> None:
    """Catches options that overrule XLA_FLAGS; other flags of the user must not switch them off."""
    flags = "--xla_dump_to=x --xla_cpu_experimental_ynn_fusion_type=dot"
    assert make_devices(ParallelConfig(), flags).compiler_options is None
    assert make_devices(ParallelConfig(), "--xla_dump_to=x").compiler_options is not None


@needs_cpu
def test_an_option_that_this_compiler_does_not_know_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a trace back from deep inside the compiler after an upgrade that dropped the option."""
    monkeypatch.setattr(parallel, "EIGEN_CONVOLUTIONS", {"xla_cpu_no_such_option": ""})
    message = r"`parallel.cpu_convolutions` \(=eigen\) needs .*xla_cpu_no_such_option; set it to default"
    with pytest.raises(UserError, match=message):
        make_devices(ParallelConfig())


def test_an_unknown_choice_is_refused() -> None:
    """Catches a mistyped choice that is silently the other one."""
    with pytest.raises(UserError, match=r"`parallel.cpu_convolutions` \(=eigne\).*did you mean eigen"):
        ParallelConfig(cpu_convolutions=cast(Any, "eigne"))


def test_batches_are_split_and_states_copied_over_the_devices() -> None:
    """Catches a batch that is replicated, or a state that lies on one device."""
    devices = make_devices(ParallelConfig(cpu_convolutions="default"))
    assert devices.num_devices == jax.local_device_count()
    batch = devices.shard_batch({"image": np.zeros((2 * devices.num_devices, 3))})
    assert batch["image"].sharding == devices.split
    assert devices.replicate(np.zeros(3)).sharding == devices.replicated
    assert devices.platform in devices.kind
