"""The contracts of models, detectors and views, for the tests of packages that bring their own.

>>> from epizoo.testing import check_detector, check_model, check_view  # doctest: +SKIP
>>> def test_it_is_a_model_of_the_zoo():  # doctest: +SKIP
...     check_model("contrastive")
"""

from epizoo.testing.detectors import check_detector
from epizoo.testing.models import check_model
from epizoo.testing.views import check_view

__all__ = ["check_detector", "check_model", "check_view"]
