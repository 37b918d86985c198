"""The model that ``docs/new_model.md`` shows passes the contract as it is printed."""

import re
import sys
import types
from pathlib import Path

import keras_tuner
import pytest
import tensorflow as tf

from epizoo.registry import MODELS
from epizoo.testing import models as contract
from tuning import spaces

GUIDE = (Path(__file__).parents[1] / "docs" / "new_model.md").read_text()


@pytest.fixture(scope="module")
def case():
    """The model of the guide, registered as the guide says."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (name,) = re.findall(r'@register_model\("(\w+)"\)', code)
    module = types.ModuleType(f"epizoo.models.{name}")
    sys.modules[module.__name__] = module
    exec(code, module.__dict__)
    yield contract.Case(name)
    del MODELS.registered[name], sys.modules[module.__name__]


def test_model_of_the_guide_passes_the_contract(case, tmp_path):
    contract.builds(case)
    contract.survives_kill_save_and_load(case, tmp_path)
    contract.encodes_each_patch_alone(case)
    contract.dense_equals_patchwise(case)
    contract.round_trips_its_config(case, tmp_path)
    devices = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    contract.trains_alike_on_two_devices(case, devices)


def test_model_of_the_guide_trains_as_keras_users_expect(case, tmp_path):
    contract.scales_its_losses(case)
    contract.trains_on_one_patch(case)
    contract.uses_or_refuses_what_it_is_given(case)
    contract.works_with_stock_callbacks(case, tmp_path)
    contract.accumulates_gradients(case)
    contract.says_what_to_do_with_replaced_and_frozen_networks(case)
    contract.ignores_the_users_keras_configuration(case)
    contract.refuses_patches_that_are_not_finite(case, tmp_path)
    contract.warns_once_of_intensities_that_it_does_not_read(case)


def test_model_of_the_guide_can_be_searched(case):
    space = keras_tuner.HyperParameters()
    spaces.declare(spaces.space_of(case.name), space)
    model = spaces.create(case.name, {**space.values, "sigma": 0.3}, modalities=["T1w"], seed=0)
    assert (model.sigma, model.latent_dim) == (0.3, 8)


def test_guide_is_short():
    assert len(GUIDE.splitlines()) <= 60
