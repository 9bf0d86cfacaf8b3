"""Numbers of the paper's Tables I and II, as printed, and contradictions between them.

Tables show them beside ours, and no test compares the two: the paper's table contradicts itself (`REMARKS`), and its
test images are not known. Source: Table I (a row per network and class, 1 to 6 of DAGM 2007, and of means), Table II.
"""

from __future__ import annotations

from typing import NamedTuple


class Printed(NamedTuple):
    """One row of Table I: four rates in [0, 1], and the executing time in s."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    executing_time_s: float


# model → class → row.
TABLE_1: dict[str, dict[int, Printed]] = {
    "custom_unet": {
        1: Printed(0.9803, 0.9724, 0.9801, 0.9733, 29.8),
        2: Printed(0.9775, 0.9720, 0.9782, 0.9653, 29.5),
        3: Printed(0.9453, 0.9251, 0.9135, 0.9235, 31.8),
        4: Printed(0.9852, 0.9740, 0.96875, 0.9843, 31.3),
        5: Printed(0.9594, 0.9543, 0.9489, 0.9591, 44.7),
        6: Printed(0.9876, 0.9649, 0.9458, 0.9621, 31.5),
    },
    "conv_autoencoder": {
        1: Printed(0.9732, 0.9725, 0.9731, 0.9686, 44.4),
        2: Printed(0.9564, 0.9542, 0.9487, 0.9524, 30.4),
        3: Printed(0.9143, 0.9126, 0.9057, 0.9105, 34.8),
        4: Printed(0.9627, 0.9588, 0.9583, 0.9610, 30.1),
        5: Printed(0.9467, 0.9358, 0.9423, 0.9455, 47.5),
        6: Printed(0.9868, 0.9723, 0.9733, 0.9820, 37.7),
    },
    "unet3plus": {
        1: Printed(0.9236, 0.9235, 0.9226, 0.9214, 83),
        2: Printed(0.9287, 0.9204, 0.9135, 0.9258, 64),
        3: Printed(0.9360, 0.9324, 0.9431, 0.9258, 66),
        4: Printed(0.9139, 0.9056, 0.9241, 0.9125, 66),
        5: Printed(0.9206, 0.9124, 0.9028, 0.9203, 84),
        6: Printed(0.8952, 0.8533, 0.8862, 0.8950, 65),
    },
}

# Accuracies of the row of means, as printed.
MEAN_ACCURACIES = {"custom_unet": 0.97255, "conv_autoencoder": 0.95668, "unet3plus": 0.91967}

# Contradictions within Table I, up to the rounding of the last printed decimal. A class of DAGM 2007 (1 to 6) has 1000
# good and 150 defective images, of which the paper tests on 20 %, drawn at random. Printed accuracy, precision P and
# recall R imply the share π of defective test images: missed ones, π(1 - R), and false alarms, πR(1 - P)/P, add up to
# 1 - accuracy.
REMARKS = (
    "F1 is the harmonic mean of precision and recall in 0 of 18 rows, and lies outside the two in 12, where no mean "
    "can lie.",
    "The accuracy is a number of right decisions over 230 images (20 % of a class) in 0 of 18 rows.",
    "Accuracy, precision and recall together imply test splits of which 14% to 51% are defective (median 43%), where "
    "these classes hold 13%: defects were probably multiplied before the split.",
)

# Table II: authors, network, printed percentage, and the quantity that it is.
TABLE_2: tuple[tuple[str, str, float, str], ...] = (
    ("Lin et al.", "CAM-UNet", 72.0, "on MVTec AD; probably a segmentation score, not a rate of images"),
    ("Xiong et al.", "attention U-Net", 95.6, "a best precision, on other data"),
    ("Wong et al.", "3D U-Net", 88.4, "a mean IoU of voxels on X-ray CT"),
)

# Figures of other methods from fewer labels.
SUPERVISION_MARKS = (
    "tags alone AP .740, tags and 5 masks .915, tags and 15 masks 1.000 (Božič et al. 2021)",
    "good images alone, image AUROC .993 (OCR-GAN, Liang et al. 2023), .990 (DRAEM, Zavrtanik et al. 2021)",
)
