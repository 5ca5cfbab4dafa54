"""Build the video autoencoder without training: an encoder that is final, and a decoder to train from.

    python closed_form.py --work .work/train

The latents of `basis.py` are linear in the pixels, so most of the autoencoder is linear algebra. The encoder's levels
only regroup pixels (their convolutions are zero, the residual unshuffle loses nothing), after 11 principal components
of each 4×4 patch; its last convolution is the least-squares map to the latents. The decoder is a cascade of
least-squares fits over 3×3×3 neighbours: latents → blocks of 8×8 pixels × 2 frames → patches → pixels. Its residual
blocks start as the identity. One channel is held at a constant, so that root-mean-square norms leave the others'
size alone. `train_vae.py` goes on from there. Writes WORK/vae and WORK/vae.ckpt.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo

import spec
from basis import CHANNELS, PIXELS, Basis
from world import World

CONFIG = dict(
    latent_channels=CHANNELS,
    block_out_channels=(12, 96, 768),
    down_block_types=("LTXVideo095DownBlock3D",) * 2,
    layers_per_block=(0, 0, 0),
    spatio_temporal_scaling=(True, True),
    downsample_type=("spatiotemporal", "spatiotemporal"),
    decoder_block_out_channels=(64, 128),
    decoder_layers_per_block=(1, 2, 1),  # the top level, the level below, the bottom
    decoder_spatio_temporal_scaling=(True, True),
    decoder_inject_noise=(False, False, False),
    upsample_residual=(False, False),
    upsample_factor=(2, 2),
    patch_size=4,
    timestep_conditioning=False,
    encoder_causal=True,
    decoder_causal=False,
    spatial_compression_ratio=16,
    temporal_compression_ratio=4,
)
HOLD = 8.0  # the constant channel
SMALL = 0.35  # spread of the largest decoder feature beside it
RIDGE = 1e-5
NOISE = 0.35  # on the latents that the decoder is fitted to: a denoiser leaves about as much
FOREIGN = 0.3  # share of clips whose latents don't say what is where, as those of pictures from elsewhere


def patches(video):
    """4×4 patches in the order of the model's own patchify. [B, 3, F, H, W] → [B, 48, F, H/4, W/4]"""
    b, c, f, h, w = video.shape
    x = video.reshape(b, c, f, 1, h // 4, 4, w // 4, 4)
    return x.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)


def grouped(video):
    """Blocks of 8×8 pixels × 2 frames (the first frame doubled). [B, 3, 17, H, W] → [B, 384, 9, H/8, W/8]"""
    x = patches(torch.cat([video[:, :, :1], video], 2))
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f // 2, 2, h // 2, 2, w // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def rows(x):
    """[B, C, F, H, W] → [B·F·H·W, C]"""
    return x.movedim(1, -1).flatten(0, 3)


def components(x, k):
    """Mean [C] and the first k principal directions [k, C] of the channels of x [B, C, F, H, W]."""
    flat = rows(x).double()
    mean = flat.mean(0)
    _, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean))
    return mean.float(), vectors.flip(1)[:, :k].T.float().contiguous()


def neighbours(x):
    """The 27 inputs of each 3×3×3 kernel position, and a one. [B, C, F, H, W] → [B·F·H·W, C·27 + 1]"""
    x = F.pad(torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2), (1, 1, 1, 1))
    x = x.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # B C F H W 3 3 3
    x = x.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)
    return torch.cat([x, torch.ones(len(x), 1)], 1)


def scattered(target):
    """What each input position of an upsampler must give: the inverse of its pixel shuffle.

    [B, C, 2f − 1, 2h, 2w] → [B·f·h·w, C·8]; the frame that the upsampler drops is filled with the first.
    """
    x = torch.cat([target[:, :, :1], target], 2)
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f // 2, 2, h // 2, 2, w // 2, 2).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(-1, c * 8)


def least_squares(pairs):
    """The map [in, out] that takes x to y best, over pairs of [N, in] and [N, out]."""
    xx, xy = 0, 0
    for x, y in pairs:
        xx, xy = xx + x.T @ x, xy + x.T @ y
    ridge = torch.diag(RIDGE * xx.diagonal().double() + 1e-4)
    return torch.linalg.solve(xx.double() + ridge, xy.double()).float()


def fit(conv, features, targets, share):
    """Set a convolution to the least-squares map from features (per clip) to targets [N, out], on a share of rows."""

    def pairs():
        for x, y in zip(features, targets):
            x = neighbours(x[None])
            pick = torch.rand(len(x)) < share
            yield x[pick], y[pick]

    solution = least_squares(pairs())  # [C·27 + 1, out]
    conv.weight.data[:] = solution[:-1].T.reshape(conv.weight.shape)
    conv.bias.data[:] = solution[-1]


def after(module, run, clips):
    """What a module gives for each part of `clips` [B, …] when `run` is called on it."""
    out = []
    handle = module.register_forward_hook(lambda _m, _i, y: out.append(y))
    for part in clips.split(8):
        run(part)
    handle.remove()
    return torch.cat(out)


def encoder(vae, video, latents):
    """Regroup the pixels, then least squares."""
    net = vae.encoder
    mean, basis = components(patches(video[::4]), 11)
    for conv in [net.conv_in.conv] + [block.downsamplers[0].conv.conv for block in net.down_blocks]:
        conv.weight.data.zero_()
        conv.bias.data.zero_()
    net.conv_in.conv.weight.data[:11, :, 2, 1, 1] = basis / 24
    net.conv_in.conv.bias.data[:11] = -(basis @ mean) / 24
    net.conv_in.conv.bias.data[11] = HOLD
    feature = after(net.conv_act, vae.encode, video)
    one = lambda x: torch.cat([rows(x), torch.ones(len(rows(x)), 1)], 1)
    solution = least_squares((one(x[None]), rows(y[None])) for x, y in zip(feature, latents))
    conv = net.conv_out.conv
    conv.weight.data.zero_()
    conv.bias.data.zero_()
    conv.weight.data[:PIXELS, :, 2, 1, 1] = solution[:-1].T
    conv.bias.data[:PIXELS] = solution[-1]
    conv.bias.data[CHANNELS] = -14.0  # log-variance: the posterior is its mode


def decoder(vae, video, latents):
    """A cascade of least-squares fits."""
    net = vae.decoder
    latents = latents.clone()
    latents[: round(FOREIGN * len(latents)), PIXELS:] = 0
    latents = latents + NOISE * torch.randn_like(latents)
    conv = net.conv_in.conv
    conv.weight.data.mul_(0.5)
    conv.weight.data[: CHANNELS + 1] = 0
    conv.weight.data[range(CHANNELS), range(CHANNELS), 1, 1, 1] = 1
    conv.bias.data[: CHANNELS + 1] = 0
    conv.bias.data[CHANNELS] = HOLD
    for block in [net.mid_block, *net.up_blocks]:
        for resnet in block.resnets:
            resnet.conv2.conv.weight.data.zero_()
            resnet.conv2.conv.bias.data.zero_()
    levels = ((net.up_blocks[0], net.mid_block, grouped, 1.0), (net.up_blocks[1], net.up_blocks[0], patches, 0.25))
    for block, source, cut, share in levels:
        upsampler = block.upsamplers[0].conv.conv
        n = upsampler.weight.shape[0] // 8 - 1
        truth = cut(video)
        mean, basis = components(truth[::4], n)
        basis = basis * (SMALL / (rows(truth[:8]) @ basis[0]).std())
        target = torch.einsum("kc,bcfhw->bkfhw", basis, truth - mean[None, :, None, None, None])
        target = torch.cat([target, torch.full_like(target[:, :1], HOLD)], 1)
        fit(upsampler, after(source, net, latents), (scattered(y[None]) for y in target), share)
    fit(net.conv_out.conv, after(net.conv_act, net, latents), (rows(patches(y[None])) for y in video), 0.06)


@torch.no_grad()
def build(video, latents):
    """The autoencoder from clips [B, 3, 17, 128, 128], −1..1, and their latents [B, CHANNELS, 5, 8, 8]."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(**CONFIG).eval()
    encoder(vae, video, latents[:, :PIXELS])
    decoder(vae, video, latents)
    return vae


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--clips", type=int, default=128)
    args = parser.parse_args()
    world, rng, basis = World(args.work / "sprites.pt"), random.Random(77), Basis(args.work / "basis.pt")
    made = [world.render([spec.sample(rng) for _ in range(8)], parts=True) for _ in range(args.clips // 8 + 2)]
    video, where = (torch.cat(part) for part in zip(*made))
    latents = basis.encode(video, where)
    vae = build(video[:-16], latents[:-16])
    x, z = video[-16:], latents[-16:]
    mine = vae.encode(x).latent_dist.mode()
    level = lambda a, b: 10 * torch.log10(4 / (a - b).pow(2).flatten(1).mean(1)).mean()
    told, seen = (vae.decode(v, return_dict=False)[0] for v in (z, mine))
    miss = (mine - z)[:, :PIXELS].pow(2).mean() / z[:, :PIXELS].pow(2).mean()
    size = sum(p.numel() for p in vae.parameters()) / 1e6
    print(
        f"{size:.2f} M parameters, held-out PSNR {level(told, x):.2f} dB, through its own encoder {level(seen, x):.2f} dB,"
        f" first frames {level(seen[:, :, 0], x[:, :, 0]):.2f} dB, encoder misses {miss:.4f}"
    )
    vae.save_pretrained(args.work / "vae")
    state = {"vae": vae.state_dict(), "ema": [p.detach().clone() for p in vae.parameters()], "step": 0}
    torch.save(state, args.work / "vae.ckpt")


if __name__ == "__main__":
    main()
