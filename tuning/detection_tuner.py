"""DetectionTuner: keras-tuner's search, each trial judged by the lesions that it finds.

keras-tuner proposes (random search, Bayesian optimisation, Hyperband), shares the work between processes and
machines (chief and workers), and keeps the order of trials. ``oracles.py`` and ``process.py`` hold what it
does not do: a process for each trial, state that survives a kill at any moment, failures that end the search,
a budget of time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import keras
import keras_tuner
import psutil
from keras_tuner.engine import base_tuner
from rich.console import Console
from rich.status import Status

from epizoo import models
from epizoo.run_config import RunConfig
from tfds_epilepsy.bids.participants import control_problems
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json, write_text
from tfds_epilepsy.progress import stderr

from . import builds, leaderboard, spaces
from .cases import Visible, write_cases
from .confirmation import comparison
from .oracles import TUNERS, failing, make_oracle
from .process import INSIDE, supervise, try_out
from .trial import OBJECTIVES, Result, SearchFailed, Spec

CONFIRMATION_SEEDS = 3
# A trial is given up when its label-free figure has kept this many times the median share of at least so many
# earlier trials.
GIVE_UP_FACTOR = 2.0
GIVE_UP_AFTER = 4

_locks: dict[Path, IO[str]] = {}  # of the folders of searches in this process


class DetectionTuner(base_tuner.BaseTuner):
    """Searches an architecture, its training and its detector for what detects lesions best.

    >>> tuner = DetectionTuner("phantom_2mm", "search", model="bigan", trials=30)  # doctest: +SKIP
    >>> tuner.search()  # doctest: +SKIP
    >>> tuner.confirm()["difference"]  # doctest: +SKIP

    A model of your own: a function ``build(hp)`` or a ``keras_tuner.HyperModel``, which returns a
    ``PatchModel`` or any compiled Keras model that is fed patches, gives them back, and has an attribute
    ``encoder`` (input a patch, output its code). What it asks of ``hp`` is searched; ``detector``, ``nu``,
    ``k`` and ``fwhm`` choose the detector, as in ``epizoo.models.search_space``. It is taken to the processes
    of the trials as it is now, with the values that it reads of your script or notebook, and is tried out in
    one before the first trial.

    The folder keeps everything: called again with the same arguments, the search goes on. With the variables
    of keras-tuner's distributed mode set (``KERASTUNER_TUNER_ID``, ``..._ORACLE_IP``, ``..._ORACLE_PORT``) it
    is the chief or a worker; all see the folder.

    Args:
        data: a config's name or a template-space derivative.
        folder: of the search; made if missing.
        model: name in the zoo; or
        build: a function of ``hp``, see above.
        tuner: ``random``, ``bayesian`` or ``hyperband``.
        trials: how many, those of earlier calls included.
        objective: one of ``tuning.trial.OBJECTIVES``.
        budget: seconds, those of earlier calls included: no trial starts that, going by the median, would end
            later.
        epochs, steps_per_epoch, batch_size: the training of a trial; Hyperband gives most fewer epochs. A
            batch is by default that of ``epizoo run``.
        seed: of proposals, weights, patches and implanted lesions.
        trial_seconds: a trial that takes longer fails.
        trial_gib: a trial that needs more memory fails; by default what is free, shared by ``workers``.
        workers: trials at a time on this machine that memory is shared by, and that confirm.
        reading: how a folder is read: ``modalities``, ``space``, ``group_column``, ``groups``, as in
            ``tfds_epilepsy.load``.
        data_dir: where prepared data sets live.
        console: where progress is shown; stderr if None.

    Raises:
        InputError: arguments or data that cannot be used, all named at once; a folder that holds another
            search, or in which another process is at work.
    """

    def __init__(
        self,
        data: str,
        folder: str | Path,
        *,
        model: str | None = None,
        build: Callable[[Any], Any] | None = None,
        tuner: str = "random",
        trials: int = 20,
        objective: str = OBJECTIVES[0],
        budget: float | None = None,
        epochs: int = 4,
        steps_per_epoch: int = 250,
        batch_size: int | None = None,
        seed: int = 0,
        trial_seconds: float = 1800,
        trial_gib: float | None = None,
        workers: int = 1,
        reading: Mapping[str, Any] | None = None,
        data_dir: str | Path | None = None,
        console: Console | None = None,
    ):
        _check(model, build, tuner, trials, objective, epochs)
        hypermodel = None if build is None else builds.hypermodel_of(build)
        # A model that a script registered is one that its trials have to be told of.
        own = any(registry.registered for registry in builds.REGISTRIES)
        self._packed = builds.pack(hypermodel) if own or hypermodel is not None else None
        batch_size = batch_size or RunConfig.resolve(data, model=model or "siamese").batch_size
        self.folder = Path(folder).absolute()
        self._check_folder()
        self.console = console or stderr
        self.trials, self.workers, self.trial_seconds = trials, workers, trial_seconds
        self.trial_gib = trial_gib or 0.8 * psutil.virtual_memory().available / 2**30 / workers
        reading = dict(reading or {})
        self.cohort = Visible(data, data_dir, **reading)
        problems = control_problems(data, len(self.cohort.subjects("train")))
        if problems:
            raise InputError(problems)
        space = keras_tuner.HyperParameters()
        if model is not None:
            spaces.declare(spaces.space_of(model), space)
        oracle = make_oracle(
            tuner,
            objective=objective,
            trials=trials,
            epochs=epochs,
            seed=seed,
            space=space if model is not None else None,
            budget=budget,
            status_of=lambda trial: self._stored(trial).get("status", "failed"),
        )
        super().__init__(oracle, hypermodel=hypermodel, directory=str(self.folder), project_name="oracle")
        if hypermodel is not None and self._packed is not None and not self._is_worker():
            try_out(hypermodel, self._packed, len(self.cohort.modalities))
        self._space = list(oracle.hyperparameters.space)
        self.spec = Spec(
            data=data if not Path(data).is_dir() else str(Path(data).absolute()),
            data_dir=None if data_dir is None else str(Path(data_dir).absolute()),
            fingerprint=self.cohort.fingerprint,
            cases=str(self.folder / "validation"),
            model=model,
            objective=objective,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            seed=seed,
            reading=reading,
        )
        self._lock: IO[str] | None = None
        identity = {
            "model": model or _digest(builds.text_of(build)),
            "space": _digest(json.dumps(oracle.hyperparameters.get_config()["space"], sort_keys=True)),
            "cohort": self.cohort.fingerprint,
            "tuner": tuner,
            "objective": objective,
            "training": [epochs, steps_per_epoch, batch_size],
            "seed": seed,
        }
        try:
            self._take_up(identity)
            if not self._is_worker():
                write_cases(self.cohort, Path(self.spec.cases), seed)
                if Path(oracle._get_oracle_fname()).is_file():
                    oracle.reload()
                oracle.save()
        except BaseException:
            self.close()
            raise

    # === What users call ===

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> list[Result]:
        """Run trials until there are enough, the budget is spent, or they fail.

        Returns:
            The records of all trials, as ``records``.

        Raises:
            InputError: arguments, which keras-tuner's own tuners hand on to ``fit``; the folder is closed.
            SearchFailed: three trials failed in a row, or most of them.
        """
        if fit_args or fit_kwargs:
            raise InputError(
                "search() takes no arguments: data, epochs, steps_per_epoch and batch_size are given to "
                "DetectionTuner, and callbacks have no place in a trial."
            )
        if self._lock is not None and self._lock.closed:
            raise InputError(f"{self.folder}: closed, or a later DetectionTuner has it; make a new one.")
        super().search()
        if not self._distributed:
            self.check_outcome()
        return self.records()

    def records(self) -> list[Result]:
        """One record per trial, in their order: ``trial``, ``values``, and its ``result.json``."""
        records = []
        for folder in sorted((self.folder / "trials").glob("*/"), key=lambda path: int(path.name)):
            if (folder / "result.json").is_file():
                values = read_json(folder / "spec.json")["values"]
                records.append({"trial": folder.name, "values": values, **read_json(folder / "result.json")})
        return records

    def best(self) -> Result:
        """The record of the best trial.

        Raises:
            SearchFailed: no trial was completed.
        """
        completed = [record for record in self.records() if record["status"] == "completed"]
        if not completed:
            raise SearchFailed(f"no trial was completed in {self.folder}:\n{_reasons(self.records())}")
        return max(completed, key=lambda record: record["figures"][self.spec.objective])

    def check_outcome(self) -> None:
        """Raise if the search ended because of its failures.

        Raises:
            SearchFailed: the last three trials failed, or most of all.
        """
        records = self.records()
        if records and failing([record["status"] for record in records]):
            raise SearchFailed(
                f"{self.folder}: the search ended because its trials fail; logs are in trials/*/log.txt.\n"
                + _reasons(records)
            )

    def confirm(self, seeds: int = CONFIRMATION_SEEDS) -> dict[str, Any]:
        """Train the winner and the default architecture on other seeds, and compare them case by case.

        Returns:
            The content of ``confirmation.json``: for ``best`` and ``default`` the ``scores`` per seed with
            their mean and standard deviation; ``noise``, the standard deviation of the objective from seed to
            seed, pooled; and ``difference``, best less default over cases, with its 95 % interval and p.

        Raises:
            SearchFailed: a confirmation failed.
        """
        contenders = {"best": self.best()["values"], "default": self._default_values()}
        contenders = {name: spaces.without_tuner(values) for name, values in contenders.items()}
        jobs = [(name, seed) for seed in range(1, seeds + 1) for name in contenders]

        def job(one: tuple[str, int]) -> Result:
            name, number = one
            values = contenders[name]
            spec = self._spec(values, seed=self.spec.seed + number, epochs=self.spec.epochs)
            folder = self.folder / "confirmation" / f"{name}-{number}"
            result = self._supervise(spec, folder)
            self.console.print(f"confirmation, {name}, seed {number}: {_outcome(result, spec.objective)}")
            return result

        with ThreadPoolExecutor(self.workers) as pool:
            results = dict(zip(jobs, pool.map(job, jobs), strict=True))
        failed = [f"{name}, seed {k}: {r['reason']}" for (name, k), r in results.items() if "cases" not in r]
        if failed:
            raise SearchFailed("the confirmation failed:\n" + "\n".join(failed))
        for name, number in jobs:
            trial = self.folder / "confirmation" / f"{name}-{number}"
            if not (trial / "preset").is_dir():
                self._write_preset(trial, trial / "preset")
        content = comparison(results, contenders, self.spec.objective)
        write_json(self.folder / "confirmation.json", content)
        return content

    def report(self, seeds: int = CONFIRMATION_SEEDS, command: str = "") -> Path:
        """Write ``best/``, confirm the winner, and write ``leaderboard.tsv`` and ``leaderboard.html``.

        Args:
            seeds: of the confirmation; 0 for none.
            command: that repeats the search, for ``best/README.md``.

        Returns:
            The page. The chief and the workers of a distributed search leave it to a process that is neither.

        Raises:
            SearchFailed: no trial was completed, or the confirmation failed.
        """
        if self._distributed:
            return self.folder / "leaderboard.html"
        best, confirmation = self._write_best(command), self.folder / "confirmation.json"
        if confirmation.is_file() and read_json(confirmation)["best"]["values"] != best:
            confirmation.unlink()  # of an earlier winner
        page = leaderboard.write(self.folder, self.records(), self.spec.objective)
        if seeds:
            self.confirm(seeds)
            leaderboard.write(self.folder, self.records(), self.spec.objective)
        self.console.print(
            f"best: {self.folder / 'best'}\nleaderboard: {page}", highlight=False, markup=False
        )
        return page

    def close(self) -> None:
        """Let another search have the folder; ending the process does it too."""
        if self._lock is not None:
            self._lock.close()

    # === keras-tuner ===

    def load_model(self, trial: Any) -> keras.Model:
        """The trained model of a trial, for ``get_best_models``; of a plain Keras model its encoder."""
        folder = self.folder / "trials" / trial.trial_id
        encoder = folder / "encoder.keras"
        if encoder.is_file():
            return keras.saving.load_model(encoder)
        return models.load_model(folder / "model.keras")

    def run_trial(self, trial: Any) -> dict[str, float]:
        folder = self.folder / "trials" / trial.trial_id
        order = {hp.name: i for i, hp in enumerate(self._space)}  # gRPC sorts a space by type
        values = dict(
            sorted(trial.hyperparameters.values.items(), key=lambda one: order.get(one[0], len(order)))
        )
        begun = values.get("tuner/trial_id")
        spec = replace(
            self._spec(values, seed=self.spec.seed, epochs=values.get("tuner/epochs", self.spec.epochs)),
            limits=self._limits(),
            begun=None if begun is None or self.spec.model is None else str(self.folder / "trials" / begun),
        )
        # Two workers would write over each other's line.
        status = None if self._distributed else Status("", console=self.console)

        def watch(stage: str, gib: float) -> None:
            if status is not None:
                status.update(f"trial {trial.trial_id}, {self.trials} in all: {stage}, {gib:.1f} GiB")

        with status or nullcontext():
            result = self._supervise(spec, folder, watch=watch)
        self.console.print(f"trial {trial.trial_id}: {_outcome(result, spec.objective)}", highlight=False)
        if result["status"] != "completed":
            raise keras_tuner.errors.FailedTrialError(result["reason"])
        return {spec.objective: result["figures"][spec.objective]}

    def _try_run_and_update_trial(self, trial: Any) -> None:
        """As keras-tuner's, but only a failed trial is one: what else goes wrong ends the search."""
        try:
            self._run_and_update_trial(trial)
            trial.status = "COMPLETED"
        except keras_tuner.errors.FailedTrialError as error:
            trial.status, trial.message = "FAILED", str(error)

    def pre_create_trial(self) -> None:
        if self._distributed:
            time.sleep(0.2)  # an idle worker asks again and again

    def on_trial_end(self, trial: Any) -> None:
        self.oracle.end_trial(trial)  # which saves

    def save(self) -> None:
        if not self._is_worker():
            self.oracle.save()

    def _get_tuner_fname(self) -> str:
        return str(self.folder / "oracle" / "no-state-of-its-own")

    # === Helpers ===

    def _write_best(self, command: str) -> dict[str, Any]:
        """``best/``: the winner with its weights, its spec, and what repeats it; anew after every search.

        Returns:
            The winner's values.
        """
        best = self.best()
        trial, folder = self.folder / "trials" / best["trial"], self.folder / "best"
        self._write_preset(trial, folder)
        shutil.copyfile(trial / "spec.json", folder / "spec.json")
        score = best["figures"][self.spec.objective]
        lines = [
            f"Trial {best['trial']}, the best of {len(self.records())}: {self.spec.objective} {score:.4f} on "
            "validation subjects."
        ]
        if command:
            lines += [f"The search, from {Path.cwd()}:", f"    {command}"]
        spec = shlex.quote(str(folder / "spec.json"))
        lines += ["This trial alone:", f"    python -m {__package__}.trial {spec} FOLDER"]
        if self.spec.model is not None:
            data = shlex.quote(self.spec.data)
            lines += [
                "On the test subjects:",
                f"    epizoo run {data} RUN --preset {shlex.quote(str(folder))}",
            ]
        write_text(folder / "README.md", "\n\n".join(lines) + "\n")
        return spaces.without_tuner(best["values"])

    def _write_preset(self, trial: Path, folder: Path) -> None:
        """The model of a trial's folder as a preset, with the detector that it was judged with."""
        shutil.rmtree(folder, ignore_errors=True)
        if (trial / "encoder.keras").is_file():
            folder.mkdir()
            shutil.copyfile(trial / "encoder.keras", folder / "encoder.keras")
        else:
            model = models.load_model(trial / "model.keras")
            model.save_preset(folder, subjects=self.cohort.subjects("train"))
        name, options, fwhm = spaces.detector_config(read_json(trial / "spec.json")["values"])
        write_json(folder / "detector.json", {"detector": name, "config": options, "fwhm": fwhm})

    @property
    def _distributed(self) -> bool:
        return "KERASTUNER_ORACLE_IP" in os.environ

    def _supervise(
        self, spec: Spec, folder: Path, watch: Callable[[str, float], None] = lambda stage, gib: None
    ) -> Result:
        return supervise(
            spec, folder, seconds=self.trial_seconds, gib=self.trial_gib, build=self._packed, watch=watch
        )

    def _spec(self, values: Mapping[str, Any], *, seed: int, epochs: int) -> Spec:
        return replace(self.spec, values=dict(values), seed=seed, epochs=int(epochs))

    def _default_values(self) -> dict[str, Any]:
        """Those of ``hp`` of a user's model; of a zoo model its own architecture, with its own detector."""
        if self.spec.model is not None:
            default = RunConfig.resolve(self.spec.data, model=self.spec.model)
            return {"detector": default.detector, "fwhm": default.fwhm}
        return builds.make(self.hypermodel, {})[1]

    def _stored(self, trial: str) -> Result:
        path = self.folder / "trials" / trial / "result.json"
        return read_json(path) if path.is_file() else {}

    def _limits(self) -> dict[str, float]:
        """By epoch, the share of the first figure above which a trial is hopeless."""
        shares: dict[str, list[float]] = {}
        for record in self.records():
            if record.get("first"):
                for row in record["history"]:
                    shares.setdefault(f"{row['epoch']:g}", []).append(row["figure"] / record["first"])
        return {
            epoch: GIVE_UP_FACTOR * statistics.median(seen)
            for epoch, seen in shares.items()
            if len(seen) >= GIVE_UP_AFTER
        }

    def _check_folder(self) -> None:
        """Refuse a folder with other things; what a search leaves that was killed as it began is none."""
        if self.folder.exists() and not (self.folder / "search.json").is_file():
            names = {path.name for path in self.folder.iterdir()} - {"oracle", ".lock"}
            if any(not name.startswith(".partial-") for name in names):
                raise InputError(f"{self.folder}: not empty and no search (no search.json); choose another.")

    def _take_up(self, identity: dict[str, Any]) -> None:
        """Begin in the folder, or go on with the search that it holds."""
        path = self.folder / "search.json"
        identity = json.loads(json.dumps(identity))
        if path.is_file():
            stored = read_json(path)
            changed = [
                f"{key} {stored.get(key)!r} then, {value!r} now"
                for key, value in identity.items()
                if stored.get(key) != value
            ]
            if changed:
                raise InputError(
                    f"{self.folder} holds another search ({'; '.join(changed)}), whose trials would not "
                    "compare: choose another folder."
                )
        elif self._is_worker():
            raise InputError(f"{self.folder}: no search to work for; start the chief first.")
        if not self._distributed:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder in _locks:  # the cell of a notebook that is run again
                _locks.pop(self.folder).close()
            self._lock = (self.folder / ".lock").open("w")
            try:
                import fcntl

                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass  # Windows: nobody is kept out
            except OSError as error:
                raise InputError(
                    f"{self.folder}: another search is at work in it; wait for its end."
                ) from error
            _locks[self.folder] = self._lock
        if not path.is_file():
            write_json(path, identity)


# === Helpers ===


def _outcome(result: Result, objective: str) -> str:
    if result["status"] == "completed":
        figure = f"{objective} {result['figures'][objective]:.4f}"
    else:
        figure = f"{result['status']}: {result['reason']}"
    return f"{figure} ({result['seconds']:.0f} s, {result['peak_gib']:.1f} GiB)"


def _reasons(records: Sequence[Result]) -> str:
    return "\n".join(f"  {r['trial']}: {r['reason']}" for r in records if r["status"] == "failed")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(model: str | None, build: Any, tuner: str, trials: int, objective: str, epochs: int) -> None:
    if INSIDE in os.environ:
        raise InputError(
            "a trial's process began a search, because it imports the module that build stands in: put the "
            "search under if __name__ == '__main__', or run that module as the script."
        )
    problems = []
    if (model is None) == (build is None):
        problems.append("either a model of the zoo or a build function is needed.")
    if model is not None:
        try:
            spaces.space_of(model)
        except InputError as error:
            problems += error.problems
    if tuner not in TUNERS:
        problems.append(f"unknown tuner {tuner!r}: choose one of {', '.join(TUNERS)}.")
    if objective not in OBJECTIVES:
        problems.append(f"unknown objective {objective!r}: choose one of {', '.join(OBJECTIVES)}.")
    if trials < 1 or epochs < 1:
        problems.append(f"trials {trials}, epochs {epochs}: at least 1 of each is needed.")
    if problems:
        raise InputError(problems)
