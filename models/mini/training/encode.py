"""Render clips and keep their latents, for the transformer to learn from.

    python encode.py --work .work/train --clips 6144 --stills 4096

Adds shards to WORK/latents: videoNNNN and stillNNNN.safetensors with `latents` f16 [N, C, F, H, W],
already normalised (F = 5, or 1 for stills), by the basis that the autoencoder
imitates, and a .jsonl beside each with the clip of each row. Run again, it goes on where it stopped:
the seeds follow from the shard's number, so shards can also be made in parallel
(--only even / odd).
"""

import argparse
import dataclasses
import json
import os
import random
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from safetensors.torch import save_file

import spec
from basis import Basis
from world import World

SHARD, STILLS = 512, 2048


def shard(basis, world, number, rows, frames, stage, folder, name):
    """Write one shard; the sidecar first, so that a shard is never without it."""
    rng = random.Random(f"{name}{number}")
    clips = [spec.sample(rng, stage) for _ in range(rows)]
    step = 8 if frames > 1 else 64
    latents = [basis.encode(world.render(clips[i : i + step], frames)).half() for i in range(0, rows, step)]
    path = folder / f"{name}{number:04d}.safetensors"
    lines = [json.dumps(dataclasses.asdict(c)) for c in clips]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    save_file({"latents": torch.cat(latents)}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--out", type=Path, help="default: WORK/latents")
    parser.add_argument("--clips", type=int, default=6144)
    parser.add_argument("--stills", type=int, default=4096)
    parser.add_argument("--only", choices=("even", "odd"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.out or args.work / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    basis = Basis(args.work / "basis.pt")
    world = World(args.work / "sprites.pt")
    # Some videos first, then all stills, then the other videos.
    jobs = [("video", i, SHARD, 17) for i in range(-(-args.clips // SHARD))]
    jobs[2:2] = [("still", i, STILLS, 1) for i in range(-(-args.stills // STILLS))]
    for name, number, rows, frames in jobs:
        mine = args.only is None or (number % 2 == 0) == (args.only == "even")
        if mine and not (folder / f"{name}{number:04d}.safetensors").exists():
            stage = "simple" if name == "video" and number < 2 else "main"
            shard(basis, world, number, rows, frames, stage, folder, name)
            print(f"{name}{number:04d}: {rows}", flush=True)


if __name__ == "__main__":
    main()
