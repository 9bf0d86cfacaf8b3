"""Texts beside an exported file: its contract for programs (FILE.json) and its model card for people (FILE.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dagm_jax.evaluation.threshold import NOT_LEARNT, Thresholds
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting.inference_fn import input_shape

DAGM_LICENCE = (
    "CC BY 4.0 (DAGM 2007: Wieler, Hahn, Hamprecht, Weakly Supervised Learning for Industrial Optical Inspection, "
    "doi 10.5281/zenodo.8086136)"
)
SOFTWARE_LICENCE = "Apache-2.0"
# Keys of the report that the contract and the card repeat.
TRAINING_DATA = ("source", "learnt_from", "classes", "split", "sides", "largest_px", "white", "num_skipped")
METRICS = ("accuracy", "precision", "recall", "specificity", "auroc", "average_precision", "dice_defective")
CARD = """# {name}

Predicts surface defects in grey images: {model}, {task}, model {model_id}, {format}.{warning}

## Training images

{training_data[source]}. Splits: {splits}.{learnt_from}

## On {metrics[num_images]} test images, {metrics[num_defective]} of them defective

With the threshold {metrics_threshold:.6f}; 95 % intervals.

| figure | value |
|---|---|
{figures}

## Contract

| array | type | shape | meaning |
|---|---|---|---|
{arrays}

Threshold {threshold:.6f}, pixel threshold {pixel_threshold:.6f}, both inside.

## Check

Reloaded by {checked[runtime]} in a process of its own, {checked[num_images]} test images: equal decisions, \
scores equal to {checked[largest_difference]:.1e}{dice}. {size_mb:.1f} MB, {ms:.0f} ms an image there.

## Limits

Images like the training images alone: another light, camera or material needs another threshold or training. \
The map shows scores, not outlines; figures above are of one split of one set of images.

## Licence

Software: {licence[software]}. Training images: {licence[training_images]}.
"""


def make_contract(
    model: TrainedModel, format: str, report: dict[str, Any], normal_scores: Sequence[float]
) -> dict[str, Any]:
    """The contract as JSON values, without the file's format, digest and check."""
    data, pixels = report["data"], {"shape": ["b", *(input_shape(model, format) or ("h", "w"))]}
    rule, padding = model.rule, make_tiling(model.config, model.shape, ()).mode
    if not report["config"]["data"]["root"]:
        licence = f"{SOFTWARE_LICENCE} (images drawn by dagm_jax)"
    elif data["source"].startswith("DAGM 2007"):
        licence = DAGM_LICENCE
    else:
        licence = "that of the owner of the training images"
    scale = "" if data["white"] is None else f"; of 16-bit images value · 255 / {data['white']}, rounded"
    return {
        "contract_version": 1,
        "model_id": model.model_id,
        "model": report["model"],
        "task": report["task"],
        "input": {
            "name": "image",
            "dtype": "uint8",
            **pixels,
            "range": [0, 255],
            "white": data["white"],
            "padding": padding,
            "meaning": f"grey images, rows then columns{scale}; smaller ones than the shape must be continued by "
            + ("their edge" if padding == "edge" else "their mirror images"),
        },
        "outputs": [
            {"name": "score", "dtype": "float32", "shape": ["b"], "meaning": "higher is more defective"},
            {"name": "defective", "dtype": "bool", "shape": ["b"], "meaning": "score >= threshold"},
            {"name": "map", "dtype": "float32", **pixels, "range": [0, 1], "meaning": "score of each pixel"},
            {"name": "mask", "dtype": "bool", **pixels, "meaning": "map >= pixel_threshold"},
        ],
        "threshold": rule.threshold,
        "pixel_threshold": rule.pixel_threshold,
        "rule": rule.to_values(),
        "validation_normal_scores": list(normal_scores),
        "training_data": {key: data.get(key) for key in TRAINING_DATA},
        # Metrics of single images say more about the images than about the model.
        "synthetic_test": report.get("synthetic_test"),
        "metrics": {k: v for k, v in report["test"].items() if k != "dice_per_defective_image"},
        "metrics_threshold": report["decision_rule"]["threshold"],
        "versions": report["versions"],
        "licence": {"software": SOFTWARE_LICENCE, "training_images": licence},
    }


def make_card(contract: dict[str, Any], name: str) -> str:
    """The model card of the file ``name``, Markdown."""
    splits = ", ".join(
        f"{key} {split['images']} ({split['defective_images']} defective)"
        for key, split in contract["training_data"]["sides"].items()
    )
    arrays = (
        f"| {item['name']} | {item['dtype']} | {' '.join(map(str, item['shape']))} | {item['meaning']} |"
        for item in (contract["input"], *contract["outputs"])
    )
    figures = "\n".join(f"| {key} | {_figure(contract['metrics'], key)} |" for key in METRICS)
    for key in ("auroc", "recall", "dice") if contract["synthetic_test"] else ():
        figures += (
            f"\n| {key} of synthetic defects in good images | {_figure(contract['synthetic_test'], key)} |"
        )
    for kind, of in contract["metrics"].get("kinds", {}).items():
        figures += f"\n| recall of {kind} | {_figure(of, 'recall')}, {of['num_images']} images |"
    checked, dice = contract["checked"], ""
    # Reports of earlier releases do not say.
    learnt_from = contract["training_data"]["learnt_from"]
    if checked["dice_defective_of_run"] is not None:
        ours, run = checked["dice_defective"], checked["dice_defective_of_run"]
        dice = f", Dice on defective images {ours:.4f} (the run: {run:.4f})"
    return CARD.format(
        **contract,
        name=name,
        splits=splits,
        learnt_from=f" Learnt from {learnt_from}." if learnt_from else "",
        warning="" if Thresholds.from_values(contract["rule"]).has_learnt else f"\n\n**{NOT_LEARNT}**",
        figures=figures,
        arrays="\n".join(arrays),
        dice=dice,
        size_mb=contract["size_bytes"] / 1e6,
        ms=1000 * checked["seconds_an_image"],
    )


def _figure(metrics: dict[str, Any], name: str) -> str:
    value, interval = metrics[name], metrics.get(f"{name}_interval_95")
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
