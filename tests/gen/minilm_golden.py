"""Writes `tests/data/minilm/`: tokens of a few sentences and what the trained MiniLM-L6 answers.

    python tests/gen/minilm_golden.py [--model models/minilm] [--out tests/data/minilm]

`inputs_b4.npz` and `outputs_b4.npz` hold a padded batch of four sentences of different length, `*_b1.npz` one
sentence; `lines.txt` has their line numbers (from 1) in `sentences.txt`. The outputs come from PyTorch in f32. `tokens.npz` holds
the tokens of all sentences, padded to one length.
The weights are not part of the files.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel, BertTokenizer

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ROOT / "tests" / "data" / "sentences.txt"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "minilm")
    parser.add_argument("--out", type=Path, default=SENTENCES.with_name("minilm"))
    args = parser.parse_args()

    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer.from_pretrained(args.model)
    model = BertModel.from_pretrained(args.model, attn_implementation="eager", dtype=torch.float32).eval()
    lengths = [len(ids) for ids in tokenizer(sentences)["input_ids"]]
    order = np.argsort(lengths, kind="stable")
    last = len(order) - 1
    args.out.mkdir(parents=True, exist_ok=True)
    notes = []
    for name, lines in {"b1": order[[last // 2]], "b4": order[[last, 2 * last // 3, last // 3, 0]]}.items():
        tokens = tokenizer([sentences[i] for i in lines], padding=True, return_tensors="pt")
        with torch.no_grad():
            out = model(**tokens)
        np.savez_compressed(args.out / f"inputs_{name}.npz", **{k: v.numpy() for k, v in tokens.items()})
        np.savez_compressed(args.out / f"outputs_{name}.npz", last_hidden_state=out.last_hidden_state.numpy(),
                            pooler_output=out.pooler_output.numpy())
        notes.append(f"{name}: {' '.join(str(i + 1) for i in lines)}\n")
        print(name, tuple(out.last_hidden_state.shape))
    tokens = tokenizer(sentences, padding=True, return_tensors="np")
    np.savez_compressed(args.out / "tokens.npz", **tokens)
    (args.out / "lines.txt").write_text("".join(notes), encoding="utf-8")


if __name__ == "__main__":
    main()
