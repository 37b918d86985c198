"""Intervals over patients, paired tests between methods, and the guard against leaks."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import plain

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure over patients with its interval.

    Attributes:
        value: the figure; NaN where it does not exist.
        low, high: limits of the interval, 95 % unless asked otherwise; NaN where there is none.
        n: how many patients it is made of.

    Example:
        >>> f"{Interval(0.5, 0.25, 0.75, n=20):.2f}"
        '0.50 (0.25 to 0.75)'
    """

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        if math.isnan(self.value):
            return "–"
        limits = "" if math.isnan(self.low) else f" ({self.low:{spec}} to {self.high:{spec}})"
        return f"{self.value:{spec}}{limits}"

    def to_json(self) -> dict[str, Any]:
        """``value``, ``low``, ``high`` and ``n``; null where there is none."""
        return {name: plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Interval:
        """What ``to_json`` gave; further entries are passed over."""
        known = {
            name: math.nan if content[name] is None else content[name] for name in ("value", "low", "high")
        }
        return cls(**known, n=content["n"])


def bootstrap_mean(
    values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Average over patients, with the percentile bootstrap interval; NaN values are not counted.

    Example:
        >>> mean = bootstrap_mean([0.6, 0.7, 0.8, np.nan])
        >>> round(mean.value, 3), mean.n
        (0.7, 3)

    Args:
        values: ``(n,)``, one per patient.
        level: coverage.
        resamples: number of bootstrap samples of patients.
        seed: makes the interval reproducible.
    """
    usable: NDArray[np.float64] = np.asarray(values, dtype=float)
    usable = usable[~np.isnan(usable)]
    return bootstrap(
        len(usable), lambda at: usable[at].mean(axis=-1), level=level, resamples=resamples, seed=seed
    )


def bootstrap(
    n: int,
    statistic: Callable[[NDArray[np.intp]], ArrayLike],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Compute any figure of a group of patients, with its percentile bootstrap interval.

    After Efron & Tibshirani 1993, An Introduction to the Bootstrap.

    Example:
        >>> ages = np.array([20.0, 30, 40, 50])
        >>> median = bootstrap(4, lambda chosen: np.median(ages[chosen], axis=-1))  # of many draws at once
        >>> median.value, median.n
        (35.0, 4)

    Args:
        n: number of patients.
        statistic: from the patients' numbers in ``k`` resamples, ``(k, n)``, to the ``(k,)`` figures.
        level: coverage.
        resamples: number of bootstrap samples of patients.
        seed: makes the interval reproducible.
    """
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    value = float(np.asarray(statistic(np.arange(n)[None]))[0])
    samples = np.random.default_rng(seed).integers(0, n, (resamples, n))
    figures = np.asarray(statistic(samples))
    figures = figures[~np.isnan(figures)]  # a resample may lack what the figure is made of
    if figures.size == 0:
        return Interval(value, float("nan"), float("nan"), n)
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n)


def proportion(found: ArrayLike, *, level: float = 0.95) -> Interval:
    """Compute a share of patients, with its Wilson interval.

    The bootstrap interval of 0 of 20, or of 20 of 20, would have no width.

    Example:
        >>> f"{proportion([True] * 12 + [False] * 8):.2f}"
        '0.60 (0.39 to 0.78)'

    Args:
        found: ``(n,)`` bool, one per patient.
        level: coverage.
    """
    found = np.asarray(found, dtype=bool)
    if found.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    interval = stats.binomtest(int(found.sum()), found.size).proportion_ci(level, method="wilson")
    return Interval(float(found.mean()), float(interval.low), float(interval.high), int(found.size))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p values for several comparisons (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])

    Args:
        p_values: ``(n,)``; NaN stays NaN and is not counted.

    Returns:
        ``(n,)``, none of them lower than before.
    """
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    usable = np.flatnonzero(~np.isnan(p))
    order = usable[np.argsort(p[usable], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """How a method differs from a reference on the same patients.

    Example:
        >>> (one,) = compare({"a": {"p1": 0.9, "p2": 0.8}, "b": {"p1": 0.6, "p2": 0.7}}, "a")
        >>> one.method, round(one.difference.value, 2)
        ('b', -0.2)

    Attributes:
        method, reference: their names.
        difference: mean over patients of the method's figure minus the reference's.
        p: two-sided, of this comparison alone.
        p_holm: corrected for all methods that were compared with the reference.
    """

    method: str
    reference: str
    difference: Interval
    p: float
    p_holm: float


def compare(methods: Mapping[str, Mapping[str, float]], reference: str, *, seed: int = 0) -> list[Comparison]:
    """Compare every method with ``reference``, patient by patient, with Holm's correction over the methods.

    Figures of two values (found or not) are compared by McNemar's exact test, others by Wilcoxon's
    signed-rank test, both two-sided.

    Example:
        >>> patients = [f"p{i}" for i in range(8)]
        >>> good, poor = ({p: level + i / 100 for i, p in enumerate(patients)} for level in (0.8, 0.6))
        >>> (one,) = compare({"good": good, "poor": poor}, "good")
        >>> f"{one.method}: {one.difference.value:+.2f}, p {one.p:.3f}"
        'poor: -0.20, p 0.008'

    Args:
        methods: for each method a figure for each patient (label -> value); patients that either method
            lacks, or whose figure is NaN, are left out of that pair.
        reference: one of the methods.
        seed: of the bootstrap interval of the difference.

    Raises:
        InputError: ``reference`` is not among the methods.
    """
    if reference not in methods:
        raise InputError(f"no method {reference!r} to compare with; there are: {', '.join(methods)}.")
    rows: list[tuple[str, Interval, float]] = []
    for method, values in methods.items():
        if method == reference:
            continue
        shared = [patient for patient in values if patient in methods[reference]]
        a = np.array([values[patient] for patient in shared], dtype=float)
        b = np.array([methods[reference][patient] for patient in shared], dtype=float)
        usable = ~(np.isnan(a) | np.isnan(b))
        a, b = a[usable], b[usable]
        rows.append((method, bootstrap_mean(a - b, seed=seed), _paired_p(a, b)))
    adjusted = holm([p for _, _, p in rows])
    return [
        Comparison(method, reference, difference, p, float(q))
        for (method, difference, p), q in zip(rows, adjusted, strict=True)
    ]


def split_hash(splits: Mapping[str, Iterable[str]]) -> str:
    """Make a fingerprint, 16 hex digits, of which subject is in which split; their order does not matter.

    Example:
        >>> split_hash({"train": ["a", "b"]}) == split_hash({"train": ["b", "a"]})
        True
    """
    canonical = {split: sorted(subjects) for split, subjects in splits.items()}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:16]


def check_no_leak(detector_subjects: Iterable[str], test_subjects: Iterable[str]) -> None:
    """Refuse to evaluate a detector on subjects that it was fitted on.

    Example:
        >>> check_no_leak(["c1", "c2"], ["p1"])

    Args:
        detector_subjects: labels of all subjects that the encoder, the detector or a threshold saw.
        test_subjects: labels of the subjects that are about to be evaluated.

    Raises:
        InputError: the two share subjects; all are listed.
    """
    shared = sorted(set(detector_subjects) & set(test_subjects))
    if shared:
        raise InputError(
            f"the detector was fitted on {len(shared)} of the subjects to be evaluated: {', '.join(shared)}. "
            "Fit it on training controls alone, or evaluate other subjects."
        )


def _paired_p(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    different = a != b
    if a.size == 0:
        return float("nan")
    if not different.any():
        return 1.0
    if set(np.concatenate([a, b]).tolist()) <= {0.0, 1.0}:
        return float(stats.binomtest(int(np.sum(a > b)), int(different.sum())).pvalue)
    return float(stats.wilcoxon(a, b, method="auto").pvalue)
