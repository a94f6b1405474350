"""The page: sections of HTML, each from one thing that a run left. No script, and nothing that is not in the file."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Iterable, Sequence
from html import escape

import torch

from vaefast import __version__
from vaefast.report import latent, svg
from vaefast.report.measures import compared, measures, missing, number, training_measures
from vaefast.report.style import STYLE
from vaefast.runs import Run
from vaefast.sampling import PRIOR
from vaefast.training import pictures

_SAMPLES, _COLUMNS = 100, 10
_SHOWN = 50  # reconstructions
_MAPPED = 2000  # points of the latent map
_SPLITS = {"train": "training", "held-out": "held out"}


def page(runs: Sequence[Run]) -> str:
    """One self-contained HTML document: of one run, or of several, compared first and then each by itself."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    body = [_comparison(runs)] if len(runs) > 1 else []
    body += [_run(run, "h1") for run in runs]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} · vaefast</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{STYLE}</style>\n</head>\n<body>",
            *body,
            f'<p class="soft">Written by vaefast {escape(__version__)}.</p>\n</body>\n</html>\n',
        ]
    )


def _run(run: Run, heading: str) -> str:
    sections = [
        _summary(run, heading),
        *([f'<div class="halves">{_samples(run)}{_reconstructions(run)}</div>'] if run.pictorial else []),
        _curves(run),
        _latent(run),
        _measures(run),
        _configuration(run),
    ]
    return "\n".join(sections)


# --- pieces ---


def _image(png: bytes, alt: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(alt)}">'


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _pairs(values: dict) -> str:
    shown = {name.replace("_", " "): _word(value) for name, value in values.items()}
    return f"<dl>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in shown.items())}</dl>"


def _word(value: object) -> str:
    """As the command line says it."""
    return "off" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value) or "–"


# --- sections ---


def _comparison(runs: Sequence[Run]) -> str:
    columns = [training_measures(run.metrics) | measures(run.evaluation) for run in runs]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    head = "".join(f"<th>{escape(cell)}</th>" for cell in ("", *names))
    rows = [
        f"<tr><td>{escape(label)}</td>"
        + "".join(f"<td>{f'<b>{escape(text)}</b>' if best else escape(text)}</td>" for text, best in cells)
        + "</tr>"
        for label, cells in compared(columns).items()
    ]
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table>"
    what = "In bold: better than all others by more than the intervals." if any("<b>" in row for row in rows) else ""
    return f'<h1>{len(runs)} runs</h1><div class="wide">{table}</div><p class="soft">{what}</p>'


def _summary(run: Run, heading: str) -> str:
    metrics, model = run.metrics, run.model
    held_out = metrics.get("held-out", {})
    parameters = sum(p.numel() for p in model.parameters())
    tiles = {
        "held-out ELBO, nats": number(held_out["elbo"]) if "elbo" in held_out else None,
        "active latent units": f"{metrics['active_units']} of {math.prod(model.latent_shape)}"
        if "active_units" in metrics
        else None,
        "epochs": metrics.get("epochs"),
        "training time": _duration(metrics["seconds"]) if "seconds" in metrics else None,
        "parameters": f"{parameters:,}",
        "latent": " × ".join(map(str, model.latent_shape)),
    }
    shown = "".join(f"<div><b>{v}</b><span>{k}</span></div>" for k, v in tiles.items() if v is not None)
    what = f"A variational autoencoder ({escape(run.model_name)}), trained on {len(run.data.train):,} samples of shape "
    what += f"{' × '.join(map(str, run.data_shape))}; {len(run.data.test):,} are held out."
    return f'<{heading}>{escape(run.name)}</{heading}>\n<p>{what}</p>\n<div class="numbers">{shown}</div>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@torch.no_grad()
def _samples(run: Run) -> str:
    png = pictures.grid(run.samples(_SAMPLES), _COLUMNS)
    where = "the prior" if run.sampler_name == PRIOR else f"the sampler {run.sampler_name}"
    figure = _figure(_image(png, "images drawn by the model"), f"Drawn from {where}, not chosen.")
    return f"<section><h2>Samples</h2>\n{figure}</section>"


@torch.no_grad()
def _reconstructions(run: Run) -> str:
    images, _ = run.held_out(_SHOWN)
    png = pictures.reconstructions(images, run.model.reconstruct(images), _COLUMNS)
    caption = "Held-out images (odd rows) and what the model makes of them (even rows)."
    return f"<section><h2>Reconstructions</h2>\n{_figure(_image(png, caption), caption)}</section>"


def _curves(run: Run) -> str:
    if not run.history:
        return ""
    charts = []
    for part in run.history[0]["train"]:
        series = {
            split: [row[split][part] for row in run.history]
            for split in _SPLITS
            if all(part in row.get(split, {}) for row in run.history)
        }
        last = ", ".join(f"{_SPLITS[split]} {number(values[-1])}" for split, values in series.items())
        keys = "".join(f'<span class="key s{i}"></span>{_SPLITS[split]} &nbsp; ' for i, split in enumerate(series))
        chart = svg.lines(series, "epoch", "mean per sample", f"{part} by epoch; at the end {last}")
        charts.append(_figure(f"<h3>{escape(part)}</h3>{chart}", f"{keys}<br>At the end: {last}."))
    return f'<h2>Training</h2>\n<div class="columns">{"".join(charts)}</div>'


def _latent(run: Run) -> str:
    x, labels = run.held_out(_MAPPED)
    means, kls = latent.encode(run.model, x)
    where = latent.latent_map(means)
    what = f"Means of q(z | x) of {len(x):,} held-out samples"
    caption = f"{what}, coloured by class." if labels is not None else f"{what}."
    if where.axes[0] != "z1":
        caption += f" The two components hold {where.explained:.0%} of the variance."
    chart = svg.scatter(where.points, labels, *where.axes, caption)
    parts = [f"<section>{_figure(chart, caption)}</section>"]
    if run.pictorial:
        standard = run.model.prior is None and not getattr(run.model, "hierarchical", False)
        walks = latent.traversals(run.model, means, kls if standard else None)
        rows = "".join(
            f"<span>{escape(walk.name)}</span>{_image(pictures.grid(walk.images, len(walk.images)), walk.name)}"
            for walk in walks
        )
        what = "One held-out image, one direction of its latent moved through its range; the most informative first."
        parts.append(f'<section><div class="walk">{rows}</div><p class="soft">{what}</p></section>')
    return f'<h2>Latent space</h2>\n<div class="halves">{"".join(parts)}</div>'


def _measures(run: Run) -> str:
    found = measures(run.evaluation)
    if not found:
        hint = f"<p>Not measured yet: <code>vaefast evaluate {escape(str(run.folder))}</code> adds them here.</p>"
        return f"<h2>Measures</h2>\n{hint}"
    rows = [(m.label, m.text, "" if m.attained is None else number(m.attained), m.better) for m in found.values()]
    table = _table(("measure", "value [95 % interval]", "training images", "better"), rows)
    not_measured = "; ".join(f"{label}: {reason}" for label, reason in missing(run.evaluation).items())
    notes = [
        f"Samples drawn with the sampler {run.evaluation.get('sampler', 'prior')}. Training images: what as many of "
        "them get in place of the samples, the best that can be expected.",
        *([f"Not measured: {not_measured}."] if not_measured else []),
    ]
    return f"<h2>Measures</h2>\n{table}{''.join(f'<p class=soft>{escape(note)}</p>' for note in notes)}"


def _configuration(run: Run) -> str:
    config, output = shlex.quote(str(run.folder / "config.json")), shlex.quote(f"{run.folder}-again")
    again = f"vaefast train --config {config} --output {output}"
    machine = run.versions | {key: run.metrics[key] for key in ("backend", "device") if key in run.metrics}
    return (
        f"<h2>Configuration</h2>{_pairs(run.settings)}<p>To repeat it:</p>\n<pre>{escape(again)}</pre>\n"
        f"<h2>Machine</h2>{_pairs({name: value or 'none' for name, value in machine.items()})}"
    )
