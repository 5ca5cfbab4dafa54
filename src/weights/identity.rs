//! What weights are, without reading all of them.

use sha2::{Digest, Sha256};

use super::files::Weights;

/// Bytes of a place that is looked at.
const PLACE: usize = 4 << 10;
/// Places that are looked at in a file on disk, evenly spread.
const PLACES: usize = 256;
/// The beginning of a file, which holds its header, is looked at as a whole.
const HEAD: usize = 1 << 20;

impl Weights {
    /// A name for the weights: files that differ have different ones. Files in memory are read whole; of files on
    /// disk the length, the time of the last change, the header and samples count.
    #[must_use]
    pub fn identity(&self) -> Vec<u8> {
        let mut hash = Sha256::new();
        for source in self.sources().iter() {
            let bytes = source.bytes();
            hash.update((bytes.len() as u64).to_le_bytes());
            if !source.is_mapped() {
                hash.update(bytes);
                continue;
            }
            let changed = source.path.metadata().and_then(|metadata| metadata.modified()).ok();
            hash.update(format!("{changed:?}"));
            hash.update(&bytes[..HEAD.min(bytes.len())]);
            for place in 0..=PLACES {
                let start =
                    (bytes.len().saturating_sub(PLACE) as u128 * place as u128 / PLACES as u128) as usize;
                hash.update(&bytes[start..(start + PLACE).min(bytes.len())]);
            }
        }
        hash.finalize().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn another_byte_is_another_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let header = br#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 16]);
        let identity = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let file = fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
            Weights::open_files(std::slice::from_ref(&path)).unwrap().identity()
        };
        let first = identity(&bytes);
        assert_eq!(first, identity(&bytes));
        bytes[header.len() + 20] = 1;
        assert_ne!(first, identity(&bytes));
    }
}
