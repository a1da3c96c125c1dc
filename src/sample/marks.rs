//! Text up to a mark that ends it, as its bytes arrive.

use super::Tail;
use crate::data::tokenizer::TextStream;

/// Text up to the first of some marks. What may be the start of one is held back.
pub struct UpToMark {
    stream: TextStream,
    tail: Tail,
    /// Whether a mark has come.
    is_over: bool,
}

impl UpToMark {
    /// `marks` are not empty texts.
    pub fn new(marks: Vec<String>) -> Self {
        UpToMark { stream: TextStream::new(), tail: Tail::new(marks, String::new()), is_over: false }
    }

    /// Takes bytes, and returns the text that is now certain.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let text = self.stream.push(bytes);
        self.take(&text)
    }

    /// Whether a mark has come, after which nothing is taken.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Returns the rest when no more bytes follow.
    pub fn finish(mut self) -> String {
        let rest = std::mem::take(&mut self.stream).finish();
        self.take(&rest) + &self.tail.finish(false)
    }

    fn take(&mut self, text: &str) -> String {
        if self.is_over {
            return String::new();
        }
        let (certain, is_over) = self.tail.push(text);
        self.is_over = is_over;
        certain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(marks: &[&str], texts: &[&str]) -> (Vec<String>, bool, String) {
        let mut text = UpToMark::new(marks.iter().map(|&mark| mark.to_owned()).collect());
        let shown = texts.iter().map(|piece| text.push(piece.as_bytes())).collect();
        (shown, text.is_over(), text.finish())
    }

    #[test]
    fn a_mark_ends_the_text_and_is_never_shown() {
        let (shown, is_over, rest) = pieces(&["User:\n", "</a>"], &["a U", "se", "d <", "/a", "> more", "!"]);
        assert_eq!(shown, ["a ", "", "Used ", "", "", ""]);
        assert_eq!((is_over, rest.as_str()), (true, ""));
        let (shown, is_over, rest) = pieces(&["User:\n"], &["x\nUser:"]);
        assert_eq!((shown.concat().as_str(), is_over, rest.as_str()), ("x\n", false, "User:"));
        let (shown, _, rest) = pieces(&["aab"], &["aaa", "ab", "c"]);
        assert_eq!((shown.concat().as_str(), rest.as_str()), ("aa", ""));
        let (shown, _, rest) = pieces(&[], &["every", "thing"]);
        assert_eq!((shown.concat().as_str(), rest.as_str()), ("everything", ""));
    }

    #[test]
    fn characters_that_arrive_in_parts_are_shown_whole() {
        let mut text = UpToMark::new(vec!["\u{e9}!".to_owned()]);
        assert_eq!(text.push(b"caf\xc3"), "caf");
        assert_eq!(text.push(b"\xa9"), "");
        assert_eq!(text.push(b"? \xc3"), "\u{e9}? ");
        assert_eq!(text.finish(), "\u{fffd}");
    }
}
