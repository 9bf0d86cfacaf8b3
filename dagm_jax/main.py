"""Trains and tests a detector: ``python -m dagm_jax.main --config=configs/custom_unet.py [--workdir=DIR]``.

``--config.x.y=value`` changes a field of the configuration; docs/configuration.md lists them. The same command goes on
with an interrupted run, and reports a finished one.
"""

# Free of jax at import: grain's worker processes import this module again.
from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

import dagm_jax
from dagm_jax.command_line import EXIT_PEER_LOST, end_at_once, guarded, leave, parse_config_flags
from dagm_jax.errors import DiskError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(), as FILE or FILE:TASK.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run's files; default: runs/ and a name made from the configuration."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes of a cluster that jax detects: SLURM, Cloud TPU, GKE, MPI.",
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, elsewhere.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the job.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
_PEER_TIMEOUT_S = flags.DEFINE_integer(
    "peer_timeout_s",
    600,
    "Seconds without progress after which a job of several processes ends.",
    lower_bound=1,
)


def default_workdir(config_json: str) -> Path:
    """``runs/`` and a name that any change of the configuration changes, so that one command finds its own run."""
    file, _, options = str(config_flags.get_config_filename(flags.FLAGS["config"])).partition(":")
    digest = hashlib.sha256(config_json.encode()).hexdigest()[:8]
    return Path("runs") / "-".join(part for part in (Path(file).stem, *options.split(","), digest) if part)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment of the parsed flags; returns the exit status."""
    del argv
    logging.set_verbosity(logging.WARNING)
    import jax

    from dagm_jax.config import from_config_dict, to_json
    from dagm_jax.distributed.processes import connect
    from dagm_jax.experiment.run import run
    from dagm_jax.experiment.timings import Timings

    config = from_config_dict(_CONFIG.value)
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(to_json(config))
    # Its handler of SIGTERM would replace the training loop's, by which the processes agree on the step to stop at.
    jax.config.update("jax_enable_preemption_service", False)
    processes = connect(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        is_cluster=bool(_DISTRIBUTED.value),
        timeout_s=_PEER_TIMEOUT_S.value,
        on_silence=on_silence,
    )
    try:
        run(config, workdir, os.environ.get("XLA_FLAGS", ""), processes, Timings(dagm_jax.IMPORTED_S))
    except BaseException as error:
        # After a disk has refused a checkpoint, threads of orbax wait for ever.
        if processes.count > 1 or isinstance(error, DiskError):
            leave(error, processes)
        raise
    return 0


def on_silence(seconds: float) -> None:
    """Ends this process, which has waited too long for another; called by the watchdog's thread."""
    end_at_once(
        f"stopped: no progress for {seconds:.0f} s (--peer_timeout_s): a process of the job, maybe this one, is stuck "
        "or dead; the same command goes on from what was saved last",
        EXIT_PEER_LOST,
    )


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_config_flags, argv))
