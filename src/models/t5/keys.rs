//! The names that an encoder's tensors have in GGUF files, and prefixes that other programs put before them.

use crate::{error::Result, weights::Weights};

/// What a block's tensors are called in GGUF files, and here.
const BLOCK: [(&str, &str); 10] = [
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("attn_norm", "layer.0.layer_norm"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
    ("ffn_norm", "layer.1.layer_norm"),
];
/// The same outside of the blocks.
const OUTSIDE: [(&str, &str); 2] =
    [("token_embd.weight", "shared.weight"), ("enc.output_norm.weight", "encoder.final_layer_norm.weight")];
/// By this key an encoder is known, whatever stands before it.
const FIRST: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

/// What some programs keep among the tensors: a vocabulary, and what another kind of encoder has.
const ASIDE: [&str; 2] = ["spiece_model", "logit_scale"];

/// The name here of a tensor of a GGUF file.
fn from_gguf(key: &str) -> Option<String> {
    if let Some((_, name)) = OUTSIDE.iter().find(|(gguf, _)| *gguf == key) {
        return Some((*name).to_owned());
    }
    let (block, rest) = key.strip_prefix("enc.blk.")?.split_once('.')?;
    let name = rest.strip_suffix(".weight")?;
    let (_, own) = BLOCK.iter().find(|(gguf, _)| *gguf == name)?;
    Some(format!("encoder.block.{block}.{own}.weight"))
}

/// The name in GGUF files of a tensor here.
pub fn to_gguf(key: &str) -> Option<String> {
    if key == "encoder.embed_tokens.weight" {
        return Some("token_embd.weight".into());
    }
    if let Some((name, _)) = OUTSIDE.iter().find(|(_, own)| *own == key) {
        return Some((*name).to_owned());
    }
    let (block, rest) = key.strip_prefix("encoder.block.")?.split_once('.')?;
    let own = rest.strip_suffix(".weight")?;
    let (name, _) = BLOCK.iter().find(|(_, known)| *known == own)?;
    Some(format!("enc.blk.{block}.{name}.weight"))
}

/// What stands before an encoder's keys in a file; nothing if it holds none.
fn prefix(weights: &Weights) -> Option<String> {
    weights.keys().find_map(|key| key.strip_suffix(FIRST)).map(str::to_owned)
}

/// Whether a file holds an encoder.
#[must_use]
pub fn has_encoder(weights: &Weights) -> bool {
    weights.contains("enc.blk.0.attn_q.weight") || prefix(weights).is_some()
}

/// The encoder's tensors of a file under the names of the published class. Other parts of a file are left out, other
/// tensors of an encoder are not.
pub fn encoder_weights(weights: &Weights) -> Result<Weights> {
    if weights.contains("enc.blk.0.attn_q.weight") {
        // A whole T5 has a decoder, too.
        let decoder = |key: &str| key.starts_with("dec.") || key == "output.weight";
        return weights.renamed(|key| match from_gguf(key) {
            None if decoder(key) => None,
            None => Some(key.to_owned()),
            name => name,
        });
    }
    let prefix = prefix(weights).unwrap_or_default();
    weights.renamed(|key| key.strip_prefix(&prefix).filter(|key| !ASIDE.contains(key)).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (gguf, own) in [
            ("token_embd.weight", "shared.weight"),
            ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
            ("enc.blk.11.attn_q.weight", "encoder.block.11.layer.0.SelfAttention.q.weight"),
            (
                "enc.blk.0.attn_rel_b.weight",
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            ),
            ("enc.blk.3.ffn_norm.weight", "encoder.block.3.layer.1.layer_norm.weight"),
            ("enc.blk.3.ffn_gate.weight", "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"),
        ] {
            assert_eq!(from_gguf(gguf).as_deref(), Some(own));
            assert_eq!(to_gguf(own).as_deref(), Some(gguf));
        }
        assert_eq!(from_gguf("enc.blk.3.ffn_x.weight"), None);
        assert_eq!(to_gguf("decoder.block.0.layer.0.SelfAttention.q.weight"), None);
    }
}
