"""Versions of packages: installed ones, and those that wrote a file."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

PACKAGES = ("dagm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Packages of extras.
OPTIONAL_PACKAGES = ("tensorflow-datasets", "onnxruntime", "jax2onnx", "torch")


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The installed versions of these packages, by default of those that a result depends on."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


def written_by(content: Any) -> str:
    """Which releases wrote a report or a contract, such as "dagm-jax 0.1.0 and jax 0.10.2"; it may be a stranger's."""
    versions = content.get("versions") if isinstance(content, dict) else None
    known = versions if isinstance(versions, dict) else {}
    return " and ".join(
        f"{name} {ascii(known.get(name, 'unknown'))[:40]}" for name in ("dagm-jax", "jax")
    ).replace("'", "")
