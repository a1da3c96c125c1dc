//! Opens inputs: files and standard input, decompressed if they are compressed.

use crate::files;
use anyhow::{Context, Result, ensure};
use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

const BUFFER_BYTES: usize = 1 << 18;

/// Largest window of zstd data, as in the `zstd` program: the memory that decompression may take.
const MOST_WINDOW: u64 = 1 << 27;

/// An open input.
pub(super) struct Input {
    pub text: Box<dyn BufRead>,
    /// Length of the file when it was opened; `None` for standard input.
    len: Option<u64>,
    /// Bytes of all inputs read so far, and those read before this one.
    done: Rc<Cell<u64>>,
    before: u64,
}

impl Input {
    /// Opens the file at `path`, or standard input for `-`. The bytes read from it, still
    /// compressed, are added to `done`.
    pub fn open(path: &Path, done: &Rc<Cell<u64>>) -> Result<Self> {
        let before = done.get();
        let counted = |inner: Box<dyn Read>| Counted { inner, done: Rc::clone(done) };
        let (raw, len) = if path.as_os_str() == "-" {
            (counted(Box::new(io::stdin())), None)
        } else {
            let (file, metadata) = files::open(path)?;
            // One byte more than the file has, so that one that grows is noticed, and not followed
            // forever.
            (counted(Box::new(file.take(metadata.len() + 1))), Some(metadata.len()))
        };
        let text = decompressed(raw).with_context(|| format!("{}: cannot read", path.display()))?;
        Ok(Input { text, len, done: Rc::clone(done), before })
    }

    /// Checks at the end that the file was read as a whole.
    ///
    /// # Errors
    /// If its length is no longer that of when it was opened.
    pub fn finish(self, name: &str) -> Result<()> {
        let (found, expected) = (self.done.get() - self.before, self.len);
        let Some(expected) = expected.filter(|expected| *expected != found) else { return Ok(()) };
        let change = if found > expected { "grew" } else { "shrank" };
        ensure!(
            found == expected,
            "{name}: it {change} while it was read (from {expected} bytes); start again when it is complete"
        );
        Ok(())
    }
}

struct Counted<R> {
    inner: R,
    done: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        self.done.set(self.done.get() + read as u64);
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
        (_, true) => Box::new(Whole { inner: Zstd::new(raw), format: "zstd" }),
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
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        self.inner.read(out).map_err(|e| match e.kind() {
            InvalidData | InvalidInput | UnexpectedEof => {
                io::Error::other(format!("the {} data are damaged or cut short", self.format))
            }
            _ => e,
        })
    }
}

/// Decompresses zstd data of any number of frames.
struct Zstd<R: Read> {
    source: BufReader<R>,
    frame: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> Zstd<R> {
    fn new(source: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(MOST_WINDOW);
        Zstd { source: BufReader::with_capacity(BUFFER_BYTES, source), frame, in_frame: false }
    }

    /// Enters the next frame, if there is one.
    fn enter_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                // Skippable frames hold data of programs, such as an index.
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => {
                    let mib = requested >> 20;
                    let advice = "pipe them in: zstd -d --long=31 -c FILE | warpsmith data -";
                    return Err(io::Error::other(format!(
                        "the zstd data need a window of {mib} MiB; {advice}"
                    )));
                }
                Err(_) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                self.in_frame = self.enter_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                let block = self.frame.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
                block.map_err(|_| io::ErrorKind::InvalidData)?;
            }
            let read = self.frame.read(out)?;
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            let (stored, found) = (self.frame.get_checksum_from_data(), self.frame.get_calculated_checksum());
            if stored.is_some() && stored != found {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(text).unwrap();
        out.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
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
        assert!(error.starts_with("the zstd data need a window of 2048 MiB; pipe them in"), "{error}");
    }

    #[test]
    fn damaged_and_cut_data_are_errors() {
        let text: Vec<u8> = (0..90_000u64).flat_map(|i| (i * i % 977).to_string().into_bytes()).collect();
        for (format, whole) in [("gzip", gzip(&text)), ("zstd", zstd(&text))] {
            let expected = format!("the {format} data are damaged or cut short");
            for len in [5, 12, whole.len() / 2, whole.len() - 1] {
                assert_eq!(read(whole[..len].to_vec()).unwrap_err().to_string(), expected, "{len} bytes");
            }
            let mut damaged = whole.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0x10;
            assert_eq!(read(damaged).unwrap_err().to_string(), expected);
            assert_eq!(read([whole, b"more".to_vec()].concat()).unwrap_err().to_string(), expected);
        }
    }
}
