//! Text to words, which byte-pair encoding then takes one by one: the patterns of GPT-2 and of
//! GPT-4 and Llama 3, by hand. A regular expression takes most of the time of an encoder.

use super::Cuts;
use regex_syntax::hir::{Class, ClassUnicode, HirKind};
use std::sync::LazyLock;

/// A way to cut text into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// GPT-4's (`cl100k_base`), with words of at most this many digits: 3 in GPT-4 and Llama 3, 1
    /// in Qwen 2. [`Self::regex`] has it.
    Digits(u8),
}

impl Pattern {
    /// Recognizes the regular expression of a `tokenizer.json`.
    pub fn of_regex(regex: &str) -> Option<Pattern> {
        const OTHER_GPT2: &str =
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        if regex == OTHER_GPT2 {
            return Some(Pattern::Gpt2);
        }
        [Pattern::Gpt2, Pattern::Digits(3), Pattern::Digits(1)]
            .into_iter()
            .find(|known| known.regex() == regex)
    }

    /// The regular expression of the words.
    pub fn regex(self) -> String {
        let digits = match self {
            Pattern::Gpt2 => {
                return r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".to_owned();
            }
            Pattern::Digits(1) => r"\p{N}".to_owned(),
            Pattern::Digits(most) => format!(r"\p{{N}}{{1,{most}}}"),
        };
        let start = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
        let rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        format!("{start}{digits}{rest}")
    }

    /// The name, by which a digest tells patterns apart.
    pub fn name(self) -> String {
        match self {
            Pattern::Gpt2 => "gpt2".to_owned(),
            Pattern::Digits(most) => format!("digits {most}"),
        }
    }

    /// The places where a text may be cut so that its words stay the same.
    ///
    /// No word has white space after other characters, but for line breaks after punctuation in all
    /// patterns except GPT-2's. So a word ends there, and nothing in the patterns looks back.
    pub fn cuts(self) -> Cuts {
        match self {
            Pattern::Gpt2 => Cuts::SpaceOrLine,
            Pattern::Digits(_) => Cuts::Space,
        }
    }

    /// Returns the words of `text`, which together are all of it.
    pub fn words(self, text: &str) -> Words<'_> {
        Words { rest: text, pattern: self, classes: &CLASSES }
    }
}

/// The kind of a character, as far as patterns tell kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Letter,
    Number,
    Space,
    Other,
}

/// The kind of every character.
struct Classes {
    ascii: [Kind; 128],
    /// By code point, up to the last letter, number or space.
    all: Vec<Kind>,
}

/// The characters of a class of regular expressions, such as `\p{L}`; `None` if it is not one.
pub fn characters_of(class: &str) -> Option<ClassUnicode> {
    match regex_syntax::parse(class).ok()?.into_kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        _ => None,
    }
}

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut all = Vec::new();
    for (class, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
        for range in characters_of(class).expect("a class of characters").iter() {
            let [start, end] = [range.start(), range.end()].map(|c| c as usize);
            if all.len() <= end {
                all.resize(end + 1, Kind::Other);
            }
            all[start..=end].fill(kind);
        }
    }
    Classes { ascii: std::array::from_fn(|i| all[i]), all }
});

impl Classes {
    /// The kind of the first character of `text`, and its length in bytes; `None` if there is none.
    #[inline]
    fn first(&self, text: &[u8]) -> Option<(Kind, usize)> {
        let &first = text.first()?;
        if let Some(&kind) = self.ascii.get(usize::from(first)) {
            return Some((kind, 1));
        }
        // The bytes are valid UTF-8: they come from a str and are cut between characters.
        let (len, start) = match first {
            ..0xe0 => (2, u32::from(first & 0x1f)),
            0xe0..0xf0 => (3, u32::from(first & 0x0f)),
            _ => (4, u32::from(first & 0x07)),
        };
        let point = text[1..len].iter().fold(start, |point, byte| point << 6 | u32::from(byte & 0x3f));
        Some((self.all.get(point as usize).copied().unwrap_or(Kind::Other), len))
    }

    /// Bytes of the characters of one kind at the start of `text`.
    #[inline]
    fn run(&self, text: &[u8], kind: Kind) -> usize {
        let mut end = 0;
        while let Some((_, len)) = self.first(&text[end..]).filter(|first| first.0 == kind) {
            end += len;
        }
        end
    }
}

/// The words of a text.
pub struct Words<'a> {
    rest: &'a str,
    pattern: Pattern,
    classes: &'static Classes,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        let first = self.classes.first(self.rest.as_bytes())?;
        let len = match self.pattern {
            Pattern::Gpt2 => self.gpt2(first),
            Pattern::Digits(most) => self.digits(first, most),
        };
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(word)
    }
}

impl Words<'_> {
    fn gpt2(&self, (kind, len): (Kind, usize)) -> usize {
        let text = self.rest.as_bytes();
        if text[0] == b'\'' {
            match text[1..] {
                [b's' | b'd' | b'm' | b't', ..] => return 2,
                [b'l', b'l', ..] | [b'v' | b'r', b'e', ..] => return 3,
                _ => {}
            }
        }
        let (start, kind) = match text[0] {
            // A space belongs to the word after it.
            b' ' => (1, self.classes.first(&text[1..]).map_or(Kind::Space, |first| first.0)),
            _ => (len, kind),
        };
        match kind {
            Kind::Space => self.space(),
            _ => start + self.classes.run(&text[start..], kind),
        }
    }

    fn digits(&self, (kind, len): (Kind, usize), most: u8) -> usize {
        let (text, classes) = (self.rest.as_bytes(), self.classes);
        if let Some(contraction) = contraction(text) {
            return contraction;
        }
        let next = || classes.first(&text[len..]).map(|first| first.0);
        let others = |start: usize| {
            let end = start + classes.run(&text[start..], Kind::Other);
            end + text[end..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
        };
        match kind {
            Kind::Letter => len + classes.run(&text[len..], Kind::Letter),
            Kind::Number => self.number(most),
            _ if !matches!(text[0], b'\r' | b'\n') && next() == Some(Kind::Letter) => {
                len + classes.run(&text[len..], Kind::Letter)
            }
            Kind::Other => others(0),
            Kind::Space if text[0] == b' ' && next() == Some(Kind::Other) => others(1),
            Kind::Space => {
                let run = &text[..classes.run(text, Kind::Space)];
                let line_end = run.iter().rposition(|byte| matches!(byte, b'\r' | b'\n'));
                line_end.map_or_else(|| self.space(), |at| at + 1)
            }
        }
    }

    /// The length of up to `most` digits.
    fn number(&self, most: u8) -> usize {
        let (text, mut end) = (self.rest.as_bytes(), 0);
        for _ in 0..most {
            match self.classes.first(&text[end..]) {
                Some((Kind::Number, len)) => end += len,
                _ => break,
            }
        }
        end
    }

    /// The length of white space, `\s+(?!\S)|\s+`: the last character is left for the word that
    /// follows, unless it is the only one.
    fn space(&self) -> usize {
        let run = self.classes.run(self.rest.as_bytes(), Kind::Space);
        if run == self.rest.len() {
            return run;
        }
        let last = self.rest[..run].chars().next_back().map_or(0, char::len_utf8);
        if last < run { run - last } else { run }
    }
}

/// The length of `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at the start of a text. To a regular expression
/// without case, ſ (U+017F) is an s.
fn contraction(text: &[u8]) -> Option<usize> {
    let rest = text.strip_prefix(b"'")?;
    match [rest.first().unwrap_or(&0) | 0x20, rest.get(1).unwrap_or(&0) | 0x20] {
        [b's' | b't' | b'm' | b'd', _] => Some(2),
        [b'r' | b'v', b'e'] | [b'l', b'l'] => Some(3),
        _ if rest.starts_with("ſ".as_bytes()) => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::tokenizer::pattern::Pattern as _;
    use tokenizers::utils::SysRegex;

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const GPT4: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn check(regex: &str, text: &str) {
        static REGEXES: LazyLock<[(Pattern, SysRegex); 3]> = LazyLock::new(|| {
            [GPT2.to_owned(), GPT4.to_owned(), GPT4.replace("{1,3}", "")].map(|regex| {
                (Pattern::of_regex(&regex).expect("a known pattern"), SysRegex::new(&regex).unwrap())
            })
        });
        let pattern = Pattern::of_regex(regex).unwrap();
        let (_, regex) = REGEXES.iter().find(|known| known.0 == pattern).unwrap();
        let expected: Vec<&str> =
            regex.find_matches(text).unwrap().iter().map(|&((start, end), _)| &text[start..end]).collect();
        assert_eq!(pattern.words(text).collect::<Vec<_>>(), expected, "{text:?}");
    }

    fn check_all(text: &str) {
        // The regular expressions find one empty word in an empty text.
        for regex in [GPT2, GPT4, &GPT4.replace("{1,3}", "")].iter().filter(|_| !text.is_empty()) {
            check(regex, text);
        }
    }

    #[test]
    fn words_are_those_of_the_regular_expressions() {
        for text in [
            "Hello, I'm  a language model,\n\n they'Ve 12345 can't DON'T 'ſ x'ſa",
            "  two  spaces,\n\n\ttabs \r\n\r\n and!\n\n!! \n 1234567 they've\u{a0}\u{a0}x \u{3000}",
            "naïve café — 你好 🦀 \u{1f469}\u{200d}\u{1f680} ½ Ⅷ ٣٤٥٦ a\u{301}b",
            " 'll 'LL ''s '",
            "'",
            " ",
            "",
            "\n",
            "a\n",
            "\u{85}\u{2028}x",
            "!\r\n\r\n x",
        ] {
            check_all(text);
        }
    }

    #[test]
    fn every_character_has_its_kind() {
        for point in (0..0x0011_0000).filter_map(char::from_u32) {
            let text = format!("a{point}1 {point}");
            let letters = Pattern::Gpt2.words(&text).next().unwrap();
            assert_eq!(letters.len() > 1, CLASSES.first(&text.as_bytes()[1..]).unwrap().0 == Kind::Letter);
        }
        let sample: String = (0..0x0011_0000).step_by(7).filter_map(char::from_u32).collect();
        check_all(&sample);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn random_text_gives_the_same_words(text in "([ \\t\\r\\n'a-zA-Z0-9.,!ſéα你٣Ⅷ\u{a0}\u{3000}\u{301}🦀]|'re|'LL|\\PC){0,40}") {
            check_all(&text);
        }
    }
}
