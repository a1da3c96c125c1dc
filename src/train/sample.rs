//! Samples between steps: one of the run, as llm.c shows it, or several of each rank, as
//! build-nanogpt does.

use super::Trainer;
use super::stop::{CutShort, Stop, Work};
use crate::cli::flags::trainer::EvalFlags;
use crate::data::tokenizer::{TextStream, Tokenizer};
use crate::model::decode::Decoder;
use crate::model::hooks::LayerHooks;
use crate::ops::Ops;
use crate::parallel::environment::Process;
use crate::replica::Replica;
use crate::report::LogStyle;
use crate::report::console::Console;
use crate::sample::{Continuation, Sampler, SamplerOptions, generate};
use anyhow::Result;
use std::io::Write;

/// llm.c's seed for samples.
const SAMPLE_SEED: u64 = 1337;

/// The samples before a step.
struct Draw<'a> {
    eval: &'a EvalFlags,
    tokenizer: &'a Tokenizer,
    prompt: Vec<u32>,
    step: usize,
}

impl<'a> Draw<'a> {
    fn new(eval: &'a EvalFlags, tokenizer: &'a Tokenizer, step: usize) -> Self {
        let prompt = tokenizer.encode(eval.prompt.as_deref().unwrap_or_default());
        Draw { eval, tokenizer, prompt, step }
    }

    fn prompt_text(&self) -> &'a str {
        self.eval.prompt.as_deref().unwrap_or_default()
    }

    /// Draws the sample with this index among those of all ranks, and passes on its text after the
    /// prompt. Each has its own seed, so that sampling does not change the run, and so that a
    /// sample does not depend on the rank that draws it.
    fn draw(
        &self,
        index: usize,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        decoder: &mut Decoder,
        show: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: self.eval.sample_temperature,
            top_k: (self.eval.sample_top_k > 0).then_some(self.eval.sample_top_k),
            top_p: None,
            seed: SAMPLE_SEED + self.step as u64 + ((index as u64) << 32),
        })?;
        let what = Continuation {
            prompt: &self.prompt,
            eot: self.tokenizer.eot(),
            max_new: self.eval.sample_len,
            kv_cache: true,
        };
        let mut stream = TextStream::new();
        let on_token = &mut |token| {
            show(&stream.push(self.tokenizer.token_bytes(token).unwrap_or_default()));
            Ok(())
        };
        let drawn = generate(dev, hooks, decoder, &mut sampler, what, on_token);
        show(&stream.finish());
        drawn.map(drop)
    }

    /// Draws a sample to its end, and returns it with its prompt.
    fn text(
        &self,
        index: usize,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        decoder: &mut Decoder,
    ) -> Result<String> {
        let mut text = self.prompt_text().to_owned();
        self.draw(index, dev, hooks, decoder, &mut |piece| text.push_str(piece))?;
        Ok(text)
    }
}

/// Ignores that a sample was cut short: its rank alone knows, and the ranks agree to stop before
/// the next step.
fn unless_cut_short(drawn: Result<()>) -> Result<()> {
    drawn.or_else(|error| if error.is::<CutShort>() { Ok(()) } else { Err(error) })
}

impl Trainer {
    /// Prints the samples that are due.
    pub(super) fn sample(&mut self, step: usize) -> Result<()> {
        match (self.eval.samples, self.files.log_style) {
            (None, LogStyle::Llmc) => self.sample_once(step),
            (count, _) => self.sample_on_ranks(step, count.unwrap_or(1)),
        }
    }

    /// Prints a sample of rank 0, token by token.
    fn sample_once(&mut self, step: usize) -> Result<()> {
        let Trainer { replica, data, eval, report, stop, .. } = self;
        let Replica { zero, dev, model, decoder, .. } = replica;
        let Some(decoder) = decoder else { return Ok(()) };
        let draw = Draw::new(eval, data.tokenizer.needed_for("-s", "-s 0")?, step);
        let console = report.console();
        let mut text = draw.prompt_text().to_owned();
        // The prompt is shown with the first token, so that an error is not printed after it.
        let mut begun = false;
        let mut begin = |console: &mut Console<Box<dyn Write>>| {
            if !std::mem::replace(&mut begun, true) {
                console.sample_begin();
                console.sample_piece(draw.prompt_text());
            }
        };
        let drawn = zero.on_rank0(dev.as_mut(), model, |dev, hooks| {
            let show = &mut |piece: &str| {
                begin(console);
                console.sample_piece(piece);
                text.push_str(piece);
            };
            let hooks = &mut stop.alone(Work::Sample, hooks, model);
            draw.draw(0, dev, hooks, decoder, show)
        });
        let is_whole = drawn.is_ok();
        unless_cut_short(drawn)?;
        begin(console);
        console.sample_end();
        if is_whole { report.log_sample(step, 0, &text) } else { Ok(()) }
    }

    /// Prints `count` samples of each rank. Each rank draws its own, or, where parameters are
    /// sharded and each pass is one of all ranks, rank 0 draws those of all.
    fn sample_on_ranks(&mut self, step: usize, count: usize) -> Result<()> {
        let Trainer { replica, data, eval, report, stop, .. } = self;
        let Replica { zero, dev, model, decoder, .. } = replica;
        let Some(decoder) = decoder else { return Ok(()) };
        let stop: &Stop = stop;
        let draw = Draw::new(eval, data.tokenizer.needed_for("-s", "-s 0")?, step);
        let Process { rank, world_size, .. } = zero.peers.process;
        let mut draw_for = |rank: usize, dev: &mut dyn Ops, hooks: &mut dyn LayerHooks| -> Result<()> {
            let hooks = &mut stop.alone(Work::Sample, hooks, model);
            for i in 0..count {
                let text = draw.text(rank * count + i, dev, hooks, decoder)?;
                report.sample(rank, i, &text);
                report.log_sample(step, rank * count + i, &text)?;
            }
            Ok(())
        };
        let drawn = match zero.gathers_params() {
            true => zero.on_rank0(dev.as_mut(), model, |dev, hooks| {
                (0..world_size).try_for_each(|rank| draw_for(rank, dev, hooks))
            }),
            false => draw_for(rank, dev.as_mut(), zero),
        };
        unless_cut_short(drawn)
    }
}
