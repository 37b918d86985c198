import subprocess
import sys

import pytest

from epizoo import cli

COMMANDS = (
    *("demo", "preprocess", "run", "train", "score", "evaluate"),
    *("report", "export", "benchmark", "models", "info", "check"),
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
        (["report", "OUT"], "config.json"),
        (["evaluate", "OUT"], "config.json"),
        (["info", "OUT"], "config.json"),
        (["score", "OUT", "data"], "OUT_DIR"),
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
