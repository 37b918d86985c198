"""Encoders and pipelines for other teams: folders that need nothing but TensorFlow (or an ONNX runtime).

``encoder`` and ``pipeline`` say what is exported, ``formats`` how it is written, ``folder`` what lies beside
it: card, metadata, a script that uses it, test vectors and the script that checks them (``verify``).
"""

from __future__ import annotations

from pathlib import Path

from epizoo.detection import FittedDetector
from epizoo.export.encoder import export_encoder
from epizoo.export.folder import check_target
from epizoo.export.made_from import facts_of
from epizoo.export.pipeline import export_pipeline
from epizoo.finished_run import open_run
from epizoo.maps.image import Image
from epizoo.run_config import NORMATIVE
from tfds_epilepsy.errors import InputError

__all__ = ["export_encoder", "export_pipeline", "export_run"]

WHAT = ("encoder", "pipeline")


def export_run(
    run_dir: str | Path,
    folder: str | Path,
    *,
    what: str = "encoder",
    format: str = "savedmodel",
    precision: str = "float32",
    normalisation: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Export what a finished run has made.

    Example:
        >>> out = export_run(run_folder, folder / "run_export", what="pipeline")
        >>> sorted(path.name for path in out.glob("*.py"))
        ['use_it.py', 'verify.py']

    Args:
        run_dir: its folder.
        folder: where the export goes; appears once it is whole and gives what the run gives.
        what: ``encoder`` (see ``export_encoder``) or ``pipeline`` (see ``export_pipeline``).
        format: ``savedmodel``, ``onnx`` or ``tflite``; a pipeline is a SavedModel.
        precision: of an encoder: ``float32``, or ``bfloat16`` (half the size).
        normalisation: how raw intensities become those of the run's data: ``unit`` or ``zscore`` (see
            ``tfds_epilepsy.volumes.normalise``), or ``none`` where that is learnt from a cohort. By default
            what the run's data say.
        overwrite: replace a folder that exists.

    Returns:
        The folder.

    Raises:
        InputError: a run that is not finished or damaged; a folder that exists; what cannot be exported in
            this form.
    """
    folder = Path(folder)
    problems = check_target(folder, format, overwrite)
    if what not in WHAT:
        problems.append(f"what={what!r}: choose one of {', '.join(WHAT)}.")
    if what == "pipeline":
        problems += [
            f"{name} {value!r}: a pipeline is exported as {name} {only!r}."
            for name, value, only in (("format", format, "savedmodel"), ("precision", precision, "float32"))
            if value != only
        ]
    try:
        run = open_run(run_dir)
        how = normalisation or run.normalisation
        if run.config.method != NORMATIVE:
            problems.append(
                f"{run_dir}: a supervised reference is a bound to compare with, and not exported."
            )
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    if what == "encoder":
        model = run.model
        if model is None:
            raise InputError(
                f"{run.folder.path}: a baseline on intensities has no encoder to export; "
                "export its pipeline (--what pipeline)."
            )
        view = model.view_of(model.view, run.modalities)
        from_image = isinstance(view, Image)
        return export_encoder(
            model,
            folder,
            modalities=view.names,
            normalisation=how if from_image else "none",
            voxel_size=run.voxel_size,
            format=format,
            precision=precision,
            run=facts_of(run),
            overwrite=overwrite,
        )
    detector = run.detector
    assert isinstance(detector, FittedDetector)  # a supervised one is refused above
    return export_pipeline(
        detector,
        folder,
        modalities=run.modalities,
        normalisation=how,
        run=facts_of(run),
        overwrite=overwrite,
    )
