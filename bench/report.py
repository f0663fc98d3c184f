"""`python bench/report.py results.json`: the interleaved medians of a benchmark run as a table, with ratios."""

from __future__ import annotations

import json
import sys
from typing import Any

OURS = "sae_kernels"


def rows(result: dict[str, Any]) -> list[str]:
    """One benchmark: ours, then each opponent and how many times longer it takes."""
    info = result["extra_info"]
    times: dict[str, float] = info["interleaved_ms"]
    case = (result["param"] or "").replace("-", ", ")
    lines = [f"{result['group']}" + (f"  [{case}]" if case else "")]
    lines += [f"    {name:32}{ms:12.2f} ms{ms / times[OURS]:9.2f}x" for name, ms in times.items()]
    return lines


def report(data: dict[str, Any]) -> str:
    """The whole table; the ratio of a line is its time over ours in the same rounds."""
    results = [each for each in data["benchmarks"] if "interleaved_ms" in each["extra_info"]]
    if not results:
        return "no interleaved results in this file"
    info, cpu = results[0]["extra_info"], data["machine_info"].get("cpu", {})
    head = (
        f"{data['datetime'][:10]}   {cpu.get('brand_raw', 'unknown CPU')}, {info['threads']} threads   {info['size']}"
    )
    return "\n".join([head, *(line for result in results for line in rows(result))])


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        print(report(json.load(file)))


if __name__ == "__main__":
    main()
