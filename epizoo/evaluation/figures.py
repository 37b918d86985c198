"""The figures of a test set, typed: what ``evaluate`` returns and ``metrics.json`` holds.

In Python, a figure that does not exist is NaN, and the rank of a lesion that no cluster hits is infinite.
JSON has neither: ``to_json`` writes null for both, and ``from_json`` brings each back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from epizoo.evaluation.lesion_level import RANKS, RULES
from epizoo.evaluation.metrics import VoxelMetrics
from epizoo.evaluation.statistics import Interval
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import plain, read_json

VERSION = 2  # of the layout of metrics.json


@dataclass(frozen=True)
class Metrics:
    """All figures of a test set.

    Example:
        >>> metrics = Metrics.read(run_folder / "metrics.json")
        >>> metrics.patients, metrics.controls, metrics.annotated[0].subject
        (1, 1, 'p1')

    Attributes:
        patients: how many subjects have an annotated lesion.
        controls: how many controls there are, without any annotated lesion.
        unannotated: how many patients have no annotated lesion.
        threshold: score above which a cluster counts wherever figures are "at the level": that of p = .1
            among healthy people, or calibrated on validation controls; None where there was neither.
        voxel: figures of single voxels, means over patients.
        lesion: for each rule of ``RULES``, how well lesions are found.
        false_positives: clusters in controls.
        strata: for each grouping of patients (``size``, ``site``, ``type``, ...) and each group its figures.
        rows: one per subject, in the order of evaluation.
        reference: what the annotations mark: ``lesion``, or ``resection``, which holds healthy tissue too and
            may miss a part of the lesion: overlap with it does not prove that the lesion was found.
    """

    patients: int
    controls: int
    unannotated: int
    threshold: float | None
    voxel: VoxelFigures
    lesion: Mapping[str, LesionFigures]
    false_positives: FalsePositives
    strata: Mapping[str, Mapping[str, StratumFigures]]
    rows: tuple[SubjectRow, ...]
    reference: str = "lesion"

    @property
    def annotated(self) -> list[AnnotatedRow]:
        """The rows of the ``patients``."""
        return [row for row in self.rows if isinstance(row, AnnotatedRow)]

    @classmethod
    def read(cls, path: str | Path) -> Metrics:
        """Read ``metrics.json``.

        Raises:
            InputError: the file is missing, of another version, or damaged.
        """
        content = read_json(path)
        try:
            return cls.from_json(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``; ``write_json`` calls this by itself."""
        counts = {
            name: getattr(self, name)
            for name in ("reference", "patients", "controls", "unannotated", "threshold")
        }
        parts = {
            name: getattr(self, name) for name in ("voxel", "lesion", "false_positives", "strata", "rows")
        }
        return _plain({"version": VERSION, **counts, "rules": RULES, **parts})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Metrics:
        """The figures that ``to_json`` gave.

        Raises:
            InputError: they are of another version, or parts are missing.
        """
        try:
            if content["version"] != VERSION:
                raise InputError(
                    f"figures of version {content['version']}, and this epizoo reads version {VERSION}: "
                    "'epizoo evaluate' makes them anew."
                )
            return cls(
                patients=content["patients"],
                controls=content["controls"],
                unannotated=content["unannotated"],
                threshold=content["threshold"],
                voxel=VoxelFigures.from_json(content["voxel"]),
                lesion={rule: LesionFigures.from_json(content["lesion"][rule]) for rule in RULES},
                false_positives=FalsePositives.from_json(content["false_positives"]),
                strata={
                    name: {group: StratumFigures.from_json(one) for group, one in groups.items()}
                    for name, groups in content["strata"].items()
                },
                rows=tuple(SubjectRow.from_json(row) for row in content["rows"]),
                reference=content.get("reference", "lesion"),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"not the figures of a test set ({error!r}): 'epizoo evaluate' makes them anew."
            ) from error


@dataclass(frozen=True)
class _Intervals:
    """Figures by name, each with its interval."""

    def to_json(self) -> dict[str, Any]:
        return _plain(vars(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(**{one.name: Interval.from_json(content[one.name]) for one in fields(cls)})


@dataclass(frozen=True)
class VoxelFigures(_Intervals):
    """Figures of single voxels, means over patients; ``VoxelMetrics`` says what each is.

    ``dice`` does not exist without a threshold.
    """

    auroc: Interval
    auroc30: Interval
    auprc: Interval
    prevalence: Interval
    aupro: Interval
    dice: Interval
    best_dice: Interval


@dataclass(frozen=True)
class FalsePositives(_Intervals):
    """Clusters in controls.

    Attributes:
        clusters: mean number per control when the threshold follows each map, as it does for patients.
        clusters_at_threshold: mean number per control at the level.
        controls_with_none_at_threshold: share of controls without a cluster at the level.
    """

    clusters: Interval
    clusters_at_threshold: Interval
    controls_with_none_at_threshold: Interval


@dataclass(frozen=True)
class AtThreshold(_Intervals):
    """How lesions are found at the level.

    Attributes:
        sensitivity: share of patients whose lesion a cluster hits.
        false_positives: mean number of clusters per patient that miss the lesion.
    """

    sensitivity: Interval
    false_positives: Interval


@dataclass(frozen=True)
class LesionFigures:
    """How well lesions are found under one rule of what counts as a hit.

    Attributes:
        sensitivity: at each rank of ``RANKS``.
        mean_rank: rank of the first cluster that hits, mean over the patients whose lesion is found.
        froc: the curve of sensitivity against false positives.
        at_threshold: the same at the level; None without one.
    """

    sensitivity: Mapping[int, Sensitivity]
    mean_rank: Interval
    froc: FrocFigures
    at_threshold: AtThreshold | None

    def to_json(self) -> dict[str, Any]:
        return _plain(vars(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LesionFigures:
        at_threshold = content["at_threshold"]
        return cls(
            sensitivity={rank: Sensitivity.from_json(content["sensitivity"][str(rank)]) for rank in RANKS},
            mean_rank=Interval.from_json(content["mean_rank"]),
            froc=FrocFigures.from_json(content["froc"]),
            at_threshold=None if at_threshold is None else AtThreshold.from_json(at_threshold),
        )


@dataclass(frozen=True)
class Sensitivity:
    """The share of patients whose lesion is hit by one of their first clusters.

    Attributes:
        interval: the share.
        chance: the share that clusters would find if they lay anywhere in the brain.
        mirrored: the share found in the same place on the other side of the brain.
        p: probability that chance finds as many or more, exact and one-sided.
    """

    interval: Interval
    chance: float
    mirrored: float
    p: float

    def to_json(self) -> dict[str, Any]:
        return _plain({**vars(self.interval), "chance": self.chance, "mirrored": self.mirrored, "p": self.p})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Sensitivity:
        chance, mirrored, p = (_or(math.nan, content[name]) for name in ("chance", "mirrored", "p"))
        return cls(Interval.from_json(content), chance, mirrored, p)


@dataclass(frozen=True)
class FrocFigures:
    """The free-response ROC curve over patients.

    Attributes:
        false_positives: mean number per patient at each of ``k`` points of the curve, ascending.
        sensitivity: share of lesions found at each of these points.
        area: mean sensitivity up to ``max_false_positives``.
        max_false_positives: where the area ends.
    """

    false_positives: tuple[float, ...]
    sensitivity: tuple[float, ...]
    area: Interval
    max_false_positives: float

    def to_json(self) -> dict[str, Any]:
        return _plain(vars(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FrocFigures:
        return cls(
            false_positives=tuple(content["false_positives"]),
            sensitivity=tuple(_or(math.nan, value) for value in content["sensitivity"]),
            area=Interval.from_json(content["area"]),
            max_false_positives=content["max_false_positives"],
        )


@dataclass(frozen=True)
class StratumFigures:
    """The figures of a group of patients.

    Attributes:
        n: how many they are.
        auroc, auprc: as of ``VoxelFigures``.
        sensitivity_at_5: under each rule.
    """

    n: int
    auroc: Interval
    auprc: Interval
    sensitivity_at_5: Mapping[str, Interval]

    def to_json(self) -> dict[str, Any]:
        found = {f"sensitivity_at_5_{rule}": interval for rule, interval in self.sensitivity_at_5.items()}
        return _plain({"n": self.n, "auroc": self.auroc, "auprc": self.auprc, **found})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StratumFigures:
        found = {rule: Interval.from_json(content[f"sensitivity_at_5_{rule}"]) for rule in RULES}
        auroc, auprc = (Interval.from_json(content[name]) for name in ("auroc", "auprc"))
        return cls(content["n"], auroc, auprc, found)


@dataclass(frozen=True, kw_only=True)
class SubjectRow:
    """The figures of one subject.

    Example:
        >>> [(row.subject, row.group) for row in done.metrics.rows]
        [('h1', 'control'), ('p1', 'patient')]

    Attributes:
        subject: label, without ``sub-``.
        group: ``control`` or ``patient``.
        site: where it was scanned; may be empty.
        clusters: how many the map has when the threshold follows the map.
        max_score: the highest score in the brain.
        clusters_at_threshold: how many it has at the level; None without one.
    """

    subject: str
    group: str
    site: str
    clusters: int
    max_score: float
    clusters_at_threshold: int | None

    def to_json(self) -> dict[str, Any]:
        return _plain(
            {
                "subject": self.subject,
                "group": self.group,
                "site": self.site,
                "annotated": False,
                "clusters": self.clusters,
                "max_score": self.max_score,
                "clusters_at_threshold": self.clusters_at_threshold,
            }
        )

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> SubjectRow:
        """The row, an ``AnnotatedRow`` where the subject has an annotated lesion."""
        shared = {one.name: content[one.name] for one in fields(SubjectRow)}
        shared["max_score"] = _or(math.nan, content["max_score"])
        if not content["annotated"]:
            return SubjectRow(**shared)
        return AnnotatedRow(
            **shared,
            lesion_mm3=content["lesion_mm3"],
            lesion_diameter_mm=content["lesion_diameter_mm"],
            strata=content["strata"],
            voxel=VoxelMetrics(*(_or(math.nan, content[one.name]) for one in fields(VoxelMetrics))),
            lesion={rule: LesionHits.from_json(content[rule]) for rule in RULES},
        )


@dataclass(frozen=True, kw_only=True)
class AnnotatedRow(SubjectRow):
    """The figures of a subject with an annotated lesion.

    Example:
        >>> row = done.metrics.annotated[0]
        >>> row.subject, round(row.lesion_mm3), row.voxel.auroc > 0.5
        ('p1', 600, True)

    Attributes:
        lesion_mm3: volume of the lesion.
        lesion_diameter_mm: diameter of a ball of that volume.
        strata: for each grouping the group that the subject is in.
        voxel: figures of its voxels.
        lesion: for each rule of ``RULES``, which clusters hit the lesion.
    """

    lesion_mm3: float
    lesion_diameter_mm: float
    strata: Mapping[str, str]
    voxel: VoxelMetrics
    lesion: Mapping[str, LesionHits]

    def to_json(self) -> dict[str, Any]:
        own = {
            "annotated": True,
            "lesion_mm3": self.lesion_mm3,
            "lesion_diameter_mm": self.lesion_diameter_mm,
            "strata": self.strata,
            **asdict(self.voxel),
            **self.lesion,
        }
        return super().to_json() | _plain(own)


@dataclass(frozen=True)
class LesionHits:
    """Which clusters of a subject hit its lesion under one rule.

    Attributes:
        hits: for each of the ``n`` clusters, first rank first, whether it hits.
        rank: of the first cluster that hits; infinite where none does.
        mirrored_rank: the same for the mirror image of the lesion, on the other side of the brain.
        chance: for each rank of ``RANKS``, the probability that one of so many clusters hits the lesion when
            they lie anywhere in the brain.
        found_at_threshold: whether a cluster at the level hits; None without one.
        false_at_threshold: how many clusters miss at the level; None without one.
    """

    hits: tuple[bool, ...]
    rank: float
    mirrored_rank: float
    chance: Mapping[int, float]
    found_at_threshold: bool | None = None
    false_at_threshold: int | None = None

    def to_json(self) -> dict[str, Any]:
        content = _plain(vars(self))
        if self.found_at_threshold is None:
            del content["found_at_threshold"], content["false_at_threshold"]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LesionHits:
        return cls(
            hits=tuple(content["hits"]),
            rank=_or(math.inf, content["rank"]),
            mirrored_rank=_or(math.inf, content["mirrored_rank"]),
            chance={rank: content["chance"][str(rank)] for rank in RANKS},
            found_at_threshold=content.get("found_at_threshold"),
            false_at_threshold=content.get("false_at_threshold"),
        )


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same for JSON, the parts by their own ``to_json``."""
    return {str(name): plain(value) for name, value in content.items()}


def _or(missing: float, value: float | None) -> float:
    """A number of JSON, where null stands for ``missing``."""
    return missing if value is None else value
