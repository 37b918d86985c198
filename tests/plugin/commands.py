"""What a user types with a package of their own installed: every command, by entry points alone.

python commands.py COHORT WORK
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

import epizoo
from epizoo import cli

cohort, work = map(Path, sys.argv[1:])
data = ["--data-dir", str(work / "prepared")]


def type_in(*words):
    done = CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "next: " in done.output, f"{words[0]} does not say what one may do next"
    return done.output


assert not any(name.startswith("contrast_zoo") for name in sys.modules), "imported before it was asked for"
run = work / "run"
type_in("train", cohort, run, "--model", "contrast", *data)
type_in("run", cohort, run, "--model", "contrast", *data)
for command in ("score", "evaluate", "report"):
    type_in(command, run, *data)
assert "contrast" in type_in("models")
type_in("score", run, cohort, work / "maps", *data)
type_in("export", run, work / "encoder")
type_in("export", run, work / "pipeline", "--what", "pipeline")
type_in(
    "run",
    cohort,
    work / "siamese",
    "--model",
    "siamese",
    "--view",
    "sharpness",
    "--detector",
    "gaussian",
    "--epochs",
    "1",
    "--steps",
    "2",
    *data,
)
type_in(
    "benchmark",
    cohort,
    work / "bench",
    "--models",
    "contrast",
    "--baselines",
    "farthest",
    "--seeds",
    "1",
    "--supervised",
    "0",
    *data,
)

done = epizoo.open_run(run)
assert (done.config.detector, type(done.model).__module__) == ("farthest", "contrast_zoo.model")
assert type(epizoo.create("siamese")).__module__ == "epizoo.models.siamese"
subject = next(done.read("test"))
assert np.isfinite(done.detector.score(subject)).all()
done.model.save_preset(work / "preset")
type_in("run", cohort, work / "again", "--preset", work / "preset", *data)
again = epizoo.open_run(work / "again").model
assert np.array_equal(again.encode(np.zeros((1, 9, 9, 2))), done.model.encode(np.zeros((1, 9, 9, 2))))
shutil.copy(run / "model.keras", work / "moved.keras")
alone = "import sys, epizoo; print(type(epizoo.load_model(sys.argv[1])).__module__)"
said = subprocess.run([sys.executable, "-c", alone, work / "moved.keras"], capture_output=True, text=True)
assert said.stdout.strip() == "contrast_zoo.model", said.stderr

search = [
    "-m",
    "tuning.search",
    cohort,
    work / "search",
    "--model",
    "contrast",
    "--trials",
    "1",
    "--epochs",
    "1",
]
subprocess.run([sys.executable, *map(str, [*search, "--steps", 2, "--confirm", 0, *data])], check=True)
sys.stdout.write("every command knew it\n")
