"""The code that a result depends on."""

import importlib.util
import sys
import textwrap

import pytest

from tfds_epilepsy import phantom
from tfds_epilepsy.reached import reached_code
from tfds_epilepsy.tfds_epilepsy_dataset_builder import _phantom_code

MAIN = '''
from helpers import scaled as times, Kind

def made(x: int, kind: "Kind" = None) -> int:
    """Docstring."""
    if x < 0:
        raise ValueError(f"{x}: negative.")
    return times(x)  # comment

def beside():
    return 1
'''
HELPERS = '''
FACTOR = 2
OTHER = {"a": 1}

class Kind:
    """Of a lesion."""

    names: list[str] = ["a"]

def scaled(x):
    return FACTOR * x

def unused():
    return OTHER
'''


@pytest.fixture
def code(tmp_path):
    """Of ``made``, from the text of two modules."""
    count = iter(range(100))

    def reached(main=MAIN, helpers=HELPERS):
        modules = []
        for name, text in (("main", main), ("helpers", helpers)):
            path = tmp_path / f"{name}{next(count)}.py"
            path.write_text(textwrap.dedent(text))
            module = importlib.util.module_from_spec(
                spec := importlib.util.spec_from_file_location("m", path)
            )
            if name == "helpers":
                spec.loader.exec_module(module)
            modules.append(module)
        return reached_code(["made"], modules)

    return reached


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# comment", "# another"),
        ("Docstring.", "Another."),
        ("x: int, kind", "x: float,\n    kind"),
        ("negative.", "is negative; give another."),
        ("return 1", "return 2"),
    ],
)
def test_words_layout_and_other_functions_change_nothing(code, before, after):
    assert MAIN.count(before) == 1
    assert code(MAIN.replace(before, after)) == code()


@pytest.mark.parametrize(
    ("before", "after"),
    [("FACTOR = 2", "FACTOR = 3"), ("FACTOR * x", "FACTOR * x + 0"), ('["a"]', '["b"]')],
)
def test_a_change_of_what_is_used_elsewhere_is_seen(code, before, after):
    used = MAIN.replace("times(x)", "times(x) + len(Kind.names)")
    assert HELPERS.count(before) == 1
    assert code(used, HELPERS.replace(before, after)) != code(used)
    assert code(MAIN.replace("x < 0", "x < 1")) != code()


def test_what_is_not_mentioned_is_not_in_it(code):
    assert "OTHER" not in code()
    assert "Kind" not in code(MAIN.replace(", Kind", ""))


def test_the_phantom_follows_all_that_makes_a_subject():
    text = _phantom_code()
    reached = {
        line.split("(")[0].removeprefix("def ") for line in text.splitlines() if line.startswith("def ")
    }
    made = set()

    def seen(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(
            phantom.__file__.removesuffix("phantom.py")
        ):
            made.add(frame.f_code.co_qualname)

    config = phantom.PhantomConfig(n_test_patients=1)
    phantom._atlas.cache_clear()
    sys.setprofile(seen)
    try:
        phantom.subject(config, "patient001")
    finally:
        sys.setprofile(None)
    called = {name for name in made if "." not in name and not name.startswith("<")}
    assert {"subject", "_anatomy", "implant_in_tissue", "normalise"} <= called
    assert called <= reached
    assert "write_bids" not in reached
    assert "read_nifti" not in reached
