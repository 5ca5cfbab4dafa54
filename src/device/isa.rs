//! Which instructions the CPU kernels use: the widest that the processor has, or what `SORA_ISA` asks for.

use std::{str::FromStr, sync::OnceLock};

use crate::error::{Error, Result};

/// The variable that forces a path.
pub const VARIABLE: &str = "SORA_ISA";

/// A set of instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler makes of plain loops: the reference of the others.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    Avx512,
    /// NEON.
    Neon,
}

impl Isa {
    /// From the narrowest to the widest.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Neon];

    /// The value of `SORA_ISA` that asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
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
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// What the kernels of this process use.
    ///
    /// # Errors
    /// `SORA_ISA` is not a name, or names what this processor doesn't have.
    pub fn chosen() -> Result<Self> {
        static CHOSEN: OnceLock<std::result::Result<Isa, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| match std::env::var(VARIABLE) {
            Err(std::env::VarError::NotPresent) => Ok(Self::widest()),
            Err(error) => Err(error.to_string()),
            Ok(name) => name.parse(),
        });
        match chosen {
            Ok(isa) => Ok(*isa),
            Err(why) => Err(Error::invalid(VARIABLE, why)),
        }
    }

    /// As [`Isa::chosen`]; plain loops where that is an error, which the products of the same layer report.
    pub(crate) fn current() -> Self {
        Self::chosen().unwrap_or(Self::Scalar)
    }

    fn widest() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_there()).unwrap_or(Self::Scalar)
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let known: Vec<&str> = Self::ALL.into_iter().filter(|isa| isa.is_there()).map(Self::name).collect();
        let isa = Self::ALL.into_iter().find(|isa| isa.name() == name).filter(|isa| isa.is_there());
        isa.ok_or_else(|| format!("`{name}` is not what this processor runs: expected {}", known.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_processor_has_can_be_asked_for() {
        assert_eq!("scalar".parse(), Ok(Isa::Scalar));
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse::<Isa>().ok(), isa.is_there().then_some(isa));
        }
        assert!("sse9".parse::<Isa>().unwrap_err().contains("scalar"));
        assert!(Isa::widest().is_there());
    }
}
