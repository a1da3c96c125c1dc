//! Reads corpora: files and folders of text, JSON or parquet become a stream of documents, cut into
//! pieces so that no document of plain text has to fit into memory.

mod ahead;
mod input;
mod json;
mod kind;
mod parquet;
mod queue;
mod sources;
mod text;

use crate::data::tokenizer::Cuts;
use crate::files;
use crate::words::count;
pub(super) use ahead::ReadAhead;
use anyhow::{Context, Result, ensure};
use input::Input;
use kind::Kind;
pub(super) use sources::{Source, find_sources};
use std::io::{BufRead, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Bytes read to recognize the kind of an input.
const HEAD_BYTES: u64 = 1 << 16;

/// Most bytes read for that, if the input may be JSON with a long first object.
const MOST_HEAD_BYTES: usize = 1 << 24;

/// The default column, or field of a JSON object, that holds the text.
const DEFAULT_FIELD: &str = "text";

/// A piece of a document. Pieces are cut where the tokenizer always ends a token, so the tokens of
/// the pieces are the tokens of the document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub starts_document: bool,
    pub text: String,
}

/// The places where plain text is split into documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// At `<|endoftext|>`; a file without any is one document.
    #[default]
    EndOfText,
    /// Nowhere: a file is one document.
    Never,
    /// At a separator. Documents keep one of white space at their end; any other is dropped with
    /// the white space around it.
    On(String),
}

/// How files are split into documents.
#[derive(Clone, Debug, Default)]
pub(super) struct Format {
    pub split: Split,
    /// Column of a parquet file, or field of a JSON object, that holds the document, if the user
    /// named one. No input is then plain text, except where `allow_text` says so.
    pub text_column: Option<String>,
    /// Whether plain text is taken beside columns: validation text need not be stored as the
    /// training text is.
    pub allow_text: bool,
    /// Whether JSON objects and rows that are not usable are left out.
    pub skip_bad_lines: bool,
    /// The places where documents may be cut into pieces.
    pub cuts: Cuts,
}

impl Format {
    fn field(&self) -> &str {
        self.text_column.as_deref().unwrap_or(DEFAULT_FIELD)
    }
}

/// How often something was found, and where first.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub count: u64,
    pub first: String,
}

impl Tally {
    pub fn add(&mut self, place: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = place();
        }
        self.count += 1;
    }

    /// Adds what was found after this.
    fn append(&mut self, later: Tally) {
        if self.count == 0 {
            self.first = later.first;
        }
        self.count += later.count;
    }
}

/// Findings that the user should know about.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// JSON objects and rows that were left out, with the reason.
    pub skipped: Tally,
    /// Rows of parquet files without text.
    pub empty_rows: Tally,
    /// Files of text that look like something else.
    pub odd: Tally,
    /// Files of plain text, and separators found in them.
    pub texts: u64,
    pub separators: u64,
    /// Whether lines of the text end in `\r\n`.
    pub crlf: bool,
}

impl Notes {
    /// Adds what was found after this.
    pub fn append(&mut self, later: Notes) {
        self.skipped.append(later.skipped);
        self.empty_rows.append(later.empty_rows);
        self.odd.append(later.odd);
        self.texts += later.texts;
        self.separators += later.separators;
        self.crlf |= later.crlf;
    }

    /// Warns of JSON objects and rows that were left out.
    pub fn warn_of_skipped(&self) {
        if self.skipped.count > 0 {
            let records = count(self.skipped.count, "record");
            log::warn!("--skip-bad-lines: left out {records}; the first is {}", self.skipped.first);
        }
    }
}

impl Source {
    /// Passes the JSON objects of a file on, one per line or those of an array, with a function
    /// that says where each is. `done` counts the bytes read.
    ///
    /// # Errors
    /// One line, if the input cannot be read, is not JSON, or changes while it is read.
    pub fn read_objects(&self, done: &Arc<AtomicU64>, each: &mut json::EachObject) -> Result<()> {
        let name = self.name();
        let mut input = Input::open(&self.path, done)?;
        let head = read_head(&mut input.text).with_context(|| format!("{name}: cannot read"))?;
        let mark = head.len() - files::strip_bom(&head).len();
        let first = head[mark..].trim_ascii_start().first().copied();
        ensure!(
            matches!(first, None | Some(b'{' | b'[')),
            "{name}: expected JSON lines, or one array of objects, found {}",
            if parquet::is_parquet(&head) {
                "a parquet file; export it as JSON lines"
            } else {
                "something else"
            }
        );
        let mut head = Cursor::new(head);
        head.set_position(mark as u64);
        let text = head.chain(&mut input.text);
        match first {
            Some(b'[') => json::elements(text, &name, &mut |object, place| each(object, place))?,
            _ => json::lines(text, &name, &mut |object, _, place| each(object, place))?,
        }
        input.finish(&name)
    }

    fn name(&self) -> String {
        match self.path.as_os_str() == "-" {
            true => "standard input".to_owned(),
            false => self.path.display().to_string(),
        }
    }

    /// Passes all pieces of all documents of a file that is not parquet to `sink`, in order. `done`
    /// counts the bytes read.
    ///
    /// # Errors
    /// One line, if the input cannot be read, is not text, or changes while it is read.
    pub fn read(
        &self,
        format: &Format,
        notes: &mut Notes,
        done: &Arc<AtomicU64>,
        sink: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let name = self.name();
        let mut input = Input::open(&self.path, done)?;
        let head = read_head(&mut input.text).with_context(|| format!("{name}: cannot read"))?;
        let mark = head.len() - files::strip_bom(&head).len();
        let kind = kind::kind_of(&name, &head[mark..], format)?;
        let rest = &mut input.text;
        let mut head = Cursor::new(head);
        head.set_position(mark as u64);
        let text = head.chain(rest);
        match kind {
            Kind::JsonLines => json::read_json_lines(text, &name, mark, format, notes, sink)?,
            Kind::JsonArray => json::read_json_array(text, &name, format, notes, sink)?,
            Kind::Text => text::read_text(text, &name, mark, format, notes, sink)?,
            Kind::Odd(what) => {
                notes.odd.add(|| format!("{name}: looks like {what}"));
                text::read_text(text, &name, mark, format, notes, sink)?;
            }
        }
        input.finish(&name)
    }
}

/// Reads a file as a whole, decompressed if it is compressed, without a byte-order mark.
///
/// # Errors
/// If it cannot be read, or has more than `limit` bytes.
pub(super) fn read_whole(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let input = Input::open(path, &Arc::default())?;
    let mut bytes = Vec::new();
    input.text.take(limit + 1).read_to_end(&mut bytes).context("cannot read")?;
    ensure!(bytes.len() as u64 <= limit, "expected at most {limit} bytes, found more");
    let mark = bytes.len() - files::strip_bom(&bytes).len();
    bytes.drain(..mark);
    Ok(bytes)
}

/// Reads the start of an input: of one that may be JSON, at least its first object if that has one
/// line.
fn read_head(input: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        let read = input.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
        let body = files::strip_bom(&head).trim_ascii_start();
        let may_be_json = matches!(body.first(), Some(b'{' | b'['));
        let has_object = body.starts_with(b"{") && body.contains(&b'\n');
        if read == 0 || !may_be_json || has_object || head.len() >= MOST_HEAD_BYTES {
            return Ok(head);
        }
    }
}

#[cfg(test)]
mod tests;
