"""Builds full-size encoders with golden inputs and outputs in `models/` (ignored by git).

    python tests/gen/bert_random.py [--models DIR] [bert-base] [minilm]

`models/bert-base` is BERT-base with random weights, `models/minilm-golden` the trained MiniLM-L6 as ONNX. Beside
`model.onnx` lie `inputs_bB_sS.npz` and `outputs_bB_sS.npz` for several batch sizes and lengths. The outputs come
from ONNX Runtime without graph optimisation. Right padding: row 0 is full, later rows are shorter.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
import models

SIZES = [(1, 1), (1, 128), (8, 128), (1, 512), (3, 77)]


def inputs(batch, seq, seed=0):
    rng = np.random.default_rng([seed, batch, seq])
    length = np.array([seq] + [int(rng.integers(seq // 2, seq)) + 1 for _ in range(batch - 1)])
    mask = (np.arange(seq) < length[:, None]).astype(np.int64)
    ids = rng.integers(1000, 30000, (batch, seq)) * mask
    types = (np.arange(seq) >= seq // 2).astype(np.int64) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["minilm", "bert-base"])
    parser.add_argument("--models", type=Path, default=models.MODELS)
    args = parser.parse_args()

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    for name in args.names:
        path = models.build(name, args.models)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for batch, seq in SIZES:
            feed = inputs(batch, seq)
            outputs = dict(zip(names, session.run(names, feed)))
            np.savez(path.with_name(f"inputs_b{batch}_s{seq}.npz"), **feed)
            np.savez(path.with_name(f"outputs_b{batch}_s{seq}.npz"), **outputs)
        print(f"{path.parent}: {len(SIZES)} sets")


if __name__ == "__main__":
    main()
