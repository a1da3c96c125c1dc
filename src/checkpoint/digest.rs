//! Digests of files, computed as they are written.

use crate::files;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::Path;

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
        let (mut file, _) = files::open(path)?;
        let mut read = || -> io::Result<Digest> {
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

/// Writes a file as [`files::write`] does, and digests it.
///
/// # Errors
/// Those of [`files::write`].
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Digest> {
    let mut digest = None;
    files::write(path, |file| {
        let mut out = Digesting { inner: file, bytes: 0, hasher: crc32fast::Hasher::new() };
        fill(&mut out)?;
        digest = Some(Digest { bytes: out.bytes, crc32: out.hasher.finalize() });
        Ok(())
    })?;
    Ok(digest.expect("a file that was written was filled"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_files_and_their_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let digest = write(&path, |out| Ok(out.write_all(b"123456789")?)).unwrap();
        // The published check value of this CRC.
        assert_eq!(digest, Digest { bytes: 9, crc32: 0xcbf4_3926 });
        assert_eq!(Digest::of(&path).unwrap(), digest);
        assert_eq!(std::fs::read(&path).unwrap(), b"123456789");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
