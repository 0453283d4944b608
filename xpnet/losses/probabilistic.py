"""Losses of distributions: counts, normal errors, and the distance of two distributions."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, np
from ..core.ops import columns
from ..core.settings import flag, setting
from ..errors import number
from ..kernels.context import Context
from .base import EPSILON, Elementwise, Loss, clip, registry
from .targets import COUNTS, HALF_OF_OUTPUTS, PROBABILITIES

__all__ = ["GaussianNLL", "KLDivergence", "Poisson"]


@registry.register("kl_divergence", "kld")
class KLDivergence(Loss):
    """sum over units of y log(y / p), for distributions y and p over the units;  d/dp = -y / p.

    Both are clipped to [1e-7, 1], as in Keras; outside, d/dp = 0. In a model that ends in softmax it is computed
    from the scores z, with p = softmax(z):  dz = p sum(y) - y, and p is not clipped.

    Source: S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics 22,
    1951.

    Args:
        reduction, name, dtype: see `Loss`. Targets are in [0, 1] and have the shape of the predictions.

    >>> round(float(KLDivergence()([[0.5, 0.5]], [[0.25, 0.75]])), 4)
    0.1438
    """

    fuses = "softmax"
    targets = PROBABILITIES

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the divergences of the rows and their derivative by p times `weight`."""
        xp = ctx.xp
        y, _ = clip(xp, y, 1.0)
        q, inside = clip(xp, p, 1.0)
        return xp.sum(y * xp.log(y / q), axis=-1), -(y / q) * inside * columns(xp, weight)

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the divergences of softmax(z), their derivative by z times `weight`, and softmax(z)."""
        y, _ = clip(ctx.xp, y, 1.0)
        values, dz, a = ctx.ops.softmax_cross_entropy(ctx, z, y, weight)
        return values + ctx.xp.sum(y * ctx.xp.log(y), axis=-1), dz, a


@registry.register
class Poisson(Elementwise):
    """mean over units of p - y log(p + 1e-7), for counts y and their expectations p;  d/dp = 1 - y / (p + 1e-7).

    With `log_input` predictions are z = log p:  exp(z) - y z, d/dz = exp(z) - y, which overflows for large z. Both
    leave out log(y!), which does not depend on the prediction.

    Args:
        reduction, name, dtype: see `Loss`. Targets are >= 0 and have the shape of the predictions.
        log_input: whether predictions are logarithms, as in PyTorch's `poisson_nll_loss`. Keras has no such
            argument.

    >>> round(float(Poisson(log_input=True)([[2.0]], [[0.0]])), 4)
    1.0
    """

    targets = COUNTS
    argument_order = ("reduction", "name", "dtype")

    log_input: bool = setting(flag, default=False, kw_only=True)

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the loss of p, or of exp(p), and its derivative."""
        if self.log_input:
            mean = xp.exp(p)
            return mean - y * p, mean - y
        above = p + EPSILON
        return p - y * xp.log(above), 1.0 - y / above

    def objection(self, p: np.ndarray) -> str | None:
        """Report negative predictions."""
        if self.log_input or not (p < 0).any():
            return None
        return (
            "the predictions must be >= 0: let the model end in 'softplus' or 'exponential', or in no activation "
            f"with log_input=True (one of them is {p.min()})"
        )


@registry.register("gaussian_nll")
class GaussianNLL(Loss):
    """mean over units of (log v + (y - m)^2 / v) / 2: the negative logarithm of a normal density at y.

    A model has two outputs for each target: first all means m, then all variances v. They are (batch, 2 k) for
    targets (batch, k). d/dm = (m - y) / v / k and d/dv = (1 / v - (y - m)^2 / v^2) / 2 / k. With `log_variance`
    the second half is s = log v:  d/ds = (1 - (y - m)^2 / v) / 2 / k, and the model needs no activation to keep v
    positive.

    Variances below `eps` are taken as `eps` in both formulas. There the derivative is not 0 but the one at `eps`,
    as in PyTorch, so that a variance can grow again.

    Source: D. A. Nix, A. S. Weigend, "Estimating the mean and variance of the target probability distribution",
    ICNN 1994. The meaning is that of PyTorch's `gaussian_nll_loss`, which takes m and v as two arguments.

    Args:
        full: whether to add log(2 pi) / 2. eps: > 0, the least variance. log_variance: see above.
        reduction, name, dtype: see `Loss`.

    >>> round(float(GaussianNLL()([[1.0]], [[3.0, 1.0]])), 4)
    2.0
    """

    targets = HALF_OF_OUTPUTS

    full: bool = setting(flag, default=False)
    eps: float = setting(number, 0, open_low=True, default=1e-6)
    log_variance: bool = setting(flag, default=False)

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the targets: half of the outputs."""
        return (*shape[:-1], shape[-1] // 2)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the means over the targets, and their derivative by p times `weight`."""
        xp, k = ctx.xp, p.shape[-1] // 2
        m, v = p[..., :k], p[..., k:]
        least = xp.full_like(v, math.log(self.eps) if self.log_variance else self.eps)
        v = xp.maximum(v, least)
        log, inverse = (v, xp.exp(-v)) if self.log_variance else (xp.log(v), 1.0 / v)
        dm = (m - y) * inverse
        ratio = (m - y) * dm
        dv = 0.5 * (1.0 - ratio)
        dp = xp.concat([dm, dv if self.log_variance else dv * inverse], axis=-1)
        constant = 0.5 * math.log(2.0 * math.pi) if self.full else 0.0
        value = xp.mean(0.5 * (log + ratio), axis=-1) + constant
        return value, dp * (columns(xp, weight) * (1.0 / k))
