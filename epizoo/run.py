"""A run: train, fit, score, evaluate, report, each step once, in a folder that can be resumed."""

from __future__ import annotations

import importlib.metadata
import platform
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from epizoo.detection.tail import LEVEL
from epizoo.finished_run import METRICS, FinishedRun, open_run
from epizoo.method import Scorer, method_of
from epizoo.outputs import Source, describe, score_subject
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from epizoo.run_metadata import SPLITS, Metadata, Step
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import LOCK, check_writable, hold, write_json
from tfds_epilepsy.progress import duration, stderr, track
from tfds_epilepsy.volumes import Subject, read_nifti

if TYPE_CHECKING:
    from epizoo.evaluation import Metrics, Scored
    from epizoo.models.patch_model import PatchModel

PACKAGES = (
    "epizoo",
    "tensorflow",
    "keras",
    "tensorflow-datasets",
    "numpy",
    "scikit-learn",
    "numba",
    "nilearn",
)
ANEW = "or start anew: 'epizoo run' with --overwrite"


class Run:
    """A run in a folder.

    Example:
        >>> settings = RunConfig.resolve(str(derivative_folder), model="none", detector="zscore")
        >>> run = Run(settings, folder / "run", data_dir=data_folder)
        >>> run().patients
        1

    Args:
        config: what to do (``RunConfig.resolve``), or only the data: a config's name or the folder of a
            derivative, with the default model and detector.
        folder: where; made if missing. A folder that holds the same run goes on where it was.
        data_dir: where prepared data sets live; TFDS's default if None.
        overwrite: start anew even where the folder holds a run.

    Raises:
        InputError: the folder holds a run of another configuration, is not a run, or cannot be written;
            another process is at work in it; the data set has problems or too few training controls;
            an unknown model or detector, or a detector that cannot read this model or these modalities. Then
            nothing of a run is written.
    """

    def __init__(
        self,
        config: RunConfig | str | Path,
        folder: str | Path,
        *,
        data_dir: Path | None = None,
        overwrite: bool = False,
        console: Console | None = None,
    ):
        self.config = config if isinstance(config, RunConfig) else RunConfig.resolve(config)
        self.method = method_of(self.config.method)
        self.folder = RunFolder(Path(folder))
        self.console = console or stderr
        self._check_folder(overwrite)
        import tfds_epilepsy

        self.builder = tfds_epilepsy.load(
            self.config.data,
            data_dir,
            self.config.modalities,
            require_controls=True,
            **self.config.reading,
        )
        self._check_data(overwrite)
        if overwrite or not self.folder.config.is_file():
            self.config = self.config.settled(self.builder.modalities, self.builder.voxel_size)
            self.method.check(self)
        else:
            self.config = replace(RunConfig.read(self.folder.config), data=self.config.data)
        weakref.finalize(self, hold(self.folder.path).close)
        if overwrite:
            self.folder.clear()  # after every check: what cannot be made anew is not deleted
        write_json(self.folder.config, self.config.to_json())
        describe(self.folder.path, f"epizoo run {self.folder.path.absolute().name}", self.config.data)
        self._write_metadata()

    @classmethod
    def open(cls, folder: str | Path, *, data_dir: Path | None = None, console: Console | None = None) -> Run:
        """Open an existing run by its folder alone."""
        return cls(RunConfig.read(RunFolder(Path(folder)).config), folder, data_dir=data_dir, console=console)

    @property
    def finished(self) -> bool:
        return self.folder.metrics.is_file() and self.folder.report.is_file()

    @property
    def space(self) -> str:
        """The template space of its maps."""
        return str(self.builder.info.metadata["space"])

    def __call__(self) -> Metrics:
        """Do every step that is not done yet.

        Returns:
            The figures of the test subjects, as in ``metrics.json``.
        """
        if self.finished:
            self.console.print(f"finished already: {self.folder.report}", markup=False)
            return open_run(self.folder.path).metrics
        metrics = self.evaluate()
        self.report()
        return metrics

    def train(self) -> PatchModel | None:
        """Train the encoder, if the method has one."""
        return self.method.train(self)

    def fit(self) -> Scorer:
        """Make what scores the subjects, after training."""
        return self.method.fit(self)

    def score(self) -> None:
        """Write the score map of every validation and test subject, and its clusters."""
        todo = [
            (split, subject)
            for split in ("validation", "test")
            for subject in self.subjects(split)
            if not self.folder.clusters(subject, self.space).is_file()
        ]
        if not todo:
            return
        scorer = self.fit()
        source = Source(self.space, self.builder.fingerprint)
        with self.step("score"):
            for split in ("validation", "test"):
                wanted = [subject for s, subject in todo if s == split]
                for subject in self.progress(self.read(split, wanted), len(wanted), f"score {split}"):
                    score_subject(scorer, subject, self.folder, source)

    def evaluate(self) -> Metrics:
        """Hold the maps of the test subjects, scored where they are not yet, against their lesion masks.

        Returns:
            The figures of the test subjects, as in ``metrics.json``.

        Raises:
            InputError: a detector that saw a test subject.
        """
        from epizoo import evaluation

        self.score()
        evaluation.check_no_leak(self.method.saw(self), self.subjects("test"))
        with self.step("evaluate"):
            threshold = self._threshold()
            test = self.progress(self.read("test"), len(self.subjects("test")), "evaluate")
            metrics = evaluation.evaluate(
                (self._scored(subject) for subject in test),
                threshold=threshold,
                seed=self.config.seed,
                reference=self.builder.reference,
            )
            write_json(self.folder.metrics, metrics)
        return metrics

    def report(self, beside: Sequence[FinishedRun] = ()) -> Path:
        """Write ``report.html``.

        Args:
            beside: other runs of the same test subjects, whose figures it opens with.

        Raises:
            InputError: the run is not evaluated yet; a run beside it has other test subjects.
        """
        from epizoo.report import build_report

        done = open_run(self.folder.path, needs=[METRICS])
        with self.step("report"), self.console.status("report"):
            return build_report(
                done,
                lambda wanted: self.read("test", wanted),
                lambda: self.read("train"),
                beside=beside,
            )

    def _threshold(self) -> float | None:
        """The score that a healthy person has anywhere with probability ``LEVEL``.

        Of a method that does not know it: where validation controls show a cluster each; None without them.
        """
        from epizoo.detection.clusters import calibrate_threshold

        tail = self.method.load(self.folder).tail
        if tail is not None:
            return tail.level(LEVEL)
        controls = [s for s in self.read("validation") if s.group == "control"]
        if not controls:
            return None
        maps = ((self.score_map(control.subject), control.brain_mask) for control in controls)
        return calibrate_threshold(maps, controls[0].affine)

    def read(self, split: str, subjects: Iterable[str] | None = None) -> Iterator[Subject]:
        import tfds_epilepsy

        return tfds_epilepsy.read(self.builder, split, None if subjects is None else list(subjects))

    def subjects(self, split: str) -> list[str]:
        import tfds_epilepsy

        return tfds_epilepsy.subjects(self.builder, split)

    def score_map(self, subject: str) -> NDArray[np.float32]:
        """The score map of a scored subject, ``(x, y, z)``."""
        return read_nifti(self.folder.score_map(subject, self.space))[0]

    def _scored(self, subject: Subject) -> Scored:
        from epizoo.detection.clusters import read_clusters_tsv
        from epizoo.evaluation import Scored

        labels, _ = read_nifti(self.folder.labels(subject.subject, self.space), dtype=np.int32)
        return Scored(
            subject=subject,
            score_map=self.score_map(subject.subject),
            clusters=read_clusters_tsv(self.folder.clusters(subject.subject, self.space)),
            labels=labels,
            strata=self.builder.lesions().get(subject.subject, {}),
        )

    def progress(self, items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        return track(items, description, total, console=self.console)

    def _check_folder(self, overwrite: bool) -> None:
        path = self.folder.path
        is_run = self.folder.config.is_file()
        stored = RunConfig.read(self.folder.config) if is_run and not overwrite else self.config
        if changed := stored.differences(self.config):
            raise InputError(
                f"{path} holds a run of other settings ({'; '.join(changed)}): choose another folder, {ANEW}."
            )
        if not is_run and path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {LOCK}):
            raise InputError(f"{path}: not empty and not a run (no config.json); choose another folder.")
        check_writable(path)

    def _check_data(self, overwrite: bool) -> None:
        if self.folder.metadata.is_file() and not overwrite:
            stored = Metadata.read(self.folder.metadata).data_hash
            if stored != self.builder.fingerprint:
                raise InputError(
                    f"{self.folder.path} was made from other data ({stored} then, {self.builder.fingerprint} "
                    f"now, {self.config.data}): choose another folder, {ANEW}."
                )

    def _write_metadata(self) -> None:
        if self.folder.metadata.is_file():
            return
        from epizoo.evaluation import split_hash

        splits = {split: sorted(self.subjects(split)) for split in SPLITS}
        Metadata(
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
            python=platform.python_version(),
            machine=f"{platform.machine()}, {psutil.cpu_count()} cores, "
            f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
            seed=self.config.seed,
            data_hash=self.builder.fingerprint,
            split_hash=split_hash(splits),
            modalities=list(self.builder.modalities),
            space=self.space,
            splits=splits,
            weights=self.config.origin,
            **self.method.learnt_from(self),
        ).write(self.folder.metadata)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step; its wall time and the process's peak memory in it are recorded and said when it is done."""
        forget_peak()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        peak = peak_gib()
        metadata = Metadata.read(self.folder.metadata)
        before = metadata.steps[name].seconds if name == "score" and name in metadata.steps else 0.0
        step = Step(seconds=round(before + seconds, 1), peak_gib=round(peak, 2))
        metadata.with_step(name, step).write(self.folder.metadata)
        self.console.print(f"{name}: {duration(seconds)}, peak memory {peak:.1f} GiB")


def forget_peak() -> None:
    """Let the peak of the process's memory begin anew, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """The most memory that the process has held since ``forget_peak`` (since its start if not on Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        memory = psutil.Process().memory_info()
        peak = getattr(memory, "peak_wset", None)  # Windows
        return float(peak or _peak_of_posix()) / 2**30
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def _peak_of_posix() -> int:
    """Bytes, as macOS counts them; what is held now where the system tells no peak."""
    try:
        import resource
    except ImportError:
        return int(psutil.Process().memory_info().rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
