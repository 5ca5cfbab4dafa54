"""Render clips of the mini world: sprites that move before moving scenery."""

import math
import random

import torch
import torch.nn.functional as F

from scenery import FLOOR, GROUNDED, LIQUID, SCENERY, ramp
from spec import SUBJECTS, TRAVEL, Clip

CODE = 6
PARTS = 1 + CODE + 6
FLIP = 1 + CODE + 2  # the channel that a mirror turns


def _codes(names):
    """A direction of CODE numbers for each name, as far from one another as they come."""
    x = torch.randn(len(names), CODE, generator=torch.Generator().manual_seed(0))
    for _ in range(300):
        x = x / x.norm(dim=1, keepdim=True)
        gap = x[:, None] - x[None]
        push = gap / (gap.norm(dim=-1, keepdim=True) ** 3 + 1e-3)
        x = x + 0.01 * push.sum(1)
    return dict(zip(names, x / x.norm(dim=1, keepdim=True) * CODE**0.5))


CODES = _codes([*SUBJECTS, "palm", "cactus", "pine", "tree", "flower", "coral", "planet", "cloud"])
SPAN = 2.0  # seconds a movement takes: 17 frames, 8 a second
UPSIDE = ("ball", "rocket", "saucer", "fish", "dolphin", "heart", "balloon", "bee")  # roll over when they spin
LEAN = {"rocket": math.pi / 4}  # the artwork points this far off its course


class World:
    """Renderer over the sprites of `assets.py`.

    `render` gives f32 [B, 3, F, H, W] in -1..1. A clip's movement lasts two
    seconds; `start` (seconds, per clip) begins later, `crop` = (top, left, height,
    width) cuts a window out of the size × size frame at no cost for the rest.
    """

    def __init__(self, sprites):
        art = torch.load(sprites, map_location="cpu") if not isinstance(sprites, dict) else sprites
        self.mips = {}
        for key, styles in art.items():
            for style, tex in styles.items():
                whole = tex.float().div(255)
                self.mips[key, style] = (whole, F.avg_pool2d(whole, 2))

    def render(self, clips, frames=17, size=128, fps=8, start=None, crop=None, parts=False):
        """Pictures; with `parts` also what is where: f32 [B, PARTS, F, H / 4, W / 4], see `_parts` (crops then lie on fours)."""
        start = start or [0.0 if frames > 1 else random.Random(c.seed).uniform(0, SPAN) for c in clips]
        made = [self._clip(c, frames, size, fps, s, crop, parts) for c, s in zip(clips, start)]
        if not parts:
            return torch.stack([video for video, _ in made])
        return torch.stack([video for video, _ in made]), torch.stack([where for _, where in made])

    def _clip(self, clip: Clip, frames, size, fps, start, crop, parts):
        rng = random.Random(clip.seed)
        top, left, high, wide = crop or (0, 0, size, size)
        t = start + torch.arange(frames) / fps
        # The camera: screen = (world - pan) * zoom.
        u = (t / SPAN).clamp(0, 1)
        zoom = {"zoom_in": 0.85 + 0.35 * u, "zoom_out": 1.2 - 0.35 * u}.get(clip.camera, torch.ones(1))
        pan = {"pan_left": 0.3 - 0.6 * u, "pan_right": -0.3 + 0.6 * u}.get(clip.camera, torch.zeros(1))
        sx = (torch.arange(left, left + wide) + 0.5) * (2 / size) - 1
        sy = (torch.arange(top, top + high) + 0.5) * (2 / size) - 1
        x = sx / zoom.view(-1, 1, 1) + pan.view(-1, 1, 1)
        y = (sy / zoom.view(-1, 1)).unsqueeze(-1)
        image = SCENERY[clip.scene](rng, x, y, t.view(-1, 1, 1))
        image = image.expand(frames, -1, high, wide).contiguous()
        view = (zoom.expand(frames), pan.expand(frames), sx, sy)
        near = (zoom.expand(frames), 0.4 * pan.expand(frames), sx, sy)  # the camera half follows the actors
        style = "flat" if clip.style == "flat" else "3d"
        drawn = []
        for prop in scenery_props(clip.scene, rng, t):
            self._paste(image, view, style, t, prop)
            drawn.append((prop, view))
        for thing in things(clip, rng, t):
            drawn.append((thing, near))
            self._ground(image, near, clip.scene, thing, t)
            self._paste(image, near, style, t, thing)
            self._waterline(image, near, clip.scene, thing, t)
        if clip.style == "bw":
            luma = image[:, :1] * 0.3 + image[:, 1:2] * 0.59 + image[:, 2:] * 0.11
            image = luma.expand(-1, 3, -1, -1)
        where = None
        if parts:
            rows, columns = slice(top // 4, (top + high) // 4), slice(left // 4, (left + wide) // 4)
            where = self._parts(drawn, style, t, size)[..., rows, columns].transpose(0, 1)
        return image.clamp(0, 1).mul(2).sub(1).transpose(0, 1), where

    def _parts(self, drawn, style, t, size):
        """What is where, at the middle of each 4×4 pixels: [F, PARTS, size / 4, size / 4].

        Channels, all 0 where nothing stands: whether something does, which (a code of
        CODE numbers for each sprite), which point of it (across, down), its mirroring,
        its size, and how far its own loop of pictures has come (cosine, sine).
        """
        n = size // 4
        at = (torch.arange(n) + 0.5) * (2 / n) - 1
        out = torch.zeros(len(t), PARTS, n, n)
        for thing, (zoom, pan, _, _) in drawn:
            half = (thing["size"] * zoom / 2).view(-1, 1, 1)
            px = (at.view(1, 1, n) - ((thing["x"] - pan) * zoom).view(-1, 1, 1)) / half
            py = (at.view(1, n, 1) - ((thing["y"] - thing["size"] / 2) * zoom).view(-1, 1, 1)) / half
            gx, gy = within(thing, px, py)
            tex = self.mips[thing["key"], style][1]
            step = t * 8 + thing["phase"]
            grid = torch.stack((gx.expand(-1, n, n), gy.expand(-1, n, n)), -1)
            alpha = F.grid_sample(tex[step.floor().long() % tex.shape[0], 3:], grid, align_corners=False)
            loop = 2 * math.pi * step / tex.shape[0] * (tex.shape[0] > 1)
            flat = lambda v: v.view(-1, 1, 1).expand(-1, n, n)
            code = CODES[thing["key"]].view(1, -1, 1, 1).expand(len(t), -1, n, n)
            rest = torch.stack([gx.expand(-1, n, n), gy.expand(-1, n, n), flat(thing["flip"].sign()), half.expand(-1, n, n), flat(loop.cos()), flat(loop.sin())], 1)
            out = out * (1 - alpha) + alpha * torch.cat([torch.ones_like(alpha), code, rest.clamp(-1.5, 1.5)], 1)
        return out

    def _paste(self, image, view, style, t, thing):
        """Draw one sprite in all frames: sampled in a box, then laid in place."""
        zoom, pan, sx, sy = view
        frames, _, high, wide = image.shape
        unit = 1 / float(sx[1] - sx[0])  # pixels per world unit
        size = thing["size"] * zoom  # side of the square, world units [F]
        cx = (thing["x"] - pan) * zoom
        cy = (thing["y"] - thing["size"] / 2) * zoom  # y is where it stands
        box = int(math.ceil(float(size.max()) * unit * (1.42 if thing["turns"] else 1.12))) + 2
        ox = ((cx - sx[0]) * unit - box / 2).round()
        oy = ((cy - sy[0]) * unit - box / 2).round()
        mips = self.mips[thing["key"], style]
        tex = mips[1] if float(size.max()) * unit < 60 else mips[0]
        index = (t * 8 + thing["phase"]).floor().long() % tex.shape[0]
        pix = torch.arange(box)
        px = (((ox[:, None] + pix) / unit + sx[0]) - cx[:, None]) / (size[:, None] / 2)
        py = (((oy[:, None] + pix) / unit + sy[0]) - cy[:, None]) / (size[:, None] / 2)
        gx, gy = within(thing, px[:, None, :], py[:, :, None])
        grid = torch.stack((gx.expand(frames, box, box), gy.expand(frames, box, box)), -1)
        patch = F.grid_sample(tex[index], grid, align_corners=False)
        keep = 1 - patch[:, 3:]
        for f in range(frames):
            x0, y0 = int(ox[f]), int(oy[f])
            a, b = max(0, x0), min(wide, x0 + box)
            c0, d = max(0, y0), min(high, y0 + box)
            if a < b and c0 < d:
                ys, xs = slice(c0 - y0, d - y0), slice(a - x0, b - x0)
                spot = image[f, :, c0:d, a:b]
                spot.mul_(keep[f, :, ys, xs]).add_(patch[f, :3, ys, xs])

    def _oval(self, view, x, y, a, b):
        """Squared distance from an ellipse's centre: 1 on its edge. [F, H, W]"""
        zoom, pan, sx, sy = view
        px = (sx - ((x - pan) * zoom)[:, None]) / (a * zoom)[:, None]
        py = (sy - (y * zoom)[:, None]) / (b * zoom)[:, None]
        return (px * px)[:, None, :] + (py * py)[:, :, None]

    def _ground(self, image, view, scene, thing, t):
        """A soft shadow where land is below."""
        if scene in GROUNDED and thing["rest"] is not None:
            lift = (thing["rest"] - thing["y"]).clamp(min=0)
            a = thing["size"] * (0.42 - 0.25 * lift.clamp(max=1))
            d = self._oval(view, thing["x"], thing["rest"], a, 0.2 * a)
            image.mul_((1 - 0.38 * ramp(d, 1.0, 0.3)).unsqueeze(1))

    def _waterline(self, image, view, scene, thing, t):
        """Foam around the foot of what floats."""
        if scene in LIQUID and thing["floats"]:
            a = thing["size"] * 0.5
            d = self._oval(view, thing["x"] + 0.02 * torch.sin(5 * t), thing["y"] - 0.02 * thing["size"], a, 0.13 * a)
            foam = {"coffee": (0.93, 0.84, 0.68), "sea": (0.92, 0.98, 1.0), "sunset": (1.0, 0.75, 0.6)}[scene]
            color = torch.tensor(foam).view(1, 3, 1, 1)
            mask = 0.9 * ramp((d - 0.75 - 0.1 * torch.sin(6 * t).view(-1, 1, 1)).abs(), 0.45, 0.15)
            image.add_((color - image) * mask.unsqueeze(1))


def within(thing, px, py):
    """Points of the artwork, −1..1 from edge to edge, that lie at px, py from its middle in half sides."""
    wide = lambda name: thing[name].view(-1, 1, 1)
    c, s = torch.cos(wide("turn")), torch.sin(wide("turn"))
    gx = (c * px + s * py) / wide("flip")
    return gx, (c * py - s * px) / wide("squash") + (1 - 1 / wide("squash"))


def thing(key, x, y, size, flip=1.0, turn=0.0, squash=1.0, phase=0, rest=None, floats=False, like=None):
    """One sprite over time; x, y, size, flip, turn, squash become f32 [F]."""
    full = lambda v: (v if torch.is_tensor(v) else torch.tensor(float(v))).expand_as(like).float()
    turn = full(turn)
    return {
        "key": key, "x": full(x), "y": full(y), "size": full(size), "flip": full(flip), "turn": turn,
        "squash": full(squash), "phase": phase, "rest": rest, "floats": floats,
        "turns": bool(turn.abs().max() > 0.15),
    }  # fmt: skip


def scenery_props(scene, rng, t):
    """Pieces of scenery, as things."""
    def stand(key, n, lo, hi, y):
        for _ in range(n):
            size = rng.uniform(lo, hi)
            x = rng.choice((-1, 1)) * rng.uniform(0.45, 1.05)
            yield thing(key, x, y + 0.12 * (size - lo), size, turn=0.03 * torch.sin(1.5 * t + x), like=t)

    if scene == "beach":
        yield from stand("palm", 1, 0.75, 1.0, 0.36)
    elif scene == "desert":
        yield from stand("cactus", 2, 0.35, 0.6, 0.34)
    elif scene == "snow":
        yield from stand("pine", 2, 0.5, 0.75, 0.36)
    elif scene == "forest":
        yield from stand("pine", 1, 0.8, 1.0, 0.5)
        yield from stand("tree", 2, 0.8, 1.1, 0.5)
    elif scene == "meadow":
        for _ in range(4):
            x, y = rng.uniform(-1, 1), rng.uniform(0.55, 0.98)
            yield thing("flower", x, y, 0.2, turn=0.1 * torch.sin(2 * t + 3 * x), like=t)
    elif scene == "space":
        x, y = rng.choice((-0.6, 0.6)), rng.uniform(-0.35, -0.1)
        yield thing("planet", x + 0.02 * t, y, rng.uniform(0.4, 0.6), like=t)
    elif scene == "sky":
        for i in range(3):
            x, y = rng.uniform(-1.1, 0.9), (-0.45, 0.25, 0.9)[i] + rng.uniform(-0.12, 0.12)
            yield thing("cloud", x + rng.uniform(0.05, 0.14) * t, y, rng.uniform(0.5, 0.8), like=t)
    elif scene == "sea":
        yield thing("cloud", rng.uniform(-0.8, 0.8) + 0.06 * t, -0.45, 0.45, like=t)
    elif scene == "underwater":
        yield from stand("coral", 2, 0.3, 0.42, 0.9)


def layout(clip, rng):
    """[(actor, x, facing | None)] in drawing order: where each one is on average."""
    if len(clip.actors) == 1:
        actor = clip.actors[0]
        if actor.count == 1:
            return [(actor, 0.0 if actor.action in TRAVEL else rng.uniform(-0.2, 0.2), None)]
        if clip.relation == "facing" and actor.count == 2:
            return [(actor, -0.47, "right"), (actor, 0.47, "left")]
        xs = (-0.47, 0.47) if actor.count == 2 else (-0.64, 0.0, 0.64)
        if actor.direction in ("up", "down") or actor.action not in TRAVEL:
            return [(actor, x, None) for x in xs]
        return [(actor, x * 0.9, None) for x in xs]
    first, second = clip.actors
    if clip.relation == "chasing":
        ahead = 0.47 if second.direction == "right" else -0.47
        return [(first, -ahead, None), (second, ahead, None)]
    if clip.relation == "facing":
        return [(first, -0.47, "right"), (second, 0.47, "left")]
    side = rng.choice((-0.47, 0.47))
    return [(first, side, None), (second, -side, None)]


def things(clip, rng, t):
    """The actors' sprites over time, far ones first."""
    places = layout(clip, rng)
    crowd = len(places)
    u = (t / SPAN).clamp(0, 1.5)
    size = {1: rng.uniform(0.98, 1.3), 2: rng.uniform(0.8, 0.92), 3: rng.uniform(0.66, 0.76)}[crowd]
    reach = {1: rng.uniform(0.75, 1.15), 2: rng.uniform(0.45, 0.6), 3: rng.uniform(0.35, 0.5)}[crowd]
    mirrored = rng.random() < 0.5
    out = []
    for n, (actor, x, look) in enumerate(places):
        out.append(_thing(clip, actor, x, look, rng, t, u, size, reach, mirrored, n, crowd))
    return sorted(out, key=lambda o: o["rank"])


def _thing(clip, actor, x0, look, rng, t, u, size, reach, mirrored, n, crowd):
    subject, action, way = SUBJECTS[actor.subject], actor.action, actor.direction
    p = rng.uniform(0, 6.3) if crowd > 1 else rng.uniform(0, 1)
    size = size * rng.uniform(0.95, 1.05)
    flies = action in ("fly", "rise", "fall") or (subject.ground == "air" and action != "idle") or clip.scene in ("sky", "space", "underwater")
    depth = rng.uniform(-0.05, 0.05) if crowd == 1 else (0.14 * (n % 2) - 0.05)
    if flies:
        rest = None if clip.scene not in GROUNDED else FLOOR[clip.scene] + 0.12 + depth
        base = rng.uniform(-0.12, 0.08) + size / 2 + depth
    else:
        base = FLOOR[clip.scene] + depth + (0.12 if size > 1.1 else 0.05)
        rest = base
    if actor.subject == "cup" and clip.scene == "coffee":
        size = size * 0.85

    facing = look or (way if way in ("left", "right") else None)
    if facing is None:
        facing = "left" if mirrored else "right"
    flip = 1.0 if subject.facing in (facing, "none") else -1.0
    sign = {"left": -1.0, "right": 1.0}.get(way, 0.0)
    lean = LEAN.get(actor.subject, 0.0)
    wave = lambda hz, amp: amp * torch.sin(2 * math.pi * hz * t + p)
    hop = lambda hz, amp: amp * torch.sin(math.pi * hz * t + p).abs()
    x, y, turn, squash, grow, swing = x0 + 0 * t, base + 0 * t, 0 * t, 1.0 + 0 * t, 1.0 + 0 * t, flip + 0 * t
    go = reach * (u - 0.5)
    if action in ("sail", "fly") and way in ("left", "right"):
        x, y, turn = x + sign * go, y + wave(0.7, 0.05), wave(0.7, 0.09)
    elif action in ("fly", "rise", "fall"):
        climb = -1.0 if way == "up" else 1.0
        y, x, turn = y + climb * 1.1 * (u - 0.5), x + wave(0.6, 0.04), wave(0.6, 0.06)
        turn = turn - flip * lean if way == "up" else turn + flip * 3 * lean
    elif action == "walk":
        x, y, turn = x + sign * 0.8 * go, y - hop(3, 0.03), wave(1.5, 0.03)
    elif action == "run":
        x, y, turn = x + sign * 1.15 * go, y - hop(5, 0.07), sign * 0.07 + wave(2.5, 0.03)
    elif action == "drive":
        x, y = x + sign * 1.15 * go, y - hop(8, 0.015)
    elif action == "roll":
        x, turn = x + sign * go, sign * 2 * math.pi * u * 0.8
    elif action == "bob":
        y, turn = y + wave(0.8, 0.07), wave(0.6, 0.12)
    elif action == "bounce":
        h = torch.sin(math.pi * 1.5 * t + p).abs()
        y, squash = y - (0.38 if crowd == 1 else 0.32) * h, 0.84 + 0.16 * (h * 3).clamp(max=1)
        y = y + 0.1
    elif action == "spin":
        angle = 2 * math.pi * u + p
        if actor.subject in UPSIDE:
            turn = angle
        else:
            c = torch.cos(angle)
            swing = flip * torch.where(c >= 0, c.clamp(min=0.12), c.clamp(max=-0.12))
    elif action == "dance":
        x, y, turn = x + wave(1.0, 0.1), y - hop(4, 0.07), wave(1.0, 0.16)
    elif action in ("grow", "shrink"):
        s = u if action == "grow" else 1 - u
        grow = 0.42 + 0.75 * s
        if flies:
            y = y - 0.5 * size * (1 - grow)
    else:
        squash, turn = 1 + wave(0.5, 0.015), wave(0.4, 0.02)
    if rest is not None and not torch.is_tensor(rest):
        rest = torch.full_like(t, rest)
    floats = clip.scene in LIQUID and not flies
    made = thing(actor.subject, x, y, size * grow, swing, turn, squash, rng.randrange(24) if crowd > 1 else 0, rest, floats, like=t)
    return made | {"rank": base}
