"""Times transc against ONNX Runtime, OpenVINO and PyTorch, interleaved in one run.

    python bench/compare.py [MODEL...] [--dim batch=1 --dim seq=128] [--threads N[,N]] [--rounds N] [--json | --table]

MODEL is an ONNX file or a name that `bench/models.py` knows. Without a MODEL, the cases of `SUITE` run. In every
round each peer runs once, in an order that rotates, so that all see the same machine. `ratio` is the median of the
best other peer divided by the median of transc: above 1, transc is faster. Exit status 5: the outputs differ.
"""

import argparse
import ctypes
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "src" / "cli" / "bench"))

import peers

SUITE = [
    *(("bert-base", {"batch": batch, "seq": seq}) for batch, seq in ((1, 32), (1, 128), (8, 128), (1, 384))),
    *(("minilm", {"batch": batch, "seq": seq}) for batch, seq in ((1, 16), (1, 128), (32, 128))),
    *(("deit-s", {"batch": batch}) for batch in (1, 16)),
    ("gpt2", {"batch": 1, "seq": 128}),
]


class Case:
    """A model file with its dims bound and a set of inputs."""

    def __init__(self, model, dims, npz=None):
        self.name, self.path, self.module = model, Path(model), None
        self.builtin = not self.path.is_file()
        if self.builtin:
            import models
            if model not in models.NAMES:
                sys.exit(f"`{model}` is neither a file nor one of {', '.join(models.NAMES)}")
            self.path = models.build(model)
            if model in models.BUILDERS:
                self.module = lambda: models.BUILDERS[model][0](models.MODELS)
        graph = onnx.load(self.path, load_external_data=False).graph
        weights = {w.name for w in graph.initializer}
        values = [v for v in graph.input if v.name not in weights]
        self.dims = dims
        self.inputs = dict(np.load(npz)) if npz else {v.name: self.random(v) for v in values}
        self.outputs = [v.name for v in graph.output]
        self.quantised = any("Quantize" in node.op_type for node in graph.node)

    def random(self, value):
        rng = np.random.default_rng(0)
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = []
        for d in kind.shape.dim:
            if not d.HasField("dim_value") and d.dim_param not in self.dims:
                sys.exit(f"{self.path}: give a size with --dim {d.dim_param or '?'}=N, or inputs with --inputs")
            shape.append(d.dim_value if d.HasField("dim_value") else self.dims[d.dim_param])
        if np.issubdtype(dtype, np.floating):
            return rng.standard_normal(shape).astype(dtype)
        if "mask" in value.name:
            return np.ones(shape, dtype)
        if "type" in value.name or dtype == bool:
            return np.zeros(shape, dtype)
        return rng.integers(0, 30000 if self.builtin else 100, shape).astype(dtype)


def engine(which):
    """One of the engines that `transc bench --against` drives too."""
    return lambda case, args: which({"model": str(case.path), "threads": args.threads, "dtype": args.dtype}, case.inputs)


class Torch:
    """PyTorch on the module that the ONNX file was made from; only for the models of `bench/models.py`."""

    compiled = False

    def __init__(self, case, args):
        import torch
        if case.module is None:
            raise ValueError("there is no PyTorch module of this model")
        torch.set_num_threads(args.threads)
        self.torch, self.bf16 = torch, args.dtype == "bf16"
        self.module = case.module()
        if self.compiled:
            self.module = torch.compile(self.module)
        self.feed = [torch.from_numpy(x) for x in case.inputs.values()]

    def run(self):
        with self.torch.inference_mode(), self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.bf16):
            out = self.module(*self.feed)
        out = out if isinstance(out, tuple) else (out,)
        return [x.float().numpy() for x in out]


class Inductor(Torch):
    compiled = True


class Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("dtype", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("dims", ctypes.POINTER(ctypes.c_int64)), ("data", ctypes.c_void_p), ("len_bytes", ctypes.c_size_t)]

    @classmethod
    def of(cls, name, array):
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return cls(name.encode(), dtype, array.ndim, dims, array.ctypes.data, array.nbytes)


def on_lines(x):
    """A copy that starts on a cache line, as tensors do that engines allocate; numpy's arrays start anywhere in it."""
    room = np.empty(x.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start:start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


class Transc:
    """A compiled model through its C interface. `reference` gives names, shapes and types of the outputs."""

    name = "transc"

    def __init__(self, case, args, reference, folder):
        path = Path(folder) / f"{self.name}.so"
        command = [args.transc, "compile", case.path, "-o", path, *shlex.split(args.options), *self.sizes(case.dims)]
        if args.dtype != "f32":
            command += ["--dtype", args.dtype]
        start = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
        self.compile_s = time.perf_counter() - start
        self.lib = ctypes.CDLL(str(path))
        self.lib.transc_last_error.restype = ctypes.c_char_p
        self.session = ctypes.c_void_p()
        self.check(self.lib.transc_open(ctypes.c_int32(args.threads), ctypes.byref(self.session)))
        self.feed = {name: on_lines(x) for name, x in case.inputs.items()}
        self.out = {name: on_lines(np.empty(x.shape, x.dtype)) for name, x in zip(case.outputs, reference)}
        self.args = []
        for arrays in (self.feed, self.out):
            tensors = [Tensor.of(name, x) for name, x in arrays.items()]
            self.args += [(Tensor * len(tensors))(*tensors), ctypes.c_size_t(len(tensors))]

    def sizes(self, dims):
        return [word for dim, value in dims.items() for word in ("--dim", f"{dim}={value}")]

    def check(self, status):
        if status != 0:
            raise RuntimeError(f"transc: {self.lib.transc_last_error().decode()} ({status})")

    def run(self):
        self.check(self.lib.transc_run(self.session, *self.args))
        return list(self.out.values())

    def close(self):
        self.lib.transc_close(self.session)


class Generic(Transc):
    """transc compiled for every size."""

    name = "generic"

    def sizes(self, dims):
        return []


PEERS = {"ort": engine(peers.Ort), "openvino": engine(peers.OpenVino), "torch": Torch, "inductor": Inductor}


def differences(got, want):
    """The largest difference over all outputs, absolute and relative to the largest value of the output."""
    pairs = [(np.abs(g.astype(np.float64) - w).max(), np.abs(w).max()) for g, w in zip(got, want) if w.size]
    return {"max_abs_diff": float(max(d for d, _ in pairs)),
            "max_rel_diff": float(max(d / max(m, 1e-30) for d, m in pairs))}


def versions(names):
    """Name and version of transc and of the peers, as far as they are there."""
    packages = {"ort": "onnxruntime", "openvino": "openvino", "torch": "torch", "inductor": "torch"}
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(packages[name])
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(records, args):
    """The table of the README, in Markdown: the median of each peer divided by that of transc."""
    names = [name for name in args.peers if any(name in r["peers"] for r in records)]
    known = {"transc": subprocess.run([args.transc, "--version"], capture_output=True, text=True).stdout.split()[-1], **versions(names)}
    title = [f"{name} {known.get(name, '')}".strip() for name in names]
    rows = [["model", "sizes", "threads", *title], ["---"] * 3 + ["---:"] * len(names)]
    for r in records:
        dims = " ".join(f"{k}={v}" for k, v in r["dims"].items())
        own = r["peers"]["transc"]["p50_ms"]
        ratios = [f"{r['peers'][n]['p50_ms'] / own:.2f}" if n in r["peers"] else "" for n in names]
        rows.append([r["model"], dims, str(r["threads"]), *ratios])
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    best = [r["ratio"] for r in records]
    print(f"\nTime of the engine divided by that of transc {known['transc']}: medians of {args.rounds} rounds in turns, {args.dtype}, on {processor()}. "
          f"Best of the others: {np.exp(np.mean(np.log(best))):.2f} in the geometric mean, {min(best):.2f} at the least.")


def physical_cores():
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else cpu)
    return len(cores)


def compare(case, args):
    """Runs one case and returns its record."""
    # Another model's outputs are other numbers.
    other = Case(args.against, case.dims, args.inputs) if args.against else case
    running, record = {}, {"model": case.name, "dims": case.dims, "threads": args.threads, "peers": {}}
    for name in args.peers:
        try:
            running[name] = PEERS[name](other, args)
        except (ImportError, ValueError) as error:
            print(f"{case.name}: without {name}: {error}", file=sys.stderr)
    if not running:
        sys.exit("no peer is left to compare with")
    reference = [np.array(x) for x in next(iter(running.values())).run()]
    with tempfile.TemporaryDirectory() as folder:
        ours = [] if args.no_transc else [Transc(case, args, reference, folder)]
        if ours:
            record["compile_s"] = round(ours[0].compile_s, 3)
        if args.generic:
            ours.append(Generic(case, args, reference, folder))
        running |= {our.name: our for our in ours}
        agreement = {}
        for name, peer in running.items():
            for _ in range(args.warmup):
                out = peer.run()
            agreement[name] = differences(out, reference)

        times = {name: [] for name in running}
        for round_ in range(args.rounds):
            names = list(running)
            shift = round_ % len(names)
            for name in names[shift:] + names[:shift]:
                time.sleep(args.rest)    # lets the workers of the peer before fall asleep
                start = time.perf_counter()
                running[name].run()
                times[name].append(1e3 * (time.perf_counter() - start))
        for our in ours:
            our.close()

    for name, ms in times.items():
        p50, p90 = np.percentile(ms, [50, 90])
        record["peers"][name] = {"p50_ms": round(p50, 4), "p90_ms": round(p90, 4), "min_ms": round(min(ms), 4),
                                 **agreement[name]}
    others = {name: r["p50_ms"] for name, r in record["peers"].items() if name in PEERS}
    record["best_peer"] = min(others, key=others.get)
    # In 8 bits one rounding that falls the other way moves everything after it by a step.
    tolerance = args.tolerance or (0.5 if case.quantised else 1e-3 if args.dtype == "f32" else 0.1)
    record["agree"] = bool(args.against) or all(r["max_rel_diff"] <= tolerance for r in agreement.values())
    if not args.no_transc:
        record["ratio"] = round(others[record["best_peer"]] / record["peers"]["transc"]["p50_ms"], 3)
        if args.generic:
            record["slowdown"] = round(record["peers"]["generic"]["p50_ms"] / record["peers"]["transc"]["p50_ms"], 3)
    return record


def show(record, args):
    dims = " ".join(f"{k}={v}" for k, v in record["dims"].items())
    print(f"\n{record['model']}  {dims}  {args.dtype}  threads={args.threads}  rounds={args.rounds}")
    print(f"  {'':10} {'p50 ms':>10} {'p90 ms':>10} {'min ms':>10}   max abs diff to {next(iter(record['peers']))}")
    for name, r in record["peers"].items():
        print(f"  {name:10} {r['p50_ms']:10.3f} {r['p90_ms']:10.3f} {r['min_ms']:10.3f}   {r['max_abs_diff']:.2e}")
    if not record["agree"]:
        print("  THE OUTPUTS DIFFER by more than the tolerance")
    if "ratio" in record:
        print(f"  ratio {record['ratio']:.2f} ({record['best_peer']} / transc)", end="")
        print(f"   compiled in {record['compile_s']:.1f} s")
    if "slowdown" in record:
        print(f"  compiled for every size: {record['slowdown']:.2f} times the time of the code for these sizes")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=N[,N]", help="size of a symbolic dim; several in turn")
    parser.add_argument("--inputs", type=Path, metavar="NPZ", help="inputs to use in place of random ones")
    parser.add_argument("--threads", default=str(physical_cores()), metavar="N[,N]", help="default: all physical cores; several in turn")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rest", type=float, default=0.005, metavar="S", help="pause before each timed run")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="ONNX Runtime always computes in f32")
    parser.add_argument("--tolerance", type=float, metavar="R",
                        help="largest difference of outputs, relative to their largest value; "
                        "default 1e-3, bf16 0.1, quantised models 0.5")
    parser.add_argument("--against", metavar="MODEL", help="what the peers run in place of MODEL, such as the model before it was compressed")
    parser.add_argument("--peers", default="ort,openvino", help=f"of {', '.join(PEERS)}; default: %(default)s")
    parser.add_argument("--transc", type=Path, default=ROOT / "target" / "release" / "transc", metavar="BINARY")
    parser.add_argument("--options", default="", help="further options for `transc compile`, in one string")
    parser.add_argument("--generic", action="store_true", help="time the code for every size too, compiled without --dim")
    parser.add_argument("--no-transc", action="store_true", help="the other peers only")
    parser.add_argument("--table", action="store_true", help="print a table in Markdown")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.peers = args.peers.split(",")
    args.counts = [int(n) for n in args.threads.split(",")]
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"no peer `{', '.join(unknown)}`")
    if args.generic and args.no_transc:
        parser.error("--generic compares with transc for the sizes")
    if args.table and args.no_transc:
        parser.error("--table compares with transc")
    if args.rounds < 1 or args.warmup < 1:
        parser.error("--rounds and --warmup are at least 1")
    named = [(name, [int(n) for n in values.split(",")]) for name, _, values in (d.partition("=") for d in args.dim)]
    args.sizes = [dict(zip(dict(named), values)) for values in itertools.product(*dict(named).values())]
    return args


def main():
    args = parse()
    records = []
    for model, dims in [(model, dims) for model in args.models for dims in args.sizes] or SUITE:
        case = Case(model, dims, args.inputs)
        for args.threads in args.counts:
            records.append(compare(case, args))
            if not args.json and not args.table:
                show(records[-1], args)
    if args.table:
        table(records, args)
    if args.json:
        print(json.dumps({"schema_version": 1, "versions": versions(args.peers), "processor": processor(), "rounds": args.rounds,
                          "dtype": args.dtype, "cases": records}, indent=1))
    return 0 if all(record["agree"] for record in records) else 5


if __name__ == "__main__":
    sys.exit(main())
