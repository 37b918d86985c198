"""Check this export against its test vectors: what it gives here, against what it gave where it was made.

    python verify.py                          # every vector; exit status 1 if one differs
    python verify.py --modalities T1w FLAIR   # also: do my channels fit, in this order?

Needs NumPy, and for a SavedModel TensorFlow, for ONNX onnxruntime, for TFLite ai-edge-litert or TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[str, dict[str, Any]], dict[str, Any]]


def verify(
    folder: str | Path, modalities: Sequence[str] | None = None
) -> list[tuple[str, str, float, float]]:
    """Run every test vector.

    Returns:
        a row ``(signature, output, largest difference, what is allowed)`` for each.

    Raises:
        ValueError: a file that is missing or changed, other modalities, an output that differs.
    """
    folder = Path(folder)
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    problems = check_files(folder, metadata) + check_modalities(metadata, modalities)
    if problems:
        raise ValueError("\n".join(problems))
    call = {"savedmodel": saved_model, "onnx": onnx, "tflite": tflite}[metadata["format"]](folder)
    with np.load(folder / "vectors.npz") as stored:
        vectors = dict(stored)
    rows = []
    for signature, io in metadata["signatures"].items():
        inputs = {name: vectors[f"{signature}/{name}"] for name in io["inputs"]}
        outputs = call(signature, inputs)
        for name in io["outputs"]:
            expected, got = vectors[f"{signature}/{name}/expected"], outputs[name]
            if f"{signature}/voxels" in vectors and got.ndim > 2:
                got = got[tuple(vectors[f"{signature}/voxels"].T)]
            if got.shape != expected.shape:
                raise ValueError(f"{signature}: {name} of shape {got.shape}, expected {expected.shape}.")
            allowed = io["outputs"][name]["tolerance"] * max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(got.astype(np.float64) - expected).max())
            rows.append((signature, name, difference, allowed))
            if not difference <= allowed:
                raise ValueError(
                    f"{signature}: {name} differs by {difference:.3g}; {allowed:.3g} is allowed."
                )
    return rows


def check_files(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """Files that are missing or have changed since the export."""
    problems = []
    for name, expected in metadata["sha256"].items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing.")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            problems.append(f"{path}: changed since the export (its SHA-256 is not that of metadata.json).")
    return problems


def check_modalities(metadata: dict[str, Any], modalities: Sequence[str] | None) -> list[str]:
    """What speaks against feeding channels of these names, in this order."""
    own = metadata["modalities"]
    if modalities is None or list(modalities) == own:
        return []
    if len(modalities) != metadata["channels"]:
        return [f"{len(modalities)} channels ({', '.join(modalities)}): this export takes {', '.join(own)}."]
    return [f"channels {', '.join(modalities)}: this export takes {', '.join(own)}, in this order."]


def saved_model(folder: Path) -> Call:
    import tensorflow as tf

    signatures = tf.saved_model.load(str(folder)).signatures

    def call(signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return call


def onnx(folder: Path) -> Call:
    import onnxruntime

    def call(signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        path = str(folder / f"{signature}.onnx")
        model = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in model.get_outputs()]
        return dict(zip(names, model.run(names, inputs), strict=True))

    return call


def tflite(folder: Path) -> Call:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite import Interpreter

    def call(signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
        interpreter = Interpreter(model_path=str(folder / f"{signature}.tflite"))
        outputs: dict[str, Any] = interpreter.get_signature_runner(signature)(**inputs)
        return outputs

    return call


if __name__ == "__main__":
    wanted = sys.argv[2:] if sys.argv[1:2] == ["--modalities"] else None
    try:
        for signature, output, difference, allowed in verify(Path(__file__).parent, wanted):
            print(f"{signature:26} {output:10} differs by {difference:.1e} (allowed {allowed:.1e})")
    except ValueError as error:
        sys.exit(f"This export does not verify:\n{error}")
    print("This export gives here what it gave where it was made.")
