"""A Keras zoo of encoders of normal brain tissue, and a detector of lesions on their codes.

The public names stand in ``__init__.pyi``. Each is imported when it is first used, so that ``import epizoo``
stays light.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
