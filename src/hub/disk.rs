//! How much room a disk has.

use std::path::Path;

/// Bytes that may still be written where `path` lies, or would lie. Nothing where the system doesn't say.
#[cfg(unix)]
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    use std::{ffi::CString, mem::MaybeUninit, os::unix::ffi::OsStrExt};

    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|folder| folder.exists())?;
    let name = CString::new(there.as_os_str().as_bytes()).ok()?;
    let mut answer = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` ends in a zero byte, and `answer` has room for what the call writes.
    if unsafe { libc::statvfs(name.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has filled the answer in.
    let answer = unsafe { answer.assume_init() };
    #[expect(clippy::useless_conversion, reason = "the fields' widths differ between systems")]
    Some(u64::from(answer.f_bavail).saturating_mul(u64::from(answer.f_frsize)))
}

/// Bytes that may still be written where `path` lies, or would lie. Nothing where the system doesn't say.
#[cfg(not(unix))]
#[must_use]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}
