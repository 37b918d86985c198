"""The search: proposals, failures, kills, budget, workers, and what it leaves."""

import fcntl
import json
import math
import re
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from rich.console import Console

from epizoo.models.search_space import CODE, DETECTOR, RATE
from epizoo.registry import MODELS
from epizoo.run import Run
from epizoo.run_config import RunConfig
from tests.scripts import run_script
from tests.small_cohort import write_cohort
from tests.tuning_cheap import cheap
from tests.tuning_kills import kill_often
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json
from tuning import DetectionTuner, cases, detection_tuner, leaderboard, oracles, search, trial
from tuning.trial import SearchFailed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_cohort(tmp_path_factory.mktemp("cohort")))


@pytest.fixture(scope="module")
def cohort(data, data_dir):
    return cases.Visible(data, data_dir)


@pytest.fixture
def make(cohort, data, data_dir, monkeypatch):
    """Tuners whose trials cost nothing, on a small space: a Gaussian process takes its time."""
    monkeypatch.setattr(MODELS.get("siamese"), "search_space", (CODE, RATE, *DETECTOR[:2]))
    monkeypatch.setattr(detection_tuner, "Visible", lambda *_: cohort)
    monkeypatch.setattr(detection_tuner, "supervise", cheap)
    opened = []

    def make(folder, **options):
        options = {"model": "siamese", "trials": 5, "console": Console(quiet=True), **options}
        for earlier in opened:
            earlier.close()
        tuner = DetectionTuner(data, folder, data_dir=data_dir, **options)
        opened.append(tuner)
        return tuner

    yield make
    for tuner in opened:
        tuner.close()


def found(tuner):
    return [(record["trial"], record["values"], record["status"]) for record in tuner.records()]


def failing(*numbers):
    """Trials of these numbers fail; one at -1 is given up."""

    def supervise(spec, folder, **_):
        result = cheap(spec, folder)
        if int(folder.name) in numbers:
            result = {"status": "failed", "reason": "no luck", "seconds": 1.0, "peak_gib": 0.1}
            (folder / "result.json").write_text(json.dumps(result))
        return result

    return supervise


# === Proposals ===


@pytest.mark.parametrize("tuner", detection_tuner.TUNERS)
def test_each_tuner_runs_its_trials_and_follows_its_seed(make, tmp_path, tuner):
    searched = make(tmp_path / "a", tuner=tuner, trials=6)
    assert len(searched.search()) == 6
    again = make(tmp_path / "b", tuner=tuner, trials=6)
    again.search()
    assert found(again) == found(searched)
    other = make(tmp_path / "c", tuner=tuner, trials=6, seed=1)
    other.search()
    assert found(other) != found(searched)


def test_bayesian_search_learns_where_it_is_good(make, tmp_path):
    tuner = make(tmp_path / "s", tuner="bayesian", trials=18)
    scores = [record["figures"]["detection_auc"] for record in tuner.search()]
    assert np.mean(scores[10:]) > np.mean(scores[:6])
    configurations = {json.dumps(record["values"], sort_keys=True) for record in tuner.records()}
    assert len(configurations) == 18


def test_bayesian_search_goes_on_past_failed_trials(make, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_tuner, "supervise", failing(1, 4, 7))
    statuses = [record["status"] for record in make(tmp_path, tuner="bayesian", trials=10).search()]
    assert statuses.count("failed") == 3
    assert len(statuses) == 10


def test_hyperband_goes_on_with_the_training_of_its_best(make, tmp_path):
    make(tmp_path, tuner="hyperband", trials=12, epochs=9).search()
    specs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("trials/*/spec.json"))]
    later = [spec for spec in specs if spec["begun"]]
    assert later
    for spec in later:
        before = json.loads((Path(spec["begun"]) / "spec.json").read_text())
        assert before["epochs"] < spec["epochs"]
        assert before["values"]["learning_rate"] == spec["values"]["learning_rate"]


def test_trials_are_held_against_the_median_of_earlier_ones(make, tmp_path):
    tuner = make(tmp_path, trials=6)
    tuner.search()
    specs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("trials/*/spec.json"))]
    figures = [record["history"][0]["figure"] for record in tuner.records()]
    assert [spec["limits"] for spec in specs[:4]] == [{}] * 4
    assert specs[4]["limits"] == {"1": pytest.approx(2 * np.median(figures[:4]))}
    assert specs[5]["limits"] == {"1": pytest.approx(2 * np.median(figures[:5]))}


# === Failures ===


def test_a_failed_trial_is_recorded_and_the_search_goes_on(make, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_tuner, "supervise", failing(1))
    records = make(tmp_path).search()
    assert [record["status"] for record in records] == ["completed", "failed", *["completed"] * 3]
    assert records[1]["reason"] == "no luck"


def test_three_failures_in_a_row_end_the_search(make, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_tuner, "supervise", failing(2, 3, 4))
    tuner = make(tmp_path, trials=20)
    with pytest.raises(SearchFailed, match="no luck"):
        tuner.search()
    assert len(tuner.records()) == 5


def test_a_failed_majority_ends_the_search(make, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_tuner, "supervise", failing(0, 1, 3, 4))
    tuner = make(tmp_path, trials=20)
    with pytest.raises(SearchFailed, match="its trials fail"):
        tuner.search()
    assert len(tuner.records()) == 5


def test_trials_that_were_given_up_are_no_failures(make, tmp_path, monkeypatch):
    def supervise(spec, folder, **_):
        result = {**cheap(spec, folder), "status": "pruned", "reason": "given up after epoch 1"}
        (folder / "result.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(detection_tuner, "supervise", supervise)
    tuner = make(tmp_path)
    assert len(tuner.search()) == 5
    with pytest.raises(SearchFailed, match="no trial was completed"):
        tuner.report()


# === Kills ===


class Killed(BaseException):
    pass


@pytest.mark.parametrize("tuner", detection_tuner.TUNERS)
def test_killed_at_any_write_it_goes_on_as_if_nothing_had_been(make, tmp_path, monkeypatch, tuner):
    options = {"tuner": tuner, "trials": 4, "epochs": 3}
    whole = make(tmp_path / "whole", **options)
    whole.search()
    write = write_json
    for point in range(1, 40, 1 if tuner == "random" else 7):
        writes = 0

        def dying(path, content, point=point):
            nonlocal writes
            writes += 1
            if writes == point:
                raise Killed
            return write(path, content)

        for module in (detection_tuner, oracles):
            monkeypatch.setattr(module, "write_json", dying)
        folder = tmp_path / f"killed{point}"
        killed = False
        try:
            make(folder, **options).search()
        except Killed:
            killed = True
        for module in (detection_tuner, oracles):
            monkeypatch.setattr(module, "write_json", write)
        resumed = make(folder, **options)
        if killed:
            resumed.search()
        assert found(resumed) == found(whole), point
        if not killed:
            break
    assert point > 12
    assert not killed  # every write has been the last one


@pytest.mark.slow
def test_killed_at_random_moments_a_search_goes_on(data, data_dir, tmp_path):
    """``python -m tests.tuning_kills`` does it as often as you like."""
    assert kill_often(tmp_path, data, data_dir, moments=2, trials=2) >= 1


def test_killed_in_its_first_trial_the_search_repeats_that_trial(make, tmp_path, monkeypatch):
    specs = []

    def supervise(spec, folder, **_):
        specs.append(spec)
        raise Killed

    monkeypatch.setattr(detection_tuner, "supervise", supervise)
    with pytest.raises(Killed):
        make(tmp_path).search()
    monkeypatch.setattr(detection_tuner, "supervise", cheap)
    records = make(tmp_path).search()
    assert len(records) == 5
    assert records[0]["values"] == specs[0].values


def test_a_finished_search_can_be_made_longer(make, tmp_path):
    folder = tmp_path / "my search [1]"
    first = make(folder, trials=9).search()
    longer = make(folder, trials=12).search()
    assert len(longer) == 12
    assert longer[:9] == first


def test_trials_read_a_folder_as_the_search_was_told(make, cohort, tmp_path, monkeypatch):
    given, told = [], {"modalities": ["T1w"], "group_column": "arm"}
    monkeypatch.setattr(detection_tuner, "Visible", lambda *_, **reading: given.append(reading) or cohort)
    monkeypatch.setattr(cases, "Visible", lambda *_, **reading: given.append(reading) or cohort)
    tuner = make(tmp_path, reading=told)
    with pytest.raises(InputError, match="has changed"):
        trial.run(replace(tuner.spec, fingerprint="other"), tmp_path / "trial")
    assert given == [told, told]


# === Another search, another folder ===


def test_another_space_cohort_or_objective_is_refused(make, cohort, tmp_path, monkeypatch):
    make(tmp_path, trials=1).search()
    for changes in ({"model": "wae"}, {"objective": "detection_auprc"}, {"epochs": 7}, {"seed": 3}):
        with pytest.raises(InputError, match="holds another search"):
            make(tmp_path, **changes)
    monkeypatch.setattr(MODELS.get("siamese"), "search_space", (CODE, RATE))
    with pytest.raises(InputError, match="space"):
        make(tmp_path)


def test_a_cohort_that_has_changed_is_refused(make, tmp_path, monkeypatch):
    make(tmp_path, trials=1).search()
    monkeypatch.setattr(cases.Visible, "fingerprint", "other")
    with pytest.raises(InputError, match="cohort"):
        make(tmp_path)


def test_a_folder_with_other_things_is_not_touched(make, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no search"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_searches_do_not_share_a_folder(make, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:  # as another process has it
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="at work"):
            make(tmp_path)


def test_a_notebooks_cell_can_be_run_again(data, data_dir, make, tmp_path):
    first = make(tmp_path, trials=2)
    first.search()
    again = DetectionTuner(data, tmp_path, model="siamese", trials=3, data_dir=data_dir)
    assert len(again.search()) == 3
    again.close()
    for closed in (first, again):
        with pytest.raises(InputError, match="make a new one"):
            closed.search()


def test_all_bad_arguments_are_named_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        DetectionTuner("x", tmp_path, model="no", tuner="grid", objective="luck", trials=0)
    assert len(error.value.problems) == 4


def test_arguments_of_keras_tuners_search_are_refused(make, tmp_path):
    with pytest.raises(InputError, match="given to DetectionTuner"):
        make(tmp_path).search(np.zeros(3), epochs=50)


def test_a_search_inside_a_trial_says_where_it_comes_from(make, tmp_path, monkeypatch):
    """A module that begins a search when it is imported, as trials import it."""
    monkeypatch.setenv("EPIZOO_TRIAL", "1")
    with pytest.raises(InputError, match="__main__"):
        make(tmp_path)


def test_a_space_with_fewer_configurations_than_trials_ends(make, tmp_path, monkeypatch):
    monkeypatch.setattr(MODELS.get("siamese"), "search_space", (CODE,))
    monkeypatch.setattr(detection_tuner, "supervise", without_rate)
    assert 1 <= len(make(tmp_path, trials=30).search()) <= len(CODE.values)


def without_rate(spec, folder, **_):
    return cheap(replace(spec, values={**spec.values, "learning_rate": 1e-3}), folder)


# === Budget ===


def test_no_trial_starts_that_would_end_past_the_budget(make, tmp_path, monkeypatch):
    def slow(spec, folder, **_):
        time.sleep(0.3)
        return cheap(spec, folder)

    monkeypatch.setattr(detection_tuner, "supervise", slow)
    started = time.monotonic()
    records = make(tmp_path, trials=100, budget=2).search()
    assert 1 <= len(records) <= 6
    assert time.monotonic() - started < 5
    assert len(make(tmp_path, trials=100, budget=0.1).search()) == len(records)  # it is spent


def test_durations():
    assert [search.duration(text) for text in ("90s", "20m", "1.5 h")] == [90, 1200, 5400]
    for text in ("2", "soon", "0m", "-1h"):
        with pytest.raises(InputError, match="20m"):
            search.duration(text)


# === Workers ===


def test_a_chief_and_two_workers_share_a_search(data, data_dir, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    DetectionTuner(data, folder, model="siamese", trials=9, data_dir=data_dir).close()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = str(ROOT / "tests" / "tuning_cheap.py")
    search.run_workers(2, [sys.executable, script, data, str(data_dir), str(folder), "9"], folder)
    records = sorted(folder.glob("trials/*/result.json"))
    assert len(records) == 9
    assert all(json.loads(path.read_text())["status"] == "completed" for path in records)
    values = {json.dumps(json.loads((p.parent / "spec.json").read_text())["values"]) for p in records}
    assert len(values) == 9
    by = [path.name for path in folder.glob("trials/*/by-*")]
    assert len(by) == 9  # no trial twice
    assert set(by) == {"by-tuner0", "by-tuner1"}
    state = json.loads((folder / "oracle" / "oracle.json").read_text())
    assert sorted(state["end_order"]) == [str(i) for i in range(9)]


def test_a_worker_without_a_chief_says_so(make, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "tuner0")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "9")
    with pytest.raises(InputError, match="start the chief"):
        make(tmp_path)


# === What it leaves ===


def test_the_winner_is_confirmed_against_the_default_with_an_interval(make, tmp_path, monkeypatch):
    def noisy(spec, folder, **_):
        level = 0.7 if "learning_rate" in spec.values else 0.6
        figures = [level + 0.01 * spec.seed, level + 0.1]
        result = {
            "status": "completed",
            "figures": {"detection_auc": np.mean(figures)},
            "cases": [{"case": f"w{i}", "detection_auc": f} for i, f in enumerate(figures)],
            "seconds": 1.0,
            "peak_gib": 1.0,
        }
        return result

    tuner = make(tmp_path)
    tuner.search()
    monkeypatch.setattr(detection_tuner, "supervise", noisy)
    monkeypatch.setattr(tuner, "_write_preset", lambda trial, folder: None)  # nothing was trained
    confirmation = tuner.confirm(seeds=3)
    assert confirmation["best"]["scores"] == pytest.approx([0.755, 0.76, 0.765])
    assert confirmation["best"]["sd"] == pytest.approx(0.005)
    assert confirmation["noise"] == pytest.approx(0.005)
    default = RunConfig.resolve("", model="siamese")
    assert confirmation["default"]["values"] == {"detector": default.detector, "fwhm": default.fwhm}
    difference = confirmation["difference"]
    assert [difference[k] for k in ("value", "low", "high", "n")] == pytest.approx([0.1, 0.1, 0.1, 2])
    assert json.loads((tmp_path / "confirmation.json").read_text())["best"] == confirmation["best"]


class Page(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_leaderboard_ranks_and_stands_alone(make, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_tuner, "supervise", failing(3))
    tuner = make(tmp_path, trials=12)
    records = tuner.search()
    text = leaderboard.write(tmp_path, records, "detection_auc").read_text()
    rows = [line.split("\t") for line in (tmp_path / "leaderboard.tsv").read_text().splitlines()]
    scores = [float(row[rows[0].index("detection_auc")]) for row in rows[1:-1]]
    assert scores == sorted(scores, reverse=True)
    assert (rows[-1][1], rows[-1][-1]) == ("failed", "no luck")
    page = Page(text)
    assert not re.search(r"(src|href)=.?https?:|<script|<link|url\(http", text)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    for heading in ("Convergence", "Parallel coordinates", "Importance", "Trials"):
        assert heading in page.words
    assert len([tag for tag, _ in page.tags if tag == "tr"]) == 13


def test_importance_finds_what_matters():
    rng = np.random.default_rng(0)
    records = [
        {
            "status": "completed",
            "values": {
                "rate": float(10 ** rng.uniform(-4, -2)),
                "kernel": int(rng.integers(3)),
                "norm": "no",
            },
        }
        for _ in range(40)
    ]
    for record in records:
        record["figures"] = {"detection_auc": -abs(math.log10(record["values"]["rate"]) + 3)}
    found, r2 = leaderboard.importance(records, "detection_auc")
    assert next(iter(found)) == "rate"
    assert found["kernel"] < 0.1 * found["rate"]
    assert found["norm"] == 0
    assert r2 > 0.5
    assert leaderboard.importance(records[:7], "detection_auc") is None


def test_hparams_can_be_read_by_tensorboard(make, tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tuner = make(tmp_path, trials=2)
    leaderboard.write_hparams(tmp_path / "tensorboard", tuner.search(), "detection_auc")
    events = tensorboard.EventAccumulator(str(tmp_path / "tensorboard" / "0"))
    events.Reload()
    assert "detection_auc" in events.Tags()["tensors"]
    assert "_hparams_/session_start_info" in events.summary_metadata


@pytest.mark.slow
def test_your_own_keras_model_is_searched_to_the_last_line(data, data_dir, tmp_path, capfd):
    """The example once died in its confirmation: KeyError: 'space'."""
    folder, options = tmp_path / "s", ("--trials", 1, "--epochs", 1, "--steps", 2, "--seeds", 1)
    data_options = ("--data", data, "--data-dir", data_dir)
    run_script(ROOT / "examples" / "search_own_model.py", "--folder", folder, *data_options, *options)
    assert capfd.readouterr().out.splitlines()[-1].startswith("the best: {'depth': ")
    record = json.loads((folder / "trials" / "0" / "result.json").read_text())
    assert record["status"] == "completed", record["reason"]
    values = json.loads((folder / "best" / "spec.json").read_text())["values"]
    assert set(values) >= {"depth", "filters", "latent_dim", "learning_rate", "detector"}
    encoder = keras.saving.load_model(folder / "best" / "encoder.keras")
    assert encoder.output_shape == (None, values["latent_dim"])
    confirmation = json.loads((folder / "confirmation.json").read_text())
    assert confirmation["best"]["values"] == values
    assert confirmation["default"]["values"]["depth"] == 1
    assert (folder / "leaderboard.html").is_file()


@pytest.mark.slow
def test_the_command_line_searches_and_its_best_can_be_run(data, data_dir, tmp_path, monkeypatch):
    arguments = [data, str(tmp_path / "s"), "--model", "siamese", "--trials", "1", "--epochs", "1"]
    arguments += ["--steps", "2", "--confirm", "0", "--data-dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", ["search", *arguments])
    with pytest.raises(SystemExit) as end:
        search.main()
    assert end.value.code in (0, None)
    best = tmp_path / "s" / "best"
    assert "epizoo run" in (best / "README.md").read_text()
    config = RunConfig.resolve(data, preset=best)
    detector = json.loads((best / "detector.json").read_text())
    assert (config.model, config.detector, config.fwhm) == ("siamese", detector["detector"], detector["fwhm"])
    other = RunConfig.resolve(data, preset=best, detector="reconstruction")
    assert (other.detector, other.detector_config, other.fwhm) == ("reconstruction", {}, 0.0)
    run = Run(config, tmp_path / "run", data_dir=data_dir, console=Console(quiet=True))
    assert run().patients == 1
    assert "train" not in json.loads(run.folder.metadata.read_text())["steps"]
    (best / "detector.json").write_text(json.dumps({**detector, "trained_on": ["c0", "p1"]}))
    (tmp_path / "run" / "metrics.json").unlink()
    with pytest.raises(InputError, match="p1"):
        run.evaluate()
    with pytest.raises(InputError, match="not a preset"):
        RunConfig.resolve(data, preset=tmp_path)
