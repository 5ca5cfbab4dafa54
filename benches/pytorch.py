#!/usr/bin/env python3
"""The large stages of LTX-Video against PyTorch: the same random weights, the same inputs, turn by turn on one machine.

  cargo build --release --example stages
  python benches/pytorch.py FOLDER [--threads 2] [--rounds 3] [--only SUBSTRING] [--size 256x256x25] [--stages PROGRAM]

FOLDER gets about 3 GiB of weights, once. Without instructions for bf16, PyTorch takes an hour and more for the rows of
that dtype: --only f32 leaves them out. Each side of a row runs in a process of its own, which warms up once and then
counts two passes; rounds take turns. Prints medians, their ratio (below 1: sora is faster), peak memory, and how far
apart the results are. Needs torch, diffusers, transformers, accelerate and safetensors.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

BLOCKS = 7  # of 28
TRANSFORMER = dict(
    in_channels=128, out_channels=128, patch_size=1, patch_size_t=1, num_attention_heads=32, attention_head_dim=64, cross_attention_dim=2048, num_layers=BLOCKS,
    activation_fn="gelu-approximate", qk_norm="rms_norm_across_heads", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=4096, attention_bias=True, attention_out_bias=True,
)
GENERATIONS = {
    "vae-0.9.0": dict(
        latent_channels=128, block_out_channels=(128, 256, 512, 512), decoder_block_out_channels=(128, 256, 512, 512), layers_per_block=(4, 3, 3, 3, 4), decoder_layers_per_block=(4, 3, 3, 3, 4),
        spatio_temporal_scaling=(True, True, True, False), decoder_spatio_temporal_scaling=(True, True, True, False), patch_size=4, timestep_conditioning=False,
    ),
    "vae-0.9.5": dict(
        latent_channels=128, block_out_channels=(128, 256, 512, 1024, 2048), down_block_types=("LTXVideo095DownBlock3D",) * 4, decoder_block_out_channels=(256, 512, 1024),
        layers_per_block=(4, 6, 6, 2, 2), decoder_layers_per_block=(5, 5, 5, 5), spatio_temporal_scaling=(True,) * 4, decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4, downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"), upsample_residual=(True,) * 3, upsample_factor=(2,) * 3,
        timestep_conditioning=True, patch_size=4, spatial_compression_ratio=32, temporal_compression_ratio=8,
    ),
}
LINEAR = "1120x2048x8192"  # tokens, numbers in and out
PEAK = 4096  # side of the matrices whose product is taken for what the machine gives
ENOUGH = 60  # seconds, after which a side isn't repeated within a round
GRIDS = {"256": (4, 8, 8), "1120": (7, 10, 16)}


def classes(stage):
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    return (LTXVideoTransformer3DModel, TRANSFORMER) if stage == "transformer" else (AutoencoderKLLTXVideo, GENERATIONS[stage])


def prepare(folder, rows):
    import torch
    from safetensors.torch import save_file

    for stage in {stage for stage, _, _ in rows}:
        if stage == "linear":
            os.makedirs(f"{folder}/linear", exist_ok=True)
            _, d_in, d_out = map(int, LINEAR.split("x"))
            torch.manual_seed(0)
            weights = {key: value.detach().to(torch.bfloat16) for key, value in torch.nn.Linear(d_in, d_out).state_dict().items()}
            save_file(weights, f"{folder}/linear/diffusion_pytorch_model.safetensors")
        elif not os.path.exists(f"{folder}/{stage}/config.json"):
            kind, config = classes(stage)
            torch.manual_seed(0)
            kind(**config).to(torch.bfloat16).save_pretrained(f"{folder}/{stage}", max_shard_size="100GB")
    for stage, _, size in rows:
        gen, path = torch.Generator().manual_seed(1), f"{folder}/input-{stage}-{size}.safetensors"
        if os.path.exists(path):
            continue
        if stage == "linear":
            tokens, d_in, _ = map(int, size.split("x"))
            inputs = dict(x=torch.randn(tokens, d_in, generator=gen))
        elif stage == "transformer":
            f, h, w = GRIDS[size]
            grid = torch.meshgrid(torch.arange(f) * 8 / 25, torch.arange(h) * 32.0, torch.arange(w) * 32.0, indexing="ij")
            mask = torch.ones(1, 128)
            mask[:, 100:] = 0
            inputs = dict(tokens=torch.randn(1, f * h * w, 128, generator=gen), states=torch.randn(1, 128, 4096, generator=gen) * 0.2, mask=mask, timestep=torch.tensor([700.0]))
            inputs["coordinates"] = torch.stack(grid).flatten(1).float().contiguous()
        else:
            w, h, f = map(int, size.split("x"))
            inputs = dict(latents=torch.randn(1, 128, (f - 1) // 8 + 1, h // 32, w // 32, generator=gen))
        save_file(inputs, path)


def torch_side(folder, stage, dtype, size, times):
    """One side of a row, in a process of its own."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ["RAYON_NUM_THREADS"]))
    dt = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    if stage == "linear":
        weights = load_file(f"{folder}/linear/diffusion_pytorch_model.safetensors")
        model = torch.nn.Linear(*weights["weight"].shape[::-1]).to(dt)
        model.load_state_dict(weights)
    else:
        model = classes(stage)[0].from_pretrained(f"{folder}/{stage}", torch_dtype=dt).eval()
    i = load_file(f"{folder}/input-{stage}-{size}.safetensors")

    def run():
        if stage == "linear":
            return model(i["x"].to(dt))
        if stage == "transformer":
            f, h, w = GRIDS[size]
            return model(
                hidden_states=i["tokens"].to(dt), encoder_hidden_states=i["states"].to(dt), timestep=i["timestep"], encoder_attention_mask=i["mask"], num_frames=f, height=h, width=w,
                video_coords=i["coordinates"][None], return_dict=False,
            )[0]
        timed = model.config.timestep_conditioning
        return model.decode(i["latents"].to(dt), torch.zeros(1).to(dt) if timed else None, return_dict=False)[0][0]

    def repeat(run):
        made, seconds = run(), []
        for _ in range(times):
            begin = time.perf_counter()
            made = run()
            seconds.append(time.perf_counter() - begin)
            if sum(seconds) > ENOUGH:
                break
        return made, seconds

    made, seconds = repeat(run)
    told = {}
    if stage == "linear":
        square = torch.randn(PEAK, PEAK).to(dt)
        told["matmul"] = repeat(lambda: square @ square)[1]
    save_file({"made": made.float().contiguous()}, f"{folder}/torch-{stage}-{size}-{dtype}.safetensors")
    print(json.dumps({"seconds": seconds, **told, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


def apart(folder, name):
    from safetensors.torch import load_file

    a, b = (load_file(f"{folder}/{side}-{name}.safetensors")["made"] for side in ("sora", "torch"))
    return ((a - b).norm() / b.norm()).item()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--only", default="", help="rows whose name contains this")
    ap.add_argument("--size", default="256x256x25", help="of the clip that is decoded")
    ap.add_argument("--stages", default="target/release/examples/stages", help="the program of the other side")
    args = ap.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    rows = [("linear", dtype, LINEAR) for dtype in ("f32", "bf16")]
    rows += [("transformer", dtype, size) for size in GRIDS for dtype in ("f32", "bf16")]
    rows += [(stage, dtype, args.size) for stage in GENERATIONS for dtype in ("f32", "bf16")]
    rows = [row for row in rows if args.only in " ".join(row)]
    prepare(args.folder, rows)
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    notes = []
    print("| stage | dtype | size | sora, s | PyTorch, s | ratio | peak MiB, sora / PyTorch | apart |\n|---|---|---|---|---|---|---|---|", flush=True)
    for stage, dtype, size in rows:
        seconds, peaks, matmul = {"sora": [], "torch": []}, {}, []
        for _ in range(args.rounds):
            for side in seconds:
                head = [args.stages, args.folder] if side == "sora" else [sys.executable, __file__, "--one", args.folder]
                out = subprocess.run([*head, stage, dtype, size, "8" if stage == "linear" else "2"], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
                told = json.loads(out.splitlines()[-1])
                seconds[side] += told["seconds"]
                matmul += told.get("matmul", [])
                peaks[side] = max(peaks.get(side, 0), told["peak_mib"] or 0)
        ours, theirs = (statistics.median(seconds[side]) for side in ("sora", "torch"))
        print(f"| {stage} | {dtype} | {size} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {peaks['sora']} / {peaks['torch']} | {apart(args.folder, f'{stage}-{size}-{dtype}'):.1e} |", flush=True)
        if matmul:
            tokens, d_in, d_out = map(int, size.split("x"))
            rate, limit = 2e-9 * tokens * d_in * d_out / ours, 2e-9 * PEAK**3 / statistics.median(matmul)
            notes.append(f"Linear layer in {dtype}: {rate:.0f} GFLOP/s, {rate / limit:.0%} of PyTorch's {PEAK} x {PEAK} product in {dtype} ({limit:.0f}).")
    print("", *notes, sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        folder, stage, dtype, size, times = sys.argv[2:]
        torch_side(folder, stage, dtype, size, int(times))
    else:
        main()
