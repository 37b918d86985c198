"""Before TensorFlow starts: quiet, a core, and two logical CPUs, so that MirroredStrategy has replicas."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line does, on every processor
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")  # of processes that tests start
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # tests run side by side, and threads of many spin

import keras
import pytest
import tensorflow as tf

from tests.bucket import served
from tests.small_cohort import CONTROLS, TEST, write_cohort
from tfds_epilepsy import openneuro

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
# Kernels of oneDNN that run side by side differ in the last bit from run to run, and a resumed training is
# compared bit by bit.
tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def seeds():
    """What a test draws does not depend on the tests before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Controls that share an anatomy, and a patient with a bright spot."""
    folder = tmp_path_factory.mktemp("cohort")
    place = (slice(8, 13), slice(8, 13), slice(4, 7))
    return write_cohort(folder, {**CONTROLS, **TEST}, noise=0.02, contrast=1.5, spot=lambda rng: place)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where records are prepared, once for a module's tests."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """OpenNeuro on loopback: the handler's class, with the server's address."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openneuro, "PAUSE", 0.01)
    with served(tmp_path) as bucket:
        yield bucket
