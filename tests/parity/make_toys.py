#!/usr/bin/env python3
"""Builds toy pipelines with random weights and runs them: what `compare.py` holds the program against.

    pip install torch diffusers==0.42.1 transformers sentencepiece protobuf accelerate
    python tests/parity/make_toys.py DIR            # all cases
    python tests/parity/make_toys.py DIR 095 still  # those whose name contains one of the words
    python tests/parity/make_toys.py DIR embedded   # a copy of the model that is compiled in

Each case is a folder as `save_pretrained` publishes it (tiny configs, every kind of layer, a real T5 with a
SentencePiece vocabulary), and beside the weights: `case.json` (the arguments), `latents.npy` (final latents, as the
transformer leaves them) and `frames.npy` (u8).

The reference draws the noise of a stochastic scheduler and of the decoder's noise layers from torch's global
generator, so each run seeds both: `torch.manual_seed(S)` and `generator=torch.Generator("cpu").manual_seed(S)`.
"""
import io
import json
import pathlib
import shutil
import sys

import diffusers
import numpy as np
import sentencepiece
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from transformers import AutoTokenizer, T5Config, T5EncoderModel

PIN = "0.42.1"
EMBEDDED = pathlib.Path(__file__).resolve().parents[2] / "models" / "mini"
TEXT = """a pirate ship sails in a cup of coffee while steam rises slowly
the quick brown fox jumps over the lazy dog, twice
two cats dance on a table; one of them wears a red hat
waves roll over the beach at sunset, seen from above, cinematic light
worst quality, inconsistent motion, blurry, jittery, distorted
an old train crosses the snowy mountains (slow pan to the left)
a robot paints the sea in the style of a watercolour
happy children fly kites: green, yellow and blue ones""".splitlines()
LATENT_CHANNELS = 8
EXTRA_IDS = 100

VAE = {
    "0.9.0": {
        "block_out_channels": (8, 16, 16, 16),
        "decoder_block_out_channels": (8, 16, 16, 16),
        "layers_per_block": (2, 1, 1, 1, 2),
        "decoder_layers_per_block": (2, 1, 1, 1, 2),
    },
    "0.9.1": {
        "block_out_channels": (8, 16, 16, 16),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (2, 1, 1, 1, 2),
        "decoder_layers_per_block": (2, 1, 2, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False, False, False, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    },
    "0.9.5": {
        "block_out_channels": (8, 16, 32, 32, 64),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "spatio_temporal_scaling": (True, True, True, True),
        "layers_per_block": (1, 2, 1, 1, 1),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 2, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False, False, False, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
}
NOISY = {**VAE["0.9.1"], "decoder_inject_noise": (True, True, True, False)}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
           "max_image_seq_len": 4096, "shift_terminal": 0.1}
DECODE = {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
ALL = {
    "prompt": "a pirate ship sails in a cup of coffee",
    "negative_prompt": "worst quality, blurry, jittery",
    "width": 96,
    "height": 64,
    "frames": 17,
    "fps": 24,
    "steps": 6,
    "guidance": 3.0,
    "guidance_rescale": 0.0,
    "decode_timestep": 0.0,
    "decode_noise_scale": None,
    "timesteps": None,
}
# Name: (pipeline, VAE, scheduler, how it is saved, what is asked of it).
CASES = {
    "plain-090": (LTXPipeline, VAE["0.9.0"], DYNAMIC, {"tokenizer": "spiece"}, {"seed": 0}),
    "decode-noise-091": (LTXPipeline, VAE["0.9.1"], {"shift": 3.0}, {"tokenizer": "json"},
                         {"seed": 42, "fps": 8, "steps": 4, **DECODE}),
    "noise-layers-091": (LTXPipeline, NOISY, {"shift": 2.0}, {"tokenizer": "spiece"},
                         {"seed": 2**32 + 5, "decode_timestep": 0.05, "prompt": "Two robots, (slow pan)"}),
    "dynamic-095": (LTXPipeline, VAE["0.9.5"], DYNAMIC, {"tokenizer": "spiece", "shard": "40KB"},
                    {"seed": 7, "guidance": 4.5, "guidance_rescale": 0.7, "frames": 25, "fps": 30, **DECODE}),
    "condition-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                      {"seed": 3, "steps": 7, "prompt": " ".join(TEXT), **DECODE}),
    "condition-shift-090": (LTXConditionPipeline, VAE["0.9.0"], {"shift": 2.5}, {"tokenizer": "json"},
                            {"seed": 5, "guidance": 2.0, "guidance_rescale": 0.3}),
    "distilled-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "json"},
                      {"seed": 11, "guidance": 1.0, "timesteps": [1000, 993, 987, 981, 975, 909, 725, 0.03],
                       "steps": 8, **DECODE}),
    "karras-090": (LTXPipeline, VAE["0.9.0"], {"use_karras_sigmas": True, "shift": 1.5},
                   {"tokenizer": "spiece", "variant": "fp16"}, {"seed": 9, "width": 64, "height": 128}),
    "beta-linear-shift-091": (LTXPipeline, VAE["0.9.1"],
                              {**DYNAMIC, "time_shift_type": "linear", "use_beta_sigmas": True,
                               "stochastic_sampling": False},
                              {"tokenizer": "spiece"},
                              {"seed": 10, "fps": 12, "prompt": "; ".join(TEXT), **DECODE}),
    "stochastic-090": (LTXPipeline, VAE["0.9.0"], {"stochastic_sampling": True}, {"tokenizer": "spiece"}, {"seed": 21}),
    "still-095": (LTXPipeline, VAE["0.9.5"], DYNAMIC, {"tokenizer": "spiece"},
                  {"seed": 1, "frames": 1, "width": 128, "height": 128, **DECODE}),
}


def randomise(module, seed, gain=1.0):
    """Fills every parameter from one seeded generator, so that no branch is trivially zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(module.named_parameters()):
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1 and "scale_shift_table" not in name and "per_channel" not in name:
            value.copy_(gain * noise / value[0].numel() ** 0.5)
        else:
            value.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * noise)
    return module.eval()


def tokenizer(folder, kind):
    """A SentencePiece unigram vocabulary in the published files, or as one tokenizer.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4), model_writer=model, model_type="unigram", vocab_size=160,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2)
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {**special, "additional_special_tokens": extra, "extra_ids": EXTRA_IDS, "legacy": True,
              "model_max_length": 128, "clean_up_tokenization_spaces": True, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "additional_special_tokens": extra}, indent=2))
    loaded = AutoTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for line in TEXT:
        assert loaded(line).input_ids == pieces.encode(line) + [1], line
    if kind == "json":
        shutil.rmtree(folder)
        loaded.save_pretrained(folder)
    return loaded


def build(folder, case, seed):
    pipeline, vae, scheduler, saved, _ = case
    words = tokenizer(folder / "tokenizer", saved["tokenizer"])
    text = T5EncoderModel(T5Config(
        vocab_size=len(words) + 4, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        relative_attention_num_buckets=32, relative_attention_max_distance=128, feed_forward_proj="gated-gelu"))
    transformer = LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32)
    decoder = AutoencoderKLLTXVideo(latent_channels=LATENT_CHANNELS, **vae)
    randomise(decoder, seed + 3)
    decoder.decoder.conv_out.conv.weight.mul_(0.5)  # few pixels are clipped: those compare nothing
    generator = torch.Generator().manual_seed(seed)
    decoder.latents_mean.copy_(0.3 * torch.randn(LATENT_CHANNELS, generator=generator))
    decoder.latents_std.copy_(0.5 + torch.rand(LATENT_CHANNELS, generator=generator))
    parts = pipeline(
        tokenizer=words, text_encoder=randomise(text, seed + 1, 0.5), transformer=randomise(transformer, seed + 2),
        vae=decoder, scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler)))
    files = folder / "tokenizer"
    kept = {path.name: path.read_bytes() for path in files.iterdir()}
    parts.save_pretrained(folder, max_shard_size=saved.get("shard", "10GB"), variant=saved.get("variant"))
    for path in files.iterdir():
        path.unlink()
    for name, content in kept.items():
        (files / name).write_bytes(content)


def run(folder, case, asked):
    pipeline, saved = case[0].from_pretrained(
        folder, variant=case[3].get("variant"), torch_dtype=torch.float32), asked["seed"]
    pipeline.set_progress_bar_config(disable=True)

    def call(output_type):
        torch.manual_seed(saved)
        return pipeline(
            prompt=asked["prompt"], negative_prompt=asked["negative_prompt"], width=asked["width"],
            height=asked["height"], num_frames=asked["frames"], frame_rate=asked["fps"],
            num_inference_steps=asked["steps"], timesteps=asked["timesteps"], guidance_scale=asked["guidance"],
            guidance_rescale=asked["guidance_rescale"], decode_timestep=asked["decode_timestep"],
            decode_noise_scale=asked["decode_noise_scale"], output_type=output_type,
            generator=torch.Generator("cpu").manual_seed(saved)).frames

    latents = call("latent")
    if latents.ndim == 3:
        time, space = pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
        grid = (asked["frames"] - 1) // time + 1, asked["height"] // space, asked["width"] // space
        latents = pipeline._unpack_latents(latents, *grid)
    frames = np.stack([np.asarray(frame) for frame in call("pil")[0]])
    return latents.numpy(), frames


def main():
    assert diffusers.__version__ == PIN, f"diffusers {diffusers.__version__} (expected {PIN})"
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    root, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
    for number, (name, case) in enumerate(CASES.items()):
        if words and not any(word in name for word in words):
            continue
        folder = root / name
        shutil.rmtree(folder, ignore_errors=True)
        build(folder, case, 100 * number)
        write(folder, case, {**ALL, **case[4]})
    if "embedded" in words:
        folder = root / "embedded"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("training"))
        own = json.loads((folder / "sora.json").read_text())
        size = {key: own[key] for key in ("width", "height", "frames", "fps", "steps", "guidance")}
        asked = {**ALL, **size, "prompt": "pirate ships in coffee", "negative_prompt": "", "seed": 7}
        write(folder, (diffusers.LTXPipeline, None, None, {}), asked)


def write(folder, case, asked):
    """Runs the reference on a folder and leaves its arguments and results there."""
    latents, frames = run(folder, case, asked)
    (folder / "case.json").write_text(json.dumps({"class": case[0].__name__, **asked}, indent=2))
    np.save(folder / "latents.npy", latents)
    np.save(folder / "frames.npy", frames)
    print(f"{folder.name}: latents {latents.shape} std {latents.std():.2f}, frames {frames.shape} "
          f"std {frames.std():.1f}, clipped {np.isin(frames, (0, 255)).mean():.0%}")


if __name__ == "__main__":
    main()
