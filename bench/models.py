"""Builds the models of the benchmarks and of the tests as ONNX files in `models/` (ignored by git).

    python bench/models.py [--models DIR] NAME...        # no name: all

Weights are random (fixed seed) except for `minilm`, which exports the trained folder `models/minilm` that
`tests/gen/fetch.py` unpacks. Batch and sequence are symbolic. A file that is already there is kept.

NAME-sparse-80 and NAME-sparse-90 are the model after 80 or 90 % of the weights of its products were pruned one by one.
NAME-int8 is the model with static 8-bit quantisation of every product, those of attention included (QDQ: u8
activations, s8 weights per output channel), NAME-linear8 with that of the products with weights alone. NAME-int8-80,
NAME-int8-90 and so on are the same after 80 or 90 % of the weights were pruned in 4x1 blocks: four neighbours along N of
a [K, N] weight are kept or zeroed together. Other blocks are named behind the share: NAME-int8-80-1x4 (four along K),
NAME-int8-80-1x1 (one by one), NAME-sparse-80-4x1.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from transformers import (BertConfig, BertModel, BertTokenizer, GPT2Config, GPT2LMHeadModel, ViTConfig,
                          ViTForImageClassification)

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
OPSET = 17


def randomise(model, seed=0):
    """Gives every parameter a value that matters: no zero biases, no unit scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1 and name.endswith("weight"):    # scale of a norm
                p.copy_(1 + 0.1 * noise)
            elif p.ndim == 1:
                p.copy_(0.05 * noise)
            elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
                p.copy_(0.05 * noise)
            else:
                p.copy_(0.7 * noise / p[0].numel() ** 0.5)
    return model.eval()


class Text(torch.nn.Module):
    """A BERT with positional inputs and tensors as outputs."""

    inputs = {name: ("batch", "seq") for name in ("input_ids", "attention_mask", "token_type_ids")}
    outputs = {"last_hidden_state": ("batch", "seq"), "pooler_output": ("batch",)}

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return out.last_hidden_state, out.pooler_output

    def example(self):
        ids = torch.arange(2 * 9).reshape(2, 9) + 5
        return ids, torch.ones_like(ids), torch.zeros_like(ids)


class Image(torch.nn.Module):
    inputs = {"pixel_values": ("batch",)}
    outputs = {"logits": ("batch",)}

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits

    def example(self):
        return (torch.randn(2, 3, 224, 224),)


class Prefill(torch.nn.Module):
    """A whole pass of a causal language model: logits and the cache."""

    inputs = {name: ("batch", "seq") for name in ("input_ids", "attention_mask")}

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.outputs = {"logits": ("batch", "seq")}
        for i in range(model.config.n_layer):
            self.outputs |= {f"present.{i}.{kind}": ("batch", None, "seq") for kind in ("key", "value")}

    def forward(self, input_ids, attention_mask):
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True)
        cache = [t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)]
        return out.logits, *cache

    def example(self):
        ids = torch.arange(2 * 9).reshape(2, 9) + 5
        return ids, torch.ones_like(ids)


class Cached(torch.nn.Module):
    """Attention of one query to a cache whose key heads serve four query heads each, as a step of Llama 3 8B has it."""

    heads, key_heads, size = 32, 8, 128
    inputs = {"query": ("batch",), "keys": ("batch", None, "past"), "values": ("batch", None, "past")}
    outputs = {"context": ("batch",)}

    def forward(self, query, keys, values):
        batch, _, past, _ = keys.shape
        grouped = (batch, self.key_heads, self.heads // self.key_heads, past, self.size)
        keys, values = (x[:, :, None].expand(grouped).reshape(batch, self.heads, past, self.size) for x in (keys, values))
        weights = torch.softmax(query @ keys.transpose(2, 3) * self.size ** -0.5, dim=-1)
        return (weights @ values).transpose(1, 2).reshape(batch, 1, self.heads * self.size)

    def example(self):
        query, cache = torch.randn(2, self.heads, 1, self.size), torch.randn(2, 2, self.key_heads, 9, self.size)
        return query, *cache


def bert(**shape):
    return Text(randomise(BertModel(BertConfig(attn_implementation="eager", **shape))))


def bert_base(_):
    return bert()


def bert_distil(_):
    """The layers of DistilBERT."""
    return bert(num_hidden_layers=6)


def bert_mini(_):
    return bert(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)


def minilm_random(_):
    return bert(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def trained_minilm(models):
    folder = models / "minilm"
    if not (folder / "config.json").is_file():
        sys.exit(f"{folder} is missing: run tests/gen/fetch.py first")
    return folder


def minilm(models):
    folder = trained_minilm(models)
    return Text(BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval())


def deit_s(_):
    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                       image_size=224, patch_size=16, num_labels=1000, attn_implementation="eager")
    return Image(randomise(ViTForImageClassification(config)))


def gpt2(_):
    return Prefill(randomise(GPT2LMHeadModel(GPT2Config(attn_implementation="eager"))))


# name -> (builder, folder below models/); the trained MiniLM's own folder holds Hugging Face files only
BUILDERS = {
    "bert-base": (bert_base, "bert-base"),
    "bert-distil": (bert_distil, "bert-distil"),
    "bert-mini": (bert_mini, "bert-mini"),
    "minilm": (minilm, "minilm-golden"),
    "minilm-random": (minilm_random, "minilm-random"),
    "deit-s": (deit_s, "deit-s"),
    "gpt2": (gpt2, "gpt2"),
    "cached-attention": (lambda _: Cached(), "cached-attention"),
}


# kind -> blocks of outputs by inputs that are pruned together, the usual ones first
BLOCKS = {"int8": ("4x1", "1x4", "1x1"), "linear8": ("4x1", "1x4", "1x1"), "sparse": ("1x1", "4x1")}
# variant -> kind, share of the weights that is pruned, blocks
VARIANTS = {f"-{kind}": (kind, 0, "1x1") for kind in ("int8", "linear8")} | {
    f"-{kind}-{share}{'' if block == blocks[0] else '-' + block}": (kind, share / 100, block)
    for kind, blocks in BLOCKS.items() for block in blocks for share in (80, 90)}
COMPRESSED = ("bert-base", "bert-distil", "bert-mini", "minilm", "deit-s")
NAMES = [*BUILDERS, *(name + variant for name in COMPRESSED for variant in VARIANTS)]


def export(model, path):
    axes = {name: {i: dim for i, dim in enumerate(dims) if dim}
            for name, dims in (model.inputs | model.outputs).items()}
    with torch.no_grad():
        torch.onnx.export(model, model.example(), path, dynamo=False, opset_version=OPSET, dynamic_axes=axes,
                          input_names=list(model.inputs), output_names=list(model.outputs))


def prune(weight, share, outputs, inputs):
    """Zeroes the given share of the blocks of a [K, N] weight: those of the smallest magnitude."""
    k, n = weight.shape
    blocks = weight.reshape(k // inputs, inputs, n // outputs, outputs)
    size = np.abs(blocks).sum(axis=(1, 3), keepdims=True)
    return (blocks * (size >= np.quantile(size, share))).reshape(k, n)


class Calibration(quantization.CalibrationDataReader):
    """Sentences of the test data, or random images."""

    def __init__(self, model, models, count=8):
        names = {value.name for value in model.graph.input}
        if "pixel_values" in names:
            rng = np.random.default_rng(0)
            feeds = [{"pixel_values": rng.standard_normal((2, 3, 224, 224)).astype(np.float32)} for _ in range(count)]
        else:
            tokenizer = BertTokenizer.from_pretrained(trained_minilm(models))
            lines = (ROOT / "tests" / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
            batches = [lines[i::count] for i in range(count)]
            feeds = [dict(tokenizer(batch, padding=True, return_tensors="np")) for batch in batches]
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def compress(source, path, kind, share, block, models):
    """Prunes every MatMul that has a constant weight, and quantises what the kind says."""
    model = onnx.load(source)
    weights = {w.name: w for w in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    if share > 0:
        for node in nodes:
            weight = weights[node.input[1]]
            pruned = prune(onnx.numpy_helper.to_array(weight), share, *map(int, block.split("x")))
            weight.CopyFrom(onnx.numpy_helper.from_array(pruned, weight.name))
    if kind == "sparse":
        return onnx.save(model, path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pruned.onnx"
        onnx.save(model, file)
        quantization.quantize_static(
            file, path, Calibration(model, models), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=[n.name for n in nodes] if kind == "linear8" else None,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8)


def build(name, models=MODELS):
    """The path of the model's ONNX file, which is written first if it is not there."""
    variant = max((v for v in VARIANTS if name.endswith(v)), key=len, default="")
    base = name.removesuffix(variant)
    folder = name if variant else BUILDERS[name][1]
    path = models / folder / "model.onnx"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    if variant:
        compress(build(base, models), part, *VARIANTS[variant], models)
    else:
        export(BUILDERS[name][0](models), part)
    part.rename(path)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--models", type=Path, default=MODELS)
    args = parser.parse_args()
    for name in args.names or NAMES:
        if name not in NAMES:
            parser.error(f"no model `{name}`; there are {', '.join(NAMES)}")
        path = build(name, args.models)
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
