"""L-BFGS: quasi-Newton descent on all rows at once, with a line search for the strong Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ..backend import Array
from ..core.params import Variables
from ..core.settings import setting
from ..errors import InvalidTypeError, NonFiniteError, ShapeError, number
from ..kernels.context import Context, enter
from .base import Optimizer, OptimizerState, registry

__all__ = ["LBFGS", "Minimum", "Point"]

SUFFICIENT, CURVATURE = 1e-4, 0.9  # c1 and c2 of the Wolfe conditions


class Point(NamedTuple):
    """Weights, with the function there.

    Attributes:
        w, g: weights and gradient, shape (size,). value: of the function. step, slope: in a line search,
            w = start + step * direction, and the derivative by the step. extra: other results of the function.
    """

    w: Array
    value: float
    g: Array
    extra: Any = None
    step: float = 0.0
    slope: float = 0.0


class Minimum(NamedTuple):
    """The result of `LBFGS.minimize`.

    Attributes:
        x, gradient: arrays in the library of the start. value: of the function there. iterations, evaluations: how
            many. converged: whether a tolerance was reached. message: why it ended.
    """

    x: Array
    value: float
    gradient: Array
    iterations: int
    evaluations: int
    converged: bool
    message: str


@registry.register
class LBFGS(Optimizer):
    """Descent along  -H g,  H being an approximation of the inverse Hessian from the last `history` steps.

    With s = w' - w and y = g' - g of each kept step, H is the BFGS matrix that begins with (s y / y y) times the
    identity (J. Nocedal, Mathematics of Computation 35, 1980; two-loop recursion). The step is 1 if it meets the
    strong Wolfe conditions, f(w') <= f(w) + 1e-4 step slope and |slope'| <= 0.9 |slope|; else the search brackets
    and interpolates (J. Nocedal, S. Wright, "Numerical optimization", 2006, algorithms 3.5 and 3.6). The first
    iteration starts with a step of at most length 1.

    In `fit` each epoch is one iteration on all rows at once, in their order: `batch_size` and `shuffle` have no
    effect. Loss and metrics are those before the iteration. When no |g| exceeds `tol`, the weights stay. The
    function must not change between iterations, so the model should have no dropout. It reads numbers on the host.
    `minimize` does the same for any function.

    Args:
        history: steps to keep, >= 1. tol: >= 0, ends when no |g| exceeds it. max_line_search: evaluations of one
            line search, >= 1.
        max_iter, max_fun: iterations and evaluations of `minimize`, >= 1. ftol: >= 0; `minimize` ends when
            (f - f') / max(|f|, |f'|, 1) is not above it.
        name, dtype: see `Optimizer`.

    Defaults are those of SciPy's L-BFGS-B, which is without bounds the same method with another line search.

    >>> def square(x):
    ...     return ((x - 3.0) ** 2).sum(), 2.0 * (x - 3.0)
    >>> [round(x, 6) for x in LBFGS().minimize(square, [0.0, 1.0]).x.tolist()]
    [3.0, 3.0]
    """

    history: int = setting(number, 1, integer=True, default=10)
    tol: float = setting(number, 0, default=1e-5)
    max_iter: int = setting(number, 1, integer=True, default=15000)
    max_fun: int = setting(number, 1, integer=True, default=15000)
    ftol: float = setting(number, 0, default=2.220446049250313e-9)
    max_line_search: int = setting(number, 1, integer=True, default=20)

    # what other optimizers have as settings
    learning_rate = 1.0
    weight_decay = clipnorm = clipvalue = global_clipnorm = None
    use_ema, ema_momentum, ema_overwrite_frequency, gradient_accumulation_steps = False, 0.99, None, None
    slots = ("steps", "changes")
    full_batch = True

    def slot_sizes(self, variables: Variables) -> dict[str, int]:
        """Return the size of the kept steps s, and of the changes y: the newest come first."""
        size = self.history * (variables[-1].stop if variables else 0)
        return dict.fromkeys(self.slots, size)

    def apply_variables(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        variables: Variables,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return everything unchanged: `iterate` makes the steps."""
        return w, slots

    def update(self, theta: Any, grad: Any, state: OptimizerState, layout: Any = None) -> NoReturn:
        """Raise: a step needs values of the function.

        Raises:
            InvalidTypeError: always.
        """
        raise InvalidTypeError("LBFGS needs values of the function: call `minimize`, or `fit`; got a gradient")

    def iterate(
        self, xp: Any, function: Callable[[Array], Point], point: Point, slots: tuple[Array, ...]
    ) -> tuple[Point | None, tuple[Array, ...]]:
        """Return the point after one iteration, and the new slots; None if no lower point was found.

        Args:
            function: returns the point of some weights. slots: of `first_slots`.
        """
        for kept in (slots, tuple(map(xp.zeros_like, slots))):  # the second time along the gradient
            first = _dot(xp, kept[0], kept[0]) == 0
            d = direction(xp, point.g, *kept)
            slope = _dot(xp, d, point.g)
            start = point._replace(step=0.0, slope=slope)
            if not -math.inf < slope < 0:
                continue

            def along(step: float, start: Point = start, d: Array = d) -> Point:
                new = function(start.w + step * d)
                return new._replace(step=step, slope=_dot(xp, d, new.g))

            length = min(1.0, 1.0 / math.sqrt(_dot(xp, d, d))) if first else 1.0
            noise = 4.0 * float(xp.finfo(point.g.dtype).eps) * abs(point.value)
            found = search(along, start, length, self.max_line_search, noise)
            if found is not None:
                s, y = found.w - point.w, found.g - point.g
                if _dot(xp, s, y) > 0:
                    kept = tuple(_newest(xp, *pair) for pair in zip((s, y), kept))
                return found, kept
        return None, slots

    def minimize(self, function: Callable[[Array], tuple[Any, Any]], x0: Any) -> Minimum:
        """Return the minimum of a function from a start.

        Args:
            function: `function(x) -> (value, gradient)`: a number and shape (size,), in the library of x0.
            x0: shape (size,); in float64, unless it is an array of another dtype.

        Raises:
            ShapeError: x0 does not have one axis. NonFiniteError: the function is not finite at x0.
        """
        ctx, leave = enter(x0, dtype=self.dtype)
        x = ctx.backend.copy(ctx.asarray(x0))
        if x.ndim != 1:
            raise ShapeError(f"x0 must have shape (size,); got {tuple(x.shape)}")
        count = 0

        def evaluate(w: Array) -> Point:
            nonlocal count
            count += 1
            value, g = function(leave(w))
            return Point(w, float(value), ctx.backend.copy(ctx.asarray(g)))

        point, slots = evaluate(x), self.first_slots(ctx.backend, tuple(x.shape))
        if not math.isfinite(point.value):
            raise NonFiniteError(f"the function must be finite at x0; got {point.value}")
        for iteration in range(self.max_iter + 1):
            message, converged = "max_iter", False
            if not x.shape[0] or float(ctx.xp.max(ctx.xp.abs(point.g))) <= self.tol:
                message, converged = "no element of the gradient exceeds tol", True
            elif count >= self.max_fun:
                message = "max_fun"
            elif iteration < self.max_iter:
                new, slots = self.iterate(ctx.xp, evaluate, point, slots)
                if new is not None:
                    old, point = point.value, new
                    if old - new.value > self.ftol * max(abs(old), abs(new.value), 1.0):
                        continue
                    iteration, message, converged = iteration + 1, "the decrease does not exceed ftol", True
                else:
                    message = "the line search found no lower point"
            break
        return Minimum(leave(point.w), point.value, leave(point.g), iteration, count, converged, message)


def direction(xp: Any, g: Array, steps: Array, changes: Array) -> Array:
    """Return -H g.

    Args:
        steps, changes: s and y, the newest first, shape (history * size,); pairs of zeros do not count.
    """
    size = g.shape[0]
    places = [slice(i, i + size) for i in range(0, steps.shape[0], size)]
    pairs, q = [], -g
    for s, y in ((steps[place], changes[place]) for place in places):
        product = xp.vecdot(s, y)
        some = product > 0
        rho = xp.where(some, 1.0 / xp.where(some, product, xp.ones_like(product)), xp.zeros_like(product))
        alpha = rho * xp.vecdot(s, q)
        q = q - alpha * y
        pairs.append((s, y, rho, alpha))
    s, y, rho, _ = pairs[0]
    square = xp.vecdot(y, y)
    q = q * xp.where(rho > 0, xp.vecdot(s, y) / xp.where(rho > 0, square, xp.ones_like(square)), xp.ones_like(rho))
    for s, y, rho, alpha in reversed(pairs):
        q = q + (alpha - rho * xp.vecdot(y, q)) * s
    return q


def search(
    along: Callable[[float], Point], start: Point, step: float, most: int, noise: float = 0.0
) -> Point | None:
    """Return a point on the line that meets the strong Wolfe conditions, else one that is lower, else None.

    Args:
        along: returns the point of a step. step: the first one. most: evaluations.
        noise: what rounding may add to a value.
    """

    def too_high(t: Point, low: Point) -> bool:
        bound = start.value + SUFFICIENT * t.step * start.slope + noise
        return not (t.value <= bound and (low is start or t.value < low.value) and math.isfinite(t.slope))

    low, high = start, None  # the minimum lies between them, once there is a high one
    for _ in range(most):
        t = along(step)
        if too_high(t, low):
            high = t
        elif abs(t.slope) <= -CURVATURE * start.slope:
            return t
        else:
            if t.slope * ((t if high is None else high).step - low.step) >= 0:
                high = low
            low = t
        if high is None:
            step = min(max(minimizer(start, low), 1.5 * step), 4.0 * step)
            continue
        width = high.step - low.step
        step = low.step + min(max((minimizer(low, high) - low.step) / width, 0.1), 0.9) * width
        if step in (low.step, high.step):
            break
    return low if low.value < start.value else None


def minimizer(a: Point, b: Point) -> float:
    """Return the step at the minimum of the cubic with the values and slopes of two points, or the middle.

    J. Nocedal, S. Wright, "Numerical optimization", 2006, equation 3.59.
    """
    one = a.slope + b.slope - 3.0 * (a.value - b.value) / (a.step - b.step)
    square = one * one - a.slope * b.slope
    if 0.0 <= square < math.inf:
        two = math.copysign(math.sqrt(square), b.step - a.step)
        below = b.slope - a.slope + 2.0 * two
        if below:
            return b.step - (b.step - a.step) * (b.slope + two - one) / below
    return 0.5 * (a.step + b.step)


def _newest(xp: Any, new: Array, kept: Array) -> Array:
    return xp.concat([new, kept[: kept.shape[0] - new.shape[0]]])


def _dot(xp: Any, a: Array, b: Array) -> float:
    return float(xp.vecdot(a, b))
