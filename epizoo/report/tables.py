"""Tables of text, and p values from the scores of controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Cell = TypeVar("Cell", str, str | None)
# Limits of the bins of scores, in z: fine enough for p values; scores outside count in the bins at the ends.
EDGES = np.linspace(-15, 60, 7501)


@dataclass
class ControlScores:
    """The scores of held-out controls, collected from one control after the other.

    Example:
        >>> controls = ControlScores()
        >>> controls.add("c1", np.array([0.5, 1.0, 3.0]))
        >>> controls.as_high(2.0), controls.as_high(4.0)
        (1, 0)

    Attributes:
        counts: ``(k,)`` voxels in each bin of ``EDGES``.
        highest: the highest score of each control.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))
    highest: dict[str, float] = field(default_factory=dict)

    def add(self, subject: str, scores: NDArray[np.floating]) -> None:
        """Count the scores ``(v,)`` of a control's brain."""
        self.counts = self.counts + histogram(scores)
        self.highest[subject] = float(scores.max(initial=-math.inf))

    def without(self, subject: str, scores: NDArray[np.floating]) -> ControlScores:
        """The scores of all other controls: a control is not its own reference."""
        if subject not in self.highest:
            return self
        others = {name: value for name, value in self.highest.items() if name != subject}
        return ControlScores(self.counts - histogram(scores), others)

    def as_high(self, score: float) -> int:
        """How many controls have a voxel that reaches a score."""
        return sum(value >= score for value in self.highest.values())


def histogram(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """``(k,)`` scores in each bin of ``EDGES``."""
    return np.histogram(np.clip(scores, EDGES[0], EDGES[-1]), EDGES)[0]


def without_empty(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], empty: str | None = None
) -> tuple[list[str], list[list[Cell]]]:
    """A table without the columns in which every cell is ``empty``."""
    kept = [i for i in range(len(columns)) if any(row[i] != empty for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def number(value: float, digits: int) -> str:
    """A number, or a dash where it is NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def millimetres(position: ArrayLike) -> str:
    """``-12, 30, 5``."""
    return ", ".join(str(round(float(v))) for v in np.asarray(position))


def p_value(p: float) -> str:
    """``0.012``, or ``3·10⁻⁷`` where it is small."""
    if p >= 0.001:
        return f"{p:.3f}"
    digit, exponent = f"{p:.0e}".split("e")
    return f"{digit}·10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def one_in(p: float, controls: int) -> str:
    """``1 in 40``, of healthy people; ``fewer than 1 in 41`` for what so many controls cannot show."""
    if p > 0.5:
        return "more than half"
    if p * (controls + 1) < 1:
        return f"fewer than 1 in {controls + 1}"
    return f"1 in {1 / p:.0f}"


def healthy_people(p: float, controls: int) -> str:
    """``1 in 40 healthy people has``, the beginning of a sentence."""
    return f"{one_in(p, controls)} {'of healthy people have' if p > 0.5 else 'healthy people has'}"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
