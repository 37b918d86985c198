"""The HTML report of an evaluated run: one page for the cohort and one per subject; none needs a network."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from epizoo.detection.clusters import find_clusters
from epizoo.evaluation import RULES, AnnotatedRow, Interval, Metrics, SubjectRow
from epizoo.evaluation.figures import StratumFigures
from epizoo.evaluation.side_by_side import SideBySide, side_by_side
from epizoo.finished_run import FinishedRun
from epizoo.report import figures
from epizoo.report.patient import SIGNS_COLUMN, TEXT_COLUMNS, Background, Page, source, subject_page
from epizoo.report.tables import EDGES, ControlScores, histogram, millimetres, number, p_value, without_empty
from epizoo.run_config import NO_MODEL, RunConfig
from epizoo.run_folder import RunFolder
from epizoo.run_metadata import Metadata
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_text
from tfds_epilepsy.volumes import Subject, read_nifti, world_to_voxel

MAX_BYTES = 5_000_000  # of report.html; a cohort whose pages would pass it gets an index of them
MAX_THUMBNAILS = 1000
CONTROLS_IN_MEAN = 20  # training controls in the mean image beside the patches
PAGES_A_PROCESS = 4  # at least; starting one takes as long as two or three pages
EDGES_PER_BAR = 25  # of the drawn histogram, which is a quarter of a z wide
LEVEL_WORDS = "the score that 1 in 10 healthy people has somewhere"
RULE_NAMES = {"overlap": "any overlap", "strict": "strict"}  # what counts as a hit, in few words


def build_report(
    run: FinishedRun,
    read: Callable[[Sequence[str]], Iterable[Subject]],
    controls: Callable[[], Iterable[Subject]] | None = None,
    beside: Sequence[FinishedRun] = (),
) -> Path:
    """Write ``report.html`` of a run, and ``sub-*/report.html`` with an interactive viewer for each subject.

    Every patient of the test set gets a page; where there is no patient, every control does. ``report.html``
    holds the pages too, without the viewers, as long as it stays under 5 MB; that of a larger cohort links to
    them.

    Example:
        >>> build_report(done, lambda labels: done.read("test", labels)).name
        'report.html'

    Args:
        run: an evaluated one.
        read: yields the test subjects of the given names.
        controls: yields training controls, of which the first 20 are read for the mean image beside the
            patches; without it that picture is left out.
        beside: other evaluated runs of the same test subjects, whose figures the report opens with.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: a map or a table of clusters is missing; a run beside it has other test subjects.
    """
    comparison = _comparison(run, beside)
    folder, metrics, config, metadata = run.folder, run.metrics, run.config, run.metadata
    rows = metrics.rows
    shown = [row.subject for row in rows if row.group == "patient"] or [row.subject for row in rows]
    background = Background(
        folder=folder,
        data=config.data,
        space=run.space,
        modalities=run.modalities,
        patch_shape=run.patch_shape,
        controls=_mean_image(controls() if controls else ()),
        scores=_control_scores(run, rows),
        trained=len(metadata.splits["train"]),
        limit=max(6.0, math.ceil(metrics.threshold or 0)),
    )
    title, subtitle = _title(config), _subtitle(metrics, metadata)
    environment = _environment()
    cohort = _Cohort(metrics, background)
    for page in _drawn(read(shown), len(shown), background):
        content = environment.get_template("subject.html").render(
            page=page.context, cohort=f"{title}. {subtitle}", back="../report.html"
        )
        write_text(folder.of(page.subject) / "report.html", content)
        cohort.add(page)
    cohort.add_thumbnails()

    history = run.history
    shared = {
        "title": title,
        "subtitle": subtitle,
        "comparison": comparison,
        "missing": _missing(metrics, config),
        **_summary(metrics),
        "summary_figures": cohort.figures(),
        "strata_columns": STRATA_COLUMNS,
        "strata": _strata(metrics.strata),
        "false_positives": _false_positives(run, metrics),
        "training": source(figures.training_curves(history)) if history else None,
        "pictures": _pictures(folder.path / "pictures"),
        "identity": _identity(config, metadata),
    }
    template = environment.get_template("report.html")
    content = template.render(shared | cohort.subjects(shown))
    if len(content) > MAX_BYTES:
        cohort.pages = None
        content = template.render(shared | cohort.subjects(shown))
    write_text(folder.report, content)
    return folder.report


def patient_report(run: FinishedRun, subject: Subject, out: RunFolder, data: str | Path) -> Path:
    """Write ``sub-*/report.html`` of a scored subject that is none of the run's own.

    Args:
        run: whose detector scored the subject.
        subject: in the run's space.
        out: the folder of the maps.
        data: the derivative that the subject was read from, whose transforms lead to the own T1w.
    """
    metrics = run.metrics if run.has_metrics else None
    background = Background(
        folder=out,
        data=str(data),
        space=run.space,
        modalities=run.modalities,
        patch_shape=run.patch_shape,
        controls=None,
        scores=ControlScores() if metrics is None else _control_scores(run, metrics.rows),
        trained=len(run.fitted_on),
        limit=max(6.0, math.ceil((metrics and metrics.threshold) or 0)),
    )
    page = subject_page(subject, background)
    held = _plural(len(run.fitted_on), "control")
    content = (
        _environment()
        .get_template("subject.html")
        .render(page=page.context, cohort=f"{run.config.title}. Held against {held}.", back=None)
    )
    return write_text(out.path / f"sub-{subject.subject}" / "report.html", content)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("epizoo", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _drawn(subjects: Iterable[Subject], count: int, background: Background) -> Iterator[Page]:
    """The subjects' pages in order, drawn by a process a core where they are enough to pay for its start."""
    import joblib

    processes = max(1, min(joblib.cpu_count(), count // PAGES_A_PROCESS))
    jobs = (joblib.delayed(subject_page)(subject, background) for subject in subjects)
    yield from joblib.Parallel(processes, return_as="generator", pre_dispatch="2*n_jobs")(jobs)


class _Cohort:
    """Collects from each page what the report of the cohort needs, so that no volume stays in memory."""

    def __init__(self, metrics: Metrics, background: Background):
        self.metrics, self.background = metrics, background
        self.pages: list[dict[str, Any]] | None = []
        self.bytes = 0
        self.thumbnails: dict[str, str] = {}
        self.chances: dict[str, list[NDArray[np.float64]]] = {rule: [] for rule in RULES}
        self.lesions, self.others = (np.zeros(len(EDGES) - 1, np.int64) for _ in range(2))

    def add(self, page: Page) -> None:
        """Take what the cohort needs of a page."""
        context = {name: value for name, value in page.context.items() if name != "viewer"}
        self.bytes += len(json.dumps(context))
        if self.bytes > MAX_BYTES:
            self.pages = None
        if self.pages is not None:
            self.pages.append(context)
        if page.group == "patient":
            self.lesions += histogram(page.lesion_scores)
            self.others += histogram(page.other_scores)
        for rule, chances in page.chances.items():
            self.chances[rule].append(chances)

    def add_thumbnails(self) -> None:
        """A small projection of each subject's map, where there are not too many."""
        names = [row.subject for row in self.metrics.rows]
        for name in names if len(names) <= MAX_THUMBNAILS else ():
            score_map, _ = read_nifti(self.background.folder.score_map(name, self.background.space))
            self.thumbnails[name] = source(figures.thumbnail(score_map, limit=self.background.limit))

    def figures(self) -> list[dict[str, str]]:
        """The curves and histograms for which there is data."""
        metrics, threshold = self.metrics, self.metrics.threshold
        found: list[tuple[bytes, str]] = []
        if metrics.patients:
            drawn = {RULE_NAMES[rule]: metrics.lesion[rule].froc for rule in RULES}
            curves = {name: (curve.false_positives, curve.sensitivity) for name, curve in drawn.items()}
            chance = {RULE_NAMES[rule]: _chance_froc(chances) for rule, chances in self.chances.items()}
            caption = (
                "FROC: the share of lesions found against false-positive clusters per patient, as more ranks "
                "are looked at. Dotted: the same clusters placed anywhere in the brain (exact expectation)."
            )
            found.append((figures.froc_curve(curves, chance), caption))
        counts = {
            "lesions": self.lesions,
            "patients, outside lesions": self.others,
            "held-out controls": self.background.scores.counts,
        }
        edges = EDGES[::EDGES_PER_BAR]
        counts = {name: _pooled(count) for name, count in counts.items() if count.any()}
        caption = (
            "Scores of all voxels (log scale). On controls a perfectly calibrated score is standard normal."
        )
        if threshold is not None:
            caption += f" Dashed: the level of the report, {LEVEL_WORDS}."
        found.append((figures.score_histogram(edges, counts, threshold), caption))
        groups = {
            f"{group}s": [row.max_score for row in metrics.rows if row.group == group]
            for group in ("patient", "control")
        }
        groups = {name: values for name, values in groups.items() if values}
        caption = "Highest score of each subject's map; the bar is the median."
        found.append((figures.highest_scores(groups, threshold), caption))
        return [{"source": source(image), "caption": caption} for image, caption in found]

    def subjects(self, shown: Sequence[str]) -> dict[str, Any]:
        """The table of subjects, and their pages where there is room for them."""
        rows = self.metrics.rows
        columns, cells = without_empty(SUBJECT_COLUMNS, [_subject_cells(row) for row in rows], "–")
        table = []
        for row, known in zip(rows, cells, strict=True):
            name = row.subject
            link = f"#sub-{name}" if self.pages is not None else f"sub-{name}/report.html"
            table.append(
                {
                    "subject": name,
                    "link": link if name in shown else None,
                    "thumbnail": self.thumbnails.get(name),
                    "cells": known,
                }
            )
        return {
            "subject_columns": columns,
            "subjects": table,
            "subjects_note": self._note(shown),
            "pages": self.pages or [],
        }

    def _note(self, shown: Sequence[str]) -> str:
        """A sentence on where the links lead."""
        words = "Each name leads to the subject's page"
        if self.pages is not None:
            words += " below, and from there to an interactive viewer"
        else:
            words += " with an interactive viewer"
        if len(shown) < len(self.metrics.rows):
            words += "; controls have none while there are patients"
        return words + ". Map: axial maximum intensity projection, colours as on the pages."


def _pooled(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums over the bins of each bar."""
    bars: NDArray[np.int64] = counts.reshape(-1, EDGES_PER_BAR).sum(axis=1)
    return bars


def _chance_froc(
    chances: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The expected FROC of clusters that lie anywhere in the brain.

    Args:
        chances: for each patient ``(n,)``, the probability that each of its clusters hits by chance.

    Returns:
        ``(k + 1,)`` false positives per patient and ``(k + 1,)`` sensitivities, with the first 0 to k ranks.
    """
    depth = max((len(patient) for patient in chances), default=0)
    padded = [np.pad(patient, (0, depth - len(patient)), constant_values=np.nan) for patient in chances]
    p = np.array(padded).reshape(len(chances), depth)
    false = np.cumsum(np.nan_to_num(1 - p), axis=1).mean(axis=0)
    found = 1 - np.cumprod(1 - np.nan_to_num(p), axis=1).mean(axis=0)
    return np.append(0, false), np.append(0, found)


def _mean_image(subjects: Iterable[Subject]) -> tuple[NDArray[np.float32], int] | None:
    total, count = None, 0
    for subject in itertools.islice(subjects, CONTROLS_IN_MEAN):
        total = subject.image.astype(np.float64) if total is None else total + subject.image
        count += 1
    return None if total is None else ((total / count).astype(np.float32), count)


def _control_scores(run: FinishedRun, rows: Iterable[SubjectRow]) -> ControlScores:
    scores = ControlScores()
    for row in rows:
        if row.group == "control":
            score_map = run.score_map(row.subject)
            scores.add(row.subject, score_map[score_map != 0])
    return scores


def _title(config: RunConfig) -> str:
    return f"{config.title} on {Path(config.data).name}"


def _subtitle(metrics: Metrics, metadata: Metadata) -> str:
    groups = {
        "annotated patient": metrics.patients,
        "unannotated patient": metrics.unannotated,
        "held-out control": metrics.controls,
    }
    tested = [_plural(count, name) for name, count in groups.items() if count]
    learnt = f"Normal model of {_plural(len(metadata.splits['train']), 'training control')}"
    if metadata.supervised:
        learnt = f"Supervised reference, an upper bound: learnt from {metadata.fitted_on}"
    return f"{learnt}; tested on {_listed(tested)} that no step had seen."


def _comparison(run: FinishedRun, beside: Sequence[FinishedRun]) -> SideBySide | None:
    """The main figures of runs of the same test subjects; None for a run alone."""
    if not beside:
        return None
    tested = {row.subject for row in run.metrics.rows}
    problems = [
        f"{other.folder.path}: its test subjects are others than those of {run.folder.path}: their figures "
        "cannot stand side by side."
        for other in beside
        if {row.subject for row in other.metrics.rows} != tested
        or other.metadata.data_hash != run.metadata.data_hash
    ]
    if problems:
        raise InputError(problems)
    titles = [one.config.title for one in (run, *beside)]
    names = [
        title if titles.count(title) == 1 else f"{title} ({one.name})"
        for title, one in zip(titles, (run, *beside), strict=True)
    ]
    return side_by_side({name: one.metrics for name, one in zip(names, (run, *beside), strict=True)})


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _missing(metrics: Metrics, config: RunConfig) -> list[str]:
    """A sentence in place of each figure that this test set cannot give."""
    sentences = []
    if not metrics.patients:
        sentences.append(
            "No test patient has an annotated lesion: sensitivity, FROC and voxel figures do not exist here."
        )
    elif metrics.reference == "resection":
        sentences.append(
            "The masks mark what was resected, healthy tissue with it: all figures tell overlap with the "
            "resection, not that a lesion was found."
        )
    if not metrics.controls:
        sentences.append("The test set holds no controls: false positives on healthy brains are unknown.")
    if metrics.threshold is None:
        sentences.append("How high healthy people score is not known: there is no level for false positives.")
    if config.model == NO_MODEL:
        sentences.append("No encoder was trained: the detector reads intensities.")
    return sentences


def _summary(metrics: Metrics) -> dict[str, Any]:
    """The table of the test set's figures."""

    def row(name: str, figure: Interval, digits: int = 2, chance: float = math.nan) -> list[str]:
        low, high = figure.low, figure.high
        interval = "–" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"
        by_chance = "" if math.isnan(chance) else number(chance, digits)
        return [name, number(figure.value, digits), interval, by_chance, "", ""]

    rows: list[list[str]] = []
    if metrics.patients:
        lesion, voxel = metrics.lesion, metrics.voxel
        resection = metrics.reference == "resection"
        hit = "overlap with the resection" if resection else "lesions found"
        for rule in RULES:
            for rank, found in lesion[rule].sensitivity.items():
                among = "as the first cluster" if rank == 1 else f"among the first {rank} clusters"
                cells = row(f"{hit} {among} ({RULE_NAMES[rule]})", found.interval, 2, found.chance)
                rows.append([*cells[:-2], number(found.mirrored, 2), p_value(found.p)])
        name = f"mean rank of the {'resections overlapped' if resection else 'lesions found'} (any overlap)"
        rows.append(row(name, lesion["overlap"].mean_rank, 1))
        for rule in RULES:
            name = f"area under the FROC to 10 false positives ({RULE_NAMES[rule]})"
            rows.append(row(name, lesion[rule].froc.area))
        rows += [
            row("voxel AUROC, mean over patients", voxel.auroc, 3, 0.5),
            row("voxel AUROC up to 30 % false positives", voxel.auroc30, 3),
            row("voxel AUPRC, mean over patients", voxel.auprc, 3, voxel.prevalence.value),
            row("AU-PRO to 30 % false positives", voxel.aupro, 3),
        ]
        if metrics.threshold is not None:
            rows.append(row("Dice at the level", voxel.dice, 3))
    if metrics.controls:
        false = metrics.false_positives
        rows.append(row("clusters per held-out control, the patients' protocol", false.clusters, 1))
        if metrics.threshold is not None:
            name = f"clusters per held-out control, {LEVEL_WORDS}"
            rows.append(row(name, false.clusters_at_threshold))
            name = "held-out controls with none at that level"
            rows.append(row(name, false.controls_with_none_at_threshold))
    columns, shown = without_empty(SUMMARY_COLUMNS, rows, "")
    return {"summary_columns": columns, "summary": shown}


SUMMARY_COLUMNS = ["figure", "value", "95 % interval", "by chance", "mirrored lesion", "p against chance"]


STRATA_COLUMNS = ["group", "n", "AUROC", "AUPRC", "found by rank 5 (any overlap)", "found by rank 5 (strict)"]


def _strata(strata: Mapping[str, Mapping[str, StratumFigures]]) -> list[list[str]]:
    return [
        [
            f"{name}: {group}",
            str(figures.n),
            f"{figures.auroc:.3f}",
            f"{figures.auprc:.3f}",
            *(f"{figures.sensitivity_at_5[rule]:.2f}" for rule in RULES),
        ]
        for name, groups in strata.items()
        for group, figures in groups.items()
    ]


def _false_positives(run: FinishedRun, metrics: Metrics) -> dict[str, Any]:
    """The clusters of held-out controls at the level, which are counted, the highest first.

    Their signs are those of the cluster, by the patients' protocol, that their peak lies in.
    """
    found = []
    for row in metrics.rows:
        if row.group != "control" or not row.clusters_at_threshold:
            continue
        name = row.subject
        score_map, affine = read_nifti(run.folder.score_map(name, run.space))
        labels = run.labels(name)
        signs = {cluster.rank: cluster.signs for cluster in run.clusters(name)}
        for cluster in find_clusters(score_map, affine, threshold=metrics.threshold)[0]:
            rank = labels[tuple(world_to_voxel(cluster.peak_mm, affine))]
            row_cells = [f"sub-{name}", cluster.where, millimetres(cluster.peak_mm)]
            row_cells += [f"{cluster.size_mm3:.0f}", f"{cluster.peak:.1f}", signs.get(rank, "")]
            found.append((cluster.peak, row_cells))
    cells = [row_cells for _, row_cells in sorted(found, key=lambda one: -one[0])]
    columns, rows = without_empty(FALSE_POSITIVE_COLUMNS, cells, "")
    return {"columns": columns, "rows": rows, "text_columns": TEXT_COLUMNS}


FALSE_POSITIVE_COLUMNS = [
    "control",
    "where",
    "peak x, y, z (mm, template)",
    "size (mm³)",
    "peak score",
    SIGNS_COLUMN,
]


SUBJECT_COLUMNS = [
    "group",
    "lesion (mm³)",
    "AUROC",
    "AUPRC",
    "prevalence",
    "rank (any overlap)",
    "rank (strict)",
    "highest score",
    "clusters at the level",
]


def _subject_cells(row: SubjectRow) -> list[str]:
    of_lesion = ["–"] * 6
    if isinstance(row, AnnotatedRow):
        ranks = [row.lesion[rule].rank for rule in RULES]
        of_lesion = [
            number(row.lesion_mm3, 0),
            number(row.voxel.auroc, 3),
            number(row.voxel.auprc, 3),
            number(row.voxel.prevalence, 4),
            *("not found" if math.isinf(rank) else f"{rank:.0f}" for rank in ranks),
        ]
    count = row.clusters_at_threshold
    return [row.group, *of_lesion, number(row.max_score, 1), "–" if count is None else str(count)]


def _identity(config: RunConfig, metadata: Metadata) -> list[tuple[str, str]]:
    steps = ", ".join(f"{name} {step.seconds:.0f} s" for name, step in metadata.steps.items())
    return [
        *([("weights of the model", config.origin)] if config.origin else []),
        ("made again by", f"epizoo.Run(epizoo.{config!r}, OUT_DIR)()"),
        *((name, str(value)) for name, value in config.to_json().items()),
        *(
            (f"{split} subjects", f"{len(names)}: {', '.join(names)}" if names else "none")
            for split, names in metadata.splits.items()
        ),
        ("modalities", ", ".join(metadata.modalities)),
        ("space", metadata.space),
        ("data hash", metadata.data_hash),
        ("split hash", metadata.split_hash),
        ("machine", metadata.machine),
        ("time", steps),
        ("versions", ", ".join(f"{name} {version}" for name, version in metadata.versions.items())),
    ]


def _pictures(folder: Path) -> list[dict[str, str]]:
    """Samples of the first epoch and of the last."""
    words = {"epoch-0001.png": "the first epoch", "latest.png": "the last epoch"}
    return [
        {
            "source": "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode(),
            "caption": f"Patches and what the model made of them, after {when}.",
        }
        for name, when in words.items()
        if (folder / name).is_file()
    ]
