//! Which instructions the CPU kernels use: the widest that the processor has, or those that are forced.

use std::{str::FromStr, sync::OnceLock};

use crate::error::{Error, Result};

/// The variable with which a user of the program forces a path.
pub const VARIABLE: &str = "SORA_ISA";

static CHOSEN: OnceLock<Isa> = OnceLock::new();

/// A set of instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler makes of plain loops: the reference of the others.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// The same with BF16: pairs of bf16 numbers are multiplied as they are, where both sides are bf16.
    Avx512Bf16,
    /// NEON.
    Neon,
}

impl Isa {
    /// From the narrowest to the widest.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Neon];

    /// The value of `SORA_ISA` that asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Neon => "neon",
        }
    }

    /// Whether this processor has them.
    #[must_use]
    pub fn is_there(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_there() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            _ => false,
        }
    }

    /// Whether AVX2 is among them.
    #[must_use]
    pub fn has_avx2(self) -> bool {
        self == Self::Avx2 || self.has_avx512()
    }

    /// Whether AVX-512 is among them.
    #[must_use]
    pub fn has_avx512(self) -> bool {
        matches!(self, Self::Avx512 | Self::Avx512Bf16)
    }

    /// What the kernels of this process use.
    #[must_use]
    pub fn chosen() -> Self {
        *CHOSEN.get_or_init(Self::widest)
    }

    /// Makes the kernels of this process use these, from the first one on.
    ///
    /// # Errors
    /// The processor doesn't have them, or kernels already use others.
    pub fn force(self) -> Result<()> {
        if !self.is_there() {
            return Err(Error::invalid("the kernels", format!("this processor has no {}", self.name())));
        }
        let chosen = *CHOSEN.get_or_init(|| self);
        if chosen != self {
            let why = format!("those for {} are in use, {} comes too late", chosen.name(), self.name());
            return Err(Error::invalid("the kernels", why));
        }
        Ok(())
    }

    fn widest() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_there()).unwrap_or(Self::Scalar)
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known: Vec<&str> = Self::ALL.into_iter().filter(|isa| isa.is_there()).map(Self::name).collect();
        let isa = Self::ALL.into_iter().find(|isa| isa.name() == name && isa.is_there());
        isa.ok_or_else(|| {
            let why = format!("`{name}` is not what this processor runs (expected {})", known.join(" or "));
            Error::invalid(VARIABLE, why)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_processor_has_can_be_asked_for() {
        assert_eq!("scalar".parse::<Isa>().unwrap(), Isa::Scalar);
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().ok(), isa.is_there().then_some(isa));
        }
        assert!("sse9".parse::<Isa>().unwrap_err().to_string().contains("scalar"));
        let chosen = Isa::chosen();
        assert!(chosen.is_there());
        for isa in Isa::ALL {
            assert_eq!(isa.force().is_ok(), isa == chosen);
        }
    }
}
