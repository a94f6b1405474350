"""Tables and plots from the stored results alone.

python -m benchmarks.report [FILE ...]     Markdown on standard output; a PNG beside each FILE (default: every result)
python -m benchmarks.report --readme       the same, and the speed tables between the README's benchmark marks
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from benchmarks.pages import table

_RIVALS = ("eager", "compile")
_COLOURS = {"eager": "#9a9a9a", "compile": "#d98324", "cuda": "#1b6ca8", "triton": "#3a9d6e", "cpu": "#1b6ca8"}


def duration(seconds: float) -> str:
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{seconds * scale:.3g} {unit}"


def size(count: int) -> str:
    power = min(3, int(math.log2(count) // 10)) if count > 0 else 0
    return f"{count / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def verdict(ratio: float, target: float | None) -> str:
    """The ratio, its target, and plainly whether it fails: 1.00 and less is no gain."""
    if target is not None and ratio >= target:
        return f"{ratio:.2f}× (≥ {target:g}× met)"
    text = f"{ratio:.2f}×" if target is None else f"{ratio:.2f}× (≥ {target:g}× **missed**)"
    return f"{text} **slower**" if ratio < 1 else text


def _label(row: dict) -> str:
    return f"{row['name']}{'' if row['dtype'] == 'float32' else ' ' + row['dtype']}"


def speed_table(rows: list[dict]) -> str:
    """One line per case and backend of vaefast: medians ± half the interquartile range, and how many times faster."""
    head = ["workload", "threads", "backend", "vaefast", *_RIVALS, *[f"against {r}" for r in _RIVALS]]
    lines = []
    for row in rows:
        if "error" in row:
            lines.append([_label(row), "", "", f"**not measured: {row['error'].splitlines()[0]}**", *[""] * 4])
            continue
        times = {n: f"{duration(t['median_s'])} ± {duration(t['iqr_s'] / 2)}" for n, t in row["times"].items()}
        where = " (graph)" if row["mode"] == "replayed" else ""
        for i, backend in enumerate(row["fused"]):
            # the target is that of the backend which is chosen automatically
            targets = row["targets"] if i == 0 else {}
            ratios = row["ratios"][backend]
            versus = [verdict(ratios[r], targets.get(r)) if r in ratios else "" for r in _RIVALS]
            rivals = [times.get(r, "") for r in _RIVALS]
            lines.append([_label(row) + where, str(row["threads"]), backend, times[backend], *rivals, *versus])
    return "\n".join(table(head, lines))


def memory_table(rows: list[dict]) -> str:
    columns = {"outputs": "outputs", "forward_peak": "forward's peak", "held_for_backward": "held for backward"}
    columns["step_peak"] = "peak of both"
    head = ["workload", "contender", *columns.values(), "forward, beyond outputs and seed", "both, beyond results"]
    lines = []
    for row in rows:
        for name, used in row.get("memory", {}).items():
            # 16 bytes of seed are vaefast's; others keep none
            wanted = used["outputs"] + 16 * (name in row["fused"])
            beyond = used["forward_peak"] - wanted, used["step_peak"] - wanted - used["gradients"]
            extra = [size(b) if b > 0 else "nothing" for b in beyond]
            lines.append([_label(row), name, *[size(used[c]) for c in columns], *extra])
    return "\n".join(table(head, lines)) if lines else ""


def bandwidth_table(entries: list[dict]) -> str:
    head = ["dtype", "op", "time", "GB/s", "of a device copy"]
    lines = []
    for entry in entries:
        for name, stats in entry["times"].items():
            speed, text = f"{entry['bytes_per_s'][name] / 1e9:.0f}", ""
            if (part := entry["of_copy"].get(name)) is not None:
                met = "met" if part >= entry["target"] else "**missed**"
                text = f"{part:.0%} (≥ {entry['target']:.0%} {met})"
            lines.append([entry["dtype"], name, duration(stats["median_s"]), speed, text])
    return "\n".join(table(head, lines)) if lines else ""


def processor(machine: dict) -> str:
    return machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores, {machine['cpu_capability']}"


def markdown(results: dict) -> str:
    versions = results["versions"]
    dirty = {True: " with changes", False: "", None: " (bare copy)"}[results["dirty"]]
    settings = ", ".join(f"{k}={v}" for k, v in results["environment"].items() if v is not None)
    parts = [
        f"### {processor(results['machine'])}",
        f"{'**Quick run: not for quoting.** ' if results['quick'] else ''}"
        f"Commit {results['commit'][:12]}{dirty}, {results['date']}, "
        + ", ".join(f"{k} {v}" for k, v in versions.items() if v is not None)
        + f"; {settings}. Forward + backward; medians of interleaved rounds ± half the interquartile range; every "
        "result was checked in the same run.",
        speed_table(results["rows"]),
    ]
    if memory := memory_table(results["rows"]):
        parts += ["Memory beyond the inputs:", memory]
    if results["bandwidth"]:
        parts.append("The ops alone at 2^26 elements, against a device copy in the same run:")
        parts.append(bandwidth_table(results["bandwidth"]))
    return "\n\n".join(parts) + "\n"


def plot(results: dict, path: Path) -> None:
    """Bars of the ratios; where sizes were swept, time against size instead."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = [row for row in results["rows"] if "error" not in row]
    if not rows:
        return
    sweep = {(r["dtype"], r["mode"]): [] for r in rows if r["name"].startswith("rsample_kl_2^")}
    if results["device"] == "cuda" and sweep:
        for row in rows:
            if row["name"].startswith("rsample_kl_2^"):
                sweep[row["dtype"], row["mode"]].append(row)
        figure = Figure(figsize=(4.2 * len(sweep), 3.8))
        axes = figure.subplots(1, len(sweep), sharey=True, squeeze=False)
        for axis, ((dtype, mode), points) in zip(axes[0], sorted(sweep.items()), strict=True):
            for name in points[0]["times"]:
                # two inputs of n elements each
                known = [(p["elements"] // 2, p["times"][name]["median_s"] * 1e6) for p in points]
                axis.loglog(*zip(*known, strict=True), "o-", label=name, color=_COLOURS.get(name), markersize=4)
            axis.set(title=f"{dtype}, {mode}", xlabel="latent elements")
            axis.grid(True, which="major", alpha=0.3)
        axes[0][0].set_ylabel("rsample + KL, forward + backward (µs)")
        axes[0][0].legend(frameon=False)
    else:
        figure = Figure(figsize=(7, 0.8 + 0.55 * len(rows)))
        axis = figure.subplots()
        for i, row in enumerate(reversed(rows)):
            for j, rival in enumerate(r for r in _RIVALS if r in row["times"]):
                ratio, height = row["ratios"][row["fused"][0]][rival], i + 0.2 - 0.4 * j
                axis.barh(height, ratio - 1, 0.36, left=1, color=_COLOURS[rival])  # leftwards where vaefast is slower
                axis.text(max(ratio, 1) * 1.04, height, f"{ratio:.2g}×", va="center", fontsize=8)
                if (target := row["targets"].get(rival)) is not None:
                    axis.plot([target] * 2, [height - 0.2, height + 0.2], color="black", linewidth=1.5)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}×")
        axis.margins(x=0.12)
        axis.set_ylim(-0.7, len(rows) - 0.3)
        axis.set_yticks(range(len(rows)), [f"{_label(r)} ({r['threads']} thr.)" for r in reversed(rows)])
        axis.set_xlabel("times faster (black: the target)")
        keys = [Rectangle((0, 0), 1, 1, color=_COLOURS[r]) for r in _RIVALS]
        figure.legend(keys, [f"against {r}" for r in _RIVALS], frameon=False, loc="lower left", fontsize=8)
    save(figure, processor(results["machine"]), results, path)


def save(figure, where: str, results: dict, path: Path) -> None:
    title = f"{where}, torch {results['versions']['torch']}, {results['commit'][:10]}"
    figure.suptitle(title + (" (quick run)" if results["quick"] else ""), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def write_readme(text: str) -> None:
    path = Path(__file__).parents[1] / "README.md"
    begin, end = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
    head, rest = path.read_text().split(begin)
    path.write_text(f"{head}{begin}\n{text}{end}{rest.split(end)[1]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Tables and plots of the results.")
    parser.add_argument("files", nargs="*", type=Path, help="stored results (default: all in benchmarks/results)")
    parser.add_argument("--readme", action="store_true", help="put the tables between the README's benchmark marks")
    options = parser.parse_args(arguments)
    paths = options.files or sorted((Path(__file__).parent / "results").glob("*.json"))
    if not paths:
        print("nothing is stored yet: run `python -m benchmarks.run`", file=sys.stderr)
        return 1
    tables = []
    for path in paths:
        results = json.loads(path.read_text())
        tables.append(markdown(results))
        plot(results, path.with_suffix(".png"))
    print("\n".join(tables))
    if options.readme:
        write_readme("\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
