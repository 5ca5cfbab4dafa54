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
import types

import diffusers
import numpy as np
import sentencepiece
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXLatentUpsamplePipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
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
    "conditions": [],
    "source": None,
    "condition_noise": None,
    "run_as": None,
    "flags": [],
}


def picture(frame, strength=1.0):
    return {"frames": 1, "frame": frame, "strength": strength}


def clip(frames, frame, strength=1.0, told=None):
    """`told` is how the command line says where the clip is, if not by its first frame."""
    return {"frames": frames, "frame": frame, "strength": strength, "told": told}


FIRST, SECOND = [1000, 993.7, 987.5, 981.2, 975, 909.4, 725], [909.4, 725, 421.9]
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
    # The same run twice: levels that count as they are, and timesteps through a scheduler that leaves them so.
    "distilled-sigmas-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "json"},
                             {"seed": 12, "guidance": 1.0, "steps": 8, **DECODE, "timesteps": [*FIRST, 421.9],
                              "flags": ["--sigmas", ",".join(str(t / 1000) for t in [*FIRST, 421.9])]}),
    # Two passes with a latent upsampler between: as the documentation of the distilled models has it, ...
    "multi-scale-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece", "upsampler": {}},
                        {"seed": 13, "guidance": 1.0, "width": 128, "height": 192, **DECODE, "timesteps": FIRST,
                         "second": {"timesteps": [1000, *SECOND], "denoise_strength": 0.999},
                         "between": {"adain_factor": 1.0, "tone_map_compression_ratio": 0.6}}),
    # ... with guidance and a share of the schedule, ...
    "multi-scale-guided-090": (LTXConditionPipeline, VAE["0.9.0"], {}, {"tokenizer": "json", "upsampler": {}},
                               {"seed": 14, "width": 128, "height": 128, "steps": 5, "frames": 9,
                                "second": {"num_inference_steps": 10, "denoise_strength": 0.4},
                                "between": {"adain_factor": 0.5, "tone_map_compression_ratio": 0.0}}),
    # ... and with one for frames.
    "multi-scale-frames-091": (LTXConditionPipeline, VAE["0.9.1"], {},
                               {"tokenizer": "spiece",
                                "upsampler": {"spatial_upsample": False, "temporal_upsample": True}},
                               {"seed": 15, "frames": 17, "steps": 4, **DECODE,
                                "second": {"num_inference_steps": 10, "denoise_strength": 0.5},
                                "between": {"adain_factor": 1.0, "tone_map_compression_ratio": 0.0}}),
    "karras-090": (LTXPipeline, VAE["0.9.0"], {"use_karras_sigmas": True, "shift": 1.5},
                   {"tokenizer": "spiece", "variant": "fp16"}, {"seed": 9, "width": 64, "height": 128}),
    "beta-linear-shift-091": (LTXPipeline, VAE["0.9.1"],
                              {**DYNAMIC, "time_shift_type": "linear", "use_beta_sigmas": True,
                               "stochastic_sampling": False},
                              {"tokenizer": "spiece"},
                              {"seed": 10, "fps": 12, "prompt": "; ".join(TEXT), **DECODE}),
    "stochastic-090": (LTXPipeline, VAE["0.9.0"], {"stochastic_sampling": True}, {"tokenizer": "spiece"}, {"seed": 21}),
    "bf16-090": (LTXPipeline, VAE["0.9.0"], DYNAMIC, {"tokenizer": "spiece", "variant": "bf16", "dtype": torch.bfloat16},
                 {"seed": 12, "steps": 3}),
    # What layouts.py rewrites: the schedulers of the published folders, weights that are exact in f16, and as many heads
    # as all published models have.
    "layout-090": (LTXPipeline, VAE["0.9.0"], DYNAMIC, {"tokenizer": "spiece", "heads": 32, "exact": True},
                   {"seed": 31, "steps": 3}),
    "layout-091": (LTXPipeline, VAE["0.9.1"], DYNAMIC, {"tokenizer": "spiece", "exact": True},
                   {"seed": 32, "steps": 3, **DECODE}),
    "layout-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece", "exact": True},
                   {"seed": 33, "steps": 3, **DECODE}),
    "layout-097": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "json", "heads": 32, "layers": 3, "exact": True},
                   {"seed": 34, "steps": 3, **DECODE}),
    "long-090": (LTXConditionPipeline, VAE["0.9.0"], {}, {"tokenizer": "spiece"},
                 {"seed": 8, "steps": 5, "frames": 41, "window": 17, "overlap": 9, "match_colour": 0.75}),
    "still-095": (LTXPipeline, VAE["0.9.5"], DYNAMIC, {"tokenizer": "spiece"},
                  {"seed": 1, "frames": 1, "width": 128, "height": 128, **DECODE}),
    # Pictures and clips as prompts.
    "first-frame-090": (LTXImageToVideoPipeline, VAE["0.9.0"], DYNAMIC, {"tokenizer": "spiece"},
                        {"seed": 31, "conditions": [picture(0)]}),
    "first-frame-091": (LTXPipeline, VAE["0.9.1"], {"shift": 3.0}, {"tokenizer": "json"},
                        {"seed": 32, "conditions": [picture(0)], "guidance_rescale": 0.5, **DECODE,
                         "run_as": "LTXImageToVideoPipeline"}),
    "first-frame-stochastic-090": (LTXImageToVideoPipeline, VAE["0.9.0"], {"stochastic_sampling": True},
                                   {"tokenizer": "spiece"}, {"seed": 33, "conditions": [picture(0)]}),
    "hold-start-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                       {"seed": 34, "conditions": [picture(0)], **DECODE}),
    "hold-middle-095": (LTXPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                        {"seed": 35, "conditions": [picture(11)], "run_as": "LTXConditionPipeline", **DECODE}),
    "hold-clip-start-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "json"},
                            {"seed": 36, "frames": 33, "conditions": [clip(20, 0)], **DECODE}),
    "hold-clip-end-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                          {"seed": 37, "frames": 41, "conditions": [clip(25, 16, told=-1)], **DECODE}),
    "hold-two-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                     {"seed": 38, "frames": 33, "guidance_rescale": 0.7, "conditions": [picture(0), clip(9, 24)]}),
    "hold-weak-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                      {"seed": 39, "frames": 33, "steps": 9, "condition_noise": 0.4,
                       "conditions": [picture(0, 0.8), clip(17, 8, 0.45), picture(32, 0.6)]}),
    "hold-090": (LTXConditionPipeline, VAE["0.9.0"], {"shift": 2.5}, {"tokenizer": "json"},
                 {"seed": 40, "guidance": 1.0, "condition_noise": 0.0, "conditions": [clip(9, 0, 0.9), picture(16)]}),
    "video-to-video-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                           {"seed": 42, "steps": 9, "source": 0.55, **DECODE}),
    "video-to-video-hold-095": (LTXConditionPipeline, VAE["0.9.5"], {}, {"tokenizer": "spiece"},
                                {"seed": 43, "steps": 9, "source": 0.8, "conditions": [picture(0)]}),
}


def inputs(folder, asked):
    """Draws the pictures and clips of a case: lossless files for the program, and what the reference is given."""
    draw = np.random.default_rng(asked["seed"])
    height, width = asked["height"], asked["width"]

    def frames(count, name):
        y, x = np.mgrid[0:height, 0:width]
        phase, speed = draw.uniform(0, 6, 3), draw.uniform(0.02, 0.2, 3)
        made = []
        for i in range(count):
            waves = [np.sin(x * 0.05 + p + i * v) + np.cos(y * 0.08 - i * v) for p, v in zip(phase, speed)]
            values = 127 + 50 * np.stack(waves, -1) + draw.normal(0, 8, (height, width, 3))
            made.append(Image.fromarray(values.clip(0, 255).astype(np.uint8)))
        (folder / "inputs").mkdir(exist_ok=True)
        if count == 1:
            made[0].save(folder / "inputs" / f"{name}.png")
        else:
            (folder / "inputs" / name).mkdir()
            for i, picture in enumerate(made):
                picture.save(folder / "inputs" / name / f"{i:04}.png")
        return made

    given = [(one, frames(one["frames"], str(i))) for i, one in enumerate(asked["conditions"])]
    return given, frames(asked["frames"], "source") if asked["source"] is not None else None


def prompted(pipeline, given, source, asked):
    """The reference's arguments for a case's pictures and clips."""
    if isinstance(pipeline, LTXImageToVideoPipeline):
        return {"image": given[0][1][0]}
    more = {}
    if given:
        more["conditions"] = [
            LTXVideoCondition(image=made[0] if one["frames"] == 1 else None, video=made if one["frames"] > 1 else None,
                              frame_index=one["frame"], strength=one["strength"])
            for one, made in given]
        if asked["condition_noise"] is not None:
            more["image_cond_noise_scale"] = asked["condition_noise"]
    if source is not None:
        video = pipeline.video_processor.preprocess_video(source, asked["height"], asked["width"])
        latents = pipeline.vae.encode(video).latent_dist.mode()
        more["latents"] = pipeline._normalize_latents(latents, pipeline.vae.latents_mean, pipeline.vae.latents_std)
        more["denoise_strength"] = asked["source"]
    return more


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
    heads = saved.get("heads", 4)
    dim = max(2, 32 // heads)
    transformer = LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, num_attention_heads=heads, attention_head_dim=dim,
        cross_attention_dim=heads * dim, num_layers=saved.get("layers", 2), caption_channels=32)
    decoder = AutoencoderKLLTXVideo(latent_channels=LATENT_CHANNELS, **vae)
    randomise(decoder, seed + 3)
    decoder.decoder.conv_out.conv.weight.mul_(0.5)  # few pixels are clipped: those compare nothing
    generator = torch.Generator().manual_seed(seed)
    decoder.latents_mean.copy_(0.3 * torch.randn(LATENT_CHANNELS, generator=generator))
    decoder.latents_std.copy_(0.5 + torch.rand(LATENT_CHANNELS, generator=generator))
    parts = pipeline(
        tokenizer=words, text_encoder=randomise(text, seed + 1, 0.5), transformer=randomise(transformer, seed + 2),
        vae=decoder, scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler)))
    if "upsampler" in saved:
        upsampler = LTXLatentUpsamplerModel(
            in_channels=LATENT_CHANNELS, mid_channels=32, num_blocks_per_stage=1, **saved["upsampler"])
        randomise(upsampler, seed + 4).save_pretrained(folder / "latent_upsampler")
    for part in (parts.text_encoder, parts.transformer, parts.vae):
        if saved.get("exact"):
            for value in part.state_dict().values():
                value.copy_(value.half().float())
        part.to(saved.get("dtype", torch.float32))
    files = folder / "tokenizer"
    kept = {path.name: path.read_bytes() for path in files.iterdir()}
    parts.save_pretrained(folder, max_shard_size=saved.get("shard", "10GB"), variant=saved.get("variant"))
    for path in files.iterdir():
        path.unlink()
    for name, content in kept.items():
        (files / name).write_bytes(content)


def matched(new, first, share):
    """The new frames of a window with the mean and spread of the first window, more so from frame to frame."""
    own = [new.mean((0, 2, 3, 4), keepdims=True), new.std((0, 2, 3, 4), keepdims=True)]
    want = [first.mean((0, 2, 3, 4), keepdims=True), first.std((0, 2, 3, 4), keepdims=True)]
    count = new.shape[2]
    ramp = share * np.arange(1, count + 1).reshape(1, 1, count, 1, 1) / count
    return new + ((new - own[0]) / own[1] * want[1] + want[0] - new) * ramp


def run_long(pipe, asked):
    """Windows that carry latents: each is the pipeline with the last latents before it as a clip at its start."""
    time, space = pipe.vae_temporal_compression_ratio, pipe.vae_spatial_compression_ratio
    frames, length, overlap = ((asked[name] - 1) // time + 1 for name in ("frames", "window", "overlap"))
    grid = asked["height"] // space, asked["width"] // space
    mean, std = (x.view(1, -1, 1, 1, 1) for x in (pipe.vae.latents_mean, pipe.vae.latents_std))
    there, index, encode = None, 0, pipe.vae.encode
    while there is None or there.shape[2] < frames:
        done = 0 if there is None else there.shape[2]
        start = min(max(done - overlap, 0), max(frames - length, 0))
        count, carried = min(length, frames - start), done - start
        conditions = None
        if carried:
            tail = torch.from_numpy(there[:, :, start:]).float() * std + mean
            pipe.vae.encode = lambda _, tail=tail: types.SimpleNamespace(latents=tail)
            blank = Image.new("RGB", (asked["width"], asked["height"]))
            conditions = [LTXVideoCondition(video=[blank] * ((carried - 1) * time + 1), frame_index=0)]
        seed = (asked["seed"] + index * 0x9E3779B1) % 2**64
        torch.manual_seed(seed)
        latents = pipe(
            conditions=conditions, prompt=asked["prompt"], negative_prompt=asked["negative_prompt"],
            width=asked["width"], height=asked["height"], num_frames=(count - 1) * time + 1,
            frame_rate=asked["fps"], num_inference_steps=asked["steps"], guidance_scale=asked["guidance"],
            output_type="latent", generator=torch.Generator("cpu").manual_seed(seed)).frames
        if latents.ndim == 3:
            latents = pipe._unpack_latents(latents, count, *grid)
        new = latents.numpy().astype(np.float64)[:, :, carried:]
        if index:
            new = matched(new, there[:, :, :length], asked["match_colour"])
        there = new if there is None else np.concatenate([there, new], axis=2)
        there, index = there.astype(np.float32).astype(np.float64), index + 1
    pipe.vae.encode = encode
    video = pipe.vae.decode(torch.from_numpy(there).float() * std + mean, return_dict=False)[0]
    frames = pipe.video_processor.postprocess_video(video, output_type="pil")[0]
    return there.astype(np.float32), np.stack([np.asarray(frame) for frame in frames])


def run(folder, case, asked):
    kind = getattr(diffusers, asked["run_as"]) if asked["run_as"] else case[0]
    pipeline, saved = kind.from_pretrained(
        folder, variant=case[3].get("variant"), torch_dtype=torch.float32), asked["seed"]
    pipeline.set_progress_bar_config(disable=True)
    if "window" in asked:
        return run_long(pipeline, asked)
    given, source = inputs(folder, asked)
    more = prompted(pipeline, given, source, asked) if given or source is not None else {}

    def call(output_type, **other):
        torch.manual_seed(saved)
        arguments = {
            "width": asked["width"], "height": asked["height"], "num_frames": asked["frames"],
            "frame_rate": asked["fps"], "num_inference_steps": asked["steps"], "timesteps": asked["timesteps"]}
        return pipeline(
            prompt=asked["prompt"], negative_prompt=asked["negative_prompt"], guidance_scale=asked["guidance"],
            guidance_rescale=asked["guidance_rescale"], decode_timestep=asked["decode_timestep"],
            decode_noise_scale=asked["decode_noise_scale"], output_type=output_type,
            generator=torch.Generator("cpu").manual_seed(saved), **{**arguments, **more, **other}).frames

    if "second" in asked:
        return two_passes(folder, pipeline, asked, call)

    latents = call("latent")
    if latents.ndim == 3:
        time, space = pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
        grid = (asked["frames"] - 1) // time + 1, asked["height"] // space, asked["width"] // space
        latents = pipeline._unpack_latents(latents, *grid)
    frames = np.stack([np.asarray(frame) for frame in call("pil")[0]])
    return latents.numpy(), frames


def two_passes(folder, pipeline, asked, call):
    """A smaller clip, larger latents, and a pass over them; each pass begins anew with the seed."""
    upsampler = LTXLatentUpsamplerModel.from_pretrained(folder / "latent_upsampler")
    space, time = 1 + upsampler.config.spatial_upsample, 1 + upsampler.config.temporal_upsample
    first = call("latent", width=asked["width"] // space, height=asked["height"] // space,
                 num_frames=(asked["frames"] - 1) // time + 1, frame_rate=asked["fps"] / time)
    between = LTXLatentUpsamplePipeline(vae=pipeline.vae, latent_upsampler=upsampler)
    large = between(latents=first, output_type="latent", **asked["between"]).frames
    second = {"latents": large, "timesteps": None, **asked["second"]}
    latents = call("latent", **second)
    return latents.numpy(), np.stack([np.asarray(frame) for frame in call("pil", **second)[0]])


def two_pass_flags(asked):
    """What asks the program for the same."""
    second, between = asked["second"], asked["between"]
    words = ["--upsampler", "{folder}", "--adain", str(between["adain_factor"]),
             "--tone-map", str(between["tone_map_compression_ratio"]),
             "--denoise-strength", "1", "--denoise-strength", str(second["denoise_strength"])]
    for name, flag in (("timesteps", "--timesteps"), ("num_inference_steps", "--steps")):
        value = second.get(name)
        words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)] if value else []
    return words


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
        even = [1 - i / own["steps"] for i in range(own["steps"])]
        timesteps = [1000 * own["shift"] * s / (1 + (own["shift"] - 1) * s) for s in even]
        asked = {**ALL, **size, "prompt": "pirate ships in coffee", "negative_prompt": "", "seed": 7, "timesteps": timesteps}
        write(folder, (LTXConditionPipeline, None, None, {}), asked)


def write(folder, case, asked):
    """Runs the reference on a folder and leaves its arguments and results there."""
    latents, frames = run(folder, case, asked)
    if "second" in asked:
        asked = {**asked, "flags": two_pass_flags(asked)}
    (folder / "case.json").write_text(json.dumps({"class": case[0].__name__, **asked}, indent=2, default=list))
    np.save(folder / "latents.npy", latents)
    np.save(folder / "frames.npy", frames)
    print(f"{folder.name}: latents {latents.shape} std {latents.std():.2f}, frames {frames.shape} "
          f"std {frames.std():.1f}, clipped {np.isin(frames, (0, 255)).mean():.0%}")


if __name__ == "__main__":
    main()
