//! Decides by content and name what an input is.

use super::Format;
use super::json::{Field, field_of};
use anyhow::{Result, bail, ensure};
use serde_json::value::RawValue;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    JsonLines,
    JsonArray,
    /// Text that looks as if it were meant as something else: JSON or markup.
    Odd(&'static str),
}

/// Decides what the input `name` is that starts with `head`. The head of JSON should hold the first
/// object.
///
/// # Errors
/// If it is no text at all, or plain text although `--text-column` is given.
pub(super) fn kind_of(name: &str, head: &[u8], format: &Format) -> Result<Kind> {
    if let Some((_, what)) = BINARY.iter().find(|(magic, _)| head.starts_with(magic)) {
        bail!("{name}: {what}");
    }
    ensure!(head.get(257..262) != Some(b"ustar"), "{name}: a tar archive; unpack it first");
    let body = head.trim_ascii_start();
    let (is_object, is_array) =
        (body.starts_with(b"{"), after(body, b'[').is_some_and(|b| b.starts_with(b"{")));
    let asked = format.text_column.is_some();
    let kind = match () {
        () if body.is_empty() => Kind::Text,
        () if is_array && (asked || is_named_json(name) || array_has_field(body, format)) => Kind::JsonArray,
        () if is_named_json_lines(name) => Kind::JsonLines,
        () if is_object && (asked || line_has_field(body, format)) => Kind::JsonLines,
        () if asked && !format.allow_text => bail!(
            "{name}: --text-column {}: expected a parquet file, JSON lines or an array of objects, found text",
            format.field()
        ),
        () => looks_like(body).map_or(Kind::Text, Kind::Odd),
    };
    Ok(kind)
}

/// The text after `mark` and white space, if the text starts with it.
fn after(text: &[u8], mark: u8) -> Option<&[u8]> {
    text.strip_prefix(&[mark]).map(<[u8]>::trim_ascii_start)
}

fn line_has_field(body: &[u8], format: &Format) -> bool {
    let line = body.split(|&b| b == b'\n').next().unwrap_or_default();
    field_of(line, format.field()).is_ok_and(|found| found != Field::Missing)
}

fn array_has_field(body: &[u8], format: &Format) -> bool {
    let first = serde_json::Deserializer::from_slice(&body[1..]).into_iter::<&RawValue>().next();
    let found = first.and_then(Result::ok).map(|raw| field_of(raw.get().as_bytes(), format.field()));
    found.is_some_and(|found| found.is_ok_and(|found| found != Field::Missing))
}

/// The extension of a name, in lower case, without that of a compressed file.
fn extension(name: &str) -> Option<String> {
    let path = Path::new(name);
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "gz" | "zst" => Some(Path::new(path.file_stem()?).extension()?.to_str()?.to_ascii_lowercase()),
        _ => Some(extension),
    }
}

fn is_named_json_lines(name: &str) -> bool {
    extension(name).is_some_and(|end| matches!(end.as_str(), "jsonl" | "ndjson"))
}

fn is_named_json(name: &str) -> bool {
    is_named_json_lines(name) || extension(name).is_some_and(|end| end == "json")
}

fn looks_like(body: &[u8]) -> Option<&'static str> {
    let opens = |mark, next: &[u8]| {
        after(body, mark).is_some_and(|rest| rest.first().is_some_and(|b| next.contains(b)))
    };
    if opens(b'{', b"\"}") || opens(b'[', b"{[\"") {
        return Some("JSON");
    }
    let start = body[..body.len().min(16)].to_ascii_lowercase();
    let markup: [&[u8]; 5] = [b"<html", b"<!doctype", b"<?xml", b"<svg", b"{\\rtf"];
    markup.iter().any(|tag| start.starts_with(tag)).then_some("markup")
}

/// First bytes of files that are no text, and what to do with each.
#[rustfmt::skip]
const BINARY: [(&[u8], &str); 24] = [
    (b"PAR1", "a parquet file, which is not read from a pipe or an archive; give it by name, uncompressed"),
    (b"ARROW1", "an Arrow file; export it as parquet or JSON lines"),
    (b"SQLite format 3\0", "an SQLite database; export it as JSON lines"),
    (b"%PDF", "a PDF; extract its text first"),
    (b"\xd0\xcf\x11\xe0", "an Office document; extract its text first"),
    (b"PK\x03\x04", "a zip archive or an Office document; unpack it, or extract its text first"),
    (b"\x93NUMPY", "a NumPy file; if it holds tokens, make a shard of it with `warpsmith convert IN.npy OUT.bin`"),
    (b"\x88\xd8\x34\x01", "a token shard, which is tokenized already; train on it with -i"),
    (b"\x89PNG", "a picture; leave it out"),
    (b"\xff\xd8\xff", "a picture; leave it out"),
    (b"GIF8", "a picture; leave it out"),
    (b"RIFF", "a picture, a sound or a video; leave it out"),
    (b"OggS", "a sound; leave it out"),
    (b"ID3", "a sound; leave it out"),
    (b"\xfd7zXZ\0", "an xz file; decompress it, or compress it as .gz or .zst"),
    (b"BZh", "a bzip2 file; decompress it, or compress it as .gz or .zst"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a", "a rar archive; unpack it first"),
    (b"\x1f\x8b", "compressed twice; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed twice; decompress it first"),
    (b"\x7fELF", "a program; leave it out"),
    (b"\x80\x02}", "a Python pickle; export it as JSON lines"),
    (b"\xff\xfe", "UTF-16 text; convert it to UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text; convert it to UTF-8: iconv -f UTF-16 -t UTF-8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str, head: &str) -> Kind {
        kind_of(name, head.as_bytes(), &Format::default()).unwrap()
    }

    #[test]
    fn content_counts_and_names_help() {
        let (line, array) = ("{\"text\": \"a\"}\n", " [\n{\"text\": \"a\"},\n{");
        for name in
            ["a.jsonl", "a.NDJSON", "a.json", "a.txt", "a", "standard input", "a.Jsonl.gz", "a.txt.zst"]
        {
            assert_eq!(kind(name, line), Kind::JsonLines, "{name}");
            assert_eq!(kind(name, array), Kind::JsonArray, "{name}");
            assert_eq!(kind(name, ""), Kind::Text);
        }
        // Names that promise JSON lines are held to it.
        for text in ["words", "{\"body\": 1}", "[\"a\"]"] {
            assert_eq!(kind("a.jsonl", text), Kind::JsonLines);
            assert_eq!(kind("a.ndjson.zst", text), Kind::JsonLines);
        }
        for (text, expected) in [
            ("words", Kind::Text),
            ("[1] words", Kind::Text),
            ("{name} said", Kind::Text),
            ("{\"body\": 1}", Kind::Odd("JSON")),
            ("{\n  \"text\": \"on several lines\"\n}", Kind::Odd("JSON")),
            ("[\"a\", \"b\"]", Kind::Odd("JSON")),
            ("[{\"body\": 1}]", Kind::Odd("JSON")),
            ("\n<!DOCTYPE html>", Kind::Odd("markup")),
            ("<?xml version", Kind::Odd("markup")),
        ] {
            assert_eq!(kind("a.txt", text), expected, "{text}");
        }
    }

    #[test]
    fn a_field_asks_for_json() {
        let format = Format { text_column: Some("body".into()), ..Format::default() };
        let kind = |head: &str| kind_of("a.txt", head.as_bytes(), &format);
        assert_eq!(kind("{\"text\": 1}").unwrap(), Kind::JsonLines);
        assert_eq!(kind("[{\"text\": 1}").unwrap(), Kind::JsonArray);
        let error = kind("words").unwrap_err().to_string();
        assert_eq!(
            error,
            "a.txt: --text-column body: expected a parquet file, JSON lines or an array of objects, found text"
        );
        let format = Format { allow_text: true, ..format };
        assert_eq!(kind_of("a.txt", b"words", &format).unwrap(), Kind::Text);
        assert_eq!(kind_of("a.txt", b"{\"body\": 1}", &format).unwrap(), Kind::JsonLines);
    }

    #[test]
    fn what_is_no_text_is_named() {
        for (head, expected) in [
            (&b"PAR1\x15"[..], "a.txt: a parquet file, which is not read from a pipe"),
            (b"%PDF-1.7", "a.txt: a PDF;"),
            (b"\x89PNG\r\n", "a.txt: a picture;"),
            (b"\xff\xfea\0", "a.txt: UTF-16 text;"),
            (&20_240_520i32.to_le_bytes(), "a.txt: a token shard"),
        ] {
            let error = kind_of("a.txt", head, &Format::default()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(kind_of("a", &tar, &Format::default()).unwrap_err().to_string().contains("a tar archive"));
    }
}
