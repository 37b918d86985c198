import pytest
import tensorflow as tf

from epizoo.registry import MODELS
from epizoo.testing import models as contract
from epizoo.testing.models import Case

NAMES = list(MODELS.own)
PLANE = [Case(name) for name in NAMES]
SOLID = [Case(name, (7, 7, 7), 3) for name in NAMES]
SINGLE = [Case(name, (9, 9), 1) for name in NAMES]
SMALL = [Case(name, (7, 7), 1) for name in NAMES]
plane = pytest.mark.parametrize("case", PLANE, ids=str)


def slow_but(name, *cases):
    """The cases; those of other models take as long each and are run in CI alone."""
    first = [case for case in cases if case.name == name][:1]
    return [case if case in first else pytest.param(case, marks=pytest.mark.slow) for case in cases]


plane_and_solid = pytest.mark.parametrize("case", PLANE + SOLID, ids=str)
small = pytest.mark.parametrize("case", SMALL, ids=str)
every_form = pytest.mark.parametrize("case", PLANE + SOLID + SINGLE, ids=str)


@pytest.fixture(scope="module")
def two_devices():
    # Collectives of two strategies in one process meet in TensorFlow's global table; a reduction does not.
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


@every_form
def test_model_builds_from_its_seed(case):
    contract.builds(case)


@pytest.mark.parametrize("case", slow_but("siamese", *PLANE, *SOLID), ids=str)
def test_killed_training_resumes_bit_by_bit_and_saves_everything(case, tmp_path):
    contract.survives_kill_save_and_load(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siamese", "bigan"])  # of one optimiser, and of two
def test_killed_training_in_a_graph_resumes_bit_by_bit(name, tmp_path):
    contract.survives_kill_save_and_load(Case(name), tmp_path, eager=False)


@plane_and_solid
def test_code_does_not_depend_on_batch_mates(case):
    contract.encodes_each_patch_alone(case)


@every_form
def test_dense_code_equals_code_of_the_patch(case):
    contract.dense_equals_patchwise(case)


@plane
def test_exported_encoder_gives_the_same_code(case, tmp_path):
    contract.exports(case, tmp_path)


@plane
def test_model_trains_in_bfloat16(case):
    contract.trains_in_bfloat16(case)


@pytest.mark.parametrize("case", slow_but("siamese", *PLANE), ids=str)
def test_two_devices_train_like_one(case, two_devices):
    contract.trains_alike_on_two_devices(case, two_devices)


@plane_and_solid
def test_config_and_preset_round_trip(case, tmp_path):
    contract.round_trips_its_config(case, tmp_path)


@plane_and_solid
def test_wrong_shapes_are_named(case):
    contract.names_wrong_shapes(case)


@small
def test_losses_are_scaled_as_the_optimiser_asks(case):
    contract.scales_its_losses(case)


@small
def test_batch_of_one_patch_has_figures_that_are_numbers(case):
    contract.trains_on_one_patch(case)


@small
def test_what_a_model_is_given_is_used_or_refused(case):
    contract.uses_or_refuses_what_it_is_given(case)


@small
def test_stock_callbacks_work(case, tmp_path):
    contract.works_with_stock_callbacks(case, tmp_path)


@small
def test_gradients_can_accumulate(case):
    contract.accumulates_gradients(case)


@small
def test_replaced_and_frozen_networks_work_or_say_what_to_do(case):
    contract.says_what_to_do_with_replaced_and_frozen_networks(case)


@small
def test_keras_configuration_of_the_user_changes_nothing(case):
    contract.ignores_the_users_keras_configuration(case)


@small
def test_patches_that_are_not_finite_get_no_code(case, tmp_path):
    contract.refuses_patches_that_are_not_finite(case, tmp_path)


@small
def test_intensities_that_a_model_does_not_read_are_warned_of_once(case):
    contract.warns_once_of_intensities_that_it_does_not_read(case)
