"""Train the judge's recognisers on renders of the world alone, and prove them on renders held out.

    python train.py --train .work/train --work .work/judge
    python train.py --train .work/train --work /tmp/smoke --smoke      a minute's check that it runs

Needs the sprites that `assets.py` makes (TRAIN/sprites.pt). Renders once (WORK/*.npy), trains the networks (WORK/frames.pt,
motion.pt, camera.pt) and writes WORK/proof.json. Stopped and started again, it goes on where it was.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo

import prompts
from recognisers import FRAMES, GRID, HEADS, LUMA, MOVES, NAMES, SIDE, SMALL, STYLES, CameraNet, FrameNet, MotionNet, labels, load, look, maps, moving, right, shrink, unit
from world import World

VAE = prompts.HERE.parent.parent / "vae"
TRAIN, TEST, SHARE = 2600, 200, 6  # clips; one of SHARE has been through the autoencoder
STEPS, MOTION_STEPS, CAMERA_STEPS = (800, 1200, 500), 700, 600
CHUNK = 8
# Mirrored, and backwards in time.
FLIP = {"pan_left": "pan_right", "pan_right": "pan_left", "left": "right", "right": "left"}
BACK = FLIP | {"zoom_in": "zoom_out", "zoom_out": "zoom_in", "up": "down", "down": "up", "rise": "fall", "fall": "rise", "grow": "shrink", "shrink": "grow"}


def say(text):
    print(time.strftime("%H:%M:%S"), text, flush=True)


def clip_at(name, i):
    """Clip i of a set: subjects in turn, scenes, cameras and styles evenly, as on the list of prompts."""
    rng = random.Random(f"judge {name} {i}")
    kind = rng.choice(("one", "one", "many", "two"))
    clip = prompts.draw(kind, NAMES[i % len(NAMES)], NAMES[(i + rng.randrange(1, len(NAMES))) % len(NAMES)], rng)
    clip.seed = rng.getrandbits(31)
    return clip


class Autoencoder:
    """The committed autoencoder: clips as it gives them back."""

    def __init__(self):
        self.vae = AutoencoderKLLTXVideo.from_pretrained(VAE, torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, video, noise=0.0, seed=0):
        z = self.vae.encode(video).latent_dist.mode()
        z = z + noise * self.vae.latents_std.view(1, -1, 1, 1, 1) * torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
        return self.vae.decode(z).sample.clamp(-1, 1)


def array(path, shape):
    """A u8 array on disk, and how many of its rows are made."""
    done = path.with_suffix(".done")
    if path.exists() and done.exists():
        return np.load(path, mmap_mode="r+"), int(done.read_text())
    return np.lib.format.open_memmap(path, "w+", np.uint8, shape), 0


def rendered(name, n, world, coder, work, passed):
    """Renders of a set: frames, maps of subjects, maps of their middles, as arrays on disk.

    `passed` says of clip i how much noise its latents get on the way through the autoencoder, or None for none of it.
    """
    frames, done = array(work / f"{name}.npy", (n, FRAMES, 3, SIDE, SIDE))
    kinds, _ = array(work / f"{name}-kind.npy", (n, FRAMES, GRID, GRID))
    cores, _ = array(work / f"{name}-core.npy", (n, FRAMES, GRID, GRID))
    for at in range(done, n, CHUNK):
        rows = range(at, min(at + CHUNK, n))
        video, where = world.render([clip_at(name.split("-")[0], i) for i in rows], FRAMES, parts=True)
        for k, i in enumerate(rows):
            if (noise := passed(i)) is not None:
                video[k] = coder(video[k : k + 1], noise, i)[0]
        frames[at : at + len(rows)] = shrink(video).numpy()
        kind, core = maps(where)
        kinds[at : at + len(rows)], cores[at : at + len(rows)] = kind.numpy(), core.numpy()
        if at % 200 == 0 or at + CHUNK >= n:
            for made, file in ((frames, name), (kinds, f"{name}-kind"), (cores, f"{name}-core")):
                made.flush()
                (work / f"{file}.done").write_text(str(at + len(rows)))
            say(f"rendered {at + len(rows)} of {n} {name}")
    return frames[:n], kinds[:n], cores[:n]


def worsen(x, rng):
    """Blur, noise, light and contrast by chance, a frame each: f32 [B, 3, H, W] in 0..1."""
    out = []
    for frame in x:
        if rng.random() < 0.5:
            sigma = rng.uniform(0.4, 1.6)
            tap = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
            tap = (tap / tap.sum()).expand(3, 1, 1, 9)
            frame = F.conv2d(F.conv2d(F.pad(frame[None], (4, 4, 4, 4), mode="replicate"), tap, groups=3), tap.transpose(2, 3), groups=3)[0]
        if rng.random() < 0.5:
            coarse = rng.choice((1, 2, 4))
            noise = torch.from_numpy(rng.normal(0, rng.uniform(0.01, 0.06), (1, rng.choice((1, 3)), SIDE // coarse, SIDE // coarse))).float()
            frame = frame + F.interpolate(noise, scale_factor=coarse, mode="bilinear" if coarse > 1 else "nearest")[0]
        out.append(((frame - 0.5) * rng.uniform(0.8, 1.15) + 0.5 + rng.uniform(-0.06, 0.06)).clamp(0, 1))
    return torch.stack(out).contiguous(memory_format=torch.channels_last)


def wants(name, n):
    return [labels(clip_at(name, i)) for i in range(n)]


def kept(data, want, rows, rng):
    """A random frame of each of these clips: u8 pictures, maps, middles, and labels."""
    at = rng.integers(FRAMES, size=len(rows))
    return [torch.from_numpy(np.stack([part[i, f] for i, f in zip(rows, at)])) for part in data], [want[i] for i in rows]


def fresh(world, coder, n, passed, rng):
    """The same of n new stills, the first of which went through the autoencoder."""
    clips = [clip_at("fresh", int(i)) for i in rng.integers(1 << 31, size=n)]
    video, where = world.render(clips, 1, parts=True)
    for k in range(passed):
        video[k] = coder(video[k : k + 1], rng.uniform(0, 0.4), int(rng.integers(1 << 31)))[0]
    kind, core = maps(where)
    return [shrink(video)[:, 0], kind[:, 0], core[:, 0]], [labels(c) for c in clips]


def frame_loss(net, pictures, want, rng):
    """Every other picture mirrored, some made black and white."""
    here, want = torch.zeros(len(want), len(NAMES)), [dict(w) for w in want]
    x, kind, core = (part.clone() for part in pictures)
    for k, w in enumerate(want):
        here[k, w["subjects"]] = 1
        if rng.random() < 0.5:
            x[k], kind[k], core[k] = x[k].flip(-1), kind[k].flip(-1), core[k].flip(-1)
        if w["style"] == STYLES.index("3d") and rng.random() < 0.15:
            x[k] = (x[k].float() * LUMA).sum(0)
            w["style"] = STYLES.index("bw")
    out = net(worsen(unit(x), rng))
    weight = torch.full((1 + len(NAMES),), 3.0)
    weight[0] = 1.0
    loss = F.cross_entropy(out["map"], kind.long(), weight)
    loss = loss + F.binary_cross_entropy_with_logits(out["core"][:, 0], core.float())
    loss = loss + F.binary_cross_entropy_with_logits(out["subjects"], here) * 12
    return loss + sum(F.cross_entropy(out[k], torch.tensor([w[k] for w in want])) for k in HEADS)


def turned(want, words, key):
    """Labels of a clip that was mirrored or turned back in time."""
    names = MOVES[key]
    return names.index(words.get(names[want], names[want])) if want >= 0 else -1


def motion_loss(net, seen, want, rows, rng):
    """One batch of clips, by chance mirrored, backwards, lighter or with noise."""
    x, target = [], {k: [] for k in MOVES}
    for i in rows:
        clip, label = torch.from_numpy(seen[i].copy()), {k: want[i][k] for k in MOVES}
        if rng.random() < 0.5:
            clip, label = clip.flip(-1), {k: turned(v, FLIP, k) for k, v in label.items()}
        if rng.random() < 0.3:
            # Backwards: even frames turn round, and those after an even one come before it.
            even, odd = clip[0].flip(0), clip[1].flip(0)
            clip = torch.cat([torch.stack([even, torch.cat([odd[1:], even[-1:]])]), clip[2:].flip(1)])
            label = {k: turned(v, BACK, k) for k, v in label.items()}
        clip = clip.float()
        clip[:2] = (clip[:2] - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-15, 15) + rng.uniform(0, 6) * torch.from_numpy(rng.standard_normal(clip[:2].shape, np.float32))
        x.append(clip.clamp(0, 255))
        for k in MOVES:
            target[k].append(label[k])
    out = net(torch.stack(x))
    return sum(F.cross_entropy(out[k], torch.tensor(target[k]), ignore_index=-1) for k in out)


def fit(net, name, steps, loss_of, work, rate):
    """Train one network; WORK/NAME.ckpt lets it go on, WORK/NAME.pt is the end."""
    end, ckpt = work / f"{name}.pt", work / f"{name}.ckpt"
    if end.exists():
        return net.load_state_dict(torch.load(end, weights_only=True))
    best = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(best, rate, total_steps=steps, pct_start=0.15)
    step = 0
    if ckpt.exists():
        state = torch.load(ckpt, weights_only=True)
        net.load_state_dict(state["net"])
        best.load_state_dict(state["best"])
        plan.load_state_dict(state["plan"])
        step = state["step"]
    net.train()
    losses, began = [], time.time()
    while step < steps:
        rng = np.random.default_rng([7, step])
        torch.manual_seed(step)
        loss = loss_of(net, rng)
        best.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        best.step()
        plan.step()
        step += 1
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            say(f"{name} step {step} of {steps}: loss {np.mean(losses[-100:]):.3f}, {(time.time() - began) / len(losses):.2f} s a step")
            torch.save({"net": net.state_dict(), "best": best.state_dict(), "plan": plan.state_dict(), "step": step}, ckpt.with_suffix(".part"))
            os.replace(ckpt.with_suffix(".part"), ckpt)
    torch.save(net.state_dict(), end.with_suffix(".part"))
    os.replace(end.with_suffix(".part"), end)
    ckpt.unlink(missing_ok=True)


@torch.no_grad()
def watched(net, frames, work, name):
    """What `MotionNet` sees of all clips, as an array on disk."""
    seen, done = array(work / f"{name}-seen.npy", (len(frames), 4, 9, SMALL, SMALL))
    net.eval()
    for i in range(done, len(frames)):
        clip = torch.from_numpy(frames[i].copy())
        seen[i] = moving(clip, net(unit(clip[::2]))).numpy()
        if (i + 1) % 200 == 0 or i + 1 == len(frames):
            seen.flush()
            (work / f"{name}-seen.done").write_text(str(i + 1))
    return seen


def prove(work, sets, want):
    """Share of right answers on each held-out set, and how many were asked."""
    nets = load(work)
    proof = {}
    for name, frames in sets.items():
        said = [right(look(*nets, torch.from_numpy(frames[i].copy())), want[i]) for i in range(len(frames))]
        pairs = [len(w["subjects"]) > 1 for w in want]
        answers = {k: [s[k] for s in said if s[k] is not None] for k in said[0]}
        answers["one subject"] = [s["subjects"] for s, p in zip(said, pairs) if not p]
        answers["both of two"] = [s["subjects"] for s, p in zip(said, pairs) if p]
        proof[name] = {k: [round(float(np.mean(v)), 4), len(v)] for k, v in answers.items() if v}
    (work / "proof.json").write_text(json.dumps(proof, indent=1) + "\n")
    for name, heads in proof.items():
        say(f"{name}: " + ", ".join(f"{k} {100 * v:.1f} % of {n}" for k, (v, n) in heads.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, default=Path(".work/train"), help="where the sprites are")
    parser.add_argument("--work", type=Path, default=Path(".work/judge"))
    parser.add_argument("--smoke", action="store_true", help="a few clips and steps only")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    args.work.mkdir(parents=True, exist_ok=True)
    n, tests, few = (32, 8, 3) if args.smoke else (TRAIN, TEST, None)
    world, coder = World(args.train / "sprites.pt"), Autoencoder()
    data = rendered("train", n, world, coder, args.work, lambda i: i // SHARE % 5 * 0.1 if i % SHARE == 0 else None)
    held = {
        "held out": rendered("test", tests, world, coder, args.work, lambda i: None)[0],
        "held out, through the autoencoder": rendered("test-passed", tests, world, coder, args.work, lambda i: 0.0)[0],
    }
    want = wants("train", n)
    torch.manual_seed(0)
    frame_net, motion_net = FrameNet().to(memory_format=torch.channels_last), MotionNet()
    some = lambda rng, batch: rng.choice(n, min(batch, n), replace=False)
    through = np.arange(0, n, SHARE)
    again = lambda rng, batch: rng.choice(through, min(batch, len(through)), replace=False)
    alike = lambda net, rng: frame_loss(net, *kept(data, want, some(rng, 32), rng), rng)
    halves = lambda net, rng: frame_loss(net, *kept(data, want, np.concatenate([again(rng, 16), some(rng, 16)]), rng), rng)

    def endless(net, rng):
        old, new = kept(data, want, again(rng, 10), rng), fresh(world, coder, 22, 6, rng)
        return frame_loss(net, [torch.cat(pair) for pair in zip(old[0], new[0])], old[1] + new[1], rng)

    # All alike, then half of a batch through the autoencoder, then most of it never seen before.
    fit(frame_net, "frames-first", few or STEPS[0], alike, args.work, 4e-3)
    seen = watched(frame_net, data[0], args.work, "train")
    fit(frame_net, "frames-second", few or STEPS[1], halves, args.work, 3e-3)
    fit(frame_net, "frames", few or STEPS[2], endless, args.work, 2e-3)
    moved = lambda size: lambda net, rng: motion_loss(net, seen, want, some(rng, size), rng)
    fit(motion_net, "motion", few or MOTION_STEPS, moved(24), args.work, 3e-3)
    fit(CameraNet(), "camera", few or CAMERA_STEPS, moved(48), args.work, 3e-3)
    prove(args.work, held, wants("test", tests))


if __name__ == "__main__":
    main()
