"""How signatures are written: as one SavedModel, or as an ONNX or TFLite file each."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from epizoo.export.signature import Signature
from tfds_epilepsy.errors import InputError

OPSET = 18  # of ONNX; onnxruntime 1.14 (2023) and later read it


def saved_model(signatures: Mapping[str, Signature], variables: Sequence[tf.Variable], folder: Path) -> None:
    """One SavedModel; the first signature is also ``serving_default``."""
    module = tf.Module()
    module.kept = list(variables)
    graphs = {name: signature.graph for name, signature in signatures.items()}
    tf.saved_model.save(module, str(folder), {"serving_default": next(iter(graphs.values())), **graphs})


def onnx(signatures: Mapping[str, Signature], variables: Sequence[tf.Variable], folder: Path) -> None:
    """``<signature>.onnx`` each, by tf2onnx.

    Raises:
        InputError: tf2onnx or onnxruntime is not installed, or an operation has no ONNX form.
    """
    try:
        import onnxruntime  # noqa: F401
        from tf2onnx import convert
    except ImportError as error:
        raise InputError("ONNX needs tf2onnx and onnxruntime: pip install epizoo[onnx].") from error
    for name, signature in signatures.items():
        with _quiet("tf2onnx") as messages:
            model, _ = convert.from_function(
                _positional(signature),
                input_signature=list(signature.specs.values()),
                opset=OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
            )
        unsupported = re.findall(r"Unsupported ops: Counter\((.*)\)", messages.getvalue())
        if unsupported:
            raise InputError(f"{name}: no ONNX form for the operations {unsupported[0]}.")
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


def tflite(signatures: Mapping[str, Signature], variables: Sequence[tf.Variable], folder: Path) -> None:
    """``<signature>.tflite`` each, TFLite's built-in operations alone.

    Raises:
        InputError: an operation that TFLite does not have, by name.
    """
    with tempfile.TemporaryDirectory(dir=folder) as whole:
        saved_model(signatures, variables, Path(whole))
        for name in signatures:
            converter = tf.lite.TFLiteConverter.from_saved_model(whole, signature_keys=[name])
            try:
                with _quiet("tensorflow"), _silent():
                    content = converter.convert()
            except Exception as error:  # its own classes differ between versions
                operations = sorted(set(re.findall(r"\btf\.(\w+)\(", str(error))))
                raise InputError(
                    f"{name}: no TFLite form for the operations {', '.join(operations) or error}: "
                    "export a SavedModel or ONNX."
                ) from error
            (folder / f"{name}.tflite").write_bytes(content)


WRITERS: dict[str, Callable[[Mapping[str, Signature], Sequence[tf.Variable], Path], None]] = {
    "savedmodel": saved_model,
    "onnx": onnx,
    "tflite": tflite,
}


def _positional(signature: Signature) -> Any:
    """Its function of tensors in order: tf2onnx knows no others."""
    names = list(signature.inputs)
    return tf.function(lambda *t: signature.function(**dict(zip(names, t, strict=True))), autograph=False)


def _erfc(ctx: Any, node: Any, name: str, args: Any) -> None:
    """``1 - Erf(x)``: the exact GELU of Keras, for which tf2onnx has no form."""
    dtype, shape = ctx.get_dtype(node.output[0]), ctx.get_shape(node.output[0])
    inputs, outputs = node.input[:], node.output[:]
    ctx.remove_node(node.name)
    one = ctx.make_const(f"{name}_one", np.array(1, np.float32)).output[0]
    erf = ctx.make_node("Erf", inputs, name=f"{name}_erf").output[0]
    ctx.make_node("Sub", [one, erf], outputs=outputs, name=name, dtypes=[dtype], shapes=[shape])


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """A converter's notes kept, instead of printed."""
    logger, messages = logging.getLogger(name), io.StringIO()
    handler = logging.StreamHandler(messages)
    before, propagate, level = logger.handlers[:], logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield messages
    finally:
        logger.handlers, logger.propagate = before, propagate
        logger.setLevel(level)


@contextlib.contextmanager
def _silent() -> Any:
    """What compiled code writes to the terminal, away: the exception holds it too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
