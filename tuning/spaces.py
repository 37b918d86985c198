"""What is searched: one declarative space a model, and what its values mean.

A space is a list of parameters. One that stands under a condition exists only where another has one of
the given values (the pool's number where something is pooled, nu where the detector is the one-class SVM),
so that no two configurations differ in what nothing reads. Every encoder of every space has a dense form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    from epizoo.models.patch_model import PatchModel


@dataclass(frozen=True)
class Choice:
    """One of several whole numbers or words; ``when``: the name of another parameter and its values."""

    name: str
    values: Sequence[int] | Sequence[str]
    when: tuple[str, Sequence[int] | Sequence[str]] | None = None

    def declare(self, hp: Any) -> Any:
        parent, parent_values = self.when or (None, None)
        return hp.Choice(
            self.name,
            list(self.values),
            parent_name=parent,
            parent_values=None if parent_values is None else list(parent_values),
        )

    @property
    def range(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Log:
    """A number between two bounds, uniform in its logarithm; ``when`` as in :class:`Choice`."""

    name: str
    low: float
    high: float
    when: tuple[str, Sequence[int] | Sequence[str]] | None = None

    def declare(self, hp: Any) -> Any:
        parent, parent_values = self.when or (None, None)
        return hp.Float(
            self.name,
            self.low,
            self.high,
            sampling="log",
            parent_name=parent,
            parent_values=None if parent_values is None else list(parent_values),
        )

    @property
    def range(self) -> str:
        return f"{self.low:g} to {self.high:g}, log-uniform"


Parameter = Choice | Log

# === What every encoder shares ===

PATCH = Choice("patch", (7, 9, 11, 15, 21))
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
RATE = Log("learning_rate", 1e-4, 1e-2)
TWO_RATES = (Log("d_learning_rate", 1e-4, 4e-3), Log("g_learning_rate", 1e-4, 4e-3))
DETECTOR = (
    Choice("detector", ("ocsvm", "gaussian", "knn")),
    Log("nu", 0.01, 0.3, when=("detector", ("ocsvm",))),
    Choice("k", (1, 3, 5, 9), when=("detector", ("knn",))),
    Choice("fwhm", (0, 4, 8)),  # smoothing of the score map, mm
)
R1 = Log("r1", 0.05, 20.0)
CYCLE = Log("cycle", 1.0, 100.0)

FINDER = (
    *(Choice("cube", (15, 21, 27, 33)), Choice("width", (8, 16, 24)), CODE, RATE),
    *(Choice("detector", ("signs", "head", "ocsvm", "gaussian")), DETECTOR[1], DETECTOR[3]),
)

# === One space a model ===

SPACES: dict[str, tuple[Parameter, ...]] = {
    "autoencoder": (PATCH, CODE, *STAGES, NORM, RATE, *DETECTOR),
    "masked": (
        *(PATCH, CODE, *STAGES, NORM, Choice("block", (1, 3, 5)), Log("hidden", 0.2, 0.8), RATE, *DETECTOR),
    ),
    "vae": (PATCH, CODE, *STAGES, NORM, Log("sigma", 0.01, 0.3), RATE, *DETECTOR),
    "wae": (PATCH, CODE, *STAGES, NORM, Log("weight", 0.5, 100.0), RATE, *DETECTOR),
    "siamese": (PATCH, CODE, *STAGES, NORM, Log("alpha", 1e-3, 3.0), RATE, *DETECTOR),
    "deep_siamese": (PATCH, CODE, NORM, Log("alpha", 1e-3, 3.0), RATE, *DETECTOR),
    "dcgan": (PATCH, CODE, *STAGES, R1, *TWO_RATES, *DETECTOR),
    "original_dcgan": (PATCH, CODE, *STAGES, *TWO_RATES, *DETECTOR),
    "f_anogan": (
        *(PATCH, CODE, *STAGES, Log("kappa", 0.1, 10.0), Choice("critic_steps", (1, 2, 5))),
        *(Log("g_learning_rate", 1e-4, 4e-3), Log("c_learning_rate", 1e-4, 4e-3)),
        *(Log("e_learning_rate", 1e-4, 4e-3), *DETECTOR),
    ),
    "bigan": (PATCH, CODE, *STAGES, CYCLE, R1, *TWO_RATES, *DETECTOR),
    "context_gan": (
        # The patch is the centre times the largest scale.
        *(Choice("centre", (5, 7, 9, 15)), Choice("scales", ("3", "5", "3 5")), CODE, *STAGES),
        *(Choice("position", ("no", "yes")), CYCLE, R1, *TWO_RATES, *DETECTOR),
    ),
    "synthetic": FINDER,
    "deviation": FINDER,
}


def space_of(model: str) -> tuple[Parameter, ...]:
    """The space of a model of the zoo.

    Raises:
        InputError: no such space.
    """
    if model not in SPACES:
        raise InputError(f"no search space for {model!r}: choose one of {', '.join(SPACES)}.")
    return SPACES[model]


def describe(space: Sequence[Parameter]) -> Iterator[tuple[str, str, str]]:
    """A row a parameter: its name, its values, and when it exists."""
    for parameter in space:
        condition = ""
        if parameter.when is not None:
            name, values = parameter.when
            condition = f"{name} is {' or '.join(map(str, values))}"
        yield parameter.name, parameter.range, condition


# === What the values mean ===


def create(model: str, values: Mapping[str, Any], *, modalities: Sequence[str], seed: int) -> PatchModel:
    """The compiled model that the values of a space describe; no values give the default architecture."""
    from epizoo import models  # brings TensorFlow, which printing a space need not wait for

    config = {**models.REGISTRY[model].config_for(modalities), **model_config(values)}
    created = models.create(model, seed=seed, **config)
    optimizers = created.default_optimizers()
    for name, optimizer in list(optimizers.items()):
        rate = values.get(name.replace("optimizer", "learning_rate"))
        if rate is not None:
            optimizers[name] = _at_rate(optimizer, rate)
    created.compile(**optimizers)
    return created


def _at_rate(optimizer: Any, rate: float) -> Any:
    """The same optimiser at another learning rate; a schedule begins there."""
    config = optimizer.get_config()
    if isinstance(config["learning_rate"], dict):
        config["learning_rate"]["config"]["initial_learning_rate"] = rate
    else:
        config["learning_rate"] = rate
    return type(optimizer).from_config(config)


def model_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a space as arguments of the model."""
    config = {name: values[name] for name in ARGUMENTS if name in values}
    if "patch" in values:
        config["patch_shape"] = [values["patch"]] * 2
    if "cube" in values:
        config |= {"patch_shape": [values["cube"]] * 3, "filters": values["width"]}
    if "scales" in values:
        config["scales"] = [int(scale) for scale in values["scales"].split()]
        config["patch_shape"] = [values["centre"] * max(config["scales"])] * 2
    if "depth" in values:
        config["stages"] = [list(stage) for stage in stages(values)]
    if values.get("norm") == "none":
        config["norm"] = None
    if "position" in values:
        config["position"] = values["position"] == "yes"
    return config


ARGUMENTS = (
    *("latent_dim", "norm", "alpha", "sigma", "weight", "hidden", "block"),
    *("kappa", "critic_steps", "cycle", "r1"),
)


def stages(values: Mapping[str, Any]) -> list[tuple[int, int, int, int]]:
    """The stack of convolutions: ``(filters, kernel, stride, pool)`` each."""
    filters, shrinks = values["filters"], values.get("shrinks", 0)
    stack = []
    for i in range(values["depth"]):
        step = 2 if i < shrinks else 1
        stride, pool = (step, 1) if values["shrink"] == "stride" else (1, step)
        stack.append((filters, values["kernel"], stride, pool))
        if step == 2 and values["widen"] == "yes":
            filters *= 2
    return stack


def detector_config(values: Mapping[str, Any]) -> tuple[str, dict[str, Any], float]:
    """The detector's name and options, and the smoothing of its map in mm; the reference without values."""
    name = values.get("detector", "ocsvm")
    options = {option: values[option] for option in ("nu", "k") if option in values}
    return name, options, float(values.get("fwhm", 0))
