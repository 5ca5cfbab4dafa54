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


if __name__ == "__main__":
    assert diffusers.__version__ == PIN, f"diffusers {diffusers.__version__} (expected {PIN})"
    torch.set_grad_enabled(False)
    words = sys.argv[1:]
    for name, make in FIXTURES.items():
        if not words or any(word in name for word in words):
            write(name, *make())
