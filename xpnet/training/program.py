"""The arguments of `compile`, and the program that a backend makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import kernels, losses, metrics, optimizers
from ..activations import Activation
from ..backend import Backend
from ..core.config import fingerprint, is_described
from ..core.random import Stream
from ..errors import InvalidValueError, number
from ..fusion.activation import activation_graphs
from ..fusion.update import update_graph
from ..kernels.check import usable
from ..schedules import Schedule
from .full_batch import FullBatch
from .network import Network
from .replay import Replay
from .step import make_evaluation, make_step

__all__ = ["Compiled", "Program", "check_compile", "check_head", "make_program"]


class Compiled(NamedTuple):
    """The arguments of `Sequential.compile`, as objects."""

    optimizer: optimizers.Optimizer
    loss: losses.Loss
    metrics: list[metrics.Metric]
    steps_per_execution: int
    graph: bool
    weighted_metrics: Sequence[metrics.Metric] = ()

    @property
    def names(self) -> list[str]:
        """The names in the logs; as in Keras, a weighted metric is renamed if an unweighted one has its name."""
        plain = [m.name for m in self.metrics]
        weighted = [f"weighted_{m.name}" if m.name in plain else m.name for m in self.weighted_metrics]
        return ["loss", *plain, *weighted]

    @property
    def directions(self) -> dict[str, str | None]:
        """`"min"`, `"max"` or None by name: which values are better."""
        both = (*self.metrics, *self.weighted_metrics)
        return dict(zip(self.names, ("min", *(m.direction for m in both))))

    @property
    def arrays(self) -> list[str]:
        """The names in the logs of metrics whose result is an array."""
        both = (*self.metrics, *self.weighted_metrics)
        return [name for name, m in zip(self.names[1:], both) if m.result_shape() != ()]

    def settings(self) -> Any:
        """Return a value that compares equal until a setting changes that a step depends on."""
        parts = [self.optimizer, self.optimizer.excluded, self.loss, *self.metrics, *self.weighted_metrics]
        fixed = not isinstance(self.optimizer.learning_rate, Schedule)  # a fixed rate is part of a step's state
        return fingerprint(parts, leave_out=("learning_rate", "dtype") if fixed else ("dtype",))


class Program(NamedTuple):
    """A compiled model on its backend: what `loop` runs.

    Attributes:
        metrics: chosen for the shapes (`Metric.for_shapes`), weighted or `Unweighted`. names: in the logs.
        target_shape, target_dtype: of a row of y.
        step: `step(state, batch, finish=None) -> state`. run: `run(state, batches, commit)`, compiled or recorded.
        evaluation: `evaluation(sums, weights, stats, batch) -> sums`.
        recorder: what records its steps, or None. maker: what makes draws and batches on the device, or None.
        settings: those of optimizer, loss and metrics (see `Compiled.settings`).
    """

    optimizer: optimizers.Optimizer
    loss: losses.Loss
    metrics: list[Any]
    names: list[str]
    target_shape: tuple[int, ...]
    target_dtype: str | None
    step: Any
    run: Any
    evaluation: Any
    recorder: Any = None
    maker: Any = None
    settings: Any = None

    @property
    def host_masks(self) -> bool:
        """Whether batches must bring their masks and noise."""
        return self.maker is None


def check_compile(
    optimizer: Any, loss: Any, plain: Any, steps_per_execution: Any, graph: Any = True, weighted: Any = None
) -> Compiled:
    """Return the objects for the arguments of `Sequential.compile`.

    Raises:
        UnknownNameError: a name is not known. InvalidValueError: no loss, or one that is not reduced; two metrics
            of one name.
    """
    if loss is None:
        raise InvalidValueError("compile needs a loss, such as 'mse'; got None")
    compiled = Compiled(
        optimizers.get(optimizer),
        losses.get(loss),
        _metrics(plain),
        number("steps_per_execution", steps_per_execution, 1, integer=True),
        bool(graph),
        _metrics(weighted),
    )
    check_reduction(compiled.loss)
    if len(set(compiled.names)) < len(compiled.names):
        raise InvalidValueError(f"metrics must have different names; got {compiled.names[1:]}")
    return compiled


def check_reduction(loss: losses.Loss) -> None:
    """Raise if the loss is not one number."""
    if loss.reduction == "none":
        raise InvalidValueError("a model is trained on one number, the reduced loss; got reduction 'none'")


def _metrics(given: Any) -> list[metrics.Metric]:
    several = [] if given is None else given if isinstance(given, (list, tuple)) else [given]
    return [metrics.get(m) for m in several]


def check_head(network: Network, loss: losses.Loss) -> None:
    """Raise if the loss takes scores while the model ends in the activation that the loss would apply."""
    if not getattr(loss, "from_logits", False):
        return
    for activation in {getattr(cls, "fuses", None) for cls in type(loss).__mro__}:  # a subclass may have lost it
        if activation is not None and network.score_units(activation) is not None:
            raise InvalidValueError(
                f"the model ends in {activation!r}, so its outputs are probabilities: use from_logits=False (the "
                f"scores are used all the same), or no activation; got {type(loss).__name__}(from_logits=True)"
            )


def _warn_of_constant(network: Network) -> None:
    """Warn of a softmax over one output."""
    if network.output_shape[-1:] == (1,) and network.score_units("softmax") is not None:
        warnings.warn(
            "the model ends in 'softmax' over one output, which is always 1: for one probability use 'sigmoid'; "
            f"got outputs of shape {('batch', *network.output_shape)}",
            stacklevel=2,
        )


def make_program(compiled: Compiled, network: Network, backend: Backend, stream: Stream) -> Program:
    """Return the compiled step and evaluation for a network on a backend. Args: stream: of masks and noise."""
    optimizer, loss, settings = compiled.optimizer, compiled.loss, compiled.settings()
    check_reduction(loss)
    check_head(network, loss)
    _warn_of_constant(network)
    outputs = (1, *network.output_shape)
    targets = loss.target_shape(outputs)
    plain, weighted = (
        [m.for_shapes(targets, outputs) for m in group] for group in (compiled.metrics, compiled.weighted_metrics)
    )
    chosen: list[Any] = [*map(metrics.Unweighted, plain), *weighted]
    step = make_step(backend, network, loss, optimizer, chosen)
    recorded = compiled.graph and not optimizer.full_batch and kernels.records(backend) and usable(backend)
    recorder = kernels.recorder_for(backend) if recorded else None
    parts = (*network.parts(), loss, *plain, *weighted, *(part for m in (*plain, *weighted) for part in m.parts))
    if recorder and not (recorder.records_user_code or (_is_traced(optimizer) and all(map(_is_pure, parts)))):
        recorder = None
    maker = kernels.maker_for(backend) if recorder else None
    if maker:
        step = maker.with_masks(step, network.draws, stream)
    if optimizer.full_batch:
        run: Any = FullBatch(backend, network, loss, optimizer, chosen)
    else:
        run = Replay(step, recorder) if recorder else backend.compile(step)
    return Program(
        optimizer,
        loss,
        chosen,
        compiled.names,
        targets[1:],
        "int32" if loss.sparse else None,
        step,
        run,
        make_evaluation(backend, network, loss, chosen),
        recorder,
        maker,
        settings,
    )


def _ours(part: Any) -> bool:
    """Return whether a part (or a class) is xpnet's own, whose code is pure, as a recording requires."""
    cls = part if isinstance(part, type) else type(part)
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _is_pure(part: Any) -> bool:
    """Return whether a part is xpnet's own, or a user's activation that is a formula of its settings."""
    if _ours(part):
        return True
    return isinstance(part, Activation) and is_described(part) and activation_graphs(part) is not None


def _is_traced(optimizer: optimizers.Optimizer) -> bool:
    """Return whether all code of an optimizer in a step is a formula, so that its graph can run instead."""
    if _ours(optimizer):
        return True
    if not is_described(optimizer, "excluded"):
        return False
    updates = ("apply", "apply_variables", "advance")
    homes = [next(cls for cls in type(optimizer).__mro__ if name in vars(cls)) for name in updates]
    return all(map(_ours, homes)) and update_graph(optimizer, len(optimizer.slots)) is not None
