"""Figures as SVG: the same data give the same file, on a light ground, in colours that all readers tell apart."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from .figures import OURS, OURS_SM_90, OWN, Figure, digest
from .tables import number

STYLE = {
    "svg.hashsalt": "flashcore_drv",
    "svg.fonttype": "path",  # the same on every machine, whatever fonts it has
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "grid.color": "#e4e4e4",
}
# Okabe and Ito's palette: https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000",
)  # fmt: skip
NAVY = "#00385A"
PEER_COLOURS = (ORANGE, GREEN, PURPLE, RED, SKY, BLACK)
GREY, INK = "#8c8c8c", "#222222"
FILL = {"ours": BLUE, "part": "#8fc3e3", "peer": "#b4b4b4"}
BAR_INCHES = 0.25
PANEL_INCHES = 2.77  # width of a panel of lines
CAPTION_INCHES = 0.135  # a line
LINE_HEIGHT = 0.062  # of a label, as a share of a panel's height


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each implementation: ours blue and dark blue, peers in the order in which they come."""
    peers = [name for name in names if name not in OWN]
    return {OURS: BLUE, OURS_SM_90: NAVY} | {name: PEER_COLOURS[i % len(PEER_COLOURS)] for i, name in enumerate(peers)}


def caption_lines(figure: Figure, width: float) -> list[str]:
    """The caption, wrapped to so many inches."""
    wrap = textwrap.TextWrapper(round(15 * width), break_on_hyphens=False)
    return [line for text in figure["caption"] for line in wrap.wrap(text)]


def names_of(figure: Figure) -> list[str]:
    """Every series of a figure once, in order."""
    return list(dict.fromkeys(s["name"] for panel in figure["panels"] for s in panel["series"]))


def apart(places: Sequence[float], least: float) -> list[float]:
    """The places moved as little as needed to be `least` apart, in the same order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for _ in range(50):
        for low, high in itertools.pairwise(order):
            if (missing := least - (found[high] - found[low])) > 1e-9:
                found[low] -= missing / 2
                found[high] += missing / 2
    return found


def rates(figure: Figure) -> Canvas:
    """A panel for each head_dim and mask, lines that are labelled at their end, and the limits."""
    panels, colour = figure["panels"], colours(names_of(figure))
    columns = math.ceil(len(panels) / 2)
    longest = max(len(f"{s['name']} {s['y'][-1]:.0f}") for panel in panels for s in panel["series"])
    beside = max(PANEL_INCHES / 2, 0.15 + 0.078 * longest)  # inches right of a panel, for its labels
    width = 4.4 * columns + columns * (beside - PANEL_INCHES / 2)
    canvas = Canvas(figsize=(width, 7.2))
    grid = canvas.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    largest = max(y for panel in panels for s in panel["series"] for y in s["y"])
    top = 1.08 * max([largest, *(c["tflops"] for c in figure["ceilings"])])
    for axes, panel in zip(grid.flat, panels):
        axes.set_title(panel["title"], fontweight="bold", color=INK)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, top)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        for ceiling in figure["ceilings"]:
            axes.axhline(ceiling["tflops"], color=GREY, linewidth=1, linestyle=(0, (5, 3)))
            label = f"{ceiling['name']} {ceiling['tflops']:.0f}"
            axes.text(0.01, ceiling["tflops"] + 0.008 * top, label, color="#666666", size=7.5, **across(axes))
        series = panel["series"]
        for s in series:
            ours = s["name"] in OWN
            line = {"linewidth": 2.4, "zorder": 5} if ours else {"linewidth": 1.4, "zorder": 3}
            axes.plot(s["x"], s["y"], marker="o", markersize=4 if ours else 3, color=colour[s["name"]], **line)
        ends = apart([s["y"][-1] for s in series], LINE_HEIGHT * top)
        for s, end in zip(series, ends):
            weight = "bold" if s["name"] in OWN else "normal"
            axes.annotate(
                f"{s['name']} {s['y'][-1]:.0f}",
                (s["x"][-1], s["y"][-1]),
                (s["x"][-1] * 1.14, end),
                color=colour[s["name"]],
                va="center",
                size=8,
                weight=weight,
                annotation_clip=False,
            )
        ticks = sorted({x for s in series for x in s["x"]})
        axes.set_xticks(ticks, [str(x) for x in ticks], size=7.5)
        axes.minorticks_off()
    for axes in grid[:, 0]:
        axes.set_ylabel("TFLOP/s", color="#444444")
    for axes in grid[-1]:
        axes.set_xlabel("sequence length", color="#444444")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    left, right = 0.05 * 4.4 * columns / width, 1 - (beside + 0.067) / width
    canvas.subplots_adjust(left=left, right=right, top=0.88, bottom=0.125, wspace=beside / PANEL_INCHES, hspace=0.2)
    return canvas


def across(axes: Axes) -> dict[str, Any]:
    """Text placed at a share of the panel's width, and at a value of its y axis."""
    return {"transform": axes.get_yaxis_transform(), "va": "bottom"}


def bars(figure: Figure) -> Canvas:
    """A panel of horizontal bars for each problem, with values beside the bars; all bars equally thick."""
    panels = figure["panels"]
    columns = min(2, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [BAR_INCHES * max(len(panel["bars"]) for panel in row) for row in rows]
    names = 0.25 + 0.077 * max(len(b["name"]) for panel in panels for b in panel["bars"])  # inches left of the bars
    column, top, gap = names + (3.9 if columns > 1 else 5.5), 0.85, 0.5
    width = columns * column
    bottom = 0.3 + CAPTION_INCHES * len(caption_lines(figure, width))
    height = top + sum(heights) + gap * (len(rows) - 1) + bottom
    canvas = Canvas(figsize=(width, height))
    y = height - top
    for row, inches in zip(rows, heights):
        for i, panel in enumerate(row):
            here = BAR_INCHES * len(panel["bars"])
            box = (i * column + names, y - here, column - names - 0.25, here)
            axes = canvas.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
            one_panel_of_bars(axes, panel)
        y -= inches + gap
    return canvas


def one_panel_of_bars(axes: Axes, panel: Figure) -> None:
    """Bars from top to bottom: ours blue, what is a part of another of ours light, peers grey."""
    found = panel["bars"]
    places = range(len(found))
    axes.set_title(panel["title"], fontweight="bold", color=INK)
    values = [b["us"] for b in found]
    spread = [[b["us"] - b["low"] for b in found], [b["high"] - b["us"] for b in found]]
    axes.barh(places, values, color=[FILL[b["group"]] for b in found], height=0.72)
    axes.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    reach = max(b["high"] for b in found)
    for place, b in zip(places, found):
        weight = "normal" if b["group"] == "peer" else "bold"
        axes.text(b["high"] + 0.015 * reach, place, number(b["us"]), va="center", size=8.5, weight=weight, color=INK)
    axes.set_yticks(places, [b["name"] for b in found], size=8.5)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(0, 1.14 * reach)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)


def roofline(figure: Figure) -> Canvas:
    """Points under the limits of memory and of tensor cores, both axes logarithmic."""
    canvas = Canvas(figsize=(8.6, 5.6))
    axes = canvas.subplots()
    points = [p for g in figure["groups"] for p in g["points"]]
    left, right = min(x for x, _ in points) / 2, max(x for x, _ in points) * 2
    bandwidth = figure["copy_tb_s"]
    limits = figure["ceilings"]
    top = max([c["tflops"] for c in limits] + [y for _, y in points])
    left = min(left, 0.35 * top / bandwidth)  # the slope is to be seen
    axes.set_xscale("log")
    axes.set_yscale("log")
    for limit in limits:
        knee = limit["tflops"] / bandwidth
        axes.plot([knee, right], [limit["tflops"]] * 2, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
        label = f"{limit['name']}, {limit['tflops']:.0f} TFLOP/s"
        axes.text(right, limit["tflops"] * 1.02, label, ha="right", va="bottom", size=8, color="#666666")
    knee = top / bandwidth
    axes.plot([left, knee], [left * bandwidth, top], color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
    label = f"  memory: copy {bandwidth:.2f} TB/s"
    axes.text(left, 0.72 * top, label, ha="left", va="center", size=8, color="#666666")
    head_dims = sorted({g["head_dim"] for g in figure["groups"]})
    colour = dict(zip(head_dims, (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, BLACK)))
    for g in figure["groups"]:
        x, y = zip(*g["points"])
        face = colour[g["head_dim"]] if g["mask"] == "full" else "white"
        marker = {"forward": "o", "reference": "D"}.get(g["suite"], "s")
        axes.plot(x, y, marker, color=colour[g["head_dim"]], markerfacecolor=face, markersize=6, zorder=4)
    dot = {"linestyle": "none", "markersize": 6}
    shown = [Line2D([], [], marker="o", color=colour[d], label=f"head_dim {d}", **dot) for d in head_dims]
    shown += [Line2D([], [], marker="o", color=INK, label="full", **dot)]
    shown += [Line2D([], [], marker="o", color=INK, markerfacecolor="white", label="causal", **dot)]
    kinds = {"forward": ("o", "16 k tokens"), "reference": ("D", "reference problem"), "small": ("s", "small shapes")}
    for suite in dict.fromkeys(g["suite"] for g in figure["groups"]):
        marker, text = kinds[suite]
        shown.append(Line2D([], [], marker=marker, color=GREY, label=text, **dot))
    axes.legend(handles=shown, loc="lower right", frameon=False, ncols=2, fontsize=8)
    axes.set_xlabel("operations a byte of memory traffic, FLOP/B", color="#444444")
    axes.set_ylabel("TFLOP/s", color="#444444")
    axes.set_xlim(left, right)
    axes.grid(which="major")
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    plain = mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(mpl.ticker.NullFormatter())
    canvas.subplots_adjust(left=0.09, right=0.97, top=0.89, bottom=0.17)
    return canvas


KINDS: dict[str, Callable[[Figure], Canvas]] = {"rates": rates, "bars": bars, "roofline": roofline}


def save(figure: Figure, path: Path) -> None:
    """Draw a figure: as SVG with its digest, or in another format by the name's suffix."""
    with mpl.rc_context(STYLE):
        canvas = KINDS[figure["kind"]](figure)
        width, inches = canvas.get_size_inches()
        caption = "\n".join(caption_lines(figure, width))
        canvas.text(0.012, 1 - 0.12 / inches, figure["title"], va="top", size=12.5, weight="bold", color=INK)
        canvas.text(0.012, 0.1 / inches, caption, va="bottom", size=7.5, color="#555555")
        metadata = {"Date": None, "Creator": None, "Title": figure["title"], "Identifier": digest(figure)}
        canvas.savefig(path, facecolor="white", metadata=metadata if path.suffix == ".svg" else None, dpi=100)
