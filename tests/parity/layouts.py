#!/usr/bin/env python3
"""Rewrites toy pipelines in every layout that checkpoints are published in, as cases for `compare.py`.

    python tests/parity/make_toys.py DIR layout
    python tests/parity/layouts.py DIR
    python tests/parity/compare.py DIR --sora target/release/sora original split gguf fp8 lora

A case whose numbers are those of its toy has the toy's results. Where they aren't (8-bit floats, LoRAs), the reference
runs on the numbers that the file stands for. Blocks of 8 bits are compared with the toy by their cosine.
"""
import json
import pathlib
import shutil
import struct
import sys

import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

import make_toys

MODEL, T5 = "diffusion_pytorch_model.safetensors", "model.safetensors"
DECODER_090 = ["mid_block", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1", "up_blocks.2.conv_in",
               "up_blocks.2.upsamplers.0", "up_blocks.2", "up_blocks.3.conv_in", "up_blocks.3.upsamplers.0", "up_blocks.3"]
DECODER_091 = ["mid_block", "up_blocks.0.upsamplers.0", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1",
               "up_blocks.2.upsamplers.0", "up_blocks.2"]
ENCODER_090 = ["down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.0.conv_out", "down_blocks.1",
               "down_blocks.1.downsamplers.0", "down_blocks.1.conv_out", "down_blocks.2", "down_blocks.2.downsamplers.0",
               "down_blocks.3", "mid_block"]
ENCODER_095 = ["down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.1", "down_blocks.1.downsamplers.0",
               "down_blocks.2", "down_blocks.2.downsamplers.0", "down_blocks.3", "down_blocks.3.downsamplers.0",
               "mid_block"]
ROWS = {"090": (DECODER_090, ENCODER_090), "091": (DECODER_091, ENCODER_090), "095": (DECODER_091, ENCODER_095),
        "097": (DECODER_091, ENCODER_095)}
T5_NAMES = {"layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k", "layer.0.SelfAttention.v": "attn_v",
            "layer.0.SelfAttention.o": "attn_o", "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
            "layer.0.layer_norm": "attn_norm", "layer.1.DenseReluDense.wi_0": "ffn_gate",
            "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down",
            "layer.1.layer_norm": "ffn_norm"}


def original_transformer(key):
    for ours, theirs in (("proj_in", "patchify_proj"), ("time_embed", "adaln_single"), ("norm_q", "q_norm"),
                         ("norm_k", "k_norm")):
        key = key.replace(ours, theirs)
    return key


def original_vae(key, version):
    for half, row, blocks in zip(("decoder", "encoder"), ROWS[version], ("up_blocks", "down_blocks")):
        for name in sorted(row, key=len, reverse=True):
            if key.startswith(f"{half}.{name}."):
                key = f"{half}.{blocks}.{row.index(name)}.{key[len(half) + len(name) + 2:]}"
                break
    if version != "090" and key.startswith(("decoder.time_embedder", "decoder.scale_shift_table")):
        key = key.replace("decoder.", "decoder.last_")
    for ours, theirs in (("resnets", "res_blocks"), ("conv_shortcut.conv", "conv_shortcut"), ("norm3", "norm3.norm"),
                         ("latents_mean", "per_channel_statistics.mean-of-means"),
                         ("latents_std", "per_channel_statistics.std-of-means")):
        key = key.replace(ours, theirs)
    return key


def parts(toy):
    return load_file(toy / "transformer" / MODEL), load_file(toy / "vae" / MODEL), load_file(toy / "text_encoder" / T5)


def original(toy, version, prefix="vae."):
    """Transformer and autoencoder under their first names, which the reference's own converter must take back."""
    transformer, vae, _ = parts(toy)
    transformer = {f"model.diffusion_model.{original_transformer(k)}": v for k, v in transformer.items()}
    named = {f"vae.{original_vae(k, version)}": v for k, v in vae.items()}
    probe, width = dict(named), "vae.encoder.conv_out.conv.weight"
    if version in ("095", "097"):
        probe[width] = torch.zeros(1, 2048)  # by this width the reference knows the generation
    back = single_file_utils.convert_ltx_vae_checkpoint_to_diffusers(probe)
    assert back.keys() == vae.keys(), back.keys() ^ vae.keys()
    assert all(torch.equal(back[k], vae[k]) for k in vae if k != "encoder.conv_out.conv.weight")
    back = single_file_utils.convert_ltx_transformer_checkpoint_to_diffusers(dict(transformer))
    assert back.keys() == parts(toy)[0].keys()
    named |= {"vae.per_channel_statistics.mean-of-stds": vae["latents_std"].clone(),
              "vae.per_channel_statistics.channel": torch.arange(8).float()}
    return transformer, {prefix + k[4:]: v for k, v in named.items()}


def config(toy, version):
    """As the original files describe themselves."""
    own = json.loads((toy / "transformer" / "config.json").read_text())
    keys = ("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels", "caption_channels",
            "cross_attention_dim", "norm_eps", "attention_bias", "norm_elementwise_affine", "activation_fn")
    up = ["compress_all", {"residual": True, "multiplier": 2} if version != "090" else {}]
    decoder = [["res_x", {"num_layers": 1}], up] * 3 + [["res_x", {"num_layers": 1}]]
    vae = {"_class_name": "CausalVideoAutoencoder", "dims": 3, "latent_channels": 8, "causal_decoder": False,
           "scaling_factor": 1.0, "norm_layer": "pixel_norm", "patch_size": 4, "decoder_blocks": decoder,
           "timestep_conditioning": version != "090"}
    return {"transformer": {key: own[key] for key in keys} | {"qk_norm": "rms_norm"}, "vae": vae,
            "scheduler": {"_class_name": "RectifiedFlowScheduler"}}


def texts(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(content):
    if isinstance(content, str):
        return struct.pack("<I", 8) + texts(content)
    if isinstance(content, bytes):
        return struct.pack("<IIQ", 9, 0, len(content)) + content
    if isinstance(content, list) and isinstance(content[0], str):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(texts, content))
    if isinstance(content, list):
        code, kind = ("f", 6) if isinstance(content[0], float) else ("i", 5)
        return struct.pack(f"<IIQ{len(content)}{code}", 9, kind, len(content), *content)
    return struct.pack("<If", 6, content) if isinstance(content, float) else struct.pack("<II", 4, content)


def gguf(path, fields, tensors, quantise):
    """A GGUF file: matrices in f16, or in blocks of 32 with 8 bits each; all else in f32."""
    infos, data = b"", b""
    for name, tensor in tensors.items():
        matrix = tensor.ndim == 2 and name.endswith(".weight") and "rel_b" not in name
        kind, raw = 0, tensor.float().numpy().tobytes()
        if matrix and quantise and tensor.shape[1] % 32 == 0:
            blocks = tensor.float().reshape(-1, 32)
            step = (blocks.abs().amax(1, keepdim=True) / 127).half()
            steps = torch.where(step > 0, blocks / step.float(), 0).round().clamp(-127, 127).to(torch.int8)
            kind, raw = 8, b"".join(a.tobytes() + b.tobytes() for a, b in zip(step.numpy(), steps.numpy()))
        elif matrix:
            kind, raw = 1, tensor.half().numpy().tobytes()
        infos += texts(name) + struct.pack(f"<I{tensor.ndim}QIQ", tensor.ndim, *reversed(tensor.shape), kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(texts(key) + value(content) for key, content in fields.items()) + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


def gguf_files(toy, folder, quantise):
    transformer, _, encoder = parts(toy)
    own = json.loads((toy / "transformer" / "config.json").read_text())
    fields = {"general.architecture": "ltxv", "ltxv.attention.head_count": own["num_attention_heads"]}
    named = {original_transformer(k): v for k, v in transformer.items()}
    gguf(folder / "transformer.gguf", fields, named, quantise)
    named = {"token_embd.weight": encoder["shared.weight"], "enc.output_norm.weight": encoder["encoder.final_layer_norm.weight"]}
    for key, tensor in encoder.items():
        if key.startswith("encoder.block."):
            _, _, block, rest = key.split(".", 3)
            named[f"enc.blk.{block}.{T5_NAMES[rest.removesuffix('.weight')]}.weight"] = tensor
    words = SentencePieceProcessor(model_file=str(toy / "tokenizer" / "spiece.model"))
    rows, pieces = encoder["shared.weight"].shape[0], words.get_piece_size()
    kinds = [2 if words.is_unknown(i) else 3 if words.is_control(i) else 1 for i in range(pieces)]
    left = rows - pieces
    gguf(folder / "t5.gguf", {
        "general.architecture": "t5encoder", "t5encoder.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [words.id_to_piece(i) for i in range(pieces)] + [f"[PAD{i}]" for i in range(left)],
        "tokenizer.ggml.scores": [words.get_score(i) for i in range(pieces)] + [-1000.0] * left,
        "tokenizer.ggml.token_type": kinds + [5] * left,
        "tokenizer.ggml.precompiled_charsmap": charsmap(toy),
    }, named, quantise)


def charsmap(toy):
    from sentencepiece import sentencepiece_model_pb2
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((toy / "tokenizer" / "spiece.model").read_bytes())
    return model.normalizer_spec.precompiled_charsmap


def eight_bits(tensors, scaled, prefix=""):
    """Tensors as ComfyUI has them in 8 bits, and the numbers that they stand for."""
    stored, meant = {}, {}
    for key, tensor in tensors.items():
        if tensor.ndim != 2 or not key.endswith(".weight") or "relative_attention_bias" in key or "block" not in key:
            stored[prefix + key] = meant[key] = tensor
            continue
        factor = tensor.abs().max() / 448 if scaled else torch.tensor(1.0)
        small = (tensor / factor).to(torch.float8_e4m3fn)
        stored[prefix + key], meant[key] = small, small.float() * factor
        if scaled:
            stored[prefix + key.removesuffix(".weight") + ".scale_weight"] = factor
    if scaled:
        stored[prefix + "scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return stored, meant


def adapt(transformer, style):
    """A LoRA in one of two styles, and the weights that it makes."""
    generator, file, meant = torch.Generator().manual_seed(5), {}, dict(transformer)
    for key in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0", "transformer_blocks.1.ff.net.2",
                "proj_in"):
        out, into = transformer[f"{key}.weight"].shape
        down, up = torch.randn(4, into, generator=generator), torch.randn(out, 4, generator=generator) * 0.05
        meant[f"{key}.weight"] = transformer[f"{key}.weight"] + (0.7 if style == "peft" else 0.7 * 2 / 4) * up @ down
        if style == "peft":
            file |= {f"transformer.{key}.lora_A.weight": down, f"transformer.{key}.lora_B.weight": up}
        else:
            name = f"diffusion_model.{original_transformer(key)}"
            file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    return file, meant


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    root = pathlib.Path(sys.argv[1]).resolve()

    def case(name, version, model, make, meant=None, **more):
        """Writes a case: `make` fills its folder, `meant` are weights of another model than the toy's."""
        toy, folder = root / f"layout-{version}", root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        asked = json.loads((toy / "case.json").read_text())
        if meant:
            shutil.copytree(toy, folder / "meant")
            for part, tensors in meant.items():
                file = folder / "meant" / part / (T5 if part == "text_encoder" else MODEL)
                save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pt"})
            source = make_toys.CASES[toy.name]
            make_toys.write(folder / "meant", source, {key: asked[key] for key in asked if key != "class"})
        for file in ("latents.npy", "frames.npy"):
            shutil.copy((folder / "meant" if meant else toy) / file, folder)
        shutil.rmtree(folder / "meant", ignore_errors=True)
        model = [word.replace("TOY", str(toy)) for word in model]
        (folder / "case.json").write_text(json.dumps({**asked, "model": model, **more}, indent=2))
        print(name)

    for version in ROWS:
        toy = root / f"layout-{version}"
        transformer, vae = original(toy, version)
        # The first has no description, as the oldest files.
        metadata = {"config": json.dumps(config(toy, version))} if version != "090" else None
        save = lambda folder: save_file(transformer | vae, folder / "ltxv.safetensors", metadata)
        case(f"original-{version}", version,
             ["--model", "{}/ltxv.safetensors", "--text-encoder", "TOY/text_encoder"], save)

    toy = root / "layout-095"
    transformer, vae, encoder = parts(toy)

    def split(folder):
        save_file(transformer, folder / "t.safetensors", {"config": json.dumps(config(toy, "095"))})
        save_file(original(toy, "095", "")[1], folder / "v.safetensors")
        save_file(encoder, folder / "t5.safetensors")
        shutil.copy(toy / "tokenizer" / "spiece.model", folder / "words")
    case("split-095", "095", ["--model", "{}/t.safetensors", "--vae", "{}/v.safetensors", "--text-encoder",
                              "{}/t5.safetensors", "--tokenizer", "{}/words"], split)
    files = ["--model", "{}/transformer.gguf", "--vae", "TOY", "--text-encoder", "{}/t5.gguf"]
    case("gguf-f16-095", "095", files, lambda folder: gguf_files(toy, folder, False))
    case("gguf-q8-095", "095", files, lambda folder: gguf_files(toy, folder, True), cosine=0.999)

    for scaled in (False, True):
        small, meant = eight_bits({original_transformer(k): v for k, v in transformer.items()}, scaled,
                                  "model.diffusion_model.")
        small_encoder, meant_encoder = eight_bits(encoder, scaled)
        names = {original_transformer(k): k for k in transformer}

        def fp8(folder):
            vae = original(toy, "095")[1]
            save_file(small | vae, folder / "ltxv.safetensors", {"config": json.dumps(config(toy, "095"))})
            save_file(small_encoder, folder / "t5.safetensors")
        case(f"fp8-{'scaled' if scaled else 'plain'}-095", "095",
             ["--model", "{}/ltxv.safetensors", "--text-encoder", "{}/t5.safetensors", "--tokenizer", "TOY"], fp8,
             {"transformer": {names[k]: v for k, v in meant.items()}, "text_encoder": meant_encoder})

    for style in ("peft", "original"):
        file, meant = adapt(transformer, style)
        lora = ["--model", "TOY", "--lora", "{}/lora.safetensors:0.7"]
        case(f"lora-{style}-095", "095", lora, lambda folder: save_file(file, folder / "lora.safetensors"),
             {"transformer": meant})


if __name__ == "__main__":
    main()
