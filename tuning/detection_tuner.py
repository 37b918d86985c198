"""DetectionTuner: keras-tuner's search, each trial judged by the lesions that it finds.

keras-tuner proposes (random search, Bayesian optimisation, Hyperband), shares the work between processes and
machines (chief and workers), and keeps the order of trials. What it does not do is here: one process per
trial, state that survives a kill at any moment, failures that end the search, a budget of time.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import math
import os
import shlex
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import keras_tuner
import numpy as np
import psutil
from keras_tuner.engine import base_tuner
from rich.console import Console
from rich.status import Status
from threadpoolctl import threadpool_limits

from epizoo import models
from epizoo.evaluation import compare
from epizoo.run_config import RunConfig
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json, write_text
from tuning import leaderboard, spaces
from tuning.cases import Visible, write_cases
from tuning.trial import OBJECTIVES, Result, SearchFailed, Spec, supervise
from tuning.trial import score as score_of

TUNERS = ("random", "bayesian", "hyperband")
FAILURES = 3  # so many failed trials in a row end a search
FEWEST = 5  # ended trials before a failed majority ends it
HOPELESS = 2.0  # a trial is given up when its label-free figure is so many times the median of the others,
EARLIER = 4  # of which there must be so many
SEEDS = 3  # of the confirmation


class DetectionTuner(base_tuner.BaseTuner):
    """Searches an architecture, its training and its detector for what detects lesions best.

    >>> tuner = DetectionTuner("phantom_2mm", "search", model="bigan", trials=30)  # doctest: +SKIP
    >>> tuner.search()  # doctest: +SKIP
    >>> tuner.confirm()["difference"]  # doctest: +SKIP

    A model of your own: a function ``build(hp)`` in a file, that returns a ``PatchModel`` or any compiled
    Keras model that is fed patches, gives them back, and has an attribute ``encoder`` (input a patch, output
    its code). What it asks of ``hp`` is searched; ``detector``, ``nu``, ``k`` and ``fwhm`` mean what they do
    in ``tuning.spaces``.

    The folder keeps everything: called again with the same arguments, the search goes on. With the variables
    of keras-tuner's distributed mode set (``KERASTUNER_TUNER_ID``, ``..._ORACLE_IP``, ``..._ORACLE_PORT``) it
    is the chief or a worker; all see the folder.

    Args:
        data: a config's name or a template-space derivative.
        folder: of the search; made if missing.
        model: name in the zoo; or
        build: a function of a file, see above.
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
        data_dir: where prepared data sets live.
        console: where progress is shown; stderr if None.

    Raises:
        InputError: arguments or data that cannot be used, all named at once; a folder that holds another
            search, or in which one is at work.
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
        data_dir: str | Path | None = None,
        console: Console | None = None,
    ):
        _check(model, build, tuner, trials, objective, epochs)
        batch_size = batch_size or RunConfig.resolve(data, model=model or "siamese").batch_size
        self.folder = Path(folder).absolute()
        self._check_folder()
        self.console = console or Console(stderr=True)
        self.trials, self.workers, self.trial_seconds = trials, workers, trial_seconds
        self.trial_gib = trial_gib or 0.8 * psutil.virtual_memory().available / 2**30 / workers
        self.cohort = Visible(data, data_dir)
        if len(self.cohort.subjects("train")) < 2:
            raise InputError(f"{data}: at least 2 training controls are needed.")
        space = keras_tuner.HyperParameters()
        if model is not None:
            spaces.declare(spaces.space_of(model), space)
        oracle = _oracle(tuner, objective, trials, epochs, seed, space if model is not None else None)
        oracle.budget, oracle.status_of = budget, lambda trial: self._stored(trial).get("status", "failed")
        oracle.verbose = 0
        super().__init__(oracle, hypermodel=build, directory=str(self.folder), project_name="oracle")
        self._space = list(oracle.hyperparameters.space)
        self.spec = Spec(
            data=data if not Path(data).is_dir() else str(Path(data).absolute()),
            data_dir=None if data_dir is None else str(Path(data_dir).absolute()),
            fingerprint=self.cohort.fingerprint,
            cases=str(self.folder / "validation"),
            model=model,
            build=None if build is None else _where(build),
            objective=objective,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            seed=seed,
        )
        self._lock: IO[str] | None = None
        identity = {
            "model": model or _digest(inspect.getsource(build)),  # type: ignore[arg-type]
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
            SearchFailed: three trials failed in a row, or most of them.
        """
        super().search(*fit_args, **fit_kwargs)
        if not self._distributed:
            self.check_outcome()
        return self.records()

    def records(self) -> list[Result]:
        """One record a trial, in their order: ``trial``, ``values``, and its ``result.json``."""
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
        if records and _failing([record["status"] for record in records], fewest=1):
            raise SearchFailed(
                f"{self.folder}: the search ended because its trials fail; logs are in trials/*/log.txt.\n"
                + _reasons(records)
            )

    def confirm(self, seeds: int = SEEDS) -> dict[str, Any]:
        """Train the winner and the default architecture on other seeds, and compare them case by case.

        Returns:
            The content of ``confirmation.json``: of ``best`` and ``default`` the ``scores`` a seed with mean
            and standard deviation; ``noise``, the standard deviation of the objective from seed to seed,
            pooled; and ``difference``, best less default over cases, with its 95 % interval and p.

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
            result = supervise(spec, folder, seconds=self.trial_seconds, gib=self.trial_gib)
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
        content = _comparison(results, contenders, self.spec.objective)
        write_json(self.folder / "confirmation.json", content)
        return content

    def report(self, seeds: int = SEEDS, command: str = "") -> Path:
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
        self._write_best(command)
        if seeds:
            self.confirm(seeds)
        page = leaderboard.write(self.folder, self.records(), self.spec.objective)
        self.console.print(f"best: {self.folder / 'best'}\nleaderboard: {page}", highlight=False)
        return page

    def close(self) -> None:
        """Let another search have the folder; ending the process does it too."""
        if self._lock is not None:
            self._lock.close()

    # === keras-tuner ===

    def run_trial(self, trial: Any, *fit_args: Any, **fit_kwargs: Any) -> dict[str, float]:
        folder = self.folder / "trials" / trial.trial_id
        order = {hp.name: i for i, hp in enumerate(self._space)}  # gRPC sorts a space by type
        values = dict(
            sorted(trial.hyperparameters.values.items(), key=lambda one: order.get(one[0], len(order)))
        )
        begun = values.get("tuner/trial_id")
        spec = replace(
            self._spec(values, seed=self.spec.seed, epochs=values.get("tuner/epochs", self.spec.epochs)),
            hyperparameters=trial.hyperparameters.get_config() if self.spec.build else {},
            limits=self._limits(),
            begun=None if begun is None or self.spec.build else str(self.folder / "trials" / begun),
        )
        # Two workers would write over each other's line.
        status = None if self._distributed else Status("", console=self.console)

        def watch(stage: str, gib: float) -> None:
            if status is not None:
                status.update(f"trial {trial.trial_id}, {self.trials} in all: {stage}, {gib:.1f} GiB")

        with status or nullcontext():
            result = supervise(spec, folder, seconds=self.trial_seconds, gib=self.trial_gib, watch=watch)
        self.console.print(f"trial {trial.trial_id}: {_outcome(result, spec.objective)}", highlight=False)
        if result["status"] != "completed":
            raise keras_tuner.errors.FailedTrialError(result["reason"])
        return {spec.objective: result["figures"][spec.objective]}

    def _try_run_and_update_trial(self, trial: Any, *fit_args: Any, **fit_kwargs: Any) -> None:
        """As keras-tuner's, but only a failed trial is one: what else goes wrong ends the search."""
        try:
            self._run_and_update_trial(trial, *fit_args, **fit_kwargs)
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

    def _write_best(self, command: str) -> None:
        """``best/``: the winner with its weights, its spec, and what repeats it; anew after every search."""
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
        lines += ["This trial alone:", f"    python -m tuning.trial {folder / 'spec.json'} FOLDER"]
        if self.spec.model is not None:
            data = shlex.quote(self.spec.data)
            lines += [
                "On the test subjects:",
                f"    epizoo run {data} RUN --preset {shlex.quote(str(folder))}",
            ]
        write_text(folder / "README.md", "\n\n".join(lines) + "\n")

    def _write_preset(self, trial: Path, folder: Path) -> None:
        """The model of a trial's folder as a preset, with the detector that it was judged with."""
        shutil.rmtree(folder, ignore_errors=True)
        if (trial / "encoder.keras").is_file():
            folder.mkdir()
            shutil.copyfile(trial / "encoder.keras", folder / "encoder.keras")
        else:
            models.load_model(trial / "model.keras").save_preset(folder)
        name, options, fwhm = spaces.detector_config(read_json(trial / "spec.json")["values"])
        chosen = {"detector": name, "config": options, "fwhm": fwhm}
        write_json(folder / "detector.json", {**chosen, "trained_on": self.cohort.subjects("train")})

    @property
    def _distributed(self) -> bool:
        return "KERASTUNER_ORACLE_IP" in os.environ

    def _spec(self, values: Mapping[str, Any], *, seed: int, epochs: int) -> Spec:
        return replace(self.spec, values=dict(values), seed=seed, epochs=int(epochs))

    def _default_values(self) -> dict[str, Any]:
        """Those of ``hp`` of a user's model; of a zoo model its own architecture, with its own detector."""
        if self.spec.model is not None:
            default = RunConfig.resolve(self.spec.data, model=self.spec.model)
            return {"detector": default.detector, "fwhm": default.fwhm}
        hp = keras_tuner.HyperParameters()
        self.hypermodel.build(hp)
        return dict(hp.values)

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
            epoch: HOPELESS * statistics.median(seen)
            for epoch, seen in shares.items()
            if len(seen) >= EARLIER
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
            self._lock = (self.folder / ".lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"{self.folder}: another search is at work in it; wait for its end."
                ) from error
        if not path.is_file():
            write_json(path, identity)


# === Oracles ===


class _Durable(keras_tuner.Oracle):
    """An oracle whose state is whole at any moment, that keeps a budget, and that stops when trials fail."""

    budget: float | None = None
    status_of: Callable[[str], str]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.trials: dict[str, Any]
        self._before, self._started = 0.0, time.monotonic()
        self._begun: dict[str, float] = {}
        self._seconds: list[float] = []
        self._first = 0  # trials that ended in earlier calls

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self._enough():
            return {"status": "STOPPED", "values": None}
        with warnings.catch_warnings(), threadpool_limits(1):  # threads would wait for each other here
            warnings.simplefilter("ignore")  # the Gaussian process' hints at its bounds
            return super().populate_space(trial_id)

    def create_trial(self, tuner_id: str) -> Any:
        trial = super().create_trial(tuner_id)
        self._begun[trial.trial_id] = time.monotonic()
        return trial

    def end_trial(self, trial: Any) -> None:
        if trial.trial_id in self._begun:
            self._seconds.append(time.monotonic() - self._begun[trial.trial_id])
        super().end_trial(trial)

    def save(self) -> None:
        write_json(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def get_state(self) -> dict[str, Any]:
        spent = self._before + time.monotonic() - self._started
        return {**super().get_state(), "spent": spent, "seconds": self._seconds}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._before, self._seconds = state["spent"], state["seconds"]

    def reload(self) -> None:
        """The state at the last save; a trial that was being saved then is put right."""
        super().reload()
        # Saved on its own before the state that knows it: it will be proposed again.
        self.trials = {name: self.trials[name] for name in self.start_order}
        self._retry_queue = []
        for name in reversed(self.start_order):  # the queue is taken from its end
            trial = self.trials[name]
            if name in self.end_order:
                continue
            if trial.status in ("COMPLETED", "FAILED"):
                self.end_order.append(name)
            else:
                trial.metrics = type(trial.metrics)()
                self._retry_queue.append(name)
        self._first = len(self.end_order)

    def _enough(self) -> bool:
        statuses = [self.status_of(name) for name in self.end_order]
        if _failing(statuses[self._first :], fewest=FEWEST):
            return True
        spent = self._before + time.monotonic() - self._started
        typical = statistics.median(self._seconds) if self._seconds else 0.0
        return self.budget is not None and spent + typical > self.budget


class _Random(_Durable, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Hyperband(_Durable, keras_tuner.oracles.HyperbandOracle):
    pass


class _Bayesian(_Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Trials that are at work, failed or were given up count as the worst so far (the constant liar of
    Ginsbourger et al. 2010), so that they are not proposed again; resumed, it proposes what it would have.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        self._random_state = np.random.RandomState((self.seed + len(self.trials)) % 2**32)
        proposal = super().populate_space(trial_id)
        if proposal["values"] is not None and self._duplicate(proposal["values"]):
            values = self._random_values()
            return {"status": "RUNNING" if values else "STOPPED", "values": values}
        return proposal

    def _make_gpr(self) -> Any:
        process = super()._make_gpr()
        process.n_restarts_optimizer = 2  # its kernel has one parameter; keras-tuner's 20 take seconds
        return process

    def _vectorize_trials(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = [], []
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            vector = [hp.value_to_prob(values.get(hp.name, hp.default)) for hp in self._nonfixed_space()]
            x.append(vector)
            y.append(-trial.score if trial.status == "COMPLETED" else math.nan)
        return np.array(x), np.where(np.isnan(y), np.nanmax(y), y)


def _oracle(tuner: str, objective: str, trials: int, epochs: int, seed: int, space: Any) -> _Durable:
    arguments: dict[str, Any] = {
        "objective": keras_tuner.Objective(objective, "max"),
        "seed": seed + 1,  # keras-tuner takes 0 for none
        "hyperparameters": space,
        "max_consecutive_failed_trials": 10**9,  # its own check leaves the chief locked (1.4.8)
    }
    if tuner == "random":
        return _Random(max_trials=trials, **arguments)
    if tuner == "bayesian":
        # keras-tuner's own three a dimension would be more than most searches have; a budget may end any.
        return _Bayesian(max_trials=trials, num_initial_points=min(max(trials // 3, 3), 10), **arguments)
    oracle = _Hyperband(max_epochs=epochs, hyperband_iterations=10**6, **arguments)
    oracle.max_trials = trials
    return oracle


# === Helpers ===


def _failing(statuses: Sequence[str], *, fewest: int) -> bool:
    """Whether the last three failed, or most of at least ``fewest``."""
    failed = [status == "failed" for status in statuses]
    in_a_row = len(failed) >= FAILURES and all(failed[-FAILURES:])
    return in_a_row or (len(failed) >= fewest and sum(failed) > len(failed) / 2)


def _comparison(
    results: Mapping[tuple[str, int], Result], contenders: Mapping[str, Any], objective: str
) -> dict[str, Any]:
    """Figures of a confirmation; a case's figure is averaged over the seeds before it is compared."""
    content: dict[str, Any] = {"objective": objective}
    by_case: dict[str, dict[str, float]] = {}
    for name, values in contenders.items():
        runs = [result["cases"] for (who, _), result in results.items() if who == name]
        scores = [score_of(rows, objective) for rows in runs]
        content[name] = {
            "values": values,
            "scores": scores,
            "mean": float(np.mean(scores)),
            "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan,
        }
        by_case[name] = {
            row["case"]: float(np.mean([_number(rows[i][objective]) for rows in runs]))
            for i, row in enumerate(runs[0])
        }
    (difference,) = compare(by_case, "default")
    content["noise"] = math.sqrt((content["best"]["sd"] ** 2 + content["default"]["sd"] ** 2) / 2)
    content["difference"] = {**vars(difference.difference), "p": difference.p}
    return content


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _outcome(result: Result, objective: str) -> str:
    if result["status"] == "completed":
        figure = f"{objective} {result['figures'][objective]:.4f}"
    else:
        figure = f"{result['status']}: {result['reason']}"
    return f"{figure} ({result['seconds']:.0f} s, {result['peak_gib']:.1f} GiB)"


def _reasons(records: Sequence[Result]) -> str:
    return "\n".join(f"  {r['trial']}: {r['reason']}" for r in records if r["status"] == "failed")


def _where(build: Callable[[Any], Any]) -> str:
    path = inspect.getsourcefile(build)
    if path is None or "<locals>" in build.__qualname__ or "." in build.__qualname__:
        raise InputError(f"build {build!r}: a function at the top of a file is needed; trials import it.")
    return f"{Path(path).absolute()}:{build.__qualname__}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(model: str | None, build: Any, tuner: str, trials: int, objective: str, epochs: int) -> None:
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
