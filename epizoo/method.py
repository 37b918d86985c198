"""How a run comes to what scores its subjects: methods by name, behind one interface.

The normative method trains an encoder on healthy tissue and fits a detector on its codes; the supervised
reference learns from annotated patients. A run knows neither: it looks its method up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    from epizoo.detection.explained import Explained
    from epizoo.detection.tail import Tail
    from epizoo.models.patch_model import PatchModel
    from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder

# Name -> "module:class", imported when asked for.
METHODS: dict[str, str] = {
    "normative": "epizoo.normative:Normative",
    "supervised": "epizoo.supervised:Supervised",
}


def method_of(name: str) -> Method:
    """A method by its name.

    Raises:
        InputError: an unknown name.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}.")
    module, _, attribute = METHODS[name].partition(":")
    method: Method = vars(import_module(module))[attribute]()
    return method


class Scorer(Protocol):
    """What a method makes: it gives a subject its score map.

    Attributes:
        subjects: labels of those that it learnt from.
        tail: of the highest scores of healthy people, by which a score says how rare it is; None where that
            is not known.
    """

    subjects: list[str]
    tail: Tail | None

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What its folder says of it: ``detector``, ``encoder``, and ``units`` of its scores."""

    def score(self, subject: Subject) -> NDArray[np.float32]:
        """``(x, y, z)``; higher is more abnormal, 0 outside the brain."""

    def explain(self, subject: Subject) -> Explained:
        """The score map, and what its scores are made of."""


class Work(Protocol):
    """What a method sees of the run that it works for."""

    config: RunConfig
    folder: RunFolder
    console: Console
    builder: Builder

    def read(self, split: str, subjects: Iterable[str] | None = None) -> Iterator[Subject]:
        """The subjects of a split, one at a time."""

    def subjects(self, split: str) -> list[str]:
        """Labels of the subjects of a split."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """A step; its time and memory are recorded and said when it is done."""

    def progress(self, items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        """The items, with a bar while they last and a line in the end."""


class Method(Protocol):
    """How a run comes to its scorer. Each step is done once: called again, it reads what is there."""

    def check(self, run: Work) -> None:
        """Before anything is written: whether the method can do it with these data.

        Raises:
            InputError: it cannot.
        """

    def learnt_from(self, run: Work) -> dict[str, Any]:
        """``supervised`` and ``fitted_on`` of the metadata, of a method that sees more than controls."""

    def train(self, run: Work) -> PatchModel | None:
        """Train the encoder, or go on; None where there is none."""

    def fit(self, run: Work) -> Scorer:
        """Make the scorer in the run's folder, after training; or go on."""

    def load(self, folder: RunFolder) -> Scorer:
        """The scorer that ``fit`` left.

        Raises:
            InputError: it is not there, or damaged.
        """

    def saw(self, run: Work) -> list[str]:
        """Labels of all subjects that the fitted scorer has learnt from: none of them may be tested."""
