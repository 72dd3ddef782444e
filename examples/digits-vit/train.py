"""Trains a small vision transformer on the scikit-learn digits and exports it to ONNX.

    python train.py [--epochs N] [--out DIR]

Writes `model.onnx`, `heldout.npz` and `golden.npz`. Needs torch, onnx, onnxscript, onnxruntime, scikit-learn.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SIZE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 32, 4, 64, 6, 4, 10


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def heads(self, x):
        return x.reshape(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        context = (scores.softmax(dim=-1) @ v).transpose(1, 2)
        return self.out(context.reshape(x.shape))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsViT(nn.Module):
    """64 patch tokens and a class token, pre-norm, learned positions."""

    def __init__(self):
        super().__init__()
        tokens = (SIZE // PATCH) ** 2 + 1
        self.patch = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixel_values):
        x = self.patch(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def preprocess(images):
    """[N, 8, 8] with values 0..16 -> [N, 1, 32, 32] with values -1..1"""
    x = torch.from_numpy(images).float()[:, None] / 8 - 1
    return F.interpolate(x, size=SIZE, mode="bilinear", align_corners=False)


def augment(x):
    """Small random shifts, turns and changes of size."""
    n = x.shape[0]
    angle, shift = 0.2 * torch.randn(n), 0.12 * torch.randn(n, 2)
    scale = 1 + 0.1 * torch.randn(n)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).reshape(n, 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def train(model, x, labels, epochs, batch=64):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order, total = torch.randperm(len(x)), 0.0
        for i in range(len(x) // batch):
            pick = order[i * batch:(i + 1) * batch]
            loss = F.cross_entropy(model(augment(x[pick])), labels[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2}  loss {total / (len(x) // batch):.4f}", flush=True)
    return model.eval()


def export(model, path):
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(model, (torch.zeros(2, 1, SIZE, SIZE),), dynamo=True, opset_version=18,
                                input_names=["pixel_values"], output_names=["logits"],
                                dynamic_shapes=({0: batch},), verbose=False)
    proto = program.model_proto
    graph = proto.graph    # the exporter notes where it ran in the metadata
    for item in [graph, *graph.node, *graph.value_info, *graph.input, *graph.output]:
        del item.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(1)    # the same weights on every run
    digits = load_digits()
    images, held_images, labels, held_labels = train_test_split(
        digits.images.astype(np.uint8), digits.target.astype(np.int64),
        test_size=400, stratify=digits.target, random_state=0)

    model = train(DigitsViT(), preprocess(images), torch.from_numpy(labels), args.epochs)
    export(model, args.out / "model.onnx")

    pixels = preprocess(held_images).numpy()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(args.out / "model.onnx", options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixel_values": pixels})
    np.savez_compressed(args.out / "heldout.npz", pixel_values=pixels, images=held_images, labels=held_labels)
    np.savez_compressed(args.out / "golden.npz", logits=logits)
    right = int((logits.argmax(axis=1) == held_labels).sum())
    print(f"held-out accuracy {right}/{len(held_labels)} = {100 * right / len(held_labels):.2f} %")


if __name__ == "__main__":
    main()
