"""Times the matrix kernels against oneDNN's on one core, interleaved.

    python bench/matmul.py [--dtype bf16] [--rounds N] [--json]

Each line is one product `[m, k] x [k, n]` with a constant right operand and a bias: oneDNN through PyTorch, weight packed in
advance, and transc through its C interface. `speed` is oneDNN's median time divided by transc's. Both read the same weight
in every round, so it comes from a cache. With `--dtype bf16` both multiply in bf16: oneDNN takes its input rounded and gives a rounded result, transc takes
and gives f32.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from compare import ROOT, Transc

SHAPES = [(m, n, k) for m in (128, 1024)
          for n, k in ((768, 768), (3072, 768), (768, 3072), (1024, 1024), (4096, 1024), (1024, 4096))]

MODULE = """module "matmul" {{
 const @c0 "w": f32[{k},{n}] = random(1)
 const @c1 "b": f32[{n}] = random(2)
 func @"main"(%0 "x": f32[{m},{k}]) {{
  %1: f32[{k},{n}] = constant() {{id = @c0}}
  %2: f32[{n}] = constant() {{id = @c1}}
  %3: f32[{m},{n}] = contract(%0, %1) {{lhs = [0,1], rhs = [1,2], out = [0,2], out_dtype = f32}} loc("product")
  %4: f32[{m},{n}] = map(%3, %2) {{body = {{2: i0 = add a0 a1; i0}}}} loc("bias")
  return %4 "y"
 }}
}}
"""


class OneDnn:
    def __init__(self, x, n, dtype):
        rng = np.random.default_rng(1)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        weight = torch.from_numpy(rng.standard_normal((n, x.shape[1]), np.float32)).to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
        self.bias = torch.zeros(n, dtype=dtype)
        self.x = torch.from_numpy(x).to(dtype)

    def run(self):
        with torch.inference_mode():
            return torch.ops.mkldnn._linear_pointwise(self.x, self.weight, self.bias, "none", [], "")


def timed(peers, rounds):
    times = [[] for _ in peers]
    for peer in peers:
        for _ in range(5):
            peer.run()
    for i in range(rounds):
        for j in range(len(peers)):
            at = (i + j) % len(peers)
            start = time.perf_counter()
            peers[at].run()
            times[at].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--transc", type=Path, default=ROOT / "target" / "release" / "transc", metavar="BINARY")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for m, n, k in SHAPES:
        x = np.random.default_rng(0).standard_normal((m, k), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "matmul.tir"
            path.write_text(MODULE.format(m=m, n=n, k=k))
            case = SimpleNamespace(path=path, dims={}, inputs={"x": x}, outputs=["y"])
            options = SimpleNamespace(transc=args.transc, options="-q", dtype=args.dtype, threads=1)
            transc = Transc(case, options, [np.empty((m, n), np.float32)], folder)
            onednn, ours = timed([OneDnn(x, n, args.dtype), transc], args.rounds)
            transc.close()
        flops = 2e-6 * m * n * k
        records.append({"m": m, "n": n, "k": k, "onednn_ms": onednn, "transc_ms": ours, "speed": onednn / ours})
        if not args.json:
            print(f"{m:5} x {n:5} x {k:5}   oneDNN {onednn:8.3f} ms {flops / onednn:6.1f} GF/s   "
                  f"transc {ours:8.3f} ms {flops / ours:6.1f} GF/s   speed {onednn / ours:.2f}", flush=True)
    mean = statistics.geometric_mean(r["speed"] for r in records)
    if args.json:
        print(json.dumps({"schema_version": 1, "torch": torch.__version__, "dtype": args.dtype, "speed": mean,
                          "products": records}, indent=1))
    else:
        print(f"geometric mean of the speeds {mean:.3f}, worst {min(r['speed'] for r in records):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
