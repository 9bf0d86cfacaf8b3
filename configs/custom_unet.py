"""The customised U-Net at the paper's width (16 channels at the finest level), every default of the package.

Command:   python -m dagm_jax.main --config=configs/custom_unet.py
Hardware:  two CPU cores suffice; any devices that jax finds are used
Time:      4 minutes on the built-in images, half an hour on 500 images of class 8 (two CPU cores)
Expected:  image AUROC 1.00 on either; Dice on defective images .84 built-in, .70 class 8 (docs/results.md)
"""

from ml_collections import ConfigDict

from dagm_jax.config import RunConfig, make_task, to_config_dict


def get_config(task: str = "segmentation") -> ConfigDict:
    """The configuration for a task: ``--config=configs/custom_unet.py:TASK``."""
    return to_config_dict(RunConfig(task=make_task(task)))
