"""keras-tuner's oracles, which propose what to try, so that they survive kills, keep a budget, and stop."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tfds_epilepsy.files import read_json, write_json

TUNERS = ("random", "bayesian", "hyperband")
FAILURES_IN_A_ROW = 3  # end a search
TRIALS_OF_A_MAJORITY = 5  # a failed majority of fewer trials does not end it


def make_oracle(
    tuner: str,
    *,
    objective: str,
    trials: int,
    epochs: int,
    seed: int,
    space: keras_tuner.HyperParameters | None,
    budget: float | None,
    status_of: Callable[[str], str],
) -> DurableOracle:
    """The oracle of a search.

    Args:
        tuner: one of ``TUNERS``.
        objective: to be maximised.
        trials: how many there are to be, those of earlier calls included.
        epochs: of the longest training that Hyperband gives.
        seed: of the proposals.
        space: what to search; None if build functions say it.
        budget: seconds, those of earlier calls included; None for no end.
        status_of: of a trial that has ended: ``completed``, ``pruned`` or ``failed``.
    """
    arguments: dict[str, Any] = {
        "objective": keras_tuner.Objective(objective, "max"),
        "seed": seed + 1,  # keras-tuner takes 0 for none
        "hyperparameters": space,
        "max_consecutive_failed_trials": 10**9,  # its own check leaves the chief locked (1.4.8)
    }
    oracle: DurableOracle
    if tuner == "random":
        oracle = _Random(max_trials=trials, **arguments)
    elif tuner == "bayesian":
        # keras-tuner's own three per dimension would be more than most searches have; a budget may end any.
        oracle = _Bayesian(max_trials=trials, num_initial_points=min(max(trials // 3, 3), 10), **arguments)
    else:
        oracle = _Hyperband(max_epochs=epochs, hyperband_iterations=10**6, **arguments)
        oracle.max_trials = trials
    oracle.budget, oracle.status_of, oracle.verbose = budget, status_of, 0
    return oracle


def failing(statuses: Sequence[str], *, at_least: int = 1) -> bool:
    """Whether the last trials all failed, or most of them, where there are ``at_least`` so many."""
    failed = [status == "failed" for status in statuses]
    in_a_row = len(failed) >= FAILURES_IN_A_ROW and all(failed[-FAILURES_IN_A_ROW:])
    return in_a_row or (len(failed) >= at_least and sum(failed) > len(failed) / 2)


class DurableOracle(keras_tuner.Oracle):
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
            proposal: dict[str, Any] = super().populate_space(trial_id)
            return proposal

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
        state: dict[str, Any] = super().get_state()
        return {**state, "spent": spent, "seconds": self._seconds}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._before, self._seconds = state["spent"], state["seconds"]

    def reload(self) -> None:
        """The state at the last save; a trial that was being saved then is put right."""
        # keras-tuner finds trials by a glob, which fails in a path with brackets.
        for name in read_json(self._get_oracle_fname())["start_order"]:
            self.trials[name] = Trial.load(str(Path(self._get_trial_dir(name)) / "trial.json"))
        super().reload()
        # One that was saved before the state that knows it will be proposed again.
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
        if failing(statuses[self._first :], at_least=TRIALS_OF_A_MAJORITY):
            return True
        spent = self._before + time.monotonic() - self._started
        typical = statistics.median(self._seconds) if self._seconds else 0.0
        return self.budget is not None and spent + typical > self.budget


class _Random(DurableOracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Hyperband(DurableOracle, keras_tuner.oracles.HyperbandOracle):
    pass


class _Bayesian(DurableOracle, keras_tuner.oracles.BayesianOptimizationOracle):
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

    def _vectorize_trials(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x, y = [], []
        for trial in self.trials.values():
            values = trial.hyperparameters.values
            vector = [hp.value_to_prob(values.get(hp.name, hp.default)) for hp in self._nonfixed_space()]
            x.append(vector)
            y.append(-trial.score if trial.status == "COMPLETED" else math.nan)
        return np.array(x), np.where(np.isnan(y), np.nanmax(y), y)
