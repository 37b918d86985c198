import base64
import dataclasses
import html
import io
import itertools
import json
import re
import shutil
import subprocess

import joblib
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from epizoo import evaluation
from epizoo.detection.clusters import find_clusters, read_clusters_tsv, write_clusters_tsv
from epizoo.detection.explained import Explained
from epizoo.detection.tail import Tail
from epizoo.evaluation import Metrics, Scored
from epizoo.finished_run import open_run
from epizoo.report import build_report, figures, patient, report, tables
from epizoo.report.viewer import viewer
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from epizoo.run_metadata import Metadata, Step
from tfds_epilepsy import native
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.volumes import TEMPLATE_SPACE, Subject, load_template, read_nifti, write_nifti


def make_subject(name, group, lesion_centre=None):
    template = load_template(2)
    lesion = np.zeros(template.shape, bool)
    if lesion_centre is not None:
        lesion[lesion_centre] = True
        lesion = ndimage.binary_dilation(lesion, iterations=4) & template.brain_mask
    image = np.stack([template.t1, template.gm], -1) * template.brain_mask[..., None]
    return Subject(name, group, image, template.brain_mask, lesion, template.affine, age=31.0, sex="f")


SUBJECTS = {
    "p1": make_subject("p1", "patient", (20, 60, 45)),
    "p2": make_subject("p2", "patient"),
    "c1": make_subject("c1", "control"),
}


def make_run(path, names, threshold=4.0):
    """An evaluated run of some of the subjects; the map of p1 is bright in its lesion."""
    folder = RunFolder(path)
    scored = []
    for seed, subject in enumerate(SUBJECTS[name] for name in names):
        noise = np.random.default_rng(seed).normal(size=subject.brain_mask.shape)
        noise = ndimage.gaussian_filter(noise, 1.5)
        score = (noise / noise.std() + 6.0 * subject.lesion_mask) * subject.brain_mask
        clusters, labels = find_clusters(score, subject.affine, subject.brain_mask)
        write_nifti(folder.score_map(subject.subject, TEMPLATE_SPACE), score, subject.affine)
        write_nifti(folder.labels(subject.subject, TEMPLATE_SPACE), labels, subject.affine, dtype=np.int16)
        if threshold is not None:
            clusters = Explained(score).annotate(clusters, labels, Tail(threshold, 0.3, controls=40))
        write_clusters_tsv(folder.clusters(subject.subject, TEMPLATE_SPACE), clusters)
        scored.append(Scored(subject, score, clusters, labels))
    write_json(folder.metrics, evaluation.evaluate(scored, threshold=threshold, resamples=50))
    write_json(folder.config, RunConfig.resolve("phantom_2mm", model="siamese").to_json())
    Metadata(
        space=TEMPLATE_SPACE,
        modalities=["T1w", "FLAIR"],
        splits={"train": ["a", "b"], "validation": [], "test": list(names)},
        data_hash="abc",
        split_hash="def",
        machine="x86_64",
        steps={"train": Step(seconds=3.0, peak_gib=1.0)},
        versions={"epizoo": "0"},
    ).write(folder.metadata)
    folder.history.write_text("epoch,loss,val_loss\n1,3.0,3.5\n2,2.0,2.5\n")
    return folder


def build(folder, *readers):
    return build_report(open_run(folder.path, needs=["metrics"]), *readers)


def read(names):
    return [SUBJECTS[name] for name in names]


def controls():
    return iter([SUBJECTS["c1"]] * 3)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a run with an annotated patient, another and a control, and its reports."""
    folder = make_run(tmp_path_factory.mktemp("run"), ["p1", "p2", "c1"])
    build(folder, read, controls)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Pages without viewer and slices, where a test is about something else."""
    monkeypatch.setattr(patient, "viewer", lambda *args, **kwargs: "<p>viewer</p>")
    monkeypatch.setattr(figures, "lightbox", lambda *args, **kwargs: b"slices" * 20_000)


def background(folder):
    return patient.Background(
        folder=folder,
        data="phantom_2mm",
        space=TEMPLATE_SPACE,
        modalities=["T1w", "FLAIR"],
        patch_shape=[15, 15],
        controls=None,
        scores=tables.ControlScores(),
        trained=40,
        limit=6.0,
    )


def pages(folder):
    return [folder.report, *sorted(folder.path.glob("sub-*/report.html"))]


def test_no_page_needs_a_network_or_a_file_outside_the_run(built):
    assert [page.parent.name for page in pages(built)][1:] == ["sub-p1", "sub-p2"]
    for page in pages(built):
        text = html.unescape(page.read_text())  # the viewer is a page in an attribute
        for link in re.findall(r'(?:src|href)="([^"]*)"', text):
            assert link.startswith(("data:", "#")) or (page.parent / link).is_file(), link
        assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest\(\)\.open\(.http", text)


def test_every_picture_has_a_text_and_something_on_it(built):
    for page in pages(built):
        tags = re.findall(r"<img [^>]*>", page.read_text())
        assert tags
        for tag in tags:
            assert len(re.search(r'alt="([^"]*)"', tag)[1]) > 10
            data = re.search(r'src="data:image/\w+;base64,([^"]+)"', tag)[1]
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"))
            assert pixels.std() > 3


def test_each_patient_has_a_page_and_the_cluster_on_the_lesion_is_marked(built):
    page = built.report.read_text()
    assert re.findall(r'<section class="subject" id="sub-(\w+)"', page) == ["p1", "p2"]
    first, second = page.split('id="sub-p1"')[1].split('id="sub-p2"')
    assert re.search(r'<tr class="hit"[^>]*><th scope="row">1</th>', first)
    assert 'class="hit"' not in second
    assert "(yellow, dashed)" in second
    assert "annotated lesion (cyan)" not in second


def test_false_positives_of_controls_are_listed_with_their_place_and_signs(tmp_path, quick):
    folder = make_run(tmp_path / "run", ["p1", "c1"], threshold=2.5)
    table = folder.clusters("c1", TEMPLATE_SPACE)
    clusters = [dataclasses.replace(c, signs=f"darker T1w {c.rank}.5") for c in read_clusters_tsv(table)]
    write_clusters_tsv(table, clusters)
    build(folder, read)
    listed = folder.report.read_text().split("<h3>False positives</h3>")[1].split("</table>")[0]
    score_map, affine = read_nifti(folder.score_map("c1", TEMPLATE_SPACE))
    labels, _ = read_nifti(folder.labels("c1", TEMPLATE_SPACE))
    high, at_threshold = find_clusters(score_map, affine, SUBJECTS["c1"].brain_mask, threshold=2.5)
    assert len(high) > 1
    high.sort(key=lambda c: -c.peak)
    ranks = [labels[at_threshold == c.rank][score_map[at_threshold == c.rank].argmax()] for c in high]
    assert re.findall(r"darker T1w (\d+)\.5", listed) == [f"{rank:.0f}" for rank in ranks if rank]
    assert len(re.findall("<tr>", listed)) == 1 + len(high)
    places = re.findall(r'</th><td class="text">([^<]*)<', listed)
    assert places == [f"{c.hemisphere} {c.region}" for c in high]
    assert "sub-p1" not in listed
    none = make_run(tmp_path / "none", ["p1", "c1"], threshold=30.0)
    build(none, read)
    assert "False positives</h3>" not in none.report.read_text()


def test_the_viewer_is_on_the_patients_own_page_and_begins_at_the_first_cluster(built):
    assert "<iframe" not in built.report.read_text()
    text = html.unescape((built.path / "sub-p1" / "report.html").read_text())
    assert "<iframe srcdoc=" in text
    place = re.search(r'"numSlice": \{"X": (\d+), "Y": (\d+), "Z": (\d+)\}', text)
    table = built.clusters("p1", TEMPLATE_SPACE).read_text().splitlines()
    peak = [
        float(dict(zip(table[0].split("\t"), table[1].split("\t"), strict=True))[f"peak_{a}"]) for a in "xyz"
    ]
    voxel = nib.affines.apply_affine(np.linalg.inv(SUBJECTS["p1"].affine), peak)
    assert np.abs(np.array(place.groups(), float) - voxel).max() <= 1


def test_the_viewer_switches_between_all_modalities(built):
    text = html.unescape((built.path / "sub-p1" / "report.html").read_text())
    first = re.search(r'id="spriteImg[^>]*?src="([^"]*)"', text).group(1)
    switches = re.findall(r'<input type="radio" name="modality" value="([^"]*)"( checked)?>(\w+)<', text)
    assert [(bool(checked), name) for _, checked, name in switches] == [(True, "T1w"), (False, "FLAIR")]
    assert switches[0][0] == ""  # what the viewer begins with
    sprites = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("L"))
        for data in (first, switches[1][0])
    ]
    assert sprites[0].shape == sprites[1].shape
    assert (sprites[0] != sprites[1]).mean() > 0.1
    assert 'value="80"' in text


def test_an_index_of_200_patients_stays_small(tmp_path, quick, monkeypatch):
    folder = make_run(tmp_path, ["p1", "c1"])
    metrics, rows = Metrics.read(folder.metrics), []
    page = patient.subject_page(SUBJECTS["p1"], background(folder))
    for number in range(200):
        name = f"many{number:03}"
        path = folder.score_map(name, TEMPLATE_SPACE)
        path.parent.mkdir(parents=True)
        path.symlink_to(folder.score_map("p1", TEMPLATE_SPACE))
        rows.append(dataclasses.replace(metrics.rows[0], subject=name))
    write_json(folder.metrics, dataclasses.replace(metrics, rows=tuple(rows)))
    monkeypatch.setattr(report, "PAGES_A_PROCESS", 1000)  # another would not know of this:
    monkeypatch.setattr(
        report, "subject_page", lambda subject, _: dataclasses.replace(page, subject=subject.subject)
    )
    people = (dataclasses.replace(SUBJECTS["p1"], subject=row.subject) for row in rows)
    text = build(folder, lambda names: people).read_text()
    assert len(text) < 5e6
    assert text.count('class="thumb"') == 200
    assert text.count('/report.html">sub-many') == 200
    assert len(list(folder.path.glob("sub-many*/report.html"))) == 200


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the page's script")
def test_a_clusters_row_takes_the_cross_where_the_viewer_would_have_begun():
    subject = SUBJECTS["p2"]
    score = 3.0 * subject.brain_mask.astype(np.float32)
    shown = {}
    for place in ((30.0, -20.0, 12.0), (-24.0, 36.0, -8.0)):
        page = viewer(subject, score, place)
        (params,) = re.findall(r"brainsprite\((\{.*?\})\);", page, flags=re.DOTALL)
        (go,) = re.findall(r"window.goTo = .*?\n  \};\n", page, flags=re.DOTALL)
        shown[place] = json.loads(params)["numSlice"], params, go
    for place, (begun, _, _) in shown.items():
        _, params, go = shown[(30.0, -20.0, 12.0)]
        script = f"""
            const window = {{brain: {params}}}, brain = window.brain;
            brain.nbSlice = {{X: 999, Y: 999, Z: 999}};
            brain.init = brain.drawAll = () => {{}};
            {go}
            window.goTo(...{list(place)});
            console.log(JSON.stringify(brain.numSlice));
        """
        done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == pytest.approx(begun, abs=0.51)


def test_each_row_of_a_page_knows_where_its_peak_lies(built):
    page = (built.path / "sub-p1" / "report.html").read_text()
    assert "tr[data-mm]" in page
    assert re.search(r'<tr[^>]* data-mm="-?[\d.]+,-?[\d.]+,-?[\d.]+"', page)


def test_a_quiet_map_shows_the_anatomy_alone():
    subject = SUBJECTS["p2"]
    for height in (0.0, 0.5, -3.0):
        quiet = height * subject.brain_mask.astype(np.float32)
        page = viewer(subject, quiet)
        assert "spriteImg" in page
        assert '<input type="radio"' not in page  # one modality: nothing to choose
        assert figures.lightbox(subject, quiet, (37, 40, 40), ("T1w", "FLAIR"))


def test_a_cohort_past_the_limit_gets_an_index_with_a_link_to_each_page(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(report, "MAX_BYTES", 300_000)
    page = build(make_run(tmp_path, ["p1", "p2"]), read).read_text()
    assert '<section class="subject" id="sub-' not in page
    assert '<a href="sub-p1/report.html">sub-p1</a>' in page
    assert len(page) < 250_000


def test_a_cohort_without_patients_says_so_and_shows_its_controls(tmp_path, quick):
    page = build(make_run(tmp_path, ["c1"]), read).read_text()
    assert "No test patient has an annotated lesion" in page
    assert "FROC: the share" not in page
    assert '<section class="subject" id="sub-c1">' in page
    assert "controls as high" not in page  # a control is not its own reference


def test_a_cohort_without_controls_says_so_and_gives_no_p_values(tmp_path, quick):
    page = build(make_run(tmp_path, ["p1"], threshold=None), read).read_text()
    assert "The test set holds no controls" in page
    assert "there is no level for false positives" in page
    assert "p of the peak" not in page  # the run knows nothing of healthy people
    assert "FROC" in page


def test_a_run_without_metrics_is_an_error(tmp_path):
    folder = make_run(tmp_path, ["c1"])
    folder.metrics.unlink()
    with pytest.raises(InputError, match=r"metrics\.json"):
        build(folder, read)


def test_hostile_names_stay_text(tmp_path, monkeypatch):
    """In settings, metadata, figures, tables and labels; in the pages and in the viewers that they hold."""
    bad = "'\"><img src=x onerror=alert(1)><!--{{7*7}}"
    monkeypatch.setitem(SUBJECTS, bad, dataclasses.replace(SUBJECTS["p1"], subject=bad, site=bad))
    folder = make_run(tmp_path, [bad, "p2"])
    write_json(folder.config, read_json(folder.config) | {"data": f"<script>alert(1)</script>{bad}"})
    stored = read_json(folder.metadata)
    named = {"modalities": [bad, "FLAIR"], "machine": bad, "versions": {bad: bad}, "weights": bad}
    write_json(folder.metadata, stored | named)
    build(folder, read, controls)
    for page in pages(folder):
        text = page.read_text()
        assert "alert(1)" in text  # it is shown
        for unfolded in (text, *map(html.unescape, re.findall(r'srcdoc="([^"]*)"', text))):
            assert "<img src=x" not in unfolded
            assert "<script>alert" not in unfolded
            assert "49<" not in unfolded


def test_a_lightbox_shows_the_plane_of_its_centre_with_the_patients_left_on_the_left():
    image = np.zeros((5, 6, 7))
    image[1, 2, 3] = 1
    box = [slice(0, 5), slice(0, 6), slice(0, 7)]
    axial = figures._slice(image, 2, 3, box)
    assert axial.shape == (6, 5)
    assert axial[2, 1] == 1
    assert not figures._slice(image, 2, 4, box).any()


def test_a_patch_is_centred_on_its_voxel_and_black_past_the_volume():
    image = np.arange(5 * 6 * 7 * 2, dtype=float).reshape(5, 6, 7, 2) + 1
    patch = figures._patch(image, (1, 5, 3), (5, 3))
    assert patch.shape == (5, 3, 2)
    np.testing.assert_array_equal(patch[2, 1], image[1, 5, 3])
    np.testing.assert_array_equal(patch[0], 0)  # x = -1
    np.testing.assert_array_equal(patch[:, 2], 0)  # y = 6
    np.testing.assert_array_equal(patch[1:, :2], image[:4, 4:6, 3])


def test_the_mean_image_is_of_the_first_controls_only():
    one = SUBJECTS["c1"]
    many = (dataclasses.replace(one, image=np.full_like(one.image, value)) for value in itertools.count())
    mean, count = report._mean_image(many)
    assert count == 20
    np.testing.assert_allclose(mean, np.mean(range(20)))
    assert report._mean_image([]) is None


def test_controls_as_high_do_not_count_the_control_itself():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=2000), rng.normal(size=3000)
    scores = tables.ControlScores()
    scores.add("a", first)
    scores.add("b", second)
    assert scores.as_high(first.max()) == 1 + (second.max() >= first.max())
    others = scores.without("a", first)
    assert others.as_high(first.max()) == (second.max() >= first.max())
    np.testing.assert_array_equal(others.counts, tables.histogram(second))
    assert scores.without("nobody", first).highest.keys() == {"a", "b"}


def test_how_rare_a_score_is_stands_in_words_that_the_controls_bear_out():
    assert [tables.one_in(p, 40) for p in (0.7, 0.3, 0.05, 1 / 41, 1 / 42, 1e-9)] == [
        *("more than half", "1 in 3", "1 in 20", "1 in 41", "fewer than 1 in 41", "fewer than 1 in 41")
    ]


def test_the_first_line_says_what_is_rare_or_that_nothing_is(tmp_path, quick):
    page = build(make_run(tmp_path, ["p1", "p2", "c1"]), read).read_text()
    first, second = page.split('id="sub-p1"')[1].split('id="sub-p2"')
    assert "Rarer than in 1 of 10 healthy people: a high score, " in first
    assert "(rank 1; fewer than 1 in 3 healthy people has as much anywhere)" in first
    assert "Nothing here is rarer than in 1 of 10 healthy people: " in second
    assert 'class="common"' in second


def test_small_p_values_are_written_as_powers_of_ten():
    assert [tables.p_value(p) for p in (0.5, 0.0123, 2.6e-7)] == ["0.500", "0.012", "3·10⁻⁷"]


def test_the_chance_curve_equals_clusters_thrown_at_random():
    chances = [np.array([0.5, 0.2, 0.1]), np.array([0.3])]
    false, found = report._chance_froc(chances)
    rng = np.random.default_rng(0)
    draws = 20_000
    throws = [rng.random((draws, len(p))) < p for p in chances]
    for rank in range(4):
        misses = np.mean([np.mean((~t[:, :rank]).sum(1)) for t in throws])
        hits = np.mean([np.mean(t[:, :rank].any(1)) for t in throws])
        assert false[rank] == pytest.approx(misses, abs=0.02)
        assert found[rank] == pytest.approx(hits, abs=0.02)


def test_native_positions_agree_with_a_map_brought_to_native_space(tmp_path):
    ants = pytest.importorskip("ants")
    from tfds_epilepsy.registration import Scan, resample

    template = load_template(2)
    anat = tmp_path / "sub-a" / "anat"
    anat.mkdir(parents=True)
    matrix = np.array([[0.98, 0.1, 0.0], [-0.1, 0.98, 0.05], [0.02, -0.05, 1.03]])
    way = ants.create_ants_transform(matrix=matrix, translation=(7, -4, 5), dimension=3)
    there, back = (
        anat / f"sub-a_from-{a}_to-{b}_mode-image_xfm.h5"
        for a, b in (("T1w", TEMPLATE_SPACE), (TEMPLATE_SPACE, "T1w"))
    )
    ants.write_transform(way, str(there))
    ants.write_transform(way.invert(), str(back))
    spot = np.zeros(template.shape, np.float32)
    spot[19:22, 59:62, 44:47] = 1
    moved = resample(Scan(spot, template.affine), Scan(spot, template.affine), [back]).array
    expected = nib.affines.apply_affine(template.affine, ndimage.center_of_mass(moved))
    point = nib.affines.apply_affine(template.affine, (20, 60, 45))
    np.testing.assert_allclose(native.native_positions(tmp_path, "a", [point])[0], expected, atol=0.3)
    assert np.abs(expected - point).max() > 3


def test_positions_are_unknown_where_there_is_no_transform(tmp_path):
    assert native.native_positions(tmp_path, "a", [(0, 0, 0)]) is None
    assert native.native_positions("phantom_2mm", "a", [(0, 0, 0)]) is None


def test_a_report_can_be_written_again_and_leaves_nothing_half_written(tmp_path, quick):
    folder = make_run(tmp_path, ["c1"])
    first = build(folder, read).read_text()
    assert build(folder, read).read_text() == first
    assert not list(folder.path.rglob(".partial*"))


def test_pages_drawn_by_several_processes_are_the_same(tmp_path, built, monkeypatch):
    monkeypatch.setattr(report, "PAGES_A_PROCESS", 1)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    folder = make_run(tmp_path / "run", ["p1", "p2", "c1"])
    assert build(folder, read, controls).read_text() == built.report.read_text()
    viewers = [page.read_text() for page in pages(folder)[1:]]
    assert [len(page) for page in viewers] == [len(page.read_text()) for page in pages(built)[1:]]


def test_report_draws_figures_of_validation_alone():
    epochs = {"epoch": [1, 2], "d_loss": [1, 2]}
    few = figures.training_curves(epochs)
    more = figures.training_curves(
        epochs | {"val_frechet": [2, 1], "val_recall": [0, 1], "val_coverage": [0, 1]}
    )
    assert len(more) > len(few)
