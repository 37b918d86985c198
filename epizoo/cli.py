"""The command line: a thin map from subcommand to library call."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from epizoo.screen import command, end, is_verbose, silence_tensorflow
from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    from epizoo.run import Run

LEVELS = ("participant", "group")  # of a BIDS App's analysis


class Grammar(typer.core.TyperGroup):
    """Commands, and beside them the words of a BIDS App: ``epizoo BIDS_DIR OUT_DIR participant ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and set(LEVELS) & set(args):
            args = [APP, *one_by_one(args)]
        return super().parse_args(ctx, args)


APP = "bids-app"


def one_by_one(words: Sequence[str]) -> list[str]:
    """``--participant-label 01 02`` with the option before each, underscores as hyphens.

    Where the option stands before the level, one label alone is its own: the folders follow.
    """
    found: list[str] = []
    listing = level_seen = False
    for word in words:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            found.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
            listing = found[-1] == LABELS
            continue
        if not found or found[-1] != LABELS:
            level_seen = level_seen or (word in LEVELS and not listing)
            if listing and level_seen:
                found.append(LABELS)
        found.append(word)
    return found


LABELS = "--participant-label"

app = typer.Typer(
    name="epizoo",
    cls=Grammar,
    help="Shows where a patient's brain scan does not look like those of healthy people. Research only.\n\n"
    "First try, without any scans: epizoo demo. Your own: epizoo check, epizoo preprocess, epizoo run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _at_home(path: Path | None) -> Path | None:
    """Of an option: no shell expands the ``~`` of ``--data-dir=~/x``."""
    return path and path.expanduser()


Data = Annotated[
    str,
    typer.Argument(help="A folder with a template-space BIDS derivative, or a config's name (phantom_2mm)."),
]
RunDir = Annotated[Path, typer.Argument(help="The folder of the run.")]
Model = Annotated[
    str | None, typer.Option(help="Model of the zoo ('epizoo models' lists them); 'deviation' if left out.")
]
View = Annotated[
    str | None,
    typer.Option(help="What the model's patches are cut from: image or deviations; its own if left out."),
]
Detector = Annotated[
    str | None, typer.Option(help="Detector fitted on the controls' codes; the model's own if left out.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Training epochs; the model's own if left out.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Training steps per epoch; the model's own if left out.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Trained weights in place of training: a name ('epizoo presets' lists them) or a folder, with "
        "the detector of its search unless one is given. The shipped one that fits if left out.",
    ),
]
Train = Annotated[
    bool, typer.Option("--train", help="Train on the own controls, whatever presets there are.")
]
FineTune = Annotated[
    bool, typer.Option("--fine-tune", help="Begin from the preset and train on the own controls.")
]
Seed = Annotated[int, typer.Option(help="Seeds weights, patches, folds and bootstrap.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where prepared data sets live (default: TFDS's own).",
        callback=_at_home,
    ),
]
Modality = Annotated[
    list[str] | None,
    typer.Option(help="Only this file suffix (T1w, SWI, ...), of every subject; several times for several."),
]
Session = Annotated[str | None, typer.Option(help="The one session to take.")]
Filter = Annotated[
    list[str] | None, typer.Option(help="Entity that a modality's file must carry, such as FLAIR:acq-T2sel.")
]
GroupColumn = Annotated[
    str | None, typer.Option(help="Column of participants.tsv that tells controls from patients.")
]
Group = Annotated[
    list[str] | None, typer.Option(help="What a word in that column means, such as typ=control.")
]
Space = Annotated[
    str | None, typer.Option(help="The one space-... of a derivative that holds images in several.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew where the folder holds a run.")]


def main() -> None:
    """Entry point."""
    start(app)


def start(app: typer.Typer) -> None:
    """Run a command line. Exits with 2 on bad input, without a traceback."""
    silence_tensorflow()
    # TensorFlow takes the kernels of oneDNN by itself on some processors only; on others they train up to 2.3
    # times faster too. Side by side they round differently each time: one after the other, they repeat.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    try:
        app()
    except InputError as error:
        if is_verbose():
            traceback.print_exc()
        _refuse(error.problems)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        _refuse([f"{where}cannot be written to ({error.strerror})."])


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"epizoo {importlib.metadata.version('epizoo')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_say_version, help="Say which epizoo this is, and end."
        ),
    ] = False,
) -> None:
    """What stands before any command."""


def reading_of(space: str | None, group_column: str | None, group: list[str] | None) -> dict[str, Any]:
    """How a folder's data are read, where that was said."""
    return _given(space=space, group_column=group_column, groups=_groups(group) or None)


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def _refuse(problems: Sequence[str]) -> NoReturn:
    """List problems of the input and exit with 2."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    count = len(problems)
    console.print(f"[bold red]error[/]: {'the input cannot be used' if count == 1 else f'{count} problems'}")
    for problem in problems:
        console.print(f"  - {problem}", markup=False, soft_wrap=True)
    sys.exit(2)


@command(app)
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the demo.", callback=_at_home)] = Path("demo"),
    data_dir: DataDir = None,
    overwrite: Overwrite = False,
) -> None:
    """The default method on the embedded phantom, beside the siamese reference and a z-score: one report."""
    from epizoo import demo

    demo.run(output, data_dir=data_dir, overwrite=overwrite)
    end(
        None,
        "open the report in a browser; then, with your own scans in BIDS, controls and patients:",
        _typed("check", "BIDS"),
        _typed("preprocess", "BIDS", "DERIVATIVE"),
        _typed("run", "DERIVATIVE", "RUN"),
    )


def _command_of_a_run(
    work: Callable[[Run], Any], ending: Callable[[Path], None], name: str, about: str
) -> None:
    """Add a command that makes a run, or goes on with it, does a part of its work, and says what it made."""

    def of_a_run(
        data: Data,
        out_dir: RunDir,
        model: Model = None,
        detector: Detector = None,
        view: View = None,
        epochs: Epochs = None,
        steps: Steps = None,
        seed: Seed = 0,
        preset: Preset = None,
        train: Train = False,
        fine_tune: FineTune = False,
        modality: Modality = None,
        space: Space = None,
        group_column: GroupColumn = None,
        group: Group = None,
        data_dir: DataDir = None,
        overwrite: Overwrite = False,
    ) -> None:
        from epizoo.run import Run
        from epizoo.run_config import RunConfig

        config = RunConfig.resolve(
            data,
            model=model,
            detector=detector,
            model_config=_given(view=view),
            epochs=epochs,
            steps_per_epoch=steps,
            seed=seed,
            preset=preset,
            train=train,
            fine_tune=fine_tune,
            modalities=modality,
            reading=reading_of(space, group_column, group),
        )
        work(Run(config, out_dir, data_dir=data_dir, overwrite=overwrite))
        ending(out_dir)

    command(app, name, about)(of_a_run)


def _end_of_run(folder: Path) -> None:
    end(
        folder / "report.html",
        "open it in a browser: the figures, and a page for each patient",
        _typed("info", folder) + "  the figures here",
        _typed("score", folder, "OTHER_DERIVATIVE", "MAPS") + "  further patients",
        _typed("export", folder, "EXPORT") + "  for those who have TensorFlow alone",
    )


def _end_of_training(folder: Path) -> None:
    end(
        folder,
        _typed("score", folder) + "  the maps of its own test subjects",
        _typed("score", folder, "OTHER_DERIVATIVE", "MAPS") + "  those of further patients",
    )


_command_of_a_run(
    lambda run: run(),
    _end_of_run,
    "run",
    "Learn from controls, score patients, evaluate and report: all in one.\n\n"
    "First try, without any scans: epizoo run phantom_2mm RUN\n\n"
    "Your own, once 'epizoo preprocess BIDS_DIR DERIVATIVE' is done: epizoo run DERIVATIVE RUN\n\n"
    "Then open RUN/report.html. A killed run goes on with the same command.",
)
_command_of_a_run(
    lambda run: run.fit(),
    _end_of_training,
    "train",
    "The first half of 'run': adapt or train the encoder, and fit the detector on its codes.",
)


@command(app)
def score(
    run_dir: RunDir,
    data: Annotated[
        str | None, typer.Argument(help="Other data to score; the run's own test subjects if left out.")
    ] = None,
    out_dir: Annotated[Path | None, typer.Argument(help="Where the maps of other data go.")] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Also write each map in the subject's own T1w space.")
    ] = False,
    space: Space = None,
    group_column: GroupColumn = None,
    group: Group = None,
    data_dir: DataDir = None,
) -> None:
    """Score maps and clusters of the run's test subjects, or of every subject of other data."""
    from epizoo.outputs import score_cohort
    from epizoo.run import Run

    reading = reading_of(space, group_column, group)
    if data is None and native:
        raise InputError("--native without DATA and OUT_DIR: a run's own maps stay in template space.")
    if data is None and reading:
        raise InputError(f"{', '.join(reading)}: without effect without DATA and OUT_DIR.")
    if data is None:
        Run.open(run_dir, data_dir=data_dir).score()
        end(run_dir, _typed("evaluate", run_dir) + "  holds the maps against the lesion masks")
    elif out_dir is None:
        raise InputError("DATA was given without OUT_DIR: say where its score maps go.")
    else:
        score_cohort(run_dir, data, out_dir, native=native, reading=reading, data_dir=data_dir)
        end(
            out_dir,
            "sub-*/anat/*_desc-clusters.tsv rank what was found, *_statmap.nii.gz open over the images of "
            f"{data} in any viewer",
        )


@command(app)
def evaluate(run_dir: RunDir, data_dir: DataDir = None) -> None:
    """Hold the maps of a scored run against the lesion masks; write metrics.json."""
    from epizoo.run import Run

    run = Run.open(run_dir, data_dir=data_dir)
    run.evaluate()
    end(
        run.folder.metrics,
        _typed("report", run_dir) + "  draws them",
        _typed("info", run_dir) + "  lists them",
    )


@command(app)
def report(
    run_dir: RunDir,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Another evaluated run of the same test subjects, compared at the top."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Write report.html of an evaluated run."""
    from epizoo.finished_run import METRICS, open_run
    from epizoo.run import Run

    others = [open_run(one, needs=[METRICS], data_dir=data_dir) for one in beside or ()]
    end(
        Run.open(run_dir, data_dir=data_dir).report(beside=others),
        "open it in a browser: the figures, and a page for each patient",
    )


@command(app, "import")
def import_(
    dicom_dir: Annotated[Path, typer.Argument(help="DICOM files of one patient, at any depth.")],
    bids_dir: Annotated[Path, typer.Argument(help="Raw BIDS data set that gets the subject.")],
    participant_label: Annotated[
        str | None, typer.Option(help="Of the subject, in place of a pseudonym made with the key.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Label, for scans of another day.")] = None,
    group: Annotated[str, typer.Option(help="patient or control.")] = "patient",
    take: Annotated[
        list[str] | None, typer.Option(help="What a series is: 3=FLAIR, 4=none; several times for several.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="File of the pseudonyms' secret key; one of this account if left out.")
    ] = None,
    look: Annotated[bool, typer.Option("--look", help="Show what would be taken, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the subject's scans.")] = False,
) -> None:
    """A scanner's files to BIDS under a pseudonym: shows which series is the T1w, the FLAIR, the PET."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tfds_epilepsy.dicom import import_dicom

    imported = import_dicom(
        dicom_dir,
        bids_dir,
        participant_label=participant_label,
        session=session,
        group=group,
        overrides=_series(take),
        key=key,
        look=look,
        overwrite=overwrite,
    )
    rows = [{name: str(value) for name, value in choice.row().items()} for choice in imported.choices]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(escape, row.values()), style="bold" if row["taken as"] != "none" else "dim")
    Console().print(table)
    if imported.others:
        typer.echo(f"{imported.others} files are no DICOM images.")
    if look:
        typer.echo("Nothing was written. --take NUMBER=T1w (FLAIR, pet, none) says what a series is.")
        return
    for path in imported.files:
        typer.echo(path)
    end(
        bids_dir,
        _typed("check", bids_dir) + "  lists its subjects",
        _typed("preprocess", bids_dir, "DERIVATIVE") + "  brings them to template space",
    )


@command(app)
def preprocess(
    bids_dir: Annotated[Path, typer.Argument(help="Raw BIDS data set.")],
    out_dir: Annotated[Path, typer.Argument(help="Where the template-space derivative goes.")],
    participant_label: Annotated[
        list[str] | None, typer.Option(help="Only these subjects (without sub-).")
    ] = None,
    modality: Modality = None,
    session: Session = None,
    filter: Filter = None,
    group_column: GroupColumn = None,
    group: Group = None,
    voxel_size: Annotated[int, typer.Option(help="Template voxels in mm: 1 or 2.")] = 2,
    skull: Annotated[str, typer.Option(help="auto, stripped or whole: what the scans show.")] = "auto",
    region: Annotated[str, typer.Option(help="brain, or cerebrum: no cerebellum, no brain stem.")] = "brain",
    normalisation: Annotated[
        str, typer.Option(help="unit, zscore, or match (to training controls).")
    ] = "unit",
    jobs: Annotated[int, typer.Option(min=1, help="Subjects side by side.")] = 1,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make finished subjects anew.")] = False,
) -> None:
    """Raw scans to template space: N4, brain mask, registration. Restarts where it was killed."""
    from tfds_epilepsy import preprocessing

    preprocessing.preprocess(
        bids_dir,
        out_dir,
        participant_labels=participant_label,
        modalities=modality,
        session=session,
        filters=_filters(filter),
        group_column=group_column,
        groups=_groups(group),
        voxel_size=voxel_size,
        skull=skull,
        region=region,
        normalisation=normalisation,
        jobs=jobs,
        seed=seed,
        overwrite=overwrite,
    )
    end(
        out_dir,
        f"look at every registration: {out_dir / 'quality.html'}",
        _typed("run", out_dir, "RUN") + "  learns the controls, and scores the others",
    )


@command(app, APP)
def bids_app(
    bids_dir: Annotated[Path, typer.Argument(help="Raw BIDS data set.")],
    out_dir: Annotated[Path, typer.Argument(help="Where maps, clusters and pages go.")],
    level: Annotated[str, typer.Argument(help="participant or group.")],
    participant_label: Annotated[
        list[str] | None, typer.Option(help="Only these participants (without sub-).")
    ] = None,
    controls: Annotated[
        Path | None, typer.Option(help="A fitted run that participants are held against.")
    ] = None,
    n_procs: Annotated[int, typer.Option(min=1, help="Participants preprocessed side by side.")] = 1,
    mem: Annotated[
        float | None, typer.Option("--mem", "--mem-gb", help="GiB of memory that may be used.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option("-w", "--work-dir", help="Of preprocessed scans; OUT_DIR/work if left out.")
    ] = None,
) -> None:
    """As a BIDS App: 'epizoo BIDS_DIR OUT_DIR participant' takes raw scans to reports in one call.

    participant: preprocess; with --controls RUN also score, and write each patient's page.
    group: fit on the preprocessed controls, score and report the patients.
    """
    from epizoo.bids_app import group, participant

    if level not in LEVELS:
        raise InputError(f"level {level!r}: participant or group.")
    if level == "group":
        given = _given(participant_label=participant_label, controls=controls, mem=mem)
        if given or n_procs > 1:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given) or "--n-procs"
            raise InputError(f"{names}: without effect on the level group.")
        end(group(bids_dir, out_dir, work_dir=work_dir), "open it in a browser")
        return
    pages = participant(
        bids_dir,
        out_dir,
        labels=participant_label,
        controls=controls,
        n_procs=n_procs,
        mem=mem,
        work_dir=work_dir,
    )
    for page in pages:
        typer.echo(page)
    if not pages:
        end(None, _typed(bids_dir, out_dir, "group") + "  fits on the controls, and reports the patients")


@command(app)
def phantom(
    out_dir: Annotated[Path, typer.Argument(help="Where the cohort goes, as a template-space derivative.")],
    voxel_size: Annotated[int, typer.Option(help="1 or 2 mm.")] = 2,
    visible: Annotated[bool, typer.Option("--visible", help="Lesions that a reader would see.")] = False,
    contrast: Annotated[float, typer.Option(help="Of the lesions; 0 leaves no sign of them.")] = 1.0,
    second_site: Annotated[float, typer.Option(help="Share of subjects from another scanner.")] = 0.0,
    pet: Annotated[bool, typer.Option("--pet", help="PET as a third modality.")] = False,
    seed: Seed = 0,
) -> None:
    """Write a synthetic cohort as BIDS, to try everything on files."""
    from tfds_epilepsy.phantom import PhantomConfig, write_bids

    modalities = ("T1w", "FLAIR", "pet") if pet else ("T1w", "FLAIR")
    config = PhantomConfig(
        voxel_size=voxel_size,
        seed=seed,
        modalities=modalities,
        visible=visible,
        contrast=contrast,
        second_site=second_site,
    )
    write_bids(config, out_dir)
    end(
        out_dir,
        _typed("check", out_dir) + "  lists its subjects",
        _typed("run", out_dir, "RUN") + "  finds its lesions",
    )


@command(app)
def implant(
    derivative: Annotated[Path, typer.Argument(help="A template-space derivative.")],
    out_dir: Annotated[Path, typer.Argument(help="Where the derivative with lesions goes.")],
    participant_label: Annotated[list[str] | None, typer.Option(help="Controls that get a lesion.")] = None,
    visible: Annotated[bool, typer.Option("--visible", help="Lesions that a reader would see.")] = False,
    contrast: Annotated[float, typer.Option(help="Of the lesions; 0 leaves no sign of them.")] = 1.0,
    seed: Seed = 0,
    modality: Modality = None,
    space: Space = None,
    group_column: GroupColumn = None,
    group: Group = None,
) -> None:
    """Put lesions in your own held-out controls: a validation where no annotated patient exists."""
    from tfds_epilepsy.lesions import implant_in_dataset

    implant_in_dataset(
        derivative,
        out_dir,
        subjects=participant_label,
        visible=visible,
        contrast=contrast,
        seed=seed,
        modalities=modality,
        **reading_of(space, group_column, group),
    )
    end(out_dir, _typed("run", out_dir, "RUN") + "  says how many of the lesions are found")


@command(app)
def check(
    bids_dir: Annotated[Path, typer.Argument(help="Raw BIDS scans, or a template-space derivative.")],
    modality: Modality = None,
    session: Session = None,
    filter: Filter = None,
    space: Space = None,
    group_column: GroupColumn = None,
    group: Group = None,
    training: Annotated[
        bool, typer.Option("--training", help="Fewer than 3 training controls are a problem too.")
    ] = False,
) -> None:
    """List the subjects of a data set, their files, and every problem.

    First try, on a folder of raw scans: epizoo check BIDS_DIR

    Before 'epizoo run': epizoo check DERIVATIVE --training

    Nothing is changed. Each problem says the file and what to do; with a problem the exit status is 2.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tfds_epilepsy import bids
    from tfds_epilepsy.progress import stderr

    with stderr.status(escape(f"reading every voxel of {bids_dir}")):
        found = bids.check(
            bids_dir,
            modalities=modality,
            session=session,
            filters=_filters(filter),
            space=space,
            group_column=group_column,
            groups=_groups(group),
            require_controls=training,
        )
    table = Table(*(found.rows[0] if found.rows else ()), title=escape(f"{bids_dir}: {found.kind}"))
    for row in found.rows:
        table.add_row(*map(escape, row.values()))
    Console().print(table)
    for note in found.notes:
        typer.echo(note)
    if found.problems:
        typer.echo(found.summary)
        raise InputError(found.problems)
    if found.kind == "raw":
        end(found.summary, _typed("preprocess", bids_dir, "DERIVATIVE") + "  brings them to template space")
    else:
        end(found.summary, _typed("run", bids_dir, "RUN") + "  learns the controls, and scores the others")


@command(app)
def export(
    run_dir: RunDir,
    out_dir: Annotated[Path, typer.Argument(help="Where the export goes.")],
    what: Annotated[
        str, typer.Option(help="encoder: patches or volumes to codes; pipeline: volumes to the score map.")
    ] = "encoder",
    format: Annotated[str, typer.Option(help="savedmodel, onnx or tflite.")] = "savedmodel",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16, of an encoder.")] = "float32",
    normalisation: Annotated[
        str | None, typer.Option(help="unit, zscore or none: of raw intensities, if the run's data are gone.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that exists.")] = False,
) -> None:
    """A finished run for other teams: needs nothing but TensorFlow, or an ONNX or TFLite runtime."""
    from rich.markup import escape

    from epizoo.export import export_run
    from tfds_epilepsy.progress import stderr

    with stderr.status(escape(f"exporting the {what} of {run_dir}")):
        folder = export_run(
            run_dir,
            out_dir,
            what=what,
            format=format,
            precision=precision,
            normalisation=normalisation,
            overwrite=overwrite,
        )
    end(folder, f"it gives what the run gives; {folder / 'model_card.md'} says how to use it")


@command(app)
def benchmark(
    data: Data,
    out_dir: Annotated[Path, typer.Argument(help="A run folder for each method is made in it.")],
    models: Annotated[list[str] | None, typer.Option(help="Models of the zoo; all by default.")] = None,
    detectors: Annotated[
        list[str] | None, typer.Option(help="Detectors on their codes; each model's own by default.")
    ] = None,
    baselines: Annotated[
        list[str] | None, typer.Option(help="Classical detectors on intensities; all by default.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Trained weights, a name or a folder, that get a row too: adapted, not trained."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="Runs of each model; 0: baselines and a preset alone.")
    ] = 3,
    supervised: Annotated[
        int,
        typer.Option(min=0, help="Annotated patients that the supervised reference learns from; 0: none."),
    ] = 60,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Controls alone: cross-validate over them, with lesions implanted in those held out."
        ),
    ] = None,
    epochs: Epochs = None,
    modality: Modality = None,
    space: Space = None,
    group_column: GroupColumn = None,
    group: Group = None,
    data_dir: DataDir = None,
) -> None:
    """Every model with every detector, every classical baseline, the supervised reference: one table.

    A killed benchmark goes on with the same command.
    """
    from epizoo.benchmark import benchmark

    benchmark(
        data,
        out_dir,
        models or None,
        detectors or (),
        baselines or None,
        preset=preset,
        seeds=seeds,
        supervised=supervised,
        folds=folds,
        epochs=epochs,
        modalities=modality,
        reading=reading_of(space, group_column, group),
        data_dir=data_dir,
    )
    end(
        out_dir / "leaderboard.html",
        "open it in a browser; a run in it gets a report of its own by",
        _typed("report", out_dir / "RUN"),
    )


@command(app)
def models() -> None:
    """The zoo: parameters, receptive field, FLOPs per voxel, paper."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from epizoo.models import describe

    rows = describe()
    figures, papers = Table(box=box.SIMPLE, padding=(0, 1, 0, 0)), Table.grid(padding=(0, 2))
    for name in [name for name in rows[0] if name != "paper"]:
        figures.add_column(name, no_wrap=name == "model")
    for row in rows:
        papers.add_row(row["model"], row["paper"])
        figures.add_row(*(str(value) for name, value in row.items() if name != "paper"))
    console = Console()
    console.print(figures)
    console.print(papers)
    end(None, _typed("run", "DATA", "RUN", "--model", "NAME") + "  trains one")


@command(app)
def presets() -> None:
    """Trained weights that epizoo ships, for 'epizoo run --preset': what each is for, and its figures."""
    from rich.console import Console
    from rich.table import Table

    from epizoo.presets import shipped

    table = Table("preset", "modalities", "voxels", "weights", "controls", "licence")
    console, found = Console(), shipped()
    for preset in found:
        table.add_row(
            preset.name,
            ", ".join(preset.modalities or ()),
            f"{preset.voxel_size:g} mm",
            f"{preset.parameters:,}",
            f"{preset.fewest_controls} or more",
            preset.licence,
        )
    console.print(table)
    for preset in found:
        console.print(f"{preset.name}: trained on {preset.trained_on}", markup=False, soft_wrap=True)
        for data, figures in (preset.figures or {}).items():
            measured = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
            console.print(f"    {data}: {measured}", markup=False, soft_wrap=True)
    end(None, _typed("run", "DATA", "RUN", "--preset", "NAME") + "  uses one")


@command(app)
def info(run_dir: RunDir) -> None:
    """What a run is, what it used, and what it found."""
    from rich.console import Console

    from epizoo.evaluation.side_by_side import as_table
    from epizoo.finished_run import open_run

    console = Console()
    run = open_run(run_dir, needs=[])
    for name, value in run.describe().items():
        console.print(f"{name:20} {value}", highlight=False, markup=False)
    if run.has_metrics:
        console.print(as_table({run.name: run.metrics}))
        end(None, _typed("report", run_dir) + "  draws them")
    else:
        end(None, _typed("score", run_dir) + " and " + _typed("evaluate", run_dir) + "  complete it")


def _filters(words: list[str] | None) -> dict[str, dict[str, str]]:
    """``FLAIR:acq-T2sel`` -> ``{"FLAIR": {"acq": "T2sel"}}``."""
    filters: dict[str, dict[str, str]] = {}
    for word in words or ():
        modality, _, entity = word.partition(":")
        key, _, value = entity.partition("-")
        if not (modality and key and value):
            raise InputError(f"--filter {word!r}: write modality:entity-value, such as FLAIR:acq-T2sel.")
        filters.setdefault(modality, {})[key] = value
    return filters


def _series(words: list[str] | None) -> dict[int, str]:
    """``3=FLAIR`` -> ``{3: "FLAIR"}``."""
    if wrong := [word for word in words or () if not re.fullmatch(r"[0-9]+=\w+", word)]:
        raise InputError(f"--take {', '.join(map(repr, wrong))}: write a series' number and a kind: 3=FLAIR.")
    return {int(number): kind for number, kind in (word.split("=") for word in words or ())}


def _typed(*words: object) -> str:
    """A command of ``epizoo``, as it is typed in a shell."""
    return shlex.join(["epizoo", *map(str, words)])


def _given(**options: Any) -> dict[str, Any]:
    """Those that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _groups(words: list[str] | None) -> dict[str, str]:
    """``typ=control`` -> ``{"typ": "control"}``."""
    if wrong := [word for word in words or () if "=" not in word]:
        raise InputError(f"--group {', '.join(map(repr, wrong))}: write word=control or word=patient.")
    return dict(word.rsplit("=", 1) for word in words or ())
