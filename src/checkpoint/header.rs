//! The header that llm.c's binary files share: 256 little-endian 32-bit integers. The first, the
//! magic number, identifies the kind of file.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

// Tensors are read and written as they are in memory.
const _: () = assert!(cfg!(target_endian = "little"), "checkpoints are little-endian");

/// Size of a header in bytes.
pub(super) const HEADER_BYTES: u64 = 1024;

pub(super) const MODEL: i32 = 20240326;
pub(super) const STATE: i32 = 20240527;

/// The kinds of file that a user may pass by mistake.
const KINDS: [(i32, &str); 7] = [
    (MODEL, "a model"),
    (STATE, "an optimizer state"),
    (20240327, "a debug state"),
    (20240328, "a tokenizer"),
    (20240520, "a token shard"),
    (20240522, "a multiple-choice evaluation set"),
    (20240801, "a Llama 3 token shard"),
];

/// Describes the kind of file that starts with `bytes`, as far as it can be recognized.
pub(super) fn describe(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "an empty file".into();
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return "a PyTorch or zip archive; save it as safetensors from Python first".into();
    }
    if looks_like_safetensors(bytes) {
        return "a safetensors file".into();
    }
    let Some(magic) = bytes.first_chunk().map(|first| i32::from_le_bytes(*first)) else {
        return format!("{} bytes", bytes.len());
    };
    match KINDS.iter().find(|kind| kind.0 == magic) {
        Some((_, kind)) => format!("{kind} (magic {magic})"),
        None => format!("magic {magic}"),
    }
}

/// Whether `bytes` start like a safetensors file: with the length of its JSON header, then the
/// JSON.
pub(super) fn looks_like_safetensors(bytes: &[u8]) -> bool {
    bytes.len() > 8 && bytes[8] == b'{'
}

/// Returns the first bytes of the file at `path`: those of a header, or the whole file if it is
/// shorter.
pub(super) fn first_bytes(path: &Path) -> Result<Vec<u8>> {
    open(path).map(|(_, first, _)| first)
}

fn open(path: &Path) -> Result<(File, Vec<u8>, u64)> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let metadata = file.metadata().with_context(context)?;
    ensure!(metadata.is_file(), "{}: not a regular file", path.display());
    let mut first = Vec::new();
    (&mut file).take(HEADER_BYTES).read_to_end(&mut first).with_context(context)?;
    Ok((file, first, metadata.len()))
}

/// The header of a file.
pub(super) struct Header([i32; 256]);

impl Header {
    pub fn new(magic: i32, version: i32) -> Self {
        let mut fields = [0; 256];
        fields[..2].copy_from_slice(&[magic, version]);
        Header(fields)
    }

    /// Opens the file at `path`, which has to start with `magic`. Returns its header, the file
    /// positioned after it, and the length of the file in bytes.
    pub fn open(path: &Path, magic: i32) -> Result<(Header, File, u64)> {
        let (file, first, bytes) = open(path)?;
        let kind = KINDS.iter().find(|kind| kind.0 == magic).expect("a magic number of ours").1;
        let path = path.display();
        if !first.starts_with(&magic.to_le_bytes()) {
            bail!("{path}: expected {kind} (magic {magic}), found {}", describe(&first));
        }
        let found = first.len();
        ensure!(
            found as u64 == HEADER_BYTES,
            "{path}: expected a header of {HEADER_BYTES} bytes, found {found}"
        );
        let mut header = Header([0; 256]);
        bytemuck::cast_slice_mut(&mut header.0).copy_from_slice(&first);
        Ok((header, file, bytes))
    }

    pub fn write(&self, out: &mut dyn Write) -> Result<()> {
        Ok(out.write_all(bytemuck::cast_slice(&self.0))?)
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
