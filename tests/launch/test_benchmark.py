"""The benchmark: arithmetic by hand, its cells, failures, mistakes of the command line, and a run."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reading_devices import ReadingDevices
from shell import run_python

from dagm_jax.errors import UserError
from dagm_jax.experiment.setup import forward_gflop
from launch import benchmark, tiny_unet
from launch.bench import hardware, session, subject, timing
from launch.bench.measure import all_reduce_bytes
from launch.bench.plan import TINY_UNET, Cell, Request
from launch.bench.report import State, as_json, column, markdown


def test_all_reduces_are_counted_once_in_bytes_of_their_types() -> None:
    """Would catch: operands counted beside results, a start and its done both, elements for bytes, long tuples lost."""
    hlo = """
  %a = (f32[3,4]{1,0}, f32[], /*index=5*/bf16[10]{0:T(8,128)}) all-reduce(f32[3,4]{1,0} %x, f32[] %y, bf16[10]{0} %z)
  %s = f32[8]{0} all-reduce-start(f32[8]{0} %b), channel_id=1
  %d = f32[8]{0} all-reduce-done(f32[8]{0} %s)
  %g = f32[64]{0} all-gather(f32[8]{0} %d)
  ROOT %p = pred[6]{0} all-reduce(pred[6]{0} %q), metadata={op_name="all-reduce(x)"}
"""
    assert all_reduce_bytes(hlo) == (12 * 4 + 4 + 10 * 2) + 32 + 6


def test_measured_peaks_are_work_over_the_fastest_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: n³ for 2·n³, the median block for the fastest."""
    blocks = timing.Blocks((3.0, 2.0, 4.0), 1)
    monkeypatch.setattr(hardware, "time_blocks", lambda run, repetitions: blocks)
    assert hardware.measure_peaks(["float32"]) == {"float32": 2048**3}


# --- time ---


class Clock:
    """Time that passes in calls alone, so many seconds each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: Callable[[], float]) -> timing.Run:
        def run(number: int) -> None:
            self.calls.append((name, number))
            self.now += sum(seconds() for _ in range(number))

        return run


def test_programs_are_timed_in_turn_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: all blocks of one before the other's, warm-up in the figures, seconds of a block for those of a
    call."""
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    # The first call of each compiles.
    slow = iter([9.0, *[0.1] * 100])
    runs = {"a": clock.run("a", lambda: next(slow)), "b": clock.run("b", lambda: 0.5)}
    blocks = timing.time_alternately(runs, 3)
    assert blocks["a"].seconds == pytest.approx([0.1] * 3) and blocks["a"].num_calls == 3
    assert blocks["b"].median_s == 0.5 and blocks["b"].num_calls == 1
    assert clock.calls == [("a", 1), ("a", 1), ("b", 1), ("b", 1), *[("a", 3), ("b", 1)] * 3]
    seconds = iter([9.0, 0.1, 0.1, 0.1, 0.4])
    singly = timing.time_blocks(clock.run("c", lambda: next(seconds)), 1, singly=True)
    assert singly.seconds == pytest.approx([0.1, 0.1, 0.4])
    assert singly.median_s == pytest.approx(0.1) and singly.percentile(90) == pytest.approx(0.34)


# --- plan ---


def plan(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "what": ("step",),
        "configs": ("a.py", "tiny_unet"),
        "batch_sizes": (8,),
        "inference_batches": (1,),
    }
    return Request(**values | changes)


def test_cells_are_the_grid_of_each_kind_s_flags() -> None:
    """Would catch: a grid with holes, repeated inference for every device count, a twin of a network without one, a
    step that is compiled again for its comparison."""
    kinds = ("inference", "peer_step", "step", "command", "peer_epoch")
    cells = plan(what=kinds, modes=("jit", "pmap"), batch_sizes=(8, 16), devices=(1, 2)).cells()
    assert len(set(cells)) == len(cells)
    assert Counter((cell.kind, cell.config) for cell in cells) == {
        ("command", "a.py"): 1,
        ("step", "a.py"): 8,
        ("peer_step", "a.py"): 2,
        ("step", "tiny_unet"): 8,
        ("inference", "a.py"): 1,
        ("inference", "tiny_unet"): 1,
        ("peer_epoch", "a.py"): 2,
    }
    assert cells[0].kind == "command" and len({cell.name for cell in cells}) == len(cells)
    # Cells of the same settings stand together.
    cells = plan(what=("peer_step", "whole", "step"), configs=("b.py", "a.py"), batch_sizes=(8, 16)).cells()
    order = [(config, size) for config in ("b.py", "a.py") for size in (8, 16) for _ in range(3)]
    assert [(cell.config, cell.batch_size) for cell in cells] == order
    assert [cell.kind for cell in cells[:3]] == ["step", "whole", "peer_step"]


# --- failures ---


def measured(cell: Cell) -> dict[str, Any]:
    if cell.batch_size == 16:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating 1 | 2")
    return {"slices_per_s": 100.0, "step_median_s": 0.08, "share_of_vendor_peak": None}


ORIGIN = {
    "command": "a command",
    "hardware": {"device": "cpu", "num_cores": 2},
    "versions": {"jax": "1"},
    "flags": {"modes": "jit"},
    "measured_peaks": {"float32": 2e11},
}


def test_a_failed_cell_is_listed_and_the_others_are_measured() -> None:
    """Would catch: a run lost to one cell that is out of memory, and results kept back until the end."""
    state, written = State(plan(configs=("a.py",), batch_sizes=(8, 16, 32)).cells()), []
    session.run_cells(state, measured, lambda: written.append(len(state.outcomes)), math.inf)
    assert written == [1, 2, 3]
    content = json.loads(as_json(state, ORIGIN))
    assert [cell["status"] for cell in content["cells"]] == ["measured", "failed", "measured"]
    assert content["cells"][1]["error"].startswith("RuntimeError: RESOURCE_EXHAUSTED: Out of memory while")
    assert {name: content[name] for name in ORIGIN} == ORIGIN
    text = markdown(state, ORIGIN)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = "config | mode | precision | batch_size | num_devices | slices per s | step median, ms"
    assert rows[0] == f"| {columns} |"
    assert "| a.py | jit | float32 | 8 | 1 | 100.00 | 80.00 |" in rows
    assert rows[-1].startswith("| step, a.py, jit, float32, batch 16, 1 device | RuntimeError: RESOURCE_EXH")
    assert "1 \\| 2" in rows[-1] and "share of vendor" not in text
    assert "\n\n* command: a command\n* hardware: device cpu, num_cores 2\n" in text


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("first_ours_s", [0.5, 12.0, None], ["first ours, s", "0.50", "12.00", "-"]),
        ("step_median_s", [0.5, 0.0123], ["step median, ms", "500.00", "12.30"]),
        ("slices_per_s", [5226.04], ["slices per s", "5,226.04"]),
        ("flop_per_s", [3e9], ["flop per s, GFLOP/s", "3.00"]),
        ("share_of_vendor_peak", [0.25], ["share of vendor peak, %", "25.00"]),
        ("program_bytes", [2.0**21], ["program bytes, MiB", "2.00"]),
        ("step_ratio_eager", [1.5], ["step ratio eager, x", "1.50"]),
        ("auroc", [0.98765, 1.0], ["auroc", "0.9877", "1.0000"]),
    ],
)
def test_figures_are_shown_in_the_unit_of_their_name(name: str, values: list[Any], expected: Any) -> None:
    """Would catch: seconds called milliseconds, a rate scaled as seconds, a share shown as a ratio."""
    assert column(name, values) == expected


def test_cells_without_time_left_are_listed() -> None:
    """Would catch: a preset that goes on past its limit, and cells that are left out silently."""
    clock = Clock()
    state = State(plan(configs=("a.py",), batch_sizes=(1, 2, 3, 4)).cells())

    def measure(cell: Cell) -> dict[str, Any]:
        clock.now += 30
        return {"slices_per_s": 1.0}

    session.run_cells(state, measure, lambda: None, 85, clock)
    assert [bool(outcome.error) for outcome in state.outcomes] == [False, False, True, True]
    assert state.failures[0].error == "not measured: 25 s of --time_limit_s were left"


# --- command line ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what=step,peers"], r"`--what` \(=peers\) must be of command, step, .*did you mean peer_step"),
        (["--modes=pjit"], r"`--modes` \(=pjit\) must be of jit, pmap; did you mean jit\?"),
        (["--batch_sizes=0"], r"`--batch_sizes` \(=0\) must be whole numbers from 1 on"),
        (["--devices=1,1"], r"`--devices` \(=1,1\) must name at least one value, and each once"),
        (["--configs="], r"`--configs` \(=\) must name at least one value"),
        (["--profile", "--what=pipeline"], r"`--profile` \(=True\) traces the cells `step` and `whole`"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    """Would catch: a traceback, and a mistake that is found after minutes of measuring."""
    with pytest.raises(UserError, match=message) as caught:
        benchmark.parse(["benchmark", *arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--configs=configs/none.py", "is neither a file nor a shipped configuration"),
        ("--config.model.width=1", r"`config.model.width` is not a field"),
        ("--devices=99", r"`--devices` \(=99\) must be at most the \d+ devices"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(argument: str, message: str, tmp_path: Path) -> None:
    """Would catch: an output folder of a run that cannot be."""
    request, overrides = benchmark.parse(["benchmark", f"--output={tmp_path / 'out'}", argument])
    with pytest.raises(UserError, match=message):
        session.run(request, overrides, "a command", "")
    assert not (tmp_path / "out").exists()


def test_a_preset_gives_way_to_flags() -> None:
    """Would catch: a preset that overrides what is given, its overrides after those given, an unknown name in it."""
    given = ["--configs=a.py:x,y,tiny_unet,b.py:z", "--batch_sizes=4", "--config.data.procedural_good=9"]
    request, overrides = benchmark.parse(["benchmark", "--preset=gpu", *given])
    # OPTIONS may hold commas.
    assert request.configs == ("a.py:x,y", "tiny_unet", "b.py:z")
    assert request.batch_sizes == (4,) and request.precisions == ("bfloat16",)
    assert 0 < request.time_limit_s < 600
    assert overrides[-1] == "--config.data.procedural_good=9" and len(overrides) == 3
    for preset in benchmark.PRESETS:
        request, overrides = benchmark.parse(["benchmark", f"--preset={preset}"])
        configs = subject.read_configs(request.configs, overrides)
        for cell in request.cells():
            if cell.kind.startswith("peer_"):
                session.check_task(configs[cell.config])
        assert len(configs) >= 3 and request.preset == preset


@pytest.mark.parametrize("name", ["benchmark", "reproduce_tables"])
def test_the_commands_print_help_without_jax(name: str) -> None:
    """Would catch: a program that fails from the shell; jax loaded by every worker process of grain and PyTorch."""
    code = f"""if True:
        import runpy, sys
        sys.argv = ["x", "--help"]
        try:
            runpy.run_module("launch.{name}", run_name="__main__")
        finally:
            assert not {{"jax", "flax", "matplotlib"}} & set(sys.modules)
    """
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m launch.{name} --" in done.stdout


# --- TinyUNet ---


def test_tiny_unet_has_the_printed_parameters_and_flops() -> None:
    """Would catch: another network than the one whose speed is printed; a level at the wrong size, where parameters
    stay the same."""
    config = tiny_unet.TinyUNetConfig()
    tiny = nnx.eval_shape(lambda: config.build(in_channels=1, out_channels=1, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(tiny)
    assert sum(int(np.prod(p.shape)) for p in jax.tree.leaves(state)) == 1_850_305

    def forward(state: Any, x: Any) -> Any:
        return nnx.merge(graphdef, state)(x, train=False).logits

    image = jax.ShapeDtypeStruct((1, 512, 512, 1), np.float32)
    counted = jax.jit(forward).lower(state, image).cost_analysis()["flops"]

    assert abs(counted / 36.7e9 - 1) < 0.01


@pytest.mark.usefixtures("quick_compiles")
def test_every_parameter_of_tiny_unet_reaches_the_output() -> None:
    """Would catch: a skip or a level that is left out of the output, and columns and rows swapped on the way up."""
    model = tiny_unet.TinyUNetConfig(2).build(in_channels=1, out_channels=1, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 16, 1)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> Any:
        return jnp.square(nnx.merge(graphdef, params)(x, train=True).logits).sum()

    moving = [bool(jnp.abs(leaf).max() > 0) for leaf in jax.tree.leaves(gradient(params))]
    assert all(moving)
    image = np.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        tiny_unet.upsample_nearest(jnp.asarray(image)), image.repeat(2, 1).repeat(2, 2)
    )


# --- a run ---

TINY = [
    *("--config.model.base_channels=1", "--config.slicing.slice_px=16", "--config.train.validate_every=1"),
    *("--config.data.procedural_defective=6", "--config.data.procedural_good=6"),
]


@pytest.mark.usefixtures("quick_compiles")
def test_a_run_leaves_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: figures of another program than the configured one, work over other seconds, a lost failure."""
    monkeypatch.setattr(timing, "LEAST_BLOCK_S", 1e-3)
    monkeypatch.setattr(hardware, "measure_peaks", lambda precisions: {"float32": 1e12})
    real, seen = session.measure, []

    def measure(cell: Cell, subjects: subject.Subjects, options: Any) -> Any:
        if cell.kind == "whole":
            raise RuntimeError("RESOURCE_EXHAUSTED")
        seen.append(subjects.of(cell))
        return real(cell, subjects, options)

    monkeypatch.setattr(session, "measure", measure)
    flags = ["--batch_sizes=4", "--inference_batches=2", "--repetitions=2", f"--output={tmp_path}", *TINY]
    session.run(*benchmark.parse(["benchmark", *flags]), "a command", "")

    content = json.loads((tmp_path / "benchmark.json").read_text())
    cells = {cell["kind"]: cell["values"] for cell in content["cells"]}
    assert [cell["kind"] for cell in content["cells"]] == ["inference", "step", "whole", "pipeline"]
    assert content["cells"][2]["error"] == "RuntimeError: RESOURCE_EXHAUSTED"
    assert content["hardware"]["num_cores"] and content["flags"]["batch_sizes"] == "4"
    assert content["versions"]["jax"]

    step, inference, setup = cells["step"], cells["inference"], seen[0].setup
    assert step["slices_per_s"] == pytest.approx(4 / step["step_median_s"])
    assert step["images_per_s"] == pytest.approx(step["slices_per_s"] / 32)
    assert step["flop_per_s"] == pytest.approx(step["flop"] / step["step_median_s"])
    assert step["share_of_measured_peak"] == pytest.approx(step["flop_per_s"] / 1e12)
    assert step["compile_s"] > step["step_median_s"] and step["step_median_s"] <= step["step_p90_s"]
    assert step["all_reduce_bytes"] == 0 and step["device_peak_bytes"] is None
    assert step["program_bytes"] > 3 * 4 * step["num_parameters"]

    forward = forward_gflop(setup, setup.initial_state()) * 1e9
    # A step costs three forward passes, and a narrow network's norms and losses.
    assert 2.5 < step["flop"] / (4 * forward) < 4
    assert inference["flop"] / (2 * forward) == pytest.approx(1, abs=0.1)
    assert inference["latency_p50_s"] <= inference["latency_p95_s"] <= inference["latency_p99_s"]
    assert cells["pipeline"]["slices_per_core_s"] > 0

    text = (tmp_path / "benchmark.md").read_text()
    assert "## Training step" in text
    assert "| whole, configs/custom_unet.py, jit, float32, batch 4, 1 device |" in text


def make_subject(name: str, folder: Path) -> subject.Subject:
    configs = subject.read_configs((name,), tuple(TINY))
    return subject.Subjects(configs, folder, "").of(Cell("step", name, batch_size=4))


def test_the_step_takes_the_form_of_its_devices(tmp_path: Path) -> None:
    """Would catch: gradients on a CPU in an order that loops run slowly, the forms of CPUs on accelerators or in FLOPs
    that are compared with accelerators'.
    """
    ours = make_subject("configs/custom_unet.py", tmp_path)
    mesh, orders = ours.setup.devices.mesh, {}
    for platform in ("cpu", "gpu", subject.CountingDevices(mesh, None).platform):
        setup = replace(ours.setup, devices=ReadingDevices(mesh, None, asked=platform))
        text: Any = setup.compile_step(setup.initial_state(), ours.batches[0])
        orders[platform] = set(re.findall(r"lhs_spec=\(([^)]*)\)", text))
    assert orders.pop("cpu") == {"0, 3, 1, 2"}
    assert all(len(each) > 1 for each in orders.values())


@pytest.mark.long
@pytest.mark.usefixtures("quick_compiles")
def test_figures_of_a_batch_in_parts_are_of_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: maps of some slices, or FLOPs of one part, as XLA counts a loop's body once, over the seconds of
    all."""
    setup, found = make_subject(TINY_UNET, tmp_path).setup, []
    for accumulate, part_px in ((1, 2**20), (2, 1)):
        monkeypatch.setattr("dagm_jax.evaluation.step.CPU_PART_PX", part_px)
        train = replace(setup.config.train, accumulate=accumulate)
        each = subject.Subject(replace(setup, config=replace(setup.config, train=train)))
        compiled, params, stats, image = each.predictor
        found.append(([each.step_flop(), each.predict_flop()], compiled(params, stats, image)))
    (flop, maps), (parts_flop, parts_maps) = found
    assert all(flop) and parts_flop == flop
    assert maps.shape == image.shape
    np.testing.assert_allclose(parts_maps, maps, atol=1e-6)


@pytest.mark.long
def test_steps_on_two_devices_in_both_modes(tmp_path: Path) -> None:
    """Would catch: devices that are named and not used, scaling without its measure, all-reduces not found."""
    command = [
        *("-m", "launch.benchmark", "--what=step,whole", "--modes=jit,pmap", "--devices=1,2"),
        *("--batch_sizes=4", "--repetitions=1", "--profile", f"--output={tmp_path}", *TINY),
    ]
    flags = "--xla_force_host_platform_device_count=2"
    done = run_python(*command, XLA_FLAGS=flags, NPROC="64")
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "benchmark.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["measured"] * 8
    for cell in cells:
        values, two = cell["values"], cell["num_devices"] == 2
        if cell["kind"] == "step":
            # Gradients, and batch norm's sums and the loss.
            assert (values["all_reduce_bytes"] >= 4 * values["num_parameters"]) == two
            assert values["slices_per_s_per_device"] == values["slices_per_s"] / cell["num_devices"]
        else:
            assert list((tmp_path / values["trace"]).rglob("*.xplane.pb"))
