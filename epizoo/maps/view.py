"""View: the maps of a subject that a model or a detector reads."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo import registry
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import tensorflow as tf


class View(ABC):
    """What is read of a subject: ``k`` maps on its grid.

    A view is one file and one class. It says what its maps are called (``names``) and which way lesions
    move them (``directions``), computes them, and, where it learns from controls (``adapt``), keeps what it
    has learnt as arrays. Statistics of a cohort belong to that cohort: another cohort adapts the view anew.

    >>> class Squares(View):
    ...     name = "squares"
    ...
    ...     @property
    ...     def names(self):
    ...         return tuple(f"{modality} squared" for modality in self.modalities or ())
    ...
    ...     def __call__(self, subject):
    ...         return subject.image**2

    Attributes:
        name: what the registry calls it.
        version: counts up when the class comes to compute other maps than before, so that a detector that
            was fitted on those is refused.
        fewest_controls: that ``adapt`` needs; 0 for a view that learns nothing.
        words: for ``signs``: what a change in each direction is called.
        modalities: as given.

    Args:
        modalities: names of the image's channels, such as ``("T1w", "FLAIR")``; None where they are not
            known: then no map has a name or a direction.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    fewest_controls: ClassVar[int] = 0
    words: ClassVar[Mapping[int, str]] = {1: "higher {}", -1: "lower {}", 0: "{}"}

    def __init__(self, modalities: Sequence[str] | None = None):
        self.modalities = None if modalities is None else tuple(modalities)

    @abstractmethod
    def __call__(self, subject: Subject) -> NDArray[np.float32]:
        """The maps of a subject: ``(x, y, z, k)`` float32, 0 outside its brain mask.

        Raises:
            InputError: the view learns from controls and is not adapted; another grid or other modalities.
        """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the ``k`` maps; empty where the modalities are not known."""

    @property
    def directions(self) -> tuple[int, ...]:
        """How lesions change each map: 1 up, -1 down, 0 where that is not known."""
        return (0,) * len(self.names)

    @property
    def signs(self) -> tuple[str, ...]:
        """What a lesion does to each map, in a reader's words, such as ``darker T1w``."""
        changes = zip(self.names, self.directions, strict=True)
        return tuple(self.words[way].format(name) for name, way in changes)

    @property
    def about(self) -> str:
        """A sentence for the card of an exported encoder that is fed these maps; empty for intensities."""
        return f"Channels are not intensities but maps of the view {self.name!r}."

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value that a map can have."""
        return (-np.inf, np.inf)

    @property
    def whole_brain(self) -> bool:
        """Whether a map's value at a voxel depends on more of the brain than that voxel."""
        return True

    def adapt(self, controls: Iterable[Subject]) -> Self:
        """Learn from the training controls, where the view learns anything; returns the view.

        Raises:
            InputError: too few controls, or grids that differ.
        """
        return self

    def seen(self, subject: Subject) -> Subject:
        """The subject with the maps in place of its image: what patches are cut from."""
        return replace(subject, image=self(subject))

    def stands_for(self, view: View) -> bool:
        """Whether these maps can be read in place of another view's: they are equal, or on another scale."""
        return self.fingerprint == view.fingerprint

    def parts(self, maps: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Maps that tell a reader what a score is due to, by name; none for most views.

        Args:
            maps: ``(x, y, z, k)``, what the view made of a subject.

        Returns:
            ``(x, y, z)`` float32 each, in standard deviations from the controls; higher is more abnormal.
        """
        return {}

    def graph(self, shape: tuple[int, ...], affine: NDArray[np.floating[Any]]) -> Graph:
        """The same maps in TensorFlow operations, for exported pipelines.

        Args:
            shape: ``(x, y, z)`` of the grid.
            affine: ``(4, 4)``, voxel to world, mm.

        Raises:
            InputError: the view has no such form.
        """
        raise InputError(
            f"view {self.name!r} has no form in TensorFlow operations, so it cannot be exported."
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """What ``adapt`` has learnt, as arrays by name; empty before it and for views that learn nothing."""
        return {}

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take what ``state`` of a view of the same class gave."""
        if state:
            raise InputError(f"view {self.name!r} learns nothing; it cannot take {', '.join(sorted(state))}.")

    def options(self) -> dict[str, Any]:
        """The constructor's arguments beside the modalities."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "modalities"]
        return {name: vars(self)[name] for name in names}

    def get_config(self) -> dict[str, Any]:
        """What ``create_view`` makes an equal view of, but for the modalities and the state."""
        return {"name": self.name, **self.options()}

    @property
    def fingerprint(self) -> str:
        """Equal for views that make equal maps of every subject."""
        what = [self.name, self.version, self.options()]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        for name, array in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


BRIGHTNESS = {1: "brighter {}", -1: "darker {}", 0: "{}"}  # ``View.words`` of intensities


@dataclass(frozen=True)
class Graph:
    """A view in TensorFlow operations.

    Example:
        >>> import tensorflow as tf
        >>> square = Graph(lambda image, mask: image**2)
        >>> square.function(tf.constant([2.0]), None).numpy()
        array([4.], dtype=float32)

    Attributes:
        function: of a normalised volume ``(x, y, z, m)`` float32 and the brain mask ``(x, y, z)`` bool; gives
            the maps ``(x, y, z, k)``.
        variables: that it reads.
    """

    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    variables: Sequence[tf.Variable] = ()

    def __call__(self, volume: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return self.function(volume, mask)


def create_view(view: str | Mapping[str, Any] | View, modalities: Sequence[str] | None = None) -> View:
    """A view by its name, for example ``create_view("deviations", ["T1w", "FLAIR"])``.

    Example:
        >>> view = create_view("deviations", ["T1w", "FLAIR"])
        >>> view.names
        ('T1w', 'FLAIR', 'junction')

    Args:
        view: its name in the registry; its configuration (``View.get_config``); or a view, which stays as it
            is but for modalities that it does not know yet.
        modalities: names of the image's channels.

    Raises:
        InputError: an unknown name, or options that the view does not have.
    """
    if isinstance(view, View):
        if view.modalities is None and modalities is not None:
            view.modalities = tuple(modalities)
        return view
    config = {"name": view} if isinstance(view, str) else dict(view)
    name = str(config.pop("name", "without a name"))
    view_class = registry.VIEWS.get(name)
    known = [option for option in inspect.signature(view_class).parameters if option != "modalities"]
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise InputError(
            f"view {name!r} has no option {', '.join(unknown)}: its options are {', '.join(known) or 'none'}."
        )
    made: View = view_class(modalities, **config)
    return made
