"""Write the diffusers folder `models/mini/` from what was trained, and open it.

  python export.py --work .work/train --out models/mini --steps 30 --guidance 3 --shift 2
"""

import argparse
import json
import os
import shutil

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXConditionPipeline, LTXVideoTransformer3DModel
from transformers import T5EncoderModel

from captions import CAMERA_WORDS
from latent_rgb import latent_rgb
from train_transformer import PAN, timesteps

# What `--camera` and `--style` say for this model: phrases of its captions.
DIRECTION = {
    "camera": {**{key.replace("_", " "): words[0] for key, words in CAMERA_WORDS.items()}, "dolly in": "dolly in", "dolly out": "dolly out"},
    "style": {"3d": "3d render", "black and white": "black and white", "animation": "2d cartoon"},
    "pan": {"pan left": PAN, "pan right": -PAN},
}


def drop_path(file):
    """A config needn't tell where its model lay before."""
    with open(file) as f:
        config = json.load(f)
    config.pop("_name_or_path", None)
    with open(file, "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", default=".work/train")
    ap.add_argument("--out", default="models/mini")
    ap.add_argument("--steps", type=int, default=24)
    ap.add_argument("--guidance", type=float, default=3.0)
    ap.add_argument("--shift", type=float, default=2.0)
    args = ap.parse_args()
    out, half = args.out, torch.float16
    os.makedirs(out, exist_ok=True)

    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False).save_pretrained(f"{out}/scheduler")
    shutil.rmtree(f"{out}/tokenizer", ignore_errors=True)
    # `tokenizer.json` would only say again what `spiece.model` says.
    shutil.copytree(f"{args.work}/tokenizer", f"{out}/tokenizer", ignore=shutil.ignore_patterns("tokenizer.json"))
    for name, cls, dtype in (("text_encoder", T5EncoderModel, "dtype"), ("transformer", LTXVideoTransformer3DModel, "torch_dtype"), ("vae", AutoencoderKLLTXVideo, "torch_dtype")):
        model = cls.from_pretrained(f"{args.work}/{name}", **{dtype: torch.float32}).to(half)
        for key, value in model.state_dict().items():
            assert torch.isfinite(value).all(), f"{name}: {key} does not fit float16"
        shutil.rmtree(f"{out}/{name}", ignore_errors=True)
        model.save_pretrained(f"{out}/{name}", safe_serialization=True)
        drop_path(f"{out}/{name}/config.json")
    index = {
        "_class_name": "LTXConditionPipeline", "_diffusers_version": __import__("diffusers").__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "LTXVideoTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLLTXVideo"],
    }
    sora = {"width": 128, "height": 128, "frames": 17, "fps": 8, "steps": args.steps, "guidance": args.guidance, "shift": args.shift, "conditions": "in-place", "detail": True, "max_sequence_length": 128, "direction": DIRECTION, "latent_rgb": latent_rgb(args.work)}
    for name, data in (("model_index.json", index), ("sora.json", sora)):
        with open(f"{out}/{name}", "w") as f:
            json.dump(data, f, indent=None if "latent_rgb" in data else 2)
            f.write("\n")

    pipe = LTXConditionPipeline.from_pretrained(out)
    total = 0
    for part in ("", "scheduler", "tokenizer", "text_encoder", "transformer", "vae"):
        for name in sorted(os.listdir(f"{out}/{part}")):
            path = os.path.join(out, part, name)
            if os.path.isfile(path):
                total += os.path.getsize(path)
                print(f"{os.path.getsize(path):>10} {os.path.relpath(path, out)}")
    for name in ("text_encoder", "transformer", "vae"):
        print(name, f"{sum(p.numel() for p in getattr(pipe, name).parameters()) / 1e6:.2f} M parameters")
    print(f"{total / 2**20:.2f} MiB in all")
    if total > 31 * 2**20:
        print("MORE THAN 31 MiB")
    with torch.no_grad():
        pipe = pipe.to(torch.float32)
        pipe("pirate ships in coffee", width=128, height=128, num_frames=17, frame_rate=8, timesteps=timesteps(2, args.shift), guidance_scale=args.guidance, output_type="np")
    print("LTXConditionPipeline opens it and runs")


if __name__ == "__main__":
    main()
