"""The model people use: layers in a row, trained with `fit`."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from typing import Any

from .backend import LARGEST_COUNT, Array
from .callbacks import History, resolve_verbose
from .errors import NotBuiltError
from .losses import Loss
from .optimizers import Optimizer
from .training import inspection, loop
from .training.data import Data, class_factors
from .training.job import make_job, rows_at_a_time, training_data
from .training.program import Compiled, check_compile
from .training.saving import read_model, save_model
from .training.stack import LayerStack

__all__ = ["Sequential", "load_model", "model_from_json"]


class Sequential(LayerStack):
    """Layers in a row.

    Args:
        layers: in order, or models; an `Input` in front builds the model at once, else the first data do.
        seed: of the weights, shuffles and masks, an integer >= 0; None draws one (see `seed`).
        dtype: `"float32"`, `"float64"`, or one of Keras' mixed policies, `"mixed_float16"` and `"mixed_bfloat16"`:
            products of 16-bit factors that add up in float32, everything else in float32. None takes
            `XPNET_DTYPE`, else float32.
        backend, device: where to compute; None takes `use_backend`, `XPNET_BACKEND`, else the library of the
            first arrays it sees, else NumPy. Results come back in the caller's library.
        name: what `summary` calls it.

    Attributes:
        seed, step, epoch: the streams' seed and counters. stop_training: set it in a callback to end `fit`.
        history: the `History` of the last call of `fit`, also of one that an exception ended; None before.
        session: the weights on their backend, and the steps that train them.

    >>> from xpnet.layers import Dense, Input
    >>> model = Sequential([Input((2,)), Dense(3, activation="relu"), Dense(1)], seed=0)
    >>> model.predict([[1.0, 2.0]]).shape, model.count_params()
    ((1, 1), 13)
    """

    @property
    def compiled(self) -> Compiled | None:
        """What `compile` was given, or None."""
        return self.session.compiled

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that `compile` was given; its settings can be changed at any time."""
        return self.compiled.optimizer if self.compiled else None

    @property
    def loss(self) -> Loss | None:
        """The loss that `compile` was given."""
        return self.compiled.loss if self.compiled else None

    @property
    def metrics_names(self) -> list[str]:
        """The names in the logs: "loss" and the metrics'."""
        return self.compiled.names if self.compiled else []

    # Training -----------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        steps_per_execution: int = 1,
        graph: bool = True,
        weighted_metrics: Any = None,
    ) -> None:
        """Choose how to train. A call that fails leaves the former choice as it was.

        What was frozen or thawed since (`layer.trainable`) counts from here on. The optimizer begins anew, unless
        it is the same object as before and has the same weights to train.

        Args:
            optimizer, loss: names or objects. metrics, weighted_metrics: lists of names or objects; the weights
                of rows and classes count in the latter only.
            steps_per_execution: batches that are run at once (one `lax.scan` under JAX).
            graph: whether a step may be recorded once and replayed (NumPy; see `xpnet.training.replay`).

        Raises:
            UnknownNameError: a name is not known. InvalidValueError: softmax or sigmoid and then `from_logits`.
        """
        self.session.access.refuse("compile")
        compiled = check_compile(optimizer, loss, metrics, steps_per_execution, graph, weighted_metrics)
        self.session.compile(compiled)

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        steps_per_execution: int | None = None,
    ) -> History:
        """Train for some epochs and return the `History`; a second call continues the training.

        If the model was saved in the middle of a run, the first call after `load_model` resumes after the last
        step of that run, with the state of callbacks of the same classes. Changes of the data during a call take
        effect from the next batch (on a GPU that holds the data set, from the next call).

        Args:
            x: inputs, shape (rows, ...): an array of any library, a list, or a pandas, polars or pyarrow table.
            y: targets, shape (rows, ...), or class numbers (rows,) for a sparse loss.
            batch_size: rows a step (None: 32); 1 is stochastic, len(x) full-batch descent.
            epochs: passes over the data (up to this number, from `initial_epoch`; none if that is not below it).
            verbose: 0 silent, 1 a bar, 2 a line an epoch, "auto". callbacks: a list of `Callback`.
            validation_split: share of the last rows that are kept for validation.
            validation_data: (x, y) or (x, y, sample_weight); goes before `validation_split`.
            shuffle: whether each epoch has its own order.
            class_weight: {class: factor}; others count 1. sample_weight: (rows,), (rows, 1) or (rows, ...).
            validation_batch_size: rows at a time (None: batch_size). validation_freq: epochs between two
                validations.
            steps_per_execution: batches run at once, or None for what `compile` was given.

        Raises:
            ShapeError, InvalidValueError, InvalidTypeError: the data do not fit; found before the first step.
            BusyError: another call trains the model.
            NonFiniteError: a loss, gradient or weight was not finite; the model is as it was before that step.
        """
        session, together = self.session, self.session.need_compiled().steps_per_execution
        job = make_job(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
            steps_per_execution=together if steps_per_execution is None else steps_per_execution,
        )
        with session.access.train("fit"):
            with session.as_before_on_error():
                session.admit(job.data, build=True)
                if job.validation is not None:
                    session.admit(job.validation, build=True)
                job = job.split()
                session.program()
            return loop.fit(session, job, self)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one step on one batch; return its loss and metrics, as they were before the update.

        Raises:
            NonFiniteError: a loss, gradient or weight was not finite; nothing is changed then.
        """
        factors, session = class_factors(class_weight), self.session
        session.need_compiled()
        data = training_data(x, y, sample_weight)
        with session.access.train("train_on_batch"):
            with session.as_before_on_error():
                session.admit(data, build=True)
                session.program()
            return self._scores(loop.train_on_batch(session, data, factors), return_dict)

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Return `[loss, *metrics]` over all rows (one float without metrics), or a dict.

        Args:
            x, y, sample_weight: as for `fit`. batch_size: rows at a time (None: 1024, or Keras' 32 where the loss
                depends on it: with reduction "sum" or "mean_with_sample_weight"). verbose: accepted as in Keras;
                nothing is printed. return_dict: whether to return {name: value}.
        """
        resolve_verbose(verbose)
        compiled = self.session.need_compiled()
        by_batch = compiled.loss.reduction in ("sum", "mean_with_sample_weight")
        size = rows_at_a_time(batch_size, 32 if by_batch else 1024)
        data = self.session.admit(training_data(x, y, sample_weight), build=False)
        return self._scores(loop.evaluate(self.session, data, size), return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Return loss and metrics of one batch, without a step. Args: as for `evaluate`."""
        return self.evaluate(x, y, LARGEST_COUNT, sample_weight=sample_weight, return_dict=return_dict)

    def predict(self, x: Any, batch_size: int | None = None, verbose: Any = "auto") -> Array:
        """Return the outputs, shape (rows, ...), in the library of `x`; worked out in batches.

        Raises:
            NotBuiltError: the model has no weights yet. ShapeError: `x` has other features.
        """
        resolve_verbose(verbose)
        return self._outputs(x, batch_size)

    def predict_on_batch(self, x: Any) -> Array:
        """Return the outputs for one batch, computed at once."""
        return self._outputs(x, LARGEST_COUNT)

    def compute(self, x: Any, upto: Any = None, batch_size: int | None = None) -> Array:
        """Return the outputs of an inner layer, shape (rows, ...), in the library of `x`.

        Args:
            upto: the last layer to apply: its name, its position, or the layer; None for all.

        >>> from xpnet.layers import Dense, Input
        >>> model = Sequential([Input((2,)), Dense(3, "tanh", name="hidden"), Dense(1)], seed=0)
        >>> model.compute([[1.0, 2.0]], upto="hidden").shape
        (1, 3)
        """
        return self._outputs(x, batch_size, None if upto is None else self._position(upto))

    def _outputs(self, x: Any, batch_size: int | None, upto: int | None = None) -> Array:
        size = rows_at_a_time(batch_size)
        if not self.built:
            raise NotBuiltError("predict needs a built model: call build(input_shape), or fit; got 0 weights")
        data = self.session.admit(Data(x), build=False)
        outputs, home = loop.predict(self.session, data, size, upto), data.x.home
        if home.shares(outputs, data.x.values):  # no layer has computed anything
            outputs = home.copy(outputs)
        return outputs

    def __call__(self, x: Any, training: bool = False) -> Array:
        """Return `predict(x)`; builds the model at first use.

        Args:
            training: whether layers compute as in training: fresh masks, statistics of these rows. In contrast to
                Keras, running statistics do not change: only training changes a model.
        """
        if self.built:
            return self._called(x, training)  # with nothing to undo: others may train
        self.session.access.refuse("a model that is not built")
        with self.session.as_before_on_error():
            self.session.admit(Data(x), build=True)
            return self._called(x, training)

    def _called(self, x: Any, training: bool) -> Array:
        if not training:
            return self.predict(x)
        return inspection.training_outputs(self.session, self.session.admit(Data(x), build=False))

    def gradients(self, x: Any, y: Any = None, sample_weight: Any = None) -> dict[str, Array]:
        """Return the derivative of what `fit` minimizes by each trainable weight, by path ("dense/kernel").

        The layers compute as in inference (no dropout, running statistics). The arrays are in the library of `x`.

        Args:
            x, y, sample_weight: as for `fit`; all rows count at once.

        >>> from xpnet.layers import Dense, Input
        >>> model = Sequential([Input((2,)), Dense(1, name="out")], seed=0)
        >>> model.compile("sgd", "mse")
        >>> {path: g.shape for path, g in model.gradients([[1.0, 2.0]], [0.5]).items()}
        {'out/kernel': (2, 1), 'out/bias': (1,)}
        """
        self.session.need_compiled()
        data = self.session.admit(training_data(x, y, sample_weight), build=False)
        return inspection.gradients(self.session, data)

    def _scores(self, scores: dict[str, Any], return_dict: bool) -> Any:
        values = list(scores.values())
        return scores if return_dict else values if len(values) > 1 else values[0]

    # Files and copies ---------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write weights, architecture, optimizer state, counters and seed to one safetensors file.

        Read it with `xpnet.load_model`, on any backend.
        """
        save_model(self, path)

    def __copy__(self) -> Sequential:
        """Return a model of its own, as `copy.deepcopy` does: weights and layers are not shared between models."""
        return copy.deepcopy(self)


def load_model(
    path: str | os.PathLike[str],
    *,
    backend: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    custom_objects: Mapping[str, type] | None = None,
) -> Sequential:
    """Return the model of a file, ready to predict and to go on training.

    Args:
        path: a file that `save` wrote. backend, device: where to compute, as for `Sequential`.
        dtype: the precision, or None for the file's.
        custom_objects: user-defined classes by name: of layers, losses and so on, and of their parts.

    Raises:
        FileFormatError: the file is truncated, altered, of another format, or of a newer version.
        UnknownNameError: it needs a class that is not in `custom_objects`. OSError: it can't be opened.
    """
    return read_model(Sequential, path, backend, device, dtype, custom_objects)


def model_from_json(text: str, custom_objects: Mapping[str, type] | None = None) -> Sequential:
    """Return a new model from what `Sequential.to_json` gave, without its weights.

    >>> from xpnet.layers import Dense
    >>> model_from_json(Sequential([Dense(3, "relu")], seed=1).to_json()).layers
    (Dense(units=3, activation=ReLU()),)
    """
    return Sequential.from_config(json.loads(text)["config"], custom_objects)
