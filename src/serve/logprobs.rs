//! Log-probabilities of tokens.

/// A token with what the model thought of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    pub token: u32,
    /// `None` for the first token of a prompt, which follows nothing.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place, the best first.
    pub top: Vec<(u32, f32)>,
}

impl TokenInfo {
    pub fn unknown(token: u32) -> Self {
        TokenInfo { token, logprob: None, top: Vec::new() }
    }
}

/// The log-probability of `token`, and those of the `top` most likely tokens, by the V logits that
/// the model gave: before temperature, penalties and filters.
pub fn token_info(logits: &[f32], token: u32, top: usize) -> TokenInfo {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let logprob = |token: u32| (f64::from(logits[token as usize] - max) - sum.ln()) as f32;
    let mut best: Vec<u32> = Vec::with_capacity(top + 1);
    for (token, logit) in (0u32..).zip(logits) {
        // The first of equals comes first.
        let place = best.partition_point(|&other| logits[other as usize] >= *logit);
        if place < top {
            best.truncate(top - 1);
            best.insert(place, token);
        }
    }
    TokenInfo {
        token,
        logprob: Some(logprob(token)),
        top: best.into_iter().map(|token| (token, logprob(token))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_best_come_first() {
        let logits = [0.5, 3.0, -2.0, 3.0, 90.0f32.ln()];
        let all = token_info(&logits, 2, 9);
        assert_eq!(all.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [4, 1, 3, 0, 2]);
        let total: f32 = all.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((total - 1.0).abs() <= 1e-6, "{total}");
        assert_eq!(all.logprob, Some(all.top[4].1));
        let two = token_info(&logits, 1, 2);
        assert_eq!((two.top.as_slice(), two.logprob), (&all.top[..2], Some(all.top[1].1)));
        assert_eq!(token_info(&logits, 1, 0), TokenInfo { top: vec![], ..two });
    }
}
