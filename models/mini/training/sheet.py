"""Contact sheets, for looking: python sheet.py --work .work/train [--seed N] [--scenes]"""

import argparse
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import spec


def pixels(frame):
    """f32 [3, H, W] in -1..1 → PIL image."""
    return Image.fromarray(((frame.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def sheet(videos, texts, path, columns=4, shown=3):
    """Save first/middle/last frames of each [3, F, H, W] with a line of text."""
    h, w = videos[0].shape[-2:]
    rows = -(-len(videos) // columns)
    page = Image.new("RGB", (columns * (w * shown + 6), rows * (h + 14)), "white")
    pen = ImageDraw.Draw(page)
    for i, (video, text) in enumerate(zip(videos, texts)):
        x, y = i % columns * (w * shown + 6), i // columns * (h + 14)
        pen.text((x, y), text[: w * shown // 6], fill="black")
        for k in range(shown):
            f = k * (video.shape[1] - 1) // max(1, shown - 1)
            page.paste(pixels(video[:, f]), (x + k * w, y + 13))
    page.save(path)


def brief(clip):
    acts = " + ".join(f"{a.count} {a.subject} {a.action} {a.direction}" for a in clip.actors)
    return f"{acts} {clip.relation} {clip.scene} {clip.camera} {clip.style}"


def main():
    from world import World

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work/train"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--scenes", action="store_true", help="one clip of each scene, in turn")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    clips = [spec.sample(rng) for _ in range(args.count)]
    if args.scenes:
        for i, clip in enumerate(clips):
            clip.scene = spec.SCENES[i % len(spec.SCENES)]
    videos = World(args.work / "sprites.pt").render(clips)
    sheet(list(videos), [brief(c) for c in clips], args.work / "sheet.png")


if __name__ == "__main__":
    main()
