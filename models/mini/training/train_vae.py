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
from basis import Basis
from closed_form import CONFIG
from sheet import sheet
from world import World

# What a step may show: (weight, clips, frames, window side); all cost about the same.
SHAPES = ((0.78, 4, 9, 64), (0.04, 1, 17, 128), (0.18, 7, 1, 96))
WARM, FADE = 30, 0.35  # warm-up steps; the part of the run in which the rate falls


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Newton-Schulz), for convolution kernels.

    A kernel [O, I, kt, kh, kw] counts as O / rows matrices [rows, I·kt·kh·kw]: an
    upsampler's kernel holds one for each of the 8 places it fills.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.setdefault(p, {"m": torch.zeros_like(p)})
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(state["m"], group["momentum"])
                parts = max(1, p.shape[0] // p.shape[1]) if p.shape[0] % p.shape[1] == 0 else 1
                # Channels are laid out (out, place): rows of one place lie `parts` apart.
                g = g.view(p.shape[0] // parts, parts, -1).transpose(0, 1)
                g = orthogonal(g)
                scale = max(1, g.shape[1] / g.shape[2]) ** 0.5
                p.sub_(g.transpose(0, 1).reshape(p.shape), alpha=group["lr"] * scale)


def orthogonal(g):
    """About the nearest matrices with all singular values 1. [B, M, N]

    Newton-Schulz, run on the small Gram matrix: the polynomials commute.
    """
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[1]).expand_as(gram)
    total = eye
    for _ in range(5):
        p = 3.4445 * eye - 4.775 * gram + 2.0315 * (gram @ gram)
        total, gram = p @ total, p @ gram @ p
    x = total @ x
    return x.mT if tall else x


def batch(world, rng):
    """One batch of fresh clips, f32 [B, 3, F, H, W]."""
    _, n, frames, side = rng.choices(SHAPES, [s[0] for s in SHAPES])[0]
    out = []
    for _ in range(n):
        clip = spec.sample(rng)
        top, left = rng.randrange(0, 129 - side), rng.randrange(0, 129 - side)
        start = rng.uniform(0, 1.0) if frames == 9 else rng.uniform(0, 2.0) if frames == 1 else 0.0
        out.append(world.render([clip], frames, start=[start], crop=(top, left, side, side))[0])
    return torch.stack(out)


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
    return world.render([spec.sample(rng) for _ in range(n)])


@torch.no_grad()
def judge(vae, basis, probe):
    """Videos decoded from true latents."""
    return torch.cat([vae.decode(basis.encode(v), return_dict=False)[0] for v in probe.split(4)])


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
    parser.add_argument("--rate", type=float, default=4e-4)
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
    kernels = [p for n, p in vae.decoder.named_parameters() if p.ndim == 5 and "resnets" in n]
    others = [p for p in vae.decoder.parameters() if not any(p is k for k in kernels)]
    # Residual blocks are new and learn fast; what least squares made is only polished.
    optims = [(Muon(kernels, args.rate), 10), (torch.optim.AdamW(others, args.rate, betas=(0.9, 0.98)), 1)]
    print(f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters", flush=True)

    ready = mp.get_context("spawn").Queue(6)
    worker = mp.get_context("spawn").Process(target=feed, args=(sprites, args.seed + 1000 + step, ready), daemon=True)
    worker.start()
    probe = held_out(world, 16)

    def rate():
        done = (time.time() - begun) / 60 / args.minutes
        return args.rate * min(1, (step - first + 1) / WARM) * min(1, max(0.02, (1 - done) / FADE))

    def keep():
        torch.save({"vae": vae.state_dict(), "ema": ema, "step": step}, ckpt.with_suffix(".tmp"))
        os.replace(ckpt.with_suffix(".tmp"), ckpt)

    def report():
        model = average(vae, ema)
        model.save_pretrained(args.work / "vae")
        out = judge(model, basis, probe)
        minutes = (time.time() - begun) / 60
        print(f"{minutes:.1f} min, held-out PSNR {psnr(out, probe):.2f} dB", flush=True)
        pairs = [v for a, b in zip(probe[:8], out[:8]) for v in (a, b)]
        sheet(pairs, ["truth", "model"] * 8, args.work / "vae_recon.png")

    first, saved, judged, seen = step, begun, begun, []
    while time.time() - begun < args.minutes * 60:
        x = ready.get()
        for optim, times in optims:
            optim.param_groups[0]["lr"] = rate() * times
        with torch.no_grad():
            z = basis.encode(x)
        # Noise on the latents makes the decoder bear what the transformer gets wrong.
        y = vae.decode(z + torch.randn_like(z) * 0.12 * random.random(), return_dict=False)[0]
        loss = (y - x).abs().mean() + 0.5 * edges(y, x)
        vae.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        for optim, _ in optims:
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
