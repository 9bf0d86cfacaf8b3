"""The arrows of the architecture, held on the syntax tree: who may import whom, and who alone knows what.

LEVELS gives each module at the top of the package, and each folder, a level; imports point to lower levels.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shell import run_python

import dagm_jax

PACKAGE = Path(dagm_jax.__file__).parent
ROOT = PACKAGE.parent

# A row for each folder, and for each module beside them; imports point to lower levels.
LEVELS = {
    "types": 0,
    "errors": 0,
    "versions": 0,
    "schema": 1,
    "storage": 1,
    "console": 1,
    "data": 2,
    "distributed": 2,
    "tasks": 2,
    "models": 3,
    "train": 4,
    "evaluation": 4,
    "config": 5,
    "visualization": 5,
    "command_line": 6,
    "experiment": 7,
    "exporting": 8,
    "inspection": 9,
    "main": 10,
    "predict": 10,
    "calibrate": 10,
    "export": 10,
    "cli": 10,
}
# Import name → distribution name, where they differ by more than - and _.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "skimage": "scikit-image",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# The builder, which is a class of TFDS's, and the reader, which imports it when a set is read.
TFDS_MODULES = {"data/dagm2007/dagm2007_dataset_builder", "data/formats/tfds_reader", "data/prepare"}
COMMANDS = {"main", "command_line"}
# What no extra can name, because its pins contradict ours; docs/export.md has the command.
UNDECLARABLE = {"jax2onnx"}
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets"}
WITHOUT_JAX = {*HEAVY, "grain", "absl", "rich", "ml_collections", "jaxtyping"}


def modules() -> dict[str, ast.Module]:
    """Path relative to the package, without .py → tree: "data/slicing", "main"."""
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = modules()
SOURCES = [name for name in MODULES if not name.endswith("__init__")]


def group_of(module: str) -> str:
    """ "data" of "data/slicing"; "main" of "main"; a module that has a level of its own is its own group."""
    return module if module in LEVELS else module.partition("/")[0]


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported anywhere in the tree; ``from a import b`` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """The package's groups that are imported: {"data", "types"}."""
    paths = {"/".join(name.split(".")[1:3]) for name in imports_of(tree) if name.startswith("dagm_jax.")}
    return {group_of(path) for path in paths}


def names_of(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that is imported or used as an attribute chain: ``jax.config.update``."""
    yield from imports_of(tree)
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name):
            yield ".".join([node.id, *reversed(parts)])


def users(is_one: Callable[[str], bool]) -> set[str]:
    """The modules that import or use a name of this kind."""
    return {module for module, tree in MODULES.items() if any(is_one(name) for name in names_of(tree))}


def under(*prefixes: str) -> Callable[[str], bool]:
    """Whether a dotted name is one of these or lies below one of them."""
    return lambda name: any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


# --- levels ---


def test_every_module_has_a_level() -> None:
    """Would catch: a new module that no rule of this file looks at. Give it a level in LEVELS."""
    assert {group_of(module) for module in SOURCES} == set(LEVELS)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    """Would catch: an import upwards, and one between peers, such as data from models."""
    group = group_of(module)
    imported = own_imports(MODULES[module]) - {group}
    wrong = {other for other in imported if LEVELS[other] >= LEVELS[group]}
    assert not wrong, f"{module} (level {LEVELS[group]}) imports {sorted(wrong)}"


def test_single_modules_import_nothing_of_their_own_name() -> None:
    """Would catch: a package beside a module of one name, which the rule above would let import each other."""
    assert not [m for m in SOURCES if "/" not in m and any(n.startswith(f"{m}/") for n in SOURCES)]


def test_the_rules_see_imports_inside_functions() -> None:
    """Would catch: this file looking at the top of the modules only."""
    tree = ast.parse("def f():\n    from dagm_jax.train import loop\n    import dagm_jax.metrics\n")
    assert own_imports(tree) == {"train", "metrics"}
    assert "jax.config.update" in set(names_of(ast.parse("def f():\n    jax.config.update('a', 1)\n")))


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("main cli predict calibrate export", {*HEAVY, "grain", "rich"}),
        ("config", {"flax", "grain", "orbax"}),
        ("data.config", {*WITHOUT_JAX, "scipy", "PIL"}),
        ("data.images.decode data.slicing", {*WITHOUT_JAX, "scipy"}),
        ("data.cache data.dataset data.sampling data.augment data.split", WITHOUT_JAX),
        ("data.pipeline", {"tensorflow_datasets", "tensorflow"}),
        ("visualization.page visualization.overlay visualization.figures", {*HEAVY, "grain"}),
        ("evaluation.metrics evaluation.threshold", {*HEAVY, "grain"}),
        # tensorboardX imports PyTorch where it is.
        (
            "experiment.run predict inspection.inspector export",
            {"tensorboardX", "matplotlib", "scipy.stats"},
        ),
    ],
)
def test_imports_are_cheap(modules: str, absent: set[str]) -> None:
    """Would catch: jax's seconds paid by ``main``, which each of grain's workers imports again, by a mistake on the
    command line, by reading a configuration or an image; TFDS's, figures' and statistics' by every job and command."""
    imports = ", ".join(f"dagm_jax.{name}" for name in modules.split())
    code = f"import sys, {imports}; print(*(name for name in {sorted(absent)} if name in sys.modules))"
    done = run_python("-c", code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize(
    "module", [m for m in MODULES if group_of(m) in ("data", "types") or "__init__" in m]
)
def test_data_and_package_know_no_jax(module: str) -> None:
    """Would catch: a backend started in grain's workers, or jax's seconds paid by `import dagm_jax`."""
    allowed = {"tensorflow_datasets"} if module in TFDS_MODULES else set()
    assert not {name.partition(".")[0] for name in imports_of(MODULES[module])} & HEAVY - allowed


def test_rooms_are_small() -> None:
    """Would catch: a file that nobody reads to its end, and a top floor that grows back."""
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    assert [path.name for path in paths if len(path.read_text().splitlines()) > 450] == []
    assert len(list(PACKAGE.glob("*.py"))) <= 14


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configurations_import_configurations_only(path: Path) -> None:
    """Would catch: a shipped configuration with code of its own in it."""
    imported = [name for name in imports_of(ast.parse(path.read_text())) if name.startswith("dagm_jax.")]
    allowed = {"dagm_jax.config.compose", "dagm_jax.config.to_config_dict"}
    assert not [name for name in imported if name not in allowed and not name.endswith("Config")]


# --- who alone knows what ---


# What it is about → (whether a dotted name is of it, who may use it).
KNOWLEDGE = {
    "environment": (
        under("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"),
        {"main", "predict", "cli", "exporting/check"},
    ),
    "flags": (under("absl.flags", "absl.app", "ml_collections.config_flags"), COMMANDS),
    # Without the names of source files in a written program.
    "jax settings": (under("jax.config"), {"main", "exporting/inference_fn"}),
    "jax processes": (
        under("jax.distributed", "jax.process_index", "jax.process_count"),
        {"distributed"},
    ),
    "exchange": (under("jax.experimental.multihost_utils"), {"distributed/processes"}),
    "orbax": (under("orbax"), {"train/checkpoint"}),
    "sharding": (under("jax.sharding", "jax.experimental.shard_map"), {"distributed/devices"}),
    "meshes": (under("jax.make_mesh", "jax.pmap", "jax.shard_map"), {"distributed/devices"}),
    # A draw of weights on the host is handed to the default device, whatever that is.
    "placement": (under("jax.device_put"), {"distributed/devices", "models/initial"}),
    "devices": (
        under("jax.devices", "jax.local_devices", "jax.device_count"),
        {"distributed/devices", "cli"},
    ),
    "plots": (under("matplotlib"), {"visualization/figures"}),
    "logs": (under("tensorboardX"), {"train/history"}),
    "tfds": (under("tensorflow_datasets", "array_record"), TFDS_MODULES),
    "flax": (under("flax"), {"models", "experiment/trained_model"}),
    "onnxruntime": (under("onnxruntime"), {"exporting/runners", "exporting/to_onnx"}),
    "jax2onnx": (under("jax2onnx", "onnx"), {"exporting/to_onnx"}),
    # Folders.
    "replacing": (under("os.replace", "os.rename"), {"storage", "data/archive"}),
}


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_who_alone_knows(name: str) -> None:
    """Would catch: a second home of a library or of the process's settings, which then changes in two places."""
    is_one, owners = KNOWLEDGE[name]
    assert {user for user in users(is_one) if user not in owners and group_of(user) not in owners} == set()


def test_nobody_uses_pyplot() -> None:
    """Would catch: figures drawn through pyplot's global state, which needs a display or leaks every figure."""
    assert not users(lambda name: "pyplot" in name or name.startswith(("pylab", "matplotlib.pylab")))


# --- what may not be done with files of strangers ---


def called(tree: ast.AST) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted name, constant keyword arguments) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            constants = {
                word.arg: word.value.value
                for word in node.keywords
                if word.arg is not None and isinstance(word.value, ast.Constant)
            }
            yield ast.unparse(node.func), constants


def dangers(tree: ast.AST) -> set[str]:
    """What in the tree can run code that a file holds, or that a file's name spells out for a shell."""
    modules = under(
        "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "runpy"
    )
    functions = under("torch.load", "os.system", "os.popen", "os.spawnl", "yaml.load", "yaml.unsafe_load")
    found = {name for name in names_of(tree) if modules(name) or functions(name)}
    for name, words in called(tree):
        if name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"):
            found.add(name)
        if words.get("allow_pickle") is True or words.get("shell") is True:
            found.add(f"{name}(allow_pickle or shell)")
        if name in ("np.load", "numpy.load", "jnp.load") and words.get("allow_pickle") is not False:
            found.add(f"{name} without allow_pickle=False")
    return found


def test_no_file_of_a_stranger_is_run() -> None:
    """Would catch: pickle, which runs what it reads, in any of its guises, and text handed to Python or to a shell.

    The exchange between the processes of one job is the exception: they run each other's code anyway.
    """
    paths = [path for name in ("dagm_jax", "configs", "launch") for path in (ROOT / name).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): dangers(ast.parse(path.read_text())) for path in paths}
    assert {path: sorted(what) for path, what in found.items() if what} == {
        "dagm_jax/distributed/processes.py": ["pickle", "pickle.dumps", "pickle.loads"],
        # Modules of the package, by names that are constants.
        "dagm_jax/cli.py": ["runpy", "runpy.run_module"],
    }


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "exec(text)",
        "__import__('os')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "np.savez('x', allow_pickle=True)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "import yaml\nyaml.load(text)",
    ],
)
def test_the_rule_on_files_of_strangers_sees(code: str) -> None:
    """Would catch: a rule that a small change of its pattern has blinded."""
    assert dangers(ast.parse(code))


# --- dependencies ---


def declared(*extras: str) -> set[str]:
    """Names of the distributions that pyproject declares, with those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return {canonical(text.partition(">")[0].partition("[")[0]) for text in wanted}


def canonical(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def third_party(folder: Path, pattern: str) -> set[str]:
    """Names of the distributions that the files of this pattern below a folder import."""
    names = {
        name.partition(".")[0]
        for path in folder.rglob(pattern)
        for name in imports_of(ast.parse(path.read_text()))
    }
    assert names, "no file looked at"
    # pytest puts a test's own folder on the path.
    beside = {path.stem for path in folder.rglob("*.py")} if folder.name == "tests" else set()
    foreign = names - set(sys.stdlib_module_names) - {"dagm_jax", "configs", "launch", "__future__"} - beside
    return {canonical(DISTRIBUTIONS.get(name, name)) for name in foreign}


# Of the tests those that pytest runs; a script beside them that makes reference numbers with another library needs it.
@pytest.mark.parametrize(
    ("folder", "pattern", "extras"),
    [
        ("dagm_jax", "*.py", ("onnx", "openvino")),
        ("configs", "*.py", ()),
        ("launch", "*.py", ("peer",)),
        ("tests", "test_*.py", ("test", "peer", "tfds-test", "browser", "onnx")),
    ],
)
def test_every_import_is_declared(folder: str, pattern: str, extras: tuple[str, ...]) -> None:
    """Would catch: a package that is only there because another one happens to need it, missing on a fresh machine."""
    assert third_party(ROOT / folder, pattern) - declared(*extras) - UNDECLARABLE == set()


REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[a-z0-9]+\])?>=(?P<least>[0-9]+(\.[0-9]+)*)")


def requirements() -> list[str]:
    """Every requirement of pyproject: of the package and of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return sorted({*project["dependencies"], *(text for extra in extras for text in extra)})


@pytest.mark.parametrize("text", requirements())
def test_every_dependency_has_a_lower_bound_that_is_met(text: str) -> None:
    """Would catch: a release with a known hole, or one that is too old, let in because no bound forbids it; and tests
    run with an older release than users are told to have.
    """
    match = REQUIREMENT.fullmatch(text)
    assert match, f"{text} is not of the form name>=version"
    try:
        installed = importlib.metadata.version(match["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{match['name']} is of an extra that is not installed")
    numbers = re.match(r"[0-9]+(\.[0-9]+)*", installed)
    assert numbers
    found, least = ([int(n) for n in version.split(".")] for version in (numbers[0], match["least"]))
    assert found >= least


def test_every_lower_bound_has_its_reason() -> None:
    """Would catch: a bound that nobody dares to move, because nobody knows what it is for."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[tool.hatch")]
    lines = [line.strip() for line in block.splitlines()]
    bound = [i for i, line in enumerate(lines) if ">=" in line and not line.startswith("#")]
    assert bound
    assert not [lines[i] for i in bound if "# " not in lines[i] and not lines[i - 1].startswith("#")]
