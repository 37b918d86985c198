"""Architecture search: keras-tuner proposes, lesion detection on validation subjects judges.

>>> from tuning import DetectionTuner
>>> tuner = DetectionTuner("phantom_2mm", "search", model="siamese", trials=30)  # doctest: +SKIP
>>> tuner.search()  # doctest: +SKIP

Each name is imported when it is first used: the process of a trial has no use for keras-tuner. In this folder
the package is called ``tuning``; installed from a wheel it is ``epizoo_tuning``, a name that is no other
package's: ``python -m epizoo_tuning.search``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
