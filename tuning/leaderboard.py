"""What a search found: a table, and a page with how it got there."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tfds_epilepsy.files import read_json, write_table, write_text

Record = Mapping[str, Any]
TRIALS_OF_IMPORTANCE = 8  # with fewer completed trials, importance is a guess
TREES = 300
BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#8b949e"


def write(folder: Path, records: Sequence[Record], objective: str) -> Path:
    """Write ``leaderboard.tsv`` and ``leaderboard.html``; returns the page.

    Args:
        folder: of the search; its ``search.json`` and, if there, ``confirmation.json`` are told of.
        records: of its trials, in their order (``DetectionTuner.records``).
        objective: that they are ranked by.
    """
    rows = table(records, objective)
    write_table(folder / "leaderboard.tsv", rows)
    return write_text(folder / "leaderboard.html", page(folder, records, rows, objective))


def table(records: Sequence[Record], objective: str) -> list[dict[str, Any]]:
    """One row per trial: completed ones first, best first, then those given up, then failed ones."""
    ranked = sorted(
        records, key=lambda r: (STATUSES.index(r["status"]), -_figure(r, objective, missing=0.0), r["trial"])
    )
    figures = sorted(
        {name for r in records for name in r.get("figures", {})}, key=lambda n: (n != objective, n)
    )
    parameters = list(dict.fromkeys(name for r in records for name in searched(r)))
    return [
        {
            "trial": record["trial"],
            "status": record["status"],
            **{name: record.get("figures", {}).get(name, "") for name in figures},
            "seconds": record["seconds"],
            "peak_gib": record["peak_gib"],
            "weights": record.get("parameters", ""),
            **{name: searched(record).get(name, "") for name in parameters},
            "reason": " ".join(str(record.get("reason") or "").split()),
        }
        for record in ranked
    ]


STATUSES = ("completed", "pruned", "failed")


def searched(record: Record) -> dict[str, Any]:
    """The values that were searched; of Hyperband's own, only the epochs."""
    values = record["values"]
    return {
        name.removeprefix("tuner/"): value
        for name, value in values.items()
        if not name.startswith("tuner/") or name == "tuner/epochs"
    }


def importance(
    records: Sequence[Record], objective: str, seed: int = 0
) -> tuple[dict[str, float], float] | None:
    """How much of the objective each parameter explains, and how far to trust that.

    A random forest is fitted to the completed trials (as in Hutter et al. 2014); the importance of a
    parameter is how much its R^2 falls when the parameter's values are shuffled.

    Returns:
        The importances, largest first, and the forest's R^2 on trials that its trees did not see (0 or less:
        it explains nothing); None where there are too few trials.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    done = [r for r in records if r["status"] == "completed"]
    if len(done) < TRIALS_OF_IMPORTANCE:
        return None
    names = list(dict.fromkeys(name for r in done for name in searched(r)))
    x = np.stack([_coded([searched(r).get(name) for r in done])[0] for name in names], axis=1)
    y = np.array([_figure(r, objective) for r in done])
    forest = RandomForestRegressor(TREES, oob_score=True, min_samples_leaf=2, random_state=seed).fit(x, y)
    found = permutation_importance(forest, x, y, n_repeats=20, random_state=seed).importances_mean
    order = np.argsort(-found, kind="stable")
    return {names[i]: float(max(found[i], 0.0)) for i in order}, float(forest.oob_score_)


def page(folder: Path, records: Sequence[Record], rows: Sequence[Mapping[str, Any]], objective: str) -> str:
    """The page, whole in itself: no script, no network."""
    settings = read_json(folder / "search.json")
    counts = ", ".join(f"{sum(r['status'] == s for r in records)} {s}" for s in STATUSES)
    cases = read_json(folder / "validation" / "cases.json")
    what = f"{len(cases['cases'])} validation patients with annotated lesions"
    if cases["kind"] == "implanted":
        what = f"{len(cases['cases'])} lesions ({', '.join(cases['families'])}) put in validation controls"
    parts = [
        f"<p>{len(records)} trials of a {html.escape(settings['tuner'])} search: {counts}. Judged by "
        f"<b>{objective}</b> on {html.escape(what)}; trained and fitted on training controls. "
        "No test subject was seen.</p>"
    ]
    if (folder / "confirmation.json").is_file():
        parts.append(_confirmation(read_json(folder / "confirmation.json")))
    if any(r["status"] == "completed" for r in records):
        parts += [
            _section(
                "Convergence",
                convergence(records, objective),
                "One dot per trial; the line is the best so far.",
            ),
            _section(
                "Parallel coordinates",
                parallel_coordinates(records, objective),
                "One line per completed trial, through its values: the darker the better, the best in "
                "orange. A line passes below an axis that its trial does not have.",
            ),
        ]
        explained = importance(records, objective)
        if explained is None:
            parts.append(
                f"<h2>Importance</h2><p>Too few completed trials: {TRIALS_OF_IMPORTANCE} are needed.</p>"
            )
        else:
            trust = "it explains most of the differences." if explained[1] > 0.5 else "read this as a hint."
            note = (
                "Fall of a random forest's R² when a parameter is shuffled. On trials that it did not see "
                f"its R² is {explained[1]:.2f}: {trust if explained[1] > 0 else 'these bars may be chance.'}"
            )
            parts.append(_section("Importance", _bars(explained[0]), note))
    parts.append(f"<h2>Trials</h2>\n{_html_table(rows)}")
    return PAGE.format(body="\n".join(parts))


def convergence(records: Sequence[Record], objective: str) -> str:
    """Objective of each trial in order, and the best so far, as SVG."""
    numbers = np.arange(len(records))
    scores = np.array([_figure(r, objective) for r in records])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    best = np.fmax.accumulate(scores)
    axis.step(numbers, best, where="post", color=BLUE, lw=2, label="best so far")
    axis.plot(numbers, scores, "o", color=ORANGE, ms=6, label="trial")
    lowest = np.nanmin(scores)
    for status, marker in (("pruned", "v"), ("failed", "x")):
        at = [n for n, r in zip(numbers, records, strict=True) if r["status"] == status]
        if at:
            axis.plot(at, [lowest] * len(at), marker, color=GREY, ms=7, label=status)
    axis.set(xlabel="trial", ylabel=objective)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, ncols=4, loc="lower right")
    return _svg(figure)


def parallel_coordinates(records: Sequence[Record], objective: str) -> str:
    """Completed trials as lines through their values, as SVG; the best is drawn last and thick."""
    from matplotlib import colormaps

    done = sorted(
        (r for r in records if r["status"] == "completed"), key=lambda record: _figure(record, objective)
    )
    names = list(dict.fromkeys(name for r in done for name in searched(r)))
    columns = [_coded([searched(r).get(name) for r in done]) for name in names]
    scores = np.array([_figure(r, objective) for r in done])
    columns.append((_scaled(scores), [(0.0, f"{scores.min():.3f}"), (1.0, f"{scores.max():.3f}")]))
    heights = np.stack([heights for heights, _ in columns], axis=1)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axis = figure.subplots()
    colours = colormaps["viridis"](0.95 * (1 - _scaled(scores)))[:, :3]
    for line, colour in zip(heights, colours, strict=True):
        axis.plot(line, color=colour, lw=1.2, alpha=0.7)
    axis.plot(heights[-1], color=ORANGE, lw=3)
    for x, (_, ticks) in enumerate(columns):
        axis.axvline(x, color=GREY, lw=0.8, zorder=0)
        for height, text in ticks:
            axis.annotate(
                text,
                (x, height),
                (4, 0),
                textcoords="offset points",
                fontsize=7.5,
                va="center",
                bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.8},
            )
    axis.set_xticks(range(len(columns)), [*names, objective], rotation=25, ha="right")
    axis.set(yticks=[], ylim=(-0.08, 1.08), xlim=(-0.2, len(columns) - 0.4))
    axis.spines[:].set_visible(False)
    return _svg(figure)


def write_hparams(folder: Path, records: Sequence[Record], objective: str) -> None:
    """Write what TensorBoard's HParams page reads: one run per completed trial.

    Raises:
        InputError: TensorBoard is not installed.
    """
    import tensorflow as tf

    from tfds_epilepsy.errors import InputError

    try:
        from tensorboard.plugins.hparams import api
    except ImportError as error:
        raise InputError("--tensorboard needs TensorBoard: pip install 'epizoo[tensorboard]'.") from error
    for record in records:
        if record["status"] == "completed":
            with tf.summary.create_file_writer(str(folder / record["trial"])).as_default():
                api.hparams(searched(record), trial_id=record["trial"])
                for name, value in record["figures"].items():
                    tf.summary.scalar(name, value, step=1)


# === Helpers ===


def _figure(record: Record, objective: str, missing: float = math.nan) -> float:
    return record["figures"][objective] if record["status"] == "completed" else missing


def _coded(values: Sequence[Any]) -> tuple[NDArray[np.float64], list[tuple[float, str]]]:
    """Values as heights in [0, 1], with ticks: what a trial does not have is at -0.05."""
    known = [v for v in values if v is not None]
    distinct = sorted(set(known))
    if all(isinstance(v, float) for v in distinct) and len(distinct) > 1 and distinct[0] > 0:
        low, high = np.log(distinct[0]), np.log(distinct[-1])
        heights = [-0.05 if v is None else float((np.log(v) - low) / (high - low)) for v in values]
        return np.array(heights), [(0.0, f"{distinct[0]:.2g}"), (1.0, f"{distinct[-1]:.2g}")]
    place = {v: (i / (len(distinct) - 1) if len(distinct) > 1 else 0.5) for i, v in enumerate(distinct)}
    heights = [-0.05 if v is None else place[v] for v in values]
    return np.array(heights), [(height, _text(v)) for v, height in place.items()]


def _scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    span = float(np.ptp(values))
    return (values - values.min()) / span if span else np.full(len(values), 0.5)


def _bars(values: Mapping[str, float]) -> str:
    figure = Figure(figsize=(9, 0.8 + 0.28 * len(values)), layout="constrained")
    axis = figure.subplots()
    axis.barh(list(values), list(values.values()), color=BLUE)
    axis.invert_yaxis()
    axis.set(xlabel="importance (fall of R²)")
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "epizoo", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _section(title: str, svg: str, note: str) -> str:
    return f'<h2>{title}</h2>\n<div class="scroll">{svg}</div>\n<p>{html.escape(note)}</p>'


def _confirmation(found: Mapping[str, Any]) -> str:
    difference = found["difference"]

    def row(name: str) -> str:
        scores = ", ".join(f"{score:.4f}" for score in found[name]["scores"])
        return f"<tr><td>{name}</td><td>{_text(found[name]['mean'])}</td><td>{scores}</td></tr>"

    return (
        "<h2>Confirmation</h2>\n<table><tr><th></th><th>mean</th><th>other seeds</th></tr>"
        f"{row('best')}{row('default')}</table>\n"
        f"<p>Best less default, over the {difference['n']} cases: <b>{_text(difference['value'])}</b> "
        f"[{_text(difference['low'])}, {_text(difference['high'])}] (95 %, paired), "
        f"p = {_text(difference['p'])}. Noise of the objective, one trial on several seeds: standard "
        f"deviation {_text(found['noise'])}. The winner was chosen on these cases, so its figure "
        "flatters; test subjects decide.</p>"
    )


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (rows[0] if rows else ()))
    body = "\n".join(
        f'<tr class="{row["status"]}">'
        + "".join(f"<td>{html.escape(_text(value))}</td>" for value in row.values())
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Architecture search</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 75rem;
  color: #1b1f24; }}
.scroll {{ overflow-x: auto; }}
svg {{ display: block; max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }}
@page {{ size: landscape; }}
th, td {{ padding: .3rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid #d8dee4; }}
td {{ white-space: nowrap; }}
td:last-child {{ white-space: normal; min-width: 12rem; }}
th {{ border-bottom: 2px solid #57606a; }}
tr.pruned td, tr.failed td {{ color: #57606a; }}
p {{ max-width: 60rem; margin: .5rem 0; }}
</style>
</head>
<body>
<h1>Architecture search</h1>
{body}
</body>
</html>
"""
