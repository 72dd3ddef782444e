#!/usr/bin/env python3
"""What each backend costs: time to generate code, to the first result, and of a run, as tables in a document.

    cargo build --release --features mlir-out --example backends
    python3 bench/backends.py --write docs/backends.md

Each model is compiled by every backend of the build in turn, in fresh processes; the tables hold medians over them.
"""

import argparse
import collections
import pathlib
import re
import statistics
import subprocess

MODELS = [("digits-vit", ["examples/digits-vit/model.onnx", "batch=1"]), ("MiniLM", ["models/minilm", "batch=1", "seq=32"])]
ROW = re.compile(r"^(llvm|clif|mlir) +([\d.]+) +([\d.]+) +([\d.]+)$", re.M)
TIERED = re.compile(r"^tiered: first result after ([\d.]+) ms", re.M)
BEGIN, END = "<!-- bench/backends.py: begin -->", "<!-- bench/backends.py: end -->"


def measure(program, model, runs):
    """Medians: per backend (code generation, first result, a run), and the first result in two tiers."""
    rows, tiered = collections.defaultdict(list), []
    for _ in range(runs):
        text = subprocess.run([program, *model], check=True, stdout=subprocess.PIPE, text=True).stdout
        for backend, *times in ROW.findall(text):
            rows[backend].append([float(t) for t in times])
        tiered.append(float(TIERED.search(text)[1]))
    return {b: [statistics.median(c) for c in zip(*r)] for b, r in rows.items()}, statistics.median(tiered)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--example", default="target/release/examples/backends")
    p.add_argument("--write", metavar="FILE.md", help="put the tables between their marks here")
    a = p.parse_args()
    costs = ["| model | backend | code generation, ms | LLVM takes | first result, ms | a run, ms |", "|---|---|---|---|---|---|"]
    tiers = ["| model | first result, LLVM alone, ms | in two tiers, ms | ratio |", "|---|---|---|---|"]
    for name, model in MODELS:
        rows, tiered = measure(a.example, model, a.runs)
        for backend, (codegen, first, run) in rows.items():
            ratio = rows["llvm"][0] / codegen
            costs.append(f"| {name} | `{backend}` | {codegen:.0f} | {ratio:.1f}x as long | {first:.0f} | {run:.2f} |")
        alone = rows["llvm"][1]
        tiers.append(f"| {name} | {alone:.0f} | {tiered:.0f} | {alone / tiered:.1f}x sooner |")
    text = "\n".join(costs) + "\n\n" + "\n".join(tiers)
    print(text)
    if a.write:
        document = pathlib.Path(a.write).read_text()
        before, rest = document.split(BEGIN)
        pathlib.Path(a.write).write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
