"""Search spaces: which values the parameters of a model may take when its architecture is searched.

A model's space is a tuple of parameters in its class attribute ``search_space``. A parameter with a condition
exists only where another parameter has one of the given values (the number of poolings where something is
pooled, ``nu`` where the detector is the one-class SVM): two configurations never differ in a value that
nothing reads. Here are the kinds of parameters, the parameters that models share, and what those mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Condition = tuple[str, Sequence[int] | Sequence[str]]  # name of another parameter, and values of it


@dataclass(frozen=True)
class Choice:
    """One of several whole numbers or words; it exists only ``when`` its condition holds."""

    name: str
    values: Sequence[int] | Sequence[str]
    when: Condition | None = None


@dataclass(frozen=True)
class Log:
    """A number between two bounds, uniform in its logarithm; it exists only ``when`` its condition holds."""

    name: str
    low: float
    high: float
    when: Condition | None = None


Parameter = Choice | Log
Space = tuple[Parameter, ...]

# === The architecture ===

PATCH = Choice("patch", (7, 9, 11, 15, 21))  # voxels along each side of an axial patch
CODE = Choice("latent_dim", (8, 16, 32, 64))
STAGES = (
    Choice("depth", (2, 3, 4)),
    Choice("filters", (8, 16, 32)),
    Choice("kernel", (3, 5)),
    Choice("shrink", ("none", "pool", "stride")),
    Choice("shrinks", (1, 2), when=("shrink", ("pool", "stride"))),
    Choice("widen", ("no", "yes"), when=("shrink", ("pool", "stride"))),  # filters double where it shrinks
)
NORM = Choice("norm", ("none", "batch"))

# === The training ===

RATE = Log("learning_rate", 1e-4, 1e-2)
TWO_RATES = (Log("d_learning_rate", 1e-4, 4e-3), Log("g_learning_rate", 1e-4, 4e-3))
R1 = Log("r1", 0.05, 20.0)
CYCLE = Log("cycle", 1.0, 100.0)

# === The detector ===

NU = Log("nu", 0.01, 0.3, when=("detector", ("ocsvm",)))
FWHM = Choice("fwhm", (0, 4, 8))  # smoothing of the score map, mm
DETECTOR = (
    Choice("detector", ("ocsvm", "gaussian", "knn")),
    NU,
    Choice("k", (1, 3, 5, 9), when=("detector", ("knn",))),
    FWHM,
)


def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a space as arguments of a model: each under its own name, but for the shared parameters.

    ``patch`` becomes a square ``patch_shape``, the values of ``STAGES`` become ``stages``, a ``norm`` of
    ``none`` is None; learning rates and the detector's parameters are no arguments of a model.
    """
    shared = {parameter.name for parameter in (PATCH, *STAGES, *DETECTOR)}
    config = {
        name: value
        for name, value in values.items()
        if name not in shared and not name.endswith("learning_rate")
    }
    if "patch" in values:
        config["patch_shape"] = [values["patch"]] * 2
    if "depth" in values:
        config["stages"] = [list(stage) for stage in stages(values)]
    if config.get("norm") == "none":
        config["norm"] = None
    return config


def stages(values: Mapping[str, Any]) -> list[tuple[int, int, int, int]]:
    """The stack of convolutions: ``(filters, kernel, stride, pool)`` of each."""
    filters, shrinks = values["filters"], values.get("shrinks", 0)
    stack = []
    for i in range(values["depth"]):
        step = 2 if i < shrinks else 1
        stride, pool = (step, 1) if values["shrink"] == "stride" else (1, step)
        stack.append((filters, values["kernel"], stride, pool))
        if step == 2 and values["widen"] == "yes":
            filters *= 2
    return stack
