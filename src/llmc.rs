//! The kinds of binary file that llm.c reads and writes. All start with a header of 256
//! little-endian 32-bit integers: the first, the magic number, identifies the kind of file, the
//! second is the version of its format.

use crate::files;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

// Headers, tensors and tokens are read and written as they are in memory.
const _: () = assert!(cfg!(target_endian = "little"), "llm.c's files are little-endian");

/// Size of a header in bytes.
pub const HEADER_BYTES: usize = 1024;

/// A kind of file.
#[derive(Debug)]
pub struct Kind {
    pub magic: i32,
    name: &'static str,
    /// The versions that are read here.
    versions: &'static [i32],
    /// Advice for users who gave another kind of file.
    advice: &'static str,
}

impl Kind {
    const fn new(magic: i32, name: &'static str, versions: &'static [i32]) -> Self {
        Kind { magic, name, versions, advice: "" }
    }
}

/// Parameters, as f32 (version 3) or bf16 (version 5).
pub static MODEL: Kind = Kind::new(20240326, "a model", &[3, 5]);
/// Moments, master weights and the position of the data loader. Version 2 is ours, for optimizers
/// that llm.c does not have.
pub static STATE: Kind = Kind::new(20240527, "an optimizer state", &[1, 2]);
pub static TOKENIZER: Kind = Kind::new(20240328, "a tokenizer", &[1, 2]);
/// Tokens of vocabularies as small as GPT-2's.
pub static SHARD: Kind = Kind {
    advice: "; make token shards with `warpsmith data`",
    ..Kind::new(20240520, "a token shard", &[1])
};
/// HellaSwag, tokenized.
pub static EVALUATION: Kind = Kind::new(20240522, "a multiple-choice evaluation set", &[1]);
/// Tokens of large vocabularies.
pub static WIDE_SHARD: Kind = Kind {
    advice: "; make token shards with `warpsmith data`",
    ..Kind::new(20240801, "a token shard of 32-bit tokens", &[7])
};
/// The mask of a token shard: where documents start, and which tokens count in the loss. Ours.
pub static MASK: Kind = Kind {
    advice: "; make the shard and its mask with `warpsmith sft`",
    ..Kind::new(20261127, "a mask of a token shard", &[1])
};
/// A batch and its results, for tests.
pub static DEBUG_STATE: Kind = Kind::new(20240327, "a debug state", &[2]);

/// The kinds of file that a user may pass by mistake.
static KINDS: [&Kind; 8] =
    [&MODEL, &STATE, &TOKENIZER, &SHARD, &EVALUATION, &DEBUG_STATE, &WIDE_SHARD, &MASK];

/// Describes the kind of file that starts with `first`, as far as it can be recognized.
fn describe(first: &[u8]) -> String {
    if first.is_empty() {
        return "an empty file".into();
    }
    if first.starts_with(b"PK\x03\x04") {
        return "a PyTorch or zip archive; save it as safetensors from Python first".into();
    }
    if looks_like_safetensors(first) {
        return "a safetensors file".into();
    }
    let magic = first.first_chunk().map(|first| i32::from_le_bytes(*first));
    match (KINDS.iter().find(|kind| magic == Some(kind.magic)), magic) {
        (Some(kind), _) => format!("{} (magic {})", kind.name, kind.magic),
        (None, Some(magic)) if first.len() >= HEADER_BYTES => format!("magic {magic}"),
        _ => format!("{} bytes", first.len()),
    }
}

/// Whether `first` starts like a safetensors file: with the length of its JSON header, then the
/// JSON.
pub fn looks_like_safetensors(first: &[u8]) -> bool {
    first.len() > 8 && first[8] == b'{'
}

/// Returns the first bytes of the file at `path`: those of a header, or the whole file if it is
/// shorter.
///
/// # Errors
/// One line, if the file cannot be read or is not a regular file.
pub fn first_bytes(path: &Path) -> Result<Vec<u8>> {
    open(path).map(|(_, first, _)| first)
}

fn open(path: &Path) -> Result<(File, Vec<u8>, u64)> {
    let (mut file, metadata) = files::open(path)?;
    let mut first = Vec::new();
    let read = (&mut file).take(HEADER_BYTES as u64).read_to_end(&mut first);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok((file, first, metadata.len()))
}

/// The header of a file.
pub struct Header([i32; 256]);

impl Header {
    pub fn new(kind: &Kind, version: i32) -> Self {
        let mut fields = [0; 256];
        fields[..2].copy_from_slice(&[kind.magic, version]);
        Header(fields)
    }

    /// Reads the header of a file of this kind from its first bytes.
    ///
    /// # Errors
    /// If they are those of another kind or version, or too few.
    pub fn parse(first: &[u8], kind: &Kind) -> Result<Header> {
        let &Kind { magic, name, versions, advice } = kind;
        if !first.starts_with(&magic.to_le_bytes()) {
            bail!("expected {name} (magic {magic}), found {}{advice}", describe(first));
        }
        let Some(bytes) = first.get(..HEADER_BYTES) else {
            bail!("expected a header of {HEADER_BYTES} bytes, found {} bytes", first.len());
        };
        let mut header = Header([0; 256]);
        bytemuck::cast_slice_mut(&mut header.0).copy_from_slice(bytes);
        let version = header.version();
        if !versions.contains(&version) {
            let supported: Vec<_> = versions.iter().map(i32::to_string).collect();
            bail!("expected {name} of version {}, found version {version}", supported.join(" or "));
        }
        Ok(header)
    }

    /// Opens the file of this kind at `path`. Returns its header, the file positioned after it, and
    /// the length of the file in bytes.
    ///
    /// # Errors
    /// One line, if the file cannot be read, or its header is not valid.
    pub fn open(path: &Path, kind: &Kind) -> Result<(Header, File, u64)> {
        Self::open_any(path, &[kind])
    }

    /// Opens the file at `path`, which has one of these kinds, as [`Self::open`] does. Errors say
    /// that the first kind is expected.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_any(path: &Path, kinds: &[&Kind]) -> Result<(Header, File, u64)> {
        let (file, first, bytes) = open(path)?;
        let kind = kinds.iter().find(|kind| first.starts_with(&kind.magic.to_le_bytes()));
        let header = Header::parse(&first, kind.unwrap_or(&kinds[0]));
        Ok((header.with_context(|| path.display().to_string())?, file, bytes))
    }

    pub fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(bytemuck::cast_slice(&self.0))
    }

    pub fn magic(&self) -> i32 {
        self.0[0]
    }

    pub fn version(&self) -> i32 {
        self.0[1]
    }

    pub fn i32(&self, index: usize) -> i32 {
        self.0[index]
    }

    /// Returns the 64 bits of the field at `index` and the one after it.
    pub fn u64(&self, index: usize) -> u64 {
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&self.0[index..index + 2]))
    }

    pub fn set(&mut self, index: usize, value: i32) {
        self.0[index] = value;
    }

    pub fn set_u64(&mut self, index: usize, value: u64) {
        bytemuck::cast_slice_mut(&mut self.0[index..index + 2]).copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(first: &[u8], kind: &Kind) -> String {
        format!("{:#}", Header::parse(first, kind).err().unwrap())
    }

    fn header(kind: &Kind, version: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        Header::new(kind, version).write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_kind_is_recognized_where_another_is_expected() {
        for kind in KINDS {
            for expected in KINDS.iter().filter(|expected| expected.magic != kind.magic) {
                let message = refusal(&header(kind, 1), expected);
                let [is, was] = [expected, kind].map(|kind| format!("{} (magic {})", kind.name, kind.magic));
                assert!(message.starts_with(&format!("expected {is}, found {was}")), "{message}");
            }
            for &version in kind.versions {
                assert_eq!(Header::parse(&header(kind, version), kind).unwrap().version(), version);
            }
        }
        assert!(refusal(&header(&MODEL, 3), &SHARD).ends_with("; make token shards with `warpsmith data`"));
    }

    #[test]
    fn other_files_are_described() {
        for (first, expected) in [
            (&b""[..], "found an empty file"),
            (b"text", "found 4 bytes"),
            (b"PK\x03\x04 and so on", "found a PyTorch or zip archive"),
            (b"\x10\0\0\0\0\0\0\0{\"a\"", "found a safetensors file"),
            (&[1, 0, 0, 0].repeat(256), "found magic 1"),
            (&header(&MODEL, 3)[..1023], "expected a header of 1024 bytes, found 1023 bytes"),
            (&header(&MODEL, 4), "expected a model of version 3 or 5, found version 4"),
        ] {
            let message = refusal(first, &MODEL);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn fields_of_64_bits_are_low_half_first() {
        let mut header = Header::new(&STATE, 1);
        header.set_u64(20, 0x0000_0002_0000_0001);
        assert_eq!((header.i32(20), header.i32(21), header.u64(20)), (1, 2, 0x0000_0002_0000_0001));
    }
}
