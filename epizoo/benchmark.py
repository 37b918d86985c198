"""Many runs on one cohort, and the table that holds them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from epizoo.evaluation.leaderboard import Entry, leaderboard, write_leaderboard
from epizoo.run import Run, RunConfig
from epizoo.supervised_run import PATIENTS, SupervisedRun, supervised_config


def benchmark(
    data: str,
    folder: str | Path,
    models: Sequence[str],
    detectors: Sequence[str],
    baselines: Sequence[str] = (),
    *,
    seeds: int = 3,
    supervised: int = PATIENTS,
    data_dir: Path | None = None,
    console: Console | None = None,
    **training: int,
) -> Path:
    """Run every model with every detector, every baseline and the supervised reference, on one cohort.

    Each run is a folder; finished ones are taken as they are, so a killed benchmark goes on. A model is
    trained once a seed: its detectors share the encoder.

    Args:
        data: a config's name or a template-space derivative.
        folder: where runs and tables go.
        models: names of the zoo.
        detectors: on the models' codes.
        baselines: detectors that read intensities.
        seeds: runs of each model and of the supervised reference; baselines have no random part and run once.
        supervised: annotated patients that the supervised reference is trained on; 0 leaves it out.
        data_dir: where prepared data sets live.
        console: where progress is shown; stderr if None.
        **training: ``epochs``, ``steps_per_epoch``, ``batch_size`` of the models.

    Returns:
        The table in Markdown (beside it as TSV and HTML).

    Raises:
        InputError: as ``Run``.
    """
    folder, console = Path(folder), console or Console(stderr=True)
    entries = []
    for name, kind, config in _runs(data, models, detectors, baselines, seeds, supervised, training):
        console.rule(f"[bold blue]{name}")
        run = kind(config, folder / name, data_dir=data_dir, console=console)
        _share_encoder(run, folder, models, detectors)
        run()
        entries.append(Entry.read(run.folder.path))
    paths = write_leaderboard(folder, leaderboard(entries))
    return next(path for path in paths if path.suffix == ".md")


def _runs(
    data: str,
    models: Sequence[str],
    detectors: Sequence[str],
    baselines: Sequence[str],
    seeds: int,
    supervised: int,
    training: Mapping[str, Any],
) -> Iterator[tuple[str, type[Run], RunConfig]]:
    for detector in baselines:
        yield detector, Run, RunConfig(data, model="none", detector=detector)
    for seed in range(seeds):
        if supervised:
            yield f"supervised-{seed}", SupervisedRun, supervised_config(data, patients=supervised, seed=seed)
        for model in models:
            for detector in detectors:
                config = RunConfig(data, model=model, detector=detector, seed=seed, **training)
                yield f"{model}-{detector}-{seed}", Run, config


def _share_encoder(run: Run, folder: Path, models: Sequence[str], detectors: Sequence[str]) -> None:
    """Take the model of a run that differs in its detector alone."""
    config = run.config
    if config.model not in models or run.folder.model.is_file():
        return
    for detector in detectors:
        other = folder / f"{config.model}-{detector}-{config.seed}"
        if (other / "model.keras").is_file():
            for name in ("history.csv", "model.keras"):
                (run.folder.path / name).write_bytes((other / name).read_bytes())
            return
