"""Report results as text tables, Markdown tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import MissingExtraError
from .measure import Result
from .peers import BASE, FAST, GPU, PRODUCTS

__all__ = ["fit_shares", "markdown", "plot", "text"]

RIVALS = {
    "cpu": ("torch fused", "sklearn fit", "sklearn partial_fit", "jax jit"),
    "cuda": ("torch fused", "torch compiled", "torch graph", "jax jit"),
}
JOB_UNITS = {"mnist": "seconds", "predict": "rows a second", "to98": "seconds"}


class Column(NamedTuple):
    """One column of a table: its title, and a function from a result to the text of a cell (None: empty)."""

    title: str
    show: Callable[[Result], str | None]


def _figure(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _columns(kind: str, device: str) -> list[Column]:
    """Return the columns for a kind of case on a device."""
    step = kind == "step"
    unit = 1 if step else 1000
    scale = ",.0f" if device == "cpu" or not step else ",.1f"
    title = {"step": "us a step", "mnist": "ms an epoch", "predict": "ms in all", "to98": "ms to 98 %"}[kind]
    return [
        Column(title, lambda r: f"{r.median / unit:{scale}}"),
        Column("range", lambda r: f"{r.low / unit:{scale}} - {r.high / unit:{scale}}"),
        Column("numpy/it" if device == "cpu" else "cupy/it", lambda r: _figure(r.ratio, ".2f")),
        Column("fast/it", lambda r: _figure(r.fast_ratio, ".2f")),
        Column("GFLOP/s", lambda r: _figure(r.gflops, ",.1f")),
        Column("products", lambda r: _figure(r.products_share, ".0%")),
        Column("of peak", lambda r: _figure(r.peak_share, ".1%")),
        Column("kernels", lambda r: _figure(r.kernels, ".4g")),
        Column("rows/s", lambda r: None if step else _figure(r.rows_per_second, ",.0f")),
        Column("peak MB", lambda r: _figure(r.memory, ",.1f")),
    ]


def where(result: Result) -> str:
    """Return "2 threads", or "tf32 on the GPU"."""
    return threads_text(result.threads) if result.device == "cpu" else f"{result.precision} on the GPU"


def threads_text(threads: int) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{threads} thread{'' if threads == 1 else 's'}"


def fit_shares(results: Sequence[Result]) -> dict[str, float]:
    """Return, for each kind of kernels, the time of an epoch of `fit` divided by that of its bare steps."""
    medians = {r.contestant: r.median for r in results if r.kind == "mnist"}
    return {
        name: medians[name] / medians[bare]
        for name in (BASE, FAST)
        if name in medians and (bare := f"{name}, bare steps") in medians
    }


def text(results: Sequence[Result]) -> str:
    """Return the table of one case, without empty columns."""
    first = results[0]
    columns = [c for c in _columns(first.kind, first.device) if any(c.show(r) is not None for r in results)]
    source = "" if first.kind == "step" else f", on {first.source}"
    rows = [["", *(c.title for c in columns)]]
    rows += [[r.contestant, *(c.show(r) or "" for c in columns)] for r in results]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{first.network}{source}, {where(first)}"]
    for name, *cells in rows:
        figures = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:]))
        lines.append(f"  {name:<{widths[0]}}{figures}")
    lines += [f"  {name}: fit / bare steps = {share:.2f}" for name, share in fit_shares(results).items()]
    return "\n".join(lines)


def markdown(results: Sequence[Result], machine: str, command: str) -> str:
    """Return Markdown tables: networks, ratios and jobs for each number of threads or precision."""
    parts = [f"{machine}\n\n`{command}`"]
    for place in dict.fromkeys(where(r) for r in results):
        mine = [r for r in results if where(r) == place]
        steps = [r for r in mine if r.kind == "step"]
        jobs = [r for r in mine if r.kind != "step"]
        if steps:
            networks = list(dict.fromkeys(r.network for r in steps))
            digits = ",.0f" if steps[0].device == "cpu" else ",.1f"
            cells = {(r.contestant, r.network): f"{r.median:{digits}}" for r in steps}
            parts.append(_grid(f"us a step, {place}", networks, {**cells, **_ratios(steps)}))
        if jobs:
            titles = {r.network: f"{r.network}, on {r.source}: {JOB_UNITS[r.kind]}" for r in jobs}
            cells = {(r.contestant, titles[r.network]): _job_figure(r) for r in jobs}
            epoch = next((titles[r.network] for r in jobs if r.kind == "mnist"), "")
            shares = {(f"{name}: fit / bare steps", epoch): f"{s:.2f}" for name, s in fit_shares(jobs).items()}
            parts.append(_grid(place, list(titles.values()), {**cells, **shares}))
        if any(r.memory is not None for r in mine):
            networks = list(dict.fromkeys(r.network for r in mine))
            cells = {(r.contestant, r.network): _figure(r.memory, ",.1f") or "n/a" for r in mine}
            parts.append(_grid(f"peak MB, {place}", networks, cells))
    return "\n\n".join(parts) + "\n"


def _job_figure(r: Result) -> str:
    return f"{r.median / 1e6:.3f}" if r.kind != "predict" else f"{r.rows_per_second:,.0f}"


def _ratios(steps: Sequence[Result]) -> dict[tuple[str, str], str]:
    """Return the cells with xpnet's times relative to its rivals', the share of products, and kernel counts."""
    cells, device = {}, steps[0].device
    base = BASE if device == "cpu" else GPU
    for own, ratio in ((base, "ratio"), (FAST, "fast_ratio")):
        for rival in RIVALS[device]:
            for r in steps:
                if r.contestant == rival and getattr(r, ratio) is not None:
                    cells[f"{own} / {rival}", r.network] = f"{getattr(r, ratio):.2f}"
        for r in steps:
            if r.contestant == own and r.products_share is not None:
                cells[f"{PRODUCTS} / {own}", r.network] = f"{r.products_share:.2f}"
    for title, shown, form in (("share of the peak", "peak_share", ".1%"), ("kernels a step", "kernels", ".4g")):
        for r in steps:
            if r.contestant == base and getattr(r, shown) is not None:
                cells[f"{base}: {title}", r.network] = format(getattr(r, shown), form)
    return cells


def _grid(corner: str, columns: Sequence[str], cells: dict[tuple[str, str], str]) -> str:
    """Return a Markdown table; `cells` maps (row, column) to text and defines the order of the rows."""
    rows = dict.fromkeys(row for row, _ in cells)
    lines = [f"| {' | '.join([corner, *columns])} |", f"|---|{'---:|' * len(columns)}"]
    lines += [f"| {' | '.join([row, *(cells.get((row, c), '') for c in columns)])} |" for row in rows]
    return "\n".join(lines)


def plot(results: Sequence[Result], path: str) -> None:
    """Plot the medians, one panel per case and number of threads."""
    pyplot = _pyplot(path)
    groups = list(dict.fromkeys((r.network, where(r)) for r in results))
    figure, axes = pyplot.subplots(1, len(groups), figsize=(5 * len(groups), 4), squeeze=False)
    for axis, group in zip(axes[0], groups):
        part = [r for r in results if (r.network, where(r)) == group]
        axis.barh([r.contestant for r in part], [r.median for r in part])
        axis.set_title(f"{group[0]}\n{group[1]}, us", fontsize="small")
        axis.set_xscale("log")
        axis.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _pyplot(path: str) -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(f"--plot needs matplotlib: pip install 'xpnet[plot]'; got {path!r}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
