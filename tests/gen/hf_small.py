"""Writes small random Hugging Face folders with golden inputs and outputs into `tests/data/zoo`.

    python tests/gen/hf_small.py [NAME...]

The reference is transformers in float32 with eager attention, on the weights that are stored in the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).resolve().parents[1] / "data" / "zoo"
SHAPE = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
MODELS = {
    "gemma-hf": dict(model_type="gemma", **SHAPE),
    "qwen3-hf": dict(model_type="qwen3", use_sliding_window=True, sliding_window=5,
                     layer_types=["full_attention", "sliding_attention"], **SHAPE),
}


def inputs(batch, seq):
    rng = np.random.default_rng([batch, seq])
    length = np.array([seq] + [int(rng.integers(seq // 2, seq)) + 1 for _ in range(batch - 1)])
    mask = (np.arange(seq) < length[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(3, SHAPE["vocab_size"], (batch, seq)) * mask, "attention_mask": mask}


def write(name):
    torch.manual_seed(0)
    fields = dict(MODELS[name])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 1 else p.shape[-1] ** -0.5) + (p.ndim == 1))
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for suffix, size in {"": (2, 16), "_dyn": (3, 9)}.items():
        feed = inputs(*size)
        with torch.no_grad():
            logits = model(**{k: torch.from_numpy(v) for k, v in feed.items()}, use_cache=False).logits
        np.savez_compressed(folder / f"inputs{suffix}.npz", **feed)
        np.savez_compressed(folder / f"outputs{suffix}.npz", logits=logits.numpy())
    meta = {"source": f"transformers {type(model).__name__}", "atol": 1e-4, "rtol": 1e-4}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)


for model_name in sys.argv[1:] or MODELS:
    write(model_name)
