"""The default method: adapting and fitting, one patient, the report; and a step of training, on one core.

    python -m benchmarks.speed [--voxel-size 1 --people 8] [--data-dir DIR]

Controls and patients are those of the phantom (T1w and FLAIR, 40 controls, 20 patients). The network is not
trained, which takes as long. At 1 mm the controls are scans of few people, since phantoms of that size take
long to make, and there is no report. Wall and processor seconds: the second, of all processes, tells what a
machine shared with others would hide.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import tensorflow as tf

from epizoo import models
from epizoo.detection import fit_detector
from epizoo.models import callbacks
from epizoo.outputs import Source, score_subject
from epizoo.registry import MODELS
from epizoo.run import Run, forget_peak, peak_gib
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from tfds_epilepsy import phantom
from tfds_epilepsy.volumes import TEMPLATE_SPACE, Subject

PATIENTS = 6  # that are timed; the first, which finds nothing compiled, is told apart
ROUNDS = 3  # of the report
STEPS = 15  # of training
FORMER_FILTERS = 24  # of the default network until it had presets
# What is aimed at: seconds and GiB on two cores, 40 controls.
BARS = {
    2: {"adapt and fit": 40, "a patient": 1, "report": 15, "memory": 3},
    1: {"adapt and fit": 360, "a patient": 10, "memory": 6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxel-size", type=int, default=2, choices=(1, 2))
    parser.add_argument("--people", type=int, default=40, help="that the 40 controls are scans of")
    parser.add_argument("--data-dir", type=Path, help="where prepared phantoms live")
    options = parser.parse_args()
    size, bars = options.voxel_size, BARS[options.voxel_size]
    print(f"{size} mm, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        path, data = Path(folder), f"phantom_{size}mm"
        run = Run(data, path / "run", data_dir=options.data_dir) if size == 2 else None
        config = RunConfig.resolve(data)
        modalities = phantom.PhantomConfig().modalities
        own = MODELS.get(config.model).config_for(modalities, None)
        model = models.create(config.model, **{**own, "seed": 0})
        controls = list(run.read("train")) if run else scans(size, options.people)

        memory = 0.0

        def timed(what: str, work: Callable[[], object]) -> tuple[float, float]:
            nonlocal memory
            forget_peak()
            wall, processor = time.perf_counter(), processor_seconds()
            work()
            spent = time.perf_counter() - wall, processor_seconds() - processor
            memory = max(memory, peak_gib())
            print(
                f"  {what:28}{spent[0]:8.2f} s  {spent[1]:8.2f} processor s  {peak_gib():5.2f} GiB",
                flush=True,
            )
            return spent

        adapted = timed("adapt to 40 controls", lambda: model.view.adapt(controls))
        found = []
        fitted = timed(
            "fit",
            lambda: found.append(
                fit_detector(
                    model,
                    lambda: controls,
                    path / "detector",
                    config.detector,
                    modalities=modalities,
                    fwhm=config.fwhm,
                )
            ),
        )
        maps, source = RunFolder(path / "maps"), Source(TEMPLATE_SPACE, "none")
        shape = phantom.PhantomConfig(voxel_size=size)
        patients = [phantom.subject(shape, f"patient{9 + number:03d}") for number in range(PATIENTS)]
        first, *others = (
            timed("a patient", lambda patient=patient: score_subject(found[0], patient, maps, source))  # type: ignore[misc]
            for patient in patients
        )
        rows = {
            "adapt and fit": (adapted[0] + fitted[0], adapted[1] + fitted[1]),
            "the first patient": first,
            "a patient": tuple(map(median, zip(*others, strict=True))),
        }
        if run is not None:
            callbacks.save(model, run.folder.model)
            run.evaluate()
            reports = [timed("report of 20 patients", run.report) for _ in range(ROUNDS)]
            rows["report"] = tuple(map(median, zip(*reports, strict=True)))
        for name, (wall, processor) in rows.items():
            bar = f"  (bar {bars[name]} s)" if name in bars else ""
            print(f"{name:30}{wall:8.2f} s  {processor:8.2f} processor s{bar}")
        print(f"memory {memory:.2f} GiB (bar {bars['memory']} GiB)")
    own_step, former_step = training_steps(modalities)
    print(
        f"a step of training{own_step:18.3f} processor s; {former_step / own_step:.2f} times as fast as with "
        f"{FORMER_FILTERS} filters"
    )


def training_steps(modalities: Sequence[str]) -> tuple[float, float]:
    """Processor seconds of a step on 16 patches, medians: of the default network, and with more filters."""
    rng = np.random.default_rng(0)
    names = list(modalities)
    steps = []
    for options in ({}, {"filters": FORMER_FILTERS}):
        model = models.create("deviation", channels=len(names) + 1, modalities=names, **options)
        model.compile()
        patch = tf.constant(rng.normal(size=(16, *model.patch_shape, model.channels)).astype(np.float32))
        step = tf.function(model.train_step, autograph=False)
        step({"patch": patch})
        steps.append(partial(step, {"patch": patch}))
    seconds: list[list[float]] = [[], []]
    for _ in range(STEPS):  # in turn: a busy machine slows both
        for spent, step in zip(seconds, steps, strict=True):
            started = time.process_time()
            step()
            spent.append(time.process_time() - started)
    return median(seconds[0]), median(seconds[1])


def scans(voxel_size: int, people: int) -> list[Subject]:
    """40 scans of some people."""
    config = phantom.PhantomConfig(voxel_size=voxel_size)
    return [
        # A subject's label is that of the person; in a cohort each scan needs one of its own.
        labelled(phantom.subject(config, f"control{1 + number % people:03d}", number // people), number)
        for number in range(config.n_train)
    ]


def labelled(subject: Subject, number: int) -> Subject:
    return Subject(**{**vars(subject), "subject": f"control{1 + number:03d}"})


def processor_seconds() -> float:
    """Of this process and of those that it started and that still run."""
    here = psutil.Process()
    return float(np.sum([sum(one.cpu_times()[:2]) for one in (here, *here.children(recursive=True))]))


if __name__ == "__main__":
    main()
