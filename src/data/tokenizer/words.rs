//! GPT-2's rule for cutting text into words, before merges join the bytes of each.
//!
//! The rule is published as the pattern
//! `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`: a contraction; a run
//! of letters, of digits or of other marks, each with the space before it; or white space, which
//! leaves its last character to what follows. It is written out here because an engine for
//! patterns takes most of the time that a tokenizer needs.

use regex_syntax::hir::{Class, HirKind};
use std::sync::LazyLock;

/// The kinds of characters that the rule tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Other,
    Letter,
    Number,
    Space,
}

/// The kind of every character, as Unicode defines it.
static KINDS: LazyLock<Box<[Kind]>> = LazyLock::new(|| {
    let mut kinds = vec![Kind::Other; char::MAX as usize + 1].into_boxed_slice();
    for (pattern, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
        let class = regex_syntax::parse(pattern).expect("a class of characters");
        let HirKind::Class(Class::Unicode(class)) = class.kind() else {
            unreachable!("{pattern} is a class of characters")
        };
        for range in class.ranges() {
            kinds[range.start() as usize..=range.end() as usize].fill(kind);
        }
    }
    kinds
});

/// Cuts `text` into words, which together are the text.
pub fn words(text: &str) -> Words<'_> {
    Words { rest: text, kinds: &KINDS }
}

/// The words of a text; see [`words`].
pub struct Words<'a> {
    rest: &'a str,
    kinds: &'static [Kind],
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let end = contraction(self.rest.as_bytes()).unwrap_or_else(|| self.run());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(word)
    }
}

impl Words<'_> {
    /// The end of a run of characters of one kind, with the space before it.
    fn run(&self) -> usize {
        let (first, len) = self.at(0);
        let (mut kind, mut end) = (first, len);
        if self.rest.starts_with(' ') && self.rest.len() > 1 {
            let (after, len) = self.at(1);
            if after != Kind::Space {
                (kind, end) = (after, 1 + len);
            }
        }
        // The last character of white space, which belongs to the next word if there is one.
        let mut last = 0;
        while end < self.rest.len() {
            let (next, len) = self.at(end);
            if next != kind {
                return if kind == Kind::Space && last > 0 { last } else { end };
            }
            last = end;
            end += len;
        }
        end
    }

    /// The kind of the character at byte `index`, and its length in bytes.
    #[inline]
    fn at(&self, index: usize) -> (Kind, usize) {
        let byte = self.rest.as_bytes()[index];
        if byte.is_ascii() {
            return (self.kinds[usize::from(byte)], 1);
        }
        let character = self.rest[index..].chars().next().expect("an index of a character");
        (self.kinds[character as usize], character.len_utf8())
    }
}

/// The length of a contraction that `text` starts with: `'s`, `'d`, `'m`, `'t`, `'ll`, `'ve` or
/// `'re`.
fn contraction(text: &[u8]) -> Option<usize> {
    match text {
        [b'\'', b's' | b'd' | b'm' | b't', ..] => Some(2),
        [b'\'', b'l', b'l', ..] | [b'\'', b'v' | b'r', b'e', ..] => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_pattern() {
        for (text, expected) in [
            ("", &[][..]),
            ("Hello, I'm a language model", &["Hello", ",", " I", "'m", " a", " language", " model"]),
            ("they'll've 'S it'", &["they", "'ll", "'ve", " '", "S", " it", "'"]),
            ("a  b", &["a", " ", " b"]),
            ("a \n\n b\n", &["a", " \n\n", " b", "\n"]),
            ("a\n\nb", &["a", "\n", "\n", "b"]),
            ("x   ", &["x", "   "]),
            ("12ab!? ½Ⅻ", &["12", "ab", "!?", " ½Ⅻ"]),
            ("\u{a0}\u{2003}é\u{301}", &["\u{a0}", "\u{2003}", "é", "\u{301}"]),
            (" ", &[" "]),
        ] {
            assert_eq!(words(text).collect::<Vec<_>>(), expected, "{text:?}");
        }
    }
}
