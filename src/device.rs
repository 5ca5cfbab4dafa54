//! Which device and which number type a render runs in.

pub mod isa;

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// A device as a user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub enum DeviceChoice {
    /// A GPU if this build can use one that is there, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA card by number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown =
            || Error::invalid(format!("device `{text}`"), "expected auto, cpu, cuda, cuda:N or metal");
        Ok(match text {
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "cuda" => Self::Cuda(0),
            "metal" => Self::Metal,
            _ => {
                let number = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                Self::Cuda(number.parse().map_err(|_| unknown())?)
            }
        })
    }
}

impl DeviceChoice {
    /// Opens the device, or says why it can't be used.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(n) => cuda(n),
            Self::Metal => metal(),
            Self::Auto if cfg!(feature = "cuda") && cuda_driver().is_ok() => cuda(0),
            Self::Auto if cfg!(feature = "metal") => metal(),
            Self::Auto => Ok(Device::Cpu),
        }
    }
}

/// candle panics where there is no driver, so the driver is looked for first.
fn cuda_driver() -> Result<(), String> {
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    // SAFETY: loading NVIDIA's driver library runs its initialisers, which candle would run anyway.
    match unsafe { libloading::Library::new(name) } {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("no NVIDIA driver was found ({name})")),
    }
}

/// Whether this machine has a driver for NVIDIA cards, whatever this program was built with.
#[must_use]
pub fn has_nvidia_driver() -> bool {
    cuda_driver().is_ok()
}

fn cuda(ordinal: usize) -> Result<Device> {
    let refuse =
        |why: String, hint: &str| Error::Device { device: format!("cuda:{ordinal}"), why, hint: hint.into() };
    if !cfg!(feature = "cuda") {
        return Err(refuse(
            "this program was built without CUDA".into(),
            "build with `--features cuda`, or pass --device cpu",
        ));
    }
    cuda_driver().map_err(|why| refuse(why, "install the NVIDIA driver, or pass --device cpu"))?;
    Device::new_cuda(ordinal)
        .map_err(|e| refuse(e.to_string(), "see `nvidia-smi` for the cards that are there"))
}

fn metal() -> Result<Device> {
    let refuse = |why: String, hint: &str| Error::Device { device: "metal".into(), why, hint: hint.into() };
    if !cfg!(feature = "metal") {
        return Err(refuse(
            "this program was built without Metal".into(),
            "build with `--features metal` on macOS, or pass --device cpu",
        ));
    }
    Device::new_metal(0).map_err(|e| refuse(e.to_string(), "pass --device cpu"))
}

/// A number type as a user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub enum DTypeChoice {
    /// f32 on a CPU, bf16 on a GPU.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats with f32's range.
    Bf16,
    /// IEEE half floats.
    F16,
}

impl FromStr for DTypeChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Auto,
            "f32" => Self::F32,
            "bf16" => Self::Bf16,
            "f16" => Self::F16,
            _ => return Err(Error::invalid(format!("dtype `{text}`"), "expected auto, f32, bf16 or f16")),
        })
    }
}

impl fmt::Display for DTypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl DTypeChoice {
    /// The dtype to compute in on `device`.
    #[must_use]
    pub fn resolve(self, device: &Device) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::Auto if device.is_cpu() => DType::F32,
            Self::Auto => DType::BF16,
        }
    }
}

/// Where and how precisely to compute.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The device that holds the weights.
    pub device: Device,
    /// The dtype of weights and activations; norms and reductions are f32 whatever it is.
    pub dtype: DType,
}
