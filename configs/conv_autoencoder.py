"""The convolutional auto-encoder at the paper's width (32 channels at the finest level, 32 in its bottleneck).

Command:   python -m dagm_jax.main --config=configs/conv_autoencoder.py[:TASK[,equal_width][,small]]
Hardware:  two CPU cores suffice; any devices that jax finds are used
Measured:  segmentation,small on two CPU cores: AUROC 1.00 and Dice on defective images .73 on the built-in images;
           AUROC 1.00 and Dice .72 on real class 8, 3.4 minutes of training (docs/results.md)
"""

from ml_collections import ConfigDict

from dagm_jax.config import compose, to_config_dict
from dagm_jax.models.config import ConvAutoencoderConfig


def get_config(options: str = "segmentation") -> ConfigDict:
    """The configuration for ``--config=configs/conv_autoencoder.py:TASK[,OPTION…]``."""
    return to_config_dict(compose(options, ConvAutoencoderConfig()))
