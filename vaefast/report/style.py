"""The page's style sheet: one column on a phone, two where there is room; light, dark, and print."""

# ten colours, near Tableau's, that stand out from a light ground and from a dark one
_LIGHT = ["#1f6fb4", "#d9690f", "#2c8c3c", "#c42f30", "#7d57b0", "#83503f", "#cc5fae", "#6d7178", "#93951b", "#128f9f"]
_DARK = ["#6fb1ec", "#ff9d4d", "#6cc878", "#f27474", "#b899e3", "#c3927f", "#ee9ad6", "#adb2ba", "#cfd157", "#5bcbdb"]


def _colours(colours: list[str]) -> str:
    return " ".join(f"--s{i}: {colour};" for i, colour in enumerate(colours))


STYLE = """
:root { --ground: #fff; --ink: #1a1c20; --soft: #5d636e; --line: #dfe2e7; --card: #f6f7f9; color-scheme: light dark;
  LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { --ground: #15171b; --ink: #e8eaee; --soft: #a1a7b3;
  --line: #333842; --card: #1e2127; DARK } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 68rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h1:not(:first-child) { margin-top: 3.5rem; border-top: 3px solid var(--ink); padding-top: 1rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
p { margin: .4rem 0; max-width: 44rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.numbers div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.numbers b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.numbers span { color: var(--soft); font-size: .85rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.2rem; }
.halves { display: grid; gap: 0 2rem; align-items: start; }
@media (min-width: 52rem) { .halves { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } }
section { min-width: 0; }
figure { margin: .4rem 0; min-width: 0; }
figure img { display: block; width: 100%; max-width: 40rem; height: auto; image-rendering: pixelated; background: #fff;
  border-radius: .3rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .name { fill: var(--ink); font-size: 14px; font-weight: 700; stroke: var(--ground); stroke-width: 3.5;
  paint-order: stroke; }
SERIES
.key { display: inline-block; width: 1.1em; height: .25em; margin: 0 .35em .2em 0; vertical-align: middle; }
.walk { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: .2rem .6rem; align-items: center;
  max-width: 40rem; margin: 0; }
.walk img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.walk span { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; max-width: 54rem; font-size: .92rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 0 2rem; margin: 0; }
dl div { display: flex; gap: .8rem; padding: .3rem 0; border-bottom: 1px solid var(--line); font-size: .92rem; }
dt { flex: 0 0 8.5rem; color: var(--soft); }
dd { margin: 0; min-width: 0; }
td, th { overflow-wrap: normal; }
.wide { overflow-x: auto; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; white-space: pre-wrap; font-size: .85rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 30rem) { .walk { grid-template-columns: 1fr; } .walk span { margin-top: .3rem; }
  body { padding: 1rem .8rem 2rem; } }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h1:not(:first-child) { break-before: page; border: 0; margin: 0; }
  h2 { margin-top: 1.2rem; }
  h2, p { break-after: avoid; }
  figure, .numbers, .walk, tr, dl div, pre { break-inside: avoid; }
  .columns { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .halves { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
}
"""
_SERIES = "\n".join(
    f".line.s{i} {{ stroke: var(--s{i}); }} .dots.s{i} {{ fill: var(--s{i}); fill-opacity: .75; }} "
    f".key.s{i} {{ background: var(--s{i}); }}"
    for i in range(len(_LIGHT))
)
STYLE = STYLE.replace("LIGHT", _colours(_LIGHT)).replace("DARK", _colours(_DARK)).replace("SERIES", _SERIES)
