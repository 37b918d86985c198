"""What a run does: the few options that a user gives, and the complete settings that a run keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epizoo import presets
from epizoo.registry import DETECTORS, MODELS
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import plain, read_json

if TYPE_CHECKING:
    from epizoo.models.patch_model import PatchModel

DEFAULT_MODEL = "deviation"
NO_MODEL = NO_DETECTOR = "none"
NORMATIVE = "normative"  # the method of every run but the supervised reference's
TRAINING = ("epochs", "steps_per_epoch", "batch_size")
FITTING, PRESET, FINE_TUNED, TRAINED = "fitting", "preset", "fine-tuned", "trained"  # RunConfig.weights
FINE_TUNING = {"epochs": 2, "steps_per_epoch": 250}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run, all of them; stored as ``config.json``.

    ``RunConfig.resolve`` makes them of those that a user chooses.

    Example:
        >>> config = RunConfig.resolve("phantom_2mm", model="siamese", epochs=3)
        >>> config.detector, config.epochs, config.seed
        ('ocsvm', 3, 0)

    Attributes:
        data: name of a builder config (``phantom_2mm``), or the absolute path of a template-space BIDS
            derivative.
        method: name in ``epizoo.method.METHODS``: ``normative``, or ``supervised`` for the reference that
            learns from annotated patients.
        model: name in the zoo, or ``none`` for a detector that reads images (a classical baseline).
        detector: name in ``epizoo.detection.DETECTORS``; ``none`` where the model scores by itself.
        model_config: arguments of the model that differ from its defaults (``patch_shape``, ``latent_dim``).
        epochs, steps_per_epoch, batch_size: of the training; 0 where nothing is trained.
        seed: seeds weights, patches, folds and bootstrap.
        detector_config: options of the detector that differ from its defaults.
        fwhm: smoothing of the score map, millimetres.
        weights: where those of the model come from. ``fitting``: the shipped preset that fits the scans, and
            where there is none they are trained; ``preset``: the one that is named; ``fine-tuned``: trained
            further from a preset; ``trained``: on the own controls alone.
        preset: name of a shipped preset, or folder of one (``PatchModel.save_preset``), that the model is
            made of; None where it is trained, and before a run has seen which one fits (``settled``).
        modalities: of a folder, those that are taken; None for all that it has.
        reading: how a folder of data is read where its names leave it open: ``space``, ``group_column``,
            ``groups``, as in ``tfds_epilepsy.load``.
    """

    data: str
    method: str = NORMATIVE
    model: str
    detector: str
    model_config: dict[str, Any] = field(default_factory=dict)
    epochs: int
    steps_per_epoch: int
    batch_size: int
    seed: int = 0
    detector_config: dict[str, Any] = field(default_factory=dict)
    fwhm: float
    weights: str = TRAINED
    preset: str | None = None
    modalities: list[str] | None = None
    reading: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def resolve(
        cls,
        data: str | Path,
        *,
        model: str | None = None,
        detector: str | None = None,
        model_config: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        detector_config: Mapping[str, Any] | None = None,
        fwhm: float | None = None,
        preset: str | Path | None = None,
        train: bool = False,
        fine_tune: bool = False,
        modalities: Sequence[str] | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """Complete the options that are given: each one left out gets the default of its model or detector.

        The model's ``run_defaults`` name the detector and the length of the training, the detector's
        ``map_fwhm`` the smoothing. A preset brings the detector that is stored beside it, if any.

        Nothing is trained where a shipped preset of the model fits the scans, unless ``train``,
        ``fine_tune``, arguments of the model or a length of the training are given.

        Example:
            >>> RunConfig.resolve("phantom_2mm", model="none", detector="zscore").fwhm
            0.0

        Args:
            data: a config's name or a folder; ``der``, ``der/`` and its absolute path are the same data.
            model: ``deviation`` if None, or ``none`` where the detector reads nothing of a model.
            train: train on the own controls, whatever presets there are.
            fine_tune: begin from the preset, the one that fits if none is named, and train on the own
                controls.
            detector, ..., reading: see the attributes; each has its default if None.

        Raises:
            InputError: unknown names, values that cannot be, an option that would have no effect; all
                problems at once.
        """
        training = {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "batch_size": batch_size}
        problems = [f"{k} {v}: at least 1 is needed." for k, v in training.items() if v is not None and v < 1]
        if fwhm is not None and fwhm < 0:
            problems.append(f"fwhm {fwhm:g}: millimetres, 0 or more, are needed.")
        if modalities and data_name(data) in _config_names():
            problems.append(f"modalities {', '.join(modalities)}: without effect, since {data} has its own.")
        chosen: dict[str, Any] = {"detector": detector, "detector_config": detector_config, "fwhm": fwhm}
        of_training = {"model_config": model_config, **training}
        told = {"train": train, "fine_tune": fine_tune}
        if train and (fine_tune or preset is not None):
            problems.append("train: from the start, without a preset; leave it out, or the rest.")
        weights = TRAINED
        if preset is not None:
            vain = {"model": model, "model_config": model_config, **({} if fine_tune else training)}
            problems += _no_effect(vain, f"the preset {preset} is trained already")
            preset, model, stored, found = _read_preset(preset)
            what = {"modalities": modalities, **(reading or {})}
            problems += [f"{one}{_fitting_in_words(data, what)}" for one in found]
            if detector is None:
                options = {**stored.get("detector_config", {}), **(detector_config or {})}
                chosen = {**stored, **_given(chosen), "detector_config": options}
            chosen["preset"], weights = preset, FINE_TUNED if fine_tune else PRESET
        elif model is None and detector is not None and _reads_no_code(detector):
            model = NO_MODEL
            reason = f"detector {detector!r} reads no model: nothing is trained"
            problems += _no_effect({**of_training, **told}, reason)
        elif model == NO_MODEL:
            problems += _no_effect({**of_training, **told}, "the model is 'none': nothing is trained")
        else:
            given = model is not None
            model = model or DEFAULT_MODEL
            problems += _model_problems(model, model_config or {})
            if given and detector is not None and _reads_no_code(detector):
                problems.append(f"model {model!r}: without effect, since detector {detector!r} reads none.")
            if fine_tune:
                problems += _no_effect({"model_config": model_config}, "the preset has its own")
                weights = FINE_TUNED
            elif not train and not any(of_training.values()):
                weights = FITTING
        if detector is not None:
            problems += _detector_problems(detector, detector_config or {})
        if reading and not Path(data_name(data)).is_dir():
            problems += _no_effect(reading, f"{data} is no folder of scans")
        if problems:
            raise InputError(problems)
        config = _complete(
            {
                **{"data": data_name(data), "model": model, "model_config": model_config, "seed": seed},
                **training,
                **chosen,
                "weights": weights,
                "modalities": modalities or None,
                "reading": reading,
            }
        )
        if detector is None:
            problems = _detector_problems(config.detector, config.detector_config)
            if problems:
                raise InputError(problems)
        return config

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """The settings in a ``config.json``; what an earlier version did not store gets its default.

        Raises:
            InputError: no such file, damaged, or settings that this version does not know.
        """
        stored = read_json(path)
        if not isinstance(stored, dict) or "data" not in stored:
            raise InputError(f"{path}: damaged: it holds no settings of a run.")
        if "reads" in stored.get("model_config", {}):  # an earlier version's word for the view
            stored["model_config"]["view"] = stored["model_config"].pop("reads")
        unknown = sorted(set(stored) - {one.name for one in fields(cls)})
        if unknown:
            raise InputError(
                f"{path}: this version knows no setting {', '.join(unknown)}: take the version of epizoo "
                "that made the run, or start anew in another folder."
            )
        if stored.get("detector") == "supervised":  # as an earlier version told that method
            stored = {"fwhm": 0.0, **stored, "method": "supervised", "detector": NO_DETECTOR}
        stored.setdefault("weights", PRESET if stored.get("preset") else TRAINED)
        return _complete({**stored, "data": data_name(stored["data"])})

    def settled(self, modalities: Sequence[str], voxel_size: Sequence[float]) -> RunConfig:
        """The same with the shipped preset that fits the scans, where one is wanted and none is named.

        Args:
            modalities: names of the scans' channels, in their order.
            voxel_size: of the grid, millimetres, an axis each.

        Raises:
            InputError: none fits, and it was to be fine-tuned.
        """
        if self.preset is not None or self.weights not in (FITTING, FINE_TUNED):
            return self
        found = presets.fitting(self.model, modalities, voxel_size)
        if found is not None:
            chosen = replace(self, preset=found.name)
            if self.weights == FINE_TUNED:
                return chosen
            return replace(chosen, epochs=0, steps_per_epoch=0, batch_size=0)
        if self.weights == FINE_TUNED:
            raise InputError(
                f"no shipped preset of {self.model!r} fits {', '.join(modalities)} at "
                f"{' x '.join(f'{size:g}' for size in voxel_size)} mm: train, or name a preset."
            )
        return self

    @property
    def title(self) -> str:
        """How tables and pages call it: ``siamese + ocsvm``, or ``zscore`` without a model."""
        scored_by = self.detector if self.method == NORMATIVE else self.method
        if self.model == NO_MODEL:
            return scored_by
        how = "" if self.preset is None else f" ({FINE_TUNED if self.weights == FINE_TUNED else PRESET})"
        return f"{self.model}{how} + {scored_by}"

    @property
    def origin(self) -> str:
        """Where the weights of its model come from, in words; empty where there is no model."""
        if self.model == NO_MODEL or self.method != NORMATIVE:
            return ""
        length = f"{self.epochs} epochs of {self.steps_per_epoch} batches of {self.batch_size}"
        if self.preset is None:
            return f"trained on the training controls, {length}"
        name = Path(self.preset).name
        if self.weights == FINE_TUNED:
            return f"the preset {name}, trained further on the training controls, {length}"
        return f"the preset {name}, adapted to the training controls; nothing was trained"

    @property
    def has_encoder(self) -> bool:
        """Whether ``model.keras``, with an encoder, is a part of the run."""
        return self.method == NORMATIVE and self.model != NO_MODEL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: RunConfig) -> list[str]:
        """``epochs 2 -> 3`` for each setting in which another differs; not for data that may be the same."""
        own, others = self.to_json(), other.to_json()
        settled = [config.preset is not None for config in (self, other)]
        if self.weights == other.weights and settled[0] != settled[1]:
            left_open = {FITTING: ("preset", *TRAINING), FINE_TUNED: ("preset",)}.get(self.weights, ())
            own = {name: value for name, value in own.items() if name not in left_open}
        if _may_be_same(self.data, other.data):
            del own["data"]
        return [f"{name} {own[name]!r} -> {others[name]!r}" for name in own if own[name] != others[name]]


def data_name(data: str | Path) -> str:
    """The one form in which data are stored: a config's name as it is, a folder as its absolute path."""
    text, folder = str(data), Path(data).expanduser()
    if not folder.is_dir() or ("/" not in text and text in _config_names()):
        return text
    return str(folder.resolve())


def _config_names() -> list[str]:
    from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder  # brings TensorFlow

    return [config.name for config in Builder.BUILDER_CONFIGS]


def _may_be_same(stored: str, wanted: str) -> bool:
    """Whether two names are of one data set, or of a folder that has moved: then its hash decides.

    Earlier versions stored a folder as it was typed, from wherever that was.
    """
    if stored == wanted:
        return True
    folder, before = Path(wanted), Path(stored)
    if not folder.is_absolute():
        return False
    if before.is_absolute():
        return not before.exists()
    parts = tuple(part for part in before.parts if part != "..")
    return folder.parts[len(folder.parts) - len(parts) :] == parts


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _complete(options: Mapping[str, Any]) -> RunConfig:
    """Settings from options, the absent or None ones filled in."""
    chosen = {"model": DEFAULT_MODEL, **_given(options)}
    fine_tuned = chosen.get("weights") == FINE_TUNED
    if chosen["model"] == NO_MODEL or ("preset" in chosen and not fine_tuned):
        chosen |= dict.fromkeys(TRAINING, 0)
    if fine_tuned:
        chosen = {**FINE_TUNING, **chosen}
    if chosen["model"] == NO_MODEL:
        chosen.setdefault("detector", "ocsvm")
    elif {"detector", "fwhm", *TRAINING} - set(chosen):
        chosen = {**_model_class(chosen["model"]).run_defaults, **chosen}
    if "fwhm" not in chosen:
        chosen["fwhm"] = DETECTORS.get(chosen["detector"]).map_fwhm
    return RunConfig(**json.loads(json.dumps(plain(chosen))))  # lists and tuples are one


def _model_class(name: str) -> type[PatchModel]:
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}, or {NO_MODEL}.")
    return MODELS.get(name)


def _model_problems(name: str, config: Mapping[str, Any]) -> list[str]:
    """What speaks against a model with some arguments, of which each must have an effect."""
    try:
        _model_class(name)
        if not config:
            return []
        from epizoo import models

        built = models.create(name, **config).get_config()
    except InputError as error:
        return error.problems
    ignored = {
        key: value
        for key, value in config.items()
        if key != "view" and isinstance(value, str | int | float) and built.get(key, value) != value
    }
    return [f"{key} {value!r}: model {name!r} has {built[key]!r} always." for key, value in ignored.items()]


def _detector_problems(name: str, config: Mapping[str, Any]) -> list[str]:
    from epizoo.detection.detector import create_detector

    try:
        create_detector(name, **config)
    except InputError as error:
        return error.problems
    return []


def _reads_no_code(detector: str) -> bool:
    """Whether a detector, if there is such a one, reads images alone and never the code of a model."""
    return detector in DETECTORS and not DETECTORS.get(detector).reads_model


def _no_effect(options: Mapping[str, Any], reason: str) -> list[str]:
    """A problem for options that are given in vain; empty ones are not given."""
    vain = [f"{name} {value}" for name, value in options.items() if value]
    return [f"{', '.join(vain)}: without effect, since {reason}; leave them out."] if vain else []


def _read_preset(preset: str | Path) -> tuple[str, str, dict[str, Any], list[str]]:
    """The preset's name or folder, its model's name in the zoo, its detector's settings, and its problems."""
    from epizoo.models import model_class  # brings TensorFlow

    try:
        found = presets.Preset.read(preset)
        beside = found.folder / "detector.json"
        stored = read_json(beside) if beside.is_file() else {}
    except InputError as error:
        return str(preset), NO_MODEL, {}, error.problems
    name = found.name if found.shipped else str(found.folder)
    kind = model_class(found.model)
    known = None if kind is None else MODELS.name_of(kind)
    if known is None:
        return name, NO_MODEL, {}, [f"{preset}: no preset of a model that is known here ({found.model!r})."]
    names = {"detector": "detector", "config": "detector_config", "fwhm": "fwhm"}
    return name, known, {names[key]: value for key, value in stored.items() if key in names}, []


def _fitting_in_words(data: str | Path, reading: Mapping[str, Any]) -> str:
    """A sentence on the shipped presets that fit some data, where their modalities and voxels can be told."""
    known = _scans(data, reading)
    if known is None:
        return ""
    channels, voxel_size = known
    names = [preset.name for preset in presets.shipped() if not preset.problems(channels, voxel_size)]
    size = " x ".join(f"{length:.3g}" for length in voxel_size)
    what = f"{', '.join(channels)}, voxels of {size} mm"
    return f" {Path(data_name(data)).name} has {what}: {' or '.join(names) or 'none'} fits."


def _scans(data: str | Path, reading: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[float, ...]] | None:
    """Modalities and voxel size of a phantom or of a folder's first subject, before anything is prepared."""
    from tfds_epilepsy import bids
    from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder

    name = data_name(data)
    for config in Builder.BUILDER_CONFIGS:
        if config.name == name and config.phantom is not None:
            return config.phantom.modalities, (float(config.phantom.voxel_size),) * 3
    try:
        subjects, _ = bids.template_subjects(name, **reading) if Path(name).is_dir() else ([], [])
        if not subjects:
            return None
        images = subjects[0].images
        return tuple(images), bids.read_grid(next(iter(images.values()))).voxel_size
    except InputError:
        return None
