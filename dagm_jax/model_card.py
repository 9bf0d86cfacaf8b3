"""What lies beside an exported file: its contract for programs (FILE.json), and the same for people (FILE.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dagm_jax.evaluation.threshold import Thresholds

DAGM_LICENCE = (
    "CC BY 4.0 (DAGM 2007: Wieler, Hahn, Hamprecht, Weakly Supervised Learning for Industrial Optical Inspection, "
    "doi 10.5281/zenodo.8086136)"
)
SOFTWARE_LICENCE = "Apache-2.0"
# Figures of single images say more of the images than of the model.
LEFT_OUT = ("dice_per_defective_image",)


def licence_of(source: str, root: str) -> str:
    """The licence of the training images, told by the report's words on their source; ``root``: ``data.root``."""
    if not root:
        return f"{SOFTWARE_LICENCE} (images drawn by dagm_jax)"
    return DAGM_LICENCE if source.startswith("DAGM 2007") else "that of the owner of the training images"


def make_contract(
    report: dict[str, Any],
    rule: Thresholds,
    model_id: str,
    shape: tuple[int, int],
    normal_scores: Sequence[float],
) -> dict[str, Any]:
    """The contract as JSON values, but for what depends on the file: its format, digest and check."""
    data, size = report["data"], list(shape)
    pixels = {"shape": ["b", *size]}
    scale = "" if data["white"] is None else f"; of 16-bit images value · 255 / {data['white']}, rounded"
    return {
        "contract_version": 1,
        "model_id": model_id,
        "model": report["model"],
        "task": report["task"],
        "input": {
            "name": "image",
            "dtype": "uint8",
            **pixels,
            "range": [0, 255],
            "white": data["white"],
            "meaning": f"grey images, rows then columns{scale}; smaller ones must be continued by their mirror images",
        },
        "outputs": [
            {"name": "score", "dtype": "float32", "shape": ["b"], "meaning": "higher is more defective"},
            {"name": "defective", "dtype": "bool", "shape": ["b"], "meaning": "score >= threshold"},
            {
                "name": "map",
                "dtype": "float32",
                **pixels,
                "range": [0, 1],
                "meaning": "evidence at each pixel",
            },
            {"name": "mask", "dtype": "bool", **pixels, "meaning": "map >= pixel_threshold"},
        ],
        "threshold": rule.threshold,
        "pixel_threshold": rule.pixel_threshold,
        "rule": asdict(rule),
        "validation_normal_scores": list(normal_scores),
        "training_data": {
            key: data[key]
            for key in ("source", "classes", "split", "sides", "largest_px", "white", "num_skipped")
        },
        "metrics": {key: value for key, value in report["test"].items() if key not in LEFT_OUT},
        "metrics_threshold": report["decision_rule"]["threshold"],
        "versions": report["versions"],
        "licence": {
            "software": SOFTWARE_LICENCE,
            "training_images": licence_of(data["source"], report["config"]["data"]["root"]),
        },
    }


def make_card(contract: dict[str, Any], name: str) -> str:
    """The model card of the file ``name``, Markdown."""
    data, metrics, checked = contract["training_data"], contract["metrics"], contract["checked"]
    lines = [
        f"# {name}",
        "",
        f"Judges grey images for surface defects: {contract['model']}, {contract['task']}, model "
        f"{contract['model_id']}, {contract['format']}.",
        "",
        "## Training images",
        "",
        f"{data['source']}. Sides: "
        + ", ".join(
            f"{key} {n['images']} ({n['defective_images']} defective)" for key, n in data["sides"].items()
        )
        + ".",
        "",
        f"## On {metrics['num_images']} test images, {metrics['num_defective']} of them defective",
        "",
        f"With the threshold {contract['metrics_threshold']:.6f}; 95 % intervals.",
        "",
        "| figure | value |",
        "|---|---|",
        *(
            f"| {key} | {_figure(metrics, key)} |"
            for key in ("accuracy", "precision", "recall", "specificity")
        ),
        *(f"| {key} | {_figure(metrics, key)} |" for key in ("auroc", "average_precision", "dice_defective")),
        "",
        "## Contract",
        "",
        "| array | type | shape | meaning |",
        "|---|---|---|---|",
        *(
            f"| {item['name']} | {item['dtype']} | {' '.join(map(str, item['shape']))} | {item['meaning']} |"
            for item in (contract["input"], *contract["outputs"])
        ),
        "",
        f"Threshold {contract['threshold']:.6f}, pixel threshold {contract['pixel_threshold']:.6f}, both inside.",
        "",
        "## Check",
        "",
        f"Reloaded by {checked['runtime']} in a process of its own, {checked['num_images']} images of the test side: "
        f"equal decisions, scores equal to {checked['largest_difference']:.1e}.",
        "",
        "## Limits",
        "",
        "Images like the training images alone: another light, camera or material needs another threshold or training. "
        "The map shows evidence, not outlines; figures above are of one split of one set of images.",
        "",
        "## Licence",
        "",
        f"Software: {contract['licence']['software']}. Training images: {contract['licence']['training_images']}.",
    ]
    return "\n".join(lines) + "\n"


def _figure(metrics: dict[str, Any], name: str) -> str:
    value, interval = metrics[name], metrics.get(f"{name}_interval_95")
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
