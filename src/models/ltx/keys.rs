//! The names that tensors have in files of other programs, and what they are here: as diffusers names them.

use std::collections::BTreeMap;

use crate::{
    error::Result,
    weights::{Value, Weights},
};

/// What a checkpoint of several parts puts before the transformer's keys.
const TRANSFORMER: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", "transformer."];
/// What such a checkpoint puts before the keys of other parts.
pub(super) const VAE: &str = "vae.";
const OTHERS: [&str; 4] = [VAE, "text_encoders.", "cond_stage_model.", "first_stage_model."];

/// Names of the original release, and what they became.
const NAMES: [(&str, &str); 4] = [
    ("patchify_proj", "proj_in"),
    ("adaln_single", "time_embed"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
];

/// A key with some of its parts named otherwise.
fn replaced(key: &str, names: impl Fn(&str) -> Option<&'static str>) -> String {
    let parts: Vec<&str> = key.split('.').map(|part| names(part).unwrap_or(part)).collect();
    parts.join(".")
}

/// A transformer's key, in whatever file; nothing for keys of other parts.
pub(super) fn transformer(key: &str) -> Option<String> {
    if OTHERS.iter().any(|prefix| key.starts_with(prefix)) {
        return None;
    }
    let key = TRANSFORMER.iter().find_map(|prefix| key.strip_prefix(prefix)).unwrap_or(key);
    Some(replaced(key, |part| NAMES.iter().find(|(from, _)| *from == part).map(|(_, to)| *to)))
}

/// The original name of a transformer's key, as GGUF files have it.
pub(super) fn original(key: &str) -> String {
    replaced(key, |part| NAMES.iter().find(|(_, to)| *to == part).map(|(from, _)| *from))
}

/// Whether a file holds the transformer, under any of its names.
pub(super) fn has_transformer(weights: &Weights) -> bool {
    let named = |name: &str| weights.keys().any(|key| transformer(key).is_some_and(|key| key == name));
    named("proj_in.weight")
        && named("time_embed.linear.weight")
        && named("caption_projection.linear_1.weight")
        || matches!(weights.gguf_value("general.architecture"), Some(Value::Text(text)) if text == "ltxv")
}

/// Whether a file holds a video autoencoder beside other parts.
pub(super) fn has_vae(weights: &Weights) -> bool {
    weights.keys().any(|key| key.starts_with("vae.decoder."))
}

/// The transformer's tensors of a file.
pub(super) fn transformer_weights(weights: &Weights) -> Result<Weights> {
    weights.renamed(transformer)
}

/// The video autoencoder's tensors of a file: of its own, or with other parts.
///
/// The original lays the blocks of each half out in one row: some resnets, a change of size, a change of channels.
/// Which is which is seen from their tensors; every generation is a row of these.
pub(super) fn vae_weights(weights: &Weights) -> Result<Weights> {
    let beside_others = has_vae(weights);
    let own = |key: &str| match key.strip_prefix(VAE) {
        Some(key) => Some(key.to_owned()),
        None => (!beside_others).then(|| key.to_owned()),
    };
    let names: Vec<String> = weights.keys().filter_map(own).collect();
    let is_original = names.iter().any(|key| key.contains(".res_blocks.") || key.starts_with(STATISTICS));
    if !is_original {
        return weights.renamed(own);
    }
    let decoder = decoder_blocks(&row(&names, "decoder.up_blocks."));
    let encoder = encoder_blocks(&row(&names, "encoder.down_blocks."));
    weights.renamed(|key| {
        let key = own(key)?;
        if let Some(statistic) = key.strip_prefix(STATISTICS) {
            return match statistic {
                "mean-of-means" => Some("latents_mean".into()),
                "std-of-means" => Some("latents_std".into()),
                "channel" | "mean-of-stds" | "mean-of-stds_over_std-of-means" => None,
                _ => Some(key),
            };
        }
        let renamed = block_of(&key, "decoder.up_blocks.")
            .and_then(|(i, rest)| Some(format!("decoder.{}.{rest}", decoder.get(&i)?)))
            .or_else(|| {
                let (i, rest) = block_of(&key, "encoder.down_blocks.")?;
                Some(format!("encoder.{}.{rest}", encoder.get(&i)?))
            });
        Some(part_names(&renamed.unwrap_or(key)))
    })
}

const STATISTICS: &str = "per_channel_statistics.";

/// What differs within a block and outside of the blocks.
fn part_names(key: &str) -> String {
    let key = replaced(key, |part| match part {
        "res_blocks" => Some("resnets"),
        "last_time_embedder" => Some("time_embedder"),
        "last_scale_shift_table" => Some("scale_shift_table"),
        _ => None,
    });
    let key = key.replace("norm3.norm.", "norm3.");
    if key.contains("conv_shortcut.conv.") {
        key
    } else {
        key.replace("conv_shortcut.", "conv_shortcut.conv.")
    }
}

/// What a block of the original is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Several resnets of one width.
    Resnets,
    /// A change of size.
    Resize,
    /// One resnet that changes the channels.
    Widen,
}

/// `decoder.up_blocks.7.conv.conv.weight` → 7 and `conv.conv.weight`.
fn block_of<'a>(key: &'a str, prefix: &str) -> Option<(usize, &'a str)> {
    let (number, rest) = key.strip_prefix(prefix)?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The blocks below a prefix, by number.
fn row(keys: &[String], prefix: &str) -> BTreeMap<usize, Kind> {
    let mut row = BTreeMap::new();
    for (number, rest) in keys.iter().filter_map(|key| block_of(key, prefix)) {
        let kind = match rest.split('.').next() {
            Some("res_blocks" | "time_embedder") => Kind::Resnets,
            Some("conv") => Kind::Resize,
            _ => Kind::Widen,
        };
        row.insert(number, kind);
    }
    row
}

/// In the decoder the middle block comes first; a change of channels or of size belongs to the resnets behind it.
fn decoder_blocks(row: &BTreeMap<usize, Kind>) -> BTreeMap<usize, String> {
    let (mut names, mut block, mut middle) = (BTreeMap::new(), 0, true);
    for (number, kind) in row {
        let name = match kind {
            Kind::Resnets if middle => {
                middle = false;
                "mid_block".to_owned()
            }
            Kind::Resnets => {
                block += 1;
                format!("up_blocks.{}", block - 1)
            }
            Kind::Resize => format!("up_blocks.{block}.upsamplers.0"),
            Kind::Widen => format!("up_blocks.{block}.conv_in"),
        };
        names.insert(*number, name);
    }
    names
}

/// In the encoder the middle block comes last; a change of size or of channels belongs to the resnets before it.
fn encoder_blocks(row: &BTreeMap<usize, Kind>) -> BTreeMap<usize, String> {
    let (mut names, mut blocks) = (BTreeMap::new(), 0);
    let last = row.iter().rev().find(|(_, kind)| **kind == Kind::Resnets).map(|(number, _)| *number);
    for (number, kind) in row {
        let block = || blocks.max(1) - 1;
        let name = match kind {
            Kind::Resnets if Some(*number) == last => "mid_block".to_owned(),
            Kind::Resnets => {
                blocks += 1;
                format!("down_blocks.{}", blocks - 1)
            }
            Kind::Resize => format!("down_blocks.{}.downsamplers.0", block()),
            Kind::Widen => format!("down_blocks.{}.conv_out", block()),
        };
        names.insert(*number, name);
    }
    names
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn transformer_keys_of_every_file() {
        for prefix in ["", "model.diffusion_model.", "diffusion_model."] {
            for (from, to) in [
                ("patchify_proj.weight", "proj_in.weight"),
                (
                    "adaln_single.emb.timestep_embedder.linear_1.bias",
                    "time_embed.emb.timestep_embedder.linear_1.bias",
                ),
                ("transformer_blocks.3.attn1.q_norm.weight", "transformer_blocks.3.attn1.norm_q.weight"),
                ("transformer_blocks.3.attn2.to_out.0.weight", "transformer_blocks.3.attn2.to_out.0.weight"),
                ("scale_shift_table", "scale_shift_table"),
            ] {
                assert_eq!(transformer(&format!("{prefix}{from}")).as_deref(), Some(to));
                assert_eq!(transformer(&format!("{prefix}{to}")).as_deref(), Some(to));
                assert_eq!(original(to), from);
            }
        }
        assert_eq!(transformer("vae.decoder.conv_in.conv.weight"), None);
    }

    /// The published rows of blocks, and where diffusers has each of them.
    #[test]
    fn rows_of_every_generation() {
        use Kind::{Resize, Resnets, Widen};
        let names = |kinds: &[Kind], place: fn(&BTreeMap<usize, Kind>) -> BTreeMap<usize, String>| {
            let row = kinds.iter().copied().enumerate().collect();
            place(&row).into_values().collect::<Vec<_>>()
        };
        let decoder = [Resnets, Resnets, Resize, Resnets, Widen, Resize, Resnets, Widen, Resize, Resnets];
        assert_eq!(
            names(&decoder, decoder_blocks),
            [
                "mid_block",
                "up_blocks.0",
                "up_blocks.1.upsamplers.0",
                "up_blocks.1",
                "up_blocks.2.conv_in",
                "up_blocks.2.upsamplers.0",
                "up_blocks.2",
                "up_blocks.3.conv_in",
                "up_blocks.3.upsamplers.0",
                "up_blocks.3"
            ]
        );
        let decoder = [Resnets, Resize, Resnets, Resize, Resnets, Resize, Resnets];
        assert_eq!(
            names(&decoder, decoder_blocks),
            [
                "mid_block",
                "up_blocks.0.upsamplers.0",
                "up_blocks.0",
                "up_blocks.1.upsamplers.0",
                "up_blocks.1",
                "up_blocks.2.upsamplers.0",
                "up_blocks.2"
            ]
        );
        let encoder = [Resnets, Resize, Widen, Resnets, Resize, Widen, Resnets, Resize, Resnets, Resnets];
        assert_eq!(
            names(&encoder, encoder_blocks),
            [
                "down_blocks.0",
                "down_blocks.0.downsamplers.0",
                "down_blocks.0.conv_out",
                "down_blocks.1",
                "down_blocks.1.downsamplers.0",
                "down_blocks.1.conv_out",
                "down_blocks.2",
                "down_blocks.2.downsamplers.0",
                "down_blocks.3",
                "mid_block"
            ]
        );
        let encoder = [Resnets, Resize, Resnets, Resize, Resnets, Resize, Resnets, Resize, Resnets];
        assert_eq!(
            names(&encoder, encoder_blocks),
            [
                "down_blocks.0",
                "down_blocks.0.downsamplers.0",
                "down_blocks.1",
                "down_blocks.1.downsamplers.0",
                "down_blocks.2",
                "down_blocks.2.downsamplers.0",
                "down_blocks.3",
                "down_blocks.3.downsamplers.0",
                "mid_block"
            ]
        );
    }

    #[test]
    fn keys_of_an_original_autoencoder() {
        let one = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let pairs = [
            (
                "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight",
                "decoder.mid_block.resnets.0.conv1.conv.weight",
            ),
            (
                "decoder.up_blocks.0.time_embedder.timestep_embedder.linear_1.bias",
                "decoder.mid_block.time_embedder.timestep_embedder.linear_1.bias",
            ),
            ("decoder.up_blocks.1.norm3.norm.weight", "decoder.up_blocks.0.conv_in.norm3.weight"),
            (
                "decoder.up_blocks.1.conv_shortcut.weight",
                "decoder.up_blocks.0.conv_in.conv_shortcut.conv.weight",
            ),
            ("decoder.up_blocks.2.conv.conv.weight", "decoder.up_blocks.0.upsamplers.0.conv.conv.weight"),
            (
                "decoder.up_blocks.3.res_blocks.1.per_channel_scale1",
                "decoder.up_blocks.0.resnets.1.per_channel_scale1",
            ),
            (
                "decoder.last_time_embedder.timestep_embedder.linear_2.bias",
                "decoder.time_embedder.timestep_embedder.linear_2.bias",
            ),
            ("decoder.last_scale_shift_table", "decoder.scale_shift_table"),
            ("decoder.timestep_scale_multiplier", "decoder.timestep_scale_multiplier"),
            (
                "encoder.down_blocks.0.res_blocks.0.conv1.conv.bias",
                "encoder.down_blocks.0.resnets.0.conv1.conv.bias",
            ),
            ("encoder.down_blocks.1.conv.weight", "encoder.down_blocks.0.downsamplers.0.conv.weight"),
            (
                "encoder.down_blocks.2.res_blocks.0.conv1.conv.bias",
                "encoder.mid_block.resnets.0.conv1.conv.bias",
            ),
            ("per_channel_statistics.mean-of-means", "latents_mean"),
            ("per_channel_statistics.std-of-means", "latents_std"),
        ];
        for prefix in ["", "vae."] {
            let dropped = ["per_channel_statistics.channel", "per_channel_statistics.mean-of-stds"];
            let keys = pairs.iter().map(|(from, _)| *from).chain(dropped);
            let mut tensors: HashMap<_, _> =
                keys.map(|key| (format!("{prefix}{key}"), one.clone())).collect();
            if prefix == VAE {
                tensors.insert("model.diffusion_model.patchify_proj.weight".into(), one.clone());
            }
            let renamed = vae_weights(&Weights::from_tensors("toy", tensors)).unwrap();
            let mut expected: Vec<&str> = pairs.iter().map(|(_, to)| *to).collect();
            expected.sort_unstable();
            assert_eq!(renamed.keys().collect::<Vec<_>>(), expected);
            // Names that are right already stay.
            assert_eq!(vae_weights(&renamed).unwrap().keys().collect::<Vec<_>>(), expected);
        }
    }
}
