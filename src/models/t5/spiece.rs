//! SentencePiece model files: the few fields of the protobuf that a T5 tokenizer needs.
//!
//! The reader trusts nothing: whatever it lets through can be handed to the tokenizers crate, which
//! would panic on a normaliser map that points outside of itself.

use std::ops::Range;

/// No published model has a piece near this; the vocabulary's trie is as deep as its longest piece.
const MAX_PIECE_BYTES: usize = 1024;

/// A SentencePiece model, as far as it matters here.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Spiece {
    /// In the order of their ids.
    pub pieces: Vec<Piece>,
    /// The compiled normaliser map; empty if text is not normalised.
    pub charsmap: Vec<u8>,
}

/// One entry of the vocabulary.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    /// A control piece, such as `</s>`, or one the trainer was told to keep whole.
    pub added: bool,
}

/// Reads a `spiece.model`; an error is a sentence about what is wrong.
pub(super) fn parse(bytes: &[u8]) -> Result<Spiece, String> {
    const UNIGRAM: u64 = 1;
    let mut model = Spiece::default();
    let mut kind = UNIGRAM;
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(bytes)) => model.pieces.push(piece(bytes, model.pieces.len())?),
            (2, Value::Bytes(trainer)) => {
                for field in fields(trainer) {
                    if let (3, Value::Int(value)) = field? {
                        kind = value;
                    }
                }
            }
            (3, Value::Bytes(normaliser)) => {
                for field in fields(normaliser) {
                    if let (2, Value::Bytes(bytes)) = field? {
                        model.charsmap = bytes.to_vec();
                    }
                }
            }
            _ => {}
        }
    }
    if kind != UNIGRAM {
        return Err("it is not a unigram model".into());
    }
    if model.pieces.is_empty() {
        return Err("it has no pieces".into());
    }
    check_charsmap(&model.charsmap)?;
    Ok(model)
}

fn piece(bytes: &[u8], id: usize) -> Result<Piece, String> {
    const CONTROL: u64 = 3;
    const USER_DEFINED: u64 = 4;
    let mut piece = Piece { text: String::new(), score: 0.0, added: false };
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                let text = str::from_utf8(text).map_err(|_| format!("piece {id} is not UTF-8"))?;
                piece.text = text.to_owned();
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Int(kind)) => piece.added = kind == CONTROL || kind == USER_DEFINED,
            _ => {}
        }
    }
    check_piece(&piece.text, f64::from(piece.score), id)?;
    Ok(piece)
}

/// Refuses entries of a vocabulary that no trainer makes.
pub(super) fn check_piece(text: &str, score: f64, id: usize) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("piece {id} is empty"));
    }
    if text.len() > MAX_PIECE_BYTES {
        return Err(format!("piece {id} has {} bytes (expected at most {MAX_PIECE_BYTES})", text.len()));
    }
    if !score.is_finite() {
        return Err(format!("the score of piece {id} is not finite"));
    }
    Ok(())
}

/// A field's content, by its wire type.
enum Value<'a> {
    Int(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(&'a [u8]),
}

/// Walks the fields of one protobuf message; stops after the first error.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), String>> {
    let mut reader = Reader { bytes, at: 0 };
    std::iter::from_fn(move || {
        if reader.at >= reader.bytes.len() {
            return None;
        }
        let field = reader.field();
        if field.is_none() {
            reader.at = reader.bytes.len();
        }
        Some(field.ok_or_else(|| "it is not a whole SentencePiece model".to_owned()))
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(Range { start: self.at, end })?;
        self.at = end;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Int(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, value))
    }
}

/// Checks that every step and every replacement of a compiled normaliser map lies inside of it.
///
/// The map is a double array of u32 units, led by its length in bytes, then the replacements, each
/// ended by a zero byte. From a unit one goes on by xor with an offset and one byte of the text.
pub(super) fn check_charsmap(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return Ok(());
    }
    let refuse = |why: &str| Err(format!("its normaliser map {why}"));
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return refuse("is cut short") };
    let length = u32::from_le_bytes(*length) as usize;
    let Some((trie, replacements)) = rest.split_at_checked(length) else { return refuse("is cut short") };
    let (units, []) = trie.as_chunks::<4>() else { return refuse("has a broken trie") };
    // A byte of text changes the low eight bits of a place, so whole blocks keep it inside.
    if units.is_empty() || !units.len().is_multiple_of(256) {
        return refuse("has a broken trie");
    }
    let Ok(replacements) = str::from_utf8(replacements) else { return refuse("is not UTF-8") };
    let unit = |place: usize| u32::from_le_bytes(units[place]);
    for place in 0..units.len() {
        let here = unit(place);
        let is_value = here >> 31 == 1;
        if is_value {
            continue;
        }
        let offset = (here >> 10) << ((here & (1 << 9)) >> 6);
        let next = place ^ offset as usize;
        if next >= units.len() {
            return refuse("points outside of itself");
        }
        let has_leaf = (here >> 8) & 1 == 1;
        if has_leaf && !replacements.is_char_boundary((unit(next) & 0x7fff_ffff) as usize) {
            return refuse("points outside of itself");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field number, wire type 2.
    fn message(field: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![field << 3 | 2, content.len() as u8];
        bytes.extend(content);
        bytes
    }

    fn scored(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let mut piece = message(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, kind]);
        message(1, &piece)
    }

    #[test]
    fn reads_pieces_in_order() {
        let bytes = [scored("<pad>", 0.0, 3), scored("▁a", -1.5, 1), message(2, &[3 << 3, 1])].concat();
        let model = parse(&bytes).unwrap();
        let pieces: Vec<_> = model.pieces.iter().map(|p| (p.text.as_str(), p.score, p.added)).collect();
        assert_eq!(pieces, [("<pad>", 0.0, true), ("▁a", -1.5, false)]);
        assert!(model.charsmap.is_empty());
    }

    #[test]
    fn refuses_what_is_no_unigram_model() {
        let refused = |bytes: Vec<u8>| parse(&bytes).unwrap_err();
        assert!(refused([scored("a", 0.0, 1), message(2, &[3 << 3, 2])].concat()).contains("unigram"));
        assert!(refused(vec![]).contains("no pieces"));
        assert!(refused(scored("a", f32::NAN, 1)).contains("not finite"));
        assert!(refused(scored("", 0.0, 1)).contains("empty"));
        assert!(refused(message(1, &message(1, &[0xff]))).contains("UTF-8"));
        assert!(refused(vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).contains("not a whole"));
        assert!(refused(b"{\"version\": \"1.0\"}".to_vec()).contains("not a whole"));
    }

    #[test]
    fn refuses_maps_that_point_outside() {
        let map = |unit: u32, value: u32, replacements: &[u8]| {
            let mut units = vec![0u32; 256];
            (units[0], units[1]) = (unit, value);
            let mut bytes = 1024u32.to_le_bytes().to_vec();
            units.iter().for_each(|unit| bytes.extend(unit.to_le_bytes()));
            bytes.extend(replacements);
            check_charsmap(&bytes)
        };
        let leaf = 1 << 10 | 1 << 8;
        map(leaf, 1 << 31 | 2, "é\0".as_bytes()).unwrap();
        map(leaf, 1 << 31 | 1, "é\0".as_bytes()).unwrap_err();
        map(leaf, 1 << 31 | 9, "é\0".as_bytes()).unwrap_err();
        map(256 << 10, 0, b"").unwrap_err();
        map(0, 0, b"\xff").unwrap_err();
        check_charsmap(&[0; 4]).unwrap_err();
        check_charsmap(&[0xff; 16]).unwrap_err();
    }
}
