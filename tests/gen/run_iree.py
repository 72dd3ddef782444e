#!/usr/bin/env python3
"""Exported MLIR, compiled and run by IREE, against golden outputs.

    python3 -m venv /tmp/iree && /tmp/iree/bin/pip install iree-base-compiler iree-base-runtime numpy
    /tmp/iree/bin/python tests/gen/run_iree.py MODEL INPUTS.npz GOLDEN.npz [--dim seq=128 ..]

Prints the largest difference of each output; exit status 1 if one exceeds --tolerance.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import iree.compiler as compiler
import iree.runtime as runtime
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model")
    p.add_argument("inputs")
    p.add_argument("golden")
    p.add_argument("--dim", action="append", default=[])
    p.add_argument("--tolerance", type=float, default=1e-4)
    p.add_argument("--transc", default=str(ROOT / "target/release/transc"))
    a = p.parse_args()
    dims = [x for d in a.dim for x in ("--dim", d)]
    about = json.loads(subprocess.run([a.transc, "inspect", a.model, "--json", *dims], check=True, stdout=subprocess.PIPE).stdout)
    with tempfile.TemporaryDirectory() as d:
        mlir = pathlib.Path(d) / "model.mlir"
        subprocess.run([a.transc, "compile", a.model, "-q", "--emit", "mlir", "-o", str(mlir), *dims], check=True)
        start = time.monotonic()
        code = compiler.compile_file(
            str(mlir),
            target_backends=["llvm-cpu"],
            input_type="none",
            extra_args=["--iree-llvmcpu-target-cpu=host"],
        )
    print(f"iree-compile: {time.monotonic() - start:.1f} s, {len(code) / 1e6:.1f} MB")
    config = runtime.Config("local-task")
    context = runtime.SystemContext(config=config)
    module = runtime.VmModule.copy_buffer(context.instance, code)
    context.add_vm_module(module)
    inputs = np.load(a.inputs)
    arrays = [np.ascontiguousarray(inputs[spec.split(": ")[0]]) for spec in about["inputs"]]
    results = context.modules[module.name]["main"](*arrays)
    results = results if isinstance(results, (tuple, list)) else [results]
    golden = np.load(a.golden)
    worst = 0.0
    for name, got in zip((spec.split(": ")[0] for spec in about["outputs"]), results, strict=True):
        if name not in golden:
            continue
        want, got = golden[name], got.to_host()
        assert want.shape == got.shape, f"{name}: {want.shape} against {got.shape}"
        error = float(np.max(np.abs(got.astype(np.float64) - want.astype(np.float64)), initial=0.0))
        print(f"{name}: max abs difference {error:.2e}")
        worst = max(worst, error)
    sys.exit(worst > a.tolerance or not np.isfinite(worst))


if __name__ == "__main__":
    main()
