"""The shipped presets against networks trained on the own controls, on the same test patients.

    python -m epizoo.models.pretraining PRE deviation_t1w_flair --seed 1        # other seeds of the training
    python -m benchmarks.presets OUT PRE --seeds 3

Conditions: ``phantom_2mm``; 10 and 20 of its controls; patients of another scanner; kinds of lesion that
nothing was trained or chosen on; 1 mm. Methods: ``preset``, adapted alone; ``tuned``, trained further on
the controls at hand; ``own``, trained on them. Detector ``signs``, fitted on the controls at hand. OUT keeps
every network and the figures of every patient, so that a killed command goes on; differences from ``own``
are paired by patient.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import epizoo
from benchmarks.contrast import score
from benchmarks.robustness import UNSEEN
from epizoo import presets
from epizoo.detection import fit_detector
from epizoo.evaluation import bootstrap_mean, evaluate
from epizoo.models import callbacks, training
from epizoo.models.patch_model import PatchModel
from epizoo.run_config import FINE_TUNING, RunConfig
from tfds_epilepsy import phantom
from tfds_epilepsy.files import read_json, write_json, write_text
from tfds_epilepsy.patches import patch_dataset
from tfds_epilepsy.phantom import PhantomConfig
from tfds_epilepsy.tfds_epilepsy_dataset_builder import generate
from tfds_epilepsy.volumes import Subject

METHODS = ("preset", "tuned", "own")
FWHM = 8.0
DEFAULT = PhantomConfig()


def conditions() -> dict[str, tuple[PhantomConfig, PhantomConfig]]:
    """By name: the cohort of the controls, and that of the test patients."""
    fine = replace(DEFAULT, voxel_size=1)
    return {
        "phantom_2mm": (DEFAULT, DEFAULT),
        "10 controls": (replace(DEFAULT, n_train=10), DEFAULT),
        "20 controls": (replace(DEFAULT, n_train=20), DEFAULT),
        "another scanner": (DEFAULT, replace(DEFAULT, second_site=1.0)),
        "unseen kinds": (DEFAULT, replace(DEFAULT, kinds=UNSEEN)),
        "1 mm": (replace(fine, n_train=10), fine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("pretrained", type=Path, help="where epizoo.models.pretraining wrote its presets")
    parser.add_argument("--name", default="deviation_t1w_flair")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--conditions", nargs="*", default=list(conditions()), choices=list(conditions()))
    parser.add_argument("--record", action="store_true", help="write the figures into the shipped preset")
    given = parser.parse_args()
    for name in given.conditions:
        controls, patients = conditions()[name]
        made: dict[str, list[Subject]] = {}
        for method in given.methods:
            for seed in range(given.seeds):
                path = given.out / f"{name} {method} {seed}.json".replace(" ", "_")
                if path.is_file():
                    continue
                if not made:
                    made = {
                        "controls": subjects(controls, "control"),
                        "patients": subjects(patients, "patient"),
                    }
                preset = given.pretrained / (given.name + (f"-seed{seed}" if seed else ""))
                model = network(method, seed, preset, made["controls"], controls, given.out / "networks")
                write_json(path, measure(model, made["controls"], made["patients"], controls.modalities))
        report(name, given.out, given.methods, given.seeds)
        if given.record:
            record(given.name, name, given.out)


def subjects(config: PhantomConfig, group: str) -> list[Subject]:
    """The training controls of a cohort, or its test patients."""
    labels = phantom.cohort(config)["train" if group == "control" else "test"]
    return list(generate(config, [label for label in labels if label.startswith(group)]))


def network(
    method: str, seed: int, preset: Path, controls: Sequence[Subject], config: PhantomConfig, folder: Path
) -> PatchModel:
    """A network of a method, its view adapted to the controls."""
    place = folder / f"{method}-{seed}-{len(controls)}-{config.voxel_size}mm"
    if method == "own":
        default = RunConfig.resolve("phantom_2mm", train=True)
        names = list(config.modalities)
        model = epizoo.create("deviation", channels=len(names) + 1, modalities=names, seed=seed)
        length = {"epochs": default.epochs, "steps_per_epoch": default.steps_per_epoch}
    else:
        model = epizoo.from_preset(preset)
        length = FINE_TUNING
    model.view.adapt(controls)
    if method == "preset":
        return model
    if method == "tuned":
        training.fine_tune(model)
    seen = [model.view.seen(control) for control in controls]
    callbacks.train(
        model,
        lambda step: patch_dataset(seen, model.patch_shape, batch_size=16, seed=seed, start_step=step),
        folder=place,
        **length,
    )
    return model


def measure(
    model: PatchModel, controls: Sequence[Subject], patients: Sequence[Subject], modalities: Sequence[str]
) -> list[dict[str, Any]]:
    """AUROC, AUPRC and the lesion's rank of each patient."""
    with TemporaryDirectory() as scratch:
        fitted = fit_detector(model, lambda: controls, scratch, "signs", modalities=modalities, fwhm=FWHM)
        rows = evaluate((score(fitted, patient) for patient in patients), resamples=10).annotated
    return [
        {
            "subject": row.subject,
            "auroc": row.voxel.auroc,
            "auprc": row.voxel.auprc,
            "rank": min(row.lesion["overlap"].rank, 1e6),
        }
        for row in rows
    ]


def report(condition: str, out: Path, methods: Sequence[str], seeds: int) -> None:
    found = {method: [rows for rows in stored(condition, out, method, seeds)] for method in methods}
    base = {}
    for method in (*[m for m in ("own",) if found.get(m)], *[m for m in methods if m != "own"]):
        runs = found[method]
        if not runs:
            continue
        means = {k: np.mean([[row[k] for row in rows] for rows in runs], axis=0) for k in ("auroc", "auprc")}
        first = np.mean([[row["rank"] <= 5 for row in rows] for rows in runs], axis=0)
        means["first 5"] = first
        base = base or means
        words = ", ".join(f"{k} {bootstrap_mean(v):.3f}" for k, v in means.items())
        print(f"{condition:16} {method:7} {len(runs)} seeds  {words}", flush=True)
        if means is not base:
            less = ", ".join(f"{k} {bootstrap_mean(v - base[k]):+.3f}" for k, v in means.items())
            print(f"{'':16} {'':7} less own {less}", flush=True)


def record(name: str, condition: str, out: Path) -> None:
    """Write what the shipped preset (seed 0) finds under a condition into its config and its card."""
    rows = next(stored(condition, out, "preset", 1), None)
    if rows is None:
        return
    found = presets.Preset.read(name)
    figures = {
        "AUROC": round(float(np.mean([row["auroc"] for row in rows])), 3),
        "AUPRC": round(float(np.mean([row["auprc"] for row in rows])), 3),
        "in the first 5": round(float(np.mean([row["rank"] <= 5 for row in rows])), 2),
    }
    told = replace(found, figures={**(found.figures or {}), condition: figures})
    write_json(found.folder / presets.CONFIG, told.to_json())
    write_text(found.folder / presets.CARD, presets.card(told))


def stored(condition: str, out: Path, method: str, seeds: int) -> Iterator[list[dict[str, Any]]]:
    for seed in range(seeds):
        path = out / f"{condition} {method} {seed}.json".replace(" ", "_")
        if path.is_file():
            yield read_json(path)


if __name__ == "__main__":
    main()
