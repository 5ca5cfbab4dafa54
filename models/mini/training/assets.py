"""Unpack the artwork and save it as one file of small sprites.

    python assets.py --work .work/train --cache .work/npm

Writes WORK/sprites.pt: {key: {"3d": u8 [T, 4, 96, 96], "flat": u8 [1, 4, 96, 96]}},
RGBA with premultiplied alpha, T frames at 8 a second (one loop). Each sprite is
cropped to its content, its longer side fills the square, and it stands on the
lower edge. Keys are those of `spec.SUBJECTS` plus `PROPS`, the pieces of scenery.
"""

import argparse
import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image, ImageDraw

from spec import SUBJECTS

SIDE = 96
FPS = 8
STATIC = ("@lobehub/fluent-emoji-3d", "1.1.0")
FLAT = ("@iconify-json/fluent-emoji-flat", "1.2.6")
ANIMATED = [(f"@lobehub/fluent-emoji-anim-{i}", "1.0.0") for i in (1, 2, 3, 4)]

# Names in the flat set.
FLAT_NAMES = {
    "26f5": "sailboat", "1f6a2": "ship", "1f483": "woman-dancing", "1f57a": "man-dancing",
    "1f3c3": "person-running", "1f6b6": "person-walking", "1f3c4": "person-surfing",
    "1f479": "ogre", "1f47b": "ghost", "1f47d": "alien", "1f916": "robot", "1f415": "dog",
    "1f408": "cat", "1f40e": "horse", "1f996": "t-rex", "1f409": "dragon", "1f985": "eagle",
    "1f427": "penguin", "1f418": "elephant", "1f42c": "dolphin", "1f433": "spouting-whale",
    "1f420": "tropical-fish", "1f419": "octopus", "1f986": "duck", "1f680": "rocket",
    "1f697": "automobile", "1f682": "locomotive", "1f6f8": "flying-saucer",
    "1f98b": "butterfly", "1f41d": "honeybee", "1f388": "balloon",
    "26c4": "snowman-without-snow", "2764": "red-heart", "26bd": "soccer-ball",
    "2615": "hot-beverage", "1f3f4-200d-2620": "pirate-flag", "1f334": "palm-tree",
    "1f335": "cactus", "1f332": "evergreen-tree", "1f333": "deciduous-tree",
    "1f33c": "blossom", "1fab8": "coral", "1fa90": "ringed-planet", "2601": "cloud",
}  # fmt: skip
PROPS = {
    "palm": "1f334", "cactus": "1f335", "pine": "1f332", "tree": "1f333", "flower": "1f33c",
    "coral": "1fab8", "planet": "1fa90", "cloud": "2601",
}  # fmt: skip


def package(name, version, cache):
    """Path of a package's tarball, fetched when it is not in the cache."""
    file = cache / f"{name[1:].replace('/', '-')}-{version}.tgz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{name}@{version}"], cwd=cache, check=True)
    return file


def still(data):
    return [Image.open(io.BytesIO(data)).convert("RGBA")]


def movie(data):
    """The frames of one loop, FPS a second."""
    image = Image.open(io.BytesIO(data))
    frames, times, clock = [], [], 0
    for i in range(image.n_frames):
        image.seek(i)
        image.load()
        times.append(clock)
        clock += image.info.get("duration", 42) or 42
        frames.append(image.convert("RGBA"))
    count = max(1, round(clock / 1000 * FPS))
    marks = [clock * i / count for i in range(count)]
    return [frames[max(j for j, t in enumerate(times) if t <= m + 1)] for m in marks]


def read(codes, cache):
    """{codepoint: {"3d": frames, "flat": frames}} of PIL images."""
    art = {c: {} for c in codes}
    for name, version in [STATIC, *ANIMATED]:
        with tarfile.open(package(name, version, cache)) as tar:
            for member in tar:
                code = Path(member.name).stem.replace("-fe0f", "")
                if member.name.endswith(".webp") and code in art:
                    data = tar.extractfile(member).read()
                    art[code]["3d"] = still(data) if name == STATIC[0] else movie(data)
    with tarfile.open(package(*FLAT, cache)) as tar:
        icons = json.load(tar.extractfile("package/icons.json"))["icons"]
    for code in codes:
        body = icons[FLAT_NAMES[code]]["body"]
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{body}</svg>'
        art[code]["flat"] = still(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256)))
    return art


def dry(frame):
    """A boat without its strip of water: blue below is taken away."""
    a = np.asarray(frame).astype(np.int16).copy()
    rows = np.arange(a.shape[0])[:, None] > 0.72 * a.shape[0]
    blue = (a[..., 2] > a[..., 0] + 25) & (a[..., 2] > 130)
    a[rows & blue] = 0
    a[int(0.93 * a.shape[0]) :] = 0
    return Image.fromarray(a.astype(np.uint8), "RGBA")


def pirate(boat, flag):
    """A tall brown hull, cream sails with a black skull, a pirate flag above."""
    a = np.asarray(boat).astype(np.float32).copy()
    luma = a[..., :3].mean(-1, keepdims=True)
    yellow = (a[..., 1] > 120) & (a[..., 0] > a[..., 2] + 60)
    orange = (a[..., 0] > a[..., 2] + 50) & ~yellow
    a[..., :3] = np.where(yellow[..., None], luma * 0.6 + np.array([140, 132, 112]), a[..., :3])
    a[..., :3] = np.where(orange[..., None], luma * np.array([1.15, 0.62, 0.34]), a[..., :3])
    a = Image.fromarray(a.clip(0, 255).astype(np.uint8), "RGBA")
    box = boat.getbbox()
    mast = box[0] + int(0.41 * (box[2] - box[0]))
    deck = int(0.645 * 256)
    hull = a.crop((box[0], deck, box[2], box[3])).resize((box[2] - box[0], 2 * (box[3] - deck)))
    out = Image.new("RGBA", (256, 60 + deck + hull.height))
    pen = ImageDraw.Draw(out)
    pen.rectangle((mast - 4, 8, mast + 4, 110), fill=(120, 78, 44, 255))
    out.alpha_composite(a.crop((0, 0, 256, deck)), (0, 60))
    gold = Image.new("RGBA", hull.size, (236, 180, 70, 255))
    band = np.zeros((hull.height, hull.width), np.uint8)
    band[int(0.28 * hull.height) : int(0.38 * hull.height)] = 255
    band = np.minimum(band, np.asarray(hull.getchannel("A")))
    hull.paste(gold, (0, 0), Image.fromarray(band))
    out.alpha_composite(hull, (box[0], 60 + deck))
    out.alpha_composite(flag.crop(flag.getbbox()).resize((116, 84)), (mast + 2, 4))
    f = np.asarray(flag).copy()
    f[f[..., :3].min(-1) < 110] = 0
    f[..., :3] = f[..., :3] // 8
    skull = Image.fromarray(f, "RGBA")
    out.alpha_composite(skull.crop(skull.getbbox()).resize((62, 60)), (mast + 6, 154))
    return out


def square(frames):
    """u8 [T, 4, SIDE, SIDE], premultiplied, one crop for all frames."""
    boxes = np.array([f.getchannel("A").point(lambda v: 255 * (v > 24)).getbbox() for f in frames])
    x0, y0 = boxes[:, :2].min(0)
    x1, y1 = boxes[:, 2:].max(0)
    side = max(x1 - x0, y1 - y0)
    left, top = x0 - (side - (x1 - x0)) // 2, y1 - side
    out = []
    for f in frames:
        a = np.asarray(f).astype(np.float32)
        a[..., :3] *= a[..., 3:] / 255
        canvas = np.zeros((side, side, 4), np.float32)
        ox, oy = max(0, -left), max(0, -top)
        part = a[max(0, top) : y1, max(0, left) : left + side]
        canvas[oy : oy + part.shape[0], ox : ox + part.shape[1]] = part
        t = torch.from_numpy(canvas).permute(2, 0, 1)[None]
        t = torch.nn.functional.interpolate(t, (SIDE - 4, SIDE - 4), mode="bilinear", antialias=True)
        out.append(torch.nn.functional.pad(t, (2, 2, 2, 2)))
    return torch.cat(out).round().clamp(0, 255).to(torch.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--cache", type=Path, default=Path(".work/npm"))
    args = parser.parse_args()
    flag = "1f3f4-200d-2620"
    plain = {k: s.sprite for k, s in SUBJECTS.items() if k != "pirate_ship"} | PROPS
    art = read([*plain.values(), flag], args.cache)
    for boat in ("26f5", "1f6a2"):
        art[boat] = {style: [dry(f) for f in frames] for style, frames in art[boat].items()}
    sprites = {}
    for key, code in plain.items():
        sprites[key] = {s: square(f[:1] if key in PROPS else f) for s, f in art[code].items()}
    sprites["pirate_ship"] = {
        style: square([pirate(b, f) for b, f in zip(art["26f5"][style], art[flag][style])])
        for style in ("3d", "flat")
    }
    args.work.mkdir(parents=True, exist_ok=True)
    torch.save(sprites, args.work / "sprites.pt")
    total = sum(t.numel() for s in sprites.values() for t in s.values()) / 2**20
    print(f"{len(sprites)} sprites, {total:.1f} MiB")


if __name__ == "__main__":
    main()
