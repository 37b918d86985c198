"""Names of models, detectors, views, profiles: epizoo's own, registered ones, those of installed packages.

A class is registered by a decorator, under a name that stands beside it::

    @register_model("contrastive")
    class Contrastive(PatchModel): ...

so that scripts know it. For the command line and for other processes, a package names its classes in its
metadata, and epizoo imports them when a name is asked for that it does not know::

    [options.entry_points]          # setup.cfg; [project.entry-points."epizoo.models"] in pyproject.toml
    epizoo.models =
        contrastive = my_package.contrastive:Contrastive
    epizoo.detectors = ...
    epizoo.views = ...
    epizoo.profiles = ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    from epizoo.detection.detector import Detector
    from epizoo.detection.profiles.profile import Profile
    from epizoo.maps.view import View
    from epizoo.models.patch_model import PatchModel

Class = TypeVar("Class", bound=type)
Kind = TypeVar("Kind")


class Registry(Generic[Kind]):
    """Classes by name; each is imported when it is asked for.

    Example:
        >>> shapes = Registry("shape", "epizoo.shapes", {})
        >>> @shapes.register("square")
        ... class Square:
        ...     sides = 4
        >>> shapes.get("square").sides, list(shapes)
        (4, ['square'])

    Attributes:
        own: epizoo's classes, name to ``module:class``.
        registered: classes of scripts and of packages that were imported, by name.

    Args:
        what: the word for one of them, in messages.
        group: of the entry points of installed packages.
        own: epizoo's, name to ``module:class``.
        named: whether a class keeps its name as ``name``.
    """

    def __init__(self, what: str, group: str, own: Mapping[str, str], *, named: bool = True):
        self.what, self.group = what, group
        self.own, self._named = dict(own), named
        self.registered: dict[str, type[Kind]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.registered or name in self._installed()

    def __iter__(self) -> Iterator[str]:
        """The names: epizoo's own in their order, then others."""
        return iter(dict.fromkeys([*self.own, *self.registered, *self._installed()]))

    def get(self, name: str) -> type[Kind]:
        """The class of a name.

        Raises:
            InputError: an unknown name; an installed package whose class cannot be imported.
        """
        if name in self.registered:
            return self.registered[name]
        if name in self.own:
            module, _, attribute = self.own[name].partition(":")
            found: type[Kind] = vars(import_module(module))[attribute]
            return found
        if name in self._installed():
            return self._load(self._installed()[name])
        raise InputError(f"unknown {self.what} {name!r}: choose one of {', '.join(self)}.")

    def register(self, name: str) -> Callable[[Class], Class]:
        """Class decorator that gives a class its name.

        Example:
            >>> shapes = Registry("shape", "epizoo.shapes", {})
            >>> @shapes.register("circle")
            ... class Circle:
            ...     sides = 0
            >>> "circle" in shapes
            True

        Raises:
            InputError: epizoo or another class has the name already.
        """
        if not isinstance(name, str):
            raise InputError(f"{name!r}: write the name beside the decorator, @register_{self.what}('name').")

        def add(given: Class) -> Class:
            holder = self.own.get(name) or self._path(self.registered.get(name))
            if holder is not None and holder != self._path(given):
                raise InputError(
                    f"{self.what} {name!r} is {holder} already: give {self._path(given)} another name."
                )
            if name not in self.own:
                self._keep(name, given)
            return given

        return add

    def name_of(self, given: type[Kind]) -> str | None:
        """The name under which a class is known here; None for a stranger."""
        path = self._path(given)
        for name in self:
            known = self.own.get(name) or self._path(self.registered.get(name))
            if path == (known or self._installed()[name][0].value.replace(" ", "")):
                return name
        return None

    def load_installed(self) -> None:
        """Import all classes of installed packages: for a file that names a class and no name."""
        for name, entries in self._installed().items():
            if name not in self.registered:
                self._load(entries)

    def _load(self, entries: Sequence[EntryPoint]) -> type[Kind]:
        entry = entries[0]
        if len(entries) > 1:
            raise InputError(
                f"{self.what} {entry.name!r} is a name of several installed packages "
                f"({', '.join(one.value for one in entries)}): keep one of them."
            )
        try:
            found: type[Kind] = entry.load()
        except Exception as error:  # whatever a stranger's module raises
            raise InputError(
                f"{self.what} {entry.name!r}: {entry.value} of an installed package cannot be imported "
                f"({type(error).__name__}: {error})."
            ) from error
        if entry.name not in self.registered:  # else the class's own decorator was there first
            self._keep(entry.name, found)
        return self.registered[entry.name]

    def _keep(self, name: str, given: type[Kind]) -> None:
        if self._named:
            given.name = name  # type: ignore[attr-defined]  # of detectors and views
        self.registered[name] = given

    def _installed(self) -> dict[str, tuple[EntryPoint, ...]]:
        """Entry points of other packages by name; epizoo's own names are not theirs to take."""
        return {name: entries for name, entries in _entry_points(self.group).items() if name not in self.own}

    @staticmethod
    def _path(given: Any) -> str | None:
        return None if given is None else f"{given.__module__}:{given.__qualname__}"


@cache
def _entry_points(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group):  # a package may be found twice, on two paths
        found.setdefault(entry.name, {})[entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in found.items()}


MODELS: Registry[PatchModel] = Registry(
    "model",
    "epizoo.models",
    {
        "autoencoder": "epizoo.models.autoencoder:Autoencoder",
        "masked": "epizoo.models.masked:Masked",
        "vae": "epizoo.models.vae:VAE",
        "wae": "epizoo.models.wae:WAE",
        "siamese": "epizoo.models.siamese:Siamese",
        "deep_siamese": "epizoo.models.siamese:DeepSiamese",
        "dcgan": "epizoo.models.dcgan:DCGAN",
        "original_dcgan": "epizoo.models.dcgan:OriginalDCGAN",
        "f_anogan": "epizoo.models.f_anogan:FAnoGAN",
        "bigan": "epizoo.models.bigan:BiGAN",
        "context_gan": "epizoo.models.context_gan:ContextGAN",
        "synthetic": "epizoo.models.synthetic:Synthetic",
        "deviation": "epizoo.models.deviation:Deviation",
    },
    named=False,  # a Keras model's name is the object's
)
DETECTORS: Registry[Detector] = Registry(
    "detector",
    "epizoo.detectors",
    {
        "ocsvm": "epizoo.detection.ocsvm:LocalOneClassSVM",
        "gaussian": "epizoo.detection.gaussian:LocalGaussian",
        "knn": "epizoo.detection.knn:LocalKNN",
        "pooled": "epizoo.detection.pooled:PooledOneClassSVM",
        "patient": "epizoo.detection.pooled:PatientOneClassSVM",
        "adjusted": "epizoo.detection.adjusted:Adjusted",
        "reconstruction": "epizoo.detection.reconstruction:Reconstruction",
        "head": "epizoo.detection.head:Head",
        "signs": "epizoo.detection.signs:Signs",
        "zscore": "epizoo.detection.classical:ZScore",
        "flair": "epizoo.detection.classical:FlairThreshold",
        "junction_extension": "epizoo.detection.classical:JunctionExtension",
        "spm": "epizoo.detection.classical:SPM",
        "profiles": "epizoo.detection.profiles.detector:Profiles",
    },
)
PROFILES: Registry[Profile] = Registry(
    "profile",
    "epizoo.profiles",
    {
        "dysplasia": "epizoo.detection.profiles.dysplasia:Dysplasia",
        "mesial_temporal": "epizoo.detection.profiles.mesial_temporal:MesialTemporal",
        "loss": "epizoo.detection.profiles.loss:Loss",
        "heterotopia": "epizoo.detection.profiles.heterotopia:Heterotopia",
    },
)
VIEWS: Registry[View] = Registry(
    "view",
    "epizoo.views",
    {
        "image": "epizoo.maps.image:Image",
        "deviations": "epizoo.maps.deviations:Deviations",
        "signs": "epizoo.maps.signs:Signs",
        "junction_extension": "epizoo.maps.junction_extension:JunctionExtension",
        "tissue": "epizoo.maps.tissue:Tissue",
    },
)

register_detector = DETECTORS.register
register_view = VIEWS.register
register_profile = PROFILES.register
