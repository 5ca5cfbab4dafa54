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


if __name__ == "__main__":
    assert diffusers.__version__ == PIN, f"diffusers {diffusers.__version__} (expected {PIN})"
    torch.set_grad_enabled(False)
    words = sys.argv[1:]
    for name, make in FIXTURES.items():
        if not words or any(word in name for word in words):
            write(name, *make())
