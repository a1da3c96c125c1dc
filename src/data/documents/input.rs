//! Opens inputs: files and standard input, decompressed if they are compressed.

use crate::files;
use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use zstd::stream::read::Decoder as ZstdDecoder;

const BUFFER_BYTES: usize = 1 << 18;

/// Largest window of zstd data, as a power of two, as in the `zstd` program: the memory that
/// decompression may take.
const MOST_WINDOW_LOG: u32 = 27;

/// An open input.
pub(super) struct Input {
    pub text: Box<dyn BufRead>,
    /// Length of the file when it was opened; `None` for standard input.
    len: Option<u64>,
    /// Bytes read so far.
    read: Rc<Cell<u64>>,
}

impl Input {
    /// Opens the file at `path`, or standard input for `-`. The bytes read from it, still
    /// compressed, are added to `done`.
    pub fn open(path: &Path, done: &Arc<AtomicU64>) -> Result<Self> {
        let read = Rc::new(Cell::new(0));
        let counted =
            |inner: Box<dyn Read>| Counted { inner, read: Rc::clone(&read), done: Arc::clone(done) };
        let (raw, len) = if path.as_os_str() == "-" {
            (counted(Box::new(io::stdin())), None)
        } else {
            let (file, metadata) = files::open(path)?;
            // One byte more than the file has, so that one that grows is noticed, and not followed
            // forever.
            (counted(Box::new(file.take(metadata.len() + 1))), Some(metadata.len()))
        };
        let text = decompressed(raw).with_context(|| format!("{}: cannot read", path.display()))?;
        Ok(Input { text, len, read })
    }

    /// Checks at the end that the file was read as a whole.
    ///
    /// # Errors
    /// If its length is no longer that of when it was opened.
    pub fn finish(self, name: &str) -> Result<()> {
        self.len.map_or(Ok(()), |expected| check_length(name, expected, self.read.get()))
    }
}

/// # Errors
/// If a file of `expected` bytes has `found` bytes at the end of reading it.
pub(super) fn check_length(name: &str, expected: u64, found: u64) -> Result<()> {
    let change = if found > expected { "grew" } else { "shrank" };
    ensure!(
        found == expected,
        "{name}: it {change} while it was read (from {expected} bytes); start again when it is complete"
    );
    Ok(())
}

struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.read.set(self.read.get() + read as u64);
        self.done.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

/// Decompresses gzip and zstd data, which the first bytes tell. Anything else passes unchanged.
fn decompressed(mut raw: impl Read + 'static) -> io::Result<Box<dyn BufRead>> {
    let mut first = Vec::new();
    raw.by_ref().take(4).read_to_end(&mut first)?;
    let (is_gzip, is_zstd) = (first.starts_with(b"\x1f\x8b"), first == [0x28, 0xb5, 0x2f, 0xfd]);
    let raw = Cursor::new(first).chain(raw);
    let text: Box<dyn Read> = match (is_gzip, is_zstd) {
        (true, _) => Box::new(Whole { inner: MultiGzDecoder::new(raw), format: "gzip" }),
        (_, true) => {
            let mut inner = ZstdDecoder::new(raw)?;
            inner.window_log_max(MOST_WINDOW_LOG)?;
            Box::new(Whole { inner, format: "zstd" })
        }
        _ => Box::new(raw),
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, text)))
}

/// Puts the errors of a decompressor into words.
struct Whole<R> {
    inner: R,
    format: &'static str,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
        self.inner.read(out).map_err(|e| match e.kind() {
            // The zstd library's words for a window beyond the limit.
            Other if e.to_string().contains("too much memory") => io::Error::other(format!(
                "the zstd data need a window of more than {} MiB; pipe them in: zstd -d --long=31 -c FILE | \
                 warpsmith data -",
                (1u64 << MOST_WINDOW_LOG) >> 20
            )),
            InvalidData | InvalidInput | UnexpectedEof | Other => {
                io::Error::other(format!("the {} data are damaged or cut short", self.format))
            }
            _ => e,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
        // As the zstd program does.
        out.include_checksum(true).unwrap();
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn read(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        decompressed(Cursor::new(bytes))?.read_to_end(&mut text)?;
        Ok(text)
    }

    #[test]
    fn compressed_data_of_several_parts_are_read_to_the_end() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|i| (i % 977).to_string().into_bytes()).collect();
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let (a, b) = text.split_at(400_000);
        assert!(read(text.clone()).unwrap() == text);
        assert!(read([gzip(a), gzip(b)].concat()).unwrap() == text);
        assert!(read([zstd(a), skippable.clone(), zstd(b), skippable].concat()).unwrap() == text);
        assert!(read(zstd(b"")).unwrap().is_empty() && read(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn data_that_need_much_memory_are_refused() {
        // A frame header with a window of 2^31 bytes.
        let header = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
        let error = read(header).unwrap_err().to_string();
        assert!(
            error.starts_with("the zstd data need a window of more than 128 MiB; pipe them in"),
            "{error}"
        );
    }

    #[test]
    fn damaged_and_cut_data_are_errors() {
        let text: Vec<u8> = (0..90_000u64).flat_map(|i| (i * i % 977).to_string().into_bytes()).collect();
        for (format, whole) in [("gzip", gzip(&text)), ("zstd", zstd(&text))] {
            let expected = format!("the {format} data are damaged or cut short");
            for len in [5, 12, whole.len() / 2, whole.len() - 1] {
                let found = read(whole[..len].to_vec()).map(|_| ());
                assert_eq!(found.unwrap_err().to_string(), expected, "{len} bytes");
            }
            let mut damaged = whole.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0x10;
            assert_eq!(read(damaged).map(|_| ()).unwrap_err().to_string(), expected);
            let found = read([whole, b"more".to_vec()].concat()).map(|_| ());
            assert_eq!(found.unwrap_err().to_string(), expected);
        }
    }
}
