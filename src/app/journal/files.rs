//! What a file system can do for a journal that several machines share.

use std::path::Path;

/// How far locks reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// On this machine: everything works.
    Local,
    /// Shared by machines that see each other's locks.
    Cluster,
    /// Shared, or of an unknown kind: locks may be kept from other machines, as NFS often does.
    Unsure,
}

/// Magic numbers of `statfs(2)`.
#[cfg(target_os = "linux")]
const LOCAL: [u64; 9] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0x0102_1994, // tmpfs
    0x8584_58F6, // ramfs
    0x794C_7630, // overlayfs
    0x2FC1_2FC1, // ZFS
    0xF2F5_2010, // F2FS
    0xCA45_1A4E, // bcachefs
];

#[cfg(target_os = "linux")]
const CLUSTER: [u64; 4] = [
    0x0BD0_0BD0, // Lustre
    0x4750_4653, // GPFS
    0x00C3_6400, // Ceph
    0x1983_0326, // BeeGFS
];

/// Which kind of file system a file lies on, or will.
#[must_use]
pub fn file_system(path: &Path) -> FileSystem {
    #[cfg(target_os = "linux")]
    {
        match statfs(path).map(|found| found.f_type as u64 & 0xFFFF_FFFF) {
            Some(magic) if LOCAL.contains(&magic) => FileSystem::Local,
            Some(magic) if CLUSTER.contains(&magic) => FileSystem::Cluster,
            _ => FileSystem::Unsure,
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        // Elsewhere a batch runs on a machine of its own.
        let _ = path;
        FileSystem::Local
    }
}

/// Asks about the file system of a path, or of what is there of it.
#[cfg(target_os = "linux")]
fn statfs(path: &Path) -> Option<libc::statfs> {
    let path = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in a zero byte, and the call fills the struct whenever it returns 0.
    unsafe { (libc::statfs(path.as_ptr(), found.as_mut_ptr()) == 0).then(|| found.assume_init()) }
}

/// Bytes that may still be written to the disk of a file, where the system says.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        statfs(path).map(|found| found.f_bavail.saturating_mul(found.f_bsize.unsigned_abs()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        None
    }
}
