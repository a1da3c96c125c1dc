//! The end of a run in a few lines: what it did, its losses, where everything lies, and the
//! commands that one types next.

use super::Trainer;
use crate::gpus::flops_per_token;
use crate::model::BatchShape;
use crate::params::ParamLayout;
use crate::report::throughput::short;
use crate::report::{LOGS, cformat::fixed};
use crate::words::count;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The run so far.
#[derive(Debug)]
pub struct Summary {
    started: Instant,
    in_steps: Duration,
    steps: usize,
    tokens: u64,
    train: Losses,
    validation: Losses,
}

/// The last loss and the lowest, with its number of steps.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    last: Option<f32>,
    lowest: Option<(f32, usize)>,
}

impl Losses {
    fn note(&mut self, steps: usize, loss: f32) {
        self.last = Some(loss);
        if loss.is_finite() && self.lowest.is_none_or(|(lowest, _)| loss < lowest) {
            self.lowest = Some((loss, steps));
        }
    }

    /// `training loss 1.2345 (lowest 1.2300 in step 18)`, if there is one.
    fn shown(&self, name: &str, word: &str) -> Option<String> {
        let last = fixed(self.last?.into(), 4);
        let lowest = self
            .lowest
            .map(|(loss, steps)| format!(" (lowest {} {word} step {steps})", fixed(loss.into(), 4)));
        Some(format!("{name} loss {last}{}", lowest.unwrap_or_default()))
    }
}

impl Summary {
    pub fn begin() -> Self {
        let losses = Losses::default();
        Summary {
            started: Instant::now(),
            in_steps: Duration::ZERO,
            steps: 0,
            tokens: 0,
            train: losses,
            validation: losses,
        }
    }

    /// Takes note of a step, which counts from 0.
    pub fn step(&mut self, step: usize, loss: f32, tokens: usize, elapsed: Duration) {
        self.steps += 1;
        self.tokens += tokens as u64;
        self.in_steps += elapsed;
        self.train.note(step + 1, loss);
    }

    /// Takes note of the validation loss after so many steps.
    pub fn validation(&mut self, steps: usize, loss: f32) {
        self.validation.note(steps, loss);
    }

    /// The work of this process, and its losses; nothing without a step.
    fn lines(&self, flops_per_token: f64) -> Vec<String> {
        if self.steps == 0 {
            return Vec::new();
        }
        let (time, steps) = (short(self.started.elapsed()), count(self.steps, "step"));
        let (tokens, seconds) = (self.tokens as f64, self.in_steps.as_secs_f64());
        let rates = format!(
            "{} FLOPs; {} tok/s, {} FLOP/s in {} of training steps",
            large(flops_per_token * tokens),
            fixed(tokens / seconds, 0),
            large(flops_per_token * tokens / seconds),
            short(self.in_steps)
        );
        let losses = [self.train.shown("training", "in"), self.validation.shown("validation", "after")];
        let losses: Vec<_> = losses.into_iter().flatten().collect();
        vec![
            format!("finished: {steps} in {time}, {}, {rates}", count(self.tokens, "token")),
            format!("losses:   {}", losses.join(", ")),
        ]
    }
}

/// `1.23e15`, as exponents of FLOPs are written.
fn large(value: f64) -> String {
    format!("{value:.2e}")
}

impl Trainer {
    /// Shows the summary.
    pub(super) fn summarize(&mut self) {
        let (config, BatchShape { B, T, .. }) = (self.replica.model.weights.config, self.data.shape);
        let flops = flops_per_token(ParamLayout::new(&config).len(), config.L, config.C, T);
        let mut lines = self.report.summary.lines(flops);
        if lines.is_empty() {
            return;
        }
        if let Some(dir) = self.output_dir() {
            let logs = LOGS.join(", ");
            lines.push(format!("files:    {}: checkpoint of the last step, {logs}", dir.display()));
            let (tool, dir) = (quoted(tool().display()), quoted(dir.display()));
            let prompt = self.eval.prompt.as_ref().map(|prompt| format!(" -p {}", quoted(prompt)));
            lines.push(format!("next:     {tool} sample -e {dir}{}", prompt.unwrap_or_default()));
            if self.data.val.is_some() {
                let val = quoted(&self.files.input_val_bin);
                lines.push(format!("          {tool} eval -e {dir} -j {val} -b {B} -t {T}"));
            }
            lines.push(format!("          {tool} plot {dir}"));
        } else {
            lines.push("files:    none; -o DIR keeps checkpoints and logs".into());
        }
        lines.iter().for_each(|line| self.report.console().line(line));
    }
}

/// The program `warpsmith`, called as this one was: from the same folder, or from the PATH.
fn tool() -> PathBuf {
    let own = std::env::args_os().next().unwrap_or_default();
    Path::new(&own).with_file_name("warpsmith")
}

/// A word as a shell reads it back.
fn quoted(text: impl Display) -> String {
    let text = text.to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_summed_up() {
        let mut summary = Summary::begin();
        assert!(summary.lines(10.0).is_empty());
        for (step, loss) in [5.0, f32::NAN, 3.0, 4.0].into_iter().enumerate() {
            summary.step(step, loss, 100, Duration::from_secs(2));
        }
        let alone = summary.lines(10.0);
        assert_eq!(alone[1], "losses:   training loss 4.0000 (lowest 3.0000 in step 3)");
        summary.validation(0, 6.0);
        summary.validation(4, 4.5);
        let [first, losses] = &summary.lines(10.0)[..] else { panic!("two lines") };
        let expected = "finished: 4 steps in 0s, 400 tokens, 4.00e3 FLOPs; 50 tok/s, 5.00e2 FLOP/s in 8s of training steps";
        assert_eq!(first, expected);
        assert!(losses.ends_with(", validation loss 4.5000 (lowest 4.5000 after step 4)"), "{losses}");
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("out/a_1.bin"), "out/a_1.bin");
        assert_eq!(quoted("d/*_val_*.bin"), "'d/*_val_*.bin'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
