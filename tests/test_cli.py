import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from epizoo import cli
from epizoo.run_config import RunConfig
from tests.bids_files import raw_scan
from tfds_epilepsy import bids
from tuning import search

COMMANDS = (
    *("demo", "preprocess", "run", "train", "score", "evaluate"),
    *("report", "export", "benchmark", "models", "info", "check", "import"),
)


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["epizoo", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, monkeypatch, capsys):
    assert run_main(monkeypatch, command, "--help") == 0
    assert command in capsys.readouterr().out


def test_help_needs_nothing_heavy():
    heavy = ("tensorflow", "keras", "numba", "nilearn", "pandas", "matplotlib")
    code = f"import sys, epizoo.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "nowhere", "OUT"], "nowhere"),
        (["run", "nowhere", "OUT", "--model", "nonsense"], "nonsense"),
        (["run", "nowhere", "OUT", "--preset", "p", "--view", "image", "--steps", "3"], "steps_per_epoch 3"),
        (["run", "nowhere", "OUT", "--model", "deviation", "--view", "image"], "view 'image'"),
        (["train", "nowhere", "OUT", "--detector", "zscore", "--epochs", "3"], "epochs 3: without effect"),
        (["run", "nowhere", "OUT", "--preset", "p", "--model", "siamese"], "model siamese"),
        (["report", "OUT"], "config.json"),
        (["evaluate", "OUT"], "config.json"),
        (["info", "OUT"], "config.json"),
        (["score", "OUT", "data"], "OUT_DIR"),
        (["score", "OUT", "--native"], "--native without DATA"),
        (["check", "nowhere"], "nowhere"),
        (["preprocess", "nowhere", "OUT"], "nowhere"),
    ],
)
def test_bad_input_exits_with_2_and_a_sentence(arguments, word, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert word in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "OUT").exists()


def test_run_hands_its_settings_on(monkeypatch):
    made = []

    class Recorded:
        def __init__(self, config, *_, **__):
            made.append(config)

        def __call__(self):
            pass

    monkeypatch.setattr("epizoo.run.Run", Recorded)
    words = "run data OUT --model bigan --view deviations --detector knn --epochs 3 --steps 100 --seed 2"
    assert run_main(monkeypatch, *words.split()) == 0
    expected = RunConfig.resolve(
        "data",
        model="bigan",
        detector="knn",
        model_config={"view": "deviations"},
        epochs=3,
        steps_per_epoch=100,
        seed=2,
    )
    assert made == [expected]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "phantom_2mm", "FILE/out", "--model", "none"],
        ["train", "phantom_2mm", "FILE", "--model", "none"],
        ["demo", "--output", "FILE/demo"],
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told_before_any_work(arguments, monkeypatch, capsys, tmp_path):
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tfds_epilepsy.load", lambda *_, **__: pytest.fail("work has begun"))
    assert run_main(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert "FILE" in shown
    assert "Traceback" not in shown


def test_a_full_disk_exits_with_2(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "scratch/volume-0000.npy")

    monkeypatch.setattr("epizoo.demo.run", full)
    assert run_main(monkeypatch, "demo") == 2
    assert "scratch/volume-0000.npy: cannot be written to (No space left" in capsys.readouterr().err


def test_home_is_known_in_data_dir_and_brackets_are_no_markup(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = []
    monkeypatch.setattr("epizoo.outputs.score_cohort", lambda *_, **options: given.append(options))
    assert run_main(monkeypatch, "score", "run", "data", "out", "--data-dir=~/x") == 0
    assert given[0]["data_dir"] == tmp_path / "x"
    folder = tmp_path / "der[a]"
    raw_scan(folder, "sub-a_T1w.nii.gz")
    monkeypatch.setenv("COLUMNS", "300")
    run_main(monkeypatch, "check", str(folder))
    assert "der[a]" in capsys.readouterr().out


def test_check_takes_other_columns_words_and_files(monkeypatch, capsys, tmp_path):
    for name in ("sub-a_T1w", "sub-a_acq-x_SWI", "sub-a_acq-y_SWI", "sub-b_T1w", "sub-b_acq-y_SWI"):
        raw_scan(tmp_path, f"{name}.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tarm\nsub-a\ttyp\nsub-b\tcase\n")
    monkeypatch.setenv("COLUMNS", "150")
    options = ["--group-column", "arm", "--group", "typ=control", "--modality", "T1w", "--modality", "SWI"]
    assert run_main(monkeypatch, "check", str(tmp_path), *options, "--filter", "SWI:acq-y") == 0
    shown = capsys.readouterr().out
    for word in ("control", "patient", "acq-y_SWI (acq-x_SWI)"):
        assert word in shown
    assert run_main(monkeypatch, "check", str(tmp_path), *options[:2]) == 2
    assert "'typ' of sub-a is unknown" in capsys.readouterr().err
    assert run_main(monkeypatch, "check", str(tmp_path), "--filter", "SWI", "--group", "typ") == 2
    assert run_main(monkeypatch, "check", str(tmp_path), "--group", "typ=alien") == 2
    assert "'alien'" in capsys.readouterr().err


def test_phantom_takes_a_second_scanner_and_pet(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("tfds_epilepsy.phantom.write_bids", lambda *arguments: made.append(arguments))
    assert run_main(monkeypatch, "phantom", str(tmp_path), "--pet", "--second-site", "0.5") == 0
    [(config, out)] = made
    assert (config.modalities, config.second_site, out) == (("T1w", "FLAIR", "pet"), 0.5, tmp_path)


def test_brackets_in_the_names_of_files_are_no_markup_either(monkeypatch, capsys, tmp_path):
    raw_scan(tmp_path, "sub-a_acq-[b]_T1w.nii.gz")
    monkeypatch.setenv("COLUMNS", "250")
    run_main(monkeypatch, "check", str(tmp_path))
    assert "acq-[b]_T1w" in capsys.readouterr().out


def test_the_home_directory_is_known_in_every_option(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("epizoo.demo.run", lambda output, **_: made.append(output))
    monkeypatch.setenv("HOME", str(tmp_path))
    run_main(monkeypatch, "demo", "--output=~/x")
    run_main(monkeypatch, "demo")
    assert made == [tmp_path / "x", Path("demo")]


def test_how_scans_are_read_is_handed_to_a_run_and_to_score(monkeypatch, tmp_path):
    made, scored = [], []
    monkeypatch.setattr("epizoo.run.Run", lambda config, *_, **__: made.append(config) or list)
    monkeypatch.setattr(
        "epizoo.outputs.score_cohort", lambda *_, **options: scored.append(options["reading"])
    )
    options = ["--space", "MNI", "--group-column", "arm", "--group", "typ=control"]
    told = {"space": "MNI", "group_column": "arm", "groups": {"typ": "control"}}
    assert run_main(monkeypatch, "run", str(tmp_path), "OUT", "--modality", "T1w", *options) == 0
    assert (made[0].modalities, made[0].reading) == (["T1w"], told)
    assert run_main(monkeypatch, "score", "RUN", str(tmp_path), "OUT", *options) == 0
    assert scored == [told]
    assert run_main(monkeypatch, "score", "RUN", *options) == 2


def test_check_ends_with_who_and_how_many_problems(monkeypatch, capsys, tmp_path):
    for name in ("a", "b"):
        raw_scan(tmp_path, f"sub-{name}_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-a\thc\nsub-b\tfcd\n")
    assert run_main(monkeypatch, "check", str(tmp_path)) == 0
    assert capsys.readouterr().out.endswith("\n2 subjects (1 control, 1 patient), no problem.\n")
    (tmp_path / "sub-b/anat/sub-b_T1w.nii.gz").write_bytes(b"")
    assert run_main(monkeypatch, "check", str(tmp_path)) == 2
    assert capsys.readouterr().out.endswith("(1 control, 1 patient), 1 problem.\n")


def options_of(app, name=None):
    command = typer.main.get_command(app)
    command = command if name is None else command.commands[name]
    return {word for parameter in command.params for word in parameter.opts}


@pytest.mark.parametrize("command", ["run", "train", "implant", "benchmark", "check", "search"])
def test_what_reading_a_derivative_advises_can_be_done_where_it_is_read(command):
    given = options_of(search.app) if command == "search" else options_of(cli.app, command)
    advised = set()
    for path in Path(bids.__file__).parent.glob("*.py"):
        advised |= set(re.findall(r"--[a-z-]+", path.read_text())) - {"--session", "--filter"}  # of raw scans
    assert advised >= {"--space", "--group"}
    assert given >= {*advised, "--modality", "--group-column"}


def test_how_scans_are_read_is_handed_to_implant_and_benchmark(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("tfds_epilepsy.lesions.implant_in_dataset", lambda *_, **told: given.append(told))
    monkeypatch.setattr("epizoo.benchmark.benchmark", lambda *_, **told: given.append(told))
    options = ["--modality", "T1w", "--space", "MNI", "--group-column", "arm", "--group", "typ=control"]
    told = {"space": "MNI", "group_column": "arm", "groups": {"typ": "control"}}
    for command in ("implant", "benchmark"):
        assert run_main(monkeypatch, command, str(tmp_path), "OUT", *options) == 0
    assert {name: given[0][name] for name in ("modalities", *told)} == {"modalities": ["T1w"], **told}
    assert (given[1]["modalities"], given[1]["reading"]) == (["T1w"], told)
