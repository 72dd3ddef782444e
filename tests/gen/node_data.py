"""Puts the ONNX node test cases of the `onnx` 1.22.0 wheel into a folder.

    python3 tests/gen/node_data.py [--wheel FILE] models/onnx-node

One sub-folder per case: `model.onnx` and `test_data_set_N/{input,output}_M.pb`. The wheel is downloaded with pip unless
that version of `onnx` is installed or `--wheel` names a file. Needs only the standard library.
"""

import argparse
import shutil
from importlib import metadata
from pathlib import Path

from wheel import unpack

VERSION = "1.22.0"
PREFIX = "onnx/backend/test/data/node/"


def installed():
    """The folder of the cases in the installed package, if it is the right version."""
    try:
        dist = metadata.distribution("onnx")
    except metadata.PackageNotFoundError:
        return None
    folder = Path(dist.locate_file(PREFIX))
    return folder if dist.version == VERSION and folder.is_dir() else None


def write(out, wheel=None):
    source = None if wheel else installed()
    if source:
        shutil.copytree(source, out, dirs_exist_ok=True)
    else:
        unpack(f"onnx=={VERSION}", PREFIX, out, wheel)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheel", type=Path)
    args = parser.parse_args()
    write(args.out, args.wheel)
    cases = sum(1 for _ in args.out.glob("*/model.onnx"))
    print(f"{args.out}: {cases} cases")


if __name__ == "__main__":
    main()
