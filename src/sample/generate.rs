//! Continuing a prompt, token by token.

use super::Sampler;
use crate::model::decode::Decoder;
use crate::model::hooks::LayerHooks;
use crate::ops::Ops;
use anyhow::{Result, ensure};

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model produced the end-of-text token, which is not passed on.
    EndOfText,
    /// It produced the requested number of tokens.
    Length,
}

/// The text to continue, and the options of the continuation.
#[derive(Clone, Copy, Debug)]
pub struct Continuation<'a> {
    pub prompt: &'a [u32],
    /// The token that separates documents: it starts and ends a text.
    pub eot: u32,
    /// The most tokens to produce.
    pub max_new: usize,
    /// Whether to cache keys and values; without the cache each token costs a pass over all tokens.
    pub kv_cache: bool,
}

/// Continues `prompt` by at most `max_new` tokens and passes each to `on_token` as soon as it is
/// known.
///
/// An empty prompt stands for the end-of-text token, after which a text begins. If the prompt is
/// longer than [`Decoder::context`], only the end of it that fits is read; programs should tell
/// their user so.
///
/// With `kv_cache` each token costs one row of work. Without, all tokens before it are recomputed:
/// slow, and useful only to check the cache. Both see the same window of tokens, so they differ by
/// rounding alone.
///
/// When the context is full, its first half is dropped and the rest is run again. GPT-2 has a
/// learned embedding per absolute position, so keys and values change when a token moves: the cache
/// cannot slide by one, and moving by half a context makes re-runs rare.
///
/// # Errors
/// If a token of the prompt is not in the model's vocabulary, the model is broken (see
/// [`Sampler::pick`]), or `on_token` fails.
pub fn generate(
    dev: &mut dyn Ops,
    hooks: &mut dyn LayerHooks,
    decoder: &mut Decoder,
    sampler: &mut Sampler,
    Continuation { prompt, eot, max_new, kv_cache }: Continuation,
    on_token: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Finish> {
    let (context, V) = (decoder.context(), decoder.V());
    let prompt = if prompt.is_empty() { &[eot][..] } else { prompt };
    for &token in prompt {
        ensure!(
            (token as usize) < V,
            "the prompt has token {token}, but the model knows {V} tokens; was it trained with another tokenizer?"
        );
    }
    if max_new == 0 {
        return Ok(Finish::Length);
    }
    let read = &prompt[prompt.len().saturating_sub(context)..];
    let mut window: Vec<i32> = read.iter().map(|&token| token.cast_signed()).collect();
    let mut logits = decoder.prefill(dev, hooks, &window)?;
    for written in 1.. {
        let token = sampler.pick(&logits)?;
        if token == eot {
            return Ok(Finish::EndOfText);
        }
        on_token(token)?;
        if written == max_new {
            break;
        }
        window.push(token as i32);
        let full = window.len() > context;
        if full {
            window.drain(..window.len() - (context / 2).max(1));
        }
        logits = match kv_cache && !full {
            true => decoder.step(dev, hooks, token as i32)?,
            false => decoder.prefill(dev, hooks, &window)?,
        };
    }
    Ok(Finish::Length)
}

#[cfg(test)]
mod tests {
    use super::super::SamplerOptions;
    use super::*;
    use crate::config::ModelConfig;
    use crate::device::cpu::Cpu;
    use crate::eval::testing::{cpu, randomize};
    use crate::model::Weights;
    use crate::model::hooks::NoHooks;
    use crate::params::Param;
    use crate::params::frozen::Frozen;
    use crate::sharding::Sharding;
    use crate::tensor::{Dtype, MemoryPlan};

    const CONTEXT: usize = 32;
    const EOT: u32 = 50256;

    fn tiny() -> (Cpu, Decoder) {
        let config =
            ModelConfig { maxT: CONTEXT, V: 96, Vp: 128, L: 2, NH: 2, C: 32, qkv_bias: true, lora: None };
        let (dev, decoder, _) = with_config(&config, CONTEXT);
        (dev, decoder)
    }

    fn with_config(config: &ModelConfig, context: usize) -> (Cpu, Decoder, Weights) {
        let mut plan = MemoryPlan::new();
        let weights = Weights::plan(config, Dtype::F32, Sharding::NONE, &Frozen::default(), &mut plan);
        let decoder = Decoder::plan(&weights, context, &mut plan);
        let mut dev = cpu(&plan);
        randomize(&mut dev, &weights, 7);
        (dev, decoder, weights)
    }

    fn up_to(max_new: usize, prompt: &[u32]) -> Continuation<'_> {
        Continuation { prompt, eot: EOT, max_new, kv_cache: true }
    }

    /// The tokens of a continuation, and why it ended.
    fn run(prompt: &[u32], max_new: usize, kv_cache: bool, options: SamplerOptions) -> (Vec<u32>, Finish) {
        let (mut dev, mut decoder) = tiny();
        let mut sampler = Sampler::new(options).unwrap();
        let mut out = Vec::new();
        let mut push = |token| {
            out.push(token);
            Ok(())
        };
        let what = Continuation { prompt, eot: EOT, max_new, kv_cache };
        let finish = generate(&mut dev, &mut NoHooks, &mut decoder, &mut sampler, what, &mut push).unwrap();
        (out, finish)
    }

    #[test]
    fn the_cache_changes_nothing_even_when_the_context_slides() {
        for options in [
            SamplerOptions::default(),
            SamplerOptions { temperature: 0.0, ..SamplerOptions::default() },
            SamplerOptions { temperature: 1.3, top_k: Some(20), top_p: Some(0.9), seed: 5 },
        ] {
            let (cached, finish) = run(&[1, 2, 3], 90, true, options);
            assert_eq!((cached.len(), finish), (90, Finish::Length));
            assert!(cached.iter().all(|&token| token < 96));
            assert_eq!(cached, run(&[1, 2, 3], 90, false, options).0);
        }
    }

    #[test]
    fn steps_give_the_logits_of_a_prefill() {
        let (mut dev, mut decoder) = tiny();
        let tokens: Vec<i32> = (0..CONTEXT as i32).map(|i| i * 31 % 96).collect();
        let whole: Vec<Vec<f32>> =
            (1..=CONTEXT).map(|n| decoder.prefill(&mut dev, &mut NoHooks, &tokens[..n]).unwrap()).collect();
        let mut logits = decoder.prefill(&mut dev, &mut NoHooks, &tokens[..3]).unwrap();
        for n in 3..=CONTEXT {
            let spread = whole[n - 1].iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(spread > 0.5, "logits this flat would prove nothing");
            for (a, b) in logits.iter().zip(&whole[n - 1]) {
                assert!((a - b).abs() <= 1e-4, "after {n} tokens: {a} against {b}");
            }
            if n < CONTEXT {
                logits = decoder.step(&mut dev, &mut NoHooks, tokens[n]).unwrap();
            }
        }
    }

    #[test]
    fn long_prompts_lose_their_start() {
        let prompt: Vec<u32> = (0..50).collect();
        let options = SamplerOptions::default();
        assert_eq!(run(&prompt, 10, true, options), run(&prompt[50 - CONTEXT..], 10, true, options));
        assert_ne!(run(&prompt, 10, true, options), run(&prompt[..CONTEXT], 10, true, options));
    }

    #[test]
    fn a_context_of_one_token_is_enough() {
        let config = ModelConfig { maxT: 4, V: 96, Vp: 128, L: 1, NH: 2, C: 8, qkv_bias: true, lora: None };
        let (mut dev, mut decoder, _) = with_config(&config, 1);
        let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
        let mut count = 0;
        let mut on_token = |_| {
            count += 1;
            Ok(())
        };
        generate(&mut dev, &mut NoHooks, &mut decoder, &mut sampler, up_to(5, &[1, 2]), &mut on_token)
            .unwrap();
        assert_eq!(count, 5);
    }

    #[test]
    fn foreign_tokens_and_failing_writers_are_errors() {
        let (mut dev, mut decoder) = tiny();
        let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
        let mut fails = |_| anyhow::bail!("the pipe is closed");
        for (prompt, expected) in [
            (&[96][..], "token 96"),
            (&[u32::MAX], "token 4294967295"),
            (&[], "token 50256"),
            (&[5], "pipe is closed"),
        ] {
            let error =
                generate(&mut dev, &mut NoHooks, &mut decoder, &mut sampler, up_to(3, prompt), &mut fails)
                    .unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn end_of_text_starts_and_ends_a_text() {
        let (mut dev, mut decoder, weights) = with_config(&ModelConfig::new(8, 1, 1, 4), 8);
        // With this final layernorm, logits are the row sums of the embedding, for any input.
        dev.fill(weights.get(Param::Lnfw, 0), 0.0).unwrap();
        dev.fill(weights.get(Param::Lnfb, 0), 1.0).unwrap();
        dev.fill(weights.get(Param::Wte, 0).part(EOT as usize, 4), 50.0).unwrap();
        let mut sampler = Sampler::new(SamplerOptions::default()).unwrap();
        let mut none = |token| anyhow::bail!("wrote {token}");
        let finish =
            generate(&mut dev, &mut NoHooks, &mut decoder, &mut sampler, up_to(3, &[]), &mut none).unwrap();
        assert_eq!((finish, decoder.cached()), (Finish::EndOfText, 1));
    }
}
