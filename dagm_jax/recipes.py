"""What the shipped configurations share: the defaults of each task, and the options after its name.

``--config=FILE:TASK,OPTION,…`` gives a network its task and, with ``equal_width``, the width at which networks are
compared; with ``small``, the short form for two CPU cores.
"""

from __future__ import annotations

from dataclasses import replace

from dagm_jax.config import ModelConfig, RunConfig, TaskConfig
from dagm_jax.data.config import DataConfig, SlicingConfig
from dagm_jax.evaluation.threshold import VerdictConfig
from dagm_jax.tasks.classification import ClassificationConfig
from dagm_jax.tasks.reconstruction import ReconstructionConfig
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.types import UserError, nearest

TASKS: dict[str, TaskConfig] = {
    task.name: task for task in (SegmentationConfig(), ReconstructionConfig(), ClassificationConfig())
}
OPTIONS = ("equal_width", "small")
EQUAL_WIDTH = 16
SMALL_WIDTH = 8


def compose(options: str, model: ModelConfig, segmentation: SegmentationConfig | None = None) -> RunConfig:
    """The configuration of ``model`` for the task and the options of ``TASK[,OPTION…]``.

    ``segmentation``: what that task is for this network, if not its defaults. Raises UserError for an unknown word.
    """
    name, *chosen = options.split(",")
    for words, known, what in (([name], TASKS, "the task"), (chosen, OPTIONS, "options")):
        for word in words:
            if word not in known:
                words_known, close = ", ".join(known), nearest(word, known)
                raise UserError(
                    f"`--config=FILE:{options}`: {what} must be of {words_known}, not {word!r}{close}"
                )
    if len(chosen) > 1:
        raise UserError(
            f"`--config=FILE:{options}`: {' and '.join(chosen)} set one width each; choose one of them"
        )
    task = TASKS[name]
    if isinstance(task, SegmentationConfig):
        task = segmentation or task
    config = for_task(RunConfig(model=model, task=task))
    if "equal_width" in chosen:
        config = replace(config, model=replace(config.model, base_channels=EQUAL_WIDTH))
    return make_small(config) if "small" in chosen else config


def for_task(config: RunConfig) -> RunConfig:
    """``config`` with the settings of its task that are not the package's defaults."""
    if isinstance(config.task, SegmentationConfig):
        return config
    if isinstance(config.task, ClassificationConfig):
        # Quality is made of AUROC and slice accuracy here, which end higher than Dice against loose ellipses.
        return replace(config, train=replace(config.train, target_quality=0.995))
    # Quality is 1/(1 + loss) here: no value of it says that the network is good enough. The threshold may not be
    # fitted to defects either. Residuals are noisier than probabilities and want a wider window.
    return replace(
        config,
        train=replace(config.train, target_quality=1.0),
        verdict=VerdictConfig(calibration="normals", smoothing_px=4.0),
    )


def make_small(config: RunConfig) -> RunConfig:
    """``config`` cut down to minutes on two CPU cores: narrow networks, few images, fewer slices and steps."""
    return replace(
        config,
        model=replace(config.model, base_channels=SMALL_WIDTH),
        data=DataConfig(procedural_defective=50, procedural_good=70),
        slicing=SlicingConfig(num_slices=12),
        train=replace(config.train, num_steps=300, max_validation_images=10),
    )
