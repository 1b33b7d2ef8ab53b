"""What the tables of the benchmarks say of the machine they were measured on, and how much memory a process has held."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def about_machine(*packages: str) -> str:
    """Processor, cores, and the versions of python, this package and others."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    found = ", ".join(f"{name} {version(name)}" for name in ("openbrainmass", *packages))
    return f"{processor}, {os.cpu_count()} cores; python {platform.python_version()}, {found}"


def peak_mib() -> float:
    """Largest memory that this process has held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
