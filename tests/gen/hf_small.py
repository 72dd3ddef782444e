"""Writes small random Hugging Face folders with golden inputs and outputs into `tests/data/zoo`.

    python tests/gen/hf_small.py [NAME...]

The reference is transformers in float32 with eager attention, on the weights that are stored in the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

OUT = Path(__file__).resolve().parents[1] / "data" / "zoo"
SHAPE = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
ENCODER = {k: v for k, v in SHAPE.items() if k not in ("num_key_value_heads", "head_dim")}
IMAGE = {k: v for k, v in ENCODER.items() if k not in ("vocab_size", "max_position_embeddings")}
WINDOWS = dict(sliding_window=5, layer_types=["full_attention", "sliding_attention"])
# Each architecture with the fields of its config.
MODELS = {
    # A decoder of the BERT family, with an activation that few have.
    "bert-decoder-hf": ("BertModel", dict(is_decoder=True, hidden_act="mish", **ENCODER)),
    "bert-words-hf": ("BertForMaskedLM", dict(ENCODER)),
    "roberta-spans-hf": ("RobertaForQuestionAnswering", dict(**ENCODER)),
    "distilbert-choice-hf": ("DistilBertForMultipleChoice", dict(
        vocab_size=96, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)),
    "electra-hf": ("ElectraForPreTraining", dict(embedding_size=24, **ENCODER)),
    # Three layers of two groups, with two layers each.
    "albert-words-hf": ("AlbertForMaskedLM", dict(
        embedding_size=16, num_hidden_groups=2, inner_group_num=2, **{**ENCODER, "num_hidden_layers": 3})),
    "mpnet-classes-hf": ("MPNetForSequenceClassification", dict(num_labels=3, **ENCODER)),
    "modernbert-words-hf": ("ModernBertForMaskedLM", dict(
        local_attention=8, norm_bias=True, pad_token_id=0, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
        **{**ENCODER, "num_hidden_layers": 3})),
    "llama-long-hf": ("LlamaForCausalLM", dict(rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32), **SHAPE)),
    "qwen2-yarn-hf": ("Qwen2ForCausalLM", dict(rope_parameters=dict(
        rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=16), **SHAPE)),
    # Patches that do not fill an image that is no square.
    "vit-wide-hf": ("ViTModel", dict(image_size=[30, 46], patch_size=[7, 9], pooler_act="relu", **IMAGE)),
    # Gated units, and registers under the classifier of both.
    "dinov2-gated-hf": ("Dinov2Model", dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7, use_swiglu_ffn=True)),
    "dinov2-registers-hf": ("Dinov2WithRegistersForImageClassification", dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28, patch_size=7,
        num_register_tokens=3)),
    "clip-hf": ("CLIPModel", dict(
        projection_dim=24, text_config=dict(eos_token_id=95, **ENCODER), vision_config=dict(image_size=28, patch_size=7, **IMAGE))),
    "siglip-hf": ("SiglipModel", dict(text_config=dict(ENCODER), vision_config=dict(image_size=28, patch_size=7, **IMAGE))),
    "gpt2-classes-hf": ("GPT2ForSequenceClassification", dict(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0)),
    # Norms behind the sums, and embeddings of a width of their own.
    "opt-behind-hf": ("OPTForCausalLM", dict(
        vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        do_layer_norm_before=False, word_embed_proj_dim=24, pad_token_id=0)),
    "gpt-neox-hf": ("GPTNeoXForCausalLM", dict(rope_parameters=dict(
        rope_type="default", rope_theta=10_000.0, partial_rotary_factor=0.5), **ENCODER)),
    "falcon-groups-hf": ("FalconForCausalLM", dict(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, ffn_hidden_size=48,
        new_decoder_architecture=True, max_position_embeddings=64)),
    "gemma-hf": ("GemmaForCausalLM", dict(SHAPE)),
    "gemma2-hf": ("Gemma2ForCausalLM", dict(sliding_window=5, query_pre_attn_scalar=12, **SHAPE)),
    "gemma3-hf": ("Gemma3ForCausalLM", dict(WINDOWS, **SHAPE)),
    "qwen3-hf": ("Qwen3ForCausalLM", dict(use_sliding_window=True, **WINDOWS, **SHAPE)),
    # The longer of both inputs turns by the factors for long texts.
    "phi3-long-hf": ("Phi3ForCausalLM", dict(
        rope_parameters=dict(
            rope_type="longrope", rope_theta=10_000.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.3],
            long_factor=[1.5, 2.0, 4.0]),
        original_max_position_embeddings=12, pad_token_id=0, **{k: v for k, v in SHAPE.items() if k != "head_dim"})),
    "mixtral-hf": ("MixtralForCausalLM", dict(num_local_experts=4, **{**SHAPE, "intermediate_size": 24})),
    # Experts in the second layer.
    "qwen2-moe-hf": ("Qwen2MoeForCausalLM", dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=24,
        decoder_sparse_step=2, **{k: v for k, v in SHAPE.items() if k != "head_dim"})),
}


def inputs(model, batch, seq):
    rng = np.random.default_rng([batch, seq])
    config, feed = model.config, {}
    vision = getattr(config, "vision_config", config)
    if hasattr(vision, "image_size"):
        size = vision.image_size if isinstance(vision.image_size, (list, tuple)) else [vision.image_size] * 2
        images = batch + 1 if vision is not config else batch
        feed["pixel_values"] = rng.standard_normal((images, 3, *size)).astype(np.float32)
    if vision is not config or not feed:
        length = np.array([seq] + [int(rng.integers(seq // 2, seq)) + 1 for _ in range(batch - 1)])
        mask = (np.arange(seq) < length[:, None]).astype(np.int64)
        feed["input_ids"] = rng.integers(3, SHAPE["vocab_size"], (batch, seq)) * mask
        feed["attention_mask"] = mask
        if config.model_type in ("albert", "bert", "electra"):
            feed["token_type_ids"] = np.broadcast_to(np.arange(seq) > seq // 2, mask.shape).astype(np.int64)
        if type(model).__name__.endswith("MultipleChoice"):
            feed = {k: np.stack([v, np.roll(v, 1, axis=0)], axis=1) for k, v in feed.items()}
    return feed


def write(name, architecture, fields, out=OUT, feed=inputs):
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    model = kind._from_config(kind.config_class(**fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 0:
                p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 1 else p.shape[-1] ** -0.5) + (p.ndim == 1))
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for suffix, size in {"": (2, 16), "_dyn": (3, 9)}.items():
        given = feed(model, *size)
        cache = {"use_cache": False} if "input_ids" in given and "pixel_values" not in given else {}
        with torch.no_grad():
            got = model(**{k: torch.from_numpy(v) for k, v in given.items()}, **cache)
        np.savez_compressed(folder / f"inputs{suffix}.npz", **given)
        np.savez_compressed(folder / f"outputs{suffix}.npz", **{k: v.numpy() for k, v in got.items() if torch.is_tensor(v)})
    meta = {"source": f"transformers {type(model).__name__}", "atol": 1e-4, "rtol": 1e-4}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    for model_name in sys.argv[1:] or MODELS:
        write(model_name, *MODELS[model_name])
