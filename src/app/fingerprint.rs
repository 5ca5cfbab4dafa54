//! What tells files and models from others, quickly enough to be asked for each job.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::{
    app::generate::GenerateRequest,
    error::{Error, Result},
    models::source::{ModelSource, Parts},
};

/// Of larger files of a model, the first and the last so many bytes are read, and the length.
const PART: u64 = 1 << 20;

/// Bytes in hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file's content.
pub fn file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::file("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(Error::file("read", path))? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// SHA-256 and bytes of an output: of the names and contents of its files, if it is a folder.
pub fn output(path: &Path) -> Result<(String, u64)> {
    if !path.is_dir() {
        let bytes = std::fs::metadata(path).map_err(Error::file("read", path))?.len();
        return Ok((file(path)?, bytes));
    }
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    for entry in sorted(path)? {
        hash.update(entry.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(file(&entry)?);
        bytes += std::fs::metadata(&entry).map_err(Error::file("read", &entry))?.len();
    }
    Ok((hex(&hash.finalize()), bytes))
}

/// What tells a request's model from others: small files whole, large ones by their length and ends.
pub fn model(request: &GenerateRequest) -> Result<String> {
    let mut hash = Sha256::new();
    match request.model.file() {
        Some(path) => walk(path, path, &mut hash)?,
        None => {
            for (name, bytes) in ModelSource::embedded_below("") {
                hash.update(name);
                hash.update(bytes);
            }
        }
    }
    let Parts { text_encoder, vae, tokenizer, loras } = request.model.parts();
    loras.iter().for_each(|lora| hash.update(lora.scale.to_le_bytes()));
    let loras = loras.iter().map(|lora| &lora.path);
    let parts = text_encoder.iter().chain(&vae).chain(&tokenizer).chain(loras);
    for path in parts.chain(&request.sampling.upsamplers) {
        walk(path, path, &mut hash)?;
    }
    Ok(hex(&hash.finalize()))
}

fn walk(root: &Path, path: &Path, hash: &mut Sha256) -> Result<()> {
    if path.is_dir() {
        return sorted(path)?.iter().try_for_each(|entry| walk(root, entry, hash));
    }
    let failed = || Error::file("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let length = file.metadata().map_err(failed())?.len();
    hash.update(path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes());
    hash.update(length.to_le_bytes());
    let mut bytes = Vec::new();
    if length > 2 * PART {
        Read::by_ref(&mut file).take(PART).read_to_end(&mut bytes).map_err(failed())?;
        file.seek(SeekFrom::End(-(PART as i64))).map_err(failed())?;
    }
    file.read_to_end(&mut bytes).map_err(failed())?;
    hash.update(bytes);
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let failed = || Error::file("read", folder);
    let entries = std::fs::read_dir(folder).map_err(failed())?;
    let mut paths: Vec<_> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed())?;
    // What a user's own tools leave beside a model is no part of it.
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_and_the_place_does_not() -> Result<()> {
        let (a, b) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let write = |folder: &tempfile::TempDir, bytes: &[u8]| {
            std::fs::create_dir_all(folder.path().join("vae")).expect("a folder");
            std::fs::write(folder.path().join("vae/w"), bytes).expect("a file");
        };
        let of = |folder: &tempfile::TempDir| {
            let model = ModelSource::Folder(folder.path().to_owned());
            super::model(&GenerateRequest { model, ..GenerateRequest::default() })
        };
        let mut large = vec![7; 3 << 20];
        write(&a, &large);
        write(&b, &large);
        assert_eq!(of(&a)?, of(&b)?);
        *large.last_mut().expect("some") = 8;
        write(&b, &large);
        assert_ne!(of(&a)?, of(&b)?);
        Ok(())
    }
}
