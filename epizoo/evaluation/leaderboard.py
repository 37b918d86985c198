"""Every method on one cohort in one table: figures with intervals, paired tests, time and memory."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from epizoo.evaluation.evaluate import pool
from epizoo.evaluation.lesion_level import RANKS
from epizoo.evaluation.statistics import Comparison, Interval, bootstrap_mean, compare, proportion
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_text

SORTED_BY = "froc_strict"  # lesions first, and not won by large clusters that touch everything


@dataclass(frozen=True)
class Entry:
    """One finished run.

    Attributes:
        method: how the table calls it, for example ``siamese + ocsvm``; runs of one method differ in their
            seed.
        seed: of this run.
        metrics: what ``epizoo.evaluation.evaluate`` returned.
        cohort: identity of data and split; runs of other cohorts are not comparable.
        supervised: learnt from annotated lesions; marked in every table.
        seconds: wall time of each step (``train``, ``fit``, ``score``).
        peak_gib: peak memory.
    """

    method: str
    seed: int
    metrics: Mapping[str, Any]
    cohort: str = ""
    supervised: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_gib: float = math.nan

    @classmethod
    def read(cls, folder: str | Path) -> Entry:
        """The entry of a run folder (``config.json``, ``metadata.json``, ``metrics.json``).

        Raises:
            InputError: a file is missing or lacks what the table needs.
        """
        folder = Path(folder)
        try:
            config, metadata, metrics = (
                json.loads((folder / f"{name}.json").read_text())
                for name in ("config", "metadata", "metrics")
            )
            steps = metadata["steps"]
            model, detector = config["model"], config["detector"]
            return cls(
                method=detector if model in ("none", None) else f"{model} + {detector}",
                seed=int(config["seed"]),
                metrics=metrics,
                cohort=f"{metadata['data_hash']}/{metadata['split_hash']}",
                supervised=bool(metadata.get("supervised", False)),
                seconds={name: step["seconds"] for name, step in steps.items()},
                peak_gib=max((step["peak_gib"] for step in steps.values()), default=math.nan),
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder}: not a finished run ({error!r}); run it to its end first.") from error

    @classmethod
    def pooled(cls, folds: Sequence[Entry]) -> Entry:
        """The runs of one method and seed on the folds of a cross-validation as one entry.

        Times are summed; a subject is in one fold.
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
class Leaderboard:
    """The merged table.

    Attributes:
        table: one row a method, best first: figures over patients (averaged over seeds) with ``_low`` and
            ``_high``.
        comparisons: each method against ``reference``, patient by patient, Holm-corrected, a list a figure.
        seed_agreement: Spearman correlation of the methods' order between two seeds, mean over pairs of
            seeds, a figure; NaN with one seed or fewer than three methods.
        reference: the method that the others are compared with.
        prevalence: chance level of AUPRC.
        patients, controls: how many.
    """

    table: pd.DataFrame
    comparisons: Mapping[str, list[Comparison]]
    seed_agreement: Mapping[str, float]
    reference: str
    prevalence: float
    patients: int
    controls: int

    def to_tsv(self) -> str:
        return self.table.to_csv(
            sep="\t", index=False, float_format="%.5g", na_rep="n/a", lineterminator="\n"
        )

    def differences_to_tsv(self) -> str:
        """Each method minus ``reference`` for each figure: difference with its interval, p, Holm's p."""
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
        tables = []
        for header, rows in self._tables():
            lines = [header, ["---"] * len(header), *rows]
            tables.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return "\n\n".join([*tables, "\n".join(f"{note}  " for note in self.notes())]) + "\n"

    def to_html(self) -> str:
        """A page of its own: no script, no network."""
        tables = []
        for header, rows in self._tables():
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            body = "\n".join(
                f"<tr{' class=supervised' if row[0].endswith(MARK) else ''}>"
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
        """What the table means, a sentence each."""
        notes = [
            f"{self.patients} patients, {self.controls} controls. Brackets: 95 % intervals over patients. "
            f"Chance: AUROC .5, AUROC30 .15, AUPRC {self.prevalence:.4f}; sensitivity at 5 in parentheses.",
            "Sensitivity at k: lesion among the first k clusters. Hit: one voxel of overlap; strict: centre "
            "inside or IoU >= 0.1. FROC: area to 10 false positives a patient, strict rule; it sorts rows.",
            "Time: train + fit + score, wall clock. The TSV holds an interval for every figure.",
        ]
        if len(self.table) > 1:
            notes.append(
                f"Second table: each method minus {self.reference} (by default the best unsupervised), "
                "paired by patient; p after Holm."
            )
        if self.table["supervised"].any():
            notes.append(
                f"{MARK} supervised: learnt from annotated lesions; an upper bound, not a competitor."
            )
        known = {name: rho for name, rho in self.seed_agreement.items() if not math.isnan(rho)}
        if known:
            listed = ", ".join(f"{_NAMES[name]} {rho:.2f}" for name, rho in known.items())
            notes.append(f"Rank correlation of the methods between seeds: {listed}.")
        return notes

    def _tables(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and cells of the figures, and of the differences where there are two methods."""
        figures = self._figures()
        if len(self.table) < 2:
            return [figures]
        by_method = {row["method"]: [self._label(row)] for row in self.table.to_dict("records")}
        del by_method[self.reference]
        for comparisons in self.comparisons.values():
            for one in comparisons:
                by_method[one.method].append(_difference(one))
        header = [f"minus {self.reference}", *(_NAMES[figure] for figure in self.comparisons)]
        return [figures, (header, list(by_method.values()))]

    def _figures(self) -> tuple[list[str], list[list[str]]]:
        header = ["method", "seeds", "AUROC", "AUPRC", "AUROC30", "AU-PRO", "Dice"]
        header += [f"sens@{rank}" for rank in RANKS]
        header += ["strict sens@5", "FROC", "FP/control", "time (s)", "GiB"]
        rows = []
        for row in self.table.to_dict("records"):
            cells = [self._label(row), str(row["seeds"])]
            cells += [_with_interval(row, name, 3) for name in ("auroc", "auprc")]
            cells += [_number(row[name], 3) for name in ("auroc30", "aupro", "dice")]
            for rank in RANKS:
                name = f"sensitivity_{rank}_overlap"
                cells.append(_with_chance(row, name) if rank == 5 else _number(row[name], 2))
            cells += [_with_chance(row, "sensitivity_5_strict"), _number(row["froc_strict"], 2)]
            cells.append(_with_interval(row, "fp_per_control", 2))
            cells.append(" + ".join(_number(row[f"{step}_seconds"], 0) for step in STEPS))
            rows.append([*cells, _number(row["peak_gib"], 1)])
        return header, rows

    @staticmethod
    def _label(row: Mapping[Any, Any]) -> str:
        return f"{row['method']} {MARK}" if row["supervised"] else str(row["method"])


MARK = "†"  # of supervised methods
STEPS = ("train", "fit", "score")
AGREEMENT = ("auroc", "auprc", "sensitivity_5_overlap", "froc_strict")
_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity_5_overlap": "sens@5",
    "sensitivity_5_strict": "strict sens@5",
    "froc_strict": "FROC area",
}


def leaderboard(entries: Iterable[Entry], reference: str | None = None, *, seed: int = 0) -> Leaderboard:
    """Merge finished runs of one cohort into one table.

    A patient's figure is averaged over the seeds of a method first; intervals and tests are over patients, so
    more seeds never count as more patients.

    Args:
        entries: one a run.
        reference: the method that all others are tested against; by default the best unsupervised one.
        seed: of the bootstrap.

    Raises:
        InputError: no run, an unknown reference, one seed twice, runs of different cohorts or patients (all
            problems at once).
    """
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        runs.setdefault(entry.method, []).append(entry)
    _check(runs)
    patients = {method: [_patients(run) for run in group] for method, group in runs.items()}
    rows = [_table_row(method, runs[method], patients[method], seed) for method in runs]
    rows.sort(key=lambda row: (-_or_low(row[SORTED_BY]), -_or_low(row["auprc"]), row["method"]))
    table = pd.DataFrame(rows)
    if reference is None:
        reference = next((row["method"] for row in rows if not row["supervised"]), rows[0]["method"])
    comparisons = {
        name: compare({m: _average(group, name) for m, group in patients.items()}, reference, seed=seed)
        for name in ("auroc", "auprc", "sensitivity_5_overlap", "sensitivity_5_strict")
    }
    some = next(iter(runs.values()))[0].metrics
    return Leaderboard(
        table=table,
        comparisons=comparisons,
        seed_agreement={name: _seed_agreement(runs, name) for name in AGREEMENT},
        reference=reference,
        prevalence=_float(some["voxel"]["prevalence"]["value"]),
        patients=some["patients"],
        controls=some["controls"],
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
    names = {row["subject"] for row in first.metrics["rows"]}
    for run in every[1:]:
        label = f"{run.method}, seed {run.seed}"
        if run.cohort != first.cohort:
            problems.append(f"{label}: cohort {run.cohort}, but {first.method} has {first.cohort}.")
        other = {row["subject"] for row in run.metrics["rows"]} ^ names
        if other:
            problems.append(
                f"{label}: evaluated on other subjects than {first.method}: {', '.join(sorted(other))}."
            )
    if problems:
        raise InputError(problems)


def _patients(run: Entry) -> dict[str, dict[str, float]]:
    """Per-patient figures of one run: label -> figure -> value."""
    figures = {}
    for row in run.metrics["rows"]:
        if not row["annotated"]:
            continue
        one = {name: _float(row[name]) for name in ("auroc", "auroc30", "auprc", "aupro", "dice")}
        for rule in ("overlap", "strict"):
            rank = row[rule]["rank"]
            for k in RANKS:
                one[f"sensitivity_{k}_{rule}"] = float(rank is not None and rank <= k)
        figures[row["subject"]] = one
    return figures


def _average(runs: Sequence[Mapping[str, Mapping[str, float]]], name: str) -> dict[str, float]:
    return {patient: float(np.mean([run[patient][name] for run in runs])) for patient in runs[0]}


def _table_row(
    method: str, runs: Sequence[Entry], patients: Sequence[Mapping[str, Mapping[str, float]]], seed: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "supervised": runs[0].supervised, "seeds": len(runs)}
    voxel = ("auroc", "auroc30", "auprc", "aupro", "dice")
    for name in voxel:
        row |= _columns(name, bootstrap_mean(list(_average(patients, name).values()), seed=seed))
    for rule in ("overlap", "strict"):
        for k in RANKS:
            name = f"sensitivity_{k}_{rule}"
            values = np.array(list(_average(patients, name).values()))
            whole = bool(np.isin(values, (0, 1)).all())  # one seed, or seeds that agree on every patient
            row |= _columns(name, proportion(values == 1) if whole else bootstrap_mean(values, seed=seed))
            row[f"{name}_chance"] = _mean(
                run.metrics["lesion"][rule]["sensitivity"][str(k)]["chance"] for run in runs
            )
        # Areas have no figure a patient: the means of the runs' own intervals.
        areas = [run.metrics["lesion"][rule]["froc"]["area"] for run in runs]
        for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            row[f"froc_{rule}{suffix}"] = _mean(area[key] for area in areas)
    false = [_controls(run) for run in runs]
    row |= _columns("fp_per_control", bootstrap_mean(np.mean(false, axis=0) if false[0] else [], seed=seed))
    for step in STEPS:
        row[f"{step}_seconds"] = _mean(run.seconds.get(step) for run in runs)
    row["peak_gib"] = max(run.peak_gib for run in runs)
    row["auroc_seed_sd"] = _spread([_figure(run, "auroc") for run in runs])
    return row


def _controls(run: Entry) -> list[float]:
    """False-positive clusters of each control at the calibrated threshold."""
    return [_float(row["clusters_at_threshold"]) for row in run.metrics["rows"] if row["group"] == "control"]


def _seed_agreement(runs: Mapping[str, Sequence[Entry]], name: str) -> float:
    """Mean Spearman correlation of the methods between pairs of seeds."""
    by_seed: dict[int, dict[str, float]] = {}
    for method, group in runs.items():
        for run in group:
            by_seed.setdefault(run.seed, {})[method] = _figure(run, name)
    correlations = []
    for one, other in combinations(by_seed.values(), 2):
        shared = [m for m in one if m in other and not math.isnan(one[m]) and not math.isnan(other[m])]
        a, b = [one[m] for m in shared], [other[m] for m in shared]
        if len(shared) >= 3 and len(set(a)) > 1 and len(set(b)) > 1:
            correlations.append(float(stats.spearmanr(a, b).statistic))
    return float(np.mean(correlations)) if correlations else math.nan


def _figure(run: Entry, name: str) -> float:
    """A summary figure of one run by its column in the table."""
    kind, *rest = name.split("_")
    if kind == "sensitivity":
        return _float(run.metrics["lesion"][rest[1]]["sensitivity"][rest[0]]["value"])
    if kind == "froc":
        return _float(run.metrics["lesion"][rest[0]]["froc"]["area"]["value"])
    return _float(run.metrics["voxel"][name]["value"])


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in map(_float, values) if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _or_low(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _with_interval(row: Mapping[Any, Any], name: str, digits: int) -> str:
    value, low, high = (row[name + suffix] for suffix in ("", "_low", "_high"))
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _with_chance(row: Mapping[Any, Any], name: str) -> str:
    return f"{_with_interval(row, name, 2)} ({_number(row[f'{name}_chance'], 2)})"


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
