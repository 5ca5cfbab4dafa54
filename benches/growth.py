#!/usr/bin/env python3
"""How time and memory of a render grow with frames, pixels and steps: the embedded model, one thing changed at a time.

  cargo build --release
  python benches/growth.py [--sora target/release/sora] [--rounds 3]

Prints medians over rounds that take turns, and the exponents of power laws fitted to them: 0 doesn't grow, 1 in step. Needs nothing but Python, on Linux or macOS.
"""
import argparse
import math
import os
import statistics
import sys
import tempfile
import time

PLAIN = dict(frames=17, size="128x128", steps=24)
SERIES = {
    "frames": [("frames", n, n) for n in (17, 33, 65, 129)],
    "pixels": [("size", f"{n}x{n}", n * n) for n in (96, 128, 192, 256)],
    "steps": [("steps", n, n) for n in (6, 12, 24, 48)],
}


def run(sora, folder, options):
    """Seconds and peak MiB of one process."""
    words = [sora, "gen", "pirate ships in coffee", "--seed", "1", "--quiet", "-o", f"{folder}/clip.y4m"]
    for key, value in options.items():
        words += [f"--{key}", str(value)]
    begin = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(sora, words, os.environ, file_actions=silent)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(words)}")
    peak = usage.ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return time.perf_counter() - begin, peak


def slope(xs, ys):
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys)) / sum((a - x) ** 2 for a in xs)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--sora", default="target/release/sora")
    ap.add_argument("--rounds", type=int, default=3)
    args = ap.parse_args()
    print("| | " + "value | seconds | MiB |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, series in SERIES.items():
            told = {value: [] for _, value, _ in series}
            for _ in range(args.rounds):
                for key, value, _ in series:
                    told[value].append(run(args.sora, folder, {**PLAIN, key: value}))
            seconds = [statistics.median(t for t, _ in told[value]) for _, value, _ in series]
            peaks = [statistics.median(m for _, m in told[value]) for _, value, _ in series]
            for (_, value, _), t, m in zip(series, seconds, peaks):
                print(f"| {name} | {value} | {t:.2f} | {m:.0f} |", flush=True)
            xs = [x for _, _, x in series]
            print(f"| {name} | exponent | {slope(xs, seconds):.2f} | {slope(xs, peaks):.2f} |", flush=True)


if __name__ == "__main__":
    main()
