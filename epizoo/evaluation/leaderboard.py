"""Every method on one cohort in one table: figures with intervals, paired tests, time and memory."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from epizoo.evaluation.evaluate import pool
from epizoo.evaluation.figures import AnnotatedRow, Metrics
from epizoo.evaluation.lesion_level import RANKS, RULES
from epizoo.evaluation.statistics import Comparison, Interval, bootstrap_mean, compare, proportion
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_text


@dataclass(frozen=True)
class Entry:
    """A finished run, as the leaderboard needs it.

    Attributes:
        method: its name in the table, for example ``siamese + ocsvm``; its runs differ in their seed.
        seed: of this run.
        metrics: its figures.
        cohort: identifies data and split; runs on different cohorts cannot be compared.
        supervised: whether it learnt from annotated lesions; such methods are marked in every table.
        seconds: wall time of each step (``train``, ``fit``, ``score``).
        peak_gib: peak memory.
    """

    method: str
    seed: int
    metrics: Metrics
    cohort: str = ""
    supervised: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_gib: float = math.nan

    @classmethod
    def pooled(cls, folds: Sequence[Entry]) -> Entry:
        """Join the runs of one method and seed on the folds of a cross-validation.

        Times are summed. No subject may be in two folds.
        """
        if len(folds) == 1:
            return folds[0]
        first = folds[0]
        steps = {name for fold in folds for name in fold.seconds}
        return replace(
            first,
            metrics=pool([fold.metrics for fold in folds], seed=first.seed),
            cohort=" ".join(fold.cohort for fold in folds),
            seconds={name: sum(fold.seconds.get(name, 0.0) for fold in folds) for name in sorted(steps)},
            peak_gib=max(fold.peak_gib for fold in folds),
        )


@dataclass(frozen=True)
class MethodRow:
    """The figures of one method: of each patient averaged over seeds, then of all patients.

    Attributes:
        method: its name.
        supervised: whether it learnt from annotated lesions.
        seeds: how many runs there are.
        voxel: ``auroc``, ``auroc30``, ``auprc``, ``aupro`` and ``dice``.
        lesion: under each rule of ``RULES``.
        fp_per_control: clusters per control at the level.
        seconds: mean wall time of each step of ``STEPS``; NaN for steps that the method does not have.
        peak_gib: most memory of all runs.
        auroc_seed_sd: standard deviation of the runs' AUROC; NaN with one seed.
    """

    method: str
    supervised: bool
    seeds: int
    voxel: Mapping[str, Interval]
    lesion: Mapping[str, MethodLesions]
    fp_per_control: Interval
    seconds: Mapping[str, float]
    peak_gib: float
    auroc_seed_sd: float

    @property
    def label(self) -> str:
        return f"{self.method} {SUPERVISED_MARK}" if self.supervised else self.method

    def columns(self) -> dict[str, Any]:
        """The cells of ``leaderboard.tsv``; an interval has three: the figure, ``_low`` and ``_high``."""
        intervals = dict(self.voxel)
        chances = {}
        for rule, found in self.lesion.items():
            for rank, interval in found.sensitivity.items():
                intervals[f"sensitivity_{rank}_{rule}"] = interval
                chances[f"sensitivity_{rank}_{rule}"] = found.chance[rank]
            intervals[f"froc_{rule}"] = found.froc
        intervals["fp_per_control"] = self.fp_per_control
        row: dict[str, Any] = {"method": self.method, "supervised": self.supervised, "seeds": self.seeds}
        for name, one in intervals.items():
            row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
            if name in chances:
                row[f"{name}_chance"] = chances[name]
        row |= {f"{step}_seconds": seconds for step, seconds in self.seconds.items()}
        return row | {"peak_gib": self.peak_gib, "auroc_seed_sd": self.auroc_seed_sd}


@dataclass(frozen=True)
class MethodLesions:
    """How well a method finds lesions under one rule.

    Attributes:
        sensitivity: at each rank of ``RANKS``.
        chance: the share that clusters would find if they lay anywhere in the brain, at the same ranks.
        froc: area under the FROC curve.
    """

    sensitivity: Mapping[int, Interval]
    chance: Mapping[int, float]
    froc: Interval


@dataclass(frozen=True)
class Leaderboard:
    """The merged table.

    Attributes:
        rows: one per method, best first: the largest area under the strict FROC.
        comparisons: for each figure every other method against ``reference``, patient by patient,
            Holm-corrected.
        seed_agreement: for each figure the Spearman correlation of the methods' order between two seeds, mean
            over pairs of seeds; NaN with one seed or fewer than three methods.
        reference: the method that the others are compared with.
        prevalence: chance level of AUPRC.
        patients, controls: how many.
    """

    rows: Sequence[MethodRow]
    comparisons: Mapping[str, list[Comparison]]
    seed_agreement: Mapping[str, float]
    reference: str
    prevalence: float
    patients: int
    controls: int

    @property
    def table(self) -> pd.DataFrame:
        """One row per method: every figure with its ``_low`` and ``_high``."""
        return pd.DataFrame([row.columns() for row in self.rows])

    def to_tsv(self) -> str:
        """``table`` as text."""
        return self.table.to_csv(
            sep="\t", index=False, float_format="%.5g", na_rep="n/a", lineterminator="\n"
        )

    def differences_to_tsv(self) -> str:
        """Each method minus ``reference`` in each figure: difference, interval, p and Holm's p, as text."""
        rows = [
            {
                "method": row.method,
                "reference": row.reference,
                "figure": figure,
                "difference": row.difference.value,
                "low": row.difference.low,
                "high": row.difference.high,
                "patients": row.difference.n,
                "p": row.p,
                "p_holm": row.p_holm,
            }
            for figure, comparisons in self.comparisons.items()
            for row in comparisons
        ]
        columns = ["method", "reference", "figure", "difference", "low", "high", "patients", "p", "p_holm"]
        return pd.DataFrame(rows, columns=columns).to_csv(
            sep="\t", index=False, float_format="%.5g", na_rep="n/a", lineterminator="\n"
        )

    def to_markdown(self) -> str:
        """The main figures and the differences, as two tables with notes."""
        tables = []
        for header, rows in self._tables():
            lines = [header, ["---"] * len(header), *rows]
            tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join([*tables, "\n".join(f"{note}  " for note in self.notes())]) + "\n"

    def to_html(self) -> str:
        """The same as a whole HTML page, without scripts and without a network."""
        tables = []
        for header, rows in self._tables():
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            body = "\n".join(
                f"<tr{' class=supervised' if row[0].endswith(SUPERVISED_MARK) else ''}>"
                + "".join(f"<td>{_two_lines(cell)}</td>" for cell in row)
                + "</tr>"
                for row in rows
            )
            tables.append(
                f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{body}\n</tbody>\n</table></div>"
            )
        notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in self.notes())
        return _PAGE.format(tables="\n".join(tables), notes=notes)

    def notes(self) -> list[str]:
        """Sentences that say what the table means."""
        notes = [
            f"{self.patients} patients, {self.controls} controls. Brackets: 95 % intervals over patients. "
            f"Chance: AUROC .5, AUROC30 .15, AUPRC {self.prevalence:.4f}; sensitivity at 5 in parentheses.",
            "Sensitivity at k: lesion among the first k clusters. Hit: one voxel of overlap; strict: centre "
            "inside or IoU >= 0.1. FROC: area to 10 false positives per patient, strict rule; it sorts rows.",
            "Time: train + fit + score, wall clock. The TSV holds an interval for every figure.",
        ]
        if len(self.rows) > 1:
            notes.append(
                f"Second table: each method minus {self.reference} (by default the best unsupervised), "
                "paired by patient; p after Holm."
            )
        if any(row.supervised for row in self.rows):
            notes.append(
                f"{SUPERVISED_MARK} supervised: learnt from annotated lesions; an upper bound, "
                "not a competitor."
            )
        known = {name: rho for name, rho in self.seed_agreement.items() if not math.isnan(rho)}
        if known:
            listed = ", ".join(f"{_FIGURES[name].heading} {rho:.2f}" for name, rho in known.items())
            notes.append(f"Rank correlation of the methods between seeds: {listed}.")
        return notes

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and cells of the figures, and of the differences where there are two methods."""
        figures = self._figures()
        if len(self.rows) < 2:
            return [figures]
        by_method = {row.method: [row.label] for row in self.rows}
        del by_method[self.reference]
        for comparisons in self.comparisons.values():
            for one in comparisons:
                by_method[one.method].append(_difference(one))
        header = [f"minus {self.reference}", *(_FIGURES[figure].heading for figure in self.comparisons)]
        return [figures, (header, list(by_method.values()))]

    def _figures(self) -> tuple[list[str], list[list[str]]]:
        header = ["method", "seeds", "AUROC", "AUPRC", "AUROC30", "AU-PRO", "Dice"]
        header += [f"sens@{rank}" for rank in RANKS]
        header += ["strict sens@5", "FROC", "FP/control", "time (s)", "GiB"]
        rows = []
        for row in self.rows:
            overlap, strict = row.lesion["overlap"], row.lesion["strict"]
            cells = [row.label, str(row.seeds)]
            cells += [_with_interval(row.voxel[name], 3) for name in ("auroc", "auprc")]
            cells += [_number(row.voxel[name].value, 3) for name in ("auroc30", "aupro", "dice")]
            for rank, interval in overlap.sensitivity.items():
                cells.append(_with_chance(overlap, rank) if rank == 5 else _number(interval.value, 2))
            cells += [_with_chance(strict, 5), _number(strict.froc.value, 2)]
            cells.append(_with_interval(row.fp_per_control, 2))
            cells.append(" + ".join(_number(row.seconds[step], 0) for step in STEPS))
            rows.append([*cells, _number(row.peak_gib, 1)])
        return header, rows


SUPERVISED_MARK = "†"
STEPS = ("train", "fit", "score")
VOXEL_FIGURES = ("auroc", "auroc30", "auprc", "aupro", "dice")
COMPARED = ("auroc", "auprc", "sensitivity_5_overlap", "sensitivity_5_strict")
AGREEMENT = ("auroc", "auprc", "sensitivity_5_overlap", "froc_strict")


def leaderboard(entries: Iterable[Entry], reference: str | None = None, *, seed: int = 0) -> Leaderboard:
    """Merge finished runs on one cohort into one table.

    The figures of each patient are averaged over the seeds of a method first; intervals and tests are over
    patients, so more seeds never count as more patients.

    Args:
        entries: one per run.
        reference: the method that all others are tested against; by default the best unsupervised one.
        seed: of the bootstrap.

    Raises:
        InputError: no run, an unknown reference, one seed twice, runs on different cohorts or subjects; all
            problems at once.
    """
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        runs.setdefault(entry.method, []).append(entry)
    _check(runs)
    rows = [_method_row(method, group, seed) for method, group in runs.items()]
    rows.sort(key=lambda row: (-_or_low(row.lesion["strict"].froc), -_or_low(row.voxel["auprc"]), row.method))
    if reference is None:
        reference = next((row.method for row in rows if not row.supervised), rows[0].method)
    comparisons = {
        name: compare(
            {method: _averaged(group, _FIGURES[name].of_patient) for method, group in runs.items()},
            reference,
            seed=seed,
        )
        for name in COMPARED
    }
    some = next(iter(runs.values()))[0].metrics
    return Leaderboard(
        rows=rows,
        comparisons=comparisons,
        seed_agreement={name: _seed_agreement(runs, name) for name in AGREEMENT},
        reference=reference,
        prevalence=some.voxel.prevalence.value,
        patients=some.patients,
        controls=some.controls,
    )


def write_leaderboard(folder: str | Path, board: Leaderboard) -> list[Path]:
    """Write ``leaderboard.tsv``, ``.md``, ``.html`` and ``leaderboard-differences.tsv``, each atomically."""
    texts = {
        "leaderboard.tsv": board.to_tsv(),
        "leaderboard.md": board.to_markdown(),
        "leaderboard.html": board.to_html(),
        "leaderboard-differences.tsv": board.differences_to_tsv(),
    }
    return [write_text(Path(folder) / name, text) for name, text in texts.items()]


def _check(runs: Mapping[str, Sequence[Entry]]) -> None:
    if not runs:
        raise InputError("no finished run: a leaderboard needs at least one.")
    problems = []
    every = [run for group in runs.values() for run in group]
    for method, group in runs.items():
        seeds = [run.seed for run in group]
        twice = sorted({s for s in seeds if seeds.count(s) > 1})
        if twice:
            problems.append(f"{method}: seed {', '.join(map(str, twice))} more than once.")
    first = every[0]
    names = {row.subject for row in first.metrics.rows}
    for run in every[1:]:
        label = f"{run.method}, seed {run.seed}"
        if run.cohort != first.cohort:
            problems.append(f"{label}: cohort {run.cohort}, but {first.method} has {first.cohort}.")
        other = {row.subject for row in run.metrics.rows} ^ names
        if other:
            problems.append(
                f"{label}: evaluated on other subjects than {first.method}: {', '.join(sorted(other))}."
            )
    if problems:
        raise InputError(problems)


@dataclass(frozen=True)
class _Figure:
    """A figure that methods are compared by.

    Attributes:
        heading: of its column.
        of_run: takes it from the figures of a run.
        of_patient: takes it from those of a patient; an area under the FROC has none.
    """

    heading: str
    of_run: Callable[[Metrics], Interval]
    of_patient: Callable[[AnnotatedRow], float] = lambda row: math.nan


_FIGURES = {
    "auroc": _Figure("AUROC", lambda run: run.voxel.auroc, lambda row: row.voxel.auroc),
    "auprc": _Figure("AUPRC", lambda run: run.voxel.auprc, lambda row: row.voxel.auprc),
    "sensitivity_5_overlap": _Figure(
        "sens@5",
        lambda run: run.lesion["overlap"].sensitivity[5].interval,
        lambda row: row.lesion["overlap"].rank <= 5,
    ),
    "sensitivity_5_strict": _Figure(
        "strict sens@5",
        lambda run: run.lesion["strict"].sensitivity[5].interval,
        lambda row: row.lesion["strict"].rank <= 5,
    ),
    "froc_strict": _Figure("FROC area", lambda run: run.lesion["strict"].froc.area),
}


def _averaged(runs: Sequence[Entry], figure: Callable[[AnnotatedRow], float]) -> dict[str, float]:
    """A figure of each patient, mean over the runs."""
    by_run = [{row.subject: float(figure(row)) for row in run.metrics.annotated} for run in runs]
    return {patient: float(np.mean([values[patient] for values in by_run])) for patient in by_run[0]}


def _method_row(method: str, runs: Sequence[Entry], seed: int) -> MethodRow:
    false = [_clusters_of_controls(run) for run in runs]
    return MethodRow(
        method=method,
        supervised=runs[0].supervised,
        seeds=len(runs),
        voxel={name: _voxel_figure(runs, name, seed) for name in VOXEL_FIGURES},
        lesion={rule: _method_lesions(runs, rule, seed) for rule in RULES},
        fp_per_control=bootstrap_mean(np.mean(false, axis=0) if false[0] else [], seed=seed),
        seconds={step: _mean(run.seconds.get(step, math.nan) for run in runs) for step in STEPS},
        peak_gib=max(run.peak_gib for run in runs),
        auroc_seed_sd=_spread([run.metrics.voxel.auroc.value for run in runs]),
    )


def _voxel_figure(runs: Sequence[Entry], name: str, seed: int) -> Interval:
    values = _averaged(runs, lambda row: getattr(row.voxel, name))
    return bootstrap_mean(list(values.values()), seed=seed)


def _method_lesions(runs: Sequence[Entry], rule: str, seed: int) -> MethodLesions:
    figures = [run.metrics.lesion[rule] for run in runs]
    return MethodLesions(
        sensitivity={rank: _sensitivity(runs, rule, rank, seed) for rank in RANKS},
        chance={rank: _mean(one.sensitivity[rank].chance for one in figures) for rank in RANKS},
        froc=_mean_interval([one.froc.area for one in figures]),
    )


def _sensitivity(runs: Sequence[Entry], rule: str, rank: int, seed: int) -> Interval:
    """A share where there is one seed, or all agree on every patient; else the mean over patients."""
    values = np.array(list(_averaged(runs, lambda row: row.lesion[rule].rank <= rank).values()))
    whole = bool(np.isin(values, (0, 1)).all())
    return proportion(values == 1) if whole else bootstrap_mean(values, seed=seed)


def _mean_interval(areas: Sequence[Interval]) -> Interval:
    """The means of the runs' own limits: an area is no mean over patients that could be drawn again."""
    value, low, high = (_mean(getattr(area, name) for area in areas) for name in ("value", "low", "high"))
    return Interval(value, low, high, areas[0].n)


def _clusters_of_controls(run: Entry) -> list[float]:
    """How many each control has at the level."""
    counts = [row.clusters_at_threshold for row in run.metrics.rows if row.group == "control"]
    return [math.nan if count is None else float(count) for count in counts]


def _seed_agreement(runs: Mapping[str, Sequence[Entry]], name: str) -> float:
    """Mean Spearman correlation of the methods between pairs of seeds."""
    by_seed: dict[int, dict[str, float]] = {}
    for method, group in runs.items():
        for run in group:
            by_seed.setdefault(run.seed, {})[method] = _FIGURES[name].of_run(run.metrics).value
    correlations = []
    for one, other in combinations(by_seed.values(), 2):
        shared = [m for m in one if m in other and not math.isnan(one[m]) and not math.isnan(other[m])]
        a, b = [one[m] for m in shared], [other[m] for m in shared]
        if len(shared) >= 3 and len(set(a)) > 1 and len(set(b)) > 1:
            correlations.append(float(stats.spearmanr(a, b).statistic))
    return float(np.mean(correlations)) if correlations else math.nan


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _or_low(interval: Interval) -> float:
    return -math.inf if math.isnan(interval.value) else interval.value


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _with_interval(one: Interval, digits: int) -> str:
    if math.isnan(one.value):
        return "–"
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def _with_chance(found: MethodLesions, rank: int) -> str:
    return f"{_with_interval(found.sensitivity[rank], 2)} ({_number(found.chance[rank], 2)})"


def _difference(one: Comparison) -> str:
    value, low, high = one.difference.value, one.difference.low, one.difference.high
    if math.isnan(value):
        return "–"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] (p {_p_value(one.p_holm)})"


def _two_lines(cell: str) -> str:
    """Value above, interval and chance below: the table stays narrow."""
    value, bracket, rest = html.escape(cell).partition(" [")
    return f"{value} <br><small>[{rest}</small>" if bracket else value


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Leaderboard</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }}
@page {{ size: A4 landscape; margin: 8mm; }}
th, td {{ padding: .35rem .35rem; text-align: left; vertical-align: top; border-bottom: 1px solid #d8dee4; }}
td {{ white-space: nowrap; }}
th {{ border-bottom: 2px solid #57606a; }}
td small {{ color: #57606a; }}
td:first-child {{ font-weight: 600; }}
tr.supervised td {{ color: #57606a; font-style: italic; }}
p {{ max-width: 60rem; margin: .5rem 0; }}
table {{ margin-bottom: 1rem; }}
@media print {{
  body {{ margin: 0; padding: 0; font-size: 9px; }} table {{ font-size: 8px; }} h1 {{ font-size: 14px; }}
  .scroll {{ overflow: visible; }}
}}
</style>
</head>
<body>
<h1>Leaderboard</h1>
{tables}
{notes}
</body>
</html>
"""
