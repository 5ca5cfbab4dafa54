"""Render clips and keep their latents, for the transformer to learn from.

    python encode.py --work .work/train --clips 6144 --stills 4096

Adds shards to WORK/latents: videoNNNN and stillNNNN.safetensors with `latents` f16 [N, C, F, H, W],
already normalised (F = 5, or 1 for stills), by the basis that the autoencoder
imitates, and a .jsonl beside each with the clip of each row. Each clip is there twice, the second time
mirrored. Videos also have `keys` [N, C, 2, H, W]: their middle and last frames as pictures. Run again, it goes on where it stopped:
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
from world import FLIP, World

SHARD, STILLS = 256, 1024  # clips rendered for one file
MIRROR = {"left": "right", "right": "left", "pan_left": "pan_right", "pan_right": "pan_left"}


def mirrored(clip):
    """What a clip says, seen in a mirror."""
    turn = lambda word: MIRROR.get(word, word)
    actors = [dataclasses.replace(a, direction=turn(a.direction)) for a in clip.actors]
    return dataclasses.replace(clip, actors=actors[::-1] if clip.relation == "facing" else actors, camera=turn(clip.camera))


def both(basis, video, where):
    """Latents of a clip and of its mirror image, interleaved."""
    other = where.flip(-1).clone()
    other[:, FLIP] *= -1
    pair = torch.stack([basis.encode(video, where), basis.encode(video.flip(-1), other)], 1)
    return pair.flatten(0, 1).half()


def shard(basis, world, number, rows, frames, stage, folder, name):
    """Write one shard; the sidecar first, so that a shard is never without it."""
    rng = random.Random(f"{name}{number}")
    clips = [spec.sample(rng, stage) for _ in range(rows)]
    step = 8 if frames > 1 else 64
    latents, keys = [], []
    for i in range(0, rows, step):
        video, where = world.render(clips[i : i + step], frames, parts=True)
        latents.append(both(basis, video, where))
        if frames > 1:
            at = lambda f: both(basis, video[:, :, f : f + 1], where[:, :, f : f + 1])
            keys.append(torch.cat([at(frames // 2), at(frames - 1)], 2))
    path = folder / f"{name}{number:04d}.safetensors"
    lines = [json.dumps(dataclasses.asdict(c)) for one in clips for c in (one, mirrored(one))]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")
    save_file({"latents": torch.cat(latents)} | ({"keys": torch.cat(keys)} if keys else {}), path.with_suffix(".part"))
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
