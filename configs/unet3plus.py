"""U-Net 3+ at its authors' width (64 channels at the finest level), deep supervision, classification-guided module.

Command:   python -m dagm_jax.main --config=configs/unet3plus.py[:TASK[,equal_width][,small]]
Hardware:  an accelerator; on CPUs take equal_width, a quarter of the width and a sixteenth of the work
Measured:  segmentation,small on two CPU cores: AUROC 1.00 and Dice on defective images .78 on the built-in images;
           AUROC 1.00 and Dice .71 on real class 8, 26 minutes of training beside other jobs (docs/results.md)
"""

from ml_collections import ConfigDict

from dagm_jax.config import compose, to_config_dict
from dagm_jax.models.config import UNet3PlusConfig
from dagm_jax.tasks.segmentation import SegmentationConfig

SEGMENTATION = SegmentationConfig(
    bce_weight=0.0, dice_weight=0.0, focal_weight=1.0, ssim_weight=1.0, iou_weight=1.0
)


def get_config(options: str = "segmentation") -> ConfigDict:
    """The configuration for ``--config=configs/unet3plus.py:TASK[,OPTION…]``."""
    # Slices without labels teach the guided module nothing.
    is_guided = not options.startswith("reconstruction")
    return to_config_dict(compose(options, UNet3PlusConfig(classification_guided=is_guided), SEGMENTATION))
