"""End-to-end speed while training: Breakout, shallow network, for some minutes.

    python benchmarks/breakout.py [--seconds 180] [--run-dir DIR] [-- flags for pronk train]

Prints JSON: agent steps per second after the first record, seconds to the first update (run it
twice for a warm compilation cache), and the process's resident memory over time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Train in a process of its own, sample its memory, interrupt it as a user would."""
    parser = argparse.ArgumentParser(description="End-to-end speed while training on Breakout.")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--run-dir", help="keep the run here; else it is deleted")
    parser.add_argument("flags", nargs="*", help="flags for pronk train, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pronk.cli", "train", "impala", "ALE/Breakout-v5"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--run-dir", args.run_dir or directory, *args.flags],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first_update = None
        for line in process.stdout:
            if line.startswith("first update"):
                first_update = time.perf_counter() - started
                break
        # Keep reading: a full pipe would block the run.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        reader.start()
        resident = []
        end = time.monotonic() + args.seconds
        while time.monotonic() < end and process.poll() is None:
            resident.append(round(resident_bytes(process.pid) / 2**20))
            time.sleep(5)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        lines = (Path(args.run_dir or directory) / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        a, b = records[1], records[-1]
        print(
            json.dumps(
                {
                    "seconds_to_first_update": round(first_update or float("nan"), 1),
                    "steps_per_second": round(
                        (b["steps"] - a["steps"]) / (b["wall_seconds"] - a["wall_seconds"])
                    ),
                    "policy_lag": b["policy_lag"],
                    "bound_by": b["bound_by"],
                    "resident_mib": resident,
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
