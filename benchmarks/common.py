"""What the benchmarks share: options, interleaved timing, Markdown tables, and a header that names the machine."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum over the repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def options(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"of every measurement; default {repeats}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; default all cores")
    parser.add_argument("--quick", action="store_true", help="one repeat, to see that the benchmark runs")
    parser.add_argument("--bare", action="store_true", help="leave out the header that names the machine")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed options, in force: threads are set, and ``--quick`` has become the number of repeats."""
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    if parsed.quick:
        parsed.repeats = 1
    if not parsed.bare:
        print(header(parsed.threads), flush=True)
    return parsed


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def interleave(
    variants: Mapping[str, Callable[[], float]], repeats: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """What each variant returns, A/B/A/B: a machine that slows down for a while slows all variants alike.

    Args:
        warm_up: call each variant once before, and forget that.
    """
    if warm_up:
        for variant in variants.values():
            variant()
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            found[name].append(variant())
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Quotients of values that were measured one after the other."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    # Imported late: matplotlib, which reports load, has no business in a process whose memory is measured.
    from autosparse.report.tables import markdown_table

    return markdown_table(columns, [[str(cell) for cell in row] for row in rows])


def processor() -> str:
    """The processor's model where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def header(threads: int) -> str:
    """Date, processor, cores, torch, threads, and how busy the machine was when the benchmark began."""
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    facts = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "torch": f"{torch.__version__}, {threads} threads, {torch.backends.cpu.get_cpu_capability()}",
        "load average at the start (1, 5, 15 minutes)": load,
    }
    return "".join(f"- {key}: {value}\n" for key, value in facts.items())
