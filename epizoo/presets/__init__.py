"""Presets: trained networks that adapt to other controls; those that epizoo ships, and anybody's folders.

A preset is a folder: ``config.json`` (what the network is and what it has seen), ``model.weights.h5`` and
``card.md``, the same for people. It holds weights and no cohort's statistics: a view that learns from
controls learns from those at hand, always. Nothing here needs TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json

HERE = Path(__file__).parent
CONFIG, WEIGHTS, CARD = "config.json", "model.weights.h5", "card.md"
NEARLY = 0.01  # mm, between voxel sizes that count as equal


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset's ``config.json`` says.

    Example:
        >>> preset = Preset.read("deviation_t1w")
        >>> preset.modalities, preset.voxel_size, preset.problems(["T1w", "FLAIR"], [2, 2, 2])
        (('T1w',), 2.0, ['preset deviation_t1w reads T1w, and the data have T1w, FLAIR'])

    Attributes:
        folder: where it lies.
        model: the class, as Keras calls it (``epizoo>Deviation``).
        config: its arguments (``PatchModel.get_config``).
        parameters: number of its weights.
        voxel_size: of the scans that it was trained on, millimetres; None where that is not known.
        trained_on: of what, in a sentence.
        subjects: labels of the people that it was trained on; none of them may be tested.
        phantoms: seeds of the phantoms that it was trained on; none of their subjects may be tested.
        fewest_controls: that it adapts to.
        figures: what was measured, by the name of the data.
        licence: of the weights.
        paper: of the model.
        epizoo: the version that saved it.
    """

    folder: Path
    model: str
    config: dict[str, Any]
    parameters: int | None = None
    voxel_size: float | None = None
    trained_on: str = ""
    subjects: Sequence[str] = ()
    phantoms: Sequence[int] = ()
    fewest_controls: int = 0
    figures: Mapping[str, Mapping[str, float]] | None = None
    licence: str = ""
    paper: str = ""
    epizoo: str = ""

    @classmethod
    def read(cls, where: str | Path) -> Preset:
        """A preset by its name, of those that epizoo ships, or by its folder.

        Raises:
            InputError: no such preset; a folder that is incomplete, damaged or no preset.
        """
        folder = folder_of(where)
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: not a preset, or an incomplete one: no {' and no '.join(missing)}.")
        stored = read_json(folder / CONFIG)
        if not isinstance(stored, dict) or not {"model", "config"} <= set(stored):
            raise InputError(f"{folder}: not a preset; its {CONFIG} names no model and no config.")
        if unknown := sorted(set(stored) - (set(cls.__dataclass_fields__) - {"folder"})):
            raise InputError(
                f"{folder}: this epizoo knows no {', '.join(unknown)} of a preset; it was saved by version "
                f"{stored.get('epizoo', '(unknown)')}: take that version, or save it anew."
            )
        return cls(folder=folder, **stored)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """Names of the scans' channels, where they are known."""
        names = self.config.get("modalities")
        return None if names is None else tuple(names)

    @property
    def shipped(self) -> bool:
        """Whether it is one of those that epizoo ships."""
        return self.folder.parent == HERE

    def problems(
        self, modalities: Sequence[str], voxel_size: Sequence[float], controls: int | None = None
    ) -> list[str]:
        """Why it cannot adapt to some data: a sentence each, none where it can.

        Args:
            modalities: names of the scans' channels, in their order.
            voxel_size: of the grid, millimetres, an axis each.
            controls: how many there are to adapt to, if that is known.
        """
        found = []
        if self.modalities is not None and self.modalities != tuple(modalities):
            found.append(
                f"preset {self.name} reads {', '.join(self.modalities)}, and the data have "
                f"{', '.join(modalities)}"
            )
        if self.voxel_size is not None and any(abs(size - self.voxel_size) > NEARLY for size in voxel_size):
            found.append(
                f"preset {self.name} is for voxels of {self.voxel_size:g} mm, and the data have voxels of "
                f"{' x '.join(f'{size:g}' for size in voxel_size)} mm"
            )
        if controls is not None and controls < self.fewest_controls:
            found.append(
                f"preset {self.name} adapts to at least {self.fewest_controls} controls, and there are "
                f"{controls} to train on"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of ``config.json``; what is not known is left out."""
        fields = {name: vars(self)[name] for name in self.__dataclass_fields__ if name != "folder"}
        return {name: value for name, value in fields.items() if value not in (None, "", (), [], {}, 0)}


def shipped() -> list[Preset]:
    """The presets that epizoo ships, by name.

    Example:
        >>> [preset.name for preset in shipped()]
        ['deviation_t1w', 'deviation_t1w_flair', 'deviation_t1w_pet']
    """
    return [Preset.read(path.parent) for path in sorted(HERE.glob(f"*/{CONFIG}"))]


def fitting(model: str, modalities: Sequence[str], voxel_size: Sequence[float]) -> Preset | None:
    """The shipped preset of a model that adapts to such scans; None where there is none.

    Example:
        >>> fitting("deviation", ["T1w"], [2, 2, 2]).name, fitting("deviation", ["T1w"], [1, 1, 1])
        ('deviation_t1w', None)

    Args:
        model: the class, as Keras calls it, or its name in the registry.
        modalities: names of the scans' channels, in their order.
        voxel_size: of the grid, millimetres.
    """
    found = [p for p in shipped() if not p.problems(modalities, voxel_size)]
    return next((p for p in found if model in (p.model, p.model.partition(">")[2].lower())), None)


def folder_of(where: str | Path) -> Path:
    """The folder of a preset by its name, of those that epizoo ships, or by its folder.

    Example:
        >>> folder_of("deviation_t1w").name
        'deviation_t1w'

    Raises:
        InputError: neither.
    """
    own = HERE / str(where)
    if str(where) and own.parent == HERE and (own / CONFIG).is_file():
        return own
    folder = Path(where).expanduser().resolve()
    if not folder.is_dir():
        known = ", ".join(map(_described, shipped())) or "none"
        raise InputError(f"{where}: neither a preset's folder nor a preset that epizoo ships: {known}.")
    return folder


def card(preset: Preset) -> str:
    """``card.md``: what the preset is, made of what its ``config.json`` says.

    Example:
        >>> card(Preset.read("deviation_t1w")).splitlines()[0]
        '# deviation_t1w'
    """
    size = "" if preset.voxel_size is None else f" at {preset.voxel_size:g} mm"
    names = preset.modalities
    fed = "scans" if names is None else f"{', '.join(names)}{size}"
    view = preset.config.get("view")
    view = view.get("name") if isinstance(view, Mapping) else view
    lines = [
        f"# {preset.name}",
        "",
        "**Research only: not a medical device.**",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{preset.model.partition('>')[2].lower() or preset.model}`"
        f"{f' ({preset.paper})' if preset.paper else ''} |",
        f"| for | {fed} |",
        f"| reads | the view `{view}` |",
        f"| patches | {'x'.join(map(str, preset.config.get('patch_shape', ())))} voxels, "
        f"{preset.config.get('channels')} maps |",
    ]
    if preset.parameters:
        lines.append(f"| weights | {preset.parameters:,} |")
    if preset.fewest_controls:
        lines.append(f"| adapts to | {preset.fewest_controls} controls or more |")
    people = f"{len(preset.subjects)} subjects, who stand in `{CONFIG}`" if preset.subjects else ""
    lines.append(f"| trained on | {preset.trained_on or people or 'not said'} |")
    if preset.phantoms:
        lines.append("| whose data | no person's: phantoms alone, made of the MNI152 template |")
    lines += [
        f"| licence | {preset.licence or 'not said'} |",
        f"| saved by | epizoo {preset.epizoo or '(unknown)'} |",
        "",
        "## Use",
        "",
        f"    epizoo run DATA OUT --preset {preset.name}",
        "",
        f'    model = epizoo.from_preset("{preset.name}")',
    ]
    if preset.fewest_controls:
        lines.append("    model.view.adapt(controls)  # always: it holds no cohort's means and deviations")
    lines.append("")
    if preset.figures:
        lines += ["## Figures", "", "| data | " + " | ".join(_columns(preset.figures)) + " |"]
        lines.append("|---|" + "---|" * len(_columns(preset.figures)))
        for data, row in preset.figures.items():
            cells = (f"{row[name]:.3g}" if name in row else "–" for name in _columns(preset.figures))
            lines.append(f"| {data} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def advice(model: str, modalities: Sequence[str], voxel_size: Sequence[float]) -> str:
    """What to do where a preset does not fit: the shipped ones that do, or none.

    Example:
        >>> advice("deviation", ["T1w"], [2, 2, 2])
        'take deviation_t1w'
    """
    other = fitting(model, modalities, voxel_size)
    return f"take {other.name}" if other else "no shipped preset fits; leave it out, and a network is trained"


def _columns(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in figures.values() for name in row))


def _described(preset: Preset) -> str:
    size = "" if preset.voxel_size is None else f", {preset.voxel_size:g} mm"
    return f"{preset.name} ({' '.join(preset.modalities or ())}{size})"
