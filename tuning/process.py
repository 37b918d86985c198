"""The process of a trial, as the search sees it: started, watched for its time and memory, and ended."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json

from .trial import Result, Spec, cost

if TYPE_CHECKING:
    import keras_tuner

POLL_SECONDS = 0.25
INSIDE = "EPIZOO_TRIAL"  # set in the environment of a trial's process
TRIAL = f"{__package__}.trial"  # the module that the process runs


def supervise(
    spec: Spec,
    folder: Path,
    *,
    seconds: float,
    gib: float,
    build: bytes | None = None,
    watch: Callable[[str, float], None] = lambda stage, gib: None,
) -> Result:
    """Run a trial in a process of its own and wait for it; a finished one of the same spec is taken as it is.

    One of the same spec that was killed goes on; what another spec left in the folder is removed. The result
    is written once, whole: by the process, or, where that ended without one, here.

    Args:
        spec: what to do.
        folder: of the trial; made if missing.
        seconds: the process is ended when it takes longer,
        gib: or its memory, its children's included, exceeds this.
        build: a user's build function (``builds.pack``) in place of a model of the zoo.
        watch: called several times a second with what it is doing and its memory in GiB.

    Returns:
        The content of ``result.json``: ``status`` is ``completed``, ``pruned`` or ``failed``, ``reason`` says
        why, ``seconds`` and ``peak_gib`` what it took.
    """
    result_path, spec_path = folder / "result.json", folder / "spec.json"
    if spec_path.is_file():
        if not Spec.read(spec_path).same_as(spec):
            shutil.rmtree(folder)
        elif result_path.is_file() and "seconds" in read_json(result_path):  # earlier versions wrote it later
            return dict(read_json(result_path))
        result_path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if build is not None:
        spec = replace(spec, build=str(folder / "build.pkl"))
        (folder / "build.pkl").write_bytes(build)
    write_json(spec_path, asdict(spec))
    started, peak, reason = time.monotonic(), 0.0, ""
    with (folder / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", TRIAL, str(spec_path), str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        try:
            process = psutil.Process(child.pid)
            while child.poll() is None:
                now = _memory(process)
                peak = max(peak, now)
                watch(_stage(folder), now)
                if time.monotonic() - started > seconds:
                    reason = f"took longer than {seconds:.0f} s ({_stage(folder)})"
                elif now > gib:
                    reason = f"used {now:.2f} GiB, more than {gib:.2f} GiB ({_stage(folder)})"
                if reason:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            _end(child)
    if not result_path.is_file():
        reason = reason or f"ended with code {child.returncode}: {last_line(folder / 'log.txt')}"
        failure = {"status": "failed", "reason": reason}
        write_json(result_path, {**failure, **cost(time.monotonic() - started, peak)})
    (folder / "stage").unlink(missing_ok=True)
    shutil.rmtree(folder / "detector", ignore_errors=True)
    return dict(read_json(result_path))


def try_out(hypermodel: keras_tuner.HyperModel, packed: bytes, channels: int) -> None:
    """Make the model of the default values here and in a process like a trial's.

    Raises:
        InputError: it cannot be made there, is another one there, or no trial could use it.
    """
    from . import builds  # brings TensorFlow, which this process need not wait for

    model, _ = builds.make(hypermodel, {})
    builds.check(model, channels)
    with tempfile.TemporaryDirectory() as folder:
        path, answer, log = (Path(folder) / name for name in ("build.pkl", "answer.json", "log.txt"))
        path.write_bytes(packed)
        with log.open("wb") as output:
            subprocess.run(
                [sys.executable, "-m", f"{__package__}.builds", str(path), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                check=False,
            )
        if not answer.is_file():
            raise InputError(
                f"build fails in the process of a trial ({last_line(log)}): a trial imports anew what build "
                "reads of other modules, and does not run this script. Let build read only what it can "
                "import, its arguments, and the variables and functions of this script."
            )
        there, here = read_json(answer), builds.describe(model)
    if there != here:
        pairs = itertools.zip_longest(there, here, fillvalue="nothing")
        first = next(f"{one!r} there, {other!r} here" for one, other in pairs if one != other)
        raise InputError(
            f"build makes another model in the process of a trial than here ({first}): a trial imports anew "
            "what build reads of other modules, and begins with Keras' default settings. Set inside build "
            "what it relies on, or give it as an argument (functools.partial)."
        )


def environment() -> dict[str, str]:
    """As this process's, with this package to import, TensorFlow quiet, and a mark that it is a trial's."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        INSIDE: "1",
    }


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(child.pid).children(recursive=True)
        for process in [*family, psutil.Process(child.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()


def _memory(process: psutil.Process) -> float:
    """GiB that a process and its children hold."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total / 2**30


def _stage(folder: Path) -> str:
    path = folder / "stage"
    return path.read_text() if path.is_file() else "start"
