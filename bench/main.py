"""The bench table: what is promised, what was measured here, on which machine.

    smartrouter bench                     # everything, two hours on two idle cores
    smartrouter bench world features      # some of it
    python -m bench.main --part model     # one part, as JSON, in this process

Each part runs in a process of its own, so that memory and warm-up of one do not colour another. A bar that is missed is
printed as missed; nothing here is a test, because machines are shared and noisy.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import model_bench, parts
from smartrouter.core.cards import mask_card_numbers

ROOT = Path(__file__).resolve().parents[1]


def contest() -> list[dict[str, Any]]:
    """Our router against the baseline policies; see bench.contest_bench."""
    from bench.contest_bench import contest

    return contest()


def value() -> list[dict[str, Any]]:
    """Success rate and cost per success on the real attempts; see bench.value_bench."""
    from bench.value_bench import value

    return value()


def detect() -> list[dict[str, Any]]:
    """How soon a failing processor is found, and how often for nothing; see bench.outage_bench."""
    from bench.outage_bench import detect

    return detect()


def recovery() -> list[dict[str, Any]]:
    """Probes, restoration and mistakes after an outage; see bench.recovery_bench."""
    from bench.recovery_bench import recovery

    return recovery()


def decide() -> list[dict[str, Any]]:
    """What states cost a decision; see bench.decide_bench."""
    from bench.decide_bench import decide_cost

    return decide_cost()


def approval() -> list[dict[str, Any]]:
    """Delay and false alarms of the approval detector, and what hits everybody; see bench.approval_bench."""
    from bench.approval_bench import approval

    return approval()


def feedback() -> list[dict[str, Any]]:
    """What the processors' health adds to a feedback transaction; see bench.health_bench."""
    from bench.health_bench import feedback

    return feedback()


def durability() -> list[dict[str, Any]]:
    """Whether killed workers lose an outcome, double one or leave another state; see bench.health_bench."""
    from bench.health_bench import durability

    return durability()


def shared_health() -> list[dict[str, Any]]:
    """What a step of the processors' health costs in Redis, and how soon others see it; see bench.redis_bench."""
    from bench.redis_bench import shared_health

    return shared_health()


def alerts() -> list[dict[str, Any]]:
    """Whether all is told after a target was down, and whether payments notice; see bench.alerts_bench."""
    from bench.alerts_bench import alerts

    return alerts()


def drills() -> list[dict[str, Any]]:
    """Outage drills over many seeds, against usual rules; see bench.drill_bench."""
    from bench.drill_bench import drills

    return drills()


def favoured() -> list[dict[str, Any]]:
    """Black holes at the processor that all payments prefer; see bench.favoured_bench."""
    from bench.favoured_bench import favoured

    return favoured()


PARTS = {
    "world": parts.world,
    "features": parts.features,
    "request": parts.request,
    "parity": parts.parity,
    "trainer": model_bench.trainer,
    "lift": model_bench.lift,
    "families": model_bench.families,
    "contest": contest,
    "value": value,
    "recovery": recovery,
    "approval": approval,
    "decide": decide,
    "real": model_bench.real,
    "ope": parts.ope,
    "retrain": model_bench.retrain,
    "retrain_alone": model_bench.retrain_alone,
    "detect": detect,
    "favoured": favoured,
    "feedback": feedback,
    "durability": durability,
    "redis": shared_health,
    "alerts": alerts,
    "drill": drills,
    "serve": parts.serve,
    "fresh": parts.fresh,
}


def machine() -> str:
    """Return one line about this machine: cores, memory, load, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    model = next(
        (line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, load {load}, Python {platform.python_version()}"


def cpuinfo() -> list[str]:
    """Return the lines of /proc/cpuinfo, none where there is no such file."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def run_part(name: str) -> list[dict[str, Any]]:
    """Run one part in a process of its own; a part that fails becomes a row that says so."""
    began = time.monotonic()
    print(f"bench: {name} …", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.main", "--part", name], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return [parts.row(name, "-", f"the part failed with exit code {done.returncode}", None)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    mark = {True: "met", False: "MISSED", None: ""}
    lines = [f"| {r['what']} | {r['bar']} | {r['measured']} | {mark[r['met']]} |" for r in rows]
    return "\n".join(["| what | bar | measured | |", "| --- | --- | --- | --- |", *lines])


def main(names: list[str]) -> int:
    """Run the named parts (all without names) and print the table; 0 even if a bar is missed, 2 for an unknown name."""
    if names[:1] == ["--part"] and len(names) == 2 and names[1] in PARTS:
        print(json.dumps(PARTS[names[1]]()))
        return 0
    unknown = [n for n in names if n not in PARTS]
    if unknown:
        given = mask_card_numbers(", ".join(unknown))
        print(f"bench: {given} given. Expected some of {', '.join(PARTS)}. Correct the names.", file=sys.stderr)
        return 2
    print(f"machine: {machine()}\n")
    rows = [r for name in (names or PARTS) for r in run_part(name)]
    text = table(rows)
    print(text)
    out = ROOT / "var" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"machine: {machine()}\n\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
