"""Train the transformer by rectified flow on cached latents, or look at samples.

  python train_transformer.py --work .work/train --minutes 60 [--resume]
  python train_transformer.py --work .work/train --sample "pirate ships in coffee" "a dog" --out sheet.png

Data: WORK/latents/*.safetensors (`latents` [N, C, F, H, W], normalised) with a
.jsonl of clips beside each; the folder is scanned again every minute, so the pool
may grow during training. Captions are written afresh every time.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import copy
import glob
import json
import math
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch
import torch.nn.functional as F
from diffusers import LTXVideoTransformer3DModel
from safetensors.torch import load_file
from transformers import T5EncoderModel

import captions
import spec
from basis import CHANNELS, PIXELS

TEXT = 32  # tokens of a caption in training (the pipeline's 128 with a mask are the same)
FRAME_RATE, RATIO_T, RATIO_S = 8, 4, 16
PAN = 0.15  # widths of the picture that a pan covers in a second


def make_model(channels):
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=channels, out_channels=channels, patch_size=1, patch_size_t=1, num_attention_heads=8, attention_head_dim=32, cross_attention_dim=256, num_layers=6,
        activation_fn="gelu-approximate", qk_norm="rms_norm_across_heads", norm_elementwise_affine=False, caption_channels=256, attention_bias=True, attention_out_bias=True,
    )
    init(model)
    return model


@torch.no_grad()
def init(model):
    """adaLN starts as identity, and some heads start by looking at a neighbour.

    Positions enter only through the rotary embedding of queries and keys, so a few
    heads get constant query and key vectors whose rotation peaks at one offset.
    """
    d = 256
    for name, p in model.named_parameters():
        if p.ndim == 2 and "scale_shift_table" not in name:
            torch.nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))
        elif name.endswith("bias"):
            p.zero_()
    model.time_embed.linear.weight.mul_(0.05)
    model.proj_out.weight.zero_()
    model.scale_shift_table.zero_()
    freqs = 10000.0 ** torch.linspace(0, 1, d // 6)
    step = torch.tensor([RATIO_T / FRAME_RATE / 20, RATIO_S / 2048, RATIO_S / 2048]) * math.pi  # phase of one step along t, y, x
    offsets = [(0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, -3), (0, 0, 3), (0, -3, 0), (0, 3, 0), (0, 0, 0), (-2, 0, 0), (2, 0, 0), (0, 2, 0), (0, -2, 0)]
    for i, block in enumerate(model.transformer_blocks):
        block.scale_shift_table.zero_()
        block.scale_shift_table[[2, 5]] = 0.5
        block.attn1.to_out[0].weight.mul_(0.5)
        block.attn2.to_out[0].weight.mul_(0.5)
        block.ff.net[2].weight.mul_(0.5)
        if i % 2:  # wakes up later (see `--wake`): adds nothing until it has learnt
            for lin in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                lin.weight.zero_()
        for n, head in enumerate((2, 3, 4, 6)):
            o = torch.tensor(offsets[(4 * i + n) % len(offsets)], dtype=torch.float)
            # dims: 4 unrotated, then for each frequency t, y, x in pairs
            phase = torch.cat([torch.zeros(2), (freqs[:, None] * step * o).flatten()])
            at = slice(head * 32, head * 32 + 32)
            pairs = phase[head * 16 : head * 16 + 16]
            # q rotated by p, k by p + o: their product peaks where the phases cancel
            block.attn1.to_q.bias[at] = torch.stack([pairs.cos(), pairs.sin()], 1).flatten() * 1.6
            block.attn1.to_k.bias[at] = torch.tensor([1.6, 0.0]).repeat(16)


class Attend:
    """The stock attention with one matrix product for q, k, v and a leaner rotation."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        if encoder_hidden_states is None:
            w = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
            b = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
            q, k, v = F.linear(hidden_states, w, b).chunk(3, -1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        q, k = attn.norm_q(q), attn.norm_k(k)
        if image_rotary_emb is not None:
            cos, sin = image_rotary_emb
            pairs = [x.unflatten(2, (-1, 2)).unbind(-1) for x in (q, k)]
            q, k = (torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(2) for a, b in pairs)
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        if attention_mask is not None:
            attention_mask = attention_mask.view(q.shape[0], 1, 1, -1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask).transpose(1, 2).flatten(2)
        return attn.to_out[0](x)


def starts(frames):
    """The pixel frame that each latent frame of a clip starts at: the first stands for one frame, the others for four."""
    return tuple(max(0, RATIO_T * i + 1 - RATIO_T) for i in range(frames))


def coordinates(at, h, w):
    """Where tokens are: seconds, pixels from the top, from the left. f32 [1, 3, L]; `at` as `starts` gives it."""
    grid = torch.meshgrid(torch.tensor(at).float() * (1 / FRAME_RATE), torch.arange(h).float() * RATIO_S, torch.arange(w).float() * RATIO_S, indexing="ij")
    return torch.stack(grid).flatten(1)[None]


def make_fast(model):
    """The same function, computed faster (checked against the stock one by `--check`); coordinates come as (at, h, w)."""
    stock, kept = model.rope.forward, {}

    def rope(hidden_states, f, h, w, scale, key):
        if key not in kept:
            cos, sin = stock(hidden_states[:1].float(), video_coords=coordinates(*key))
            kept[key] = (cos[..., ::2].contiguous(), sin[..., ::2].contiguous())
        return kept[key]

    model.rope.forward = rope
    for block in model.transformer_blocks:
        block.attn1.set_processor(Attend())
        block.attn2.set_processor(Attend())


class Text:
    """The frozen tokenizer and encoder; states are the pipeline's own (see train_text.pin)."""

    def __init__(self, work):
        import sentencepiece as spm

        self.sp = spm.SentencePieceProcessor(model_file=f"{work}/tokenizer/spiece.model")
        self.folder, self.stamp = f"{work}/text_encoder", None
        self.refresh()

    def refresh(self, log=print):
        """Open the encoder, again if it was trained further meanwhile."""
        try:
            stamp = os.stat(f"{self.folder}/model.safetensors").st_mtime
            if stamp != self.stamp:
                self.model = T5EncoderModel.from_pretrained(self.folder, dtype=torch.float32).eval()
                self.stamp = stamp
                log("text encoder opened")
        except Exception as e:  # being written: next time
            if self.stamp is None:
                raise
            log(f"text encoder kept: {e}")

    @torch.no_grad()
    def __call__(self, texts):
        rows = [self.sp.encode(t)[: TEXT - 1] + [1] for t in texts]
        n = TEXT  # one length for all, so that one compiled graph serves all
        ids = torch.tensor([r + [0] * (n - len(r)) for r in rows])
        mask = (ids != 0).float()
        return self.model(input_ids=ids, attention_mask=mask)[0], mask


class Pool:
    """All latents found so far, stills (1 frame) and videos; of these, those whose camera moves are drawn `moving` times as often."""

    def __init__(self, folder, moving=1.0):
        self.folder, self.moving, self.done, self.scanned = folder, moving, set(), 0
        self.shards = {"still": [], "video": []}

    def scan(self, log=print):
        if time.time() - self.scanned < 60 and self.done:
            return
        self.scanned = time.time()
        for path in sorted(glob.glob(f"{self.folder}/*.safetensors")):
            side = path[: -len(".safetensors")] + ".jsonl"
            if path in self.done or not os.path.exists(side):
                continue
            try:
                file = load_file(path)
                x = file["latents"]
                clips = [spec.clip_from_dict({k: d[k] for k in ("scene", "actors", "relation", "camera", "style", "seed")}) for d in map(json.loads, open(side))]
                assert len(clips) == len(x), (len(clips), len(x))
            except Exception as e:  # half-written: next time
                log(f"not yet {path}: {e}")
                continue
            self.done.add(path)
            weights = [self.moving if x.shape[2] > 1 and clip.camera != "static" else 1.0 for clip in clips]
            self.shards["still" if x.shape[2] == 1 else "video"].append((x, clips, file.get("keys"), list(accumulate(weights))))
        log(f"pool: {self.count('still')} stills, {self.count('video')} videos")
        return True

    def count(self, kind):
        return sum(len(s[1]) for s in self.shards[kind])

    def draw(self, kind, n, rng):
        """n latents [n, C, F, H, W] and their clips; a video's first latent frame is a still.

        For "key" a picture of the middle or last frame comes first; for "back" the beginning of the clip's second half,
        as a clip of its own. Third: the pixel frame that each latent frame starts at.
        """
        shards = self.shards["still"] * (kind == "still") + self.shards["video"]
        which = rng.randrange(2)
        xs, cs = [], []
        for x, clips, keys, weights in rng.choices(shards, [s[3][-1] for s in shards], k=n):
            i = rng.choices(range(len(clips)), cum_weights=weights)[0]
            x = x[i, :, :1] if kind == "still" else x[i]
            if kind == "key":
                x = torch.cat([keys[i, :, which : which + 1], x], 1)
            elif kind == "back":
                x = torch.cat([keys[i, :, :1], x[:, x.shape[1] // 2 + 1 :][:, :1], x], 1)
            xs.append(x)
            cs.append(clips[i])
        extra = {"key": 1, "back": 2}.get(kind, 0)
        x = torch.stack(xs).float()
        at = starts(x.shape[2] - extra)
        end = at[-1] + RATIO_T - 1
        return x, cs, ((end // (2 - which),) if kind == "key" else (end // 2, end // 2 + 1) if kind == "back" else ()) + at


class Muon(torch.optim.Optimizer):
    """Muon with all matrices of one shape orthogonalised together (fast on a CPU)."""

    def __init__(self, params, lr=2e-3, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in (p for p in group["params"] if p.grad is not None):
                shapes.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), ps in shapes.items():
                gs = []
                for p in ps:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    gs.append(p.grad.lerp(m, group["momentum"]))
                x = torch.stack(gs)
                if rows > cols:
                    x = x.mT.contiguous()
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for a, b, c in ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046)):
                    s = x @ x.mT
                    x = a * x + (b * s + c * (s @ s)) @ x
                if rows > cols:
                    x = x.mT
                for p, u in zip(ps, x):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * 0.2 * math.sqrt(max(rows, cols)))


def every_other(model):
    """The model without its sleeping blocks, on the same parameters."""
    net = copy.copy(model)
    net._modules = dict(model._modules)
    net._modules["transformer_blocks"] = torch.nn.ModuleList(list(model.transformer_blocks)[::2])
    return net


def sigmas(n, mean, gen):
    """Logit-normal, with a tenth uniform so that both ends are seen."""
    s = torch.sigmoid(torch.randn(n, generator=gen) + mean)
    u = torch.rand(n, generator=gen)
    return torch.where(torch.rand(n, generator=gen) < 0.1, u, s).clamp(1e-3, 1)


GIVEN = ("clean", "key", "back")  # kinds of batches in which some frames are given


def given(kind, n, frames, gen):
    """Which latent frames are given, not made. bool [n, frames]

    "clean": some of the clip's own, as continuations from either side have them; "key": a picture that comes before
    the clip's own frames, half the time with the clip's first frame too; "back": the two that come before, and the
    end of the clip: its second half is given, as the pipeline gives a clip that isn't at the start.
    """
    out = torch.zeros(n, frames, dtype=torch.bool)
    for row in out:
        p = torch.rand((), generator=gen).item()
        some = 1 + int(torch.randint(0, 3, (), generator=gen))
        if kind == "key":
            row[: 1 + (p < 0.5)] = True
        elif kind == "back":
            row[:2] = row[2 + (frames - 2) // 2 + 2 :] = True
        elif p < 0.4:
            row[0] = True
        elif p < 0.65:
            row[:some] = True
        elif p < 0.85:
            row[frames - some :] = True
        elif p < 0.93:
            row[0] = row[-1] = True
        else:
            row[torch.rand(frames, generator=gen) < 0.4] = True
            row[int(torch.randint(0, frames, (), generator=gen))] = False
    return out


def outside(n, frames, h, w, gen):
    """All cells but those of a random box, in all frames: what stays when only a region moves. bool [n, frames * h * w]"""
    out = torch.ones(n, frames, h, w, dtype=torch.bool)
    for row in out:
        (top, left), (rows, columns) = ((int(torch.randint(0, k, (), generator=gen)) for k in (h - 2, w - 2)), (3 + int(torch.randint(0, k - 2, (), generator=gen)) for k in (h, w)))
        row[:, top : top + rows, left : left + columns] = False
    return out.flatten(1)


def follow(noise, clips, at, share, gen):
    """Moves the noise of panning clips along with their pictures, so that noise that moves makes a pan.

    noise: f32 [n, f, h, w, C], changed in place. `share` of the noise's power moves, the rest is every frame's own, so
    that each frame alone is as it was (warped noise: Burgert et al., arXiv 2501.08331).
    """
    for one, clip, part in zip(noise, clips, share):
        way = {"pan_left": 1, "pan_right": -1}.get(clip.camera)
        if way is None or part == 0:
            continue
        _, h, w, c = one.shape
        strip = torch.cat([torch.randn(h, w, c, generator=gen), one[0], torch.randn(h, w, c, generator=gen)], 1)
        for i, start in enumerate(at):
            frame = start + (RATIO_T - 1) / 2 * (i > 0)
            moved = round(way * PAN * w * frame / FRAME_RATE)
            one[i] = part**0.5 * strip[:, w - moved : 2 * w - moved] + (1 - part) ** 0.5 * one[i]


def pack(x):
    return x.flatten(2).transpose(1, 2)


def train(args):
    torch.set_num_threads(args.threads)
    work = args.work
    logfile = open(f"{work}/transformer.log", "a")

    def log(s):
        print(s, flush=True)
        logfile.write(s + "\n")
        logfile.flush()

    pool = Pool(args.latents or f"{work}/latents", args.moving)
    while not pool.count("still") + pool.count("video") >= args.least:
        pool.scanned = 0
        pool.scan()
        if pool.count("still") + pool.count("video") < args.least:
            time.sleep(10)
    channels = (pool.shards["still"] + pool.shards["video"])[0][0].shape[1]
    text = Text(work)
    # Channels weigh as their spread in the latents: what is seen most counts most.
    some = (pool.shards["still"] + pool.shards["video"])[0][0][:2000, :PIXELS, :1].float().var((0, 2, 3, 4))
    visible = torch.cat([some / some.mean(), torch.full((channels - PIXELS,), args.parts)])
    covered, spread = (v[:4].mean() for v in torch.load(f"{work}/basis.pt")["where"])
    model = make_model(channels)
    make_fast(model)
    params = list(model.parameters())
    in_blocks = {id(p) for b in model.transformer_blocks for n, p in b.named_parameters() if p.ndim == 2 and "table" not in n}
    if args.optimizer == "muon":
        square = [[p for p in params if id(p) in in_blocks and (p.shape[0] == p.shape[1]) == same] for same in (True, False)]
        adamw = torch.optim.AdamW([p for p in params if id(p) not in in_blocks], lr=args.lr_adam, betas=(0.9, 0.97), weight_decay=0.0)
        opts = [*(Muon(ps, lr=args.lr) for ps in square), adamw]
        rates = [args.lr, args.lr, args.lr_adam]
    else:
        opts = [torch.optim.AdamW(params, lr=args.lr_adam, betas=(0.9, 0.97), weight_decay=0.01)]
        rates = [args.lr_adam]
    if args.init:
        known = LTXVideoTransformer3DModel.from_pretrained(args.init, torch_dtype=torch.float32).state_dict()
        for name, p in model.state_dict().items():  # channels that it doesn't know yet start at nothing
            old = known[name]
            if old.shape != p.shape:
                p.zero_()
            p[tuple(slice(n) for n in old.shape)] = old
    ema = [p.detach().clone() for p in params]
    state = {"step": 0, "elapsed": 0.0, "seen_still": 0, "seen_video": 0}
    ckpt = f"{work}/transformer.ckpt"
    if args.resume and os.path.exists(ckpt):
        saved = torch.load(ckpt, weights_only=False)
        model.load_state_dict(saved["model"])
        ema = saved["ema"]
        for o, s in zip(opts, saved["opts"]):
            o.load_state_dict(s)
        state = saved["state"]
        log(f"resumed at {state}")
    log(f"transformer {sum(p.numel() for p in params) / 1e6:.2f} M parameters, {len(in_blocks)} matrices")
    rng, gen = random.Random(state["step"] + 1), torch.Generator().manual_seed(state["step"] + 1)
    limit = args.minutes * 60
    # t is the share of the allotted time; `base` lets a resumed run keep its place
    base, start, last_save, last_log = state["elapsed"], time.time(), time.time(), time.time()
    workers = ThreadPoolExecutor(args.workers)
    quart, qn, seen = torch.zeros(2, 4), torch.zeros(2, 4), 0

    def save():
        torch.save({"model": model.state_dict(), "ema": ema, "opts": [o.state_dict() for o in opts], "state": state}, ckpt + ".part")
        os.replace(ckpt + ".part", ckpt)
        tmp = make_model(channels)
        for p, e in zip(tmp.parameters(), ema):
            p.data.copy_(e)
        tmp.save_pretrained(f"{work}/transformer.part")
        shutil.rmtree(f"{work}/transformer", ignore_errors=True)
        os.rename(f"{work}/transformer.part", f"{work}/transformer")

    def half(net, x, clips, kind, at, seed):
        """Loss and gradients of one worker's part of the batch."""
        g = torch.Generator().manual_seed(seed)
        r = random.Random(seed)
        n, _, f, h, w = x.shape
        texts = ["" if r.random() < 0.1 else captions.caption(c, r) for c in clips]
        states, mask = text(texts)
        s = sigmas(n, args.mean_still if kind == "still" else args.mean_video, g)
        # Tokens where something stands count more than scenery.
        heavy = pack(0.7 + 1.5 * (covered + spread * x[:, PIXELS : PIXELS + 4].mean(1, keepdim=True)))
        st = s[:, None]
        if kind in GIVEN:
            clean = given(kind, n, f, g)
            # A picture from elsewhere doesn't say what is where; a clip of our own does.
            foreign = clean & (torch.rand(n, 1, generator=g) < (1.0 if kind == "key" else 0.6))
            x[:, PIXELS:].masked_fill_(foreign[:, None, :, None, None], 0)
            clean = clean.repeat_interleave(h * w, 1)
            if kind == "clean":
                still = torch.tensor([c.camera == "static" for c in clips]) & (torch.rand(n, generator=g) < 0.2)
                still = still[:, None] & outside(n, f, h, w, g)
                x[:, PIXELS:].masked_fill_(still.view(n, 1, f, h, w), 0)
                clean |= still
            st = torch.where(clean, 0.0, st)
            heavy = heavy * (~clean)[..., None]
        x0 = pack(x)
        noise = torch.randn(x0.shape, generator=g)
        if kind in ("video", "clean"):
            share = [0 if r.random() < 0.2 else 1 if r.random() < 0.6 else r.random() for _ in clips]
            follow(noise.view(n, f, h, w, -1), clips, at, share, g)
        xt = (1 - st[..., None]) * x0 + st[..., None] * noise
        if kind in GIVEN:  # the pipeline keeps given frames a little noisy in the beginning
            xt = xt + clean[..., None] * 0.15 * (s * s * (torch.rand(n, generator=g) < 0.8))[:, None, None] * noise
        out = net(xt, states, st * 1000, mask, f, h, w, None, (at, h, w), return_dict=False)[0]
        err = (out - (noise - x0)) ** 2 * visible * heavy / heavy.mean()
        each = err.mean((1, 2))
        grads = torch.autograd.grad(each.sum(), params, allow_unused=True)
        return each.detach(), s, grads

    small = every_other(model)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # kinds of batches, and their ways of lying in memory
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    ready = set()
    start = last_save = last_log = time.time()
    while True:
        elapsed = base + time.time() - start
        t = elapsed / limit
        if t >= 1:
            break
        if pool.scan(log):
            text.refresh(log)
        kind = "still"
        if t >= args.stills and pool.count("video") > 0 and rng.random() >= args.still_share:
            kind = "video"
            if t > args.stills + args.free:
                kind = rng.choices(("video", *GIVEN), (0.60, 0.26, 0.08, 0.06))[0]
        n = args.batch_still if kind == "still" else args.batch_video
        x, clips, at = pool.draw(kind, n, rng)
        k = args.workers
        net = model if t >= args.wake else small
        if args.compile and kind not in ready:  # compile once, before the workers run side by side
            ready.add(kind)
            half(net, x[::k].clone(), clips[::k], kind, at, 0)
            log(f"compiled {kind} {time.time() - start:.0f} s")
        jobs = [workers.submit(half, net, x[i::k], clips[i::k], kind, at, rng.getrandbits(40)) for i in range(k)]
        done = [j.result() for j in jobs]
        for i, p in enumerate(params):
            gs = [d[2][i] for d in done if d[2][i] is not None]
            p.grad = sum(gs[1:], gs[0]) / n if gs else None
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0).item()
        lr = min(1, (state["step"] + 1) / 40) * min(1, max(0.03, (1 - t) / args.decay))
        for o, rate in zip(opts, rates):
            for group in o.param_groups:
                group["lr"] = rate * lr
        for j in [workers.submit(o.step) for o in opts]:
            j.result()
        state["step"] += 1
        keep = 1 - 1 / max(10, min(args.ema * state["step"], 500))
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - keep)
        state["seen_still" if kind == "still" else "seen_video"] += n
        state["elapsed"] = base + time.time() - start
        seen += n
        row = 0 if kind == "still" else 1
        for each, s, _ in done:
            q = (s * 4).long().clamp(max=3)
            quart[row].index_add_(0, q, each)
            qn[row].index_add_(0, q, torch.ones_like(each))
        if state["step"] % args.log_every == 0:
            now = time.time()
            q = (quart / qn.clamp(min=1)).tolist()
            log(f"step {state['step']} {state['elapsed']:.0f} s still {[round(v, 3) for v in q[0]]} video {[round(v, 3) for v in q[1]]} norm {norm:.2f} rate {lr:.2f} {seen / (now - last_log):.1f} samples/s seen {state['seen_still']}+{state['seen_video']}")
            last_log, seen = now, 0
            quart.zero_()
            qn.zero_()
        if time.time() - last_save > args.save_every:
            last_save = time.time()
            save()
    save()
    log(f"done {state}")


def timesteps(steps, shift):
    """Equal steps of sigma, shifted towards noise."""
    s = [1 - i / steps for i in range(steps)]
    return [round(1000 * shift * v / (1 + (shift - 1) * v), 3) for v in s]


def pipeline(work, transformer=None):
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
    from transformers import T5TokenizerFast

    return LTXConditionPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        vae=AutoencoderKLLTXVideo.from_pretrained(f"{work}/vae", torch_dtype=torch.float32).eval(),
        text_encoder=T5EncoderModel.from_pretrained(f"{work}/text_encoder", dtype=torch.float32).eval(),
        tokenizer=T5TokenizerFast.from_pretrained(f"{work}/tokenizer"),
        transformer=LTXVideoTransformer3DModel.from_pretrained(transformer or f"{work}/transformer", torch_dtype=torch.float32).eval(),
    )


def sheet(args):
    from PIL import Image, ImageDraw

    torch.set_num_threads(args.threads * args.workers)
    pipe = pipeline(args.work, args.transformer)
    pipe.set_progress_bar_config(disable=True)
    start = time.time()
    gens = [torch.Generator().manual_seed(args.seed + i) for i in range(len(args.sample))]
    with torch.no_grad():
        videos = pipe(
            prompt=args.sample, width=128, height=128, num_frames=args.frames, frame_rate=FRAME_RATE, timesteps=timesteps(args.steps, args.shift), guidance_scale=args.guidance,
            guidance_rescale=args.rescale, generator=gens, output_type="np", max_sequence_length=128,
        ).frames
    print(f"{time.time() - start:.1f} s")
    picks = [0] if args.frames == 1 else [round(i * (args.frames - 1) / 4) for i in range(5)]
    per = 6 if args.frames == 1 else 2
    cell_w, cell_h = len(picks) * 130 + 6, 144
    rows = math.ceil(len(videos) / per)
    out = Image.new("RGB", (per * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(out)
    for i, v in enumerate(videos):
        x, y = i % per * cell_w, i // per * cell_h
        draw.text((x + 2, y), args.sample[i][: 100 if args.frames > 1 else 22], fill="black")
        for j, k in enumerate(picks):
            out.paste(Image.fromarray((v[k] * 255).clip(0, 255).astype("uint8")), (x + j * 130, y + 14))
    out.save(args.out)


def check():
    """The fast forward equals the stock one, also with a timestep per token."""
    a, b = make_model(CHANNELS).eval(), make_model(CHANNELS).eval()
    for p in a.parameters():
        p.data += torch.randn_like(p) * 0.05
    b.load_state_dict(a.state_dict())
    make_fast(b)
    x, c, m = torch.randn(3, 320, CHANNELS), torch.randn(3, 9, 256), torch.ones(3, 9)
    at = starts(5)
    m[1, 5:] = 0
    for t in (torch.rand(3) * 1000, torch.rand(3, 320) * 1000):
        with torch.no_grad():
            u, v = (q(x, c, t, m, 5, 8, 8, None, where, return_dict=False)[0] for q, where in ((a, coordinates(at, 8, 8).expand(3, -1, -1)), (b, (at, 8, 8))))
        print("fast against stock:", (u - v).abs().max().item(), "of", u.abs().max().item())


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", default=".work/train")
    ap.add_argument("--latents", default=None)
    ap.add_argument("--least", type=int, default=1000, help="wait until the pool holds this many")
    ap.add_argument("--minutes", type=float, default=60)
    ap.add_argument("--resume", action="store_true")
    ap.add_argument("--init", default=None, help="a folder of weights to start from, such as models/mini/transformer")
    ap.add_argument("--threads", type=int, default=1, help="threads within an operation, per worker")
    ap.add_argument("--workers", type=int, default=2, help="parts of a batch computed side by side")
    ap.add_argument("--optimizer", default="muon", choices=("muon", "adamw"))
    ap.add_argument("--lr", type=float, default=4e-3, help="of Muon: the matrices of the blocks")
    ap.add_argument("--lr-adam", type=float, default=2e-3, help="of AdamW: all else")
    ap.add_argument("--decay", type=float, default=0.3, help="share of the time over which the rate falls to the end")
    ap.add_argument("--ema", type=float, default=0.08, help="EMA horizon as a share of the steps so far")
    ap.add_argument("--batch-still", type=int, default=64)
    ap.add_argument("--batch-video", type=int, default=16)
    ap.add_argument("--wake", type=float, default=0.17, help="share of the time on every other block alone")
    ap.add_argument("--stills", type=float, default=0.42, help="share of the time on stills alone")
    ap.add_argument("--still-share", type=float, default=0.2)
    ap.add_argument("--moving", type=float, default=1.0, help="how much more often clips are drawn whose camera moves")
    ap.add_argument("--free", type=float, default=0.1, help="share of the time on videos before some frames are given")
    ap.add_argument("--parts", type=float, default=0.8, help="weight of the channels that say what is where")
    ap.add_argument("--mean-still", type=float, default=0.3)
    ap.add_argument("--mean-video", type=float, default=0.7)
    ap.add_argument("--log-every", type=int, default=20)
    ap.add_argument("--save-every", type=float, default=180)
    ap.add_argument("--no-compile", dest="compile", action="store_false")
    ap.add_argument("--check", action="store_true")
    ap.add_argument("--sample", nargs="+")
    ap.add_argument("--transformer", default=None)
    ap.add_argument("--out", default="sheet.png")
    ap.add_argument("--frames", type=int, default=17)
    ap.add_argument("--steps", type=int, default=25)
    ap.add_argument("--guidance", type=float, default=3.0)
    ap.add_argument("--rescale", type=float, default=0.0)
    ap.add_argument("--shift", type=float, default=2.0)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    if args.check:
        check()
    elif args.sample:
        sheet(args)
    else:
        train(args)


if __name__ == "__main__":
    main()
