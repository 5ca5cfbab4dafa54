"""Make the clips of the prompt list with `sora` and score them.

    python score.py --sora target/release/sora --train .work/train --work .work/judge

Needs what `train.py` leaves in WORK. Clips stay in WORK/clips (a folder of PNG frames each, made by `sora batch`), so that
it can be stopped and started again; --keep makes none and scores those that are there. Writes WORK/scores.json and
scores.md. Beside the model's clips stand renders of the same prompts, as they are and through the autoencoder: what the
judge says of clips that are right.
"""

import argparse
import json
import os
import random
import subprocess
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import prompts
from recognisers import FRAMES, HEADS, LUMA, MOVES, SIDE, distance, labels, load, look, right, shrink
from train import Autoencoder, array, say
from world import World

KINDS = ("clips", "renders", "passed")
TITLES = {"clips": "the model's clips", "renders": "renders of the same prompts", "passed": "those through the autoencoder"}


def flagged(rows):
    """Plain prompts for one subject with a camera move, which is said by `--camera` instead of by words."""
    out = []
    for r in rows:
        if r["kind"] == "one" and not r["plain"] and r["camera"] != "static":
            text = r["text"].replace(", " + prompts.CAMERA[r["camera"]], "")
            out.append({**r, "id": "flag-" + r["id"], "text": text, "plain": r["id"], "flag": r["camera"].replace("_", " ")})
    return out


def make(rows, sora, work, threads, steps):
    """Have `sora batch` make what isn't there."""
    jobs = work / "clips.jsonl"
    job = lambda r: {"prompt": r["text"], "seed": r["seed"]} | ({"camera": r["flag"]} if "flag" in r else {}) | {"output": r["id"] + "/"}
    jobs.write_text("".join(json.dumps(job(r)) + "\n" for r in rows))
    extra = ["--steps", str(steps)] if steps else []
    subprocess.run([sora, "batch", jobs, "--folder", work / "clips", "--threads", str(threads), "--progress", "none", *extra], check=True)


def clip_frames(folder):
    """Frames of a clip that `sora` made: u8 [FRAMES, 3, SIDE, SIDE], or None."""
    files = sorted(folder.glob("*.png"))
    if len(files) != FRAMES:
        return None
    video = torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in files])
    return shrink(video.permute(3, 0, 1, 2)[None].float() / 127.5 - 1)[0]


def references(rows, need, train, work):
    """Renders of the first prompts, the same through the autoencoder, others with another seed; and its PSNR, dB a clip."""
    shape = (len(rows), FRAMES, 3, SIDE, SIDE)
    made = {}
    for name in ("renders", "passed", "others"):
        made[name], done = array(work / f"list-{name}.npy", shape)
    kept = work / "list-psnr.json"
    psnr = json.loads(kept.read_text())[:done] if kept.exists() else []
    done = min(done, len(psnr))
    world, coder = World(train / "sprites.pt"), Autoencoder()
    for i in range(done, need):
        clip = prompts.clip_of(rows[i])
        seeds = random.Random(f"list {i}")
        pair = []
        for _ in range(2):
            clip.seed = seeds.getrandbits(31)
            pair.append(world.render([clip], FRAMES))
        again = coder(pair[0])
        psnr.append(float(10 * torch.log10(4 / (again - pair[0]).pow(2).mean())))
        for name, video in zip(("renders", "passed", "others"), (pair[0], again, pair[1])):
            made[name][i] = shrink(video)[0].numpy()
        if (i + 1) % 20 == 0 or i + 1 == need:
            kept.write_text(json.dumps(psnr))
            for name, kind in made.items():
                kind.flush()
                (work / f"list-{name}.done").write_text(str(i + 1))
            say(f"rendered {i + 1} of {need} references")
    return made, psnr


def quality(frames, seen):
    """What needs no label, of u8 [FRAMES, 3, SIDE, SIDE].

    flicker: change from frame to frame where no subject ever is, in 8-bit levels.
    smooth:  how well a frame is the mean of its neighbours, per cent.
    change:  the largest twentieth of the change over two frames, in levels.
    """
    x = frames.float()
    still = F.interpolate(seen["still"][None, None].float(), (SIDE, SIDE))[0]
    step = (x[1:] - x[:-1]).abs().mean(1)
    between = (x[1:-1] - (x[:-2] + x[2:]) / 2).abs().mean()
    moved = ((x[2:] - x[:-2]) * LUMA).sum(1).abs().flatten()
    return {
        "flicker": float((step * still).sum() / still.sum() / len(step)) if still.sum() > 0 else None,
        "smooth": float(100 * (1 - between / 255)),
        "change": float(moved.topk(len(moved) // 20).values.mean()),
    }  # fmt: skip


def consistency(identity, middle):
    """Cosines of a subject's features with the first and with the frame before, as VBench counts: per cent."""
    x = F.normalize(identity - middle, dim=1)
    return float(100 * ((x[1:] * x[0]).sum(1) + (x[1:] * x[:-1]).sum(1)).mean() / 2)


def frechet(a, b):
    """Fréchet distance of two sets of features, in units of b's spread."""
    scale = b.std(0).clamp(min=1e-6)
    a, b = (a / scale).double(), (b / scale).double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    value, vector = torch.linalg.eigh(ca)
    root = vector * value.clamp(min=0).sqrt() @ vector.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).pow(2).sum() + ca.trace() + cb.trace() - 2 * cross)


def share(rows, said, key, which=lambda r: True):
    """Share of right answers in per cent, and how many were asked."""
    answers = [said[r["id"]][key] for r in rows if r["id"] in said and which(r) and said[r["id"]][key] is not None]
    return [round(100 * float(np.mean(answers)), 1) if answers else None, len(answers)]


def moves(r):
    return r["actors"][0][2] != "none"


def scores(rows, said):
    """The table's first part, of plain prompts."""
    return {
        "subject, one asked for": share(rows, said, "subjects", lambda r: r["kind"] == "one"),
        "subject, two or three of one kind": share(rows, said, "subjects", lambda r: r["kind"] == "many"),
        "both subjects of two": share(rows, said, "subjects", lambda r: r["kind"] == "two"),
        "scene": share(rows, said, "scene"),
        "action (ten that can be told apart)": share(rows, said, "act"),
        "direction, where one is asked for": share(rows, said, "direction", moves),
        "direction, left and right": share(rows, said, "direction", lambda r: r["actors"][0][2] in ("left", "right")),
        "camera": share(rows, said, "camera"),
        "camera, moves alone": share(rows, said, "camera", lambda r: r["camera"] != "static"),
        "camera, pans alone": share(rows, said, "camera", lambda r: r["camera"].startswith("pan")),
        "count": share(rows, said, "count"),
        "count, of two and three of one kind": share(rows, said, "count", lambda r: r["kind"] == "many"),
        "style": share(rows, said, "style"),
        "style, where one is asked for": share(rows, said, "style", lambda r: r["style"] != "3d"),
    }


class Seen:
    """All that is kept of the clips of one kind, by the prompt's id."""

    def __init__(self):
        self.said, self.quality, self.identity, self.features = {}, {}, {}, {}

    def add(self, r, frames, nets):
        seen = look(*nets, frames)
        self.said[r["id"]] = right(seen, labels(prompts.clip_of(r)))
        self.quality[r["id"]] = quality(frames, seen)
        self.identity[r["id"]], self.features[r["id"]] = seen["identity"], seen["feature"]


def table(plain, paraphrases, flags, seen, dist, psnr):
    """All figures, as {title: {row: ...}}."""
    ids = [r["id"] for r in plain]
    out = {"scores": {k: scores(plain, seen[k].said) for k in KINDS}}
    # Paraphrases against their own plain prompts.
    both = [r for r in paraphrases if r["id"] in seen["clips"].said and r["plain"] in seen["clips"].said]
    worded = {r["id"]: seen["clips"].said[r["plain"]] for r in both}
    out["paraphrases"] = {k: [share(both, worded, k), share(both, seen["clips"].said, k)] for k in ("subjects", *HEADS, *MOVES)}
    both = [r for r in flags if r["id"] in seen["clips"].said and r["plain"] in seen["clips"].said]
    worded = {r["id"]: seen["clips"].said[r["plain"]] for r in both}
    out["camera"] = {
        name: [share(both, worded, "camera", which), share(both, seen["clips"].said, "camera", which)]
        for name, which in (("all moves", lambda r: True), ("pans", lambda r: r["camera"].startswith("pan")), ("zooms", lambda r: r["camera"].startswith("zoom")))
    }
    middle = torch.cat([seen["renders"].identity[i] for i in ids]).mean(0)
    still = [r["id"] for r in plain if r["camera"] == "static"]
    out["quality"] = {}
    for k in KINDS:
        q = seen[k].quality
        mean = lambda key, which: round(float(np.mean([q[i][key] for i in which if q[i][key] is not None])), 2)
        features = torch.stack([seen[k].features[i] for i in ids])
        target = torch.stack([seen["others"].features[i] for i in ids])
        out["quality"][k] = {
            "flicker (levels, camera still)": mean("flicker", still),
            "motion smoothness (%)": mean("smooth", ids),
            "change (levels)": mean("change", ids),
            "dynamic degree (%)": round(100 * float(np.mean([q[i]["change"] >= 0.5 * seen["renders"].quality[i]["change"] for i in ids])), 1),
            "subject consistency (%)": round(float(np.mean([consistency(seen[k].identity[i], middle) for i in ids])), 1),
            "Fréchet distance, looks": round(frechet(features[:, :128], target[:, :128]), 2),
            "Fréchet distance, motion": round(frechet(features[:, 128:], target[:, 128:]), 2),
            "perceptual distance to other renders of the prompt": round(float(np.mean([dist[k][i] for i in ids])), 3),
        }
    out["autoencoder"] = {"PSNR (dB)": round(float(np.mean(psnr)), 2), "perceptual distance": round(float(np.mean([dist["recon"][i] for i in ids])), 3)}
    return out


def markdown(out, made, of):
    """The figures as tables."""
    cell = lambda v: "–" if v[0] is None else f"{v[0]} ({v[1]})"
    lines = [f"{made} of {of} clips.", "", "| right, % (of how many) | " + " | ".join(TITLES.values()) + " |", "|---|---|---|---|"]
    for row in out["scores"]["clips"]:
        lines.append(f"| {row} | " + " | ".join(cell(out["scores"][k][row]) for k in KINDS) + " |")
    lines += ["", "| paraphrases | plain | paraphrased |", "|---|---|---|"]
    lines += [f"| {k} | {cell(a)} | {cell(b)} |" for k, (a, b) in out["paraphrases"].items()]
    lines += ["", "| camera | by words | by `--camera` |", "|---|---|---|"]
    lines += [f"| {k} | {cell(a)} | {cell(b)} |" for k, (a, b) in out["camera"].items()]
    lines += ["", "| without labels | " + " | ".join(TITLES.values()) + " |", "|---|---|---|---|"]
    for row in out["quality"]["clips"]:
        lines.append(f"| {row} | " + " | ".join(str(out["quality"][k][row]) for k in KINDS) + " |")
    lines += ["", "Autoencoder on these renders: " + ", ".join(f"{k} {v}" for k, v in out["autoencoder"].items())]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sora", default="target/release/sora")
    parser.add_argument("--train", type=Path, default=Path(".work/train"), help="where the sprites are")
    parser.add_argument("--work", type=Path, default=Path(".work/judge"))
    parser.add_argument("--first", type=int, help="only so many prompts of the list")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--keep", action="store_true", help="make no clips")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    listed = prompts.load()
    rows = listed[: args.first]
    flags = flagged(rows)
    if not args.keep:
        make(rows + flags, args.sora, args.work, args.threads, args.steps)
    nets = load(args.work)
    plain = [r for r in listed if not r["plain"]]
    made, psnr = references(plain, sum(not r["plain"] for r in rows), args.train, args.work)
    at = {r["id"]: i for i, r in enumerate(plain)}
    seen, dist = {k: Seen() for k in (*KINDS, "others")}, {k: {} for k in (*KINDS, "recon")}
    for r in rows + flags:
        clip = clip_frames(args.work / "clips" / r["id"])
        if clip is None:
            continue
        seen["clips"].add(r, clip, nets)
        if r["plain"]:
            continue
        i = r["id"]
        videos = {"clips": clip} | {k: torch.from_numpy(made[k][at[i]].copy()) for k in made}
        for k in ("renders", "passed", "others"):
            seen[k].add(r, videos[k], nets)
        for k in KINDS:
            dist[k][i] = float(distance(nets[0], videos[k][::4], videos["others"][::4]).mean())
        dist["recon"][i] = float(distance(nets[0], videos["passed"][::4], videos["renders"][::4]).mean())
    plain = [r for r in rows if not r["plain"] and r["id"] in seen["clips"].said]
    out = table(plain, [r for r in rows if r["plain"]], flags, seen, dist, [psnr[at[r["id"]]] for r in plain])
    answers = {k: {i: {h: bool(v) for h, v in s.items() if v is not None} for i, s in seen[k].said.items()} for k in KINDS}
    (args.work / "scores.json").write_text(json.dumps(out | {"answers": answers}, indent=1) + "\n")
    text = markdown(out, len(seen["clips"].said), len(rows + flags))
    (args.work / "scores.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
