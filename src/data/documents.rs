//! Reads corpora: files and folders of text or JSON lines become a stream of documents, cut into
//! pieces so that no document has to fit into memory.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Bytes of a document after which a piece is cut.
const PIECE_BYTES: usize = 1 << 16;

/// Bytes without a place to cut after which a file is rejected as not being text.
const UNCUTTABLE_BYTES: usize = 1 << 24;

/// A piece of a document. Pieces are cut where GPT-2's tokenizer always ends a token, so the tokens
/// of the pieces are the tokens of the document.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub starts_document: bool,
    pub text: String,
}

/// How files are split into documents.
#[derive(Clone, Debug)]
pub(super) struct Format {
    /// Separator between documents of a text file; without it the file is one document.
    pub split_on: Option<String>,
    /// Field of a JSON line that holds the document.
    pub json_field: String,
}

/// A file to read, or standard input.
#[derive(Debug)]
pub(super) struct Source {
    /// `-` for standard input.
    pub path: PathBuf,
    pub bytes: u64,
}

/// Lists the files of `inputs`: files as given, and all files in folders, ordered by name, except
/// hidden ones.
pub(super) fn find_sources(inputs: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for input in inputs {
        if input.as_os_str() == "-" {
            sources.push(Source { path: input.clone(), bytes: 0 });
        } else {
            add_sources(input, &mut sources)?;
        }
    }
    ensure!(
        !sources.is_empty(),
        "no files in {}; give text files, .jsonl files or folders of them",
        list(inputs)
    );
    Ok(sources)
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn add_sources(path: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let info = fs::metadata(path).with_context(|| format!("{}: cannot read input", path.display()))?;
    if !info.is_dir() {
        sources.push(Source { path: path.to_owned(), bytes: info.len() });
        return Ok(());
    }
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let mut entries = entries.with_context(|| format!("{}: cannot list folder", path.display()))?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // A link to a folder could lead back here, so only links to files are followed.
        let linked_folder = entry.path().is_symlink() && entry.path().is_dir();
        if !hidden && !linked_folder {
            add_sources(&entry.path(), sources)?;
        }
    }
    Ok(())
}

impl Source {
    /// Passes all pieces of all documents to `sink`, in order.
    pub fn read(&self, format: &Format, sink: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let name = self.path.display().to_string();
        if name == "-" {
            return read_text(io::stdin().lock(), "standard input", format, sink);
        }
        let file = File::open(&self.path).with_context(|| format!("{name}: cannot open input"))?;
        if self.path.extension().is_some_and(|e| e == "jsonl") {
            read_json_lines(BufReader::with_capacity(1 << 18, file), &name, format, sink)
        } else {
            read_text(file, &name, format, sink)
        }
    }
}

fn read_json_lines(
    mut input: impl BufRead,
    name: &str,
    format: &Format,
    sink: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let field = &format.json_field;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = input.read_until(b'\n', &mut line).with_context(|| format!("{name}: cannot read"))?;
        if read == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let mut value: serde_json::Value = serde_json::from_slice(&line)
            .map_err(|e| anyhow::anyhow!("{name}:{number}: not JSON: {e}; expected one object per line"))?;
        match value.get_mut(field).map(serde_json::Value::take) {
            Some(serde_json::Value::String(text)) if text.is_empty() => {}
            Some(serde_json::Value::String(text)) => sink(Piece { starts_document: true, text })?,
            Some(_) => bail!("{name}:{number}: field \"{field}\" is not a string"),
            None => {
                bail!("{name}:{number}: no field \"{field}\"; name the one with the text with --json-field")
            }
        }
    }
    Ok(())
}

fn read_text(
    mut input: impl Read,
    name: &str,
    format: &Format,
    sink: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let mut splitter = Splitter::new(format.split_on.as_deref());
    // Bytes not decoded yet, and their offset in the file.
    let mut bytes = Vec::new();
    let mut offset = 0;
    loop {
        let read = input.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut bytes);
        let ended = read.with_context(|| format!("{name}: cannot read"))? == 0;
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            // The end of the block cuts a character, which is fine unless the file ends here too.
            Err(e) if e.error_len().is_none() && !ended => str_of(&bytes[..e.valid_up_to()]),
            Err(e) => bail!(
                "{name}: byte {} is not UTF-8 text; convert the file or leave it out",
                offset + e.valid_up_to()
            ),
        };
        splitter.text.push_str(if offset == 0 { valid.trim_start_matches('\u{feff}') } else { valid });
        let decoded = valid.len();
        bytes.drain(..decoded);
        offset += decoded;
        splitter.split(ended, sink).with_context(|| name.to_owned())?;
        if ended {
            return Ok(());
        }
    }
}

fn str_of(valid: &[u8]) -> &str {
    std::str::from_utf8(valid).expect("checked to be UTF-8")
}

/// Cuts text into documents and documents into pieces, as it arrives.
///
/// A separator of white space alone ("\n\n") is text and stays at the end of the document before
/// it. Any other separator (`<|endoftext|>`) is a mark and is dropped with the white space around
/// it.
struct Splitter<'a> {
    separator: Option<&'a str>,
    is_mark: bool,
    /// Text that has arrived and has not been passed on.
    text: String,
    /// `text` has no separator before this index.
    searched: usize,
    /// Whether a piece of the current document has been passed on.
    started: bool,
}

impl<'a> Splitter<'a> {
    fn new(separator: Option<&'a str>) -> Self {
        let is_mark = separator.is_some_and(|s| !s.trim().is_empty());
        Splitter { separator, is_mark, text: String::new(), searched: 0, started: false }
    }

    /// Passes on all pieces that are certain; with `ended`, everything.
    fn split(&mut self, ended: bool, sink: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let mut text = std::mem::take(&mut self.text);
        let mut start = 0;
        while let Some((end, next)) = self.find_separator(&text) {
            self.emit(&text[start..if self.is_mark { end } else { next }], true, sink)?;
            self.started = false;
            (start, self.searched) = (next, next);
        }
        if ended {
            self.emit(&text[start..], true, sink)?;
            start = text.len();
        } else if text.len() - start >= PIECE_BYTES {
            // The last bytes may be the start of a separator.
            let overlap = self.separator.map_or(0, |s| s.len() - 1);
            let from = std::mem::replace(&mut self.searched, floor_char_boundary(&text, overlap).max(start));
            if let Some(cut) = last_cut(&text[..self.searched], from.max(start)) {
                self.emit(&text[start..cut], false, sink)?;
                self.started = true;
                start = cut;
            }
            ensure!(
                text.len() - start < UNCUTTABLE_BYTES,
                "{} MiB without white space between words: not text",
                UNCUTTABLE_BYTES >> 20
            );
        }
        text.drain(..start);
        self.text = text;
        self.searched = self.searched.saturating_sub(start);
        Ok(())
    }

    /// Finds the start and the end of the next separator.
    fn find_separator(&self, text: &str) -> Option<(usize, usize)> {
        let separator = self.separator?;
        let at = self.searched + text[self.searched..].find(separator)?;
        Some((at, at + separator.len()))
    }

    fn emit(&self, text: &str, ends: bool, sink: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let mut text = text;
        if self.is_mark && !self.started {
            text = text.trim_start();
        }
        if self.is_mark && ends {
            text = text.trim_end();
        }
        if text.is_empty() {
            return Ok(());
        }
        sink(Piece { starts_document: !self.started, text: text.to_owned() })
    }
}

/// Finds the last character boundary with at least `overlap` bytes after it.
fn floor_char_boundary(text: &str, overlap: usize) -> usize {
    let end = text.len().saturating_sub(overlap);
    (0..=end).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// Finds the last place, from byte `from` on, where cutting the text leaves its tokens unchanged:
/// before a space or line break that follows something else. GPT-2's pattern has no token with
/// white space after other characters, so a token always ends there, and nothing in the pattern
/// looks back.
fn last_cut(text: &str, from: usize) -> Option<usize> {
    let is_space = |b: &u8| matches!(b, b' ' | b'\n');
    let mut end = text.len();
    while let Some(at) = text.as_bytes()[from..end].iter().rposition(is_space) {
        end = from + at;
        if text[..end].chars().next_back().is_some_and(|c| !c.is_whitespace()) {
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::encode_ordinary;

    fn text_pieces(text: &[u8], split_on: Option<&str>) -> Result<Vec<Piece>> {
        let format = Format { split_on: split_on.map(str::to_owned), json_field: "text".to_owned() };
        let mut pieces = Vec::new();
        read_text(text, "a.txt", &format, &mut |piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok(pieces)
    }

    fn documents(pieces: &[Piece]) -> Vec<String> {
        let mut documents: Vec<String> = Vec::new();
        for piece in pieces {
            if piece.starts_document {
                documents.push(String::new());
            }
            documents.last_mut().unwrap().push_str(&piece.text);
        }
        documents
    }

    fn split(text: &str, split_on: Option<&str>) -> Vec<String> {
        documents(&text_pieces(text.as_bytes(), split_on).unwrap())
    }

    fn json_lines(text: &str, field: &str) -> Result<Vec<Piece>> {
        let format = Format { split_on: None, json_field: field.to_owned() };
        let mut pieces = Vec::new();
        read_json_lines(text.as_bytes(), "a.jsonl", &format, &mut |piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok(pieces)
    }

    #[test]
    fn separators_of_white_space_stay_and_marks_go() {
        assert_eq!(split(" a\n\nb\n", None), [" a\n\nb\n"]);
        assert_eq!(split("a\n\nb\n\n\n\nc\n", Some("\n\n")), ["a\n\n", "b\n\n", "\n\n", "c\n"]);
        assert_eq!(split("a\n\n", Some("\n\n")), ["a\n\n"]);
        let mark = Some("<|endoftext|>");
        assert_eq!(split(" a b \n<|endoftext|>\nc<|endoftext|><|endoftext|>\n", mark), ["a b", "c"]);
        assert_eq!(split("\u{feff}a", None), ["a"]);
        assert!(split("", None).is_empty() && split("", mark).is_empty());
    }

    /// Long documents, with separators across the ends of blocks.
    #[test]
    fn pieces_make_up_the_documents_whatever_the_blocks() {
        let long: String =
            (0..15_000).map(|i| format!("word{i}  é{}", if i % 9 == 0 { "\n" } else { " " })).collect();
        for pad in 0..16 {
            let first = "x".repeat(PIECE_BYTES - pad);
            let second = long.trim_end();
            let text = format!("{first}<|endoftext|>\n{second}\n<|endoftext|>{first} z");
            let pieces = text_pieces(text.as_bytes(), Some("<|endoftext|>")).unwrap();
            assert!(documents(&pieces) == [first.as_str(), second, &format!("{first} z")], "pad {pad}");
            assert!(pieces.len() > 4 && pieces.iter().all(|p| p.text.len() < 3 * PIECE_BYTES));
        }
        let pieces = text_pieces(long.as_bytes(), None).unwrap();
        assert!(pieces.len() >= 3);
        let tokens: Vec<u16> = pieces.iter().flat_map(|p| encode_ordinary(&p.text)).collect();
        assert!(tokens == encode_ordinary(&long));
    }

    #[test]
    fn cuts_do_not_change_tokens() {
        let text = "it's  a \u{3000} test\n\n\n of 12 34,, cuts\u{a0} \t\n'll they'll <|x|>  end  ";
        let whole = encode_ordinary(text);
        let mut cuts = 0;
        let mut end = text.len();
        while let Some(cut) = last_cut(&text[..end], 0) {
            assert_eq!(
                [encode_ordinary(&text[..cut]), encode_ordinary(&text[cut..])].concat(),
                whole,
                "at {cut}"
            );
            (end, cuts) = (cut, cuts + 1);
        }
        assert_eq!(cuts, 10);
        assert_eq!(last_cut("nospace", 0), None);
        assert_eq!(last_cut("  ", 0), None);
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_place() {
        let refuse = |text: &[u8]| text_pieces(text, None).unwrap_err().to_string();
        assert!(refuse(b"abc\xffdef").contains("a.txt: byte 3 is not UTF-8"));
        assert!(refuse(b"abc\xe4\xbd").contains("byte 3"));
        let mut long = "é ".repeat(PIECE_BYTES).into_bytes();
        long.push(0x80);
        assert!(refuse(&long).contains(&format!("byte {}", 3 * PIECE_BYTES)));
        let endless = vec![b'a'; UNCUTTABLE_BYTES + 1];
        let error = text_pieces(&endless, None).unwrap_err();
        assert!(format!("{error:#}").contains("a.txt: 16 MiB without white space"), "{error:#}");
    }

    #[test]
    fn json_lines_are_documents() {
        let text =
            "{\"text\": \"a\\n\\u00e9\", \"id\": 1}\n\n{\"text\": \"\"}\r\n{\"text\": \"<|endoftext|>\"}";
        assert_eq!(documents(&json_lines(text, "text").unwrap()), ["a\né", "<|endoftext|>"]);
        assert_eq!(documents(&json_lines("{\"story\": \"b\"}\n", "story").unwrap()), ["b"]);
    }

    #[test]
    fn bad_json_lines_are_refused_with_their_place() {
        let refuse = |line: &str| {
            let error =
                json_lines(&format!("{{\"text\": \"good\"}}\n{line}\n"), "text").unwrap_err().to_string();
            assert!(error.contains("a.jsonl:2: ") && !error.contains('\n'), "{error}");
            error
        };
        assert!(refuse("{\"text\": ").contains("not JSON"));
        assert!(refuse("{\"body\": \"x\"}").contains("no field \"text\""));
        assert!(refuse("[\"text\"]").contains("no field"));
        assert!(refuse("{\"text\": 5}").contains("not a string"));
        assert!(refuse("{\"text\": \"\\ud800\"}").contains("not JSON"));
        let format = Format { split_on: None, json_field: "text".to_owned() };
        assert!(read_json_lines(&b"{\"text\": \"\xff\"}"[..], "a", &format, &mut |_| Ok(())).is_err());
    }
}
