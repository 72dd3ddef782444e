"""Times one sparse layer on one core, transc against oneDNN's dense product of the same element type.

    python bench/spmm.py [--dtype int8] [--block 4x1] [--shapes 768x768,...] [--tokens 128,1024] [--sparsity 0.7,...] [--rounds N] [--json]

In 8 bits the layer is `f32[tokens, n] = scale * (u8[tokens, k] @ s8[k, n])`, else `f32[tokens, n] = f32[tokens, k] @ f32[k, n]`, with `--dtype bf16`
multiplied in bf16. Its weight is pruned in blocks of so many neighbouring outputs by so many inputs (`--block 4x1`, `1x4`, `1x1`, ..). transc gets it
as an ONNX file, in 8 bits in QDQ form, and finds the zeros itself: once as it stands (`rows`), once with activation and result transposed, the layout in
which sparse layers hand on to each other (`turned`). oneDNN is carried by PyTorch (in 8 bits its quantised linear, engine `onednn`, u8 by s8 to f32), and
is dense. Without VNNI it saturates, so that its numbers differ: a line on standard error says so. Shapes are
`outputs x inputs`. `share of peak` is the time that the kept weights need at 64 multiply-adds per cycle of the core clock that is measured in the same
run (32 for bf16 and without VNNI, 16 for f32), divided by the time taken, turning and scaling included. Processors that start two such instructions per
cycle reach more than 1.

On a processor with matrix registers, vectors are compared with vectors so:

    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python bench/spmm.py --target icelake-server
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
# Multiply-adds of one vector instruction.
PER_CYCLE = {"int8": 64 if VNNI else 32, "bf16": 32, "f32": 16}
# Of the largest result.
TOLERANCE = {"int8": 1e-5, "bf16": 2e-2, "f32": 1e-5}


def weights(k, n, share, block, rng):
    """Codes `s8[k, n]` with the given share of the blocks in every block column zero."""
    columns, rows = block
    codes = rng.integers(-127, 128, (k, n), dtype=np.int8)
    codes[codes == 0] = 1
    order = rng.random((k // rows, n // columns)).argsort(axis=0)
    drop = order < round(share * (k // rows))
    return np.where(np.kron(drop, np.ones((rows, columns), bool)), 0, codes).astype(np.int8)


def model(path, tokens, codes, turned, int8):
    k, n = codes.shape
    shapes = ([k, tokens], [n, tokens]) if turned else ([tokens, k], [tokens, n])
    codes = codes.T.copy() if turned else codes
    if int8:
        init = {"w": codes, "ws": np.full(n, 0.01, np.float32), "wz": np.zeros(n, np.int8),
                "xs": np.float32(0.02), "xz": np.uint8(128)}
        nodes = [helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xd"]),
                 helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0 if turned else 1)]
        operands = ["xd", "wd"]
    else:
        init, nodes, operands = {"w": 0.01 * codes.astype(np.float32)}, [], ["x", "w"]
    nodes.append(helper.make_node("MatMul", operands[::-1] if turned else operands, ["y"], name="layer"))
    init = [numpy_helper.from_array(x, name) for name, x in init.items()]
    given = TensorProto.UINT8 if int8 else TensorProto.FLOAT
    graph = helper.make_graph(nodes, "layer", [helper.make_tensor_value_info("x", given, shapes[0])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])], init)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


class OneDnn:
    """`torch.ops.onednn.qlinear_pointwise`, a u8 by s8 matrix product with an f32 result, or `torch.nn.functional.linear`."""

    def __init__(self, x, codes, dtype):
        import torch
        torch.set_num_threads(1)
        n = codes.shape[1]
        x = torch.from_numpy(x)
        if dtype == "int8":
            w = torch.ops.onednn.qlinear_prepack(torch.from_numpy(codes.T.copy()), list(x.shape))
            rest = (torch.full((n,), 0.01), torch.zeros(n, dtype=torch.int64), None, 1.0, 0, torch.float32, "none", [], "")
            self.run = lambda: torch.ops.onednn.qlinear_pointwise(x, 0.02, 128, w, *rest)
        elif dtype == "bf16":
            w = torch.from_numpy(0.01 * codes.T.astype(np.float32)).bfloat16()
            self.run = lambda: torch.nn.functional.linear(x.bfloat16(), w).float()
        else:
            w = torch.from_numpy(0.01 * codes.T.astype(np.float32))
            w = torch.ops.mkldnn._reorder_linear_weight(w, x.shape[0])
            self.run = lambda: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


class Ours:
    def __init__(self, x, codes, folder, turned, args):
        folder = Path(folder) / ("turned" if turned else "rows")
        folder.mkdir()
        path = folder / "layer.onnx"
        model(path, x.shape[0], codes, turned, args.dtype == "int8")
        y = np.empty((x.shape[0], codes.shape[1]), np.float32)
        x, y = (x.T.copy(), y.T.copy()) if turned else (x, y)
        case = SimpleNamespace(path=path, dims={}, inputs={"x": x}, outputs=["y"])
        dtype = "bf16" if args.dtype == "bf16" else "f32"
        args = SimpleNamespace(transc=args.transc, options=f"-q --target {args.target}", dtype=dtype, threads=1)
        self.inner = Transc(case, args, [y], folder)
        self.run, self.close = self.inner.run, self.inner.close


def clock_ghz():
    """Cycles per nanosecond, from a chain of dependent products, each of three cycles. (Additions of constants take none on some processors.)"""
    from subprocess import run
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "c.c"
        source.write_text("#include <stdint.h>\nuint64_t f(uint64_t n){uint64_t x=n;for(uint64_t i=0;i<n;i++)"
                          "__asm__ volatile(\"imul %0,%0\\nimul %0,%0\\nimul %0,%0\\nimul %0,%0\":\"+r\"(x));return x;}")
        run(["cc", "-O2", "-shared", "-fPIC", "-o", f"{folder}/c.so", source], check=True)
        f = ctypes.CDLL(f"{folder}/c.so").f
        f.argtypes = [ctypes.c_uint64]
        best = 0.0
        for _ in range(5):
            start = time.perf_counter_ns()
            f(2_000_000)
            best = max(best, 24e6 / (time.perf_counter_ns() - start))
        return best


def measure(shape, tokens, share, args):
    n, k = (int(v) for v in shape.split("x"))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (tokens, k), dtype=np.uint8)
    codes = weights(k, n, share, [int(v) for v in args.block.split("x")], rng)
    want = 0.0002 * (x.astype(np.int32) - 128) @ codes.astype(np.int32)
    if args.dtype != "int8":
        x = 0.02 * (x.astype(np.float32) - 128)
    with tempfile.TemporaryDirectory() as folder:
        peers = {"turned": Ours(x, codes, folder, True, args), "rows": Ours(x, codes, folder, False, args),
                 "onednn": OneDnn(x, codes, args.dtype)}
        for name, peer in peers.items():
            for _ in range(3):
                got = peer.run()
            got = got.numpy() if name == "onednn" else got[0].T if name == "turned" else got[0]
            same = np.abs(got - want).max() <= TOLERANCE[args.dtype] * np.abs(want).max()
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
    floor_us = tokens * n * k * kept / PER_CYCLE[args.dtype] / args.ghz / 1e3
    return {"shape": shape, "tokens": tokens, "sparsity": share, "us": {name: round(t, 1) for name, t in us.items()},
            "ratio": round(us["onednn"] / us["turned"], 2), "ratio_rows": round(us["onednn"] / us["rows"], 2),
            "share_of_peak": round(floor_us / us["turned"], 3),
            "onednn_share_of_peak": round(tokens * n * k / PER_CYCLE[args.dtype] / args.ghz / 1e3 / us["onednn"], 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="int8", choices=PER_CYCLE)
    parser.add_argument("--block", default="4x1", help="outputs by inputs that are zero together")
    parser.add_argument("--target", default="host")
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
