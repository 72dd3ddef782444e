"""Times one sparse or dense int8 layer on one core, transc against oneDNN's dense int8.

    python bench/spmm.py [--shapes 768x768,...] [--tokens 128,1024] [--sparsity 0.7,...] [--rounds N] [--json]

The layer is `f32[tokens, n] = scale * (u8[tokens, k] @ s8[k, n])`, its weight pruned in blocks of 4 neighbouring outputs by one input. transc gets it
as an ONNX file in QDQ form and finds the zeros itself: once as it stands (`rows`), once with activation and result transposed, the layout in which
sparse layers hand on to each other (`turned`). oneDNN is carried by PyTorch's quantised linear (engine `onednn`, u8 by s8 to f32 with the same
number of multiply-adds), and is dense. Without VNNI it saturates, so that its numbers differ: a line on standard error says so. Shapes are
`outputs x inputs`. `share of peak` is the time that the kept weights need at 64 multiply-adds per cycle of the core clock that is measured in the same
run (32 without VNNI: two `pmaddwd`), divided by the time taken, turning and scaling included. Processors that start two such instructions per cycle reach
more than 1.
"""

import argparse
import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from compare import ROOT, Transc  # noqa: E402

SHAPES = "768x768,3072x768,768x3072,1024x1024,4096x1024,1024x4096"
SPARSITY = "0.7,0.75,0.8,0.85,0.9"


VNNI = "avx512_vnni" in Path("/proc/cpuinfo").read_text()
PER_CYCLE = 64 if VNNI else 32


def weights(k, n, share, rng):
    """Codes `s8[k, n]` with the given share of 4-blocks along `n` zero in every block column."""
    codes = rng.integers(-127, 128, (k, n), dtype=np.int8)
    codes[codes == 0] = 1
    order = rng.random((k, n // 4)).argsort(axis=0)
    drop = order < round(share * k)
    return np.where(np.repeat(drop, 4, axis=1), 0, codes).astype(np.int8)


def model(path, tokens, codes, turned):
    k, n = codes.shape
    shapes = ([k, tokens], [n, tokens]) if turned else ([tokens, k], [tokens, n])
    codes = codes.T.copy() if turned else codes
    operands = ["wd", "xd"] if turned else ["xd", "wd"]
    init = [numpy_helper.from_array(x, name) for name, x in {
        "w": codes, "ws": np.full(n, 0.01, np.float32), "wz": np.zeros(n, np.int8),
        "xs": np.float32(0.02), "xz": np.uint8(128)}.items()]
    nodes = [helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
             helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0 if turned else 1),
             helper.make_node("MatMul", operands, ["y"], name="layer")]
    graph = helper.make_graph(nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.UINT8, shapes[0])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


class OneDnn:
    """`torch.ops.onednn.qlinear_pointwise`: oneDNN's u8 by s8 matrix product with an f32 result."""

    def __init__(self, x, codes):
        import torch
        torch.set_num_threads(1)
        self.torch = torch
        n = codes.shape[1]
        self.x = torch.from_numpy(x)
        self.w = torch.ops.onednn.qlinear_prepack(torch.from_numpy(codes.T.copy()), list(x.shape))
        self.rest = (torch.full((n,), 0.01), torch.zeros(n, dtype=torch.int64), None, 1.0, 0, torch.float32, "none", [], "")

    def run(self):
        return self.torch.ops.onednn.qlinear_pointwise(self.x, 0.02, 128, self.w, *self.rest)


class Ours:
    def __init__(self, x, codes, transc, folder, turned):
        folder = Path(folder) / ("turned" if turned else "rows")
        folder.mkdir()
        path = folder / "layer.onnx"
        model(path, x.shape[0], codes, turned)
        y = np.empty((x.shape[0], codes.shape[1]), np.float32)
        x, y = (x.T.copy(), y.T.copy()) if turned else (x, y)
        case = SimpleNamespace(path=path, dims={}, inputs={"x": x}, outputs=["y"])
        args = SimpleNamespace(transc=transc, options="-q", dtype="f32", threads=1)
        self.inner = Transc(case, args, [y], folder)
        self.run, self.close = self.inner.run, self.inner.close


def clock_ghz():
    """Cycles per nanosecond, from a chain of dependent additions."""
    from subprocess import run
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "c.c"
        source.write_text("#include <stdint.h>\nuint64_t f(uint64_t n){uint64_t x=n;for(uint64_t i=0;i<n;i++)"
                          "__asm__ volatile(\"add $1,%0\\nadd $1,%0\\nadd $1,%0\\nadd $1,%0\":\"+r\"(x));return x;}")
        run(["cc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/c.so", source], check=True)
        f = ctypes.CDLL(f"{folder}/c.so").f
        f.argtypes = [ctypes.c_uint64]
        best = 0.0
        for _ in range(5):
            start = time.perf_counter_ns()
            f(2_000_000)
            best = max(best, 8e6 / (time.perf_counter_ns() - start))
        return best


def measure(shape, tokens, share, args):
    n, k = (int(v) for v in shape.split("x"))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (tokens, k), dtype=np.uint8)
    codes = weights(k, n, share, rng)
    with tempfile.TemporaryDirectory() as folder:
        peers = {"turned": Ours(x, codes, args.transc, folder, True), "rows": Ours(x, codes, args.transc, folder, False),
                 "onednn": OneDnn(x, codes)}
        want = 0.0002 * (x.astype(np.int32) - 128) @ codes.astype(np.int32)
        for name, peer in peers.items():
            for _ in range(3):
                got = peer.run()
            got = got.numpy() if name == "onednn" else got[0].T if name == "turned" else got[0]
            same = np.allclose(got, want, rtol=1e-4, atol=1e-3)
            assert same or name == "onednn" and not VNNI, f"{name} gives other numbers"
            if not same:
                print(f"onednn: largest difference {np.abs(got - want).max():.3g} of {np.abs(want).max():.3g}", file=sys.stderr)
        times = {name: [] for name in peers}
        for _ in range(args.rounds):
            for name, peer in peers.items():
                start = time.perf_counter_ns()
                peer.run()
                times[name].append(time.perf_counter_ns() - start)
        peers["turned"].close()
        peers["rows"].close()
    us = {name: min(t) / 1e3 for name, t in times.items()}
    kept = float((codes != 0).mean())
    floor_us = tokens * n * k * kept / PER_CYCLE / args.ghz / 1e3
    return {"shape": shape, "tokens": tokens, "sparsity": share, "us": {name: round(t, 1) for name, t in us.items()},
            "ratio": round(us["onednn"] / us["turned"], 2), "ratio_rows": round(us["onednn"] / us["rows"], 2),
            "share_of_peak": round(floor_us / us["turned"], 3),
            "onednn_share_of_peak": round(tokens * n * k / PER_CYCLE / args.ghz / 1e3 / us["onednn"], 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--tokens", default="128,1024")
    parser.add_argument("--sparsity", default=SPARSITY)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--transc", type=Path, default=ROOT / "target" / "release" / "transc")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.ghz = clock_ghz()
    records = []
    for shape in args.shapes.split(","):
        for tokens in map(int, args.tokens.split(",")):
            for share in map(float, args.sparsity.split(",")):
                r = measure(shape, tokens, share, args)
                records.append(r)
                if not args.json:
                    print(f"{shape:>10} x {tokens:<5} {share:4.0%}  turned {r['us']['turned']:8.1f} us  rows {r['us']['rows']:8.1f} us  oneDNN "
                          f"{r['us']['onednn']:8.1f} us  ratio {r['ratio']:5.2f} / {r['ratio_rows']:5.2f}  share of peak "
                          f"{r['share_of_peak']:.0%} (oneDNN {r['onednn_share_of_peak']:.0%})", flush=True)
    means = {share: tuple(round(float(np.exp(np.mean([np.log(r[key]) for r in records if r["sparsity"] == share]))), 2)
                          for key in ("ratio", "ratio_rows")) for share in sorted({r["sparsity"] for r in records})}
    if args.json:
        print(json.dumps({"schema_version": 1, "clock_ghz": round(args.ghz, 3), "cases": records, "mean_ratio": means}, indent=1))
    else:
        print("geometric mean of the ratios:", ", ".join(f"{share:.0%}: {a} / {b}" for share, (a, b) in means.items()))


if __name__ == "__main__":
    main()
