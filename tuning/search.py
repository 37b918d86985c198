"""The command line of the search: ``python -m tuning.search DATA OUT_DIR --model bigan --trials 30``."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from epizoo.cli import Data, DataDir, Group, GroupColumn, Modality, Seed, Space, reading_of, start
from epizoo.screen import command
from tfds_epilepsy.errors import InputError

from . import spaces
from .process import POLL_SECONDS
from .trial import SearchFailed

MODULE = f"{__package__}.search"
app = typer.Typer(pretty_exceptions_enable=False)


def main() -> None:
    """Entry point. Exits with 2 on bad input, with 1 when the trials fail, without a traceback."""
    try:
        start(app)
    except SearchFailed as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


@command(app)
def search(
    data: Data,
    out_dir: Annotated[Path, typer.Argument(help="Folder of the search; the same command goes on in it.")],
    model: Annotated[str, typer.Option(help="Model of the zoo; 'epizoo models' lists them.")] = "siamese",
    trials: Annotated[int, typer.Option(min=1, help="Configurations to try.")] = 20,
    tuner: Annotated[str, typer.Option(help="random, bayesian or hyperband.")] = "random",
    objective: Annotated[
        str, typer.Option(help="detection_auc, detection_auprc, froc_auc or sensitivity_5.")
    ] = "detection_auc",
    budget: Annotated[str | None, typer.Option(help="Time for the trials: 90s, 20m, 2h.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time on this machine.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Training epochs per trial.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps per epoch.")] = 250,
    trial_time: Annotated[str, typer.Option(help="A trial that takes longer fails.")] = "30m",
    trial_memory: Annotated[
        float | None, typer.Option(help="GiB; a trial that needs more fails (default: what is free).")
    ] = None,
    confirm: Annotated[int, typer.Option(min=0, help="Seeds on which the winner is confirmed; 0: none.")] = 3,
    seed: Seed = 0,
    modality: Modality = None,
    space: Space = None,
    group_column: GroupColumn = None,
    group: Group = None,
    data_dir: DataDir = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="HParams for TensorBoard, an extra, in OUT_DIR/tensorboard.")
    ] = False,
    show_space: Annotated[bool, typer.Option("--show-space", help="Print the space and end.")] = False,
) -> None:
    """Search a model's architecture for what detects lesions best in validation subjects."""
    from rich.console import Console

    if show_space:
        print_space(model, Console())
        return
    from .detection_tuner import DetectionTuner

    distributed = os.environ.get("KERASTUNER_TUNER_ID")
    found = DetectionTuner(
        data,
        out_dir,
        model=model,
        tuner=tuner,
        trials=trials,
        objective=objective,
        budget=None if budget is None else duration(budget),
        epochs=epochs,
        steps_per_epoch=steps,
        seed=seed,
        trial_seconds=duration(trial_time),
        trial_gib=trial_memory,
        workers=workers,
        reading={"modalities": modality, **reading_of(space, group_column, group)},
        data_dir=data_dir,
    )
    if distributed:  # the chief, or one of its workers: what they find is put together by who started them
        found.search()
        return
    if workers == 1:
        found.search()
    else:
        run_workers(workers, [sys.executable, "-m", MODULE, *sys.argv[1:]], found.folder)
        found.check_outcome()
    found.report(confirm, f"python -m {MODULE} {shlex.join(sys.argv[1:])}")
    if tensorboard:
        from . import leaderboard

        leaderboard.write_hparams(found.folder / "tensorboard", found.records(), objective)


def duration(text: str) -> float:
    """Seconds of ``90s``, ``20m``, ``2h`` or ``1.5h``.

    Raises:
        InputError: another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(f"time {text!r}: a number with s, m or h is needed, such as 20m.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def print_space(model: str, console: Any) -> None:
    """The space of a model as a table."""
    from rich.table import Table

    table = Table("parameter", "values", "only where", title=f"search space of {model}")
    for row in spaces.describe(spaces.space_of(model)):
        table.add_row(*row)
    console.print(table)


def run_workers(count: int, command: list[str], folder: Path) -> None:
    """keras-tuner's chief and workers on this machine, each with its share of the cores, until they end.

    Raises:
        SearchFailed: one of them broke; the same command goes on.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ["chief", *(f"tuner{i}" for i in range(count))]
    cores = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else []
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for i, name in enumerate(names):
            place = {
                "KERASTUNER_TUNER_ID": name,
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": str(port),
            }
            with (folder / f"{name}.log").open("ab") as log:
                running[name] = subprocess.Popen(
                    command,
                    env={**os.environ, **place},
                    stdin=subprocess.DEVNULL,
                    stdout=log,  # keras-tuner prints what it reads of messages
                    stderr=log if name == "chief" else None,
                )
            if name != "chief" and len(cores) >= count:
                psutil.Process(running[name].pid).cpu_affinity(cores[i - 1 :: count])
        chief, *workers = running.values()
        patience = 60 / POLL_SECONDS  # for the workers, once the chief has told all of them to stop
        while any(worker.poll() is None for worker in workers) and patience > 0:
            broken = [name for name, process in running.items() if process.poll() not in (None, 0)]
            if broken:
                raise SearchFailed(
                    f"{' and '.join(broken)} broke, see {folder}/*.log; the same command goes on."
                )
            patience -= chief.poll() is not None
            time.sleep(POLL_SECONDS)
    finally:
        # The chief waits for its workers for up to 20 s more; all it knows is saved.
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


if __name__ == "__main__":
    main()
