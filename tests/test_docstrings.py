"""Every public name, those of the reference, has an example in its docstring, which runs as it is printed."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import epizoo
import tfds_epilepsy
from epizoo.registry import DETECTORS, MODELS, VIEWS
from tests.bids_files import raw_scan
from tests.small_cohort import short_run

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
MODULE = re.compile(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)
# What needs raw scans and ANTs, or whole trainings: shown, and run by tests of their own.
SHOWN = {
    "preprocess",
    "to_native",
    "implant_in_dataset",
    "DetectionTuner",
    "check_detector",
    "check_model",
    "check_view",
}


def documented():
    """The classes and functions that the pages of the reference show, by name."""
    found = {}
    for page in sorted(REFERENCE.glob("*.md")):
        for name, options in MODULE.findall(page.read_text(encoding="utf-8")):
            module, members = importlib.import_module(name), re.search(r":members: (.*)", options)
            for member in module.__all__ if members is None else members[1].split(", "):
                one = getattr(module, member)
                if inspect.isclass(one) or (callable(one) and hasattr(one, "__name__")):
                    found[one] = f"{name}.{member}"
    return {name: one for one, name in found.items()}


PUBLIC = documented()


@pytest.fixture(scope="module")
def known(cohort, tmp_path_factory):
    """What the examples use without saying where it comes from; the first page of the reference does."""
    data, run = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs") / "first"
    epizoo.Run(short_run(cohort, model="none", detector="zscore"), run, data_dir=data)()
    done = epizoo.open_run(run, data_dir=data)
    scans = tmp_path_factory.mktemp("scans")
    raw_scan(scans, "sub-01_T1w.nii.gz")
    builder = tfds_epilepsy.load(cohort, data)
    (patient,) = tfds_epilepsy.read(builder, "test", ["p1"])
    return {
        "np": np,
        "derivative_folder": cohort,
        "bids_folder": scans,
        "data_folder": data,
        "run_folder": run,
        "done": done,
        "controls": list(tfds_epilepsy.read(builder, "train")),
        "patient": patient,
    }


@pytest.fixture
def registries(monkeypatch):
    """Examples register models, detectors and views."""
    for registry in (MODELS, DETECTORS, VIEWS):
        monkeypatch.setattr(registry, "registered", dict(registry.registered))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_example_runs(name, known, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = PUBLIC[name]
    names = {**vars(inspect.getmodule(one)), **known, "folder": tmp_path}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    tests = doctest.DocTestFinder(recurse=inspect.isclass(one)).find(one, name, globs=names)
    own = [test for test in tests if test.name == name or test.examples]
    examples = [example for test in own for example in test.examples]
    assert examples, f"{name} has no example"
    assert name.rpartition(".")[2] in SHOWN or not all(doctest.SKIP in one.options for one in examples)
    said = []
    for test in own:
        doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=said.append)
    assert not said, "".join(said)


def test_guide_to_a_detector_runs(known, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (REFERENCE.parent / "howto" / "own_detector.md").read_text(encoding="utf-8")
    names = {**known, "epizoo": epizoo, "model": epizoo.create("autoencoder", latent_dim=8)}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    assert names["score_map"].shape == known["patient"].brain_mask.shape
    assert names["score_map"][known["patient"].brain_mask].any()
