"""End commands with SIGKILL at random moments, start them again, and compare with one that ran through.

    python -m tests.kills preprocess --moments 20 --folder /tmp/kills

Each moment starts from nothing, in a process that is forked once all is imported. Exits with 1, and says
where, if a file is missing, differs or is left over.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

Work = Callable[[Path], object]  # what is killed: it writes into a folder
SECRET = {"seconds", "peak_gib", "date_saved"}  # figures of a process, and dates


# === The commands, on inputs that take seconds ===


def preprocess(folder: Path, **options: object) -> Work:
    """Two controls; where registration would search, the head lies as the template's."""
    from tfds_epilepsy import preprocessing, registration
    from tfds_epilepsy.volumes import load_template, write_nifti

    def to_template(brain: object, *paths: Path) -> None:
        for path in paths:
            registration._write_affine(np.eye(4), path)

    def to_t1(fixed: object, mask: object, moving: object, path: Path) -> float:
        to_template(moving, path)
        return 0.5

    preprocessing.register, preprocessing.register_rigid = to_template, to_t1
    preprocessing.correct_bias = lambda scan, mask: scan
    template = load_template(2)
    for number, label in enumerate(("01", "02")):
        stem = folder / f"raw/sub-{label}/anat/sub-{label}"
        for name, power in (("T1w", 1 + number), ("FLAIR", 3 + number)):
            image = 700 * template.t1**power * template.brain_mask
            write_nifti(f"{stem}_{name}.nii.gz", image, template.affine)
        lesion = template.gm * (np.indices(template.shape)[2] == 50)
        write_nifti(f"{stem}_FLAIR_roi.nii.gz", lesion > 0.5, template.affine)
    table = "participant_id\tgroup\tsplit\nsub-01\thc\ttrain\nsub-02\thc\ttest\n"
    (folder / "raw/participants.tsv").write_text(table)
    return lambda out: preprocessing.preprocess(folder / "raw", out, **options)  # type: ignore[arg-type]


def preprocess_match(folder: Path) -> Work:
    return preprocess(folder, normalisation="match")


def phantom(folder: Path) -> Work:
    from tfds_epilepsy.phantom import PhantomConfig, write_bids

    sizes = {"n_train": 1, "n_validation_controls": 0, "n_validation_patients": 0}
    config = PhantomConfig(**sizes, n_test_controls=0, n_test_patients=1)
    return lambda out: write_bids(config, out, progress=False)


def implant(folder: Path) -> Work:
    from tfds_epilepsy.lesions import implant_in_dataset
    from tfds_epilepsy.phantom import PhantomConfig, write_bids

    sizes = {"n_train": 1, "n_validation_controls": 0, "n_validation_patients": 0}
    config = PhantomConfig(**sizes, n_test_controls=2, n_test_patients=0)
    in_a_fork(lambda out: write_bids(config, out, progress=False), folder / "controls")
    return lambda out: implant_in_dataset(folder / "controls", out, progress=False)


def run(folder: Path) -> Work:
    from epizoo.run import Run
    from tests.small_cohort import short_run, write_cohort

    config = short_run(write_cohort(folder / "cohort"))
    return lambda out: Run(config, out / "run", data_dir=out / "tfds")()


def score(folder: Path) -> Work:
    from epizoo.outputs import score_cohort
    from tests.small_cohort import TEST, write_cohort

    in_a_fork(run(folder), folder / "trained")
    other = write_cohort(folder / "other", TEST, seed=1)
    return lambda out: score_cohort(folder / "trained/run", str(other), out / "maps", data_dir=out / "tfds")


WORKS = {work.__name__: work for work in (preprocess, preprocess_match, phantom, implant, run, score)}


# === Killing ===


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=WORKS)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kills")
    chosen = parser.parse_args()
    shutil.rmtree(chosen.folder, ignore_errors=True)
    chosen.folder.mkdir(parents=True)
    work = WORKS[chosen.command](chosen.folder)
    in_a_fork(work, chosen.folder / "warm")  # compiles what is compiled once
    began = time.monotonic()
    expected = snapshot(in_a_fork(work, chosen.folder / "out"))
    lasts = time.monotonic() - began
    draw, problems = random.Random(chosen.seed), []
    for moment in sorted(draw.uniform(0, lasts) for _ in range(chosen.moments)):
        shutil.rmtree(chosen.folder / "out")  # the same name: some files hold it
        in_a_fork(work, chosen.folder / "out", kill_after=moment)
        found = snapshot(in_a_fork(work, chosen.folder / "out"))
        wrong = differences(expected, found)
        print(f"{moment:.2f} of {lasts:.2f} s: {', '.join(wrong) or 'the same'}", flush=True)
        problems += wrong
    sys.exit(1 if problems else 0)


def in_a_fork(work: Work, out: Path, kill_after: float | None = None) -> Path:
    """Run the work in a process of its own; its folder. SystemExit if it fails by itself."""
    out.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            work(out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status != 0 and not (kill_after is not None and os.WIFSIGNALED(status)):
        sys.exit(f"{out}: failed.\n{out.with_suffix('.log').read_text()}")
    return out


# === Comparing ===


def snapshot(folder: Path) -> dict[str, object]:
    """What each file says, without dates."""
    return {
        str(path.relative_to(folder)): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }


def content(path: Path) -> object:
    if path.is_dir():
        return "an empty folder"
    if path.suffix == ".json":
        return undated(json.loads(path.read_text()))
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as parts:
            return [parts.read("config.json"), datasets(io.BytesIO(parts.read("model.weights.h5")))]
    if path.suffix == ".h5":  # HDF5 notes when each array was written
        return datasets(path)
    if path.suffix == ".html":  # times and memory of its steps, and ids that nilearn's viewer draws
        return re.sub(r"\d+(\.\d+)? (s|GiB)\b|[0-9a-f]{32}", "", path.read_text())
    return path.read_bytes()


def datasets(path: Path | io.BytesIO) -> dict[str, object]:
    found: dict[str, object] = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tolist()

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def undated(value: object) -> object:
    if isinstance(value, dict):
        return {key: undated(item) for key, item in value.items() if key not in SECRET}
    return [undated(item) for item in value] if isinstance(value, list) else value


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is left over" for name in found.keys() - expected.keys()]
    wrong += [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(wrong)


if __name__ == "__main__":
    main()
