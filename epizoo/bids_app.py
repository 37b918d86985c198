"""epizoo as a BIDS App: from raw scans to reports in one call, a participant at a time or all at the end.

Calls for several participants may run side by side in one OUT_DIR: each writes its own subject's folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from epizoo.finished_run import DETECTOR, FinishedRun, open_run
from epizoo.outputs import MAPS, Source, check_folder, check_maker, describe, is_current, score_subject
from epizoo.run_folder import RunFolder
from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import check_writable, hold
from tfds_epilepsy.progress import track
from tfds_epilepsy.volumes import TEMPLATE_SPACE

LEVELS = ("participant", "group")
GIB_A_SUBJECT = 4  # memory that preprocessing a subject may take
TEMPLATE = "template"  # the folder of preprocessed scans, in the working folder


def participant(
    bids_dir: str | Path,
    out_dir: str | Path,
    *,
    labels: Sequence[str] | None = None,
    controls: str | Path | None = None,
    n_procs: int = 1,
    mem: float | None = None,
    work_dir: str | Path | None = None,
) -> list[Path]:
    """Bring participants to the template and, where a fitted run is given, score them and write their pages.

    Args:
        bids_dir: raw scans.
        out_dir: ``sub-*/anat/*`` with maps and clusters (template and own T1w space), ``sub-*/report.html``.
        labels: with or without ``sub-``; all by default.
        controls: a fitted run that the participants are held against; without one they are preprocessed, and
            ``group`` goes on.
        n_procs: participants that are preprocessed side by side, a core each.
        mem: GiB of memory that may be used.
        work_dir: of preprocessed scans; ``OUT_DIR/work`` if left out.

    Returns:
        The pages.

    Raises:
        InputError: what the scans lack, also of the run's modalities; a run of another space or voxel size;
            a folder that holds something else; participants that failed, after all the others.
    """
    from tfds_epilepsy import preprocessing

    jobs = _jobs(n_procs, mem)
    out, template = RunFolder(Path(out_dir)), _template(out_dir, work_dir)
    run = None if controls is None else open_run(controls, needs=[DETECTOR])
    options: dict[str, Any] = {} if run is None else _settings(run)
    found, problems = bids.find_raw_subjects(Path(bids_dir), labels, modalities=options.get("modalities"))
    if problems:
        raise InputError(problems)
    if run is not None:
        check_folder(out.path)
        check_maker(out, run.detector)
        describe(out.path, f"{MAPS} {out.path.absolute().name}", str(bids_dir))
    check_writable(template)
    failed: list[str] = []
    try:
        preprocessing.preprocess(
            bids_dir, template, participant_labels=[one.subject for one in found], jobs=jobs, **options
        )
    except InputError as error:
        failed = error.problems
    done = [one.subject for one in found if (template / f"sub-{one.subject}").is_dir()]
    pages = _score(run, done, template, out) if run is not None and done else []
    if failed:
        raise InputError(failed)
    return pages


def group(
    bids_dir: str | Path,
    out_dir: str | Path,
    *,
    work_dir: str | Path | None = None,
    data_dir: Path | None = None,
) -> Path:
    """Fit on the controls among the participants that were preprocessed, score the others: ``OUT_DIR/run``.

    Returns:
        The report of the cohort.

    Raises:
        InputError: participants of the data set that are not preprocessed yet; what ``epizoo run`` says.
    """
    from epizoo.run import Run
    from epizoo.run_config import RunConfig

    template = _template(out_dir, work_dir)
    found, problems = bids.find_raw_subjects(Path(bids_dir))
    missing = [one.subject for one in found if not (template / f"sub-{one.subject}").is_dir()]
    if missing:
        problems.append(
            f"{template}: {len(missing)} of {len(found)} participants are not preprocessed yet "
            f"(sub-{missing[0]}{', ...' if len(missing) > 1 else ''}); the level 'participant' comes first."
        )
    if problems:
        raise InputError(problems)
    run = Run(RunConfig.resolve(template), Path(out_dir) / "run", data_dir=data_dir)
    run()
    return run.folder.report


def _template(out_dir: str | Path, work_dir: str | Path | None) -> Path:
    return (Path(out_dir) / "work" if work_dir is None else Path(work_dir)) / TEMPLATE


def _jobs(n_procs: int, mem: float | None) -> int:
    if mem is not None and mem < GIB_A_SUBJECT:
        raise InputError(f"--mem {mem:g}: preprocessing a participant may take {GIB_A_SUBJECT} GiB.")
    return n_procs if mem is None else min(n_procs, int(mem / GIB_A_SUBJECT))


def _settings(run: FinishedRun) -> dict[str, Any]:
    """How raw scans must be preprocessed to be what the run was fitted on.

    Raises:
        InputError: the run lies in a space, or was normalised in a way, to which no raw scan can be brought.
    """
    from tfds_epilepsy.preprocessing import settings_of

    if run.space != TEMPLATE_SPACE or run.voxel_size not in (1, 2):
        raise InputError(
            f"{run.folder.path}: was fitted in space {run.space} at {run.voxel_size:g} mm; raw scans are "
            f"brought to {TEMPLATE_SPACE} at 1 or 2 mm. Preprocess its controls with 'epizoo preprocess' and "
            "fit anew."
        )
    stored = settings_of(run.config.data)
    normalisation = stored.get("normalisation") or run.normalisation
    if normalisation not in ("unit", "zscore"):
        raise InputError(
            f"{run.folder.path}: its intensities were matched to a whole cohort, which a new scan cannot be: "
            "preprocess its controls with --normalisation unit and fit anew."
        )
    return {
        "modalities": run.modalities,
        "voxel_size": int(run.voxel_size),
        "normalisation": normalisation,
        "region": stored.get("region", "brain"),
    }


def _score(run: FinishedRun, labels: Sequence[str], template: Path, out: RunFolder) -> list[Path]:
    from epizoo.report.report import patient_report

    found = bids.read_derivative(template, run.modalities, participant_labels=labels)
    source = Source(run.space, found.fingerprint, template)
    pages = []
    with closing(hold(out.path, shared=True)):
        for label in track(labels, "score"):
            subject = bids.read_subject(found.subjects[label], run.modalities)
            if not is_current(run.detector, subject, out, source):
                score_subject(run.detector, subject, out, source)
            pages.append(patient_report(run, subject, out, template))
    return pages
