"""The contracts of models, detectors and views, for the tests of packages that bring their own.

>>> from epizoo.testing import check_detector, check_model, check_view  # doctest: +SKIP
>>> def test_it_is_a_model_of_the_zoo():  # doctest: +SKIP
...     check_model("contrastive")
"""

import os

from epizoo.testing.detectors import check_detector
from epizoo.testing.models import check_model
from epizoo.testing.views import check_view

# As on the command line: kernels that run side by side round differently from one training to the next, and a
# resumed training is compared bit by bit. TensorFlow reads it when it does its first operation.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

__all__ = ["check_detector", "check_model", "check_view"]
