"""The report of a run: report.json, tables, figures, the page, and the summary on the terminal."""

from __future__ import annotations

import platform
from typing import Any

import jax
from rich.table import Table

from dagm_jax.config import RunConfig, to_dict
from dagm_jax.console import console
from dagm_jax.evaluation import evaluate
from dagm_jax.evaluation.baselines import evaluate_baselines
from dagm_jax.evaluation.threshold import NOT_LEARNT, Thresholds
from dagm_jax.experiment.data import Data, describe_data, describe_labels
from dagm_jax.experiment.pictures import TestPictures
from dagm_jax.experiment.setup import Setup, forward_gflop
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.storage import write_csv, write_json
from dagm_jax.train.history import read_history
from dagm_jax.train.step import TrainState
from dagm_jax.train.stopping import TrainProgress
from dagm_jax.versions import package_versions
from dagm_jax.visualization.page import PageEntry, write_page


def write_report(
    setup: Setup,
    state: TrainState,
    best_step: int,
    progress: TrainProgress,
    rule: Thresholds,
    result: evaluate.TestResult,
    synthetic: dict[str, Any] | None,
    pictures: TestPictures,
    workdir: Workdir,
) -> dict[str, Any]:
    """The report of the evaluated test split; written last, after the workdir's figures, page and predictions.

    synthetic: `evaluate.describe_synthetic` of the good test images, None where masks of real defects do instead.
    """
    data, config, timings = setup.data, setup.config, setup.timings
    with timings.stage("baselines"):
        # The watchdogs of the other processes pause; this one's does not.
        cache, split, heartbeat = data.cache, data.split, setup.processes.heartbeat
        baselines = evaluate_baselines(
            cache, split.validation, split.test, data.labels, config.verdict, heartbeat
        )
    with timings.stage("figures and page"):
        draw_figures(result, pictures, rule, workdir)
        draw_page(pictures, rule, synthetic, data, config, workdir)
    num_slices = progress.step * config.train.batch_size
    report = {
        "model": config.model.name,
        "task": config.task.name,
        "learnt": rule.fit_stats.get("learnt"),
        "test": result.to_report(config.verdict),
        "synthetic_test": synthetic,
        "decision_rule": {
            "threshold": rule.threshold,
            "pixel_threshold": rule.pixel_threshold,
            "calibration": rule.calibration,
            **{f"validation_{name}": value for name, value in rule.fit_stats.items()},
        },
        "cost_of_running": {
            "executing_time_s": result.executing_time_s,
            "images_per_s": len(result.images) / result.executing_time_s,
            "compile_time_s": setup.compile_seconds(),
            "num_parameters": sum(int(p.size) for p in jax.tree.leaves(state.params)),
            "gflop_per_slice": forward_gflop(setup, state),
        },
        "training": {
            "best_step": best_step,
            "last_step": progress.step,
            "skipped_steps": progress.num_skipped,
            "train_time_s": progress.train_seconds,
            "seconds_per_1000_slices": progress.train_seconds / num_slices * 1000,
        },
        "baselines": baselines,
        "data": describe_data(data, config),
        "timings": timings.to_report(),
        "seed": config.seed,
        "device": setup.devices.kind,
        "versions": {"python": platform.python_version(), **package_versions()},
        "config": to_dict(config),
    }
    header = ("image", "label", "score", "defective")
    rows = [(i.image_id, i.label, repr(float(i.score)), int(i.decision)) for i in result.images]
    write_csv(workdir.predictions, header, rows)
    # The report comes last: a workdir that has one is finished.
    return write_json(workdir.report, report)  # type: ignore[no-any-return]


def draw_page(
    pictures: TestPictures,
    rule: Thresholds,
    synthetic: dict[str, Any] | None,
    data: Data,
    config: RunConfig,
    workdir: Workdir,
) -> None:
    """Writes the report page of the test split, which also lists what was left out of the data."""
    summary = {
        "model": config.model.name,
        "task": config.task.name,
        "data": data.manifest.description,
        "learnt from": describe_labels(data, config),
        "threshold chosen by": f"{rule.calibration} on {len(data.split.validation)} validation images",
    }
    if synthetic:
        figures = ", ".join(f"{name} {_share(name, synthetic)}" for name in ("auroc", "recall", "dice"))
        summary["synthetic defects in good test images"] = figures
    skipped = data.manifest.skipped
    left_out = [PageEntry(skip.what, None, None, error=f"left out: {skip.reason}") for skip in skipped]
    title = f"{config.model.name}, {config.task.name}: test images"
    entries = [*left_out, *pictures.entries]
    warning = "" if rule.has_learnt else NOT_LEARNT
    write_page(workdir.page, entries, title=title, threshold=rule.threshold, summary=summary, warning=warning)


def draw_figures(
    result: evaluate.TestResult, pictures: TestPictures, rule: Thresholds, workdir: Workdir
) -> None:
    """Writes the figures of a run as PNG files into ``workdir/figures``."""
    # Imported here: matplotlib takes half a second, which every command and every error message would wait for.
    from dagm_jax.visualization import figures

    folder = workdir.figures
    folder.mkdir(exist_ok=True)
    figures.plot_curves(read_history(workdir.history), folder / "curves.png")
    figures.plot_confusion(result.counts, folder / "confusion.png", "Test images")
    if len(set(result.labels)) == 2:
        figures.plot_roc_pr(result.labels, result.scores, folder / "roc_pr.png")
    figures.plot_gallery(pictures.hardest, rule.pixel_threshold, folder / "hardest.png")


def print_report(report: dict[str, Any], workdir: Workdir) -> None:
    """The main figures as a short table on the terminal."""
    test, rule, cost = report["test"], report["decision_rule"], report["cost_of_running"]
    training, asked = report["training"], report["config"]["train"]

    def share(name: str, figures: dict[str, Any] = test) -> str:
        return _share(name, figures)

    title = f"{report['model']}, {report['task']}: {test['num_images']} test images"
    table = Table("figure", "value (95 % interval)", title=title, title_justify="left")
    names = "accuracy precision recall f1 auroc average_precision dice_defective nvidia_dice"
    for name in names.split():
        table.add_row(name, share(name))
    table.add_row("tp fp fn tn", " ".join(str(test[name]) for name in ("tp", "fp", "fn", "tn")))
    for name in ("regions", "boxes"):
        if (found := test.get(name, {})).get("num"):
            false = f"{found['false_an_image']:.2f} false ones an image"
            table.add_row(f"{name} touched", f"{found['touched']} of {found['num']}, {false}")
    for kind, of in test.get("kinds", {}).items():
        dice = "" if of["dice"] is None else f", Dice {of['dice']:.4f}"
        table.add_row(f"recall of {kind}", f"{share('recall', of)}{dice}, {of['num_images']} images")
    if synthetic := report.get("synthetic_test"):
        table.add_row("AUROC of synthetic defects", share("auroc", synthetic))
        table.add_row("recall of synthetic defects", share("recall", synthetic))
        table.add_row("Dice of synthetic defects", share("dice", synthetic))
    table.add_row("threshold", f"{rule['threshold']:.4f} ({rule['calibration']} on validation)")
    table.add_row("executing time", f"{cost['executing_time_s']:.1f} s, {cost['images_per_s']:.1f} images/s")
    baselines = report["baselines"]
    majority, energy = (share(name, baselines) for name in ("majority_accuracy", "local_energy_auroc"))
    table.add_row("baselines", f"majority accuracy {majority}, local energy AUROC {energy}")
    console.print(table)
    console.print(f"report, predictions and figures: {workdir}")
    sides = report["data"]["sides"]
    if report.get("learnt", True) is None:
        number, defective = (sides["validation"][name] for name in ("images", "defective_images"))
        console.print(
            f"warning: the {number} validation images, {defective} of them defective, are too few to tell whether "
            "anything was learnt; more images of each label do"
        )
    if report.get("learnt") is False:
        length = f"num_steps={2 * asked['num_steps']}" if asked["num_steps"] else "max_minutes=60"
        console.print(
            f"{NOT_LEARNT}. Tried: {training['last_step']} steps in {training['train_time_s'] / 60:.1f} minutes on "
            f"{sides['train']['images']} images. Look at {workdir.batch}, images and masks as the "
            f"network saw them; try more images of defects, or longer: --config.train.{length} in a new workdir"
        )


def _share(name: str, figures: dict[str, Any]) -> str:
    """A figure with its 95 % interval, where it has one."""
    value, interval = figures[name], figures.get(f"{name}_interval_95")
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
