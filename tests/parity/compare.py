#!/usr/bin/env python3
"""Holds the program against the reference on the toy pipelines of `make_toys.py`.

    cargo build --release
    python tests/parity/make_toys.py DIR
    python tests/parity/compare.py DIR --sora target/release/sora
    python tests/parity/compare.py DIR --sora target/release/sora 095 still   # those whose name contains a word

Cases of `layouts.py` say how the model is named, and where its numbers are coarser how near they must come.

For each case: renders it with the same arguments in f32 on the CPU, reads the latents and the PNG frames back and
prints the largest differences (latents at most 1e-3, frames at most 1/255) and the cosine of the frames (at least
0.9999). Needs numpy, pillow and safetensors. Exits with 1 if any case fails.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

LATENTS, FRAMES, COSINE = 1e-3, 1, 0.9999
FLAGS = ["negative_prompt", "seed", "width", "height", "frames", "fps", "steps", "guidance", "guidance_rescale",
         "decode_timestep", "decode_noise_scale", "condition_noise", "window", "overlap", "match_colour"]


def command(sora, folder, case, out, extra):
    model = [word.replace("{}", str(folder)) for word in case.get("model", ["--model", "{}"])]
    words = [str(sora), "gen", case["prompt"], *model]
    for name in FLAGS:
        if case.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(case[name])]
    if case["timesteps"] and "--sigmas" not in case["flags"]:
        words += ["--timesteps", ",".join(map(str, case["timesteps"]))]
    for i, one in enumerate(case["conditions"]):
        place = folder / "inputs" / (f"{i}.png" if one["frames"] == 1 else str(i))
        if one["frames"] == 1 and one["frame"] == 0:
            words += ["--init-image", str(place), "--init-image-strength", str(one["strength"])]
        else:
            frame = one["frame"] if one.get("told") is None else one["told"]
            words += ["--keyframe", f"{frame}:{place}:{one['strength']}"]
    if case["source"] is not None:
        words += ["--init-video", str(folder / "inputs" / "source"), "--strength", str(case["source"])]
    if case["conditions"]:
        words.append("--no-compress-init")
    words += [word.replace("{folder}", str(folder)) for word in case["flags"]]
    return [*words, "--device", "cpu", "--dtype", "f32", "--save-latents", str(out / "l.safetensors"), *extra,
            "-o", f"{out / 'frames'}/"]


def cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)


def compare(sora, folder, extra):
    """(latents' max-abs, frames' max difference, frames' cosine, what went wrong)."""
    case = json.loads((folder / "case.json").read_text())
    with tempfile.TemporaryDirectory() as out:
        out = pathlib.Path(out)
        done = subprocess.run(command(sora, folder, case, out, extra), capture_output=True, text=True)
        if done.returncode != 0:
            return None, None, None, f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
        latents = load_file(out / "l.safetensors")["latents"]
        frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((out / "frames").glob("*.png"))]
    frames = np.stack(frames)
    expected = np.load(folder / "latents.npy"), np.load(folder / "frames.npy")
    if (latents.shape, frames.shape) != (expected[0].shape, expected[1].shape):
        found = f"{latents.shape} and {frames.shape}, expected {expected[0].shape} and {expected[1].shape}"
        return None, None, None, found
    apart = float(np.abs(latents - expected[0]).max())
    bytes_apart = int(np.abs(frames.astype(int) - expected[1]).max())
    alike = cosine(frames, expected[1])
    if "cosine" in case:
        alike = min(alike, cosine(latents, expected[0]))
        return apart, bytes_apart, alike, "" if alike > case["cosine"] else "cosine"
    wrong = [] if apart <= LATENTS else ["latents"]
    wrong += [] if bytes_apart <= FRAMES and alike >= COSINE else ["frames"]
    return apart, bytes_apart, alike, " and ".join(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sora", type=pathlib.Path, required=True)
    parser.add_argument("--flag", action="append", default=[], help="one more word for every command line")
    args = parser.parse_intermixed_args()
    cases = sorted(path.parent for path in args.folder.glob("*/case.json"))
    cases = [folder for folder in cases if not args.words or any(word in folder.name for word in args.words)]
    if not cases:
        sys.exit(f"no cases in {args.folder}: make them with make_toys.py")
    print(f"{'case':24}{'latents':>12}{'frames':>8}{'cosine':>12}")
    failed = 0
    for folder in cases:
        apart, bytes_apart, alike, wrong = compare(args.sora.resolve(), folder, args.flag)
        failed += bool(wrong)
        figures = f"{apart:12.1e}{bytes_apart:8}{alike:12.7f}" if alike is not None else f"{'-':>12}{'-':>8}{'-':>12}"
        print(f"{folder.name:24}{figures}  {'FAILED: ' + wrong if wrong else 'ok'}")
    print(f"{len(cases) - failed} of {len(cases)} cases agree")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
