"""The supervised reference: what it sees, that it learns, slabs that agree, save and load."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from epizoo.evaluation import auroc, check_no_leak
from epizoo.models.callbacks import ProgressBar
from epizoo.supervised import (
    MARGIN,
    SEGMENT,
    Segments,
    SupervisedReference,
    annotated_controls,
    annotated_phantoms,
    fit_supervised,
    masked_crossentropy,
    two_pathways,
)
from tfds_epilepsy import phantom
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

SHAPE = (32, 25, 22)


def subject(seed: int, *, lesion: bool = True, channels: int = 1) -> Subject:
    """Noise in a box of brain; the lesion is brighter by one standard deviation."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[3:-3, 3:-3, 3:-3] = True
    truth = np.zeros(SHAPE, bool)
    if lesion:
        x, y, z = rng.integers(4, np.array(SHAPE) - 10)
        truth[x : x + 6, y : y + 6, z : z + 6] = True
    image = 0.4 + 0.1 * rng.normal(size=(*SHAPE, channels)) + 0.1 * truth[..., None]
    image = np.where(mask[..., None], np.clip(image, 0.01, 1), 0).astype(np.float32)
    return Subject(f"s{seed}", "patient", image, mask, truth, np.diag([2.0, 2, 2, 1]))


@pytest.fixture(scope="module")
def reference() -> SupervisedReference:
    return fit_supervised(
        [subject(seed) for seed in range(4)], epochs=3, steps_per_epoch=8, batch_size=8, filters=8, seed=1
    )


def test_output_depends_on_local_and_context_and_on_nothing_wider():
    model = two_pathways(1, filters=4)
    edge = SEGMENT + 2 * MARGIN
    rng = np.random.default_rng(0)
    image = rng.random((1, edge, edge, edge, 1), np.float32)
    base = np.asarray(model(image, training=False))
    assert base.shape == (1, SEGMENT, SEGMENT, SEGMENT, 1)
    centre = edge // 2
    other = image.copy()
    other[0, centre + 13] += 1  # coarse voxel 4 away: the border of the context
    assert np.abs(np.asarray(model(other, training=False)) - base)[0, 4, 4, 4, 0] > 0
    outside = image.copy()
    outside[0, centre + 14 :] += 1
    changed = np.abs(np.asarray(model(outside, training=False)) - base)
    assert changed[0, :6].max() == 0  # coarse voxels 0 and 1 do not reach that far
    assert changed[0, 6:].max() > 0


def test_segments_are_seeded_balanced_and_aligned_with_their_targets():
    subjects = [subject(0), subject(1, lesion=False)]
    images, targets = Segments(subjects, batch_size=8, steps=3, seed=4)[1]
    assert images.shape == (8, 33, 33, 33, 1)
    assert targets.shape == (8, 9, 9, 9, 2)
    assert (targets[1::2, 4, 4, 4, 0] == 1).all()  # every second is centred on a lesion
    np.testing.assert_array_equal(images, Segments(subjects, batch_size=8, steps=3, seed=4)[1][0])
    assert not np.array_equal(images, Segments(subjects, batch_size=8, steps=3, seed=5)[1][0])
    # The image is zero where the target says there is no brain.
    np.testing.assert_array_equal(images[:, 12:21, 12:21, 12:21, 0] != 0, targets[..., 1] == 1)
    assert (targets[..., 0] <= targets[..., 1]).all()


def test_another_epoch_brings_other_segments():
    data = Segments([subject(0)], batch_size=2, steps=1, seed=0)
    first = data[0][0]
    data.on_epoch_end()
    assert not np.array_equal(first, data[0][0])


def test_loss_counts_the_brain_alone():
    logit = np.array([0.0, 2.0, 50.0], np.float32).reshape(1, 3, 1, 1, 1)
    lesion, brain = [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]
    target = np.stack([lesion, brain], axis=-1).reshape(1, 3, 1, 1, 2).astype(np.float32)
    expected = (np.log(2) + np.log1p(np.exp(2.0))) / 2
    assert float(masked_crossentropy(target, logit)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_it_learns_lesions_that_it_has_not_seen(reference):
    areas = [
        auroc(reference.score(s)[s.brain_mask], s.lesion_mask[s.brain_mask]) for s in map(subject, (50, 51))
    ]
    assert min(areas) > 0.8


def test_map_is_on_the_grid_zero_outside_the_brain_and_independent_of_slabs(reference, monkeypatch):
    one = subject(60)
    score_map = reference.score(one)
    assert score_map.shape == SHAPE
    assert score_map.dtype == np.float32
    assert not score_map[~one.brain_mask].any()
    monkeypatch.setattr("epizoo.supervised.SLAB", 6)
    np.testing.assert_allclose(reference.score(one), score_map, atol=1e-5)


def test_map_equals_the_segment_around_a_place(reference):
    one = subject(61)
    score_map = reference.score(one)
    at = (12, 9, 6)  # a multiple of the context's scale
    padded = np.pad(one.image, [(MARGIN, MARGIN)] * 3 + [(0, 0)])
    edge = SEGMENT + 2 * MARGIN
    segment = padded[at[0] : at[0] + edge, at[1] : at[1] + edge, at[2] : at[2] + edge]
    mean, sd = reference.healthy
    expected = (np.asarray(reference.model(segment[None], training=False))[0, ..., 0] - mean) / sd
    np.testing.assert_allclose(score_map[12:21, 9:18, 6:15], expected, atol=1e-5)


def test_scores_are_in_deviations_of_healthy_tissue(reference):
    healthy = [
        reference.score(s)[s.brain_mask & ~s.lesion_mask] for s in (subject(seed) for seed in range(4))
    ]
    assert np.concatenate(healthy).mean() == pytest.approx(0, abs=1e-4)
    assert np.concatenate(healthy).std() == pytest.approx(1, abs=1e-4)


def test_save_and_load_give_the_same_map(reference, tmp_path):
    again = SupervisedReference.load(reference.save(tmp_path / "cnn"))
    assert again.subjects == reference.subjects == ["s0", "s1", "s2", "s3"]
    np.testing.assert_array_equal(again.score(subject(62)), reference.score(subject(62)))
    assert sorted(p.name for p in (tmp_path / "cnn").iterdir()) == ["manifest.json", "supervised.keras"]
    with pytest.raises(InputError, match="s2"):
        check_no_leak(again.subjects, ["s2", "s9"])


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_the_uninterrupted_one(tmp_path, monkeypatch):
    subjects = [subject(0), subject(1)]

    def fit(folder):
        settings = {"epochs": 3, "steps_per_epoch": 3, "batch_size": 2, "filters": 4, "seed": 1}
        return fit_supervised(subjects, folder=folder, **settings)

    whole = fit(tmp_path / "whole")
    advance = ProgressBar.on_train_batch_end

    def killed(bar, batch, logs=None):
        advance(bar, batch, logs)
        if int(bar.model.optimizer.iterations) > 6:  # in the third epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "killed")
    monkeypatch.setattr(ProgressBar, "on_train_batch_end", advance)
    resumed = fit(tmp_path / "killed")
    for one, other in zip(whole.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    again = fit(tmp_path / "killed")  # nothing is left to do
    np.testing.assert_array_equal(again.model.weights[0], whole.model.weights[0])
    rows = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "killed")]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == 4


def test_controls_with_lesions_keep_their_label_and_get_another_lesion_each_time():
    config = phantom.PhantomConfig(n_train=2)
    controls = [phantom.subject(config, label) for label in phantom.cohort(config)["train"]]
    made = list(annotated_controls(controls, ("T1w", "FLAIR"), 3))
    assert sorted(one.subject for one in made) == ["control001", "control001", "control002"]
    own = {control.subject: control for control in controls}
    for one in made:
        changed = (one.image != own[one.subject].image).any(-1)
        assert 0 < one.lesion_mask.sum() < 5000
        assert changed[one.lesion_mask].mean() > 0.9
        assert not changed[~ndimage.binary_dilation(one.lesion_mask, iterations=4)].any()
        assert one.group == "patient"
        assert one.image.dtype == np.float32
        assert one.image.max() <= 1
    first, second = (one.lesion_mask for one in made if one.subject == "control001")
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(
        made[0].image, next(annotated_controls(controls, ("T1w", "FLAIR"), 3)).image
    )


def test_unusable_input_is_refused(reference, tmp_path):
    with pytest.raises(InputError, match="annotated patients"):
        fit_supervised([subject(0, lesion=False)])
    with pytest.raises(InputError, match=r"\[1, 2\] modalities"):
        fit_supervised([subject(0), subject(1, channels=2)])
    with pytest.raises(InputError, match="has 2 modalities"):
        reference.score(subject(1, channels=2))
    with pytest.raises(InputError, match="no supervised reference"):
        SupervisedReference.load(tmp_path)


def test_annotated_phantoms_are_of_another_cohort_and_made_once(tmp_path, monkeypatch):
    config = phantom.PhantomConfig(n_train=1, n_test_controls=0, n_test_patients=1)
    (other,) = annotated_phantoms(config, 1, data_dir=tmp_path)
    own = phantom.subject(config, "patient001")
    assert other.subject == "annotated001"
    assert other.lesion_mask.any()
    assert not np.array_equal(other.image, own.image)
    monkeypatch.setattr("tfds_epilepsy.tfds_epilepsy_dataset_builder.generate", None)
    (again,) = annotated_phantoms(config, 1, data_dir=tmp_path)
    np.testing.assert_array_equal(again.image, other.image)
    with pytest.raises(InputError, match="at least 1"):
        next(annotated_phantoms(config, 1, seed=0))
