"""Writes small random Hugging Face folders with golden inputs and outputs into `tests/data/zoo`.

    python tests/gen/hf_small.py [NAME...]

The reference is transformers in float32 with eager attention, on the weights that are stored in the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

OUT = Path(__file__).resolve().parents[1] / "data" / "zoo"
SHAPE = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
ENCODER = {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")}
IMAGE = {k: v for k, v in ENCODER.items() if k not in ("vocab_size", "max_position_embeddings")}
MODELS = {
    # A decoder of the BERT family, with an activation that few have.
    "bert-decoder-hf": dict(model_type="bert", is_decoder=True, hidden_act="mish", **ENCODER),
    "llama-long-hf": dict(model_type="llama", rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32), **SHAPE),
    "qwen2-yarn-hf": dict(model_type="qwen2", rope_parameters=dict(
        rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=16), **SHAPE),
    # Patches that do not fill an image that is no square.
    "vit-wide-hf": dict(model_type="vit", image_size=[30, 46], patch_size=[7, 9], pooler_act="relu", **IMAGE),
    "gemma-hf": dict(model_type="gemma", **SHAPE),
    "qwen3-hf": dict(model_type="qwen3", use_sliding_window=True, sliding_window=5,
                     layer_types=["full_attention", "sliding_attention"], **SHAPE),
}


def inputs(fields, batch, seq):
    rng = np.random.default_rng([batch, seq])
    if "image_size" in fields:
        return {"pixel_values": rng.standard_normal((batch, 3, *fields["image_size"])).astype(np.float32)}
    length = np.array([seq] + [int(rng.integers(seq // 2, seq)) + 1 for _ in range(batch - 1)])
    mask = (np.arange(seq) < length[:, None]).astype(np.int64)
    feed = {"input_ids": rng.integers(3, SHAPE["vocab_size"], (batch, seq)) * mask, "attention_mask": mask}
    if fields["model_type"] == "bert":
        feed["token_type_ids"] = np.broadcast_to(np.arange(seq) > seq // 2, mask.shape).astype(np.int64)
    return feed


def write(name):
    torch.manual_seed(0)
    fields = dict(MODELS[name])
    config = AutoConfig.for_model(**fields)
    kind = AutoModel if fields["model_type"] in ("bert", "vit") else AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 1 else p.shape[-1] ** -0.5) + (p.ndim == 1))
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for suffix, size in {"": (2, 16), "_dyn": (3, 9)}.items():
        feed = inputs(fields, *size)
        cache = {} if "image_size" in fields else {"use_cache": False}
        with torch.no_grad():
            out = model(**{k: torch.from_numpy(v) for k, v in feed.items()}, **cache)
        np.savez_compressed(folder / f"inputs{suffix}.npz", **feed)
        np.savez_compressed(folder / f"outputs{suffix}.npz", **{k: v.numpy() for k, v in out.items() if torch.is_tensor(v)})
    meta = {"source": f"transformers {type(model).__name__}", "atol": 1e-4, "rtol": 1e-4}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)


for model_name in sys.argv[1:] or MODELS:
    write(model_name)
