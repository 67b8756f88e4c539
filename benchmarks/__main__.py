"""`python -m benchmarks NAME…|all`: run benchmarks, one script per claim.

Every other module of this folder is a benchmark, and its packages are parts of benchmarks: `main()` prints a
small table and last a line `NAME ratio=X`, the claim as one number. This file finds them and prints what
they ran on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def names() -> list[str]:
    """All benchmarks, by name."""
    here = [str(Path(__file__).parent)]
    return sorted(m.name for m in pkgutil.iter_modules(here) if not m.ispkg and not m.name.startswith("_"))


def hardware() -> str:
    """One line: date, processor, cores that this process may use, and the versions that matter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray", "numpy"))
    python = platform.python_version()
    return f"{time.strftime('%Y-%m-%d')} | {_processor()}, {cores} cores | python {python} {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks named; exit code 2 where a name is unknown."""
    known = names()
    wanted = known if list(arguments) == ["all"] else list(arguments)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        print(
            f"usage: python -m benchmarks all|NAME…, where NAME is one of: {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    print(hardware())
    for name in wanted:
        # Figures taken beside other work are worth little: the load of the last minute goes with them.
        print(f"\n== {name} (load {os.getloadavg()[0]:.1f})", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
