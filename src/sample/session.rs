//! Answers in a conversation, of which the decoder remembers what it has read.

use super::Sampler;
use crate::model::decode::Decoder;
use crate::model::hooks::NoHooks;
use crate::ops::Ops;
use anyhow::{Result, ensure};
use std::ops::ControlFlow;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model produced the end-of-text token, which is not passed on.
    EndOfText,
    /// It produced the requested number of tokens.
    Length,
    /// There is no room for another token.
    Full,
    /// The caller ended it.
    Stopped,
}

/// A decoder and the tokens in its cache.
pub struct Session {
    decoder: Decoder,
    cached: Vec<u32>,
}

impl Session {
    pub fn new(decoder: Decoder) -> Self {
        Session { decoder, cached: Vec::new() }
    }

    /// The number of tokens that there is room for.
    pub fn context(&self) -> usize {
        self.decoder.context()
    }

    /// Continues `tokens` by at most `max_new`, up to `eot`, and passes each to `on_token` as soon
    /// as it is known. `goes_on` is asked before each token.
    ///
    /// Tokens at the start that are those of the last call, or that it produced, are in the cache
    /// and not run again.
    ///
    /// # Errors
    /// If a token is not in the model's vocabulary, the model is broken (see [`Sampler::pick`]), or
    /// `on_token` fails.
    ///
    /// # Panics
    /// If there are no tokens or more than [`Self::context`].
    pub fn answer(
        &mut self,
        dev: &mut dyn Ops,
        sampler: &mut Sampler,
        tokens: &[u32],
        (eot, max_new): (u32, usize),
        goes_on: &dyn Fn() -> bool,
        on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<()>>,
    ) -> Result<Ending> {
        let V = self.decoder.V();
        let outside = tokens.iter().find(|&&token| token as usize >= V);
        ensure!(
            outside.is_none(),
            "the text has token {outside:?}, but the model knows {V} tokens; was it trained with another tokenizer?"
        );
        let Some(mut logits) = self.read(dev, tokens, goes_on)? else { return Ok(Ending::Stopped) };
        for written in 1.. {
            if !goes_on() {
                return Ok(Ending::Stopped);
            }
            let token = sampler.pick(&logits)?;
            if token == eot {
                return Ok(Ending::EndOfText);
            }
            if on_token(token)?.is_break() {
                return Ok(Ending::Stopped);
            }
            if written == max_new {
                break;
            }
            if self.cached.len() == self.context() {
                return Ok(Ending::Full);
            }
            logits = self.step(dev, token)?;
        }
        Ok(Ending::Length)
    }

    /// Reads tokens, and returns the logits after the last one; `None` if it was stopped.
    fn read(
        &mut self,
        dev: &mut dyn Ops,
        tokens: &[u32],
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let same = self.cached.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // The last token is run in any case, for its logits.
        let kept = same.min(tokens.len() - 1);
        // A pass over all tokens multiplies faster than steps, and has at most twice as many here.
        if kept * 2 < tokens.len() {
            self.cached.clear();
            let all: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
            let logits = self.decoder.prefill(dev, &mut NoHooks, &all)?;
            self.cached.extend(tokens);
            return Ok(Some(logits));
        }
        self.decoder.rewind(kept);
        self.cached.truncate(kept);
        let mut logits = None;
        for &token in &tokens[kept..] {
            if !goes_on() {
                return Ok(None);
            }
            logits = Some(self.step(dev, token)?);
        }
        Ok(logits)
    }

    fn step(&mut self, dev: &mut dyn Ops, token: u32) -> Result<Vec<f32>> {
        let logits = self.decoder.step(dev, &mut NoHooks, token.cast_signed())?;
        self.cached.push(token);
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::super::SamplerOptions;
    use super::*;
    use crate::config::ModelConfig;
    use crate::device::cpu::Cpu;
    use crate::eval::testing::{cpu, randomize};
    use crate::model::Weights;
    use crate::params::frozen::Frozen;
    use crate::sharding::Sharding;
    use crate::tensor::{Dtype, MemoryPlan};

    /// In the vocabulary of none.
    const NEVER: u32 = u32::MAX;
    const CONTEXT: usize = 32;

    fn session() -> (Cpu, Session) {
        let config =
            ModelConfig { maxT: CONTEXT, V: 96, Vp: 128, L: 2, NH: 2, C: 32, qkv_bias: true, lora: None };
        let mut plan = MemoryPlan::new();
        let weights = Weights::plan(&config, Dtype::F32, Sharding::NONE, &Frozen::default(), &mut plan);
        let decoder = Decoder::plan(&weights, CONTEXT, &mut plan);
        let mut dev = cpu(&plan);
        randomize(&mut dev, &weights, 7);
        (dev, Session::new(decoder))
    }

    fn sampler() -> Sampler {
        Sampler::new(SamplerOptions { temperature: 0.0, ..SamplerOptions::default() }).unwrap()
    }

    fn answer(dev: &mut Cpu, session: &mut Session, tokens: &[u32], max_new: usize) -> (Vec<u32>, Ending) {
        let mut written = Vec::new();
        let mut keep = |token| {
            written.push(token);
            Ok(ControlFlow::Continue(()))
        };
        let ending =
            session.answer(dev, &mut sampler(), tokens, (NEVER, max_new), &|| true, &mut keep).unwrap();
        (written, ending)
    }

    /// Whatever was read before, an answer is that of a decoder that starts anew.
    #[test]
    fn what_was_read_is_not_run_again_and_changes_nothing() {
        let (mut dev, mut session) = session();
        let mut talk: Vec<u32> = vec![3, 1, 4, 1, 5];
        for turn in 0..3u32 {
            let (written, ending) = answer(&mut dev, &mut session, &talk, 4);
            let (mut other_dev, mut other) = self::session();
            assert_eq!(answer(&mut other_dev, &mut other, &talk, 4), (written.clone(), ending));
            talk.extend(&written);
            talk.extend([turn + 7, 95]);
            let before = session.cached.clone();
            session.read(&mut dev, &talk, &|| true).unwrap();
            assert!(talk.starts_with(&before) && session.cached == talk);
        }
        // The start is another one, or a part of the end is.
        for changed in [0, talk.len() - 2] {
            talk[changed] ^= 1;
            let (mut other_dev, mut other) = self::session();
            let expected = other.read(&mut other_dev, &talk, &|| true).unwrap().unwrap();
            let found = session.read(&mut dev, &talk, &|| true).unwrap().unwrap();
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-4));
            assert_eq!(session.cached, talk);
        }
        let again = session.read(&mut dev, &talk, &|| true).unwrap().unwrap();
        assert!(again.iter().all(|logit| logit.is_finite()), "the same tokens once more");
    }

    #[test]
    fn an_answer_ends_where_it_must() {
        let (mut dev, mut session) = session();
        let long: Vec<u32> = (0..30).collect();
        assert_eq!(answer(&mut dev, &mut session, &long, 100).1, Ending::Full);
        assert_eq!(answer(&mut dev, &mut session, &long, 2).1, Ending::Length);
        let first = answer(&mut dev, &mut session, &long, 1).0[0];
        let mut none = |token| anyhow::bail!("wrote {token}");
        let mut run = |goes_on: &dyn Fn() -> bool, eot: u32| {
            session.answer(&mut dev, &mut sampler(), &long, (eot, 9), goes_on, &mut none)
        };
        assert_eq!(run(&|| true, first).unwrap(), Ending::EndOfText);
        assert_eq!(run(&|| false, NEVER).unwrap(), Ending::Stopped);
        let error = run(&|| true, NEVER).unwrap_err().to_string();
        assert_eq!(error, format!("wrote {first}"));
        let mut stop = |_| Ok(ControlFlow::Break(()));
        let ending =
            session.answer(&mut dev, &mut sampler(), &long, (NEVER, 9), &|| true, &mut stop).unwrap();
        assert_eq!(ending, Ending::Stopped);
        let error = session.answer(&mut dev, &mut sampler(), &[96], (NEVER, 9), &|| true, &mut stop);
        assert!(error.unwrap_err().to_string().contains("the text has token"));
    }
}
