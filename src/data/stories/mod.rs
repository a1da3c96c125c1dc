//! A built-in corpus: short children's stories, in any number, from a seed.
//!
//! Small models cannot learn the web, but they can learn to tell a small story well. This module
//! writes such stories from a grammar (`text/`), so that a first training run needs no download.
//! Every story is a function of `(seed, index)` alone: the corpus is the same on every platform,
//! and any thread can make any part of it.
//!
//! Held-out loss on it is meaningful: a story picks its hero, friend, place, object and problem
//! independently and refers back to them to the end (names, pronouns, colors, the one helper who
//! can solve this problem), so a model must track the story rather than remember it. There are far
//! more stories than anyone can generate.

mod expand;
mod grammar;
#[cfg(test)]
mod tests;

use expand::Teller;
use grammar::Grammar;
use std::sync::LazyLock;

/// Every story has between `MIN_WORDS` and `MAX_WORDS` words.
pub const MIN_WORDS: usize = 120;
/// See [`MIN_WORDS`].
pub const MAX_WORDS: usize = 250;

/// The grammar is part of the program, so a mistake in it is a bug and panics. The tests walk all
/// of it.
static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    Grammar::parse(&[
        include_str!("text/people.txt"),
        include_str!("text/things.txt"),
        include_str!("text/phrases.txt"),
        include_str!("text/plots_outdoors.txt"),
        include_str!("text/plots_home.txt"),
        include_str!("text/plots_friends.txt"),
        include_str!("text/plots_growing.txt"),
    ])
    .unwrap_or_else(|e| panic!("built-in story grammar: {e}"))
});

/// An endless sequence of the stories of one seed.
#[derive(Clone, Debug)]
pub struct StoryGenerator {
    seed: u64,
    index: u64,
}

impl StoryGenerator {
    /// Starts at story 0 of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, index: 0 }
    }

    /// Returns the next story: [`story`]`(seed, 0)`, then 1, 2, and so on.
    pub fn next_story(&mut self) -> String {
        self.index += 1;
        story(self.seed, self.index - 1)
    }
}

/// Returns story `index` of `seed`: plain ASCII English, paragraphs separated by a blank line, no
/// newline at the end.
pub fn story(seed: u64, index: u64) -> String {
    tell(seed, index).1
}

/// Returns the number of the plot, and the text. The few drafts of the wrong length are discarded
/// and told again.
fn tell(seed: u64, index: u64) -> (usize, String) {
    for draft in 0.. {
        let mut rng = Rng::new(seed, index, draft);
        let plot = rng.below(GRAMMAR.plots.len());
        let text = Teller::new(&GRAMMAR, rng).tell(plot);
        if (MIN_WORDS..=MAX_WORDS).contains(&text.split_ascii_whitespace().count()) {
            return (plot, text);
        }
    }
    unreachable!("some draft has a fitting length")
}

/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
#[derive(Clone, Debug)]
struct Rng(u64);

impl Rng {
    /// Returns the stream for one draft of one story. The three numbers are mixed in one after the
    /// other.
    fn new(seed: u64, index: u64, draft: u64) -> Self {
        let mut state = 0;
        for number in [seed, index, draft] {
            state = Self(state ^ number).next();
        }
        Self(state)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Draws uniformly from `0..n`; the bias of multiply and shift is below n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}
