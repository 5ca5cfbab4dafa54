#!/usr/bin/env python3
"""Makes every fixture of the golden tests from the reference's own classes at toy sizes, with seeded weights.

    pip install torch diffusers==0.42.1 transformers safetensors sentencepiece
    python tests/golden/make.py            # all fixtures
    python tests/golden/make.py t5 vae     # those whose name contains one of the words

Each fixture is one safetensors file in tests/golden/fixtures/: weights under `w.`, inputs under `in.`,
outputs under `out.`; its metadata holds the configs (JSON) and the versions it was made with.
"""
import json
import pathlib
import sys

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

PIN = "0.42.1"
HERE = pathlib.Path(__file__).resolve().parent / "fixtures"
FIXTURES = {}


def fixture(function):
    """Registers a maker: it returns (tensors, metadata) and is named like its file."""
    FIXTURES[function.__name__] = function
    return function


def weights(module):
    """The module's state under `w.`."""
    return {f"w.{key}": value for key, value in module.state_dict().items()}


def randomise(module, seed, scale=1.0):
    """Fills every parameter from one seeded generator, so that no branch is trivially zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(module.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            fan = value[0].numel() if value.ndim > 1 else 1
            if value.ndim > 1:
                value.copy_(scale * noise / fan**0.5)
            else:
                value.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * scale * noise)
    return module


def write(name, tensors, metadata):
    HERE.mkdir(exist_ok=True)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    metadata |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    path = HERE / f"{name}.safetensors"
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, path, metadata)
    size = path.stat().st_size
    assert size < 1_000_000, f"{path.name} has {size} bytes"
    print(f"{path.name}: {size} bytes")


# --- fixtures ---------------------------------------------------------------------------------------------------------


@fixture
def noise():
    """torch's CPU generator: seeds past 32 bits, every size around the block of 16, draws in a row."""
    seeds = [0, 1, 42, 2**31, 2**32 + 5, 2**63]
    draws = [5, 3, 16, 1, 17, 2, 40, 7, 33, 4]
    tensors = {}
    for i, seed in enumerate(seeds):
        fresh = lambda: torch.Generator("cpu").manual_seed(seed)
        for size in [*range(1, 41), 100, 1000]:
            tensors[f"out.{i}.{size}"] = torch.randn(size, generator=fresh())
        tensors[f"out.{i}.100003.tail"] = torch.randn(100003, generator=fresh())[-500:]
        generator = fresh()
        tensors[f"out.{i}.row"] = torch.cat([torch.randn(size, generator=generator) for size in draws])
    return tensors, {"seeds": [str(seed) for seed in seeds], "draws": draws}


SCHEDULES = [
    {},
    {"shift": 3.0},
    {"shift": 0.5, "shift_terminal": 0.0},
    {"shift": 7},
    {"shift": 1.5, "shift_terminal": 0.1},
    {"shift_terminal": 0.02},
    {"invert_sigmas": True},
    {"invert_sigmas": True, "shift": 2.2, "use_beta_sigmas": True},
    {"use_karras_sigmas": True},
    {"use_karras_sigmas": True, "shift": 3.0},
    {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 0.99},
    {"use_exponential_sigmas": True},
    {"use_exponential_sigmas": True, "shift": 2.0, "shift_terminal": 0.05},
    {"use_exponential_sigmas": True, "sigma_min": 0.01},
    {"use_beta_sigmas": True},
    {"use_beta_sigmas": True, "shift": 5.0, "shift_terminal": 0.1},
    {"num_train_timesteps": 500},
    {"num_train_timesteps": 4000, "shift": 2.0},
    {"stochastic_sampling": True, "base_shift": 2},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
     "max_image_seq_len": 4096, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.95, "max_shift": 2.05,
     "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True, "use_karras_sigmas": True, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True, "use_exponential_sigmas": True},
    {"use_dynamic_shifting": True, "use_beta_sigmas": True, "shift_terminal": 0.2},
    {"use_dynamic_shifting": True, "invert_sigmas": True, "max_shift": 3},
]
DISTILLED = [1000, 993.7, 987.5, 981.25, 975, 909.375, 725, 421.875]


@fixture
def sigmas():
    """The scheduler under every setting, fed as the two pipelines feed it."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ltx import pipeline_ltx, pipeline_ltx_condition

    tensors, cases = {}, []

    def keep(config, source, steps, cells, given, **arguments):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
        module = pipeline_ltx if source == "Linear" else pipeline_ltx_condition
        module.retrieve_timesteps(scheduler, steps, "cpu", **arguments)
        tensors[f"out.{len(cases)}.sigmas"] = scheduler.sigmas
        tensors[f"out.{len(cases)}.timesteps"] = scheduler.timesteps
        cases.append({"config": config, "source": source, "steps": steps, "cells": cells, "timesteps": given})

    for config in SCHEDULES:
        full = FlowMatchEulerDiscreteScheduler.from_config(dict(config)).config
        scale = full["num_train_timesteps"] / 1000
        for cells in (120, 1536, 12288) if config.get("use_dynamic_shifting") else (120,):
            mu = pipeline_ltx.calculate_shift(cells, full["base_image_seq_len"], full["max_image_seq_len"],
                                              full["base_shift"], full["max_shift"])
            for steps in (1, 2, 5, 8, 40):
                if steps == 1 and config.get("shift_terminal"):
                    continue
                keep(config, "Linear", steps, cells, None, sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
                if not config.get("use_dynamic_shifting") and scale == 1:
                    given = pipeline_ltx_condition.linear_quadratic_schedule(steps) * 1000
                    keep(config, "LinearQuadratic", steps, cells, None, timesteps=given)
            given = [t * scale for t in DISTILLED]
            keep(config, "Linear", 0, cells, given, timesteps=given, mu=mu)
            if not config.get("use_dynamic_shifting"):
                keep(config, "LinearQuadratic", 0, cells, given, timesteps=given)
    return tensors, {"cases": cases}


@fixture
def solver():
    """Whole runs of the scheduler's step under made-up velocities, and guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

    generator = torch.Generator().manual_seed(0)
    shape, steps = (1, 6, 8), 5
    randn = lambda: torch.randn(shape, generator=generator)
    tensors, start = {"in.start": randn()}, None
    velocities = [randn() for _ in range(steps)]
    tensors["in.velocities"] = torch.cat(velocities)
    start = tensors["in.start"]
    kinds = {"plain": {"shift": 3.0}, "stochastic": {"shift": 3.0, "stochastic_sampling": True}}
    for name, config in kinds.items():
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
        torch.manual_seed(5)
        sample = start
        for i, (t, velocity) in enumerate(zip(scheduler.timesteps, velocities)):
            sample = scheduler.step(velocity, t, sample, return_dict=False)[0]
            tensors[f"out.{name}.{i}"] = sample
    # Explicit timesteps and a shift: each token's own time is not the schedule's sigma.
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(kinds["plain"])
    given = [1000.0, 800.0, 500.0, 300.0, 50.0]
    held = torch.tensor([[1000.0, 900.0, 500.0, 10.0, 0.0, 777.7]])
    for name, limit in {"time": held + 1000, "token": held}.items():
        scheduler.set_timesteps(timesteps=given)
        sample = start
        for i, (t, velocity) in enumerate(zip(scheduler.timesteps, velocities)):
            times = torch.min(t.expand(1).unsqueeze(-1), limit) if name == "token" else t.expand(1).unsqueeze(-1)
            sample = scheduler.step(-velocity, t, sample, per_token_timesteps=times, return_dict=False)[0]
            tensors[f"out.{name}.{i}"] = sample
    tensors["in.held"] = held
    a, b = velocities[:2]
    for scale, rescale in ((3.0, 0.0), (7.5, 0.7), (1.5, 1.0)):
        guided = a + scale * (b - a)
        if rescale:
            guided = rescale_noise_cfg(guided, b, guidance_rescale=rescale)
        tensors[f"out.guided.{scale}.{rescale}"] = guided
    return tensors, {"config": kinds["plain"], "steps": steps, "timesteps": given, "seed": 5}
# --- the transformer of LTX-Video ---


def transformer(seed, **config):
    """A small transformer with random weights, and its configuration as it would be saved."""
    model = diffusers.LTXVideoTransformer3DModel(**config).eval()
    randomise(model, seed)
    return model, json.loads(model.to_json_string())


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@fixture
def transformer_grid():
    """Text to video: a grid of coordinates, one time, a padded text."""
    model, config = transformer(
        1,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=12,
    )
    grid, fps, ratios = (3, 2, 5), 25.0, (8, 32)
    tokens, text, time = draw(2, 1, 30, 8), draw(3, 1, 9, 12), torch.tensor([743.1875])
    mask = torch.tensor([[1.0] * 5 + [0.0] * 4])
    scale = (ratios[0] / fps, ratios[1], ratios[1])
    velocity = model(
        tokens, text, time, mask, *grid, rope_interpolation_scale=scale, return_dict=False
    )[0]
    tensors = {"in.tokens": tokens, "in.text": text, "in.mask": mask, "in.time": time, "out.velocity": velocity}
    return weights(model) | tensors, {"config": config, "grid": grid, "fps": fps, "ratios": ratios}


@fixture
def transformer_affine():
    """Norms with weights, attention without biases, a width that is no multiple of 6, more channels out than in."""
    model, config = transformer(
        4,
        in_channels=6,
        out_channels=7,
        num_attention_heads=2,
        attention_head_dim=11,
        cross_attention_dim=22,
        num_layers=2,
        norm_elementwise_affine=True,
        norm_eps=1e-5,
        caption_channels=10,
        attention_bias=False,
        attention_out_bias=False,
    )
    grid, fps, ratios = (2, 3, 4), 8.0, (8, 32)
    tokens, text, time = draw(5, 1, 24, 6), draw(6, 1, 4, 10), torch.tensor([1000.0])
    mask = torch.ones(1, 4)
    scale = (ratios[0] / fps, ratios[1], ratios[1])
    velocity = model(
        tokens, text, time, mask, *grid, rope_interpolation_scale=scale, return_dict=False
    )[0]
    tensors = {"in.tokens": tokens, "in.text": text, "in.mask": mask, "in.time": time, "out.velocity": velocity}
    return weights(model) | tensors, {"config": config, "grid": grid, "fps": fps, "ratios": ratios}


@fixture
def transformer_coordinates():
    """A batch of two texts, explicit coordinates, and a time for each token."""
    model, config = transformer(
        7,
        in_channels=8,
        out_channels=None,
        num_attention_heads=3,
        attention_head_dim=8,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=12,
    )
    pipeline = diffusers.LTXConditionPipeline
    condition = pipeline._scale_video_ids(pipeline._prepare_video_ids(1, 1, 2, 3), 32, 8, frame_index=17)
    clip = pipeline._scale_video_ids(pipeline._prepare_video_ids(1, 4, 2, 3), 32, 8)
    coords = torch.cat([condition, clip], dim=2).float()
    coords[:, 0] = coords[:, 0] * (1.0 / 24.0)
    coords = torch.cat([coords, coords])
    tokens, text = draw(8, 2, 30, 8), draw(9, 2, 8, 12)
    mask = torch.tensor([[1.0] * 2 + [0.0] * 6, [1.0] * 6 + [0.0] * 2])
    time = torch.tensor([50.0] * 6 + [880.25] * 12 + [300.5] * 12).repeat(2, 1)
    velocity = model(tokens, text, time, mask, video_coords=coords, return_dict=False)[0]
    tensors = {"in.tokens": tokens, "in.text": text, "in.mask": mask, "in.time": time, "in.coords": coords}
    return weights(model) | tensors | {"out.velocity": velocity}, {"config": config}


@fixture
def transformer_positions():
    """Position tables at the width of the published model, and the coordinates that both pipelines give."""
    config = {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 0, "cross_attention_dim": 2048}
    rope = diffusers.LTXVideoTransformer3DModel(in_channels=1, out_channels=1, caption_channels=1, **config).rope
    coords = torch.tensor([[[0.0, 0.32, 6.4, 10.24], [0.0, 32.0, 480.0, 1056.0], [0.0, 64.0, 672.0, 1888.0]]])
    cos, sin = rope(coords, video_coords=coords)
    grid, fps, ratios = (4, 3, 5), 24.0, (8, 32)
    scale = (ratios[0] / fps, ratios[1], ratios[1])
    plain = rope._prepare_video_coords(1, *grid, rope_interpolation_scale=scale, device="cpu").transpose(1, 2)
    pipeline = diffusers.LTXConditionPipeline
    pixels = pipeline._scale_video_ids(pipeline._prepare_video_ids(1, *grid), ratios[1], ratios[0]).float()
    pixels[:, 0] = pixels[:, 0] * (1.0 / fps)
    tensors = {"in.coords": coords, "out.cos": cos, "out.sin": sin, "out.plain": plain[0], "out.pixels": pixels[0]}
    return tensors, {"grid": grid, "fps": fps, "ratios": ratios}


@fixture
def transformer_packing():
    """Latents as tokens and back."""
    latents = draw(10, 1, 3, 4, 6, 8)
    tensors = {"in.latents": latents}
    for patch, patch_t in ((1, 1), (2, 1), (2, 2)):
        tokens = diffusers.LTXPipeline._pack_latents(latents, patch, patch_t)
        grid = (4 // patch_t, 6 // patch, 8 // patch)
        assert torch.equal(diffusers.LTXPipeline._unpack_latents(tokens, *grid, patch, patch_t), latents)
        tensors[f"out.tokens_{patch}_{patch_t}"] = tokens
    return tensors, {}


if __name__ == "__main__":
    assert diffusers.__version__ == PIN, f"diffusers {diffusers.__version__} (expected {PIN})"
    torch.set_grad_enabled(False)
    words = sys.argv[1:]
    for name, make in FIXTURES.items():
        if not words or any(word in name for word in words):
            write(name, *make())
