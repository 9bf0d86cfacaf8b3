"""The whole job in seconds on a few built-in images and a tiny network; its scores mean nothing.

Command:   python -m dagm_jax.main --config=configs/smoke.py[:TASK]
Hardware:  any
Time:      well under a minute on two CPU cores
Expected:  a report whose figures are those of a network that has learnt nothing
"""

from dataclasses import replace

from ml_collections import ConfigDict

from dagm_jax.config import compose, to_config_dict
from dagm_jax.data.config import DataConfig, SlicingConfig
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.train.optim import OptimConfig


def get_config(options: str = "segmentation") -> ConfigDict:
    """The configuration for ``--config=configs/smoke.py:TASK``."""
    config = compose(options, CustomUNetConfig())
    return to_config_dict(
        replace(
            config,
            model=CustomUNetConfig(base_channels=2),
            data=DataConfig(procedural_defective=8, procedural_good=12),
            slicing=SlicingConfig(num_slices=10),
            optim=OptimConfig(warmup_steps=2),
            train=replace(config.train, batch_size=4, num_steps=12, validate_every=6, log_every=2),
        )
    )
