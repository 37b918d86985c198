"""Many runs on one cohort, and the table that holds them side by side."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import tfds_epilepsy
from epizoo.evaluation.leaderboard import Entry, leaderboard, write_leaderboard
from epizoo.finished_run import METRICS, FinishedRun, open_run
from epizoo.folds import make_folds
from epizoo.registry import DETECTORS, MODELS
from epizoo.run import Run
from epizoo.run_config import RunConfig, data_name
from epizoo.run_metadata import Metadata
from epizoo.supervised import PATIENTS, supervised_config
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing
from tfds_epilepsy.progress import stderr

BASELINES = [name for name in DETECTORS if DETECTORS.get(name).views]
ON_CODES = [name for name in DETECTORS if DETECTORS.get(name).reads_model]


def benchmark(
    data: str,
    folder: str | Path,
    models: Sequence[str] | None = None,
    detectors: Sequence[str] = (),
    baselines: Sequence[str] | None = None,
    *,
    preset: str | Path | None = None,
    seeds: int = 3,
    supervised: int = PATIENTS,
    folds: int | None = None,
    modalities: Sequence[str] | None = None,
    reading: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    console: Console | None = None,
    **training: int | None,
) -> Path:
    """Run every model with every detector, every baseline and the supervised reference, on one cohort.

    Models are trained on the controls at hand; a preset's row beside them shows what training brings.
    Each run has a folder; finished ones are taken as they are, so a killed benchmark goes on. For each seed a
    model is trained once, and its detectors share the encoder. The table is written anew after each run. No
    reports are written; ``epizoo report RUN_DIR`` makes that of any run.

    Args:
        data: a config's name or a template-space derivative.
        folder: where runs and tables go.
        models: names of the zoo; all of it if None.
        detectors: on the models' codes; each model's own if empty.
        baselines: detectors that read intensities; all of ``BASELINES`` that the data has the images for if
            None.
        preset: weights that are only adapted, in a row of their own: they run once; none if None.
        seeds: runs of each model and of the supervised reference; 0: baselines and preset alone, which have
            no random part and run once.
        supervised: annotated patients that the supervised reference is trained on; 0 leaves it out.
        folds: for a derivative of controls alone: cross-validate over subjects, with lesions implanted in
            the held-out ones (``epizoo.folds``); the table pools the folds.
        modalities, reading: of a folder, as in ``RunConfig``.
        data_dir: where prepared data sets live.
        console: where progress is shown; stderr if None.
        **training: ``epochs``, ``steps_per_epoch``, ``batch_size`` of the models.

    Returns:
        The table in Markdown (beside it as TSV and HTML).

    Raises:
        InputError: unknown names, before any work; as ``Run`` and ``make_folds``.
    """
    folder, console = Path(folder), console or stderr
    if not seeds and (models or detectors):
        raise InputError(
            "0 seeds run baselines alone, and a preset: name no model and no detector, or at least 1 seed."
        )
    models = list(MODELS) if models is None else models
    _check_names(models, detectors, baselines or ())
    source: dict[str, Any] = {"modalities": modalities, "reading": reading}
    RunConfig.resolve(data, preset=preset, **source)  # refuses what has no effect
    cohorts = {folder: data}
    if folds is not None:
        made = make_folds(data, folder, folds, modalities=modalities, **(reading or {}))
        cohorts = {path.parent: str(path) for path in made}
        source = {}  # what they hold leaves nothing open
    if baselines is None:
        first = next(iter(cohorts.values()))
        found = tfds_epilepsy.load(first, data_dir, source.get("modalities"), **(source.get("reading") or {}))
        baselines = [name for name in BASELINES if name != "flair" or "FLAIR" in found.modalities[1:2]]
    plan = list(_plan(data, models, detectors, baselines, preset, seeds, supervised, source, training))
    if not plan:
        raise InputError("no method to run: name a model with a detector, a baseline or a preset.")
    entries: list[Entry] = []
    for number, planned in enumerate(plan, start=1):
        parts = []
        for place, cohort in cohorts.items():
            title = planned.name if folds is None else f"{planned.name}, {place.name}"
            console.print(f"{title} ({number} of {len(plan)})", style="bold blue", markup=False)
            config = replace(planned.config, data=data_name(cohort))
            run = Run(config, place / planned.name, data_dir=data_dir, console=console)
            _share_encoder(run, place, models, detectors)
            if not run.folder.metrics.is_file():
                run.evaluate()
            parts.append(entry_of(open_run(run.folder.path, needs=[METRICS])))
        entries.append(Entry.pooled(parts))
        write_leaderboard(folder, leaderboard(entries))
    return folder / "leaderboard.md"


def entry_of(run: FinishedRun) -> Entry:
    """The leaderboard's entry of an evaluated run."""
    return Entry(
        method=run.config.title,
        seed=run.config.seed,
        metrics=run.metrics,
        cohort=f"{run.metadata.data_hash}/{run.metadata.split_hash}",
        supervised=run.metadata.supervised,
        seconds=run.seconds,
        peak_gib=run.peak_gib,
    )


def _check_names(models: Sequence[str], detectors: Sequence[str], baselines: Sequence[str]) -> None:
    problems = [f"unknown model {m!r}: choose among {', '.join(MODELS)}." for m in models if m not in MODELS]
    problems += [
        f"{name!r} is no classical baseline: choose among {', '.join(BASELINES)}."
        for name in baselines
        if name not in BASELINES
    ]
    problems += [
        f"{name!r} is no detector on an encoder's codes: choose among {', '.join(ON_CODES)}."
        for name in detectors
        if name not in ON_CODES
    ]
    if problems:
        raise InputError(problems)


@dataclass(frozen=True)
class _Planned:
    """A run to do: the name of its folder, and what it is."""

    name: str
    config: RunConfig


def _plan(
    data: str,
    models: Sequence[str],
    detectors: Sequence[str],
    baselines: Sequence[str],
    preset: str | Path | None,
    seeds: int,
    supervised: int,
    source: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Iterator[_Planned]:
    if preset is not None:  # first: one that does not fit is refused before any work
        yield _Planned("preset", RunConfig.resolve(data, preset=preset, **source))
    for baseline in baselines:
        yield _Planned(baseline, RunConfig.resolve(data, model="none", detector=baseline, **source))
    for seed in range(seeds):
        if supervised:
            config = supervised_config(data, patients=supervised, seed=seed, **source)
            yield _Planned(f"supervised-{seed}", config)
        for model in models:
            for detector in detectors or (None,):
                config = RunConfig.resolve(
                    data, model=model, detector=detector, seed=seed, train=True, **source, **training
                )
                yield _Planned(f"{model}-{config.detector}-{seed}", config)


def _share_encoder(run: Run, folder: Path, models: Sequence[str], detectors: Sequence[str]) -> None:
    """Take the model of a run that differs in its detector alone."""
    config = run.config
    if config.model not in models or run.folder.model.is_file():
        return
    for detector in detectors:
        other = folder / f"{config.model}-{detector}-{config.seed}"
        if (other / "model.keras").is_file():
            for name in ("history.csv", "model.keras"):
                with replacing(run.folder.path / name) as partial:
                    shutil.copyfile(other / name, partial)
            trained = open_run(other, needs=[]).metadata.steps["train"]  # what it costs, whoever paid
            Metadata.read(run.folder.metadata).with_step("train", trained).write(run.folder.metadata)
            return
