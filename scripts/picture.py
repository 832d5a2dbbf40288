"""Panels drawn from what their queries gave: an SVG in the dashboard's own layout.

It is no screenshot: Grafana draws the same queries in its own way. It shows what there is to see, from real data.
"""

import math
from html import escape

COLUMN, LINE, GAP, HEAD = 52, 20, 4, 46
COLOURS = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#96d98d", "#ffb357", "#c4162a", "#37872d", "#fade2a"]
STATES = {"0": "#f2495c", "1": "#ff9830", "2": "#73bf69"}
NAMED = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2"}
STYLE = ("<style>text{font-family:system-ui,sans-serif;fill:#ccccdc;font-size:10px}.t{font-size:12px;font-weight:600}"
         ".r{font-size:14px;font-weight:600}.b{font-size:24px;font-weight:600}.s{fill:#8e8e98}</style>")


def human(value, unit):
    """A number in its unit, short."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs"
    base, end = (1024, {"bytes": "iB", "Bps": "iB/s"}[unit]) if unit in ("bytes", "Bps") else (1000, {"ops": "/s", "reqps": "/s"}.get(unit, ""))
    for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if abs(value) >= base**power:
            return f"{value / base**power:.3g} {prefix}{end}"
    return f"{value:.3g}" + (" B" + end[2:] if base == 1024 else end)


def text(x, y, what, kind="", anchor="start"):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{kind}">{escape(what)}</text>'


def threshold(panel, value):
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    fitting = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return NAMED.get(fitting[-1] if fitting else "", "#ccccdc")


def mapped(panel, value):
    """What a value is called, where it has a name."""
    for mapping in panel["fieldConfig"]["defaults"].get("mappings", []):
        if f"{value:g}" in mapping["options"]:
            return mapping["options"][f"{value:g}"]["text"]
    return human(value, panel["fieldConfig"]["defaults"]["unit"])


class Frame:
    """A panel's place, and its plot's."""

    def __init__(self, panel, begin, end):
        at = panel["gridPos"]
        self.x, self.y = at["x"] * COLUMN + GAP / 2, at["y"] * LINE + HEAD + GAP / 2
        self.w, self.h = at["w"] * COLUMN - GAP, at["h"] * LINE - GAP
        self.left, self.right, self.top, self.bottom = self.x + 52, self.x + self.w - 8, self.y + 24, self.y + self.h - 22
        self.begin, self.end = begin, end

    def at(self, moment):
        return self.left + (moment - self.begin) / (self.end - self.begin) * (self.right - self.left)


def stat(panel, frame, series):
    value = series[0][1][-1][1]
    colour = threshold(panel, value)
    label = mapped(panel, value) if series[0][0] == "" or panel["title"] != "Version" else series[0][0]
    return [f'<text x="{frame.x + 10:.0f}" y="{frame.y + frame.h - 14:.0f}" class="b" style="fill:{colour}">{escape(label)}</text>']


def legend(frame, names):
    out, x = [], frame.left - 40
    for i, name in enumerate(names):
        width = 16 + 5.6 * len(name)
        if x + width > frame.right:
            out.append(text(x, frame.y + frame.h - 7, f"and {len(names) - i} more", "s"))
            break
        out.append(f'<rect x="{x:.0f}" y="{frame.y + frame.h - 12:.0f}" width="8" height="3" fill="{COLOURS[i % len(COLOURS)]}"/>')
        out.append(text(x + 11, frame.y + frame.h - 7, name, "s"))
        x += width
    return out


def timeseries(panel, frame, series):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    drawn, below = [], {}
    for name, points in series:
        drawn.append((name, [(t, v + (below.get(t, 0) if stacked else 0)) for t, v in points]))
        below.update({t: v + below.get(t, 0) for t, v in points})
    values = [v for _, points in drawn for _, v in points]
    low, high = min(0, *values), max(values)
    low, high = (low, high) if high > low else (low, low + 1)
    height = lambda v: frame.bottom - (v - low) / (high - low) * (frame.bottom - frame.top)
    out = []
    for part in (0, 0.5, 1):
        y = height(low + part * (high - low))
        out.append(f'<path d="M{frame.left:.0f} {y:.0f}H{frame.right:.0f}" stroke="#2c3235"/>')
        out.append(text(frame.left - 4, y + 3, human(low + part * (high - low), unit), "s", "end"))
    for i, (_, points) in reversed(list(enumerate(drawn))):
        colour, runs, last = COLOURS[i % len(COLOURS)], [], None
        for moment, value in points:
            if last is None or moment - last > 8:
                runs.append([])
            runs[-1].append(f"{frame.at(moment):.0f} {height(value):.0f}")
            last = moment
        for run in runs:
            line = "L".join(run)
            if stacked:
                first, end = run[0].split()[0], run[-1].split()[0]
                out.append(f'<path d="M{line}L{end} {frame.bottom:.0f}L{first} {frame.bottom:.0f}Z" fill="{colour}" fill-opacity="0.3"/>')
            out.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    return out + legend(frame, [name for name, _ in series])


def bargauge(panel, frame, series):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    most = max(points[-1][1] for _, points in series) or 1
    out, step = [], (frame.bottom + 14 - frame.top) / len(series)
    for i, (name, points) in enumerate(series):
        y, value = frame.top + i * step, points[-1][1]
        full = frame.w - 86
        out.append(text(frame.x + 10, y + 9, name, "s"))
        out.append(f'<rect x="{frame.x + 10:.0f}" y="{y + 13:.0f}" width="{full:.0f}" height="{step - 20:.0f}" fill="#22252b"/>')
        out.append(f'<rect x="{frame.x + 10:.0f}" y="{y + 13:.0f}" width="{full * value / most:.0f}" height="{step - 20:.0f}" fill="#5794f2"/>')
        out.append(text(frame.x + frame.w - 8, y + step / 2 + 8, human(value, unit), "t", "end"))
    return out


def heatmap(panel, frame, series):
    rows = sorted(((float(name), points) for name, points in series), key=lambda row: row[0])
    out, previous, step = [], {}, (frame.bottom - frame.top) / len(rows)
    cells = []
    for i, (bound, points) in enumerate(rows):
        cells += [(t, i, v - previous.get(t, 0)) for t, v in points if v - previous.get(t, 0) > 0.5]
        previous = dict(points)
        if i % 3 == 0 and math.isfinite(bound):
            out.append(text(frame.left - 4, frame.bottom - i * step, human(bound, "s"), "s", "end"))
    most = max((count for _, _, count in cells), default=1)
    width = (frame.right - frame.left) / max(1, len({t for t, _, _ in cells}))
    for moment, i, count in cells:
        shade = (count / most) ** 0.5
        out.append(f'<rect x="{frame.at(moment) - width:.1f}" y="{frame.bottom - (i + 1) * step:.1f}" width="{width:.1f}" '
                   f'height="{step:.1f}" fill="hsl({60 - 55 * shade:.0f} 90% {28 + 30 * shade:.0f}%)"/>')
    return out


def state_timeline(panel, frame, series):
    out, step = [], (frame.bottom - frame.top) / len(series)
    binary = len(panel["fieldConfig"]["defaults"]["mappings"][0]["options"]) == 2
    for i, (name, points) in enumerate(series):
        y, runs = frame.top + i * step, []
        for moment, value in points:
            if not runs or runs[-1][2] != value:
                runs.append([moment, moment, value])
            runs[-1][1] = moment
        out.append(text(frame.x + 8, y + step / 2 + 3, name[-9:], "s"))
        for j, (first, last, value) in enumerate(runs):
            end = runs[j + 1][0] if j + 1 < len(runs) else last
            colour = STATES["2" if binary and value == 1 else f"{value:g}"]
            x = frame.at(first)
            out.append(f'<rect x="{x:.0f}" y="{y + 3:.0f}" width="{max(1, frame.at(end) - x):.0f}" height="{step - 6:.0f}" '
                       f'fill="{colour}" fill-opacity="0.75"/>')
            if frame.at(end) - x > 50:
                out.append(text(x + 5, y + step / 2 + 4, mapped(panel, value)))
    return out


DRAW = {"stat": stat, "timeseries": timeseries, "bargauge": bargauge, "heatmap": heatmap, "state-timeline": state_timeline}


def picture(dashboard, results, begin, end, note):
    """`results`: by panel id, its series as (legend, [(time, value)])."""
    width = 24 * COLUMN
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"]) * LINE + HEAD + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(dashboard["title"])}">',
           STYLE, f'<rect width="{width}" height="{height}" fill="#111217"/>', text(10, 20, dashboard["title"], "r"), text(10, 37, note, "s")]
    for panel in dashboard["panels"]:
        frame = Frame(panel, begin, end)
        if panel["type"] == "row":
            out.append(text(frame.x + 6, frame.y + 13, panel["title"], "r"))
            continue
        out.append(f'<rect x="{frame.x:.0f}" y="{frame.y:.0f}" width="{frame.w:.0f}" height="{frame.h:.0f}" rx="2" fill="#181b1f" stroke="#26292e"/>')
        out.append(text(frame.x + 10, frame.y + 16, panel["title"], "t"))
        out += DRAW[panel["type"]](panel, frame, results[panel["id"]])
    return "\n".join([*out, "</svg>", ""])
