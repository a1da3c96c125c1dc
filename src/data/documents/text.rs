//! Reads plain text, and cuts it into documents and pieces.

use super::{Format, Notes, Piece, Split};
use crate::data::tokenizer::{Cuts, EOT_TEXT};
use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// Bytes of a document after which a piece is cut.
pub(super) const PIECE_BYTES: usize = 1 << 16;

/// Bytes without a place to cut after which a file is rejected as not being text.
const UNCUTTABLE_BYTES: usize = 1 << 24;

/// Most bytes of a document that may not be cut: it is held in memory.
const DOCUMENT_BYTES: usize = if cfg!(test) { 1 << 25 } else { 1 << 30 };

/// Reads the text of `name`, whose first `offset` bytes have been read before.
pub(super) fn read_text(
    mut input: impl Read,
    name: &str,
    offset: usize,
    format: &Format,
    notes: &mut Notes,
    sink: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let mut splitter = Splitter::new(&format.split, format.cuts);
    // Bytes not decoded yet, and their offset in the file.
    let mut bytes = Vec::new();
    let mut offset = offset;
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
        if let Some(at) = valid.find('\0') {
            let hint = "leave the file out, or convert it to UTF-8 if it is UTF-16";
            bail!("{name}: byte {} is NUL, which text does not have; {hint}", offset + at);
        }
        notes.crlf |= valid.contains("\r\n");
        splitter.text.push_str(valid);
        let decoded = valid.len();
        bytes.drain(..decoded);
        offset += decoded;
        splitter.split(ended, sink).with_context(|| name.to_owned())?;
        if ended {
            notes.texts += 1;
            notes.separators += splitter.found;
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
    cuts: Cuts,
    /// Whether the text also loses the white space at its very start and end.
    trims_ends: bool,
    /// Separators found so far.
    found: u64,
    /// Text that has arrived and has not been passed on.
    text: String,
    /// `text` has no separator before this index.
    searched: usize,
    /// Whether a piece of the current document has been passed on.
    started: bool,
}

impl<'a> Splitter<'a> {
    fn new(split: &'a Split, cuts: Cuts) -> Self {
        let separator = match split {
            Split::EndOfText => Some(EOT_TEXT),
            Split::On(separator) => Some(separator.as_str()),
            Split::Never => None,
        };
        let is_mark = separator.is_some_and(|s| !s.trim().is_empty());
        // A text without any `<|endoftext|>` stays as it is.
        let trims_ends = is_mark && *split != Split::EndOfText;
        Splitter {
            separator,
            is_mark,
            cuts,
            trims_ends,
            found: 0,
            text: String::new(),
            searched: 0,
            started: false,
        }
    }

    /// Passes on all pieces that are certain; with `ended`, everything.
    fn split(&mut self, ended: bool, sink: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let mut text = std::mem::take(&mut self.text);
        let mut start = 0;
        while let Some((end, next)) = self.find_separator(&text) {
            let end = if self.is_mark { end } else { next };
            self.emit(&text[start..end], self.is_mark, sink)?;
            self.started = false;
            self.found += 1;
            (start, self.searched) = (next, next);
        }
        if ended {
            self.emit(&text[start..], self.trims_ends || self.is_mark && self.found > 0, sink)?;
            start = text.len();
        } else if text.len() - start >= PIECE_BYTES {
            // The last bytes may be the start of a separator.
            let overlap = self.separator.map_or(0, |s| s.len() - 1);
            let from = std::mem::replace(&mut self.searched, floor_char_boundary(&text, overlap).max(start));
            if let Some(cut) = last_cut(&text[..self.searched], from.max(start), self.cuts) {
                self.emit(&text[start..cut], false, sink)?;
                self.started = true;
                start = cut;
            }
            let uncut = text.len() - start;
            ensure!(
                self.cuts == Cuts::Nowhere || uncut < UNCUTTABLE_BYTES,
                "{} MiB without white space between words: not text",
                UNCUTTABLE_BYTES >> 20
            );
            ensure!(
                uncut < DOCUMENT_BYTES,
                "a document of more than {} MiB, which this kind of tokenizer encodes as a whole; \
                 cut it into several documents",
                DOCUMENT_BYTES >> 20
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

    /// Passes on a piece; `trim_end` drops the white space at its end.
    fn emit(&self, text: &str, trim_end: bool, sink: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
        let trim_start = !self.started && (self.trims_ends || self.is_mark && self.found > 0);
        let text = if trim_start { text.trim_start() } else { text };
        let text = if trim_end { text.trim_end() } else { text };
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

/// Finds the last place, from byte `from` on, where cutting the text leaves its tokens unchanged.
fn last_cut(text: &str, from: usize, cuts: Cuts) -> Option<usize> {
    let is_space = |b: &u8| match cuts {
        Cuts::SpaceOrLine => matches!(b, b' ' | b'\n'),
        Cuts::Space => *b == b' ',
        Cuts::Nowhere => false,
    };
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
    use super::super::tests::documents;
    use super::*;
    use crate::data::tokenizer::Tokenizer;

    fn encode_ordinary(text: &str) -> Vec<u32> {
        Tokenizer::gpt2().encode_ordinary(text)
    }

    fn pieces_of(text: &[u8], split: Split) -> Result<(Vec<Piece>, Notes)> {
        let format = Format { split, ..Format::default() };
        let (mut pieces, mut notes) = (Vec::new(), Notes::default());
        read_text(text, "a.txt", 0, &format, &mut notes, &mut |piece| {
            pieces.push(piece);
            Ok(())
        })?;
        Ok((pieces, notes))
    }

    fn text_pieces(text: &[u8], split_on: Option<&str>) -> Result<Vec<Piece>> {
        let split = split_on.map_or(Split::Never, |separator| Split::On(separator.to_owned()));
        Ok(pieces_of(text, split)?.0)
    }

    fn split(text: &str, split_on: Option<&str>) -> Vec<String> {
        documents(&text_pieces(text.as_bytes(), split_on).unwrap())
    }

    /// Splits by default, and counts the separators.
    fn split_by_default(text: &str) -> (Vec<String>, u64) {
        let (pieces, notes) = pieces_of(text.as_bytes(), Split::default()).unwrap();
        (documents(&pieces), notes.separators)
    }

    #[test]
    fn separators_of_white_space_stay_and_marks_go() {
        assert_eq!(split(" a\n\nb\n", None), [" a\n\nb\n"]);
        assert_eq!(split("a\n\nb\n\n\n\nc\n", Some("\n\n")), ["a\n\n", "b\n\n", "\n\n", "c\n"]);
        assert_eq!(split("a\n\n", Some("\n\n")), ["a\n\n"]);
        let mark = Some("<|endoftext|>");
        assert_eq!(split(" a b \n<|endoftext|>\nc<|endoftext|><|endoftext|>\n", mark), ["a b", "c"]);
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
        let tokens: Vec<u32> = pieces.iter().flat_map(|p| encode_ordinary(&p.text)).collect();
        assert!(tokens == encode_ordinary(&long));
    }

    #[test]
    fn text_is_split_at_its_end_of_text_marks_by_default() {
        let e = EOT_TEXT;
        assert_eq!(split_by_default("One.<|endoftext|>Two. <|endoftext|>\n Three\n"), {
            (vec!["One.".into(), "Two.".into(), "Three".into()], 2)
        });
        assert_eq!(split_by_default(&format!("{e}\na{e}{e}\n")), (vec!["a".into()], 3));
        // A text without any stays as it is.
        for text in [" a\n\nb\n", "<|endoftext|", "|endoftext|>", "\n"] {
            assert_eq!(split_by_default(text), (vec![text.into()], 0));
        }
        for pad in 0..16 {
            let first = "x ".repeat(PIECE_BYTES / 2 - 8) + &"y".repeat(pad + 1);
            let found = split_by_default(&format!("{first}{e}z\n{e}{first}"));
            assert!(found == (vec![first.clone(), "z".into(), first.clone()], 2), "pad {pad}");
        }
    }

    #[test]
    fn lines_that_end_in_crlf_are_noted() {
        let notes = |text: &str| pieces_of(text.as_bytes(), Split::On("\n\n".into())).unwrap().1;
        let found = notes("a\r\n\r\nb\r\n");
        assert_eq!((found.crlf, found.separators, found.texts), (true, 0, 1));
        assert_eq!((notes("a\n\nb").crlf, notes("a\n\nb").separators), (false, 1));
    }

    #[test]
    fn cuts_do_not_change_tokens() {
        let text = "it's  a \u{3000} test\n\n\n of 12 34,, cuts\u{a0} \t\n'll they'll <|x|>  end  ";
        let whole = encode_ordinary(text);
        let mut cuts = 0;
        let mut end = text.len();
        while let Some(cut) = last_cut(&text[..end], 0, Cuts::default()) {
            assert_eq!(
                [encode_ordinary(&text[..cut]), encode_ordinary(&text[cut..])].concat(),
                whole,
                "at {cut}"
            );
            (end, cuts) = (cut, cuts + 1);
        }
        assert_eq!(cuts, 10);
        assert_eq!(last_cut("nospace", 0, Cuts::default()), None);
        assert_eq!(last_cut("  ", 0, Cuts::default()), None);
    }

    #[test]
    fn documents_stay_whole_where_cuts_are_not_known() {
        let pieces = |cuts, text: &str| {
            let format = Format { cuts, ..Format::default() };
            let mut pieces = Vec::new();
            read_text(text.as_bytes(), "a.txt", 0, &format, &mut Notes::default(), &mut |piece| {
                pieces.push(piece);
                Ok(())
            })
            .map(|()| pieces)
        };
        let text = "a b.\n".repeat(PIECE_BYTES);
        assert_eq!(pieces(Cuts::Nowhere, &text).unwrap().len(), 1);
        assert!(pieces(Cuts::Space, &text).unwrap().iter().skip(1).all(|piece| piece.text.starts_with(' ')));
        let error = pieces(Cuts::Nowhere, &"a b ".repeat(DOCUMENT_BYTES / 4 + 1)).unwrap_err();
        assert!(format!("{error:#}").contains("a.txt: a document of more than 32 MiB"), "{error:#}");
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_place() {
        let refuse = |text: &[u8]| text_pieces(text, None).unwrap_err().to_string();
        assert!(refuse(b"abc\xffdef").contains("a.txt: byte 3 is not UTF-8"));
        assert!(refuse(b"abc\xe4\xbd").contains("byte 3"));
        let mut long = "é ".repeat(PIECE_BYTES).into_bytes();
        long.push(0x80);
        assert!(refuse(&long).contains(&format!("byte {}", 3 * PIECE_BYTES)));
        assert!(refuse(b"abc\0def").contains("a.txt: byte 3 is NUL, which text does not have"));
        let endless = vec![b'a'; UNCUTTABLE_BYTES + 1];
        let error = text_pieces(&endless, None).unwrap_err();
        assert!(format!("{error:#}").contains("a.txt: 16 MiB without white space"), "{error:#}");
    }
}
