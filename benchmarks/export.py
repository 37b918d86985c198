"""Size and speed of exports beside the library in process: patches and volumes a second.

    python -m benchmarks.export

One run: the methods take turns, so that a busy machine disturbs all alike; medians of times and of ratios.
The encoder is the siamese's, untrained; the volume is the template at 2 mm with both modalities in raw
intensities, and normalisation counts for all. The pipeline's detector is a one-class SVM a voxel on noisy
copies of the template.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from rich.console import Console
from rich.table import Table
from scipy import ndimage

import epizoo
from epizoo.detection import FittedDetector
from epizoo.export import export_encoder, export_pipeline
from tfds_epilepsy.volumes import Subject, load_template, normalise

ROUNDS = 5
PATCHES = 16_384
BATCH = 4096
CONTROLS = 20
NAMES = ("T1w", "FLAIR")
CORES = len(os.sched_getaffinity(0))


def noisy_template(seed: int) -> tuple[Subject, np.ndarray]:
    """A subject made of the 2 mm template and smooth noise, and its raw intensities ``(x, y, z, 2)``."""
    template = load_template(2)
    flair = 0.75 * template.gm + 0.6 * template.wm + 0.15 * template.csf
    raw = np.stack([template.t1, flair], axis=-1)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=raw.shape), (1, 1, 1, 0))
    raw = (900 * (raw + 0.3 * noise)).astype(np.float32)
    image = np.stack([normalise(raw[..., c], template.brain_mask)[0] for c in range(2)], -1)
    nowhere = np.zeros_like(template.brain_mask)
    return Subject(f"c{seed}", "control", image, template.brain_mask, nowhere, template.affine), raw


def methods(work: Path) -> tuple[dict[str, dict[str, Callable[[], np.ndarray]]], dict[str, float]]:
    """What is timed, by task and form; sizes of the forms in KiB."""
    model = epizoo.create("siamese")
    dense = epizoo.DenseEncoder(model.encoder)
    subject, raw = noisy_template(99)
    mask = subject.brain_mask
    patches = np.random.default_rng(0).random((PATCHES, 15, 15, 2), np.float32)
    batches = [patches[i : i + BATCH] for i in range(0, PATCHES, BATCH)]
    volumes = {name: np.ascontiguousarray(raw[..., c]) for c, name in enumerate(NAMES)} | {"mask": mask}
    named = {name: tf.constant(array) for name, array in volumes.items()}
    sizes: dict[str, float] = {}

    def exported(form: str, **options: str) -> Path:
        folder = export_encoder(model, work / form, modalities=NAMES, voxel_size=2.0, **options)
        files = json.loads((folder / "metadata.json").read_text())["sha256"]
        own = ("vectors.npz", "verify.py", "use_it.py", "model_card.md")
        sizes[form] = sum((folder / name).stat().st_size for name in files if name not in own) / 1024
        return folder

    tasks: dict[str, dict[str, Callable[[], np.ndarray]]] = {"patches": {}, "volume": {}, "map": {}}
    tasks["patches"]["in process"] = lambda: model.encode(patches, BATCH)

    def in_process() -> np.ndarray:
        channels = [normalise(raw[..., c], mask)[0] for c in range(2)]
        return dense(np.stack(channels, -1))

    tasks["volume"]["in process"] = in_process
    for form, precision in (("SavedModel", "float32"), ("SavedModel, bfloat16", "bfloat16")):
        served = tf.saved_model.load(exported(form, precision=precision)).signatures
        tasks["patches"][form] = lambda f=served["encode"]: np.concatenate(  # type: ignore[misc]
            [f(patch=tf.constant(batch))["latent"].numpy() for batch in batches]
        )
        tasks["volume"][form] = lambda f=served["encode_volume"]: f(**named)["latent"].numpy()  # type: ignore[misc]
    folder = exported("ONNX", format="onnx")
    encode, whole = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encode", "encode_volume")
    )
    tasks["patches"]["ONNX"] = lambda: np.concatenate(
        [encode.run(["latent"], {"patch": batch})[0] for batch in batches]
    )
    tasks["volume"]["ONNX"] = lambda: whole.run(["latent"], volumes)[0]
    folder = exported("TFLite", format="tflite")
    lite = Interpreter(model_path=str(folder / "encode.tflite"), num_threads=CORES).get_signature_runner(
        "encode"
    )
    tasks["patches"]["TFLite"] = lambda: np.concatenate([lite(patch=batch)["latent"] for batch in batches])

    quiet = Console(quiet=True)
    normative: FittedDetector = epizoo.fit_detector(
        model, lambda: (noisy_template(i)[0] for i in range(CONTROLS)), work / "detector", console=quiet
    )
    folder = export_pipeline(normative, work / "pipeline", modalities=NAMES)
    score = tf.saved_model.load(folder).signatures["score"]
    sizes["pipeline"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1024

    def in_process_map() -> np.ndarray:
        image = np.stack([normalise(raw[..., c], mask)[0] for c in range(2)], -1)
        return normative.score(Subject("p", "patient", image, mask, subject.lesion_mask, subject.affine))

    tasks["map"] = {
        "in process": in_process_map,
        "SavedModel": lambda: score(**named)["score"].numpy(),
    }
    return tasks, sizes


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        tasks, sizes = methods(Path(work))
        differences: dict[tuple[str, str], float] = {}
        for task, forms in tasks.items():
            expected = forms["in process"]()
            for form, work_ in forms.items():
                differences[task, form] = float(np.abs(work_() - expected).max())
        times: dict[tuple[str, str], list[float]] = {key: [] for key in differences}
        for _ in range(ROUNDS):
            for task, form in times:
                started = time.perf_counter()
                tasks[task][form]()
                times[task, form].append(time.perf_counter() - started)

    units = {"patches": (PATCHES, "patches/s"), "volume": (1, "volumes/s"), "map": (1, "maps/s")}
    table = Table("task", "form", "KiB", "a second", "speed", "differs by")
    for (task, form), seconds in times.items():
        base = times[task, "in process"]
        speed = median(b / s for b, s in zip(base, seconds, strict=True))
        count, unit = units[task]
        size = sizes.get("pipeline" if task == "map" and form != "in process" else form)
        table.add_row(
            task,
            form,
            f"{size:,.0f}" if size else "",
            f"{count / median(seconds):,.3g} {unit}"
            if count == 1
            else f"{count / median(seconds):,.0f} {unit}",
            f"{speed:.2f} x",
            f"{differences[task, form]:.1e}",
        )
    console = Console(width=100)
    console.print(f"{CORES} cores, load {os.getloadavg()[0]:.1f}; medians of {ROUNDS} rounds")
    console.print(table)


if __name__ == "__main__":
    main()
