"""Surface-defect detection in JAX/Flax: from a folder of images to a trained, calibrated inspector."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagm_jax.inspection.inspector import Inspector

__all__ = ["Inspector"]
# Time of the clock `time.perf_counter` at which a command begins, for the timings of its report.
IMPORTED_S = time.perf_counter()


def __getattr__(name: str) -> Any:
    """``Inspector``, imported when it is first asked for: the package's own import must not cost jax's seconds."""
    if name == "Inspector":
        from dagm_jax.inspection.inspector import Inspector

        return Inspector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
