"""A profile of the package's own."""

from epizoo.detection.profiles.profile import Profile
from epizoo.registry import register_profile


@register_profile("lost_sharpness")
class LostSharpness(Profile):
    """A blurred junction, and less signal of white matter beside it."""

    words = "a blurred cortex"
    weights = {"junction": 1, "T1w": -0.5}  # noqa: RUF012
    fwhm = 5.0
