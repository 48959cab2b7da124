"""A record of a run as a console screen, as Markdown between a README's markers, and as a chart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import ratio_rows

BEGIN, END = "<!-- bench:{}:begin (written by `tiercel bench`) -->", "<!-- bench:{}:end -->"
#: What p99.9 needs to mean something: fewer requests than this in a run and it is left out.
ENOUGH_FOR_P999 = 5_000


def us(value: float) -> str:
    """Microseconds, or milliseconds from ten of them on."""
    return f"{value / 1000:,.1f} ms" if value >= 10_000 else f"{value:,.0f} us" if value >= 100 else f"{value:.1f} us"


def print_screen(record: dict[str, Any], console: Console) -> None:
    """One screen: a row for each contender, then the promises."""
    ratios = ratio_rows(record)
    table = Table(title=_heading(record), title_justify="left", box=None, pad_edge=False, header_style="bold")
    columns = ("", "req/s", "of floor", "tiercel", "p50 c=1", "p99", "p99.9", "CPU", "instr.", "RSS", "failed")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    for row in record["contenders"]:
        half, ratio = row["open"].get("0.5"), ratios[row["name"]]
        ours = row["name"].startswith("tiercel")
        table.add_row(
            row["name"], f"{row['closed']['per_second']:,.0f}", f"{ratio['of_floor']:.2f}",
            f"{ratio['tiercel_x']:.1f} x" if ratio["tiercel_x"] else "", us(row["single"]["p50"]),
            _marked(half, "p99"), _marked(half, "p99.9"), us(row["closed"]["cpu_us"]), _thousands(row), f"{row['rss_mb']['rss']:.0f} MB",
            str(row["failed"]), style="bold" if ours else "",
        )  # fmt: skip
    console.print(table)
    console.print(KEY, markup=False, highlight=False)
    for each in record["not_measured"]:
        console.print(f"not measured: {each['title']}: {each['reason']}", markup=False, highlight=False)
    if any(not row["open"].get("0.5", {}).get("kept_schedule", True) for row in record["contenders"]):
        console.print(LATE_NOTE, markup=False)
    console.print()
    promised = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("promise", "wanted", "measured", ""):
        promised.add_column(column)
    for each in record["promises"]:
        verdict = {True: "[green]holds[/]", False: "[red]does not hold[/]", None: "not measured"}[each["holds"]]
        promised.add_row(
            each["what"], each["wanted"], "" if each["value"] is None else f"{each['value']:,.4g}", verdict
        )
    console.print(promised)


KEY = (
    "req/s, CPU per request: 32 connections, closed loop; tiercel: how many times a row's req/s; "
    "p99, p99.9: open loop at half of the row's capacity"
)
LATE_NOTE = "~ the generator itself fell behind its schedule (a busy machine): the tail is not only the server's"


def markdown(record: dict[str, Any]) -> str:
    """The full report: machine, table, open loop, promises, disturbances, versions."""
    ratios = ratio_rows(record)
    lines = [
        _heading(record) + ".", "",
        "| server | req/s, c=32 | of the floor | tiercel is | CPU per request | instructions | p50, c=1 | RSS | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in record["contenders"]:
        ratio = ratios[row["name"]]
        title = f"**{row['title']}**" if row["name"].startswith("tiercel") else row["title"]
        lines.append(
            f"| {title} | {row['closed']['per_second']:,.0f} | {ratio['of_floor']:.2f} | {ratio['tiercel_x']:.1f} x "
            f"| {us(row['closed']['cpu_us'])} | {_thousands(row)} | {us(row['single']['p50'])} | {row['rss_mb']['rss']:.0f} MB | {row['failed']} |"
        )
    lines += [
        f"| {each['title']} | not measured: {_cell(each['reason'])} | | | | | | | |" for each in record["not_measured"]
    ]
    lines += ["", *_open_loop(record), "", *_promises(record), "", *_disturbances(record), "", _versions(record)]
    return _typeset("\n".join(lines))


def short_markdown(record: dict[str, Any]) -> str:
    """The table alone, for the project's README."""
    ratios = ratio_rows(record)
    lines = [
        _heading(record) + ".", "",
        "| server | req/s, c=32 | tiercel is | CPU per request | p50, c=1 | p99 at half of capacity |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in record["contenders"]:
        title = f"**{row['title']}**" if row["name"].startswith("tiercel") else row["title"]
        lines.append(
            f"| {title} | {row['closed']['per_second']:,.0f} | {ratios[row['name']]['tiercel_x']:.1f} x "
            f"| {us(row['closed']['cpu_us'])} | {us(row['single']['p50'])} | {_marked(row['open'].get('0.5'), 'p99')} |"
        )
    lines += ["", LATE_NOTE + "."] if "~" in "".join(lines) else []
    return _typeset("\n".join(lines))


def insert(readme: Path, name: str, text: str) -> None:
    """Replace what stands between the markers `name` of a README.

    Raises:
        ValueError: the markers are not there.
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"Expected the markers {begin} and {end} in {readme}")
    readme.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def write(record: dict[str, Any], out: Path) -> list[Path]:
    """`http.json`, `http.md`, and the chart as `http.svg` and `http.png` if matplotlib is installed."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "http.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "http.md").write_text(markdown(record) + "\n")
    written = [out / "http.json", out / "http.md"]
    try:
        import matplotlib as mpl
    except ImportError:
        return written
    mpl.use("Agg")
    return [*written, *chart(record, out)]


def chart(record: dict[str, Any], out: Path) -> list[Path]:
    """Two panels: requests per second, and p50 to p99.9 at half of each one's own capacity; both on log scales."""
    import matplotlib.pyplot as plt

    rows = record["contenders"][::-1]
    names = [row["title"].partition(":")[0] if ":" in row["title"] else row["title"] for row in rows]
    colors = ["#c2410c" if row["name"].startswith("tiercel") else "#64748b" for row in rows]
    with plt.rc_context({"svg.hashsalt": "tiercel", "font.size": 9}):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 0.6 + 0.38 * len(rows)), sharey=True, layout="constrained"
        )
        bars = left.barh(names, [row["closed"]["per_second"] for row in rows], color=colors)
        left.bar_label(bars, [f" {row['closed']['per_second']:,.0f}" for row in rows], fontsize=8)
        left.set(xscale="log", title="predictions per second, one core, 32 connections", xlabel="more is better")
        left.margins(x=0.25)
        for name, row, color in zip(names, rows, colors, strict=True):
            half = row["open"].get("0.5")
            if half is None:
                continue
            right.plot([half["p50"], half["p99.9"]], [name, name], color=color, linewidth=2, zorder=1)
            for quantile, marker in (("p50", "o"), ("p99", "s"), ("p99.9", "D")):
                right.scatter(half[quantile], name, color=color, marker=marker, s=24, zorder=2)
        right.set(
            xscale="log",
            title="latency at half of its capacity, open loop",
            xlabel="us: o p50, square p99, diamond p99.9",
        )
        right.grid(axis="x", alpha=0.3)
        paths = [out / "http.svg", out / "http.png"]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=120)
        plt.close(figure)
    return paths


def _typeset(text: str) -> str:
    return re.sub(r"(\d) x\b", "\\1 \N{MULTIPLICATION SIGN}", re.sub(r"(\d) us\b", "\\1 \N{MICRO SIGN}s", text))


def _heading(record: dict[str, Any]) -> str:
    at, settings = record["machine"], record["settings"]
    return (
        f"{settings['rows']:,} rows of {settings['features']} features, LightGBM {settings['model']}, one worker on one core, "
        f"{settings['rounds']} rounds of {settings['seconds']:g} s ({settings['turns']} of our own servers); {at['cpu']}, {at['cores']} cores, {at['system']}, "
        f"Python {at['python']}, load {at['load_average']} before; commit {at['commit']}, {record['made'][:10]}"
    )


def _marked(found: dict[str, Any] | None, quantile: str) -> str:
    if found is None or (quantile == "p99.9" and found["ok"] < ENOUGH_FOR_P999):
        return ""
    return us(found[quantile]) + ("" if found["kept_schedule"] else " ~")


def _thousands(row: dict[str, Any]) -> str:
    """Instructions per request."""
    counted = row["instructions"]
    return "" if counted is None else f"{(counted['user'] + counted['kernel']) / 1000:,.0f} k"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")[:200]


def _open_loop(record: dict[str, Any]) -> list[str]:
    lines = [
        "Open loop, Poisson arrivals, latency from when each request was due:", "",
        "| server | share of its capacity | requests/s | p50 | p90 | p99 | p99.9 | p99.99 | max | failed of sent |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    rows = [(row["title"], share, found) for row in record["contenders"] for share, found in row["open"].items()]
    same = record["floor_at_tiercel_rate"]
    if same:
        rows.append(("the floor, at tiercel's rate", "", same))
    for title, share, found in rows:
        shown = " | ".join(_marked(found, q) for q in ("p50", "p90", "p99", "p99.9"))
        deepest = us(found["p99.99"]) if found["ok"] >= 10 * ENOUGH_FOR_P999 else ""
        lines.append(
            f"| {title} | {f'{float(share):.0%}' if share else ''} | {found.get('rate', found['per_second']):,.0f} | {shown} "
            f"| {deepest} | {us(found['max'])} | {found['failed']} of {found['sent']:,} |"
        )
    if any(not found["kept_schedule"] for _, _, found in rows):
        lines += ["", LATE_NOTE + "."]
    return lines


def _promises(record: dict[str, Any]) -> list[str]:
    lines = ["| promise | wanted | measured | |", "|---|---|---|---|"]
    for each in record["promises"]:
        verdict = {True: "holds", False: "**does not hold**", None: "not measured"}[each["holds"]]
        value = "" if each["value"] is None else f"{each['value']:,.4g}"
        lines.append(
            f"| {each['what']} | {each['wanted'].replace('>=', '≥').replace('<=', '≤')} | {value} | {verdict} |"
        )
    return lines


def _disturbances(record: dict[str, Any]) -> list[str]:
    if not record["disturbances"]:
        return []
    lines = ["| disturbance | | failed |", "|---|---|---|"]
    return lines + [
        f"| {_cell(each['what'])} | {_cell(each['told'])} | {each.get('failed', '')} |"
        for each in record["disturbances"]
    ]


def _versions(record: dict[str, Any]) -> str:
    named = {name: version for row in record["contenders"] for name, version in row["versions"].items()}
    return "Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(named.items())) + "."
