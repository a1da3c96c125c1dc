//! Digests of files, computed as they are written: of the whole, and of each tensor, so that
//! damage can be named.

use crate::files;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

/// The tensors of a file by name, with their bytes in it, in ascending order.
pub(super) type Sections = Vec<(String, Range<u64>)>;

/// Length and checksums of a file: enough to detect a torn, damaged or swapped one. Checksums are
/// CRC-32 (ISO-HDLC, as in zip and gzip).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    pub bytes: u64,
    pub crc32: u32,
    /// The checksum of each tensor. Run files of format 1 lack them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, u32>,
}

impl Digest {
    /// Checks that the file at `path` is the one that was digested, which reads all of it.
    ///
    /// # Errors
    /// One line that names the file and the damaged tensors.
    pub(super) fn check(&self, path: &Path, sections: &Sections) -> Result<()> {
        let (file, _) = files::open(path)?;
        // One byte more tells a file that grows.
        let mut file = file.take(self.bytes.saturating_add(1));
        let mut digester = Digester::new(sections.clone());
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
            if n == 0 {
                break;
            }
            digester.update(&buffer[..n]);
        }
        let found = digester.finish();
        if (found.bytes, found.crc32) == (self.bytes, self.crc32) {
            return Ok(());
        }
        let damaged =
            |(name, crc): (&String, &u32)| (found.tensors.get(name) != Some(crc)).then(|| name.clone());
        let damaged: Vec<String> = self.tensors.iter().filter_map(damaged).collect();
        let place = match &damaged[..] {
            [] => String::new(),
            [tensor] => format!("; tensor {tensor} differs"),
            [first, rest @ ..] => format!("; tensor {first} and {} more differ", rest.len()),
        };
        bail!("{}: {self} was written, found {found}{place}", path.display());
    }

    /// The line about the file `name` in another file, without the tensors.
    pub(super) fn line(&self, name: &str) -> String {
        format!("{name} has {} bytes and the CRC-32 {:08x}\n", self.bytes, self.crc32)
    }

    /// Reads such a line.
    pub(super) fn parse_line(line: &str) -> Option<Digest> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "has", bytes, "bytes", "and", "the", "CRC-32", crc32] = words[..] else { return None };
        let crc32 = u32::from_str_radix(crc32, 16).ok()?;
        Some(Digest { bytes: bytes.parse().ok()?, crc32, ..Digest::default() })
    }

    /// The digest of `bytes`, which have no tensors.
    pub(super) fn of(bytes: &[u8]) -> Digest {
        Digest { bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes), ..Digest::default() }
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} bytes with checksum {:08x}", self.bytes, self.crc32)
    }
}

/// The digest of bytes that arrive in pieces.
struct Digester {
    sections: std::iter::Peekable<std::vec::IntoIter<(String, Range<u64>)>>,
    digest: Digest,
    whole: crc32fast::Hasher,
    /// Bytes since the last border of a section.
    part: crc32fast::Hasher,
}

impl Digester {
    fn new(sections: Sections) -> Self {
        let (whole, part) = Default::default();
        Digester { sections: sections.into_iter().peekable(), digest: Digest::default(), whole, part }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = self.digest.bytes;
            let border =
                self.sections.peek().map_or(u64::MAX, |(_, s)| if at < s.start { s.start } else { s.end });
            let n = (border - at).min(bytes.len() as u64) as usize;
            self.part.update(&bytes[..n]);
            self.digest.bytes += n as u64;
            bytes = &bytes[n..];
            if self.digest.bytes == border {
                self.close(border);
            }
        }
    }

    /// Ends a part at the border of a section. Combining the checksums of parts costs less than
    /// computing that of the whole.
    fn close(&mut self, border: u64) {
        let part = std::mem::take(&mut self.part);
        self.whole.combine(&part);
        if let Some((name, _)) = self.sections.next_if(|(_, section)| section.end == border) {
            self.digest.tensors.insert(name, part.finalize());
        }
    }

    fn finish(mut self) -> Digest {
        self.whole.combine(&self.part);
        Digest { crc32: self.whole.finalize(), ..self.digest }
    }
}

/// A writer that digests what passes through it.
struct Digesting<W> {
    inner: W,
    digester: Digester,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.digester.update(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a file as [`files::write`] does, and digests it and its `sections`.
///
/// # Errors
/// Those of [`files::write`].
pub(super) fn write(
    path: &Path,
    sections: Sections,
    fill: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Digest> {
    let mut digest = None;
    files::write(path, |file| {
        let mut out = Digesting { inner: file, digester: Digester::new(sections) };
        fill(&mut out)?;
        digest = Some(out.digester.finish());
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
        let sections = || vec![("b".to_owned(), 1..3), ("c".to_owned(), 3..7)];
        // In pieces that end inside and at borders.
        let digest = write(&path, sections(), |out| {
            ["1", "2", "34567", "89"].iter().try_for_each(|piece| Ok(out.write_all(piece.as_bytes())?))
        });
        let digest = digest.unwrap();
        // The published check value of this CRC.
        assert_eq!((digest.bytes, digest.crc32), (9, 0xcbf4_3926));
        let parts = [("b".to_owned(), crc32fast::hash(b"23")), ("c".to_owned(), crc32fast::hash(b"4567"))];
        assert_eq!(digest.tensors, BTreeMap::from(parts));
        digest.check(&path, &sections()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"123456789");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);

        for (text, place) in [
            ("x23456789", "found 9 bytes"),
            ("1x3456789", "; tensor b differs"),
            ("1x3x56789", "; tensor b and 1 more differ"),
            ("123", "found 3 bytes"),
            ("1234567890123", "found 10 bytes"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = digest.check(&path, &sections()).unwrap_err().to_string();
            assert!(
                error.contains("9 bytes with checksum cbf43926 was written") && error.contains(place),
                "{error}"
            );
        }
    }
}
