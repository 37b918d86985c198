"""PatchModel: the one interface of the zoo."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import GeneratorType
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from epizoo import presets
from epizoo.maps.view import View, create_view
from epizoo.models import training
from epizoo.models.blocks import Stage
from epizoo.models.search_space import Space, arguments
from epizoo.registry import MODELS
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing, write_json, write_text

Model = TypeVar("Model", bound="PatchModel")
VIEW_STATE = "view_"  # before the names of a view's arrays, in a saved model
EARLIER_VIEW_STATE = "deviations_"  # the same, of models saved before there were views
EXPORTS = {"tf_saved_model": "savedmodel", "onnx": "onnx", "litert": "tflite"}  # Keras' names, and ours
NEARLY = 1e-3  # outside the intensities that a model reads: rounding


class PatchModel(keras.Model):
    """A model of healthy patches, with an encoder that everything downstream reads.

    A new model is one file: class attributes that say what it is, the networks in ``__init__``, and a loss.

    >>> from epizoo.models import blocks, losses
    >>> @register_model("plain")
    ... class Plain(PatchModel):
    ...     paper = "Hinton & Salakhutdinov 2006"
    ...     tracked = ("loss",)
    ...
    ...     def __init__(self, patch_shape=(15, 15), channels=2, latent_dim=64, **kwargs):
    ...         super().__init__(patch_shape, channels, latent_dim, **kwargs)
    ...         with self.building():
    ...             self.encoder = blocks.conv_encoder(patch_shape, channels, latent_dim)
    ...             self.decoder = blocks.conv_decoder(patch_shape, channels, latent_dim)
    ...
    ...     def compute_losses(self, batch, training):
    ...         x = batch["patch"]
    ...         x_hat = self.decoder(self.encoder(x, training=training), training=training)
    ...         return {"loss": tf.reduce_mean(losses.squared_error(x, x_hat))}
    >>> Plain(latent_dim=8).encode(np.zeros((3, 15, 15, 2), np.float32)).shape
    (3, 8)

    **What it declares.** ``sampling``: fed single patches (``{"patch", "position"}``) or pairs (and
    ``"partner"``). ``tracked``: names of the figures that each epoch reports. ``trains``: the optimisers,
    in the order in which ``train_step`` uses them, and the sub-networks that each trains. ``averages``:
    sub-networks that are moving averages of trained ones. ``run_defaults``: settings of a run
    (``RunConfig``: the detector, the length of the training, ...) where none are given. ``search_space``:
    what a search of its architecture tries (``epizoo.models.search_space``).

    **A model with several optimisers** (a GAN) declares::

        trains: ClassVar = {
            "d_optimizer": ("discriminator",),
            "g_optimizer": ("live_generator", "live_encoder"),
        }
        averages: ClassVar = {"encoder": "live_encoder", "decoder": "live_generator"}

    builds ``discriminator``, ``live_generator`` and ``live_encoder`` (``encoder`` and ``decoder`` are then
    made when ``building`` ends: copies of the same architecture that follow the live ones, and what
    encodes, reconstructs, exports), returns its optimisers from ``default_optimizers`` and overrides
    ``train_step``::

        def train_step(self, data):
            batch = self.check_batch(data)
            with tf.GradientTape() as tape:
                d_loss = ...
            self.minimise(d_loss, tape, "d_optimizer")
            with tf.GradientTape() as tape:
                g_loss = ...
            self.minimise(g_loss, tape, "g_optimizer")
            return self.track(batch, d_loss=d_loss, g_loss=g_loss)

    ``minimise`` scales by the number of replicas and as the optimiser asks (``LossScaleOptimizer``),
    applies, and moves the averages on where that made a step. ``test_step`` tracks what
    ``compute_losses(batch, training=False)`` returns: there a GAN gives the label-free figures to watch on
    held-out controls (reconstruction, for instance, named in ``monitor``).
    ``compile(d_optimizer=..., g_optimizer=...)``, ``save`` and ``load_model`` then treat both optimisers
    and their states like one.

    **Randomness.** ``noise`` and ``uniform`` are functions of (seed, name, number of the batch), so that a
    resumed run repeats an uninterrupted one bit by bit, and replicas draw what one device would. Use nothing
    that keeps a random state of its own: no Dropout, no SeedGenerator. Initial weights follow ``seed``
    inside ``building``.

    **Encoders** shrink by valid padding and take no statistics over a patch (batch normalisation is
    fine), so that they have a dense form. Inputs are in [0, 1]; what a model needs beyond that (a
    Rescaling, a crop, a pooled surround) goes into the encoder.

    Attributes:
        encoder: functional Keras model, input ``patch``, output ``latent`` ``(n, latent_dim)`` float32.
        decoder: functional Keras model from ``latent`` to ``patch``, or None.
        head: functional Keras model from ``latent`` to a logit, higher for what the model itself holds to be
            abnormal, or None.
        patch_shape, channels, latent_dim, seed: as given.
        stages: the architecture that was asked for, as ``blocks.Stage``; None for the model's own.
        view: what its patches are cut from: ``model.view.adapt(controls)``, then ``model.view.seen(subject)``
            is the subject as the model reads it.
        modalities: as given.
        epochs, steps: epochs and batches that ``fit`` has trained so far; saved with the model.

    Args:
        patch_shape: odd sizes in voxels, rank 2 (axial) or 3.
        channels: number of the view's maps: of modalities for ``image``, one more for ``deviations``.
        latent_dim: size of the code.
        seed: of initial weights and noise.
        stages: another stack of convolutions than the model's own: ``(filters, kernel, stride, pool)`` each,
            the last three 3, 1, 1 where left out (``blocks.Stage``).
        view: what its patches are cut from, a view or its name: the ``image``, or ``deviations``, maps of
            what differs from the controls that the view is adapted to, .5 where nothing does.
        modalities: names of the scans' channels, where they are known.
        **kwargs: ``name``, ``dtype``: float32 whatever Keras is set to, or ``mixed_bfloat16`` or
            ``mixed_float16`` for half the memory traffic on accelerators.

    Raises:
        InputError: arguments that no patch can have, all named at once.
    """

    sampling: ClassVar[str] = "patch"
    paper: ClassVar[str] = ""
    tracked: ClassVar[tuple[str, ...]] = ("loss",)
    monitor: ClassVar[str] = "val_loss"
    trains: ClassVar[Mapping[str, tuple[str, ...]]] = {"optimizer": ("encoder", "decoder")}
    # 10 x 500 x 256 shows the siamese 1.3 million pairs, as many patches as the paper's 75 controls x 17 000.
    run_defaults: ClassVar[Mapping[str, Any]] = {
        "detector": "ocsvm",
        "epochs": 10,
        "steps_per_epoch": 500,
        "batch_size": 256,
    }
    search_space: ClassVar[Space] = ()
    averages: ClassVar[Mapping[str, str]] = {}
    # Views that it can read, the first by default; if empty any, and ``image`` by default.
    views: ClassVar[tuple[str, ...]] = ()
    # Options of views by name: models of images read values in [0, 1].
    view_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"deviations": {"spread": 5.0}}
    average_decay: ClassVar[float] = 0.999
    generates: ClassVar[bool] = False  # it makes patches of codes drawn from N(0, I)

    encoder: keras.Model
    decoder: Any = None
    head: Any = None

    def __init__(
        self,
        patch_shape: Sequence[int] = (15, 15),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        seed: int = 0,
        stages: Sequence[Sequence[int]] | None = None,
        view: str | Mapping[str, Any] | View | None = None,
        modalities: Sequence[str] | None = None,
        **kwargs: Any,
    ):
        kwargs["name"] = kwargs.get("name") or type(self).__name__
        kwargs["dtype"] = kwargs.get("dtype") or "float32"
        made = self.view_of(view, modalities)
        _check_arguments(patch_shape, channels, latent_dim, stages, made, kwargs["dtype"])
        super().__init__(**kwargs)
        # === Config ===
        self.patch_shape = tuple(int(n) for n in patch_shape)
        self.channels = int(channels)
        self.latent_dim = int(latent_dim)
        self.seed = int(seed)
        self.stages = None if stages is None else tuple(Stage(*stage) for stage in stages)
        self.view = made
        self.epochs = 0
        self.steps = 0
        self._trackers = [training.Figure(name) for name in self.tracked]
        self._outside = training.Figure("outside")  # share of the intensities that it does not read
        self._warned = False
        self._encode: Any = None
        self._reconstruct: Any = None

    # === What users call ===

    def encode(self, patches: ArrayLike, batch_size: int = 4096) -> NDArray[np.float32]:
        """Codes of patches in inference mode: ``(n, *patch_shape, channels)`` to ``(n, latent_dim)``.

        Raises:
            InputError: patches of another shape; NaN or infinity in one.
        """
        if self._encode is None:
            self._encode = self._compiled(lambda patch: self.encoder(patch, training=False))
        return self._in_batches(self._encode, patches, batch_size)

    def reconstruct(self, patches: ArrayLike, batch_size: int = 4096) -> NDArray[np.float32]:
        """What the model makes of patches: reconstructions of the same shape.

        Raises:
            InputError: patches of another shape; NaN or infinity in one; a model without a decoder.
        """
        if not self.reconstructs:
            raise InputError(f"{self.name} has no decoder: it cannot reconstruct.")
        if self._reconstruct is None:
            self._reconstruct = self._compiled(self.reconstruction)
        return self._in_batches(self._reconstruct, patches, batch_size)

    def generate(self, n: int, seed: int = 0) -> NDArray[np.float32]:
        """``(n, *patch_shape, channels)`` patches from codes drawn from the prior N(0, I).

        Raises:
            InputError: a model without a prior.
        """
        if not self.generates:
            raise InputError(f"{self.name} has no prior on its codes: it cannot generate patches.")
        z = tf.random.stateless_normal((n, self.latent_dim), (seed, 0))
        return np.asarray(self.decoder(z, training=False), np.float32)

    def imagine(self, patches: ArrayLike, seed: int = 0) -> NDArray[np.float32]:
        """Patches from the prior, as many as are given; a model that completes patches keeps their surround.

        Raises:
            InputError: a model without a prior.
        """
        return self.generate(len(np.asarray(patches)), seed)

    @property
    def modalities(self) -> tuple[str, ...] | None:
        return self.view.modalities

    @classmethod
    def view_of(
        cls, view: str | Mapping[str, Any] | View | None = None, modalities: Sequence[str] | None = None
    ) -> View:
        """The view that a model of this class reads.

        Args:
            view: its name, configuration or itself; the class's own if None.
            modalities: names of the scans' channels.

        Raises:
            InputError: an unknown view, or one that the class cannot read.
        """
        chosen = (cls.views or ("image",))[0] if view is None else view
        made = create_view(
            {"name": chosen, **cls.view_options.get(chosen, {})} if isinstance(chosen, str) else chosen,
            modalities,
        )
        if cls.views and made.name not in cls.views:
            raise InputError(f"view {made.name!r}: {cls.__name__} reads {' or '.join(cls.views)} alone.")
        return made

    @classmethod
    def config_for(cls, modalities: Sequence[str], view: str | None = None) -> dict[str, Any]:
        """The arguments that follow from the names of the scans' channels and from what the model is to read.

        Raises:
            InputError: see ``view_of``.
        """
        made = cls.view_of(view, modalities)
        return {"channels": len(made.names), "modalities": list(modalities), "view": made.name}

    @classmethod
    def config_of_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that values of ``search_space`` stand for; no values are the default architecture."""
        return arguments(values)

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        *,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        **optimizers: Any,
    ) -> None:
        """Choose the optimisers; each one not given is the paper's.

        Args:
            optimizer: of a model that has one.
            loss: not for models, which have their own.
            run_eagerly, steps_per_execution, jit_compile: see ``keras.Model.compile``.
            **optimizers: by name (``d_optimizer``, ...), of a model that has several.

        Raises:
            InputError: an optimiser that the model does not have, or that is another model's; a loss.
        """
        given = {"optimizer": optimizer, "loss": loss, **optimizers}
        given = {name: value for name, value in given.items() if value is not None}
        if problems := training.compile_problems(self, given):
            raise InputError(problems)
        with self.distribute_strategy.scope(), training.keras_settings():
            chosen = {name: keras.optimizers.get(value) for name, value in given.items()}
            for name, default in self.default_optimizers().items():
                if name not in chosen:
                    default.name = name
                    chosen[name] = default
            if self.dtype_policy.name == "mixed_float16":
                chosen = {name: training.scaling(value) for name, value in chosen.items()}
            super().compile(
                optimizer=chosen.get("optimizer"),
                run_eagerly=run_eagerly,
                steps_per_execution=steps_per_execution,
                jit_compile=jit_compile,
                auto_scale_loss=False,  # it is for the first alone
            )
            for name in self.trains:
                setattr(self, name, chosen[name])
                chosen[name].build(self.trained_by(name))
            if "optimizer" not in self.trains:
                self.optimizer = training.Optimizers({name: chosen[name] for name in self.trains})

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """``keras.Model.fit`` on dicts of patches (``patch_dataset``), checked before it starts.

        Args:
            x: a ``tf.data.Dataset``, a ``PyDataset`` or a generator of dicts of batches, or a dict of arrays.
            y, sample_weight, class_weight: not for models that learn from patches alone.
            callbacks: of Keras, too: ``model.monitor`` needs no ``mode``.
            batch_size, epochs, verbose, kwargs: as in Keras.

        Raises:
            InputError: elements that this model cannot train on; labels or weights; nothing to train.
        """
        problems = training.label_problems(y=y, sample_weight=sample_weight, class_weight=class_weight)
        for data in (x, kwargs.get("validation_data")):
            problems += training.data_problems(self, data)
        if self.compiled:
            problems += training.optimiser_problems(self)
        if problems:
            raise InputError(problems)
        if isinstance(x, tf.data.Dataset | GeneratorType):
            kwargs.setdefault("shuffle", False)  # Keras warns that it cannot
        if "validation_data" in kwargs:
            kwargs["validation_data"] = training.as_batches(kwargs["validation_data"])
        return super().fit(
            training.as_batches(x),
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=training.prepared(self, callbacks),
            **kwargs,
        )

    def save_preset(self, folder: str | Path, **about: Any) -> Path:
        """Write a small readable folder: ``config.json``, ``model.weights.h5`` and ``card.md``.

        It holds no optimiser's states and nothing that a view has learnt from controls: who takes the
        preset adapts the view to controls of their own.

        Args:
            folder: new or empty.
            **about: what else is known, fields of ``epizoo.presets.Preset``: ``voxel_size``, ``trained_on``,
                ``subjects``, ``licence``, ...

        Returns:
            The folder.

        Raises:
            InputError: the folder holds something already; something that a preset does not say.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: not empty; choose another folder for the preset.")
        told = {
            "model": keras.saving.get_registered_name(type(self)),
            "config": self.get_config(),
            "parameters": self.count_params(),
            "fewest_controls": self.view.fewest_controls,
            "paper": self.paper,
            "epizoo": importlib.metadata.version("epizoo"),
        }
        if wrong := sorted(set(about) - set(presets.Preset.__dataclass_fields__) | set(about) & set(told)):
            raise InputError(f"{', '.join(wrong)}: not for the caller of save_preset to say.")
        preset = presets.Preset(folder=folder, **told, **about)
        plain = type(self).from_config(self.get_config())  # not compiled: no optimiser states
        plain.set_weights(self.get_weights())
        plain.epochs, plain.steps = self.epochs, self.steps
        with replacing(folder) as partial:
            partial.mkdir()
            write_json(partial / presets.CONFIG, preset.to_json())
            write_text(partial / presets.CARD, presets.card(preset))
            plain.save_weights(partial / presets.WEIGHTS)
        return folder

    def export(
        self, filepath: str | Path, format: str = "tf_saved_model", verbose: Any = None, **options: Any
    ) -> None:
        """``keras.Model.export``: the encoder, with the signatures of ``epizoo.export_encoder``.

        Args:
            filepath: the folder to write.
            format: ``tf_saved_model``, ``onnx`` or ``litert``, as Keras calls them.
            verbose: not used.
            **options: of ``epizoo.export_encoder``: modalities, normalisation, overwrite, ...

        Raises:
            InputError: an unknown format or option, or what ``export_encoder`` refuses.
        """
        import epizoo  # the front door: models know nothing of the room behind it

        if format not in EXPORTS:
            raise InputError(f"format {format!r}: choose one of {', '.join(EXPORTS)}.")
        try:
            epizoo.export_encoder(self, filepath, format=EXPORTS[format], **options)
        except TypeError as error:
            raise InputError(f"export: {error}.") from error

    def receptive_field(self) -> tuple[int, ...]:
        """Voxels, an axis each, that the code looks at: the box in which its gradient is not zero."""
        rng = np.random.default_rng(0)
        patches = tf.constant(rng.random((8, *self.patch_shape, self.channels), dtype=np.float32))
        with tf.GradientTape() as tape:
            tape.watch(patches)
            code = self.encoder(patches, training=False)
            # Random weights: codes of one patch must not cancel.
            value = tf.reduce_sum(code * rng.normal(size=code.shape).astype(np.float32))
        seen = np.abs(tape.gradient(value, patches)).sum((0, -1)) > 0
        return tuple(int(np.ptp(axis)) + 1 for axis in np.nonzero(seen))

    def flops_per_voxel(self) -> int:
        """Multiplications and additions per voxel of the dense form: each weight is used once there."""
        return 2 * _kernel_size(self.encoder)

    @property
    def reconstructs(self) -> bool:
        """Whether the model can reconstruct."""
        return self.decoder is not None

    @property
    def feeds(self) -> dict[str, tuple[int, ...]]:
        """The arrays of a batch that the model takes, and the shape of each without ``n``; all are floats."""
        names = ("patch", "partner") if self.sampling == "pair" else ("patch",)
        return {name: (*self.patch_shape, self.channels) for name in names}

    @property
    def made_shape(self) -> tuple[int, ...]:
        """The size in voxels of what the model makes: the whole patch, or its centre in a few models."""
        return self.patch_shape

    # === What a model overrides ===

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        """Scalars by name, ``loss`` among them, of a batch; names as in ``tracked``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither compute_losses nor its own steps.")

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        """New optimisers with the paper's settings, by name."""
        return {"optimizer": keras.optimizers.Adam(1e-3)}

    def reconstruction(self, patches: Any) -> Any:
        """Graph form of ``reconstruct``, in inference mode."""
        assert self.decoder is not None
        return self.decoder(self.encoder(patches, training=False), training=False)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dtype": self.dtype_policy.name,
            "patch_shape": list(self.patch_shape),
            "channels": self.channels,
            "latent_dim": self.latent_dim,
            "seed": self.seed,
            "stages": None
            if self.stages is None
            else [list(dataclasses.astuple(stage)) for stage in self.stages],
            "view": self.view.get_config(),
            "modalities": None if self.modalities is None else list(self.modalities),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> PatchModel:
        """A model of ``get_config``, or of that of an earlier version, which said ``reads`` for ``view``."""
        if "reads" in config:
            config = dict(config)
            config["view"] = config.pop("reads")
        model: PatchModel = super().from_config(config, custom_objects)
        return model

    # === What a model's own steps use ===

    @contextmanager
    def building(self) -> Iterator[None]:
        """Build the sub-networks in here: seeded, in the model's precision; averages are made at the end."""
        with training.keras_settings(self.dtype_policy, self.seed):
            yield
            for name, live in self.averages.items():
                source = getattr(self, live)
                average = keras.models.clone_model(source)
                average.set_weights(source.get_weights())
                setattr(self, name, average)
        self.built = True

    def check_batch(self, data: Any) -> dict[str, Any]:
        """The dict of a batch as the model reads it: what it is fed in float32, of known shape; or its specs.

        Raises:
            InputError: a key is missing, a shape is not this model's, or values are not floats; labels or
                weights beside it.
        """
        if problems := training.batch_problems(self, data):
            raise InputError(problems)
        batch = dict(keras.utils.unpack_x_y_sample_weight(data)[0])
        for name, shape in self.feeds.items():
            if not isinstance(batch[name], tf.TypeSpec):
                batch[name] = tf.ensure_shape(tf.cast(batch[name], tf.float32), (None, *shape))
        return batch

    def minimise(self, loss: Any, tape: tf.GradientTape, optimizer: str = "optimizer") -> None:
        """One step of an optimiser on the sub-networks that it trains; their averages follow.

        Args:
            loss: scalar, the mean over the replica's share of the batch.
            tape: that saw it.
            optimizer: a name in ``trains``.
        """
        variables = self.trained_by(optimizer)
        if not variables:
            return  # frozen
        chosen = getattr(self, optimizer)
        before = tf.identity(chosen.iterations)
        # Starting from the scale instead of 1: the gradients of the scaled loss.
        scale = chosen.scale_loss(tf.ones_like(loss))
        # Keras sums gradients over replicas; the loss is a mean over the whole batch.
        replicas = self.distribute_strategy.num_replicas_in_sync
        gradients = tape.gradient(loss, variables, output_gradients=scale)
        gradients = [None if g is None else g / replicas for g in gradients]
        chosen.apply_gradients(zip(gradients, variables, strict=True))
        self._move_averages(optimizer, before)

    def track(self, batch: Mapping[str, Any], **figures: Any) -> dict[str, Any]:
        """Add scalars to the epoch's means, named as in ``tracked``; returns the means so far."""
        n = tf.cast(tf.shape(batch["patch"])[0], tf.float32)
        low, high = self.view.limits
        read = (batch["patch"] >= low - NEARLY) & (batch["patch"] <= high + NEARLY)  # NaN is not
        self._outside.update_state(tf.reduce_mean(tf.cast(~read, tf.float32)), sample_weight=n)
        unknown = set(figures) - set(self.tracked)
        if unknown:
            raise ValueError(f"{type(self).__name__} must name {sorted(unknown)} in 'tracked'.")
        trackers = {metric.name: metric for metric in self._trackers}
        for name, value in figures.items():
            trackers[name].update_state(value, sample_weight=n)
        return {name: trackers[name].result() for name in figures}

    def noise(self, name: str, shape: Sequence[Any], training: bool = True) -> Any:
        """Standard normal values, a function of the seed, the name and the batches trained on.

        Args:
            name: tells apart several draws for one batch.
            shape: the first axis is the replica's batch: replicas draw their parts of what one device would.
            training: the same values at every validation batch if False.
        """
        return self._draw(tf.random.stateless_normal, name, shape, training)

    def uniform(self, name: str, shape: Sequence[Any], training: bool = True) -> Any:
        """Values uniform in [0, 1); arguments as in ``noise``."""
        return self._draw(tf.random.stateless_uniform, name, shape, training)

    def gather(self, values: Any) -> Any:
        """The whole batch's ``(n, ...)`` values on every replica: for a loss that compares samples."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return values
        return tf.distribute.get_replica_context().all_gather(values, 0)

    def trained_by(self, optimizer: str) -> list[keras.Variable]:
        """The weights that an optimiser trains."""
        networks = [getattr(self, name) for name in self.trains[optimizer]]
        return [v for network in networks if network is not None for v in network.trainable_variables]

    def warn_of_intensities(self) -> None:
        """Say, once, that patches hold values that the model does not read."""
        share = float(self._outside.result())
        if share > 0 and not self._warned:
            self._warned = True
            low, high = self.view.limits
            warnings.warn(
                f"{100 * share:.3g} % of the values in patches lie outside [{low:g}, {high:g}], all that "
                f"{self.name} reads: normalise the images first (tfds_epilepsy.volumes.normalise).",
                stacklevel=2,
            )

    # === Keras ===

    def call(self, inputs: Any, training: bool = False) -> Any:
        patch = inputs["patch"] if isinstance(inputs, Mapping) else inputs
        return self.encoder(patch, training=training)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, keras.Layer):
            self.__dict__.update(_encode=None, _reconstruct=None)  # they were traced with another

    def train_step(self, data: Any) -> dict[str, Any]:
        batch = self.check_batch(data)
        with tf.GradientTape() as tape:
            figures = self.compute_losses(batch, training=True)
        self.minimise(figures["loss"], tape)
        return self.track(batch, **figures)

    def test_step(self, data: Any) -> dict[str, Any]:
        batch = self.check_batch(data)
        return self.track(batch, **self.compute_losses(batch, training=False))

    @property
    def metrics(self) -> list[keras.Metric]:
        return list(self._trackers)

    def get_compile_config(self) -> dict[str, Any]:
        if not self.compiled:
            return {}
        return {
            **{name: keras.optimizers.serialize(getattr(self, name)) for name in self.trains},
            "run_eagerly": self.run_eagerly,
            "steps_per_execution": self.steps_per_execution,
            "jit_compile": self.jit_compile,
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(
            **{
                name: keras.optimizers.deserialize(value) if name in self.trains else value
                for name, value in config.items()
            }
        )

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["counters"] = np.asarray([self.epochs, self.steps])
        for name, array in self.view.state().items():
            store[f"{VIEW_STATE}{name}"] = array

    def load_own_variables(self, store: Any) -> None:
        values = {key: store[key] for key in store.keys()}  # noqa: SIM118 (not a dict)
        self.epochs, self.steps = (int(n) for n in np.asarray(values.pop("counters")))
        state = {}
        for prefix in (VIEW_STATE, EARLIER_VIEW_STATE):
            for key in [key for key in values if key.startswith(prefix)]:
                state[key.removeprefix(prefix)] = np.asarray(values.pop(key))
        state.pop("spread", None)  # of an earlier version; the view's configuration holds it now
        self.view.set_state(state)
        super().load_own_variables(values)

    # === Helpers ===

    def _compiled(self, function: Any) -> Any:
        spec = tf.TensorSpec((None, *self.patch_shape, self.channels), tf.float32)
        return tf.function(lambda patch: tf.cast(function(patch), tf.float32), input_signature=[spec])

    def _in_batches(self, function: Any, patches: ArrayLike, batch_size: int) -> NDArray[np.float32]:
        patches = np.asarray(patches, np.float32)
        expected = (*self.patch_shape, self.channels)
        if patches.shape[1:] != expected or patches.ndim == 0:
            raise InputError(training.shape_problem(self, "patches", patches.shape, expected))
        if len(patches) == 0:
            return np.asarray(function(np.zeros((1, *expected), np.float32)))[:0]
        if not np.isfinite([patches.min(), patches.max()]).all():
            axes = tuple(range(1, patches.ndim))
            bad = np.flatnonzero(~np.isfinite(patches).all(axes))
            raise InputError(
                f"{len(bad)} of {len(patches)} patches hold NaN or infinity, patch {bad[0]} the first: "
                "a code of them would look like any other; mend the image."
            )
        starts = range(0, len(patches), batch_size)
        return np.concatenate([np.asarray(function(patches[i : i + batch_size])) for i in starts])

    def _draw(self, function: Any, name: str, shape: Sequence[Any], training: bool) -> Any:
        step: Any = -1
        if training:
            first = getattr(self, next(iter(self.trains)))
            # Batches; the public ``iterations`` stand still while gradients accumulate.
            step = getattr(first, "inner_optimizer", first)._iterations
        stream = zlib.crc32(f"{self.seed} {name}".encode()) & 0x7FFFFFFF
        seed = tf.stack([tf.constant(stream, tf.int64), tf.cast(step, tf.int64)])
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas == 1:
            return function(shape, seed)
        shape = tf.convert_to_tensor(shape, tf.int32)
        n = shape[0]
        part = tf.distribute.get_replica_context().replica_id_in_sync_group
        return function(tf.concat([[n * replicas], shape[1:]], 0), seed)[part * n : (part + 1) * n]

    def _move_averages(self, optimizer: str, before: Any) -> None:
        """``average <- d average + (1 - d) weight``; d grows to ``average_decay`` in the first steps.

        Nothing moves where the optimiser made no step: it gathers gradients, or skipped infinite ones.
        """
        steps = getattr(self, optimizer).iterations
        moved = tf.greater(steps, before)
        step = tf.cast(steps, tf.float32)
        decay = tf.minimum(self.average_decay, (1 + step) / (10 + step))
        pairs = [
            (average.value, live.value, live.trainable)
            for name, source in self.averages.items()
            if source in self.trains[optimizer]
            for average, live in zip(
                getattr(self, name).variables, getattr(self, source).variables, strict=True
            )
        ]

        def move(strategy: Any) -> None:
            for average, live, learnt in pairs:
                # Running statistics are averages already.
                strategy.extended.update(
                    average,
                    lambda a, b, learnt=learnt: a.assign(
                        tf.where(moved, a * decay + b * (1 - decay) if learnt else b, a)
                    ),
                    args=(live,),
                    group=False,
                )

        if pairs:
            tf.__internal__.distribute.interim.maybe_merge_call(move, self.distribute_strategy)


def encoder_of(model: Any) -> keras.Model:
    """The encoder of a model: of a ``PatchModel``, of a Keras model with an attribute ``encoder``, or itself.

    Raises:
        InputError: not a Keras model.
    """
    if isinstance(model, HasEncoder):
        return model.encoder
    if not isinstance(model, keras.Model):
        raise InputError(
            f"{type(model).__name__}: a Keras model is needed, an encoder or one that has an encoder."
        )
    return model


@runtime_checkable
class HasEncoder(Protocol):
    """Any model with an encoder, from ``patch`` to ``latent``."""

    encoder: keras.Model


def register_model(name: str) -> Callable[[type[Model]], type[Model]]:
    """Class decorator: gives a model its name in runs, and lets ``keras.saving.load_model`` know the class.

    Keras knows a class by its module, so that one of another package can be called as one of epizoo's is.

    Example:
        >>> @register_model("sharper")
        ... class Sharper(PatchModel):
        ...     paper = "none yet"
        >>> MODELS.get("sharper").__name__
        'Sharper'

    Raises:
        InputError: another model has the name.
    """

    def add(model: type[Model]) -> type[Model]:
        module = model.__module__
        package = "epizoo" if module.partition(".")[0] == "epizoo" else module
        known: type[Model] = keras.saving.register_keras_serializable(package)(model)
        return MODELS.register(name)(known)

    return add


def _kernel_size(model: keras.Model) -> int:
    """Weights of the kernels of a functional model, once for every place where a layer is used."""
    layers = [node.operation for nodes in model._nodes_by_depth.values() for node in nodes]
    return sum(
        _kernel_size(layer)
        if isinstance(layer, keras.Model)
        else sum(math.prod(w.shape) for w in layer.weights if "kernel" in w.name)
        for layer in layers
        if isinstance(layer, keras.Layer)
    )


def _check_arguments(
    patch_shape: Sequence[int],
    channels: int,
    latent_dim: int,
    stages: Sequence[Sequence[int]] | None,
    view: View,
    dtype: Any,
) -> None:
    problems = training.keras_problems(dtype)
    if len(patch_shape) not in (2, 3) or any(n < 3 or n % 2 == 0 for n in patch_shape):
        problems.append(
            f"patch_shape {tuple(patch_shape)}: two (axial) or three sizes are needed, odd, so that a patch "
            "has a central voxel, and of at least 3 voxels."
        )
    if channels < 1:
        problems.append(f"channels {channels}: at least one modality is needed.")
    if latent_dim < 1:
        problems.append(f"latent_dim {latent_dim}: at least 1 is needed.")
    if stages is not None and (not stages or any(not 1 <= len(s) <= 4 or min(s) < 1 for s in stages)):
        problems.append(f"stages {stages}: (filters, kernel, stride, pool) each, 1 or more, are needed.")
    if view.names and len(view.names) != channels:
        problems.append(
            f"channels {channels}: view {view.name!r} of {', '.join(view.modalities or ())} has "
            f"{len(view.names)} maps ({', '.join(view.names)})."
        )
    if problems:
        raise InputError(problems)
