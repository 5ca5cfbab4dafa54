"""The latents: what 48 numbers say most about a block of pixels, and 18 that say what stands there.

    python basis.py --work .work/train

A clip of 1 + 4n frames is cut into blocks of 16×16 pixels, the first frame by
itself, then four frames at a time. Each block is written in the 48 directions in
which blocks of the world vary most (principal components). Being linear, this is
there at once, uses all channels, and leaves the autoencoder two plain tasks: the
encoder imitates it, the decoder makes pixels of it.

The other channels tell what is where (`World._parts`): which sprite, which point of
it, its size, mirroring and pose, as an average over the block, and how much of each
quarter of the block it covers. They vary slowly from block to block, so the
transformer settles them first and then paints what they say; a picture from
elsewhere has none, and its encoder leaves them 0 (after ReDi, arXiv 2504.16064).
Writes WORK/basis.pt; --parts only adds their scale to the one that is there.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F

import spec
from world import PARTS, World

PIXELS, SIDE, SPAN = 48, 16, 4
CHANNELS = PIXELS + PARTS + 3
# Latents are scaled to a spread of (component's spread)^TILT, not to 1: brightness
# and large shapes stand out of the noise before detail does.
TILT = 0.25


def blocks(video):
    """f32 [B, 3, 1 + 4n, H, W] → first [B, h, w, 768], rest [B, n, h, w, 3072]."""
    cut = lambda v, t: v.unfold(2, t, t).unfold(3, SIDE, SIDE).unfold(4, SIDE, SIDE).permute(0, 2, 3, 4, 1, 5, 6, 7)
    first = cut(video[:, :, :1], 1).flatten(4)[:, 0]
    return first, cut(video[:, :, 1:], SPAN).flatten(4) if video.shape[2] > 1 else None


def components(count, total, square, n):
    """(mean [D], directions [D, C], spreads [C]) of sums over n samples."""
    mean = total / n
    cov = square / n - mean[:, None] * mean
    q = torch.linalg.qr(torch.randn(len(mean), count + 32))[0]
    for _ in range(12):
        q = torch.linalg.qr(cov @ q)[0]
    values, turn = torch.linalg.eigh(q.T @ cov @ q)
    return mean, (q @ turn).flip(1)[:, :count], values.flip(0)[:count].clamp(min=1e-8).sqrt()


def repeated(directions):
    """Where blocks that keep still for SPAN frames lie: [3·SPAN·16·16, C] → [768, C], unit for unit."""
    c = directions.shape[1]
    return directions.view(3, SPAN, -1, c).sum(1).reshape(-1, c) / SPAN**0.5


def agree(first, rest):
    """{part: (mean, directions, scale), "turn"}: what keeps still gets the same latents in every frame.

    The moving components are turned within their own span, so nothing is lost, to
    lie along the still ones; where they then match, mean and scale are shared too.
    """
    (mean, a, s0), (_, b, s1) = first, rest
    u, _, v = torch.linalg.svd(repeated(b).T @ (a * (s0 / s0.mean())))
    turn = u @ v
    b = b @ turn
    s1 = ((turn * turn) * (s1 * s1)[:, None]).sum(0).sqrt()
    scale = lambda s: (s / s.log().mean().exp()) ** TILT / s
    match = (a * repeated(b)).sum(0)
    shared = torch.where(match > 0.9, scale(s0) / SPAN**0.5, scale(s1))
    mean4 = mean.view(3, 1, -1).expand(-1, SPAN, -1).reshape(-1)
    return {"first": (mean, a, scale(s0)), "rest": (mean4, b, shared), "turn": turn, "match": match}


def pooled(where):
    """`World._parts` [B, PARTS, 1 + 4n, H / 4, W / 4] → [B, PARTS + 3, 1 + n, H / 16, W / 16]."""
    b, _, f, h, w = where.shape
    whole = torch.cat([where[:, :, :1]] * (SPAN - 1) + [where], 2)
    quarters = F.avg_pool3d(whole[:, :1], (SPAN, 2, 2)).reshape(b, -1, h // 4, 2, w // 4, 2)
    quarters = quarters.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    return torch.cat([quarters, F.avg_pool3d(whole[:, 1:], (SPAN, 4, 4))], 1)


class Basis:
    """Latents of videos."""

    def __init__(self, file):
        self.parts = torch.load(file)

    def encode(self, video, where=None):
        """f32 [B, 3, 1 + 4n, H, W] → [B, CHANNELS, 1 + n, H / 16, W / 16], normalised.

        Without `where` (see `World._parts`) its channels are 0, their mean.
        """
        first, rest = blocks(video)
        out = [self._project(first, "first").unsqueeze(1)]
        if rest is not None:
            out.append(self._project(rest, "rest"))
        out = torch.cat(out, 1).permute(0, 4, 1, 2, 3)
        if where is None:
            return torch.cat([out, out.new_zeros(len(out), CHANNELS - PIXELS, *out.shape[2:])], 1)
        mean, spread = (v.view(1, -1, 1, 1, 1) for v in self.parts["where"])
        return torch.cat([out, (pooled(where) - mean) / spread], 1)

    def _project(self, x, part):
        mean, directions, scale = self.parts[part]
        return (x - mean) @ (directions * scale)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--parts", action="store_true", help="keep the directions that are there")
    args = parser.parse_args()
    torch.manual_seed(0)
    world, rng = World(args.work / "sprites.pt"), random.Random(5)
    sums, parts = {}, []
    for _ in range(args.clips // 12):
        video, where = world.render([spec.sample(rng) for _ in range(12)], parts=True)
        parts.append(pooled(where))
        firsts, rests = blocks(video)
        for name, x in (("first", firsts), ("rest", rests)):
            x = x.flatten(0, -2)
            x = x[torch.randperm(len(x))[:1000]]
            n, total, square = sums.get(name, (0, 0, 0))
            sums[name] = n + len(x), total + x.sum(0), square + x.T @ x
    parts = torch.cat(parts).transpose(0, 1).flatten(1)
    file = args.work / "basis.pt"
    found = torch.load(file) if args.parts else agree(**{k: components(PIXELS, total, square, n) for k, (n, total, square) in sums.items()})
    torch.save(found | {"where": (parts.mean(1), parts.std(1))}, file)


if __name__ == "__main__":
    main()
