"""What people read of an export: the model card and a script that uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NORMALISATION = {
    "unit": "inside the brain mask the 0.5th percentile becomes 0, the 99th becomes 1, clipped; outside 0; "
    "an image that has been normalised so before stays as it is",
    "zscore": "inside the brain mask the median less 5 robust standard deviations (1.4826 MAD) becomes 0, "
    "the median plus 5 becomes 1, clipped; outside 0",
    "none": "not part of this export, since it is learnt from a cohort: volumes come in [0, 1], as the "
    "preprocessing of the training data left them",
}
RUNTIME = {
    "savedmodel": "TensorFlow and NumPy",
    "onnx": "onnxruntime and NumPy",
    "tflite": "ai-edge-litert (or TensorFlow) and NumPy",
}


def script(metadata: Mapping[str, Any]) -> str:
    """``use_it.py``: ten lines that run the export on one of its test vectors."""
    signature = next(name for name in ("score", "encode_volume", "encode") if name in metadata["signatures"])
    form = metadata["signatures"][signature]
    names = list(form["inputs"])
    output = next(name for name in ("score", "latent") if name in form["outputs"])
    what = "the score map" if metadata["what"] == "pipeline" else "the code of each patch or voxel"
    lines = [
        f'"""Use this export: {what} of one input, by name. Needs {RUNTIME[metadata["format"]]}."""',
        "",
        "from pathlib import Path",
        "",
        "import numpy as np",
    ]
    arguments = ", ".join(f"{name}=given['{name}']" for name in names)
    feed = ", ".join(f"'{name}': given['{name}']" for name in names)
    run = {
        "savedmodel": [
            "import tensorflow as tf",
            "",
            "here = Path(__file__).parent",
            f'function = tf.saved_model.load(str(here)).signatures["{signature}"]',
            *_given(signature, names, tensors=True),
            f'result = function({arguments})["{output}"].numpy()',
        ],
        "onnx": [
            "import onnxruntime",
            "",
            "here = Path(__file__).parent",
            f'model = onnxruntime.InferenceSession(here / "{signature}.onnx")',
            *_given(signature, names),
            f'result = model.run(["{output}"], {{{feed}}})[0]',
        ],
        "tflite": [
            "from ai_edge_litert.interpreter import Interpreter  # or from tensorflow.lite",
            "",
            "here = Path(__file__).parent",
            f'interpreter = Interpreter(model_path=str(here / "{signature}.tflite"))',
            *_given(signature, names),
            f'result = interpreter.get_signature_runner("{signature}")({arguments})["{output}"]',
        ],
    }[metadata["format"]]
    return "\n".join([*lines, *run, "print(result.shape, result.mean())", ""]).replace("'", '"')


def _given(signature: str, names: Sequence[str], *, tensors: bool = False) -> list[str]:
    value = f"stored[f'{signature}/{{n}}']"
    value = f"tf.constant({value})" if tensors else value
    return [
        "stored = np.load(here / 'vectors.npz')  # yours instead",
        f"given = {{n: {value} for n in {list(names)!r}}}",
    ]


def text(metadata: Mapping[str, Any], run: Mapping[str, Any], notes: Sequence[str], size: int) -> str:
    """``model_card.md``, after Mitchell et al. 2019 (arXiv 1810.03993)."""
    what = metadata["what"]
    if what == "encoder":
        title = f"Encoder of brain tissue: {metadata['model']}"
    else:
        encoder = "intensities" if metadata["model"] == "none" else metadata["model"]
        title = f"Score maps of brain MRI: {encoder}, {metadata['detector']['detector']}"
    lines = [
        f"# {title}",
        "",
        "**Research only: not a medical device.** Nothing that it gives is a diagnosis.",
        "",
        "Learnt from scans of healthy people alone. "
        + (
            "It turns small patches of multiparametric MRI into codes."
            if what == "encoder"
            else "It shows, in standard deviations above healthy controls, how far the tissue at each voxel "
            "of a scan lies from theirs."
        ),
        "",
        "Intended use: research on lesions that are hard to see, as "
        + (
            "features for detectors of one's own."
            if what == "encoder"
            else "places to look at again on the original images, by someone who reads them."
        ),
        "",
        "## Use",
        "",
        f"Format: {metadata['format']}, {metadata['precision']}, {size / 2**20:.1f} MiB; needs "
        f"{RUNTIME[metadata['format']]}. `use_it.py` is an example. `python verify.py` runs the test "
        "vectors; they are drawn numbers, nobody's scan.",
        "",
        "| signature | inputs | outputs | |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {_forms(form['inputs'])} | {_forms(form['outputs'])} | {form['about']} |"
            for name, form in metadata["signatures"].items()
        ),
        "",
        *notes,
        "",
        "## Input",
        "",
        *_input(metadata),
        "",
        "## Made from",
        "",
        *(_made_from(metadata, run) if run else ["A model without a run: no data or figures are recorded."]),
        "",
        "## Limits",
        "",
        "- For any clinical decision it must not be used.",
        "- Scans of another scanner or protocol than the training controls', of children, or after surgery "
        "are outside what it has seen; so are volumes whose preprocessing failed.",
        "- Sides matter: axis 0 runs from left to right (RAS+). A mirrored volume gives wrong results "
        "without any error.",
        "- Ventricles and the border of the brain are known weak spots; every map has clusters, a healthy "
        "person's too.",
        "",
        "Versions, hashes and exact forms: `metadata.json`.",
        "",
    ]
    return "\n".join(lines)


def _input(metadata: Mapping[str, Any]) -> list[str]:
    grid = metadata.get("grid")
    voxel = metadata["voxel_size"]
    lines = [
        f"- Modalities, in this order where they are stacked: {', '.join(metadata['modalities'])}.",
        f"- Normalisation (`{metadata['normalisation']}`): {NORMALISATION[metadata['normalisation']]}.",
        "- Orientation RAS+: axis 0 to the right, 1 to the front, 2 to the top."
        + (f" Voxels of {voxel:g} mm." if voxel else " Voxel size: not recorded."),
    ]
    if grid:
        lines.append(
            f"- Grid {'x'.join(map(str, grid['shape']))}, affine {grid['affine']}; no other is taken."
        )
    else:
        size = "x".join(map(str, metadata["patch_shape"]))
        lines.append(
            f"- Patches {size}{' (axial: x and y at one z)' if len(metadata['patch_shape']) == 2 else ''}, "
            f"channels last; code of {metadata['latent_dim']} numbers. Past a volume, patches see zeros."
        )
    return lines


def _made_from(metadata: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    subjects, found = run["subjects"], run["metrics"]
    rows = [
        ("mean voxel AUROC", f"{found.voxel['auroc']:.3g}"),
        (
            "mean voxel AUPRC",
            f"{found.voxel['auprc']:.3g}; prevalence {_number(found.voxel['prevalence'].value)}",
        ),
        *(
            (f"sensitivity at rank {rank}", f"{figure.interval:.3g}; chance {_number(figure.chance)}")
            for rank, figure in found.sensitivity.items()
        ),
    ]
    return [
        f"- Data: `{run['data']}`, hash {run['data_hash']}, split {run['split_hash']}, space {run['space']}.",
        "- Subjects: " + ", ".join(f"{count} {split}" for split, count in subjects.items()) + ".",
        f"- Model `{run['model']}`: {run['origin']}; seed {run['seed']}."
        if run["origin"]
        else "- No model: the detector reads intensities.",
        f"- Detector `{run['detector']}`, fitted on {run['fitted_on']} controls.",
        "",
        f"Figures on the run's test subjects ({found.patients} patients, {found.controls} controls), "
        f"with 95 % intervals{', of encoder and detector' if metadata['what'] == 'encoder' else ''}:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]


def _forms(forms: Mapping[str, Mapping[str, Any]]) -> str:
    def one(name: str, form: Mapping[str, Any]) -> str:
        shape = form["shape"]
        free = iter(["x", "y", "z"] if shape[:3] == [None] * 3 else ["n"])
        sizes = ", ".join(next(free) if size is None else str(size) for size in shape)
        return f"`{name}` ({sizes}) {form['dtype']}"

    return "; ".join(one(*item) for item in forms.items())


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"
