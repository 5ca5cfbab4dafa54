//! Flags on where and how precisely to compute.

use std::num::NonZeroUsize;

use anyhow::Context;
use clap::Args;
use sora::{
    app::budget::MemoryLimit,
    device::{DTypeChoice, DeviceChoice},
};

/// Where and how precisely to compute.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Compute")]
pub struct ComputeArgs {
    /// Device: auto, cpu, cuda[:N] or metal
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub device: DeviceChoice,

    /// Number type of weights and activations: auto, f32, bf16 or f16
    ///
    /// `auto` is f32 on a CPU and bf16 on a GPU. Norms and sums are f32 whatever this says.
    #[arg(long, value_name = "DTYPE", default_value_t, hide_short_help = true)]
    pub dtype: DTypeChoice,

    /// Take no more memory than this, e.g. 4GiB or 800MiB: decode in tiles if need be
    ///
    /// What is forecast decides, before anything is computed; what can't be done under the limit is refused. On a GPU
    /// it is the GPU's memory. K, M, G and KiB, MiB, GiB are powers of 1024; kB, MB, GB of 1000.
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    pub max_memory: Option<MemoryLimit>,

    /// CPU threads [default: one per physical core]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub threads: Option<NonZeroUsize>,
}

impl ComputeArgs {
    /// Sets how many threads all arithmetic uses. Must run before anything computes.
    pub fn start_threads(&self) -> anyhow::Result<()> {
        start(self.threads)
    }

    /// As many threads as nobody asked for.
    pub fn default_threads() -> anyhow::Result<()> {
        start(None)
    }
}

/// Sets how many threads all arithmetic uses. Must run before anything computes.
pub fn start(threads: Option<NonZeroUsize>) -> anyhow::Result<()> {
    let threads = match threads {
        Some(n) => n.get(),
        None => {
            let allowed = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            // One per physical core, or what RAYON_NUM_THREADS says; never more than a container may use.
            candle_core::utils::get_num_threads().min(allowed)
        }
    };
    // SAFETY: `main` has started no thread yet that could read the environment at the same time.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("the thread pool was started twice")
}
