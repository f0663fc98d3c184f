"""Results as a picture: how many times faster, by library and operation. Drawn by matplotlib, imported here alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.peers.race import OURS, PATCHED, PLAIN

COLOURS = {"float32": "#0072B2", "bfloat16": "#D55E00"}  # Okabe and Ito's, which colour-blind readers tell apart
GREY = "#8a8a8a"


def bars(data: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """host → operation → dtype → ratio; a step of our trainer against theirs is an operation of its own."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in data["rows"]:
        operations = found.setdefault(row["host"], {})
        for name, label in ((PATCHED, row["operation"]), (OURS, "step of our trainer")):
            if name in row["ms"]:
                operations.setdefault(label, {})[row["dtype"]] = row["ms"][PLAIN] / row["ms"][name]
    return found


def draw(data: dict[str, Any], stem: Path) -> list[Path]:
    """Write stem.png and stem.svg."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "sae_kernels", "font.size": 8})
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    hosts, about = bars(data), data["about"]
    if not hosts:
        raise ValueError("no patched or own result to draw")
    dtypes = [name for name in COLOURS if any(row["dtype"] == name for row in data["rows"])]
    heights = [len(operations) for operations in hosts.values()]
    figure, axes = pyplot.subplots(
        len(hosts),
        1,
        sharex=True,
        squeeze=False,
        figsize=(6.4, 0.7 + 0.2 * sum(heights) + 0.25 * len(hosts)),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis, (host, operations) in zip(axes[:, 0], hosts.items(), strict=True):
        _host(axis, host, operations, dtypes)
    highest = max(ratio for operations in hosts.values() for each in operations.values() for ratio in each.values())
    for axis in axes[:, 0]:
        axis.set_xscale("log", base=2)
        axis.set_xlim(0.45, 2.2 * max(highest, 1))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes[-1, 0].set_xlabel(f"times faster than the library itself; {about['size']}, {about['cpu']}, {about['date']}")
    handles = [Patch(color=COLOURS[dtype], label=dtype) for dtype in dtypes]  # the first library may lack one
    axes[0, 0].legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    written = [stem.with_suffix(f".{kind}") for kind in ("png", "svg")]
    for path in written:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=160, metadata=metadata)
    pyplot.close(figure)
    return written


def _host(axis: Any, host: str, operations: dict[str, dict[str, float]], dtypes: list[str]) -> None:
    thick = 0.8 / len(dtypes)
    for i, dtype in enumerate(dtypes):
        for place, ratios in enumerate(operations.values()):
            if dtype not in ratios:
                continue
            at = place + (i - (len(dtypes) - 1) / 2) * thick
            axis.barh(at, ratios[dtype], thick, color=COLOURS[dtype])
            axis.annotate(
                f"{ratios[dtype]:.2g}" if ratios[dtype] < 9.95 else f"{ratios[dtype]:.0f}",
                (max(ratios[dtype], 1), at),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
            )
    axis.axvline(1, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(operations)), list(operations))
    axis.set_ylim(len(operations) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.set_title(host, loc="left", fontsize=8, fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", linewidth=0.3, color=GREY)
    axis.set_axisbelow(True)
