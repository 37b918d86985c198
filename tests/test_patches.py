import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tfds_epilepsy import patch_pool
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.patches import RandomIntensity, RandomMirror, memory_bytes, patch_dataset
from tfds_epilepsy.volumes import Subject, scaled_position

SHAPE = (9, 12, 7)
AFFINE = np.array([[2, 0, 0, -7], [0, 3, 0, -20], [0, 0, 4, -10], [0, 0, 0, 1]], float)  # anisotropic


def make_subject(label, modalities=2, shape=SHAPE, **changes):
    rng = np.random.default_rng(label if isinstance(label, int) else 0)
    fields = {
        "subject": f"{label}",
        "group": "control",
        "image": rng.uniform(0.01, 1, (*shape, modalities)).astype(np.float32),  # up to the border, never 0
        "brain_mask": rng.random(shape) < 0.6,
        "lesion_mask": np.zeros(shape, bool),
        "affine": AFFINE,
    }
    return Subject(**{**fields, **changes})


def cohort(n, **kwargs):
    return [make_subject(i, **kwargs) for i in range(n)]


def take(dataset, steps):
    return [{k: v.numpy() for k, v in element.items()} for element in dataset.take(steps)]


def reference_patch(image, voxel, patch_shape):
    """Loop with zeros past the volume."""
    shape = patch_shape if len(patch_shape) == 3 else (*patch_shape, 1)
    patch = np.zeros((*shape, image.shape[-1]), np.float32)
    for offset in np.ndindex(*shape):
        source = [v + o - n // 2 for v, o, n in zip(voxel, offset, shape, strict=True)]
        if all(0 <= s < limit for s, limit in zip(source, image.shape, strict=False)):
            patch[offset] = image[tuple(source)]
    return patch.reshape(*patch_shape, image.shape[-1])


def voxel_of(position):
    """Voxel indices of scaled positions, through the table of all voxels."""
    indices = np.array(list(np.ndindex(*SHAPE)))
    distance = np.abs(scaled_position(indices, AFFINE)[None] - position[:, None]).max(-1)
    assert distance.min(1).max() < 1e-6
    return indices[distance.argmin(1)]


def owner_of(patch, voxel, subjects):
    """The subject whose image has the central value; values of the cohort are all different."""
    centre = patch[tuple(n // 2 for n in patch.shape[:-1])]
    [number] = [i for i, s in enumerate(subjects) if np.array_equal(s.image[tuple(voxel)], centre)]
    return number


def draw(subjects, steps=20, **kwargs):
    """Owners, partners' owners (pairs) and voxels of all patches of some steps."""
    owners, partners, voxels = [], [], []
    for element in take(patch_dataset(subjects, (1, 1), **kwargs), steps):
        found = voxel_of(element["position"])
        voxels.append(found)
        owners += [owner_of(p, v, subjects) for p, v in zip(element["patch"], found, strict=True)]
        if "partner" in element:
            partners += [owner_of(p, v, subjects) for p, v in zip(element["partner"], found, strict=True)]
    return np.array(owners), np.array(partners), np.concatenate(voxels)


@pytest.mark.parametrize("modalities", [1, 3])
@pytest.mark.parametrize("patch_shape", [(1, 1), (5, 3), (3, 15), (3, 5, 1), (1, 3, 7), (15, 15, 15)])
def test_every_patch_equals_a_loop_with_zero_padding(patch_shape, modalities):
    subjects = cohort(3, modalities=modalities)
    dataset = patch_dataset(subjects, patch_shape, sampling="pair", batch_size=12, seed=3)
    for element in take(dataset, 2):
        assert element["patch"].shape == element["partner"].shape == (12, *patch_shape, modalities)
        assert all(v.dtype == np.float32 for v in element.values())
        for name in ("patch", "partner"):
            for patch, voxel in zip(element[name], voxel_of(element["position"]), strict=True):
                owner = subjects[owner_of(patch, voxel, subjects)]
                np.testing.assert_array_equal(patch, reference_patch(owner.image, voxel, patch_shape))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    half=st.lists(st.integers(0, 6), min_size=2, max_size=3),
    modalities=st.integers(1, 3),
)
def test_patches_of_any_size_on_any_grid_are_windows_of_the_padded_volume(shape, half, modalities):
    subject = make_subject(0, modalities, shape, brain_mask=np.ones(shape, bool))
    patch_shape = tuple(2 * h + 1 for h in half)
    pool = patch_pool.PatchPool(patch_shape, 1, 16, 0, None, False, 2**24)
    pool.fill(iter([subject]))
    patches, positions = pool.batch(0)
    indices = np.array(list(np.ndindex(*shape)))
    where = np.abs(scaled_position(indices, AFFINE)[None] - positions[:, None]).max(-1).argmin(1)
    margins = [(h, h) for h in (*half, 0)[:3]]
    padded = np.pad(subject.image, [*margins, (0, 0)])
    for patch, (x, y, z) in zip(patches, indices[where], strict=True):
        size = (*patch_shape, 1)[:3]
        window = padded[x : x + size[0], y : y + size[1], z : z + size[2]]
        np.testing.assert_array_equal(patch, window.reshape(patch.shape))


def test_positions_are_in_the_mask_of_every_subject_shown():
    subjects = cohort(4)
    owners, partners, voxels = draw(subjects, sampling="pair")
    assert (owners != partners).all()
    for owner, partner, voxel in zip(owners, partners, voxels, strict=True):
        assert subjects[owner].brain_mask[tuple(voxel)]
        assert subjects[partner].brain_mask[tuple(voxel)]


def test_patches_are_uniform_over_subjects_and_over_the_voxels_of_each_mask():
    subjects = cohort(2)
    owners, _, voxels = draw(subjects, steps=60)
    assert stats.chisquare(np.bincount(owners)).pvalue > 1e-3
    for number, subject in enumerate(subjects):
        counts = np.zeros(SHAPE)
        np.add.at(counts, tuple(voxels[owners == number].T), 1)
        assert counts[~subject.brain_mask].sum() == 0
        assert stats.chisquare(counts[subject.brain_mask]).pvalue > 1e-3


def test_pairs_are_uniform_over_all_ordered_pairs_of_subjects():
    subjects = cohort(3, brain_mask=np.ones(SHAPE, bool))
    owners, partners, _ = draw(subjects, sampling="pair")
    counts = [np.sum((owners == a) & (partners == b)) for a, b in itertools.permutations(range(3), 2)]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_weights_set_the_frequencies_of_voxels():
    subjects = cohort(2)
    weights = np.random.default_rng(0).integers(0, 4, SHAPE).astype(float)
    owners, _, voxels = draw(subjects, steps=40, weights=weights)
    for number, subject in enumerate(subjects):
        counts = np.zeros(SHAPE)
        np.add.at(counts, tuple(voxels[owners == number].T), 1)
        drawn = subject.brain_mask & (weights > 0)
        assert counts[~drawn].sum() == 0
        expected = weights[drawn] / weights[drawn].sum() * counts.sum()
        assert stats.chisquare(counts[drawn], expected).pvalue > 1e-3


def test_weights_of_a_function_are_each_subjects_own():
    subjects = cohort(2, brain_mask=np.ones(SHAPE, bool))
    voxel = {"0": (0, 0, 0), "1": (8, 11, 6)}

    def weights(subject):
        weight = np.zeros(SHAPE)
        weight[voxel[subject.subject]] = 0.1
        return weight

    owners, _, voxels = draw(subjects, steps=1, weights=weights)
    assert {(o, tuple(v)) for o, v in zip(owners, voxels, strict=True)} == {(0, voxel["0"]), (1, voxel["1"])}


@pytest.mark.parametrize("sampling", ["patch", "pair"])
def test_balance_visits_every_location_once_before_one_comes_again(sampling):
    subjects = cohort(3)
    coverage = np.sum([s.brain_mask for s in subjects], axis=0)
    drawable = coverage >= (2 if sampling == "pair" else 1)
    count = int(drawable.sum())
    owners, _, voxels = draw(subjects, steps=5, balance=True, batch_size=count // 2, sampling=sampling)
    first, second = voxels[:count], voxels[count : 2 * count]
    assert len(set(map(tuple, first))) == len(set(map(tuple, second))) == count
    assert drawable[tuple(voxels.T)].all()
    assert not np.array_equal(first, second)
    assert all(subjects[o].brain_mask[tuple(v)] for o, v in zip(owners, voxels, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 1000])
def test_shuffled_is_a_permutation(count):
    orders = [[patch_pool._shuffled(i, count, np.uint64(key)) for i in range(count)] for key in (1, 2)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 5 or orders[0] != orders[1]


def test_uniform_is_splitmix64():
    # The first outputs of the authors' splitmix64.c for the state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state = np.uint64(1234567)
    for value in expected:
        state, uniform = patch_pool._uniform(np.uint64(state))
        assert uniform == (value >> 11) * 2.0**-53


@pytest.mark.parametrize(
    "kwargs", [{}, {"sampling": "pair"}, {"balance": True}, {"augment": [RandomIntensity()]}]
)
def test_batches_are_a_function_of_seed_and_step(kwargs):
    subjects = cohort(3)
    first = take(patch_dataset(subjects, (3, 3), seed=5, batch_size=8, **kwargs), 6)
    again = take(patch_dataset(iter(subjects), (3, 3), seed=5, batch_size=8, start_step=4, **kwargs), 2)
    other = take(patch_dataset(subjects, (3, 3), seed=6, batch_size=8, **kwargs), 1)
    for name in first[0]:
        for a, b in zip(first[4:], again, strict=True):
            np.testing.assert_array_equal(a[name], b[name])
        assert not np.array_equal(first[0][name], other[0][name])
        assert not np.array_equal(first[0][name], first[1][name])


def test_the_parallel_pipeline_equals_one_batch_after_the_other():
    subjects = cohort(3)
    pool = patch_pool.PatchPool((5, 5), 2, 64, 9, None, False, 2**30)
    assert pool.fill(iter(subjects))
    for step, element in enumerate(
        take(patch_dataset(subjects, (5, 5), sampling="pair", batch_size=64, seed=9), 30)
    ):
        for name, array in zip(("patch", "partner", "position"), pool.batch(step), strict=True):
            np.testing.assert_array_equal(element[name], array)


def test_patches_are_the_same_for_ever():
    # Drawn once and kept: a change of these numbers breaks every resumed training.
    dataset = patch_dataset(cohort(3, brain_mask=np.ones(SHAPE, bool)), (1, 1), seed=7, batch_size=4)
    [element] = take(dataset, 1)
    assert voxel_of(element["position"]).tolist() == [[1, 0, 2], [0, 4, 0], [5, 3, 2], [6, 8, 3]]


def window_arguments(n_subjects, patch_shape):
    return {"memory_limit": memory_bytes(SHAPE, 2, n_subjects, patch_shape), "batch_size": 8}


@pytest.mark.parametrize("kind", ["list", "function"])
def test_a_window_moves_over_the_cohort(kind):
    subjects = cohort(5)
    source = subjects if kind == "list" else lambda: iter(subjects)
    arguments = {**window_arguments(2, (1, 1)), "patches_per_subject": 40, "sampling": "pair"}
    dataset = patch_dataset(source, (1, 1), **arguments)
    elements = take(dataset, 60)
    for step, element in enumerate(elements):  # 5 steps a window, 12 windows: round the cohort and on
        window = {step // 5 % 5, (step // 5 + 1) % 5}
        for patch, partner, voxel in zip(
            element["patch"], element["partner"], voxel_of(element["position"]), strict=True
        ):
            assert {owner_of(patch, voxel, subjects), owner_of(partner, voxel, subjects)} == window
    for start in (0, 3, 5, 33):
        resumed = take(patch_dataset(source, (1, 1), start_step=start, **arguments), 9)
        for a, b in zip(elements[start:], resumed, strict=False):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])


def test_iterators_over_one_windowed_dataset_do_not_disturb_each_other():
    subjects = cohort(4)
    dataset = patch_dataset(subjects, (3, 3), patches_per_subject=8, **window_arguments(2, (3, 3)))
    expected = take(dataset, 12)
    slow, fast = iter(dataset), iter(dataset)
    for _ in range(9):
        next(fast)
    for element in expected:
        np.testing.assert_array_equal(next(slow)["patch"].numpy(), element["patch"])


def test_a_bad_subject_that_enters_the_window_later_is_named():
    subjects = [*cohort(3), make_subject("late", brain_mask=np.zeros(SHAPE, bool))]
    dataset = patch_dataset(subjects, (3, 3), patches_per_subject=8, **window_arguments(2, (3, 3)))
    with pytest.raises(tf.errors.OpError, match="sub-late: the brain mask is empty"):
        take(dataset, 20)


def test_memory_bytes_is_what_the_arrays_take():
    pool = patch_pool.PatchPool((3, 3, 3), 1, 8, 0, np.ones(SHAPE), False, 2**20)
    pool.fill(iter(cohort(3)))
    arrays = (pool.images, pool.masks, pool.cells, pool.cumulative)
    assert memory_bytes(SHAPE, 2, 3, (3, 3, 3), weighted=True) == sum(3 * a[0].nbytes for a in arrays)


def test_the_memory_that_volumes_will_take_is_printed_before_they_are_read(capsys):
    shape = (90, 90, 90)
    each = memory_bytes(shape, 2, 1, (3, 3))
    said = f"{each / 2**20:.1f} MiB each: at most {3 * each / 2**30:.2f} GiB"
    subjects = cohort(3, shape=shape)
    patch_dataset(subjects, (3, 3), batch_size=1)
    assert f"patches: 3 subjects in memory, {said}" in capsys.readouterr().err
    patch_dataset(lambda: subjects * 2, (3, 3), batch_size=1, memory_limit=3 * each + 1)
    assert f"patches: at most 3 subjects at a time in memory, {said}" in capsys.readouterr().err

    def broken():
        yield subjects[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        patch_dataset(broken, (3, 3), memory_limit=3 * each)
    assert said in capsys.readouterr().err


def test_random_intensity_keeps_background_range_and_differs_by_patch():
    patch = np.full((200, 5, 5, 2), 0.5, np.float32)
    patch[:, 0] = 0
    element = {"patch": tf.constant(patch), "partner": tf.constant(patch), "position": tf.zeros((200, 3))}
    layer = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(RandomIntensity(0.1, 0.05, 0))
    )
    result = {k: v.numpy() for k, v in layer(element, seed=tf.constant([1, 2])).items()}
    assert (result["patch"][:, 0] == 0).all()
    assert ((result["patch"] >= 0) & (result["patch"] <= 1)).all()
    values = result["patch"][:, 1, 0]
    assert np.ptp(result["patch"][:, 1:], axis=(1, 2)).max() < 1e-6  # no noise: one change for a whole patch
    # of 0.5 exp(N(0, .1)) + N(0, .05): the standard deviation is close to .0707
    assert abs(values.std() - 0.0707) < 0.01
    assert not np.array_equal(result["patch"], result["partner"])
    noisy = RandomIntensity(0, 0, 0.02)(element, seed=tf.constant([1, 2]))["patch"].numpy()[:, 1:]
    assert abs(noisy.std() - 0.02) < 0.001


def test_random_mirror_reverses_x_of_both_and_negates_the_position():
    subjects = cohort(3)
    plain = take(patch_dataset(subjects, (3, 5, 3), sampling="pair"), 1)[0]
    mirrored = take(patch_dataset(subjects, (3, 5, 3), sampling="pair", augment=[RandomMirror()]), 1)[0]
    chosen = mirrored["position"][:, 0] != plain["position"][:, 0]
    assert 90 < chosen.sum() < 166
    np.testing.assert_array_equal(mirrored["position"][chosen], plain["position"][chosen] * [-1, 1, 1])
    for name in ("patch", "partner"):
        np.testing.assert_array_equal(mirrored[name][chosen], plain[name][chosen][:, ::-1])
        np.testing.assert_array_equal(mirrored[name][~chosen], plain[name][~chosen])


def test_all_bad_arguments_are_named_at_once():
    with pytest.raises(InputError) as error:
        patch_dataset(
            cohort(2), (15, 14), sampling="triple", batch_size=0, balance=True, weights=np.ones(SHAPE)
        )
    assert [p.split()[0] for p in error.value.problems] == [
        "patch_shape",
        "sampling",
        "batch_size",
        "weights",
    ]


def test_all_bad_subjects_are_named_at_once():
    image = make_subject(0).image
    spoilt = image.copy()
    spoilt[0, 0, 0, 0] = np.nan
    subjects = [
        make_subject("good"),
        make_subject("empty", brain_mask=np.zeros(SHAPE, bool)),
        make_subject("moved", affine=AFFINE + 1),
        make_subject("larger", shape=(10, 12, 7)),
        make_subject("poorer", modalities=1),
        make_subject("nan", image=spoilt),
        make_subject("cut", brain_mask=np.ones((3, 3, 3), bool)),
        make_subject("good"),
    ]
    with pytest.raises(InputError) as error:
        patch_dataset(subjects, (3, 3))
    assert [p.split(":")[0] for p in error.value.problems] == [
        f"sub-{name}" for name in ("empty", "moved", "larger", "poorer", "nan", "cut", "good")
    ]


@pytest.mark.parametrize(
    ("subjects", "kwargs", "message"),
    [
        ([], {}, "no subjects"),
        (cohort(1), {"sampling": "pair"}, "at least 2 subjects"),
        (cohort(2), {"weights": np.ones((3, 3, 3))}, "sub-0: weights"),
        (cohort(2), {"weights": np.zeros(SHAPE)}, "positive somewhere"),
        (cohort(2), {"weights": -np.ones(SHAPE)}, "not negative"),
        (cohort(2), {"memory_limit": 1000}, "a subject takes"),
        (iter(cohort(3)), window_arguments(2, (3, 3)), "only once"),
        ([make_subject(0, image=np.ones(SHAPE, np.float32))], {}, "modality"),
    ],
)
def test_bad_input_is_an_error_with_its_reason(subjects, kwargs, message):
    with pytest.raises(InputError, match=message):
        patch_dataset(subjects, (3, 3), **kwargs)


@pytest.mark.parametrize("balance", [False, True])
def test_pairs_without_a_common_voxel_are_an_error(balance):
    mask = np.zeros(SHAPE, bool)
    mask[:4] = True
    subjects = [make_subject(0, brain_mask=mask), make_subject(1, brain_mask=~mask)]
    with pytest.raises(InputError, match="no voxel in common"):
        patch_dataset(subjects, (3, 3), sampling="pair", balance=balance)


def test_trains_under_a_mirrored_strategy_and_exits():
    """Two logical CPUs; the process ends while tf.data still reads ahead."""
    code = """
import numpy as np, tensorflow as tf, keras
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.test_patches import cohort, window_arguments
from tfds_epilepsy.patches import patch_dataset
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for arguments in ({}, {**window_arguments(2, (3, 3)), "patches_per_subject": 8}):
    dataset = patch_dataset(cohort(4), (3, 3), **{**arguments, "batch_size": 8})
    whole = [e["patch"].numpy() for e in dataset.take(4)]
    halves = [strategy.experimental_local_results(e["patch"])
              for e, _ in zip(strategy.experimental_distribute_dataset(dataset), range(4))]
    for expected, parts in zip(whole, halves):
        assert [len(p) for p in parts] == [4, 4]
        np.testing.assert_array_equal(expected, np.concatenate([p.numpy() for p in parts]))
    with strategy.scope():
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    model.fit(dataset.map(lambda e: (e["patch"], e["position"])), steps_per_epoch=3, verbose=0)
left = iter(dataset)
next(left)
print("done")
"""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "done" in run.stdout
