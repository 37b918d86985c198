import re

import numpy as np
import pytest
from scipy import ndimage

from epizoo import evaluation
from epizoo.detection.clusters import find_clusters, write_clusters_tsv
from epizoo.evaluation import Scored
from epizoo.report import build_report, figures
from epizoo.run_folder import RunFolder, write_json
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject, load_template, write_nifti

SPACE = "MNI152NLin2009aSym"


def make_subject(name, group, lesion_centre=None):
    template = load_template(2)
    lesion = np.zeros(template.shape, bool)
    if lesion_centre is not None:
        lesion[lesion_centre] = True
        lesion = ndimage.binary_dilation(lesion, iterations=4) & template.brain_mask
    image = np.stack([template.t1, template.gm], -1) * template.brain_mask[..., None]
    return Subject(name, group, image, template.brain_mask, lesion, template.affine, age=31.0, sex="f")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """An evaluated run of two patients, one with a bright lesion, and a control."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    subjects = [
        make_subject("p1", "patient", (20, 60, 45)),
        make_subject("p2", "patient"),
        make_subject("c1", "control"),
    ]
    rng = np.random.default_rng(0)
    scored = []
    for subject in subjects:
        noise = ndimage.gaussian_filter(rng.normal(size=subject.brain_mask.shape), 1.5)
        score = (noise / noise.std() + 6.0 * subject.lesion_mask) * subject.brain_mask
        clusters, labels = find_clusters(score, subject.affine, subject.brain_mask)
        write_nifti(folder.score_map(subject.subject, SPACE), score, subject.affine)
        write_nifti(folder.labels(subject.subject, SPACE), labels, subject.affine, dtype=np.int16)
        write_clusters_tsv(folder.clusters(subject.subject, SPACE), clusters)
        scored.append(Scored(subject, score, clusters, labels))
    write_json(folder.metrics, evaluation.evaluate(scored, threshold=4.0, resamples=50))
    write_json(folder.config, {"data": "phantom_2mm", "model": "siamese", "detector": "ocsvm", "seed": 0})
    write_json(
        folder.metadata,
        {
            "space": SPACE,
            "modalities": ["T1w", "FLAIR"],
            "splits": {"train": ["a", "b"], "validation": [], "test": ["p1", "p2", "c1"]},
            "data_hash": "abc",
            "split_hash": "def",
            "machine": "x86_64",
            "steps": {"train": {"seconds": 3.0}},
            "versions": {"epizoo": "0"},
        },
    )
    folder.history.write_text("epoch,loss,val_loss\n0,3.0,3.5\n1,2.0,2.5\n")
    by_name = {subject.subject: subject for subject in subjects}
    return folder, lambda names: [by_name[name] for name in names]


def test_the_report_is_one_file_that_needs_no_network(run_folder):
    page = build_report(*run_folder).read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)


def test_each_patient_has_a_page_and_the_cluster_on_the_lesion_is_marked(run_folder):
    page = build_report(*run_folder).read_text()
    assert set(re.findall(r'<section class="patient" id="sub-(\w+)"', page)) == {"p1", "p2"}
    first, second = page.split('id="sub-p1"')[1].split('id="sub-p2"')
    assert re.search(r'<tr class="hit"><td>1</td>', first)
    assert 'class="hit"' not in second


def test_a_run_without_metrics_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.json"):
        build_report(RunFolder(tmp_path), lambda names: [])


def test_a_lightbox_shows_the_plane_of_its_centre_with_the_patients_left_on_the_left():
    image = np.zeros((5, 6, 7))
    image[1, 2, 3] = 1
    box = [slice(0, 5), slice(0, 6), slice(0, 7)]
    axial = figures._slice(image, 2, 3, box)
    assert axial.shape == (6, 5)
    assert axial[2, 1] == 1
    assert not figures._slice(image, 2, 4, box).any()
