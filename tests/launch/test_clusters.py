"""What starts the job on clusters: scripts that shellcheck passes and that hand arguments on, manifests that are valid.

The manifests are held against the models that Kubeflow's trainer is generated with from the schemas of JobSet and
Kubernetes: a field that these do not know does not come back from them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from absl import flags
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
from pydantic import ValidationError

from dagm_jax import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
MANIFESTS = sorted((ROOT / "launch").glob("*.yaml"))
ARGUMENTS = ["--config=configs/custom_unet.py:segmentation", "--workdir=runs/a name with 'quotes' & $HOME"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    """Would catch: a path with a space that falls apart, and an error that the script goes on after."""
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or str(beside)
    done = subprocess.run([program, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


def run_with(tmp_path: Path, stubs: dict[str, str], *command: str, **variables: str) -> Any:
    """The command with these programs in place of the cluster's; each notes its arguments in a file of its name."""
    for name, body in stubs.items():
        program = tmp_path / name
        program.write_text(
            f"#!/bin/bash\nprintf '%s\\n' \"$@\" >> {shlex.quote(f'{program}.args')}\n{body}\n"
        )
        program.chmod(0o755)
    environment = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def noted(tmp_path: Path, name: str) -> list[str]:
    path = tmp_path / f"{name}.args"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("status", "restarts", "is_queued"),
    [(0, "0", False), (2, "0", False), (1, "0", False), (75, "0", True), (130, "3", True), (75, "20", False)],
)
def test_slurm_queues_what_can_go_on(tmp_path: Path, status: int, restarts: str, is_queued: bool) -> None:
    """Would catch: a run that is lost when its time is up, and a mistake that is tried for ever."""
    stubs = {"srun": f"exit {status}", "scontrol": "exit 0"}
    variables = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": restarts, "SLURM_CPUS_PER_TASK": "8"}
    done = run_with(tmp_path, stubs, str(ROOT / "launch/slurm.sh"), *ARGUMENTS, **variables)
    assert done.returncode == status
    arguments = noted(tmp_path, "srun")
    assert arguments[arguments.index("python") :] == [
        "python",
        "-m",
        "dagm_jax.main",
        "--distributed",
        *ARGUMENTS,
    ]
    assert noted(tmp_path, "scontrol") == (["requeue", "77"] if is_queued else [])
    # In 22.05 to 23.02 a task would have one CPU.
    assert "--cpus-per-task=8" in arguments


# The task of each rank, one after the other; its options are those that begin with --.
SRUN = """
while [[ $1 == --* ]]; do shift; done
highest=0
for rank in $RANKS; do
    status=0
    RANK_STATUS=$rank "$@" || status=$?
    ((status > highest)) && highest=$status
done
exit "$highest"
"""


@pytest.mark.parametrize(
    ("ranks", "status", "is_queued"),
    [
        ("0 0", 0, False),
        ("2 75 134", 2, False),
        ("137 1 75", 1, False),
        ("2 2", 2, False),
        ("75 134 75", 134, True),
        ("130 130", 130, True),
    ],
)
def test_slurm_sees_the_mistake_of_one_task_among_others(
    tmp_path: Path, ranks: str, status: int, is_queued: bool
) -> None:
    """Would catch: a mistake that is tried again and again, because srun tells the highest status of all tasks."""
    stubs = {"srun": SRUN, "python": 'exit "$RANK_STATUS"', "scontrol": "exit 0"}
    variables = {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "8", "RANKS": ranks}
    done = run_with(tmp_path, stubs, str(ROOT / "launch/slurm.sh"), *ARGUMENTS, **variables)
    assert done.returncode == status, done.stderr
    assert bool(noted(tmp_path, "scontrol")) == is_queued
    given = ["-m", "dagm_jax.main", "--distributed", *ARGUMENTS]
    assert noted(tmp_path, "python") == given * len(ranks.split())


def test_slurm_s_signal_reaches_the_command(tmp_path: Path) -> None:
    """Would catch: a run that is not told that its time is up, as Slurm signals the first process of a task alone; a
    task that ends before its command has saved."""
    stubs = {
        "srun": 'while [[ $1 == --* ]]; do shift; done\n"$@" & task=$!\n'
        'until [[ -e "$STARTED" ]]; do sleep 0.05; done\nkill -TERM "$task"; wait "$task"',
        "python": 'trap "sleep 0.3; exit 130" TERM\ntouch "$STARTED"\nfor _ in {1..200}; do sleep 0.05; done',
        "scontrol": "exit 0",
    }
    variables = {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "8", "STARTED": str(tmp_path / "started")}
    done = run_with(tmp_path, stubs, str(ROOT / "launch/slurm.sh"), *ARGUMENTS, **variables)
    assert done.returncode == 130, done.stderr
    assert noted(tmp_path, "scontrol") == ["requeue", "77"]


def test_tpu_vm_hands_its_arguments_to_every_host(tmp_path: Path) -> None:
    """Would catch: arguments that the shell of the other side takes apart."""
    command = (str(ROOT / "launch/tpu_vm.sh"), "slice", "zone-a", "/home/me/dagm jax", *ARGUMENTS)
    done = run_with(tmp_path, {"gcloud": "exit 3"}, *command)
    assert done.returncode == 3
    arguments = noted(tmp_path, "gcloud")
    assert {"slice", "--zone=zone-a", "--worker=all"} <= set(arguments)
    (line,) = (a.removeprefix("--command=") for a in arguments if a.startswith("--command="))
    sent = [
        "cd",
        "/home/me/dagm jax",
        "&&",
        "exec",
        ".venv/bin/python",
        "-m",
        "dagm_jax.main",
        "--distributed",
    ]
    assert shlex.split(line) == [*sent, *ARGUMENTS]
    usage = run_with(tmp_path, {}, *command[:3])
    assert usage.returncode == 2
    assert "usage:" in usage.stderr


def read(manifest: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(manifest.read_text())
    return content


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(manifest: Path) -> None:
    """Would catch: a field that is misspelt, of another type, or in another place than Kubernetes looks for it."""
    content = read(manifest)
    assert JobsetV1alpha2JobSet.from_dict(content).to_dict() == content


def test_the_validation_sees_mistakes() -> None:
    """Would catch: a check that lets everything pass."""
    content = read(MANIFESTS[0])
    job = content["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["paralelism"] = job.pop("parallelism")
    assert JobsetV1alpha2JobSet.from_dict(content).to_dict() != content
    job["parallelism"] = "two"
    with pytest.raises(ValidationError, match="parallelism"):
        JobsetV1alpha2JobSet.from_dict(content)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_agree_with_themselves_and_with_the_job(manifest: Path) -> None:
    """Would catch: a number of hosts changed in one place alone, a coordinator that nobody is, a flag that is none."""
    content = read(manifest)
    (job,) = content["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [main.EXIT_USER_ERROR]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])
    own = {name for name in given if not name.startswith("config")}
    assert own <= set(flags.FLAGS)
    if "coordinator_address" in given:
        assert int(given["num_processes"]) == spec["parallelism"]
        host = f"{content['metadata']['name']}-{job['name']}-0-0.{content['spec']['network']['subdomain']}"
        port = container["ports"][0]["containerPort"]
        assert given["coordinator_address"] == f"{host}:{port}"
        (variable,) = re.findall(r"^\$\((\w+)\)$", given["process_id"])
        assert variable in [entry["name"] for entry in container["env"]]
    else:
        assert "distributed" in given
