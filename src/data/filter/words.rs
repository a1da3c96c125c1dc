//! Words of a text, as numbers, and runs of words.

/// Iterates over the words of a text with their places: runs of letters and digits. Each character
/// of a script that is written without spaces is a word.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + text[rest..].find(char::is_alphanumeric)?;
        let first = text[start..].chars().next()?;
        let len = match is_unspaced(first) {
            true => first.len_utf8(),
            false => {
                let ends = |c: char| !c.is_alphanumeric() || is_unspaced(c);
                text[start..].find(ends).unwrap_or(text.len() - start)
            }
        };
        rest = start + len;
        Some((start, &text[start..rest]))
    })
}

/// Whether a character belongs to a script whose words are not separated: Thai, Lao, Khmer and
/// Burmese, kana, Han.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

/// The words of a text, in lower case, as numbers.
pub(super) fn hashed_words(text: &str) -> Vec<u64> {
    words(text).map(|(_, word)| hash_lower(word)).collect()
}

/// FNV-1a of a text in lower case.
fn hash_lower(word: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let start = 0xcbf2_9ce4_8422_2325;
    if word.is_ascii() {
        return word.bytes().map(|byte| byte.to_ascii_lowercase()).fold(start, step);
    }
    let mut buffer = [0; 4];
    word.chars()
        .flat_map(char::to_lowercase)
        .fold(start, |hash, c| c.encode_utf8(&mut buffer).bytes().fold(hash, step))
}

/// Every run of `n` words, as a number. A text of fewer words is one run.
pub(super) fn runs(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    let n = n.min(words.len()).max(1);
    words.windows(n).map(|run| mix(run.iter().fold(0u64, |hash, &word| (hash ^ word).wrapping_mul(ODD))))
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads the bits of a number: the finalizer of SplitMix64.
pub(in crate::data) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(ODD);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let found: Vec<&str> = words("  It's 12 o'clock, naïve—ÉTÉ! 你好 abc犬x").map(|(_, w)| w).collect();
        assert_eq!(found, ["It", "s", "12", "o", "clock", "naïve", "ÉTÉ", "你", "好", "abc", "犬", "x"]);
        assert_eq!(words(" one").next(), Some((1, "one")));
        assert_eq!(words("...").count(), 0);
        assert_eq!(hashed_words("It WAS Été"), hashed_words("it, was: éTÉ"));
        assert_ne!(hashed_words("a b"), hashed_words("b a"));
    }

    #[test]
    fn runs_depend_on_all_their_words_in_order() {
        let of = |text: &str, n| runs(&hashed_words(text), n).collect::<Vec<_>>();
        assert_eq!(of("a b c d", 3).len(), 2);
        assert_eq!(of("a b c d", 3)[1], of("b c d", 3)[0]);
        assert_ne!(of("a b c", 3), of("b a c", 3));
        assert_eq!((of("a b", 3).len(), of("", 3).len()), (1, 0));
    }
}
