//! Reads JSON: one object per line, or one array of objects. Each object is a document.

use super::{Format, Notes, Piece};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

/// Most bytes of a line, or of an element of an array: it is held in memory.
const OBJECT_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 1 << 28 };

/// The value of the field that holds the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field {
    Text(String),
    NotAString,
    Missing,
}

/// Finds the field of a JSON object that holds the text. Other fields need not be representable,
/// only JSON.
pub(super) fn field_of(object: &[u8], field: &str) -> serde_json::Result<Field> {
    let mut json = serde_json::Deserializer::from_slice(object);
    let found = FieldOf(field).deserialize(&mut json)?;
    json.end()?;
    Ok(found)
}

/// Takes a JSON object, and a function that says where it is.
pub(in crate::data) type EachObject<'a> = dyn FnMut(&[u8], &dyn Fn() -> String) -> Result<()> + 'a;

/// The same, with the place of the object's first byte.
type EachLine<'a> = dyn FnMut(&[u8], usize, &dyn Fn() -> String) -> Result<()> + 'a;

/// Reads objects, one per line. The first byte is at `offset` in the file.
pub(super) fn read_json_lines(
    input: impl BufRead,
    name: &str,
    offset: usize,
    format: &Format,
    notes: &mut Notes,
    sink: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    lines(input, name, &mut |object, start, place| add(object, offset + start, place, format, notes, sink))
}

/// Passes the objects on, one per line, each with the place of its first byte in `input`.
pub(super) fn lines(mut input: impl BufRead, name: &str, each: &mut EachLine) -> Result<()> {
    let mut line = Vec::new();
    let mut start = 0;
    for number in 1.. {
        start += line.len();
        line.clear();
        let mut limited = input.by_ref().take(OBJECT_BYTES + 1);
        let read = limited.read_until(b'\n', &mut line).with_context(|| format!("{name}: cannot read"))?;
        ensure!(
            read as u64 <= OBJECT_BYTES,
            "{name}:{number}: a line of more than {OBJECT_BYTES} bytes, the most that JSON may have; cut it into \
             several documents, or give it as plain text"
        );
        if read == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() {
            let blank = line.len() - line.trim_ascii_start().len();
            each(line.trim_ascii(), start + blank, &|| format!("{name}:{number}"))?;
        }
    }
    Ok(())
}

/// Reads one array of objects, element by element.
pub(super) fn read_json_array(
    input: impl BufRead,
    name: &str,
    format: &Format,
    notes: &mut Notes,
    sink: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    elements(input, name, &mut |object, place| add(object, 0, place, format, notes, sink))
}

/// Passes the elements of one array of objects on.
pub(super) fn elements(input: impl BufRead, name: &str, each: &mut EachObject) -> Result<()> {
    let left = Cell::new(OBJECT_BYTES);
    let mut number = 0;
    let mut fault = None;
    let mut each = |object: &RawValue| {
        left.set(OBJECT_BYTES);
        number += 1;
        each(object.get().as_bytes(), &|| format!("{name}: element {number}"))
    };
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(Limited { input, left: &left }));
    let elements = Elements { each: &mut each, fault: &mut fault };
    let read = elements.deserialize(&mut json).and_then(|()| json.end());
    match (fault, read) {
        (Some(fault), _) => Err(fault),
        (None, Err(e)) if e.is_io() => {
            Err(anyhow!("{name}: cannot read element {}: {}", number + 1, io::Error::from(e)))
        }
        (None, Err(e)) => bail!("{name}: not JSON: {e}, in element {} of an array", number + 1),
        (None, Ok(())) => Ok(()),
    }
}

/// Passes the document of one object on, which starts at byte `start` of the file.
fn add(
    object: &[u8],
    start: usize,
    place: &dyn Fn() -> String,
    format: &Format,
    notes: &mut Notes,
    sink: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let field = format.field();
    let fault = match field_of(object, field) {
        Ok(Field::Text(text)) if text.is_empty() => return Ok(()),
        Ok(Field::Text(text)) => return sink(Piece { starts_document: true, text }),
        Ok(Field::NotAString) => format!("field \"{field}\" is not a string"),
        Ok(Field::Missing) => {
            format!("no field \"{field}\"; name the one with the text with --text-column")
        }
        Err(_) if std::str::from_utf8(object).is_err() => {
            let valid = std::str::from_utf8(object).map_or_else(|e| e.valid_up_to(), str::len);
            format!("byte {} of the file is not UTF-8; convert the file to UTF-8", start + valid)
        }
        Err(e) => {
            // Each object is parsed alone, so that its first line is always line 1.
            let fault = e.to_string().replace(" at line 1 column ", " at column ");
            format!("not a JSON object: {fault}; expected one object per line, or one array of objects")
        }
    };
    if format.skip_bad_lines {
        notes.skipped.add(|| format!("{}: {fault}", place()));
        return Ok(());
    }
    bail!("{}: {fault}", place())
}

struct FieldOf<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for FieldOf<'_> {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Field, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldOf<'_> {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        let mut found = Field::Missing;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                found = match map.next_value()? {
                    Value::String(text) => Field::Text(text),
                    _ => Field::NotAString,
                };
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Passes the elements of an array on as they are read.
struct Elements<'a> {
    each: &'a mut dyn FnMut(&RawValue) -> Result<()>,
    /// The error of `each`.
    fault: &'a mut Option<anyhow::Error>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<Box<RawValue>>()? {
            if let Err(fault) = (self.each)(&element) {
                *self.fault = Some(fault);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Reads at most the bytes that are left for an element.
struct Limited<'a, R> {
    input: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other(format!("it has more than {OBJECT_BYTES} bytes")));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let read = self.input.read(&mut out[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::documents;
    use super::*;

    fn read(text: impl AsRef<[u8]>, format: &Format) -> Result<(Vec<String>, Notes)> {
        let (mut pieces, mut notes) = (Vec::new(), Notes::default());
        let (text, sink) = (text.as_ref(), &mut |piece| {
            pieces.push(piece);
            Ok(())
        });
        match text.trim_ascii_start().first() {
            Some(b'[') => read_json_array(text, "a.json", format, &mut notes, sink)?,
            _ => read_json_lines(text, "a.jsonl", 0, format, &mut notes, sink)?,
        }
        Ok((documents(&pieces), notes))
    }

    fn refuse(text: impl AsRef<[u8]>) -> String {
        let error = format!("{:#}", read(text, &Format::default()).map(drop).unwrap_err());
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn objects_are_documents() {
        let lines =
            "{\"text\": \"a\\n\\u00e9\", \"id\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"<|endoftext|>\"}";
        let expected = ["a\né", "<|endoftext|>"];
        assert_eq!(read(lines, &Format::default()).unwrap().0, expected);
        let array = lines.replace("\n\n", ",\n").replace("\r\n", ", ");
        for array in [format!("[{array}]"), format!("\n [ {array}\n]\n\n")] {
            assert_eq!(read(array, &Format::default()).unwrap().0, expected);
        }
        let format = Format { text_column: Some("story".into()), ..Format::default() };
        assert_eq!(read("{\"story\": \"b\"}\n", &format).unwrap().0, ["b"]);
        assert!(read("[]", &format).unwrap().0.is_empty());
        // Unused fields need not be representable.
        let odd = r#"{"meta": {"a": "\ud83d", "b": 1e999}, "text": "c"}"#;
        assert_eq!(read(odd, &Format::default()).unwrap().0, ["c"]);
    }

    #[test]
    fn bad_objects_are_refused_with_their_place_or_left_out_and_counted() {
        for (bad, expected) in [
            ("{\"text\": ", "not a JSON object: EOF while parsing a value at column "),
            ("{\"body\": \"x\"}", "no field \"text\"; name the one"),
            ("[\"text\"]", "not a JSON object: invalid type: sequence, expected an object"),
            ("{\"text\": 5}", "field \"text\" is not a string"),
            ("{\"text\": null}", "field \"text\" is not a string"),
            ("{\"text\": \"\\ud800\"}", "not a JSON object: "),
            ("{\"text\": \"a\", \"score\": NaN}", "not a JSON object: expected value at column 24"),
            ("{\"text\": \"a\"} x", "not a JSON object: trailing characters"),
        ] {
            let text = format!("{{\"text\": \"good\"}}\n{bad}\n{{\"text\": \"last\"}}\n");
            let error = refuse(&text);
            assert!(error.starts_with(&format!("a.jsonl:2: {expected}")), "{error}");
            let format = Format { skip_bad_lines: true, ..Format::default() };
            let (documents, notes) = read(&text, &format).unwrap();
            assert_eq!(documents, ["good", "last"]);
            assert_eq!((notes.skipped.count, notes.skipped.first), (1, error));
        }
        // Latin-1 in the middle of a file.
        let error = refuse(b"{\"text\": \"a\"}\n {\"text\": \"caf\xe9\"}\n");
        assert_eq!(error, "a.jsonl:2: byte 28 of the file is not UTF-8; convert the file to UTF-8");
        let array = r#"[{"text": "a"}, {"text": null}, {"text": "\ud800"}, 7, {"text": "b"}]"#;
        assert!(refuse(array).starts_with("a.json: element 2: field \"text\" is not a string"));
        let format = Format { skip_bad_lines: true, ..Format::default() };
        let (documents, notes) = read(array, &format).unwrap();
        assert_eq!((documents, notes.skipped.count), (vec!["a".to_owned(), "b".to_owned()], 3));
        assert!(refuse("[{\"text\": \"a\"},\n {\"text\"").contains("a.json: not JSON: EOF"));
        assert!(refuse("[{\"text\": \"a\"}] {}").contains("trailing characters"));
    }

    #[test]
    fn objects_have_a_limit() {
        let long = "a".repeat(OBJECT_BYTES as usize);
        let error = refuse(format!("{{\"text\": \"a\"}}\n{{\"text\": \"{long}\"}}\n"));
        assert!(error.starts_with("a.jsonl:2: a line of more than 1048576 bytes, the most that"), "{error}");
        let error = refuse(format!("[{{\"text\": \"a\"}},{{\"text\": \"{long}{long}\"}}]"));
        assert!(
            error.starts_with("a.json: cannot read element 2: it has more than 1048576 bytes"),
            "{error}"
        );
        let half = "a".repeat(OBJECT_BYTES as usize / 2);
        let array = format!("[{0},{0},{0}]", format!("{{\"text\": \"{half}\"}}"));
        assert_eq!(read(array, &Format::default()).unwrap().0.len(), 3);
    }
}
