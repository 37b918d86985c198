"""A build function of the user's: what it may be, and how it comes into the process of a trial.

It goes there as a file, made by cloudpickle, with what it reads of the script or notebook that defines it.
What it reads of other modules is imported anew, from the same places. It is tried once in such a process, so
that no search begins with a function that breaks in its trials or makes other models there.

``python -m tuning.builds FILE ANSWER`` is that process.
"""

from __future__ import annotations

import functools
import inspect
import json
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import keras
import keras_tuner

from epizoo.models.patch_model import PatchModel
from epizoo.registry import DETECTORS, MODELS, VIEWS, Registry
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json

REGISTRIES: tuple[Registry[Any], ...] = (MODELS, DETECTORS, VIEWS)
KINDS = "a function of hp, or a keras_tuner.HyperModel"


class Function(keras_tuner.HyperModel):
    """A hypermodel of a build function."""

    def __init__(self, build: Callable[[Any], Any]):
        super().__init__()
        self.build = build


def hypermodel_of(build: Any) -> keras_tuner.HyperModel:
    """What keras-tuner calls: a ``HyperModel`` as it is, or one around a function.

    Raises:
        InputError: neither; a class that cannot be made without arguments; a ``HyperModel`` with a ``fit`` of
            its own, which a search has no use for; a function that needs more than ``hp``.
    """
    if inspect.isclass(build) and issubclass(build, keras_tuner.HyperModel):
        try:
            build = build()
        except TypeError as error:
            raise InputError(f"build {build.__name__}: give an object of the class ({error}).") from error
    if isinstance(build, keras_tuner.HyperModel):
        if type(build).fit is not keras_tuner.HyperModel.fit:
            raise InputError(
                f"build {type(build).__name__}: a trial does not call its 'fit'; give epochs, "
                "steps_per_epoch and batch_size to DetectionTuner, and write the rest into the model's "
                "train_step."
            )
        return build
    if inspect.isclass(build) or not callable(build):
        raise InputError(f"build {build!r}: {KINDS} is needed.")
    try:
        inspect.signature(build).bind(None)
    except TypeError as error:
        raise InputError(
            f"build {build!r} is called with hp alone ({error}): bind others by functools.partial."
        ) from error
    return Function(build)


def make(hypermodel: keras_tuner.HyperModel, values: Mapping[str, Any]) -> tuple[keras.Model, dict[str, Any]]:
    """The model of some values of ``hp``, and all values that it was made with, defaults among them."""
    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    hypermodel.declare_hyperparameters(hp)
    model = hypermodel.build(hp)
    if isinstance(model, PatchModel) and not model.compiled:
        model.compile()  # with the optimisers of its paper
    return model, dict(hp.values)


def check(model: Any, channels: int) -> None:
    """Refuse a model that no trial could train or read.

    Raises:
        InputError: all that is wrong with it.
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"build returns {type(model).__name__}: a Keras model is needed.")
    if isinstance(model, PatchModel):
        return  # it checks itself
    problems = []
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, keras.Model):
        problems.append("has no 'encoder': set model.encoder, a keras.Model from a patch to its code.")
    elif not encoder.built or not isinstance(getattr(encoder, "input_shape", None), tuple):
        problems.append("has an encoder without a shape: begin it with keras.Input((9, 9, channels)).")
    elif len(encoder.input_shape) not in (4, 5) or encoder.input_shape[-1] != channels:
        problems.append(
            f"has an encoder of {encoder.input_shape}: patches of {channels} modalities are "
            f"(n, x, y, {channels}) or (n, x, y, z, {channels})."
        )
    if not model.compiled:
        problems.append("is not compiled: call model.compile(optimizer, loss) in build.")
    shapes = [getattr(model, name, None) for name in ("input_shape", "output_shape")]
    if None not in shapes and shapes[0] != shapes[1]:
        problems.append(f"gives {shapes[1]} for patches of {shapes[0]}: it is trained to give them back.")
    if problems:
        raise InputError([f"the model that build makes {problem}" for problem in problems])


def pack(hypermodel: keras_tuner.HyperModel | None) -> bytes:
    """What a trial's process has to know: a hypermodel, registered classes, the places of modules.

    Args:
        hypermodel: None for a model that is known by its name.

    Raises:
        InputError: it holds something that cannot leave this process.
    """
    importable = set(sys.modules) - {"__main__"}
    classes = [registry.registered for registry in REGISTRIES]
    keras_classes = {
        name: value
        for name, value in keras.saving.get_custom_objects().items()
        if getattr(value, "__module__", "") not in importable
    }
    try:
        body = cloudpickle.dumps((hypermodel, keras_classes, classes))
    except Exception as error:  # whatever the object that cannot be pickled raises
        raise InputError(
            "build cannot be taken to the process of a trial, because of something that it reads "
            f"({type(error).__name__}: {error}): make or open that inside build."
        ) from error
    places = [str(Path(place).absolute()) for place in sys.path]
    return pickle.dumps({"places": places, "body": body})


def load(path: Path) -> keras_tuner.HyperModel | None:
    """The hypermodel of a file with what ``pack`` gave; the classes are registered."""
    content = pickle.loads(path.read_bytes())
    sys.path[:] = content["places"]
    hypermodel, keras_classes, classes = pickle.loads(content["body"])
    for registry, known in zip(REGISTRIES, classes, strict=True):
        for name, value in known.items():
            if name not in registry:
                registry.register(name)(value)
    for name, value in keras_classes.items():
        package, _, own_name = name.rpartition(">")
        keras.saving.register_keras_serializable(package or "Custom", own_name)(value)
    return hypermodel


def describe(model: keras.Model) -> list[str]:
    """A line for each setting of a layer, each weight and the training, but names, which Keras numbers."""
    lines = []
    if isinstance(model, PatchModel):
        lines = [f"{key} {_plain(value)}" for key, value in model.get_config().items() if key != "name"]
    for layer in _layers(model):
        kind = type(layer).__name__
        lines.append(f"{kind}, {layer.dtype_policy.name}")
        lines += [f"{kind}, {key} {_plain(value)}" for key, value in _config(layer).items() if key != "name"]
    lines += [f"weight of {tuple(weight.shape)}" for weight in model.weights]
    try:
        compiled = model.get_compile_config()
    except Exception:  # a loss of the user's may not be serialisable: then it is not compared
        compiled = {}
    return lines + [f"{key} {_plain(value)}" for key, value in (compiled or {}).items()]


def text_of(build: Any) -> str:
    """What tells one build function from another: its source, and what it reads of its own module."""
    return _text(build, _module_of(build), set())


# === A model in words ===


def _layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _layers(layer)


def _config(layer: keras.Layer) -> dict[str, Any]:
    """What a layer is made with; of one that holds layers nothing, they speak for themselves."""
    try:
        return {} if getattr(layer, "layers", None) else dict(layer.get_config())
    except NotImplementedError:
        return {}


def _plain(config: Any) -> str:
    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): strip(item) for key, item in value.items() if key not in ("name", "module")}
        return [strip(item) for item in value] if isinstance(value, list | tuple) else value

    return json.dumps(strip(config), default=lambda value: type(value).__name__, sort_keys=True)


# === A function in words ===


def _text(value: Any, own: str, seen: set[int]) -> str:
    """The text of a value; of functions and classes of other modules than ``own`` the name alone."""
    if isinstance(value, str | bytes | int | float | complex | types.NoneType):
        return repr(value)
    if id(value) in seen:
        return ""
    seen.add(id(value))

    def text(item: Any) -> str:
        return _text(item, own, seen)

    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(text, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {text(item)}' for key, item in value.items())}}}"
    if isinstance(value, functools.partial):
        return text([value.func, value.args, value.keywords])
    if inspect.ismethod(value):
        return text([value.__func__, value.__self__])
    if inspect.isfunction(value):
        return _source(value) + "".join(
            f"\n{name} = {text(item)}" for name, item in _reads(value, own).items()
        )
    if inspect.isclass(value):
        bases = [base for base in value.__mro__ if base.__module__ == own]
        members = [item for base in bases for item in vars(base).values() if inspect.isfunction(item)]
        return f"{value.__qualname__} {text(members)}"
    state = vars(value) if type(value).__module__ == own else {}
    return f"{text(type(value))} {text(state)}"


def _source(function: types.FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except OSError:  # typed into an interpreter
        return " ".join(f"{code.co_code.hex()} {code.co_names}" for code in _codes(function.__code__))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _reads(function: types.FunctionType, own: str) -> dict[str, Any]:
    """What a function reads of its own module and of the functions around it, by name."""
    names = sorted({name for code in _codes(function.__code__) for name in code.co_names})
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    found |= inspect.getclosurevars(function).nonlocals
    if function.__defaults__ or function.__kwdefaults__:
        found["defaults"] = [function.__defaults__, function.__kwdefaults__]
    return {
        name: value
        for name, value in found.items()
        if not inspect.ismodule(value) and (not callable(value) or getattr(value, "__module__", "") == own)
    }


def _module_of(build: Any) -> str:
    """Name of the module that a build function, or the class of an object, stands in."""
    if isinstance(build, functools.partial):
        return _module_of(build.func)
    return str(getattr(build, "__module__", type(build).__module__))


# === The process that tries one out ===


def main(path: str, answer: str) -> None:
    keras.config.disable_interactive_logging()
    hypermodel = load(Path(path))
    assert hypermodel is not None  # a name of a model is not tried out
    model, _ = make(hypermodel, {})
    write_json(Path(answer), describe(model))


if __name__ == "__main__":
    main(*sys.argv[1:])
