"""What a run says of how it was made: ``metadata.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Step:
    """What a step of a run took: wall time, and the most memory that its process held."""

    seconds: float
    peak_gib: float


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """How a run was made.

    Attributes:
        versions: of the packages that decide its numbers.
        python, machine: that it ran on.
        seed: as in its settings.
        data_hash: of the images; runs of another hash are of other data.
        split_hash: of who is in which split.
        modalities: names of the image's channels, in their order.
        space: the template space of its maps.
        splits: the subjects of each split.
        steps: what each step took; those that are done.
        supervised: whether it learnt from annotated lesions, and is no competitor of methods that do not.
        weights: where those of its model come from: a preset, adapted or trained further, or a training.
        fitted_on: what it learnt from, where that is not the training controls as they are.
    """

    versions: dict[str, str]
    python: str = ""
    machine: str = ""
    seed: int = 0
    data_hash: str
    split_hash: str
    modalities: list[str]
    space: str
    splits: dict[str, list[str]]
    steps: dict[str, Step] = field(default_factory=dict)
    weights: str = ""
    supervised: bool = False
    fitted_on: str = ""

    @classmethod
    def read(cls, path: Path) -> Metadata:
        """Read ``metadata.json``.

        Raises:
            InputError: no such file, damaged, or of another version.
        """
        content = read_json(path)
        try:
            return cls.from_json(content)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged, or made by another version ({error}).") from error

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Metadata:
        """The metadata that ``to_json`` gave; what a later version adds is left out."""
        known = {one.name: content[one.name] for one in fields(cls) if one.name in content}
        steps = {name: Step(**step) for name, step in known.get("steps", {}).items()}
        return cls(**{**known, "steps": steps})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        write_json(path, self.to_json())

    def with_step(self, name: str, step: Step) -> Metadata:
        """The same after another step."""
        return replace(self, steps={**self.steps, name: step})
