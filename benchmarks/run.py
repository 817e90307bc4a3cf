"""`make bench`: every benchmark, one after the other, each printing its table."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent

for name in ("dual", "scoring", "train_step"):
    print(f"\n## {name}\n", flush=True)
    sys.argv = [name]
    runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
