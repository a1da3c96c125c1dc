//! Files that appear complete or not at all, whatever happens while they are written.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Length and checksum of a file: enough to detect a torn or swapped one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub bytes: u64,
    /// CRC-32 (ISO-HDLC, as in zip and gzip).
    pub crc32: u32,
}

impl Digest {
    /// Computes the digest of the file at `path`, which reads all of it.
    pub fn of(path: &Path) -> Result<Digest> {
        let read = || -> io::Result<Digest> {
            let mut file = File::open(path)?;
            let (mut hasher, mut bytes) = (crc32fast::Hasher::new(), 0);
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = file.read(&mut buffer)?;
                if n == 0 {
                    return Ok(Digest { bytes, crc32: hasher.finalize() });
                }
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }
}

/// A writer that digests what passes through it.
struct Digesting<W> {
    inner: W,
    bytes: u64,
    hasher: crc32fast::Hasher,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.bytes += n as u64;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns the name under which `path` is written until it is complete: hidden, in the same
/// directory (a rename does not cross file systems), and always the same, so that the next attempt
/// overwrites what a killed one left.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{TEMPORARY}"))
}

/// Suffix of temporary names.
pub(super) const TEMPORARY: &str = ".tmp";

/// Writes the file at `path` with `fill`. An existing file stays as it is until the new one has
/// reached the disk, and is then replaced atomically.
///
/// # Errors
/// One line that names `path` and the cause: a directory that is missing or not writable, a full
/// disk, or the error of `fill`. Nothing new is left behind.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Digest> {
    let temporary = temporary(path);
    let result = try_write(path, &temporary, fill);
    if result.is_err() {
        // If this fails too, the first error is still the one to report.
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
}

fn try_write(
    path: &Path,
    temporary: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Digest> {
    // A rename would silently replace /dev/null or a pipe by a file.
    let replaceable = fs::metadata(path).map_or(true, |found| found.is_file());
    ensure!(replaceable && path.file_name().is_some(), "it exists and is not a regular file");
    let digest = fill_file(File::create(temporary)?, fill)?;
    fs::rename(temporary, path)?;
    sync_directory(path)?;
    Ok(digest)
}

fn fill_file(file: File, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Digest> {
    let inner = BufWriter::with_capacity(1 << 20, file);
    let mut out = Digesting { inner, bytes: 0, hasher: crc32fast::Hasher::new() };
    fill(&mut out)?;
    let Digesting { inner, bytes, hasher } = out;
    let file = inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    // Before the rename, as otherwise the new name could reach the disk before its bytes.
    file.sync_all()?;
    Ok(Digest { bytes, crc32: hasher.finalize() })
}

/// Syncs the names in the directory of `path` to the disk. Some network file systems do not support
/// this, and report so.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(directory)?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_whole_files_and_their_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let digest = write(&path, |out| Ok(out.write_all(b"123456789")?)).unwrap();
        // The published check value of this CRC.
        assert_eq!(digest, Digest { bytes: 9, crc32: 0xcbf4_3926 });
        assert_eq!(Digest::of(&path).unwrap(), digest);
        assert_eq!(fs::read(&path).unwrap(), b"123456789");
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        write(&path, |out| Ok(out.write_all(b"old")?)).unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = write(&path, |out| {
            out.write_all(b"ne")?;
            Err(full().into())
        });
        let message = format!("{:#}", error.unwrap_err());
        assert!(
            message.contains(path.to_str().unwrap()) && message.contains(&full().to_string()),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_noticed_even_when_all_fits_the_buffer() {
        for bytes in [1, 1 << 20, 3 << 20] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let error = fill_file(full, |out| Ok(out.write_all(&vec![1; bytes])?)).unwrap_err();
            assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn unwritable_directories_and_what_is_not_a_file_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no/such/a");
        let message = write(&missing, |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains(missing.to_str().unwrap()), "{message}");
        // Not even root may create files there.
        #[cfg(target_os = "linux")]
        assert!(write(Path::new("/proc/a"), |_| Ok(())).unwrap_err().to_string().contains("/proc/a"));
        assert!(write(directory.path(), |_| Ok(())).is_err());
        #[cfg(unix)]
        assert!(write(Path::new("/dev/null"), |_| Ok(())).is_err());
        assert!(names(directory.path()).is_empty());
    }
}
