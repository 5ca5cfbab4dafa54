#!/usr/bin/env python3
"""Makes every fixture of the golden tests from the reference's own classes at toy sizes, with seeded weights.

    pip install torch diffusers==0.42.1 transformers safetensors sentencepiece
    python tests/golden/make.py            # all fixtures
    python tests/golden/make.py t5 vae     # those whose name contains one of the words

Each fixture is one safetensors file in tests/golden/fixtures/: weights under `w.`, inputs under `in.`,
outputs under `out.`; its metadata holds the configs (JSON) and the versions it was made with.
"""
import copy
import io
import json
import pathlib
import random
import sys
import tempfile

import diffusers
import numpy as np
import sentencepiece
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


# --- the prompt: T5 and its tokenizer ---


@fixture
def t5():
    """The text encoder: 20 tokens, a padded prompt of 128, and both 16-bit types as from_pretrained loads them."""
    config = transformers.T5Config(
        vocab_size=120, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=32, relative_attention_max_distance=128, tie_word_embeddings=False,
    )
    model = randomise(transformers.T5EncoderModel(config).eval(), 11)
    for block in model.encoder.block:
        # As in training: without the usual 1/sqrt(d), random queries would make attention all or nothing.
        block.layer[0].SelfAttention.q.weight.mul_(config.d_kv**-0.5)
    generator = torch.Generator().manual_seed(12)
    short = torch.randint(2, 120, (2, 20), generator=generator)
    padded = torch.randint(2, 120, (1, 128), generator=generator)
    padded[:, 37] = 1
    padded[:, 38:] = 0
    tensors = weights(model) | {"in.short": short, "in.padded": padded}
    tensors |= {"out.short": model(short)[0], "out.padded": model(padded)[0]}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name, dtype in {"bf16": torch.bfloat16, "f16": torch.float16}.items():
            half = transformers.T5EncoderModel.from_pretrained(folder, dtype=dtype)
            tensors[f"out.{name}"] = half(padded)[0]
        # So large that the first sums leave the range of f16.
        large = copy.deepcopy(model)
        large.encoder.block[0].layer[0].SelfAttention.o.weight.mul_(1e5)
        large.save_pretrained(folder)
        half = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float16)
        tensors["out.f16_large"] = half(short)[0]
    return tensors, {"config": config.to_json_string()}


def spiece(sentences, **options):
    """Trains a SentencePiece model with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, model_type="unigram", num_threads=1,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, **options,
    )
    return model.getvalue()


def corpus():
    """Sentences with some of everything that prompts are made of."""
    draw = random.Random(3)
    words = (
        "a the of in on over under with and pirate ship ships coffee cup storm sea dancing person monster dragon castle "
        "forest river mountain snow rain city night morning sunset camera pans left right slowly zooms out close-up of "
        "watercolour painting oil pixel art cinematic 4k 35mm film grain don't it's we're naïve café déjà über señor "
        "ÆØÅ œuvre straße Ελλάδα Москва привет 東京 海賊船 コーヒー 한국 ไทย 🏴\u200d☠️ ☕ 🚢 1 2 3 10 1999 3.14 50% $5 #1 @home "
        "running jumping flying swimming unbelievable internationalisation extraordinarily"
    ).split()
    sounds = "ba ber cor den el fa gra hin is ka lo mer nor pla qui ro sta tion ul vex wy za ing ed s er".split()
    words += ["".join(draw.choice(sounds) for _ in range(draw.randint(2, 4))) for _ in range(400)]
    stops = [".", ",", "!", "?", ";", ":", "...", '"', "'", "-", "(", ")"]
    return [" ".join(draw.choice(words) for _ in range(draw.randint(3, 14))) + draw.choice(stops) for _ in range(1500)]


NASTY = [
    "", " ", "   ", "\t", "\n", "\r\n", "a", " a", "a ", "  a  b  ", "pirate ships in coffee", "Pirate Ships In COFFEE!",
    "pirate\tships\nin\r\ncoffee", "pirate\u00a0ships", "pirate\u3000ships", "pirate\u2009ships", "pirate\u200bships",
    "pirate\u200dships", "pirate\ufeffships", "\ufeffpirate", "pirate\u00adship", "pirate\u2028ship", "pirate\u0085ship",
    "pirate\x0bship", "pirate\x00ship", "\x01pirate\x1f", "ｐｉｒａｔｅ　ｓｈｉｐｓ", "１２３ＡＢＣ", "ﬁne ﬂow ½ ² ™ … ①",
    "cafe\u0301 cafe\u0301s nai\u0308ve", "café naïve", "e\u0301\u0302\u0303", "\u0301", "Å \u212b A\u030a", "한국 \u1112\u1161\u11ab",
    "東京の海賊船", "コーヒー ｺｰﾋｰ", "ไทย", "שלום", "مرحبا", "नमस्ते", "🏴\u200d☠️ on ☕", "👩\u200d👩\u200d👧\u200d👦", "🇩🇪🇫🇷", "👍🏽", "🚢🚢🚢",
    "</s>", "a </s> b", "a</s>b", "<pad>", "a<pad> b", "<unk>", "<extra_id_0>", "a <extra_id_0> b", "a<extra_id_99>b",
    "<extra_id_100>", "< /s>", "<S>", "▁", "▁a", "a▁b", "a ▁ b", "▁▁", "_", "don't won't it's we're 'quoted'", "hello , world !",
    "it 's a ' n't .", "3.14 50% $5 #1 @home", "https://example.com/a?b=c&d=e#f", "a\\b\"c", "{\"json\": [1, 2]}", "<b>bold</b>", "ÆØÅæøå ß ẞ ĳ ŉ",
    "ΑΒΓ αβγ ς", "Привет Москва ё", "x" * 300, "ab" * 700, "pirate ships " * 60, "🚢" * 50, "a" + " " * 500 + "b", "\U000e0041\U0001d400\U0001d7d8",
    "\u202epirate\u202c", "\uffff\ufffd", "zażółć gęślą jaźń", "<wave>", "a<wave>b", "krakens kraken", "<ctl>", "a <ctl> b", "wibble wibbles",
]


@fixture
def tokenizer():
    """Ids as transformers gives them for every layout of a folder that is about."""
    sentences = corpus()
    rules = {"ｐ": "p", "ｉ": "i", "é": "e", "e\u0301": "e", "½": "1/2", "\u3000": " ", "\u00a0": " ", "\t": " ", "\u200b": "", "…": "..."}
    with tempfile.TemporaryDirectory() as folder:
        table = pathlib.Path(folder) / "rules.tsv"
        code = lambda text: " ".join(f"{ord(c):X}" for c in text)
        table.write_text("".join(f"{code(a)}\t{code(b)}\n" for a, b in rules.items()))
        files = {
            "nmt": spiece(sentences, vocab_size=500, normalization_rule_name="nmt_nfkc"),
            "plain": spiece(
                sentences, vocab_size=400, normalization_rule_name="identity", user_defined_symbols=["<wave>", "kraken"],
                control_symbols=["<ctl>"],
            ),
            "rules": spiece(sentences, vocab_size=400, normalization_rule_tsv=str(table)),
        }

    def token(content, **flags):
        return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} | flags

    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    sentinels = [f"<extra_id_{i}>" for i in range(100)]
    listed = {str(i): token(text) for i, text in enumerate(["<pad>", "</s>", "<unk>"])}
    listed |= {str(599 - i): token(text, lstrip=True, rstrip=True) for i, text in enumerate(sentinels)}
    published = named | {
        "added_tokens_decoder": listed, "additional_special_tokens": sentinels, "clean_up_tokenization_spaces": True,
        "extra_ids": 100, "legacy": True, "model_max_length": 512, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
    }
    special = {name: token(text) for name, text in named.items()} | {"additional_special_tokens": sentinels}
    [value.pop("special") for value in special.values() if isinstance(value, dict)]
    wibble = token("wibble", normalized=True, single_word=True, special=False)
    layouts = {
        "bare": {"spiece.model": "nmt"},
        "published": {
            "spiece.model": "nmt", "tokenizer_config.json": published, "special_tokens_map.json": special,
            "added_tokens.json": {text: 599 - i for i, text in enumerate(sentinels)},
        },
        "legacy": {"spiece.model": "nmt", "added_tokens.json": {text: 599 - i for i, text in enumerate(sentinels)}},
        "legacy_special": {"spiece.model": "nmt", "special_tokens_map.json": special},
        "new_token": {"spiece.model": "nmt", "tokenizer_config.json": published | {"added_tokens_decoder": listed | {"600": wibble}}},
        "no_sentinels": {"spiece.model": "plain", "tokenizer_config.json": {"extra_ids": 0}},
        "symbols": {"spiece.model": "plain"},
        "pad_is_eos": {"spiece.model": "plain", "tokenizer_config.json": {"pad_token": "</s>", "cls_token": "<cls>"}},
    }
    # What save_pretrained makes of a spiece.model, that without its configuration, and as version 4 wrote it.
    with tempfile.TemporaryDirectory() as folder:
        saved = opened(folder, {"spiece.model": files["rules"], "tokenizer_config.json": {"extra_ids": 20}})
        with tempfile.TemporaryDirectory() as other:
            saved.save_pretrained(other)
            layouts["json"] = {file.name: json.loads(file.read_text()) for file in sorted(pathlib.Path(other).iterdir())}
    alone = layouts["json"]["tokenizer.json"]
    layouts["json_alone"] = {"tokenizer.json": alone | {"added_tokens": alone["added_tokens"] + [wibble | {"id": 420}]}}
    former = {
        "normalizer": {"type": "Sequence", "normalizers": [
            alone["normalizer"], {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        ]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    }
    layouts["json_former"] = {"tokenizer.json": alone | former, "tokenizer_config.json": published | {"extra_ids": 20}}
    expected = {}
    for name, layout in layouts.items():
        with tempfile.TemporaryDirectory() as folder:
            reference = opened(folder, {file: files[v] if isinstance(v, str) else v for file, v in layout.items()})
        expected[name] = [encoded(reference, text) for text in NASTY]
    tensors = {f"in.{name}": torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()}
    return tensors, {"layouts": layouts, "texts": NASTY, "expected": expected}


def opened(folder, files):
    """The tokenizer that transformers makes of these files."""
    for file, content in files.items():
        (pathlib.Path(folder) / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return transformers.T5TokenizerFast.from_pretrained(folder)


def encoded(reference, text):
    """What LTXPipeline gets for a prompt: ids and the text that its warning calls removed, at two lengths."""
    result = {}
    for length in [16, 128]:
        padded = reference([text], padding="max_length", max_length=length, truncation=True, add_special_tokens=True, return_tensors="pt")
        ids, whole = padded.input_ids, reference([text], padding="longest", return_tensors="pt").input_ids
        cut = ""
        if whole.shape[-1] >= ids.shape[-1] and not torch.equal(ids, whole):
            cut = reference.batch_decode(whole[:, length - 1 : -1])[0]
        tokens = int(padded.attention_mask.sum())
        assert padded.attention_mask[0, :tokens].all() and (ids[0, tokens:] == reference.pad_token_id).all()
        result[str(length)] = {"ids": ids[0, :tokens].tolist(), "pad": reference.pad_token_id, "cut": cut}
    return result


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


@fixture
def conditions():
    """A picture and two clips, before, in and beside the latents of a clip, in the reference's order of draws."""
    from types import SimpleNamespace

    pipeline, frames, height, width, ratios = diffusers.LTXConditionPipeline, 33, 64, 96, (8, 32)
    asked = [(1, 0, 0.75), (1, 12, 1.0), (17, 16, 0.3), (9, 8, 1.0)]
    posteriors = [(draw(20 + i, 1, 4, (n - 1) // 8 + 1, 2, 3), 0.1 + torch.rand(1, 4, (n - 1) // 8 + 1, 2, 3,
                   generator=torch.Generator().manual_seed(40 + i))) for i, (n, _, _) in enumerate(asked)]

    class Known:
        """An encoder whose answers are known: pictures are numbered by their first value."""

        latents_mean, latents_std = torch.zeros(4), torch.ones(4)

        def encode(self, video):
            mean, std = posteriors[int(video.flatten()[0])]
            sample = lambda generator: mean + std * torch.randn(mean.shape, generator=generator)
            return SimpleNamespace(latent_dist=SimpleNamespace(sample=sample))

    stub = SimpleNamespace(
        vae=Known(), vae_temporal_compression_ratio=ratios[0], vae_spatial_compression_ratio=ratios[1],
        transformer_spatial_patch_size=1, transformer_temporal_patch_size=1,
        **{name: getattr(pipeline, name) for name in ("_normalize_latents", "_prepare_video_ids", "_scale_video_ids",
                                                      "_pack_latents")})
    generator = torch.Generator().manual_seed(77)
    pixels = [torch.full((1, 3, n, height, width), float(i)) for i, (n, _, _) in enumerate(asked)]
    tokens, mask, coords, beside = pipeline.prepare_latents(
        stub, pixels, [s for _, _, s in asked], [f for _, f, _ in asked], 1, 4, height, width, frames,
        generator=generator, device="cpu", dtype=torch.float32)
    tensors = {"out.tokens": tokens, "out.mask": mask, "out.coords": coords.float()}
    current = draw(60, *tokens.shape)
    for i, time in enumerate((1000.0, 620.5, 100.0)):
        time = torch.tensor(time)
        noised = pipeline.add_noise_to_image_conditioning_latents(time / 1000, tokens, current, 0.15, mask, generator)
        stepped = noised + 1
        kept = torch.where((time / 1000 - 1e-6 < (1.0 - mask)).unsqueeze(-1), stepped, noised)
        times = torch.min(time.expand(1).unsqueeze(-1).float(), (1 - mask) * 1000.0)
        tensors |= {f"out.{i}.noised": noised, f"out.{i}.kept": kept, f"out.{i}.times": times}
        current = kept
    tensors |= {"in.current": draw(60, *tokens.shape)}
    for i, (mean, std) in enumerate(posteriors):
        tensors |= {f"in.{i}.mean": mean, f"in.{i}.std": std}
    return tensors, {"asked": asked, "frames": frames, "size": [width, height], "seed": 77, "beside": beside,
                     "times": [1000.0, 620.5, 100.0]}


def vae_model(seed, **config):
    """A toy autoencoder: every weight random, its latents' statistics too."""
    from diffusers import AutoencoderKLLTXVideo

    model = randomise(AutoencoderKLLTXVideo(**config).eval(), seed)
    generator = torch.Generator().manual_seed(seed)
    model.latents_mean.copy_(0.3 * torch.randn(model.latents_mean.shape, generator=generator))
    model.latents_std.copy_(0.5 + torch.rand(model.latents_std.shape, generator=generator))
    if model.decoder.timestep_scale_multiplier is not None:
        model.decoder.timestep_scale_multiplier.fill_(1000.0)
    return model


def vae_encode(model, video, noise=None):
    """Pictures to what the pipelines that take them as prompts make of them: the mode, or what `noise` stands for."""
    from diffusers import LTXConditionPipeline

    posterior = model.encode(video).latent_dist
    latents = posterior.mode() if noise is None else posterior.mean + posterior.std * noise
    return LTXConditionPipeline._normalize_latents(latents, model.latents_mean, model.latents_std)


def vae_decode(model, latents, noise=None, timestep=None, noise_scale=None):
    """The end of LTXPipeline.__call__; gives the pictures and all noise that layers drew."""
    from unittest import mock

    from diffusers import LTXPipeline

    drawn, randn = [], torch.randn
    def record(*args, **kwargs):
        drawn.append(randn(*args, **kwargs))
        return drawn[-1]

    z = LTXPipeline._denormalize_latents(latents, model.latents_mean, model.latents_std, model.config.scaling_factor)
    if timestep is not None:
        scale = torch.tensor([timestep if noise_scale is None else noise_scale])[:, None, None, None, None]
        z = (1 - scale) * z + scale * noise
        timestep = torch.tensor([timestep])
    torch.manual_seed(7)
    with mock.patch("torch.randn", record):
        video = model.decode(z, timestep, return_dict=False)[0]
    return video, drawn


def vae_fixture(model, seed, frames, height, width, **options):
    """Encodes a clip and decodes other latents, whole."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.rand(1, 3, frames, height, width, generator=generator) * 2 - 1
    encoded = vae_encode(model, video)
    latents = torch.randn(encoded.shape, generator=generator)
    noise = torch.randn(encoded.shape, generator=generator)
    decoded, drawn = vae_decode(model, latents, noise, **options)
    assert decoded.shape == video.shape, (decoded.shape, video.shape)
    tensors = weights(model) | {"in.video": video, "out.latents": encoded, "in.latents": latents, "in.noise": noise}
    tensors |= {"out.sample": vae_encode(model, video, noise)}
    tensors |= {f"in.drawn.{i}": value for i, value in enumerate(drawn)}
    config = json.loads(model.to_json_string())
    return tensors | {"out.video": decoded}, {"config": config, "options": options, "drawn": len(drawn)}


@fixture
def vae_090():
    """0.9.0: plain blocks, channels that change within them, no timestep."""
    model = vae_model(
        1, latent_channels=6, block_out_channels=[4, 8, 8], decoder_block_out_channels=[4, 8, 8],
        down_block_types=["LTXVideoDownBlock3D"] * 3, spatio_temporal_scaling=[True, True, False],
        decoder_spatio_temporal_scaling=[True, True, False], layers_per_block=[1, 2, 1, 1],
        decoder_layers_per_block=[2, 1, 1, 1], patch_size=2, scaling_factor=0.7, resnet_norm_eps=1e-3,
    )
    return vae_fixture(model, 1, frames=9, height=24, width=16)


@fixture
def vae_091():
    """0.9.1: a decoder that knows a timestep, adds noise and upsamples beside a skip connection."""
    model = vae_model(
        2, latent_channels=5, block_out_channels=[4, 8, 8], decoder_block_out_channels=[8, 16],
        down_block_types=["LTXVideoDownBlock3D"] * 3, spatio_temporal_scaling=[True, True, False],
        decoder_spatio_temporal_scaling=[True, True], layers_per_block=[1, 1, 1, 1],
        decoder_layers_per_block=[2, 1, 1], decoder_inject_noise=[True, False, True], upsample_residual=[True, True],
        upsample_factor=[2, 2], timestep_conditioning=True, patch_size=2,
    )
    return vae_fixture(model, 2, frames=9, height=16, width=24, timestep=0.05, noise_scale=0.025)


@fixture
def vae_095():
    """0.9.5: each way to make a clip smaller; a causal decoder, upsampling with and without a skip connection."""
    model = vae_model(
        3, latent_channels=7, block_out_channels=[4, 8, 8, 16, 16], decoder_block_out_channels=[8, 8, 16],
        down_block_types=["LTXVideo095DownBlock3D"] * 4,
        downsample_type=["spatial", "temporal", "spatiotemporal", "conv"],
        spatio_temporal_scaling=[True, True, True, True], decoder_spatio_temporal_scaling=[True, True, True],
        layers_per_block=[1, 1, 1, 1, 1], decoder_layers_per_block=[1, 1, 1, 1],
        decoder_inject_noise=[False] * 4, upsample_residual=[True, False, True], upsample_factor=[2, 1, 2],
        timestep_conditioning=True, patch_size=2, encoder_causal=False, decoder_causal=True,
        spatial_compression_ratio=16, temporal_compression_ratio=8,
    )
    return vae_fixture(model, 3, frames=17, height=16, width=32, timestep=0.1)


@fixture
def vae_patch8():
    """Large patches, blocks of 0.9.5, ratios left to the class."""
    model = vae_model(
        4, latent_channels=6, block_out_channels=[4, 8, 8], decoder_block_out_channels=[4],
        down_block_types=["LTXVideo095DownBlock3D"] * 2, downsample_type=["spatiotemporal", "conv"],
        spatio_temporal_scaling=[True, False], decoder_spatio_temporal_scaling=[True],
        layers_per_block=[1, 1, 1], decoder_layers_per_block=[1, 1], decoder_inject_noise=[False, False],
        upsample_residual=[False], upsample_factor=[1], patch_size=8,
    )
    return vae_fixture(model, 4, frames=5, height=32, width=48)


@fixture
def vae_tiled():
    """Tiles over space, over time, and both, with remainders on every side."""
    model = vae_model(
        5, latent_channels=4, block_out_channels=[4, 4, 4], decoder_block_out_channels=[4, 4],
        down_block_types=["LTXVideoDownBlock3D"] * 3, spatio_temporal_scaling=[True, True, False],
        decoder_spatio_temporal_scaling=[True, True], layers_per_block=[1, 1, 1, 1],
        decoder_layers_per_block=[1, 1, 1], decoder_inject_noise=[False] * 3, patch_size=2,
    )
    tensors, metadata = vae_fixture(model, 5, frames=13, height=24, width=40)
    video, latents = tensors["in.video"], tensors["in.latents"]
    del tensors["out.video"]
    model.enable_tiling(
        tile_sample_min_height=16, tile_sample_min_width=16, tile_sample_stride_height=8,
        tile_sample_stride_width=8, tile_sample_min_num_frames=8, tile_sample_stride_num_frames=4,
    )
    for name, space, time in [("space", True, False), ("time", False, True), ("both", True, True)]:
        model.use_tiling, model.use_framewise_decoding = space, time
        tensors[f"out.latents.{name}"] = vae_encode(model, video)
        tensors[f"out.video.{name}"] = vae_decode(model, latents)[0]
    return tensors, metadata | {"tiles": {"spatial": [16, 8], "temporal": [8, 4]}}


# --- latent upsamplers ---


def upsampler_fixture(seed, frames=3, height=4, width=5, **config):
    """A network with random weights, and what it makes of raw latents."""
    from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

    model = randomise(LTXLatentUpsamplerModel(**config).eval(), seed)
    latents = draw(seed + 1, 1, config["in_channels"], frames, height, width)
    tensors = weights(model) | {"in.latents": latents, "out.latents": model(latents)}
    return model, tensors, {"config": json.loads(model.to_json_string())}


@fixture
def upsampler_spatial():
    """Rows and columns; the whole way between two passes, with AdaIN and tone mapping, too."""
    from diffusers import LTXLatentUpsamplePipeline

    model, tensors, metadata = upsampler_fixture(31, in_channels=4, mid_channels=32, num_blocks_per_stage=1)
    vae = vae_model(
        32, latent_channels=4, block_out_channels=[4, 4], decoder_block_out_channels=[4, 4],
        down_block_types=["LTXVideoDownBlock3D"] * 2, spatio_temporal_scaling=[True, False],
        decoder_spatio_temporal_scaling=[True, False], layers_per_block=[1, 1, 1],
        decoder_layers_per_block=[1, 1, 1], decoder_inject_noise=[False] * 3, patch_size=2, scaling_factor=0.7,
    )
    pipeline = LTXLatentUpsamplePipeline(vae=vae, latent_upsampler=model)
    tensors |= {"in.mean": vae.latents_mean, "in.std": vae.latents_std}
    runs = {"plain": (0.0, 0.0), "adain": (1.0, 0.0), "both": (0.4, 0.6)}
    for name, (adain, tone_map) in runs.items():
        made = pipeline(latents=tensors["in.latents"], adain_factor=adain, tone_map_compression_ratio=tone_map,
                        output_type="latent").frames
        tensors[f"out.between.{name}"] = made
    return tensors, metadata | {"factor": 0.7, "runs": runs}


@fixture
def upsampler_temporal():
    """Frames."""
    _, tensors, metadata = upsampler_fixture(
        33, in_channels=4, mid_channels=32, num_blocks_per_stage=1, spatial_upsample=False, temporal_upsample=True,
    )
    return tensors, metadata


@fixture
def upsampler_both():
    """Frames, rows and columns at once."""
    _, tensors, metadata = upsampler_fixture(
        35, in_channels=3, mid_channels=32, num_blocks_per_stage=0, frames=2, temporal_upsample=True,
    )
    return tensors, metadata


@fixture
def upsampler_frames():
    """A network that sees one frame at a time, with more than one channel in a group."""
    _, tensors, metadata = upsampler_fixture(37, in_channels=4, mid_channels=64, num_blocks_per_stage=0, dims=2)
    return tensors, metadata


# --- spatio-temporal guidance ---


class Alone:
    """Self-attention in which each token has its own value, or stays what it is."""

    def __init__(self, mode):
        self.mode = mode

    def __call__(self, attn, hidden_states, *args, **kwargs):
        seen = attn.to_v(hidden_states) if self.mode == "attention_values" else hidden_states
        return attn.to_out[1](attn.to_out[0](seen))


def skipping(model, blocks, mode):
    """A copy of the transformer without parts of some blocks."""
    model = copy.deepcopy(model)
    for number in blocks:
        block = model.transformer_blocks[number]
        if mode == "transformer_block":
            block.forward = lambda hidden_states, *args, **kwargs: hidden_states
        else:
            block.attn1.processor = Alone(mode)
    return model


def guided(positive, negative, perturbed, scale, stg, rescale, star):
    """The velocity of a step as LTX-Video's own pipeline joins it."""
    result = positive
    if negative is not None:
        if star:
            negative = (positive * negative).sum() / ((negative**2).sum() + 1e-8) * negative
        result = negative + scale * (positive - negative)
    if perturbed is not None:
        result = result + stg * (positive - perturbed)
        if rescale:
            result = result * (rescale * positive.std() / result.std() + (1 - rescale))
    return result


GUIDED = {
    "scale": [1, 3, 6, 2], "star": True, "levels": [1.0, 0.9, 0.6, 0.3],
    "stg": {"scale": [0, 2, 1.5, 0], "rescale": [0, 0.5, 0, 0], "blocks": [[], [0, 2], [1], [1]], "mode": "attention_values"},
}


@fixture
def guidance_skipping():
    """The transformer without parts of its blocks, and a whole run whose guidance changes on the way."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    model, config = transformer(
        41, in_channels=6, out_channels=6, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=3, caption_channels=10,
    )
    grid, fps, ratios = (2, 3, 4), 24.0, (8, 32)
    scale = (ratios[0] / fps, ratios[1], ratios[1])
    texts = {"negative": draw(42, 1, 5, 10), "positive": draw(43, 1, 5, 10)}
    mask, tokens = torch.ones(1, 5), draw(44, 1, 24, 6)

    def velocity(model, sample, time, text):
        arguments = {"rope_interpolation_scale": scale, "return_dict": False}
        return model(sample, texts[text], time.expand(1), mask, *grid, **arguments)[0]

    tensors = weights(model) | {f"in.{name}": text for name, text in texts.items()} | {"in.mask": mask}
    tensors["in.tokens"] = tokens
    skips = [["attention_values", [1]], ["attention_values", [0, 2]], ["attention_skip", [0, 1]], ["transformer_block", [2]]]
    for number, (mode, blocks) in enumerate(skips):
        tensors[f"out.skipped.{number}"] = velocity(skipping(model, blocks, mode), tokens, torch.tensor(612.5), "positive")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config({"shift": 2.0})
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6))
    stg, sample = GUIDED["stg"], tokens
    for sigma, time in zip(scheduler.sigmas, scheduler.timesteps):
        reached = [i for i, level in enumerate(GUIDED["levels"]) if level <= sigma]
        entry = reached[0] if reached else len(GUIDED["levels"]) - 1
        strength, push = GUIDED["scale"][entry], stg["scale"][entry]
        positive = velocity(model, sample, time, "positive")
        negative = velocity(model, sample, time, "negative") if strength > 1 else None
        without = skipping(model, stg["blocks"][entry], stg["mode"])
        perturbed = velocity(without, sample, time, "positive") if push > 0 else None
        joined = guided(positive, negative, perturbed, strength, push, stg["rescale"][entry], GUIDED["star"])
        sample = scheduler.step(joined, time, sample, return_dict=False)[0]
    tensors["out.tokens"] = sample
    return tensors, {"config": config, "grid": grid, "fps": fps, "ratios": ratios, "skips": skips, "guidance": GUIDED,
                     "scheduler": {"shift": 2.0}, "steps": 6}


@fixture
def step_cache():
    """Whole runs with the step cache, on weights and inputs of `guidance_skipping`: calls that ran one block, and the end."""
    from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler

    given, about = guidance_skipping()
    steps, strength, thresholds = 24, 3.0, [0.1, 0.3, 0.6]
    scale = (about["ratios"][0] / about["fps"], about["ratios"][1], about["ratios"][1])
    tensors, skipped = {}, []
    for number, threshold in enumerate(thresholds):
        model, _ = transformer(
            41, in_channels=6, out_channels=6, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
            num_layers=3, caption_channels=10,
        )
        last, calls, counts = model.transformer_blocks[-1].ff, [], []
        last.register_forward_hook(lambda *_: calls.append(1))
        model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        scheduler = FlowMatchEulerDiscreteScheduler.from_config({"shift": 2.0})
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
        sample = given["in.tokens"]
        for time in scheduler.timesteps:
            said = {}
            for text in ["negative", "positive"]:
                calls.clear()
                with model.cache_context(text):
                    said[text] = model(
                        sample, given[f"in.{text}"], time.expand(1), given["in.mask"], *about["grid"],
                        rope_interpolation_scale=scale, return_dict=False,
                    )[0]
                counts.append(not calls)
            joined = said["negative"] + strength * (said["positive"] - said["negative"])
            sample = scheduler.step(joined, time, sample, return_dict=False)[0]
        tensors[f"out.tokens.{number}"] = sample
        skipped.append(sum(counts))
    return tensors, {"thresholds": thresholds, "skipped": skipped, "steps": steps, "guidance": {"scale": strength},
                     "scheduler": {"shift": 2.0}}


if __name__ == "__main__":
    assert diffusers.__version__ == PIN, f"diffusers {diffusers.__version__} (expected {PIN})"
    torch.set_grad_enabled(False)
    words = sys.argv[1:]
    for name, make in FIXTURES.items():
        if not words or any(word in name for word in words):
            write(name, *make())
