"""Scripts and manifests for clusters: scripts pass shellcheck and hand arguments on, manifests are valid.

Manifests are parsed by models that Kubeflow generates from the schemas of JobSet and Kubernetes, which drop unknown
fields.
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

from dagm_jax import main  # noqa: F401  (defines the flags)
from dagm_jax.command_line import EXIT_USER_ERROR

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "launch" / "clusters"
SCRIPTS = sorted(CLUSTERS.glob("*.sh"))
MANIFESTS = sorted(CLUSTERS.glob("*.yaml"))
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


def run_slurm(tmp_path: Path, stubs: dict[str, str], **variables: str) -> int:
    """The exit status of the script with these stand-ins; ``scontrol`` notes what is queued again."""
    command = str(CLUSTERS / "slurm.sh"), *ARGUMENTS
    own = {"SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "8"}
    return int(run_with(tmp_path, {**stubs, "scontrol": "exit 0"}, *command, **own, **variables).returncode)


@pytest.mark.parametrize(
    ("ranks", "restarts", "status", "is_queued"),
    [
        ("0 0", 0, 0, False),
        ("1", 0, 1, False),
        ("2 2", 0, 2, False),
        ("75 134 75", 0, 134, True),
        ("130 130", 3, 130, True),
        ("75", 20, 75, False),
        # srun tells the highest status of all tasks, behind which a mistake hides.
        ("2 75 134", 0, 2, False),
        ("137 1 75", 0, 1, False),
    ],
)
def test_slurm_queues_runs_that_can_go_on(
    tmp_path: Path, ranks: str, restarts: int, status: int, is_queued: bool
) -> None:
    """Would catch: a run that is lost when its time is up; a mistake, if of one task alone, that is tried for ever."""
    stubs = {"srun": SRUN, "python": 'exit "$RANK_STATUS"'}
    assert run_slurm(tmp_path, stubs, RANKS=ranks, SLURM_RESTART_COUNT=str(restarts)) == status
    assert noted(tmp_path, "scontrol") == (["requeue", "77"] if is_queued else [])
    assert noted(tmp_path, "python") == ["-m", "dagm_jax.main", "--distributed", *ARGUMENTS] * len(
        ranks.split()
    )
    # Slurm 22.05 to 23.02 would give a task one CPU.
    assert "--cpus-per-task=8" in noted(tmp_path, "srun")


def test_slurm_s_signal_reaches_the_command(tmp_path: Path) -> None:
    """Would catch: a run that never hears that its time is up, as Slurm signals a task's first process alone; a
    task that ends before its command has saved."""
    stubs = {
        "srun": 'while [[ $1 == --* ]]; do shift; done\n"$@" & task=$!\n'
        'until [[ -e "$STARTED" ]]; do sleep 0.05; done\nkill -TERM "$task"; wait "$task"',
        "python": 'trap "sleep 0.3; exit 130" TERM\ntouch "$STARTED"\nfor _ in {1..200}; do sleep 0.05; done',
    }
    assert run_slurm(tmp_path, stubs, STARTED=str(tmp_path / "started")) == 130
    assert noted(tmp_path, "scontrol") == ["requeue", "77"]


def test_tpu_vm_hands_its_arguments_to_every_host(tmp_path: Path) -> None:
    """Would catch: arguments that the remote shell takes apart."""
    command = (str(CLUSTERS / "tpu_vm.sh"), "slice", "zone-a", "/home/me/dagm jax", *ARGUMENTS)
    done = run_with(tmp_path, {"gcloud": "exit 3"}, *command)
    assert done.returncode == 3
    arguments = noted(tmp_path, "gcloud")
    assert {"slice", "--zone=zone-a", "--worker=all"} <= set(arguments)
    (line,) = (a.removeprefix("--command=") for a in arguments if a.startswith("--command="))
    job = [".venv/bin/python", "-m", "dagm_jax.main", "--distributed", *ARGUMENTS]
    assert shlex.split(line) == ["cd", "/home/me/dagm jax", "&&", "exec", *job]
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
    # The check sees a misspelt field.
    content["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 2
    assert JobsetV1alpha2JobSet.from_dict(content).to_dict() != content


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
    assert rule["onExitCodes"]["values"] == [EXIT_USER_ERROR]
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
