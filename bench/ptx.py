#!/usr/bin/env python3
"""Registers, shared memory and spills of the PTX of models, as `ptxas` sees them, as a Markdown table.

    python -m pip install nvidia-cuda-nvcc
    python3 bench/ptx.py examples/digits-vit/model.onnx models/minilm --write docs/gpu.md
    python3 bench/ptx.py --kinds tests/data/zoo/* --write docs/gpu.md       # one table, per kind of kernel, over all models
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

ARCHS = ["sm_80", "sm_90a"]


def find_ptxas():
    """The assembler: $TRANSC_PTXAS, the path, or the wheel `nvidia-cuda-nvcc` of this Python."""
    named = os.environ.get("TRANSC_PTXAS") or shutil.which("ptxas")
    wheels = pathlib.Path(sysconfig.get_path("purelib")).glob("nvidia/**/bin/ptxas")
    found = named or next((str(p) for p in wheels), None)
    if not found:
        sys.exit("there is no ptxas: pip install nvidia-cuda-nvcc, or set TRANSC_PTXAS")
    return found


def kernels(ptxas, text):
    """Per kernel of `ptxas -v`: registers, static shared bytes, spilled bytes."""
    out = []
    for part in text.split("Compiling entry function '")[1:]:
        name = part.split("'")[0]
        number = lambda pattern: sum(int(n) for n in re.findall(pattern, part))
        out.append((name, number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes spill")))
    return out


def dynamic_shared(loops):
    """Shared memory of each kernel as the expression of the dims that its launch asks for."""
    sizes = {"f32": 4, "i32": 4, "u32": 4, "f64": 8, "i64": 8, "u64": 8, "f16": 2, "bf16": 2, "i16": 2, "u16": 2}
    shared, name = {}, None
    for line in loops.splitlines():
        if m := re.match(r"kernel (\w+)\(", line):
            name = m[1]
        elif (m := re.match(r"  shared l\d+: (\w+)\[(.*)\]$", line)) and name:
            size = sizes.get(m[1], 1)
            fixed, terms = shared.get(name, (0, []))
            if m[2].isdigit():
                fixed += -(-int(m[2]) * size // 16) * 16
            else:
                terms = terms + [f"{size}*({m[2]})"]
            shared[name] = (fixed, terms)
    return {n: " + ".join([str(fixed)] * bool(fixed) + terms) for n, (fixed, terms) in shared.items()}


def kinds(all_rows):
    """Median and largest registers, and the most spilled bytes, of each kind of kernel over all models."""
    groups = {}
    for name, row in all_rows:
        kind = re.sub(r"^k\d+_", "", name)
        kind = re.sub(r"^attention_.*?(_\w+)$", r"attention\1", kind)
        groups.setdefault(kind, []).append(row)
    head = "| kernel | how many |" + "".join(f" {a} registers: median, most | {a} spilled bytes, most |" for a in ARCHS)
    lines = [head, "|---|---|" + "---|---|" * len(ARCHS)]
    for kind, rows in sorted(groups.items()):
        cells = ""
        for arch in ARCHS:
            registers = sorted(r[arch][0] for r in rows)
            cells += f" {registers[len(registers) // 2]}, {registers[-1]} | {max(r[arch][1] for r in rows)} |"
        lines.append(f"| `{kind}` | {len(rows)} |{cells}")
    return "\n".join(lines)


def write_between(path, part, text):
    """Replaces what stands between the marks of a generated part."""
    begin, end = (f"<!-- bench/ptx.py {part}: {mark} -->" for mark in ("begin", "end"))
    document = pathlib.Path(path).read_text()
    before, rest = document.split(begin)
    pathlib.Path(path).write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def measure(args, ptxas, model, tmp):
    """Per kernel of a model what the assembler says for each architecture; or why there is no PTX."""
    rows = {}
    options = [x for d in args.dim for x in ("--dim", d)]
    for arch in ARCHS:
        out = pathlib.Path(tmp, "model")
        command = [args.transc, "-q", "compile", model, "--target", f"cuda:{arch}", "--emit", "ptx,loops", "-o", out]
        run = subprocess.run(command + options, capture_output=True, text=True)
        if run.returncode:
            return None, re.sub(r"^error\[(\w+)\]", r"\1", run.stderr.partition("\n")[0])
        command = [ptxas, f"-arch={arch}", "-v", "-o", f"{out}.cubin", f"{out}.ptx"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"{model} {arch}: {run.stdout}{run.stderr}")
        shared = dynamic_shared(pathlib.Path(f"{out}.loops").read_text())
        for name, registers, static, spills in kernels(ptxas, run.stdout + run.stderr):
            row = rows.setdefault(name, {"shared": shared.get(name, str(static))})
            row[arch] = (registers, spills)
    return rows, None


def table(model, rows):
    """The kernels of one model."""
    lines = [f"`{model}`:\n", "| kernel | shared bytes |" + "".join(f" {a} registers | {a} spilled bytes |" for a in ARCHS)]
    lines.append("|---|---|" + "---|---|" * len(ARCHS))
    for name, row in rows.items():
        lines.append(f"| `{name}` | {row['shared']} |" + "".join(" {} | {} |".format(*row[a]) for a in ARCHS))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model files, or folders of Hugging Face models or of the zoo")
    parser.add_argument("--dim", action="append", default=[], help="passed on to transc")
    parser.add_argument("--kinds", action="store_true", help="one table of all models, per kind of kernel")
    parser.add_argument("--write", metavar="FILE.md", help="put the tables between their marks here")
    parser.add_argument("--transc", default="target/release/transc")
    args = parser.parse_args()
    ptxas = find_ptxas()
    tables, all_rows, skipped, models = [], [], [], 0
    with tempfile.TemporaryDirectory() as tmp:
        for model in args.models:
            file = pathlib.Path(model, "model.onnx")
            rows, why = measure(args, ptxas, str(file) if file.exists() else model, tmp)
            if rows is None:
                skipped.append(f"* {pathlib.Path(model).name}: {why}")
                continue
            models += 1
            all_rows += rows.items()
            tables.append(table(model, rows))
    if args.kinds:
        tables = [f"Over {models} models, {len(all_rows)} kernels:\n\n{kinds(all_rows)}"]
    if skipped:
        tables.append("Without PTX:\n\n" + "\n".join(skipped))
    text = "\n\n".join(tables)
    print(text)
    if args.write:
        write_between(args.write, "kinds" if args.kinds else "models", text)


if __name__ == "__main__":
    main()
