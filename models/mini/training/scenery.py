"""The scenes: moving backgrounds as formulas.

Each takes (rng, x, y, t) and returns colours f32 [F, 3, H, W] in 0..1. x [F, 1, W]
and y [F, H, 1] are world coordinates: -1..1 is the frame, y grows downwards, the
camera is already in them. t [F, 1, 1] is in seconds. A leading 1 instead of F
means "the same in all frames", which makes still parts cheap.
"""

import colorsys
import math

import torch

# Where feet stand, or hulls float, in y.
FLOOR = {
    "coffee": 0.5, "sea": 0.5, "beach": 0.66, "desert": 0.66, "snow": 0.68, "forest": 0.72,
    "meadow": 0.7, "city": 0.76, "space": 0.5, "sunset": 0.66, "sky": 0.5, "room": 0.62,
    "underwater": 0.5,
}  # fmt: skip
GROUNDED = ("beach", "desert", "snow", "forest", "meadow", "city", "room")
LIQUID = ("coffee", "sea", "sunset")


def hue(rng, h, s, v, spread=0.02):
    """A colour near (h, s, v), as a [1, 3, 1, 1] tensor."""
    h = (h + rng.uniform(-spread, spread)) % 1
    s = min(1, max(0, s * rng.uniform(0.88, 1.12)))
    v = min(1, max(0, v * rng.uniform(0.92, 1.06)))
    return torch.tensor(colorsys.hsv_to_rgb(h, s, v)).view(1, 3, 1, 1)


def ramp(v, lo, hi):
    """0 below lo, 1 above hi, straight between (lo > hi turns it round)."""
    return ((v - lo) * (1 / (hi - lo))).clamp(0, 1)


def mix(a, b, m):
    """Colours a → b by a mask m [F|1, H|1, W|1]."""
    return torch.addcmul(a, b - a, m.unsqueeze(1))


def waves(rng, x, y, n=4, lo=2.0, hi=7.0):
    """Smooth still noise about -1..1."""
    total = 0
    for _ in range(n):
        k, a = rng.uniform(lo, hi), rng.uniform(0, 2 * math.pi)
        total = total + torch.sin(k * math.cos(a) * x + k * math.sin(a) * y + rng.uniform(0, 6.3))
    return total / math.sqrt(n) * 0.8


def dots(rng, image, x, y, t, n, color, drift, big=1):
    """Scatter n specks that move by drift (dx, dy a second) and wrap around."""
    frames, _, h, w = image.shape
    g = torch.Generator().manual_seed(rng.getrandbits(31))
    px, py, light = torch.rand(3, 1, n, generator=g)
    tt = t.view(-1, 1)
    speed = 0.6 + 0.8 * light
    px = (px * 2.6 - 1.3 + drift[0] * tt * speed + 0.03 * torch.sin(3 * tt + 6 * py) * bool(drift[1]) + 1.3) % 2.6 - 1.3
    py = (py * 2.6 - 1.3 + drift[1] * tt * speed + 1.3) % 2.6 - 1.3
    x0, x1, y0, y1 = x[:, :, :1].view(-1, 1), x[:, :, -1:].view(-1, 1), y[:, :1].view(-1, 1), y[:, -1:].view(-1, 1)
    col = ((px - x0) / (x1 - x0) * (w - 1)).round().long()
    row = ((py - y0) / (y1 - y0) * (h - 1)).round().long()
    alpha = 0.45 + 0.55 * light.expand(frames, -1)
    if not drift[1]:  # stars twinkle
        alpha = alpha * (0.65 + 0.35 * torch.sin(4 * tt + 40 * light)).expand(frames, -1)
    f = torch.arange(frames).view(-1, 1)
    reach = [(0, 0), (0, 1), (1, 0), (1, 1)] if big == 1 else [(i, j) for i in range(-1, 2) for j in range(-1, 2)]
    for dy, dx in reach:
        r, c = row + dy, col + dx
        ok = (r >= 0) & (r < h) & (c >= 0) & (c < w)
        a = (alpha * ok * (1.0 if (dx, dy) == (0, 0) else 0.55)).unsqueeze(1)
        idx = (f.expand_as(r), slice(None))
        r, c = r.clamp(0, h - 1), c.clamp(0, w - 1)
        old = image[idx[0], :, r, c]
        image[idx[0], :, r, c] = old + (color.view(1, 1, 3) - old) * a.squeeze(1).unsqueeze(-1)
    return image


def coffee(rng, x, y, t):
    """From above and a little aslant: table, cup rim, brown coffee, foam, waves."""
    dark, light = hue(rng, 0.06, 0.82, 0.24), hue(rng, 0.07, 0.70, 0.46)
    foam, china = hue(rng, 0.09, 0.32, 0.93), hue(rng, rng.random(), 0.10, 0.96)
    table = hue(rng, rng.choice((0.08, 0.55, 0.0, 0.3)), 0.35, 0.5)
    cx, ry, turn = rng.uniform(-0.06, 0.06), rng.uniform(0.90, 0.98), rng.choice((-1, 1))
    u, v = (x - cx) / 1.04, (y - 0.02) / ry
    r = (u * u + v * v).sqrt()
    phi, p = rng.uniform(0, 6.3), rng.uniform(0, 6.3)
    image = mix(dark, light, (0.28 - 0.22 * v + 0.10 * torch.sin(3 * u + phi)).clamp(0, 1))
    line = torch.sin(10 * y + 0.9 * torch.sin(4.5 * x + phi + turn * 1.6 * t) + 0.5 * torch.sin(8 * x + p) - 3.0 * t)
    image = mix(image, light * 1.25, 0.6 * ramp(line, 0.7, 1.0))
    arm = torch.sin(2 * torch.atan2(v, u) + turn * (7.5 * r - 1.4 * t) + p)
    image = mix(image, foam, 0.9 * ramp(arm, 0.62, 0.9) * ramp(r, 0.1, 0.3) * ramp(r, 0.86, 0.6))
    image = mix(image, foam, 0.85 * ramp(r + 0.02 * torch.sin(7 * x + 5 * y + p), 0.86, 0.92))  # crema at the wall
    image = mix(image, china, ramp(r, 0.96, 0.985))
    image = mix(image, china * 0.72, ramp(r, 1.07, 1.09))
    image = mix(image, china * 0.9, ramp(r, 1.12, 1.16))
    return mix(image, table, ramp(r, 1.34, 1.37))


def open_sky(rng, y, top, low):
    return mix(top, low, ramp(y, -1.0, 0.1))


def sea(rng, x, y, t):
    """Sky over blue water with crests that roll towards the viewer."""
    h = rng.uniform(-0.32, -0.12)
    image = open_sky(rng, y, hue(rng, 0.57, 0.55, 0.92), hue(rng, 0.56, 0.18, 0.99))
    near, far = hue(rng, 0.58, 0.85, 0.55), hue(rng, 0.53, 0.65, 0.82)
    water, d, p = mix(far, near, ramp(y, h, 1.0)), (y - h).clamp(min=0), rng.uniform(0, 6.3)
    bend = torch.sin(5 * x + p + 1.2 * t) + 0.5 * torch.sin(11 * x - 1.7 * t)
    line = torch.sin(15 * torch.log(d + 0.13) + 0.75 * bend - 2.8 * t)
    water = mix(water, hue(rng, 0.53, 0.12, 1.0), 0.75 * ramp(line, 0.72, 1.0) * ramp(y, h, h + 0.2))
    water = mix(water, near * 0.75, 0.5 * ramp(line, -0.5, -1.0))
    return mix(image, water, ramp(y, h - 0.01, h + 0.01))


def beach(rng, x, y, t):
    """Sky, a band of sea, foam that comes and goes on yellow sand."""
    h, p = rng.uniform(-0.4, -0.25), rng.uniform(0, 6.3)
    image = open_sky(rng, y, hue(rng, 0.56, 0.6, 0.95), hue(rng, 0.54, 0.15, 1.0))
    line = torch.sin(30 * y + 0.8 * torch.sin(6 * x + p + t) - 2.5 * t)
    water = mix(mix(hue(rng, 0.56, 0.8, 0.7), hue(rng, 0.47, 0.6, 0.85), ramp(y, h, 0.15)), torch.ones(1, 3, 1, 1), 0.5 * ramp(line, 0.75, 1.0))
    image = mix(image, water, ramp(y, h - 0.01, h + 0.01))
    sand = mix(hue(rng, 0.12, 0.42, 0.95), hue(rng, 0.105, 0.5, 0.82), ramp(y, 0.1, 1.0))
    sand = mix(sand, sand * 0.88, ramp(waves(rng, x, y, 4, 14, 34), 0.2, 0.9))
    edge = y - 0.14 - 0.06 * torch.sin(1.6 * t + p) - 0.03 * torch.sin(4 * x + p)
    image = mix(image, sand, ramp(edge, -0.015, 0.015))
    return mix(image, torch.ones(1, 3, 1, 1), 0.95 * ramp(edge.abs(), 0.06, 0.03))


def sun(image, x, y, cx, cy, r, color):
    d = ((x - cx) ** 2 + (y - cy) ** 2).sqrt()
    image = mix(image, color, 0.45 * ramp(d, 2.6 * r, r))
    return mix(image, color, ramp(d, r + 0.01, r - 0.01))


def desert(rng, x, y, t):
    """Orange dunes with ripples under a hot sky and a sun."""
    image = open_sky(rng, y, hue(rng, 0.56, 0.35, 0.9), hue(rng, 0.1, 0.35, 1.0))
    image = sun(image, x, y, rng.uniform(-0.7, 0.7), -0.62, 0.17, hue(rng, 0.15, 0.35, 1.0))
    for i, base in enumerate((-0.05, 0.2)):
        ridge = base + 0.14 * torch.sin(rng.uniform(1.5, 3) * x + rng.uniform(0, 6.3))
        lit, dim = hue(rng, 0.085, 0.62, 0.95 - 0.06 * i), hue(rng, 0.06, 0.72, 0.74 - 0.06 * i)
        dune = mix(lit, dim, ramp(y - ridge, 0.0, 0.55))
        if i:
            rip = torch.sin(28 * (y - ridge) + 2 * torch.sin(3 * x + 1.0) - 0.8 * t)
            dune = mix(dune, dim * 0.85, 0.5 * ramp(rip, 0.55, 1.0))
        image = mix(image, dune, ramp(y - ridge, -0.01, 0.01))
    return image


def snow(rng, x, y, t):
    """White hills under a pale sky, snow falling."""
    image = open_sky(rng, y, hue(rng, 0.6, 0.38, 0.72), hue(rng, 0.58, 0.16, 0.92))
    for i, base in enumerate((-0.1, 0.22)):
        ridge = base + 0.1 * torch.sin(rng.uniform(1.5, 3) * x + rng.uniform(0, 6.3))
        hill = mix(hue(rng, 0.58, 0.05, 0.99), hue(rng, 0.6, 0.2, 0.86), ramp(y - ridge, 0.0, 0.7 + 0.2 * i))
        image = mix(image, hill, ramp(y - ridge, -0.01, 0.01))
    image = image.expand(t.shape[0], -1, y.shape[1], x.shape[2]).clone()
    return dots(rng, image, x, y, t, 90, torch.ones(3), (0.08, 0.55))


def forest(rng, x, y, t):
    """Dark green wood: trunks, canopy, mossy ground."""
    image = mix(hue(rng, 0.3, 0.55, 0.42), hue(rng, 0.22, 0.5, 0.66), ramp(y, -1.0, 0.4))
    for depth, (k, wide) in enumerate(((4.1, 0.80), (2.3, 0.84))):
        s = torch.sin(k * math.pi * x * 0.5 + rng.uniform(0, 6.3) + 0.6 * torch.sin(2.1 * x + depth))
        bark = hue(rng, 0.07, 0.5 + 0.1 * depth, 0.34 - 0.08 * depth)
        image = mix(image, bark, ramp(s, wide, wide + 0.05) * ramp(y, -1.2, -0.9))
    leaf = waves(rng, x + 0.02 * torch.sin(1.7 * t), y, 5, 6, 16)
    top = y + 0.55 - 0.22 * leaf
    image = mix(image, mix(hue(rng, 0.33, 0.75, 0.3), hue(rng, 0.29, 0.7, 0.5), ramp(leaf, -0.6, 0.8)), ramp(top, 0.02, -0.02))
    ground = mix(hue(rng, 0.27, 0.6, 0.42), hue(rng, 0.2, 0.55, 0.26), ramp(y, 0.35, 1.0))
    ground = mix(ground, ground * 0.75, ramp(waves(rng, x, 2 * y, 3, 8, 16), 0.0, 0.8))
    return mix(image, ground, ramp(y - 0.4 - 0.03 * torch.sin(5 * x), -0.02, 0.02))


def meadow(rng, x, y, t):
    """Bright green hills, blue sky, sun, grass in the wind."""
    image = open_sky(rng, y, hue(rng, 0.56, 0.55, 0.96), hue(rng, 0.54, 0.12, 1.0))
    image = sun(image, x, y, rng.uniform(-0.8, 0.8), -0.7, 0.16, hue(rng, 0.14, 0.5, 1.0))
    for i, base in enumerate((-0.1, 0.15)):
        ridge = base + 0.13 * torch.sin(rng.uniform(1.5, 3) * x + rng.uniform(0, 6.3))
        hill = mix(hue(rng, 0.25, 0.62, 0.86 - 0.08 * i), hue(rng, 0.3, 0.72, 0.55), ramp(y - ridge, 0.0, 0.9))
        if i:
            blade = torch.sin(38 * x + 5 * y + 0.8 * torch.sin(2.5 * t + 2 * x)) * torch.sin(21 * y + 3 * x)
            hill = mix(hill, hue(rng, 0.3, 0.75, 0.45), 0.55 * ramp(blade, 0.35, 0.9))
        image = mix(image, hill, ramp(y - ridge, -0.01, 0.01))
    return image


def city(rng, x, y, t):
    """Night: navy sky, moon, towers with lit windows, a road with lane marks."""
    g = torch.Generator().manual_seed(rng.getrandbits(31))
    image = open_sky(rng, y, hue(rng, 0.65, 0.75, 0.16), hue(rng, 0.7, 0.55, 0.42))
    image = sun(image, x, y, rng.uniform(-0.7, 0.7), -0.72, 0.12, hue(rng, 0.14, 0.15, 0.98))
    n = rng.uniform(2.2, 3.2)
    col = (x * n + 40 + rng.random()).floor()
    heights = torch.rand(97, generator=g) * 0.85 - 0.6
    roof = heights[(col.long() * 7) % 97]
    tone = hue(rng, 0.63, 0.45, 0.24)
    shade = (0.75 + 0.6 * torch.rand(97, generator=g))[(col.long() * 11) % 97]
    block = tone * shade.unsqueeze(1)
    wx, wy = x * n * 4 + 40, y * 9 + 40
    cell = ((wx.floor() * 12.9898 + wy.floor() * 78.233).sin() * 43758.5453).remainder(1)
    lit = (cell < 0.45 + 0.04 * torch.sin(2 * t + 30 * cell)) & (wx.remainder(1) > 0.35) & (wy.remainder(1) > 0.4)
    block = mix(block, hue(rng, 0.13, 0.55, 1.0), lit.float() * 0.95)
    image = mix(image, block, ramp(y - roof, -0.005, 0.005))
    road = mix(hue(rng, 0.65, 0.15, 0.24), hue(rng, 0.65, 0.15, 0.36), ramp(y, 0.5, 1.0))
    dash = (torch.sin(7 * x + 0.5) > 0).float() * ramp((y - 0.82).abs(), 0.035, 0.02)
    road = mix(road, torch.tensor([0.95, 0.9, 0.7]).view(1, 3, 1, 1), 0.9 * dash)
    road = mix(road, torch.full((1, 3, 1, 1), 0.55), ramp(y, 0.56, 0.55))
    return mix(image, road, ramp(y, 0.49, 0.51))


def space(rng, x, y, t):
    """Black, a faint nebula, many stars that twinkle."""
    fog = waves(rng, x, y, 4, 1.5, 4.0)
    image = mix(hue(rng, 0.68, 0.7, 0.07), hue(rng, rng.choice((0.75, 0.6, 0.9)), 0.7, 0.32), ramp(fog, 0.1, 1.2))
    image = image.expand(t.shape[0], -1, y.shape[1], x.shape[2]).clone()
    return dots(rng, image, x, y, t, 120, torch.tensor([1.0, 1.0, 0.92]), (0.0, 0.0))


def sunset(rng, x, y, t):
    """Purple to orange sky, a big low sun, dark water that glitters."""
    h = rng.uniform(0.15, 0.3)
    low = hue(rng, 0.07, 0.75, 1.0)
    image = mix(hue(rng, 0.77, 0.6, 0.42), hue(rng, 0.97, 0.6, 0.85), ramp(y, -1.0, -0.3))
    image = mix(image, low, ramp(y, -0.5, h))
    cx = rng.uniform(-0.5, 0.5)
    image = sun(image, x, y, cx, h - 0.12, 0.32, hue(rng, 0.13, 0.55, 1.0))
    band = torch.sin(22 * y + 2 * torch.sin(2 * x + 0.25 * t + 1.0))
    image = mix(image, hue(rng, 0.85, 0.5, 0.6), 0.45 * ramp(band, 0.6, 1.0) * ramp(y, -0.1, -0.6))
    water = mix(hue(rng, 0.92, 0.6, 0.45), hue(rng, 0.72, 0.7, 0.2), ramp(y, h, 1.0))
    line = torch.sin(34 * y + 1.5 * torch.sin(7 * x + 1.3 * t) - 2.5 * t)
    water = mix(water, low, ramp(line, 0.1, 0.9) * ramp((x - cx).abs(), 0.55, 0.1))
    water = mix(water, low, 0.25 * ramp(line, 0.8, 1.0))
    return mix(image, water, ramp(y, h - 0.01, h + 0.01))


def sky(rng, x, y, t):
    """Clear blue (the clouds are scenery)."""
    return mix(hue(rng, 0.58, 0.72, 0.88), hue(rng, 0.55, 0.28, 1.0), ramp(y, -1.0, 1.0))


def room(rng, x, y, t):
    """A papered wall with a window, and a wooden table top."""
    base = rng.random()
    wall, stripe = hue(rng, base, 0.28, 0.88), hue(rng, base, 0.36, 0.78)
    image = mix(wall, stripe, ramp(torch.sin(14 * x + 1.0), -0.1, 0.1))
    wx, wy = rng.choice((-0.5, 0.5)), -0.42
    frame = torch.maximum((x - wx).abs() / 0.36, (y - wy).abs() / 0.40)
    image = mix(image, torch.full((1, 3, 1, 1), 0.97), ramp(frame, 1.0, 0.97))
    bars = torch.minimum((x - wx).abs(), (y - wy).abs())
    glass = mix(hue(rng, 0.56, 0.5, 0.95), hue(rng, 0.54, 0.15, 1.0), ramp(y, -0.8, 0.0))
    image = mix(image, glass, ramp(frame, 0.88, 0.85) * ramp(bars, 0.025, 0.04))
    wood, dark = hue(rng, 0.075, 0.55, 0.68), hue(rng, 0.07, 0.65, 0.45)
    grain = torch.sin(26 * y + 1.5 * torch.sin(3 * x + 2.0) + 0.7 * torch.sin(8 * x))
    top = mix(wood, dark, 0.5 * ramp(grain, 0.0, 1.0))
    image = mix(image, top, ramp(y, 0.29, 0.31))
    return mix(image, dark * 0.6, ramp((y - 0.3).abs(), 0.03, 0.015))


def underwater(rng, x, y, t):
    """Deep blue-green, shafts of light, weeds, a sandy floor, bubbles."""
    image = mix(hue(rng, 0.5, 0.72, 0.82), hue(rng, 0.6, 0.88, 0.36), ramp(y, -1.0, 0.9))
    ray = torch.sin(6 * (x + 0.5 * y) + 0.9 * t) + 0.6 * torch.sin(11 * (x + 0.42 * y) - 0.7 * t + 1.0)
    image = mix(image, hue(rng, 0.47, 0.25, 1.0), 0.4 * ramp(ray, 0.3, 1.6) * ramp(y, 0.7, -1.0))
    bed = 0.74 + 0.05 * torch.sin(3 * x + rng.uniform(0, 6.3))
    sand = mix(hue(rng, 0.13, 0.3, 0.75), hue(rng, 0.5, 0.3, 0.5), ramp(y, 0.7, 1.0))
    weed = torch.sin(9 * x + 0.9 * torch.sin(3.0 * y + 2.2 * t) + rng.uniform(0, 6.3))
    tall = 0.45 + 0.2 * torch.sin(3.3 * x + 1.0)
    image = mix(image, hue(rng, 0.36, 0.75, 0.5), ramp(weed, 0.86, 0.93) * ramp(y, tall, tall + 0.05))
    image = mix(image, sand, ramp(y - bed, -0.01, 0.01))
    image = image.expand(t.shape[0], -1, y.shape[1], x.shape[2]).clone()
    return dots(rng, image, x, y, t, 26, torch.tensor([0.85, 1.0, 1.0]), (0.0, -0.5), big=2)


SCENERY = {f.__name__: f for f in (coffee, sea, beach, desert, snow, forest, meadow, city, space, sunset, sky, room, underwater)}
