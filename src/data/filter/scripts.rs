//! The scripts of a text's letters.

use crate::data::tokenizer::characters_of;
use anyhow::{Context, Result, ensure};

/// The share of letters that must belong to the scripts.
pub const MIN_SHARE: f64 = 0.8;

/// A set of characters: a bit each.
struct Characters(Vec<u64>);

impl Characters {
    /// The characters of a class of regular expressions.
    fn of(class: &str) -> Option<Self> {
        let class = characters_of(class)?;
        let mut bits = vec![0u64; (char::MAX as usize + 1) / 64];
        for range in class.ranges() {
            for c in range.start() as usize..=range.end() as usize {
                bits[c / 64] |= 1 << (c % 64);
            }
        }
        Some(Characters(bits))
    }

    fn has(&self, c: char) -> bool {
        let c = c as usize;
        self.0[c / 64] >> (c % 64) & 1 == 1
    }
}

/// Scripts that text may be written in.
pub(super) struct Scripts {
    wanted: Characters,
    /// Letters that several scripts use.
    common: Characters,
}

impl Scripts {
    /// Takes Unicode's names of scripts: latin, cyrillic, han …
    ///
    /// # Errors
    /// If Unicode has no script of that name.
    pub fn new(names: &[String]) -> Result<Self> {
        for name in names {
            let plain = name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
            ensure!(
                plain && Characters::of(&format!(r"\p{{Script={name}}}")).is_some(),
                "--scripts {name}: expected Unicode's name of a script, such as latin, cyrillic, greek, arabic, \
                 han, hiragana, katakana or hangul"
            );
        }
        let all: String = names.iter().map(|name| format!(r"\p{{Script={name}}}")).collect();
        let known = "checked one by one";
        Ok(Scripts {
            wanted: Characters::of(&format!("[{all}]")).context(known)?,
            common: Characters::of(r"[\p{Script=Common}\p{Script=Inherited}]").context(known)?,
        })
    }

    /// Returns the share of a text's letters that these scripts have; 0 without letters.
    pub fn share(&self, text: &str) -> f64 {
        let (mut letters, mut wanted) = (0u64, 0u64);
        for c in text.chars().filter(|&c| c.is_alphabetic() && !self.common.has(c)) {
            letters += 1;
            wanted += u64::from(self.wanted.has(c));
        }
        wanted as f64 / letters.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_letters_alone() {
        let share = |scripts: &str, text: &str| {
            let names: Vec<String> = scripts.split(',').map(str::to_owned).collect();
            Scripts::new(&names).unwrap().share(text)
        };
        assert_eq!(share("latin", "Été 2024: 100 % — ok!"), 1.0);
        assert_eq!(share("latin", "abc где"), 0.5);
        assert_eq!(share("Latin,Cyrillic", "abc где"), 1.0);
        assert_eq!(share("han,hiragana,katakana", "今日はサーバー"), 1.0);
        assert_eq!((share("latin", "1234"), share("greek", "")), (0.0, 0.0));
        for name in ["latn1", "klingon", "", "a}b", "Latin}"] {
            let error = Scripts::new(&[name.to_owned()]).err().unwrap().to_string();
            assert!(error.starts_with(&format!("--scripts {name}: expected Unicode's name")), "{error}");
        }
    }
}
