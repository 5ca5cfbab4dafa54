"""Polish the decoder of the video autoencoder on endless fresh clips of the world.

    python train_vae.py --work .work/train --minutes 40

Goes on from WORK/vae.ckpt, which `closed_form.py` starts; the latents and the encoder stay as they are, so that it can
run before, beside or after the transformer's training. Writes WORK/vae and WORK/vae.ckpt.
"""

import argparse
import os
import random
import time
from pathlib import Path

# Threads that spin while they wait are ruinous on a machine shared with others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo

import spec
from basis import PIXELS, Basis
from closed_form import CONFIG, FOREIGN
from sheet import sheet
from world import World

# What a step may show: (weight, clips, frames, window side); all cost about the same.
SHAPES = ((0.78, 4, 9, 64), (0.04, 1, 17, 128), (0.18, 7, 1, 96))
WARM, FADE = 30, 0.35  # warm-up steps; the part of the run in which the rate falls


def batch(world, rng):
    """One batch of fresh clips: f32 [B, 3, F, H, W], and what is where in them."""
    _, n, frames, side = rng.choices(SHAPES, [s[0] for s in SHAPES])[0]
    out = []
    for _ in range(n):
        clip = spec.sample(rng)
        top, left = rng.randrange(0, 129 - side, 4), rng.randrange(0, 129 - side, 4)
        start = rng.uniform(0, 1.0) if frames == 9 else rng.uniform(0, 2.0) if frames == 1 else 0.0
        out.append(world.render([clip], frames, start=[start], crop=(top, left, side, side), parts=True))
    return tuple(torch.cat(part) for part in zip(*out))


def feed(sprites, seed, out):
    """Worker: render batches ahead for ever."""
    torch.set_num_threads(1)
    os.nice(5)
    world, rng = World(sprites), random.Random(seed)
    while True:
        out.put(batch(world, rng))


def edges(a, b):
    """L1 between differences of neighbours, in x, y and time, at two scales."""
    loss, n = 0, 0
    for scale in (1, 2):
        if scale == 2:
            a, b = F.avg_pool3d(a, (1, 2, 2)), F.avg_pool3d(b, (1, 2, 2))
        for dim in (2, 3, 4):
            if a.shape[dim] > 1:
                loss = loss + (a.diff(dim=dim) - b.diff(dim=dim)).abs().mean()
                n += 1
    return loss / n


def psnr(a, b):
    """dB between videos in -1..1, mean over clips."""
    mse = (a - b).pow(2).flatten(1).mean(1)
    return (10 * torch.log10(4 / mse)).mean().item()


def held_out(world, n):
    rng = random.Random(987654321)
    return world.render([spec.sample(rng) for _ in range(n)], parts=True)


@torch.no_grad()
def judge(vae, latents):
    return torch.cat([vae.decode(z, return_dict=False)[0] for z in latents.split(4)])


def average(vae, ema):
    """A copy with the averaged weights."""
    copy = AutoencoderKLLTXVideo(**CONFIG).eval()
    copy.load_state_dict(vae.state_dict())
    for p, e in zip(copy.parameters(), ema):
        p.data.copy_(e)
    return copy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--minutes", type=float, default=38)
    parser.add_argument("--rate", type=float, default=4e-5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    begun = time.time()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    sprites = args.work / "sprites.pt"
    world, basis = World(sprites), Basis(args.work / "basis.pt")

    vae = AutoencoderKLLTXVideo(**CONFIG)
    ckpt = args.work / "vae.ckpt"
    state = torch.load(ckpt, map_location="cpu")
    vae.load_state_dict(state["vae"])
    ema, step = state["ema"], state["step"]
    vae.train()
    # Residual blocks are new and learn fast; what least squares made is only polished.
    new = {True: [], False: []}
    for name, p in vae.decoder.named_parameters():
        new["resnets" in name].append(p)
    optim = torch.optim.AdamW([{"params": new[True], "times": 1}, {"params": new[False], "times": 0.15}], args.rate, betas=(0.9, 0.98), weight_decay=0)
    if "optim" in state:
        optim.load_state_dict(state["optim"])
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters", flush=True)

    ready = mp.get_context("spawn").Queue(6)
    worker = mp.get_context("spawn").Process(target=feed, args=(sprites, args.seed + 1000 + step, ready), daemon=True)
    worker.start()
    probe, where = held_out(world, 16)
    told, plain = basis.encode(probe, where), basis.encode(probe)

    def rate():
        done = (time.time() - begun) / 60 / args.minutes
        return args.rate * min(1, (step - first + 1) / WARM) * min(1, max(0.02, (1 - done) / FADE))

    def keep():
        torch.save({"vae": vae.state_dict(), "ema": ema, "optim": optim.state_dict(), "step": step}, ckpt.with_suffix(".tmp"))
        os.replace(ckpt.with_suffix(".tmp"), ckpt)

    def report():
        model = average(vae, ema)
        model.save_pretrained(args.work / "vae")
        out, own = judge(model, told), judge(model, plain)
        noisy = judge(model, told + 0.35 * torch.randn(told.shape, generator=torch.Generator().manual_seed(0)))
        minutes = (time.time() - begun) / 60
        print(f"{minutes:.1f} min, held-out PSNR {psnr(out, probe):.2f} dB, as a picture from elsewhere {psnr(own, probe):.2f}, with noise {psnr(noisy, probe):.2f}", flush=True)
        pairs = [v for a, b in zip(probe[:8], out[:8]) for v in (a, b)]
        sheet(pairs, ["truth", "model"] * 8, args.work / "vae_recon.png")

    first, saved, judged, seen = step, begun, begun, []
    while time.time() - begun < args.minutes * 60:
        x, where = ready.get()
        for group in optim.param_groups:
            group["lr"] = rate() * group["times"]
        with torch.no_grad():
            z = basis.encode(x, where)
            z[torch.rand(len(z)) < FOREIGN, PIXELS:] = 0
            # Noise on the latents makes the decoder bear what the transformer gets wrong.
            z = z + torch.randn_like(z) * 0.4 * random.random()
        y = vae.decode(z, return_dict=False)[0]
        loss = (y - x).abs().mean() + 0.5 * edges(y, x)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optim.step()
        decay = min(0.998, 1 - 1 / (1 + 0.2 * (step - first + 1)))
        torch._foreach_lerp_(ema, [p.detach() for p in vae.parameters()], 1 - decay)
        step += 1
        seen.append(loss.item())
        now = time.time()
        if step % 50 == 0 or step == 10:
            print(f"{(now - begun) / 60:.1f} min, step {step}, loss {sum(seen) / len(seen):.4f}, rate {rate():.1e}, queue {ready.qsize()}", flush=True)
            seen = []
        if now - judged > 240:
            report()
            judged = time.time()
        if now - saved > 180:
            keep()
            saved = time.time()
    keep()
    worker.terminate()
    report()


if __name__ == "__main__":
    main()
