"""What colour a latent cell has: the least-squares map that `sora gen --preview` shows unfinished clips with."""

import random

import torch
import torch.nn.functional as F

import spec
from basis import Basis
from world import World


def latent_rgb(work, clips=48):
    """{"weight": [3][C], "bias": [3]}: normalised latents → mean RGB of their pixels, −1..1."""
    world, basis, rng = World(f"{work}/sprites.pt"), Basis(f"{work}/basis.pt"), random.Random(11)
    video, where = world.render([spec.sample(rng) for _ in range(clips)], parts=True)
    latents = basis.encode(video, where)
    whole = torch.cat([video[:, :, :1]] * 3 + [video], 2)  # the first latent frame is one frame
    colours = F.avg_pool3d(whole, (4, 16, 16))
    rows = lambda x: x.movedim(1, -1).flatten(0, 3).double()
    x = torch.cat([rows(latents), torch.ones(latents[:, 0].numel(), 1).double()], 1)
    solution = torch.linalg.lstsq(x, rows(colours)).solution.T
    return {"weight": solution[:, :-1].float().tolist(), "bias": solution[:, -1].float().tolist()}
