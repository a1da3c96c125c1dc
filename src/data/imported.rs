//! Token files of other programs: NumPy arrays, such as build-nanogpt writes, and nanoGPT's uint16
//! without a header. Both are read and written.

use crate::data::shard::{Shard, ShardFormat, ShardWriter};
use crate::data::tokenizer::TokenizerId;
use crate::{files, llmc};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

const NPY: &[u8] = b"\x93NUMPY";

/// Bytes converted at a time; a multiple of the size of every type.
const BLOCK_BYTES: usize = 1 << 20;

/// Whether the file at `path` is a NumPy array.
pub fn is_npy(path: &Path) -> bool {
    llmc::first_bytes(path).is_ok_and(|first| first.starts_with(NPY))
}

/// Whether the file at `path` is a token shard with a header, of any width.
pub fn is_shard(path: &Path) -> bool {
    let magic = llmc::first_bytes(path).ok().and_then(|first| first.first_chunk().copied());
    let magic = magic.map(i32::from_le_bytes);
    magic.is_some_and(|magic| magic == llmc::SHARD.magic || magic == llmc::WIDE_SHARD.magic)
}

/// Bytes of the header of the arrays that [`npy_header`] makes.
const NPY_HEADER_BYTES: usize = 128;

/// The header of an array of `tokens` unsigned integers of `width` bytes, as NumPy writes it.
pub(super) fn npy_header(width: usize, tokens: u64) -> Vec<u8> {
    let mut header = [NPY, &[1, 0], &(NPY_HEADER_BYTES as u16 - 10).to_le_bytes()].concat();
    let fields = format!("{{'descr': '<u{width}', 'fortran_order': False, 'shape': ({tokens},), }}");
    header.extend(fields.bytes());
    header.resize(NPY_HEADER_BYTES - 1, b' ');
    header.push(b'\n');
    header
}

/// Returns the offset of the first token and the number of tokens of a NumPy array of uint16, which
/// can be read as it is; `None` for any other file.
pub(super) fn npy_of_u16(path: &Path) -> Option<(usize, usize)> {
    if !is_npy(path) {
        return None;
    }
    let (mut file, metadata) = files::open(path).ok()?;
    let array = Array::of_npy(&file, metadata.len()).ok()?;
    let start = file.stream_position().ok()?;
    let is_plain = array.width == 2 && !array.signed && array.tokens > 0;
    is_plain.then_some((start as usize, array.tokens as usize))
}

/// Writes the tokens of a shard in another form. Returns their number.
///
/// # Errors
/// If the input is not a token shard or cannot be read, or the output cannot be written.
pub fn export(input: &Path, output: &Path, format: ShardFormat) -> Result<u64> {
    let shard = Shard::open(input)?;
    let mut writer = ShardWriter::create_as(output, shard.tokenizer(), format)?;
    let mut block = vec![0; BLOCK_BYTES];
    for start in (0..shard.len()).step_by(block.len()) {
        let tokens = block.len().min(shard.len() - start);
        shard.read(start, &mut block[..tokens])?;
        writer.write(&block[..tokens])?;
    }
    let tokens = writer.len();
    writer.seal()?.publish()?;
    Ok(tokens)
}

/// Describes a file that is not a shard but holds tokens, as far as it can be recognized, and how
/// to make a shard of it.
pub(super) fn describe(path: &Path) -> Option<String> {
    let first = llmc::first_bytes(path).ok()?;
    let (what, flag) = match () {
        () if first.starts_with(NPY) => ("a NumPy array", ""),
        () if looks_like_tokens(&first) => ("tokens without a header, as it seems", " --raw-tokens"),
        () => return None,
    };
    Some(format!("{what}; make a shard of it: warpsmith convert {} OUT.bin{flag}", path.display()))
}

/// Whether these are GPT-2's tokens as uint16. Binary files of other kinds have more zeros, or
/// numbers above the last token.
fn looks_like_tokens(first: &[u8]) -> bool {
    const ENOUGH: usize = 64;
    let is_text = std::str::from_utf8(first).map_or_else(|e| e.error_len().is_none(), |_| true);
    let tokens = || first.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let zeros = tokens().filter(|&token| token == 0).count();
    let others = is_text || first.starts_with(b"PK") || llmc::looks_like_safetensors(first);
    !others
        && tokens().len() >= ENOUGH
        && zeros * 8 < tokens().len()
        && tokens().all(|token| u32::from(token) < TokenizerId::GPT2.vocab_size)
}

/// Makes a shard of an array of tokens, or with `raw` of uint16 without a header. Returns the
/// number of tokens.
///
/// # Errors
/// If the input cannot be read, has another form or more tokens than a shard holds, a token does
/// not fit 16 bits, or the shard cannot be written.
pub fn convert(input: &Path, output: &Path, raw: bool) -> Result<u64> {
    let (file, metadata) = files::open(input)?;
    let array = if raw { Array::raw(metadata.len()) } else { Array::of_npy(&file, metadata.len()) };
    let array = array.with_context(|| input.display().to_string())?;
    ensure!(
        array.tokens <= i32::MAX as u64,
        "{}: {} tokens; a shard holds at most {}: cut the input into several files",
        input.display(),
        array.tokens,
        i32::MAX
    );
    let mut shard = ShardWriter::create(output, TokenizerId::GPT2)?;
    let mut file = BufReader::new(file);
    let mut block = Vec::new();
    loop {
        block.clear();
        let read = file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block);
        read.with_context(|| format!("{}: cannot read", input.display()))?;
        if block.is_empty() {
            break;
        }
        let tokens = array.decode(&block, shard.len()).with_context(|| input.display().to_string())?;
        shard.write(&tokens)?;
    }
    ensure!(shard.len() == array.tokens, "{}: it changed while it was read", input.display());
    let tokens = shard.len();
    shard.seal()?.publish()?;
    Ok(tokens)
}

/// The layout of a file: little-endian integers.
struct Array {
    /// Bytes per token.
    width: usize,
    signed: bool,
    tokens: u64,
}

impl Array {
    fn raw(bytes: u64) -> Result<Self> {
        ensure!(bytes > 0 && bytes.is_multiple_of(2), "expected tokens of 2 bytes each, found {bytes} bytes");
        Ok(Array { width: 2, signed: false, tokens: bytes / 2 })
    }

    /// Parses the header of a NumPy array, and leaves `file` at the first token. The header is a
    /// magic number, a version of two bytes, its length (two bytes in version 1, then four) and a
    /// Python dictionary.
    fn of_npy(mut file: &File, bytes: u64) -> Result<Self> {
        const SHORT: &str = "it ends within the header of a NumPy array";
        let mut start = [0; 8];
        file.read_exact(&mut start).context(SHORT)?;
        ensure!(start.starts_with(NPY), "expected a NumPy array; --raw-tokens reads tokens without a header");
        let mut len = [0; 4];
        let len_bytes = if start[6] == 1 { 2 } else { 4 };
        file.read_exact(&mut len[..len_bytes]).context(SHORT)?;
        let len = u32::from_le_bytes(len) as usize;
        ensure!(len <= 1 << 16, "a header of {len} bytes, expected at most 65536");
        let mut header = vec![0; len];
        file.read_exact(&mut header).context(SHORT)?;
        let header = String::from_utf8_lossy(&header);
        let value = |key: &str| header.split_once(key).map_or("", |(_, rest)| rest.trim_start());
        let dtype = value("'descr':").split('\'').nth(1).unwrap_or_default();
        let (signed, width) = match dtype {
            "<u2" => (false, 2),
            "<i2" => (true, 2),
            "<u4" => (false, 4),
            "<i4" => (true, 4),
            "<u8" => (false, 8),
            "<i8" => (true, 8),
            _ => bail!("expected whole numbers such as <u2 (uint16), found the type {dtype:?}"),
        };
        let shape = value("'shape':").split([')', '(']).nth(1).unwrap_or_default();
        let tokens = shape.trim_end_matches(',').parse::<u64>();
        let tokens = tokens.ok().with_context(|| format!("expected one dimension, found ({shape})"))?;
        let body = tokens.saturating_mul(width as u64);
        let expected = body.saturating_add((8 + len_bytes + len) as u64);
        ensure!(bytes == expected, "expected {expected} bytes for {tokens} tokens, found {bytes}");
        Ok(Array { width, signed, tokens })
    }

    /// Decodes whole tokens, of which `before` came earlier in the file.
    fn decode(&self, bytes: &[u8], before: u64) -> Result<Vec<u32>> {
        let token = |(index, number): (usize, &[u8])| {
            let mut wide = [0; 8];
            wide[..self.width].copy_from_slice(number);
            let negative = self.signed && number[self.width - 1] & 0x80 != 0;
            let value = u64::from_le_bytes(wide);
            let fits = u16::try_from(value).ok().filter(|_| !negative).map(u32::from);
            fits.with_context(|| format!("token {} does not fit 16 bits", before + index as u64))
        };
        bytes.chunks_exact(self.width).enumerate().map(token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn npy(version: u8, dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}   \n");
        let len = (header.len() as u32).to_le_bytes();
        let len = if version == 1 { &len[..2] } else { &len[..] };
        [NPY, &[version, 0], len, header.as_bytes(), data].concat()
    }

    fn converted(bytes: &[u8], raw: bool) -> Result<Vec<u32>> {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("x.npy"), dir.path().join("x.bin"));
        fs::write(&input, bytes).unwrap();
        let converted = convert(&input, &output, raw);
        assert_eq!(output.exists(), converted.is_ok());
        converted.map(|tokens| {
            let shard = Shard::open(&output).unwrap();
            assert_eq!(tokens, shard.len() as u64);
            shard.tokens()
        })
    }

    fn bytes_of(tokens: &[u64], width: usize) -> Vec<u8> {
        tokens.iter().flat_map(|t| t.to_le_bytes()[..width].to_vec()).collect()
    }

    #[test]
    fn arrays_and_raw_tokens_become_shards() {
        let tokens = [50256, 0, 1, 65535];
        let expected = tokens.map(|t| t as u32);
        for (dtype, width) in [("<u2", 2), ("<u4", 4), ("<i4", 4), ("<i8", 8)] {
            for version in [1, 2] {
                let bytes = npy(version, dtype, "(4,)", &bytes_of(&tokens, width));
                assert_eq!(converted(&bytes, false).unwrap(), expected, "{dtype}");
            }
        }
        assert_eq!(converted(&bytes_of(&tokens, 2), true).unwrap(), expected);
        let many: Vec<u64> = (0..BLOCK_BYTES as u64).map(|i| i % 50_000).collect();
        let expected: Vec<u32> = many.iter().map(|&t| t as u32).collect();
        let shape = format!("({},)", many.len());
        assert!(converted(&npy(1, "<u2", &shape, &bytes_of(&many, 2)), false).unwrap() == expected);
    }

    #[test]
    fn arrays_of_uint16_are_read_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        for version in [1, 2] {
            fs::write(&path, npy(version, "<u2", "(3,)", &bytes_of(&[50256, 1, 65535], 2))).unwrap();
            let shard = Shard::open(&path).unwrap();
            assert_eq!(shard.tokens(), [50256, 1, 65535]);
            assert!(shard.tokenizer() == TokenizerId::GPT2);
        }
        fs::write(&path, npy(1, "<u2", "(4,)", &bytes_of(&[1, 2, 3], 2))).unwrap();
        assert!(Shard::open(&path).is_err(), "an array that is cut short");
    }

    #[test]
    fn what_is_exported_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let tokens: Vec<u32> = (0..BLOCK_BYTES as u32 + 7).map(|i| i % 50_257).collect();
        let mut writer = ShardWriter::create(&at("a.bin"), TokenizerId::GPT2).unwrap();
        writer.write(&tokens).unwrap();
        writer.seal().unwrap().publish().unwrap();
        assert!(is_shard(&at("a.bin")));
        for (name, format) in [("b.npy", ShardFormat::Npy), ("c.bin", ShardFormat::Raw)] {
            assert_eq!(export(&at("a.bin"), &at(name), format).unwrap(), tokens.len() as u64);
            let back = at("back.bin");
            convert(&at(name), &back, format == ShardFormat::Raw).unwrap();
            assert!(!is_shard(&at(name)) && fs::read(back).unwrap() == fs::read(at("a.bin")).unwrap());
        }
        assert_eq!(fs::metadata(at("c.bin")).unwrap().len(), 2 * tokens.len() as u64);
        let numpy = fs::read(at("b.npy")).unwrap();
        assert!(
            numpy.starts_with(b"\x93NUMPY\x01\x00v\x00{'descr': '<u2', 'fortran_order': False, 'shape': (")
        );
        assert!(numpy[..128].ends_with(b" \n") && numpy.len() == 128 + 2 * tokens.len());
    }

    #[test]
    fn other_arrays_are_refused() {
        let data = bytes_of(&[1, 2, 3, 65536], 4);
        for (bytes, expected) in [
            (npy(1, "<i4", "(4,)", &data), "token 3 does not fit 16 bits"),
            (npy(1, "<i4", "(4,)", &bytes_of(&[1, 2, 3, u64::MAX], 4)), "token 3 does not fit"),
            (
                npy(1, "<f4", "(4,)", &data),
                "expected whole numbers such as <u2 (uint16), found the type \"<f4\"",
            ),
            (npy(1, "<i4", "(2, 2)", &data), "expected one dimension, found (2, 2)"),
            (npy(1, "<i4", "(5,)", &data), "for 5 tokens, found"),
            (npy(1, "<u2", "(18446744073709551615,)", &data), "for 18446744073709551615 tokens, found"),
            (npy(1, "<i4", "(4,)", &data)[..30].to_vec(), "it ends within the header"),
            (b"text and more".to_vec(), "expected a NumPy array; --raw-tokens"),
        ] {
            let error = format!("{:#}", converted(&bytes, false).unwrap_err());
            assert!(error.contains("x.npy: ") && error.contains(expected), "{error}");
        }
        assert!(format!("{:#}", converted(b"123", true).unwrap_err()).contains("found 3 bytes"));
    }

    #[test]
    fn token_files_are_recognized_where_a_shard_is_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.bin");
        let refuse = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            format!("{:#}", Shard::open(&path).unwrap_err())
        };
        let tokens: Vec<u64> = (0..600).map(|i| i * 7919 % 50_257).collect();
        let convert = format!("make a shard of it: warpsmith convert {} OUT.bin", path.display());
        let error = refuse(&bytes_of(&tokens, 2));
        assert!(error.ends_with(&format!("{convert} --raw-tokens")), "{error}");
        assert!(refuse(&npy(1, "<i4", "(600,)", &bytes_of(&tokens, 4))).ends_with(&convert));
        for other in [b"plain words ".repeat(100), [1, 0, 0, 0].repeat(300), vec![0xff; 2000]] {
            assert!(!refuse(&other).contains("convert"), "{}", refuse(&other));
        }
    }
}
