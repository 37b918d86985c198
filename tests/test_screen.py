"""What a user sees of a command: in processes of their own, for TensorFlow speaks while it is imported."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

COMMAND = "from epizoo.cli import main; main()"


def in_a_process(code, *arguments, **environment):
    given = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**given, **environment},
    )


@pytest.fixture(scope="module")
def models():
    """A command that imports TensorFlow."""
    return in_a_process(COMMAND, "models")


def test_tensorflow_notes_nothing_on_the_screen(models):
    assert models.stderr == "next: epizoo run DATA RUN --model NAME  trains one\n"
    assert "siamese" in models.stdout


def test_quiet_leaves_the_result_and_verbose_the_notes(models):
    quiet = in_a_process(COMMAND, "models", "--quiet")
    assert (quiet.stderr, quiet.stdout) == ("", models.stdout)
    assert "oneDNN" in in_a_process(COMMAND, "models", "--verbose").stderr


def test_verbose_says_where_bad_input_was_found():
    done = in_a_process(COMMAND, "check", "nowhere", "-v")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("- nowhere: no such folder.\n")


def test_errors_of_tensorflow_and_its_last_words_are_heard(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\n"
        "os.write(2, b'WARNING: All log messages before absl::InitializeLog() is called\\n')\n"
        "os.write(2, b'I0000 a note\\nW0000 a warning\\nE0000 an error\\nplain words\\n')\n"
        "os.write(2, b'F0000 AVX instructions are needed')\n"
        "os.abort()\n"
    )
    code = "from epizoo.screen import silence_tensorflow; silence_tensorflow(); import tensorflow"
    done = in_a_process(code, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}")
    assert done.returncode != 0
    assert done.stderr.splitlines() == ["E0000 an error", "plain words", "F0000 AVX instructions are needed"]


def test_an_import_that_fails_gives_standard_error_back(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('a library is missing')")
    code = (
        "import sys; from epizoo.screen import silence_tensorflow; silence_tensorflow()\n"
        "try:\n    import tensorflow\nexcept ImportError as error:\n    print(error, file=sys.stderr)\n"
        "print('I0000 ours', file=sys.stderr)"
    )
    done = in_a_process(code, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}")
    assert done.stderr.splitlines() == ["a library is missing", "I0000 ours"]


def test_workers_of_commands_do_not_import_tensorflow():
    """Theirs would not be silenced."""
    code = """
import sys, joblib
def work(name):
    __import__(name)
    return name if "tensorflow" in sys.modules else ""
names = ["tfds_epilepsy.phantom", "tfds_epilepsy.preprocessing", "epizoo.report.patient"]
print(joblib.Parallel(2)(joblib.delayed(work)(name) for name in names))
"""
    done = in_a_process(code)
    assert (done.stdout, done.stderr) == ("['', '', '']\n", "")


def test_the_log_of_a_trial_holds_no_notes(tmp_path):
    code = """
import sys
from tuning import trial
trial.run = lambda spec, folder: {"status": "completed", "tensors": __import__("tensorflow").constant(1).ndim}
trial.main(*sys.argv[1:])
"""
    (tmp_path / "spec.json").write_text(
        '{"data": "phantom_2mm", "data_dir": null, "fingerprint": "", "cases": ""}'
    )
    done = in_a_process(code, tmp_path / "spec.json", tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert '"tensors": 0' in (tmp_path / "result.json").read_text()


def test_the_version_is_the_packages():
    said = in_a_process(COMMAND, "--version").stdout
    assert said == f"epizoo {importlib.metadata.version('epizoo')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    assert (
        "PROG"
        in in_a_process("import sys; sys.argv[0] = 'PROG'; " + COMMAND, "--show-completion", shell).stdout
    )
