"""The dashboards of grafana/, as files: what every panel must have, and whether Grafana's own types take them."""

import glob
import json
import os
import re

from cluster import ROOT, Failed, check, npm_with, run

FOLDER = os.path.join(ROOT, "grafana", "dashboards")
SOURCE = "${datasource}"
# `[$__rate_interval]` is the one range that is right at every zoom and scrape interval.
RANGE = re.compile(r"\[([^\]]*)\]")
# Package and types of each kind of panel: its options, and what its fields can be configured with.
SCHEMA = ("@grafana/schema@13.2.3", "typescript@5.9.3")
KINDS = {
    "stat": ("stat/panelcfg/x/StatPanelCfg_types.gen", "Record<string, never>"),
    "bargauge": ("bargauge/panelcfg/x/BarGaugePanelCfg_types.gen", "Record<string, never>"),
    "timeseries": ("timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen", "Timeseries.FieldConfig"),
    "heatmap": ("heatmap/panelcfg/x/HeatmapPanelCfg_types.gen", "Heatmap.FieldConfig"),
    "state-timeline": ("statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen", "StateTimeline.FieldConfig"),
}


def load():
    """Every dashboard by its file's name."""
    found = {}
    for path in sorted(glob.glob(os.path.join(FOLDER, "*.json"))):
        with open(path) as file:
            found[os.path.basename(path)[:-5]] = json.load(file)
    return found


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard):
    """Each query with the panel it belongs to."""
    return [(panel, target) for panel in panels(dashboard) for target in panel["targets"]]


def filled(expression, **values):
    """A query as Grafana would send it."""
    for name, value in values.items():
        expression = expression.replace("$" + name, value)
    if "$" in expression:
        raise Failed(f"a variable that is not known in {expression}")
    return expression


# --- the rules -------------------------------------------------------------------------------------------------------


def wrong_with(panel):
    """What a panel lacks."""
    for what in ("title", "description"):
        if not panel.get(what, "").strip():
            yield f"no {what}"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield "no unit"
    if panel["type"] not in KINDS:
        yield f"a panel of the kind {panel['type']}, whose types are not checked"
    if not panel.get("targets"):
        yield "no query"
    for part in [panel, *panel.get("targets", [])]:
        if part.get("datasource") != {"type": "prometheus", "uid": SOURCE}:
            yield "a data source that is not the variable"
    for target in panel.get("targets", []):
        expression = target["expr"]
        for interval in RANGE.findall(expression):
            if interval != "$__rate_interval":
                yield f"[{interval}] instead of [$__rate_interval]"
        selectors = re.findall(r"\{([^}]*)\}", expression)
        if not selectors or any("$job" not in selector for selector in selectors):
            yield f"a selector without $job in {expression}"
        if panel["type"] not in ("stat",) and not target.get("legendFormat"):
            yield "a series without a legend"


def lint(name, dashboard):
    wrong = [f"{panel.get('title')!r}: {what}" for panel in panels(dashboard) for what in wrong_with(panel)]
    everything = dashboard["panels"]
    ids = [panel["id"] for panel in everything]
    cells = [(x, y) for p in everything for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]
    sections = {}
    row = None
    for panel in everything:
        row = panel["title"] if panel["type"] == "row" else row
        sections.setdefault(row, []).append(panel["title"])
    variables = {v["name"]: v["type"] for v in dashboard["templating"]["list"]}
    rules = {
        "an id twice": len(ids) != len(set(ids)),
        "panels over each other": len(cells) != len(set(cells)),
        "panels beside the grid": any(x >= 24 for x, _ in cells),
        "a title twice in a row": any(len(titles) != len(set(titles)) for titles in sections.values()),
        "no variable of the data source": variables.get("datasource") != "datasource",
        "no description": not dashboard.get("description"),
        "a uid that is not its name": dashboard["uid"] != f"a3-{name}",
    }
    wrong += [what for what, holds in rules.items() if holds]
    check(not wrong, f"{name}: {len(panels(dashboard))} panels by the rules {wrong or ''}".rstrip())


# --- Grafana's types -------------------------------------------------------------------------------------------------

HEAD = """// Made by scripts/check-dashboards: each dashboard assigned to Grafana's own types.
import type * as grafana from '@grafana/schema';
%s
// JSON has the values of Grafana's enumerations and not their names.
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

// The types refuse what they should; else these lines are errors.
// @ts-expect-error
export const noSuchMode: Plain<Partial<Stat.Options>> = { colorMode: 'rainbow' };
// @ts-expect-error
export const noSuchField: Plain<grafana.Dashboard> = { schemaVersion: 39, panells: [] };
// @ts-expect-error
export const noSuchStyle: Plain<Partial<Timeseries.FieldConfig>> = { drawStyle: 'dotted-bars' };

"""


def name_of(kind):
    return "".join(word.capitalize() for word in kind.split("-"))


def check_types(dashboards):
    """TypeScript has the last word on whether Grafana would understand the files."""
    home = npm_with("grafana-schema", *SCHEMA)
    folder = "@grafana/schema/dist/esm/raw/composable"
    imports = "".join(f"import type * as {name_of(kind)} from '{folder}/{path}';\n" for kind, (path, _) in KINDS.items())
    text = [HEAD % imports]
    for name, dashboard in dashboards.items():
        text.append(f"export const {name}: Plain<grafana.Dashboard> = {json.dumps(dashboard, indent=1)};\n")
        for panel in panels(dashboard):
            kind, ident = panel["type"], f"{name}{panel['id']}"
            fields = panel["fieldConfig"]["defaults"].get("custom", {})
            text.append(f"export const {ident}Options: Plain<{name_of(kind)}.Options> = "
                        f"{json.dumps(panel['options'])};\n"
                        f"export const {ident}Fields: Plain<{KINDS[kind][1]}> = {json.dumps(fields)};\n")
    path = os.path.join(home, "dashboards.ts")
    with open(path, "w") as file:
        file.writelines(text)
    run(os.path.join(home, "node_modules", ".bin", "tsc"), "--noEmit", "--strict", "--target", "es2022", "--module", "esnext",
        "--moduleResolution", "bundler", path, cwd=home)
    count = sum(len(panels(d)) for d in dashboards.values())
    check(True, f"{len(dashboards)} dashboards and the options of {count} panels are of the types of {SCHEMA[0]}")
