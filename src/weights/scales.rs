//! The factors that files with 8-bit floats keep beside their weights.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    encoding::Encoding,
    files::{Entry, Source},
};
use crate::error::{Error, Result};

/// What follows a layer's name where its weight's factors are.
const FACTORS: [&str; 2] = [".scale_weight", ".weight_scale"];
/// What follows a layer's name where there is something for programs that also multiply in 8 bits.
const ASIDE: [&str; 3] = [".scale_input", ".input_scale", ".comfy_quant"];
/// Says that a file has factors.
pub(super) const MARKER: &str = "scaled_fp8";

/// Whether a tensor of this name is no weight of a model but goes with one.
pub(super) fn is_scale(key: &str) -> bool {
    key == MARKER
        || key.ends_with(&format!(".{MARKER}"))
        || FACTORS.iter().chain(&ASIDE).any(|ending| key.ends_with(ending))
}

/// Moves factors to the weights that they belong to and takes out what isn't read.
pub(super) fn attach(sources: &[Source], entries: &mut BTreeMap<String, Entry>) -> Result<()> {
    let keys: Vec<String> = entries.keys().filter(|key| is_scale(key)).cloned().collect();
    for key in keys {
        let layer = FACTORS.iter().find_map(|ending| key.strip_suffix(ending));
        let weight = layer.map(|layer| format!("{layer}.weight"));
        let eight_bits = |entry: &Entry| matches!(entry.encoding, Encoding::F8E4M3 | Encoding::F8E5M2);
        match weight.as_ref().and_then(|weight| entries.get(weight)) {
            // Factors beside another format are none that we know: the audit will name them.
            Some(weight) if !eight_bits(weight) => continue,
            None if layer.is_some() => continue,
            _ => {}
        }
        let Some(entry) = entries.remove(&key) else { continue };
        let Some(weight) = weight.as_ref().and_then(|weight| entries.get_mut(weight)) else { continue };
        weight.scale = factors(&sources[entry.source], &key, &entry, weight)?;
    }
    Ok(())
}

/// One factor for all of a weight, or one for each row.
fn factors(source: &Source, key: &str, entry: &Entry, weight: &Entry) -> Result<Arc<[f32]>> {
    let count = entry.shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side)).unwrap_or(usize::MAX);
    let rows = weight.shape.first().copied().unwrap_or(1);
    if count != 1 && count != rows {
        return Err(Error::MisshapenTensor {
            file: source.path.clone(),
            key: key.to_owned(),
            found: entry.shape.clone(),
            expected: vec![rows],
        });
    }
    let float = matches!(entry.encoding, Encoding::F32 | Encoding::F16 | Encoding::Bf16);
    let mut values = vec![0.0; if float { count } else { 0 }];
    if !float || entry.encoding.decode(&source.bytes()[entry.start..entry.end], &mut values).is_err() {
        let (file, found) = (source.path.clone(), entry.encoding.to_string());
        return Err(Error::TensorDtype { file, key: key.to_owned(), found });
    }
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::NotFiniteTensor { file: source.path.clone(), key: key.to_owned() });
    }
    Ok(values.into())
}
