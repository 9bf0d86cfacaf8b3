"""The customised U-Net at the paper's width (16 channels at the finest level), every default of the package.

Command:   python -m dagm_jax.main --config=configs/custom_unet.py[:TASK[,equal_width][,small]]
Hardware:  two CPU cores suffice; any devices that jax finds are used
Time:      segmentation: 9 minutes on built-in images, 30 on 500 of class 8 (one CPU core beside another job)
Expected:  image AUROC 1.00 on either; Dice on defective images .83 built-in, .76 class 8 (docs/results.md)
"""

from ml_collections import ConfigDict

from dagm_jax.config import compose, to_config_dict
from dagm_jax.models.config import CustomUNetConfig


def get_config(options: str = "segmentation") -> ConfigDict:
    """The configuration for ``--config=configs/custom_unet.py:TASK[,OPTION…]``."""
    return to_config_dict(compose(options, CustomUNetConfig()))
