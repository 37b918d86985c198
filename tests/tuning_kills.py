"""Kill a search at random moments and start it again, until it ends: it must find what an unharmed one finds.

``python -m tests.tuning_kills FOLDER --moments 20`` does it with trials that cost nothing, in processes of
their own; with ``--real`` they train and detect. The search alone is killed, as by a system that is short of
memory; the process of its trial has to notice.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

ENDINGS = ("oracle.json", "trial.json", "spec.json", "result.json")
ENDINGS_OF_REAL_TRIALS = (*ENDINGS, "stage", "checkpoint.keras")
LATEST = 120  # seconds until a kill, if the file that it waits for does not come
ENVIRONMENT = {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # as the command line sets them


def kill_often(folder, data, data_dir, moments, *, seed=0, trials=6, real=False):
    """Kill searches ``moments`` times; returns the number of searches that were brought to their end."""
    rng = random.Random(seed)
    whole = folder / "whole"
    assert start(whole, data, data_dir, trials, real).wait() == 0
    killed = finished = 0
    while killed < moments:
        place, ended = folder / f"killed{finished}", False
        while not ended:
            search = start(place, data, data_dir, trials, real)
            ending = rng.choice(ENDINGS_OF_REAL_TRIALS if real else ENDINGS)
            if killed < moments and strike(search, place, ending, rng):
                killed += 1
                continue
            assert search.wait() == 0, f"{place}: after kill {killed} it ended with code {search.returncode}"
            ended = True
        assert found(place) == found(whole), f"{place}: another result after kill {killed}"
        finished += 1
    return finished


def strike(search, folder, ending, rng):
    """Kill a search shortly after a file of its own has changed; returns whether it was still there."""
    wait = rng.choice((0, 0.002, 0.02, 0.2, 2)) * rng.random()
    before = stamps(folder, ending)
    latest = time.monotonic() + LATEST
    while search.poll() is None and stamps(folder, ending) == before and time.monotonic() < latest:
        time.sleep(0.001)
    time.sleep(wait)
    if search.poll() is not None:
        return False
    search.kill()
    search.wait()
    return True


def stamps(folder, ending):
    found = set()
    for path in folder.rglob(ending):
        try:
            found.add((path, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue
    return found


def found(folder):
    """What a search found, without what it took."""
    results = {}
    for path in folder.glob("trials/*/result.json"):
        result = json.loads(path.read_text())
        for cost in ("seconds", "peak_gib", "steps"):
            result.pop(cost, None)
        results[path.parent.name] = json.loads((path.parent / "spec.json").read_text())["values"], result
    return results


def start(folder, data, data_dir, trials, real):
    command = [sys.executable, "-m", "tests.tuning_kills", str(folder), "--search", str(trials)]
    command += ["--data", str(data), "--data-dir", str(data_dir), *(["--real"] if real else [])]
    return subprocess.Popen(command, env={**os.environ, **ENVIRONMENT})


def search(folder, data, data_dir, trials, real):
    """The process that is killed."""
    from rich.console import Console

    from tuning import DetectionTuner, process

    if not real:
        process.TRIAL = "tests.tuning_kills"
    options = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 16, "trial_gib": 8}
    tuner = DetectionTuner(
        data,
        folder,
        model="siamese",
        trials=trials,
        data_dir=data_dir,
        console=Console(quiet=True),
        **options,
    )
    assert len(tuner.search()) == trials


def trial(arguments):
    """A trial that costs nothing, in place of ``python -m tuning.trial``."""
    from tuning import trial

    trial.run = lambda spec, folder: {
        "status": "completed",
        "reason": "",
        "figures": {spec.objective: spec.values["learning_rate"]},
        "cases": [],
    }
    trial.main(*arguments)


def main():
    if sys.argv[1].endswith("spec.json"):
        trial(sys.argv[1:])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--search", type=int)
    parser.add_argument("--data")
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    if given.search is not None:
        search(given.folder, given.data, given.data_dir, given.search, given.real)
        return
    import tfds_epilepsy
    from tests.small_cohort import write_cohort

    data_dir = given.folder / "prepared"
    data = write_cohort(given.folder / "cohort")
    tfds_epilepsy.load(data, data_dir)
    trials = 2 if given.real else 6
    finished = kill_often(given.folder, data, data_dir, given.moments, trials=trials, real=given.real)
    print(f"{given.moments} kills, {finished} searches brought to the end of the unharmed one")  # noqa: T201


if __name__ == "__main__":
    main()
