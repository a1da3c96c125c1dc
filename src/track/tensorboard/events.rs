//! TensorBoard's event files: records in TFRecord's frames, each with its checksums.
//!
//! A frame is the length of the record (8 bytes), its checksum (4), the record, its checksum (4),
//! all little-endian. Checksums are CRC-32C, rotated and shifted.

use super::proto::{Field, Message, next};
use crate::track::Line;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// `SessionLog.START`: events from its step on, in files before, no longer count.
const START: u64 = 1;

/// Longest record that is read: the samples of a run are far shorter.
const MOST_BYTES: u64 = 1 << 28;

/// Known names in `metrics.jsonl`, and their tags. TensorBoard groups tags by the part before `/`.
const TAGS: [(&str, &str); 12] = [
    ("loss", "loss/train"),
    ("val_loss", "loss/val"),
    ("val_perplexity", "loss/val_perplexity"),
    ("norm", "optimizer/norm"),
    ("lr", "optimizer/lr"),
    ("ms", "speed/step_ms"),
    ("tok_per_s", "speed/tok_per_s"),
    ("tokens", "speed/tokens"),
    ("rss_bytes", "memory/rss_bytes"),
    ("peak_rss_bytes", "memory/peak_rss_bytes"),
    ("gpu_bytes", "memory/gpu_bytes"),
    ("gpu_used_bytes", "memory/gpu_used_bytes"),
];

/// The tag of a number. Those that have no other place are results of evaluations.
fn tag(name: &str) -> String {
    let known = TAGS.iter().find(|(known, _)| *known == name);
    known.map_or_else(|| format!("eval/{name}"), |(_, tag)| (*tag).to_owned())
}

/// The place of an event in a run: its step and its time in seconds since 1970.
pub type Place = (u64, f64);

/// A file that is being written.
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// Creates a file, which must not exist. With `start`, events of other files from that step on
    /// no longer count.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: PathBuf, time: f64, start: Option<u64>) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut writer = Writer { file, path };
        let version = Message::default().double(1, time).bytes(3, b"brain.Event:2");
        let session = Message::default().number(1, START);
        let start = start.map(|step| Message::default().double(1, time).number(2, step).bytes(7, &session.0));
        writer.write(
            [Some(version), start].into_iter().flatten().flat_map(|event| frame(&event.0)).collect(),
        )?;
        Ok(writer)
    }

    /// Appends one event per line, all in one write.
    ///
    /// # Errors
    /// If the disk is full or fails. Part of the events may have been written.
    pub fn lines(&mut self, lines: &[&Line]) -> Result<()> {
        self.write(lines.iter().flat_map(|line| frame(&event(line).0)).collect())
    }

    fn write(&mut self, bytes: Vec<u8>) -> Result<()> {
        self.file.write_all(&bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The event of a line, with all its numbers. One without any is kept, so that each line has one.
fn event(line: &Line) -> Message {
    let mut summary = Message::default();
    for (name, value) in &line.numbers {
        summary = summary.bytes(1, &scalar(&tag(name), *value).0);
    }
    if let Some(sample) = &line.sample {
        summary = summary.bytes(1, &text(&format!("sample/{}", sample.index), &sample.text).0);
    }
    let time = line.time.unwrap_or_default();
    Message::default().double(1, time).number(2, line.step).bytes(5, &summary.0)
}

/// `Summary.Value` of a number: TensorBoard's scalars are f32. As tensors they would keep all
/// digits, but the `EventAccumulator` that scripts use does not purge tensors.
fn scalar(tag: &str, value: f64) -> Message {
    Message::default().bytes(1, tag.as_bytes()).float(2, value as f32)
}

/// `Summary.Value` for the text plugin, which reads Markdown: an indented block shows the text as
/// it is.
fn text(tag: &str, text: &str) -> Message {
    const DT_STRING: u64 = 7;
    const DATA_CLASS_TENSOR: u64 = 2;
    let block: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    let dimension = Message::default().number(1, 1);
    let shape = Message::default().bytes(2, &dimension.0);
    let tensor =
        Message::default().number(1, DT_STRING).bytes(2, &shape.0).bytes(8, block.join("\n").as_bytes());
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().bytes(1, &plugin.0).number(4, DATA_CLASS_TENSOR);
    Message::default().bytes(1, tag.as_bytes()).bytes(9, &metadata.0).bytes(8, &tensor.0)
}

/// Applies a file's events to the places of those before: appends its own, and drops those that a
/// `START` in it ends. A damaged or unfinished record ends the file.
///
/// # Errors
/// If the file cannot be read.
pub fn read(path: &Path, places: &mut Vec<Place>) -> Result<()> {
    let (file, _) = crate::files::open(path)?;
    let mut file = BufReader::with_capacity(1 << 16, file);
    while let Some(record) = next_record(&mut file) {
        let (mut time, mut step, mut lines, mut starts) = (0.0, 0, false, false);
        let mut rest = &record[..];
        while let Some((number, field)) = next(&mut rest) {
            match (number, field) {
                (1, Field::Double(seconds)) => time = seconds,
                (2, Field::Number(number)) => step = number,
                (5, Field::Bytes(_)) => lines = true,
                (7, Field::Bytes(mut session)) => {
                    starts = next(&mut session) == Some((1, Field::Number(START)));
                }
                _ => {}
            }
        }
        if starts {
            places.truncate(places.partition_point(|place| place.0 < step));
        }
        // Places are in order, so that they can be searched.
        if lines && places.last().is_none_or(|last| last.0 <= step) {
            places.push((step, time));
        }
    }
    Ok(())
}

/// The next record, or nothing if there is no whole one.
fn next_record(file: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut head = [0; 12];
    file.read_exact(&mut head).ok()?;
    let len = u64::from_le_bytes(head[..8].try_into().ok()?);
    if len > MOST_BYTES || head[8..] != checksum(&head[..8]) {
        return None;
    }
    let mut record = Vec::new();
    file.take(len + 4).read_to_end(&mut record).ok()?;
    let (record, sum) = record.split_at_checked(len as usize)?;
    (sum == checksum(record)).then(|| record.to_vec())
}

fn frame(record: &[u8]) -> Vec<u8> {
    let len = (record.len() as u64).to_le_bytes();
    [&len[..], &checksum(&len), record, &checksum(record)].concat()
}

/// The masked CRC-32C of TFRecord.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), byte by byte: events are few.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    !bytes.iter().fold(!0, |crc: u32, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

const fn table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, time: f64) -> Line {
        Line { step, time: Some(time), numbers: vec![("loss".to_owned(), 1.5)], sample: None, end: None }
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_start_ends_later_events_of_files_before() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| dir.path().join(name));
        let lines: Vec<Line> = (0..6).map(|step| line(step, 100.0 + step as f64)).collect();
        let mut writer = Writer::create(first.clone(), 1.0, None).unwrap();
        writer.lines(&lines.iter().collect::<Vec<_>>()).unwrap();
        let mut places = Vec::new();
        read(&first, &mut places).unwrap();
        assert_eq!(places, (0..6).map(|step| (step, 100.0 + step as f64)).collect::<Vec<_>>());
        let mut writer = Writer::create(second.clone(), 2.0, Some(2)).unwrap();
        writer.lines(&[&line(2, 200.0), &line(2, 201.0)]).unwrap();
        read(&second, &mut places).unwrap();
        assert_eq!(places, [(0, 100.0), (1, 101.0), (2, 200.0), (2, 201.0)]);
        assert!(Writer::create(second, 2.0, None).is_err(), "nothing is overwritten");
    }

    #[test]
    fn a_torn_or_damaged_record_ends_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        Writer::create(path.clone(), 1.0, None).unwrap().lines(&[&line(0, 5.0), &line(1, 6.0)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let found = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let mut places = Vec::new();
            read(&path, &mut places).unwrap();
            places.len()
        };
        assert_eq!(found(&whole), 2);
        for cut in 0..whole.len() {
            assert!(found(&whole[..cut]) < 2, "cut at {cut}");
        }
        let last = whole.len() - 20;
        let damaged: Vec<u8> =
            whole.iter().enumerate().map(|(i, &byte)| if i == last { byte ^ 1 } else { byte }).collect();
        assert_eq!(found(&damaged), 1);
    }
}
