"""What a visit to a GPU found, in Markdown: python scripts/gpu_table.py OUT prints it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARTS = ("tests", "throughput", "training")
Content = Mapping[str, Any]


def table(out: Path) -> str:
    """The table of the JSON files of a folder; parts that have none are said to be missing."""
    contents = {}
    for part in PARTS:
        path = out / f"{part}.json"
        contents[part] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    machine = contents["tests"].get("machine", {}) | contents["throughput"].get("machine", {})
    lines = [f"## {head(machine)}", "", *parts(contents), ""]
    if ceiling := ceilings(machine):
        lines += [ceiling, ""]
    if rows := throughput(contents["throughput"]):
        lines += ["### Training, images per second", "", *rows, ""]
    if sentence := training(contents["training"]):
        lines += ["### CIFAR-10", "", sentence, ""]
    if gaps := missing(contents):
        lines += ["### What is missing", "", *(f"- {gap}" for gap in gaps), ""]
    return "\n".join(lines)


def head(machine: Content) -> str:
    """The device and the software."""
    if not machine:
        return "No device was asked"
    memory = f", {machine['memory'] / 2**30:.0f} GiB" if machine["memory"] else ""
    return (
        f"{machine['device']}{memory}, {machine['cores']} cores, torch {machine['torch']}, "
        f"Python {machine['python']}"
    )


def parts(contents: Mapping[str, Content]) -> list[str]:
    """A row for each part: how it ended, and how long it took."""
    lines = ["| part | result | ended | seconds |", "|---|---|---|---|"]
    for part, content in contents.items():
        ended = "finished" if content.get("finished") else "cut" if content else "not begun"
        seconds = f"{content['spent']:.0f}" if "spent" in content else ""
        lines.append(f"| {part} | {RESULTS[part](content)} | {ended} | {seconds} |")
    return lines


def of_tests(content: Content) -> str:
    """How many tests passed, failed and were skipped."""
    outcomes = [test["outcome"] for test in content.get("tests", {}).values()]
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))


def of_throughput(content: Content) -> str:
    """How many cases were measured."""
    rows = content.get("cases", {}).values()
    measured = sum("seconds" in row for row in rows)
    return f"{measured} of {len(content.get('asked', rows))} cases"


def of_training(content: Content) -> str:
    """How far it came, and the distances."""
    if not content.get("steps"):
        return "no step"
    words = [f"{content['steps']:,} of {content['max_steps']:,} steps"]
    for judgement in content.get("judgements", []):
        values = [f"{name} {value:.4g}" for name, value in judgement["metrics"].items()]
        words += [f"{', '.join(values)} ({judgement['n']:,} samples)"]
    return ", ".join(words)


RESULTS = {"tests": of_tests, "throughput": of_throughput, "training": of_training}


def ceilings(machine: Content) -> str:
    """What plain work reaches on this device."""
    if "product" not in machine:
        return ""
    return (
        f"A bfloat16 product of large random matrices runs at {machine['product'] / 1e12:.4g} "
        f"TFLOP/s here, and a copy at {machine['copy'] / 1e12:.3g} TB/s (bytes read and written)."
    )


def throughput(content: Content) -> list[str]:
    """A row for each case that was measured."""
    rows = [row for row in content.get("cases", {}).values() if "seconds" in row]
    if not rows:
        return []
    names = (
        "network, parameters, loop, precision, batch, images/s, ms a step, TFLOP/s, of the peak, "
    )
    names += "memory (GB), first step (s), beside TorchCFM's script"
    columns = names.split(", ")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    counts = {row["parameters"]: row["operations"] for row in rows if row["operations"]}
    script = next((rate(row) for row in rows if row["loop"] != "fmdiff"), None)
    twins = {row["parameters"] for row in rows if row["loop"] != "fmdiff"}
    for row in rows:
        operations = counts.get(row["parameters"])
        flops = None if operations is None else operations * rate(row)
        ratio = script and row["parameters"] in twins and rate(row) / script
        share = flops / row["peak"] if flops and row["peak"] else None
        cells = [
            row["network"],
            f"{row['parameters']:,}",
            row["loop"],
            row["precision"],
            row["batch"],
            f"{rate(row):,.4g}" if rate(row) < 1e4 else f"{rate(row):,.0f}",
            f"{1e3 * row['seconds']:.4g}",
            f"{flops / 1e12:.3g}" if flops else "",
            f"{share:.1%}" if share else "",
            f"{row['memory'] / 1e9:.3g}" if row["memory"] else "",
            f"{row['first_step']:.3g}",
            f"{ratio:.2f}" if ratio else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def rate(row: Content) -> float:
    """Images per second."""
    return row["batch"] / row["seconds"]


def training(content: Content) -> str:
    """How long, and how good."""
    if not content.get("steps"):
        return ""
    lines = [
        f"`{content['recipe']}`: {content['steps']:,} of {content['max_steps']:,} steps in "
        f"{content['seconds_of_training']:.0f} s, start and compilation included"
    ]
    if content.get("images_per_second"):
        lines[0] += f", at {content['images_per_second']:,.4g} images/s (median of its log)"
    for judgement in content.get("judgements", []):
        values = [f"{name} {value:.4g}" for name, value in judgement["metrics"].items()]
        lines.append(
            f"{', '.join(values)} from {judgement['n']:,} samples of {judgement['nfe']:g} "
            f"evaluations, drawn and judged in {judgement['seconds']:.0f} s, start included"
        )
    return "\n".join(f"- {line}." for line in lines)


def missing(contents: Mapping[str, Content]) -> list[str]:
    """A sentence for each thing that was not done, or that failed."""
    gaps = []
    for part, content in contents.items():
        if content.get("failure"):
            gaps.append(f"{part}: {content['failure']}.")
        if content and not content.get("finished"):
            gaps.append(f"{part}: it was cut, and the same command goes on with it.")
    for name, test in contents["tests"].get("tests", {}).items():
        if test["outcome"] != "passed":
            gaps.append(f"{name.rpartition('::')[2]} {test['outcome']}: {test['text']}")
    cases = contents["throughput"].get("cases", {})
    for name in contents["throughput"].get("asked", []):
        if name not in cases:
            gaps.append(f"{name}: there was no time for it.")
        elif "missing" in cases[name]:
            gaps.append(f"{name}: {cases[name]['missing']}.")
    return gaps


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
