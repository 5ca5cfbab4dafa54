"""The judge's networks, and what they are asked.

`FrameNet` looks at single frames: which subjects, how many, which scene and style, and where they stand. `MotionNet`
looks at a clip's brightness and at what `FrameNet` takes for subjects: action and direction. `CameraNet` measures how what
is behind the subjects shifts and grows, and judges by that. `look` asks them all.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spec import CAMERAS, DIRECTIONS, SCENES, STYLES, SUBJECTS
from world import CODE, CODES

NAMES = list(SUBJECTS)
FRAMES, SIDE, GRID, SMALL = 17, 96, 16, 48  # what clips are shrunk to; cells of the map; side for motion
# What can be seen of an action. Sailing, walking, running, driving, rolling and flying to a side differ by a pixel or two
# of rocking, so they are one; so are flying up and rising, flying down and falling.
ACTS = ("travel", "rise", "fall", "bob", "bounce", "spin", "dance", "grow", "shrink", "idle")
LUMA = torch.tensor([0.3, 0.59, 0.11]).view(3, 1, 1)
HEADS = {"count": (1, 2, 3), "scene": SCENES, "style": STYLES}
MOVES = {"act": ACTS, "direction": DIRECTIONS, "camera": CAMERAS}


def act_of(actor):
    """What can be seen of an actor's action."""
    if actor.direction in ("left", "right"):
        return "travel"
    return {"up": "rise", "down": "fall"}.get(actor.direction, actor.action)


def labels(clip):
    """Indices of what is to be seen; -1 for action and direction where two actors differ."""
    acts = {act_of(a) for a in clip.actors}
    ways = {a.direction for a in clip.actors}
    return {
        "subjects": [NAMES.index(a.subject) for a in clip.actors],
        "count": min(sum(a.count for a in clip.actors), 3) - 1,
        "scene": SCENES.index(clip.scene),
        "style": STYLES.index(clip.style),
        "camera": CAMERAS.index(clip.camera),
        "act": ACTS.index(acts.pop()) if len(acts) == 1 else -1,
        "direction": DIRECTIONS.index(ways.pop()) if len(ways) == 1 else -1,
    }


def maps(where):
    """From `World.render(parts=True)`: subjects (0 is none, else 1 + index) and their middles, u8 [B, F, GRID, GRID]."""
    codes = torch.stack(list(CODES.values()))
    best = torch.einsum("bcfhw,kc->bkfhw", where[:, 1 : 1 + CODE], codes).argmax(1)
    here = (where[:, 0] > 0.5) & (best < len(NAMES))
    kind = torch.where(here, best + 1, torch.zeros_like(best))
    core = here & (where[:, 1 + CODE].abs() < 0.4) & (where[:, 2 + CODE].abs() < 0.4)
    coarse = lambda x: F.max_pool3d(x.float(), (1, 2, 2)).byte()
    return coarse(kind), coarse(core)


def shrink(video):
    """f32 [B, 3, F, H, W] in -1..1 to u8 [B, F, 3, SIDE, SIDE]."""
    b, _, f, _, _ = video.shape
    x = F.interpolate(video.transpose(1, 2).flatten(0, 1), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return x.add(1).mul(127.5).round().clamp(0, 255).byte().view(b, f, 3, SIDE, SIDE)


class Block(nn.Sequential):
    def __init__(self, i, o, stride=1, conv=nn.Conv2d, norm=nn.BatchNorm2d):
        super().__init__(conv(i, o, 3, stride, 1, bias=False), norm(o), nn.ReLU(inplace=True))


class FrameNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.mid = nn.Sequential(Block(32, 48), Block(48, 80, 2), Block(80, 80))
        self.low = nn.Sequential(Block(80, 128, 2), Block(128, 128))
        self.up = nn.Conv2d(128, 80, 1)
        self.fuse = Block(80, 80)
        self.map = nn.Conv2d(80, 1 + len(NAMES), 1)
        self.core = nn.Conv2d(80, 1, 1)
        self.scale, self.bias = nn.Parameter(torch.ones(len(NAMES))), nn.Parameter(torch.full((len(NAMES),), -6.0))
        self.many = nn.Sequential(Block(128, 16), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 64, 3))
        self.scene, self.style = nn.Linear(256, len(SCENES)), nn.Linear(256, len(STYLES))

    def forward(self, x):
        """Frames f32 [B, 3, SIDE, SIDE] in 0..1."""
        mid = self.mid(self.stem(x * 4 - 2))
        low = self.low(mid)
        high = self.fuse(mid + F.interpolate(self.up(low), scale_factor=2, mode="nearest"))
        kind = self.map(high)
        found = (kind[:, 1:] - kind[:, :1]).flatten(2).logsumexp(2)
        pooled = torch.cat([low.mean((2, 3)), low.amax((2, 3))], 1)
        return {
            "map": kind, "core": self.core(high), "subjects": found * self.scale + self.bias,
            "count": self.many(low), "scene": self.scene(pooled), "style": self.style(pooled),
            "layers": (mid, low), "high": high,
        }  # fmt: skip


class MotionNet(nn.Module):
    def __init__(self):
        super().__init__()
        three = lambda i, o, stride: Block(i, o, stride, nn.Conv3d, nn.BatchNorm3d)
        self.body = nn.Sequential(three(6, 24, (1, 2, 2)), three(24, 48, (1, 2, 2)), three(48, 64, (2, 2, 2)), three(64, 96, 1))
        self.drop = nn.Dropout(0.2)
        self.heads = nn.ModuleDict({k: nn.Linear(192, len(MOVES[k])) for k in ("act", "direction")})
        line = torch.linspace(-1, 1, SMALL)
        self.register_buffer("place", torch.stack([line.expand(SMALL, SMALL), line[:, None].expand(SMALL, SMALL)])[None, :, None], persistent=False)

    def features(self, x):
        """Of u8 [B, 4, 9, SMALL, SMALL], see `moving`: f32 [B, 192]."""
        x = torch.cat([x.float() / 127.5 - 1, self.place.expand(x.shape[0], -1, x.shape[2], -1, -1)], 1)
        y = self.body(x)
        return torch.cat([y.mean((2, 3, 4)), y.amax((2, 3, 4))], 1)

    def forward(self, x):
        y = self.drop(self.features(x))
        return {k: head(y) for k, head in self.heads.items()}


class CameraNet(nn.Module):
    """A camera move by least squares: the shift and the growth of the picture without its subjects, from frame to frame."""

    BINS = 4  # parts of the clip whose steps are averaged

    def __init__(self):
        super().__init__()
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, SMALL)[1:-1]] * 2, indexing="ij")
        places = [torch.ones_like(x), y < 0, y >= 0, x < 0, x >= 0]
        self.register_buffer("places", torch.stack([p.float().flatten() for p in places]), persistent=False)
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("y", y, persistent=False)
        self.judge = nn.Sequential(nn.Linear(self.BINS * 3 * len(places), 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, len(CAMERAS)))

    @torch.no_grad()
    def drift(self, x):
        """Of u8 [B, 4, 9, SMALL, SMALL]: pixels right, down and outwards a step, [B, BINS * 5 * 3]."""
        x = x.float() / 255
        b = len(x)
        film = x[:, :2].transpose(1, 2).flatten(1, 2)[:, :FRAMES]
        film = F.avg_pool2d(film, 3, 1, 1)
        one, two = film[:, :-1], film[:, 1:]
        both = (one + two) / 2
        gx = (both[..., 1:-1, 2:] - both[..., 1:-1, :-2]) / 2
        gy = (both[..., 2:, 1:-1] - both[..., :-2, 1:-1]) / 2
        gt = (two - one)[..., 1:-1, 1:-1]
        subject = F.max_pool2d(x[:, 2], 5, 1, 2)[..., 1:-1, 1:-1]
        subject = torch.maximum(subject.repeat_interleave(2, 1)[:, : FRAMES - 1], subject.repeat_interleave(2, 1)[:, 1:FRAMES])
        slope = torch.stack([gx, gy, gx * self.x + gy * self.y], -1).flatten(2, 3)  # [B, 16, cells, 3]
        weighed = slope * (1 - subject).flatten(2)[..., None]
        square = torch.einsum("rp,bkpi,bkpj->bkrij", self.places, weighed, slope) + 0.02 * torch.eye(3)
        wants = -torch.einsum("rp,bkpi,bkp->bkri", self.places, weighed, gt.flatten(2))
        steps = torch.linalg.solve(square, wants[..., None])[..., 0].clamp(-2, 2)
        return steps.view(b, self.BINS, -1, *steps.shape[2:]).mean(2).flatten(1)

    def forward(self, x):
        return {"camera": self.judge(3 * self.drift(x))}


def unit(frames):
    """u8 [..., 3, SIDE, SIDE] to f32 [N, 3, SIDE, SIDE] in 0..1."""
    return frames.reshape(-1, 3, SIDE, SIDE).float().div(255).contiguous(memory_format=torch.channels_last)


def moving(frames, out):
    """What `MotionNet` sees of a clip u8 [FRAMES, 3, SIDE, SIDE] and `FrameNet`'s answer on its even frames.

    u8 [4, 9, SMALL, SMALL]: brightness of the even frames and of those after them, subjects, their middles.
    """
    luma = F.avg_pool2d((frames.float() * LUMA).sum(1, keepdim=True), SIDE // SMALL)[:, 0]
    big = lambda x: F.interpolate(x, (SMALL, SMALL), mode="bilinear", align_corners=False)[:, 0] * 255
    subject = big(1 - out["map"].softmax(1)[:, :1])
    after = torch.cat([luma[1::2], luma[-1:]])
    return torch.stack([luma[::2], after, subject, big(out["core"].sigmoid())]).round().clamp(0, 255).byte()


@torch.no_grad()
def look(frame_net, motion_net, camera_net, frames):
    """What is seen in one clip u8 [FRAMES, 3, SIDE, SIDE]: probabilities, and features for comparisons."""
    out = frame_net(unit(frames[::2]))
    motion = moving(frames, out)[None]
    moves = motion_net(motion) | camera_net(motion)
    seen = {"subjects": out["subjects"].sigmoid().mean(0)}
    seen |= {k: out[k].log_softmax(1).mean(0).softmax(0) for k in HEADS}
    seen |= {k: moves[k][0].softmax(0) for k in MOVES}
    subject = 1 - out["map"].softmax(1)[:, :1]
    weight = subject / subject.sum((2, 3), keepdim=True).clamp(min=1e-3)
    seen["identity"] = (out["high"] * weight).sum((2, 3))  # of subjects, a frame a row
    seen["still"] = subject.amax(0)[0] < 0.2  # cells where no subject ever is
    seen["feature"] = torch.cat([out["layers"][1].mean((0, 2, 3)), motion_net.features(motion)[0]])
    return seen


@torch.no_grad()
def distance(frame_net, a, b):
    """Perceptual distance of frames, in the manner of LPIPS, by the judge's own layers: f32 [N]."""
    unit_length = lambda x: F.normalize(x, dim=1)
    pairs = zip(frame_net(unit(a))["layers"], frame_net(unit(b))["layers"])
    return sum((unit_length(x) - unit_length(y)).pow(2).sum(1).mean((1, 2)) for x, y in pairs)


def best(seen, key):
    """The likeliest answer's index."""
    return int(seen[key].argmax())


def right(seen, want):
    """Which of the labels were recognised; None where there is none.

    "subjects": the likeliest k are the k that were asked for. "exact": those and no other are above one half.
    """
    n = len(want["subjects"])
    top = seen["subjects"].topk(n).indices.tolist()
    over = (seen["subjects"] > 0.5).nonzero().flatten().tolist()
    said = {"subjects": set(top) == set(want["subjects"]), "exact": set(over) == set(want["subjects"])}
    for key in (*HEADS, *MOVES):
        said[key] = best(seen, key) == want[key] if want[key] >= 0 else None
    return said


def load(work):
    """The trained networks of WORK."""
    nets = FrameNet(), MotionNet(), CameraNet()
    for net, name in zip(nets, ("frames", "motion", "camera")):
        net.load_state_dict(torch.load(Path(work) / f"{name}.pt", weights_only=True))
        net.eval()
    nets[0].to(memory_format=torch.channels_last)
    return nets
