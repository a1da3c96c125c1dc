//! Picking a token: temperature, then the top-k and top-p filters, then one draw.

use crate::rng::SampleRng;
use anyhow::{Result, bail, ensure};

/// Options for picking the next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Logits are divided by this: below 1 sharpens, above 1 flattens, 0 is greedy.
    pub temperature: f32,
    /// Top-k sampling: only the `k` most likely tokens may be picked.
    pub top_k: Option<usize>,
    /// Nucleus sampling (Holtzman et al. 2020): only the smallest set of most likely tokens with at
    /// least this total probability may be picked. Probabilities are renormalized after `top_k`.
    pub top_p: Option<f32>,
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// The model's own distribution, as in llm.c, which has no such options.
    fn default() -> Self {
        SamplerOptions { temperature: 1.0, top_k: None, top_p: None, seed: 1337 }
    }
}

/// A stream of picks. It has its own random generator, so that sampling does not change training.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: SampleRng,
    /// Kept between picks to avoid allocating for a whole vocabulary each time.
    candidates: Vec<Candidate>,
}

/// A token that may be picked, and its unnormalized probability.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    weight: f64,
}

impl Sampler {
    /// # Errors
    /// If an option is out of its range.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        let SamplerOptions { temperature, top_k, top_p, seed } = options;
        ensure!(
            temperature >= 0.0 && temperature.is_finite(),
            "temperature is {temperature}; expected 0 (always the most likely token) or more, such as 0.8"
        );
        ensure!(top_k != Some(0), "top-k is 0; expected at least 1, or leave it out to allow all tokens");
        if let Some(p) = top_p {
            ensure!(p > 0.0 && p <= 1.0, "top-p is {p}; expected more than 0 and at most 1, such as 0.9");
        }
        // A xorshift generator never leaves state 0, so seed 0 stands for another constant.
        let state = if seed == 0 { 0x9e37_79b9_7f4a_7c15 } else { seed };
        Ok(Sampler { options, rng: SampleRng::new(state), candidates: Vec::new() })
    }

    /// Picks a token given the logits of all V tokens; negative infinity rules a token out.
    ///
    /// # Errors
    /// If no token can be picked, or a logit is NaN or positive infinity: the model is broken, and
    /// any pick would hide that.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        let best = argmax(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best as u32);
        }
        self.weigh(logits, logits[best]);
        if let Some(k) = self.options.top_k {
            self.keep_top_k(k);
        }
        if let Some(p) = self.options.top_p {
            self.keep_top_p(f64::from(p));
        }
        Ok(self.draw())
    }

    /// Fills the candidates, in order of id, with the numerators of the softmax: the largest is 1,
    /// so none overflows.
    fn weigh(&mut self, logits: &[f32], max: f32) {
        let inverse = 1.0 / f64::from(self.options.temperature);
        self.candidates.clear();
        self.candidates.extend((0u32..).zip(logits).map(|(id, &logit)| Candidate {
            id,
            weight: ((f64::from(logit) - f64::from(max)) * inverse).exp(),
        }));
    }

    fn keep_top_k(&mut self, k: usize) {
        if k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, more_likely_first);
            self.candidates.truncate(k);
            self.candidates.sort_unstable_by_key(|c| c.id);
        }
    }

    fn keep_top_p(&mut self, p: f64) {
        if p == 1.0 {
            return;
        }
        let mass = self.total() * p;
        // Candidates below this have less than 1 - p between them, so p is reached without them.
        // Few of a whole vocabulary are left to sort.
        let negligible = self.total() * (1.0 - p) / self.candidates.len() as f64;
        self.candidates.retain(|c| c.weight >= negligible);
        self.candidates.sort_unstable_by(more_likely_first);
        let mut sum = 0.0;
        let reaches = |c: &Candidate| {
            sum += c.weight;
            sum >= mass
        };
        if let Some(last) = self.candidates.iter().position(reaches) {
            self.candidates.truncate(last + 1);
        }
        self.candidates.sort_unstable_by_key(|c| c.id);
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|c| c.weight).sum()
    }

    /// Inverts the cumulative distribution over candidates in order of id, as llm.c does, so
    /// filters that keep everything change no pick.
    fn draw(&mut self) -> u32 {
        let coin = f64::from(self.rng.random_f32()) * self.total();
        let mut sum = 0.0;
        let covers = |c: &&Candidate| {
            sum += c.weight;
            coin < sum
        };
        // The total was summed in the same order, so the last sum equals it and exceeds the coin.
        self.candidates.iter().find(covers).expect("a coin below the total").id
    }
}

/// Orders by decreasing weight, then by increasing id, so that the order is total.
fn more_likely_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// The index of the largest logit, the first of equals.
fn argmax(logits: &[f32]) -> Result<usize> {
    let (mut best, mut max) = (None, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            bail!("cannot sample: the logit of token {id} is {logit}; the model has diverged or is damaged");
        }
        if logit > max {
            (best, max) = (Some(id), logit);
        }
    }
    let Some(best) = best else {
        bail!("cannot sample: none of {} logits is above negative infinity", logits.len());
    };
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of the distribution 0.1, 0.4, 0.05, 0.25, 0.2.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.4, 0.05, 0.25, 0.2].map(|p| p.ln() + 3.0).to_vec()
    }

    /// Compares 20,000 draws with the expected share of each token: Pearson's statistic must stay
    /// below its 99.9th percentile for 4 degrees of freedom.
    fn assert_distribution(options: SamplerOptions, expected: [f64; 5]) {
        let draws = 20_000;
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = [0u32; 5];
        for _ in 0..draws {
            counts[sampler.pick(&logits()).unwrap() as usize] += 1;
        }
        let mut chi2 = 0.0;
        for (count, share) in counts.into_iter().zip(expected) {
            let expected = share * f64::from(draws);
            if share == 0.0 {
                assert_eq!(count, 0, "a token that was filtered out came up: {counts:?}");
            } else {
                chi2 += (f64::from(count) - expected).powi(2) / expected;
            }
        }
        assert!(chi2 < 18.47, "chi2 {chi2}, counts {counts:?}, {options:?}");
    }

    fn options() -> SamplerOptions {
        SamplerOptions { seed: 42, ..SamplerOptions::default() }
    }

    #[test]
    fn plain_sampling_follows_the_softmax() {
        assert_distribution(options(), [0.1, 0.4, 0.05, 0.25, 0.2]);
    }

    #[test]
    fn temperature_raises_probabilities_to_a_power() {
        // At temperature 0.5 they are squared: 0.01, 0.16, 0.0025, 0.0625, 0.04 of 0.275.
        let squared = [0.01, 0.16, 0.0025, 0.0625, 0.04].map(|p| p / 0.275);
        assert_distribution(SamplerOptions { temperature: 0.5, ..options() }, squared);
    }

    #[test]
    fn top_k_keeps_the_k_most_likely() {
        let kept = [0.0, 0.4, 0.0, 0.25, 0.0].map(|p| p / 0.65);
        assert_distribution(SamplerOptions { top_k: Some(2), ..options() }, kept);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses() {
        // 0.4 + 0.25 = 0.65 is short of 0.7, so 0.2 comes in as well.
        let kept = [0.0, 0.4, 0.0, 0.25, 0.2].map(|p| p / 0.85);
        assert_distribution(SamplerOptions { top_p: Some(0.7), ..options() }, kept);
        assert_distribution(SamplerOptions { top_p: Some(0.39), ..options() }, [0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_counts_what_top_k_left() {
        // Among the three kept, 0.4 is 47 % and 0.25 is 29 %: two reach 70 %, where all five would
        // need three.
        let kept = [0.0, 0.4, 0.0, 0.25, 0.0].map(|p| p / 0.65);
        assert_distribution(SamplerOptions { top_k: Some(3), top_p: Some(0.7), ..options() }, kept);
    }

    #[test]
    fn filters_that_keep_everything_change_no_pick() {
        let picks = |options| {
            let mut sampler = Sampler::new(options).unwrap();
            (0..200).map(|_| sampler.pick(&logits()).unwrap()).collect::<Vec<_>>()
        };
        let plain = picks(options());
        assert_eq!(plain, picks(options()), "same seed, same picks");
        assert_eq!(plain, picks(SamplerOptions { top_k: Some(5), top_p: Some(1.0), ..options() }));
        assert_eq!(plain, picks(SamplerOptions { top_k: Some(1000), top_p: Some(0.9999), ..options() }));
        assert_ne!(plain, picks(SamplerOptions { seed: 43, ..options() }));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_whatever_the_seed() {
        for seed in 0..5 {
            let options = SamplerOptions { temperature: 0.0, seed, ..options() };
            assert_eq!(Sampler::new(options).unwrap().pick(&[1.0, 7.0, -3.0, 7.0]).unwrap(), 1);
            let nearly = SamplerOptions { temperature: 1e-30, ..options };
            assert_eq!(Sampler::new(nearly).unwrap().pick(&[1.0, 7.0, -3.0, 6.9]).unwrap(), 1);
            let one = SamplerOptions { temperature: 1.0, top_k: Some(1), ..options };
            assert_eq!(Sampler::new(one).unwrap().pick(&[1.0, 7.0, -3.0, 7.0]).unwrap(), 1);
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_ruled_out_tokens_stay_out() {
        let mut sampler = Sampler::new(options()).unwrap();
        for _ in 0..100 {
            let id = sampler.pick(&[f32::NEG_INFINITY, 3e38, 3e38, f32::NEG_INFINITY]).unwrap();
            assert!(id == 1 || id == 2);
        }
    }

    #[test]
    fn seed_0_is_a_seed_like_any_other() {
        let mut sampler = Sampler::new(SamplerOptions { seed: 0, ..options() }).unwrap();
        let picks: Vec<u32> = (0..50).map(|_| sampler.pick(&[0.0, 0.0]).unwrap()).collect();
        assert!(picks.contains(&0) && picks.contains(&1), "{picks:?}");
    }

    #[test]
    fn a_broken_model_is_an_error() {
        for temperature in [0.0, 1.0] {
            let mut sampler = Sampler::new(SamplerOptions { temperature, ..options() }).unwrap();
            let message = sampler.pick(&[0.0, f32::NAN]).unwrap_err().to_string();
            assert!(message.contains("token 1 is NaN"), "{message}");
            assert!(sampler.pick(&[f32::INFINITY, 0.0]).is_err());
            assert!(sampler.pick(&[f32::NEG_INFINITY; 3]).is_err());
            assert!(sampler.pick(&[]).is_err());
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for (bad, word) in [
            (SamplerOptions { temperature: -1.0, ..options() }, "temperature"),
            (SamplerOptions { temperature: f32::NAN, ..options() }, "temperature"),
            (SamplerOptions { top_k: Some(0), ..options() }, "top-k"),
            (SamplerOptions { top_p: Some(0.0), ..options() }, "top-p"),
            (SamplerOptions { top_p: Some(1.5), ..options() }, "top-p"),
            (SamplerOptions { top_p: Some(f32::NAN), ..options() }, "top-p"),
        ] {
            let message = Sampler::new(bad).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
