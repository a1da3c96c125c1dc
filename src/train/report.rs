//! The reports of a run: the console, `main.log`, `metrics.jsonl`, `settings.json`.

mod startup;

use super::clock::StepClock;
use super::guards::ZScores;
use super::memory::Conclusion;
use super::summary::Summary;
use crate::cli::flags::trainer::TrainArgs;
use crate::eval::tasks::{Score, Task};
use crate::eval::validation::perplexity;
use crate::optim::batch::Batches;
use crate::replica::step::StepStats;
use crate::report::LogStyle;
use crate::report::cformat::fixed;
use crate::report::console::{Console, StepLine};
use crate::report::jsonl::{End, Jsonl, MemoryMetrics, TrainMetrics};
use crate::report::log_txt::LogTxt;
use crate::report::main_log::MainLog;
use crate::report::progress::Passing;
use crate::report::settings::RunSettings;
use crate::report::throughput::{Throughput, eta};
use crate::words::count;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// Writes all reports of a run, and measures its steps.
pub struct Report {
    pub clock: StepClock,
    pub summary: Summary,
    console: Console<Box<dyn Write>>,
    /// Whether another rank does the talking.
    quiet: bool,
    /// `None` without an output directory.
    files: Option<Files>,
    style: LogStyle,
    throughput: Throughput,
    utilization: Option<Utilization>,
    max_steps: usize,
    /// Steps of the run so far.
    steps: usize,
    /// The rows of the start-up tables.
    rows: Vec<(String, String)>,
}

/// The figures behind model FLOPs utilization (MFU).
#[derive(Clone, Copy, Debug)]
struct Utilization {
    peak_flops: f64,
    flops_per_token: f64,
    /// The type of the operands of matmuls.
    operands: &'static str,
}

struct Files {
    main_log: MainLog,
    /// Only in build-nanogpt's style.
    log_txt: Option<LogTxt>,
    jsonl: Jsonl,
}

/// A finished training step.
#[derive(Clone, Copy, Debug)]
pub struct StepRecord {
    pub step: usize,
    pub stats: StepStats,
    pub z: ZScores,
    pub lr: f32,
    pub elapsed: Duration,
    pub memory: MemoryMetrics,
}

impl Report {
    /// Reports to the console alone, or, if `quiet`, to nothing.
    pub fn new(max_steps: usize, quiet: bool, style: LogStyle) -> Self {
        let console = if quiet { Console::quiet() } else { Console::stdout(style) };
        let (clock, throughput) = (StepClock::default(), Throughput::new());
        Report {
            clock,
            summary: Summary::begin(),
            console,
            quiet,
            files: None,
            style,
            throughput,
            utilization: None,
            max_steps,
            steps: 0,
            rows: Vec::new(),
        }
    }

    /// Starts new log files, or appends to those of a resumed run.
    ///
    /// # Errors
    /// If the output directory cannot be created or written to.
    pub fn open(&mut self, output_dir: &Path, resumed_step: Option<usize>) -> Result<()> {
        self.files = Some(Files::open(output_dir, resumed_step, self.style)?);
        self.steps = resumed_step.unwrap_or(0);
        Ok(())
    }

    /// Writes the start-up tables for programs.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_settings(&mut self, output_dir: &Path, args: &TrainArgs) -> Result<()> {
        let program = format!("{} {}", args.program.name(), env!("CARGO_PKG_VERSION"));
        RunSettings::write(output_dir, args.files.resume, program, std::mem::take(&mut self.rows)).map(drop)
    }

    /// Shows a section of the start-up table, and keeps its rows.
    fn table(&mut self, rows: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>) {
        let rows =
            rows.into_iter().map(|(name, value)| (name.as_ref().to_owned(), value.as_ref().to_owned()));
        let rows: Vec<_> = rows.collect();
        self.console.table(rows.iter().map(|(name, value)| (name, value)));
        self.rows.extend(rows);
    }

    /// Writes logs again that were removed or replaced while the run went on, and says so. Returns
    /// the open logs.
    ///
    /// # Errors
    /// If a log cannot be written.
    pub fn keep_logs(&mut self) -> Result<Vec<File>> {
        let Some(Files { main_log, log_txt, jsonl }) = &mut self.files else { return Ok(Vec::new()) };
        let mut open = Vec::new();
        for log in
            [&mut main_log.0, &mut jsonl.file].into_iter().chain(log_txt.as_mut().map(|log| &mut log.0))
        {
            if log.keep()? {
                let path = log.path().display();
                self.console.warning(format_args!(
                    "{path}: removed or replaced while the run went on; it is written again, with all lines"
                ));
            }
            open.push(log.file()?);
        }
        Ok(open)
    }

    /// Reports a step of a run whose steps have the tokens of `batches`.
    pub fn step(&mut self, r: StepRecord, batches: &Batches) -> Result<()> {
        let StepStats { loss, norm, .. } = r.stats;
        let ms = r.elapsed.as_secs_f64() * 1e3;
        let (here, seen) = (batches.tokens(r.step), batches.tokens_before(r.step + 1));
        let tok_per_s = self.throughput.update(here, ms);
        self.summary.step(r.step, loss, here, r.elapsed);
        self.console.step(&StepLine {
            step: r.step,
            total_steps: self.max_steps,
            loss,
            loss_z: r.z.loss,
            norm,
            norm_z: r.z.norm,
            lr: r.lr,
            ms,
            mfu: self.utilization.map(|u| {
                let flops = u.flops_per_token * here as f64 / r.elapsed.as_secs_f64();
                (flops / u.peak_flops, u.operands)
            }),
            tokens: here,
            tok_per_s,
            eta: eta(batches.tokens_before(self.max_steps) - seen, tok_per_s),
        });
        let Some(files) = &mut self.files else { return Ok(()) };
        files.main_log.train(r.step, loss, r.lr, norm)?;
        files.log_txt.as_mut().map_or(Ok(()), |log| log.train(r.step, loss))?;
        let tok_per_s = here as f64 / r.elapsed.as_secs_f64();
        let StepRecord { step, lr, memory, .. } = r;
        files.jsonl.train(&TrainMetrics { step, loss, norm, lr, ms, tok_per_s, tokens: seen, memory })?;
        self.steps = step + 1;
        Ok(())
    }

    /// Reports a step of forward passes, in the words of `train_gpt2.py`.
    pub fn forward_only(
        &mut self,
        step: usize,
        loss: f32,
        lr: f32,
        elapsed: Duration,
        batches: &Batches,
        memory: MemoryMetrics,
    ) -> Result<()> {
        let (seconds, norm) = (elapsed.as_secs_f64(), 0.0);
        let (ms, tok_per_s) = (seconds * 1e3, batches.tokens(step) as f64 / seconds);
        self.console.forward_only((step, self.max_steps), loss, lr, ms, tok_per_s);
        let Some(files) = &mut self.files else { return Ok(()) };
        files.main_log.forward_only(step, loss)?;
        let tokens = batches.tokens_before(step + 1);
        files.jsonl.train(&TrainMetrics { step, loss, norm, lr, ms, tok_per_s, tokens, memory })?;
        self.steps = step + 1;
        Ok(())
    }

    /// Reports the mean time of the last forward passes, and the peak memory of the run.
    pub fn finish_forward_only(&mut self, times: &[Duration], peak: Option<u64>) {
        if let Some(mean) = times.iter().sum::<Duration>().checked_div(times.len() as u32) {
            let ms = fixed(mean.as_secs_f64() * 1e3, 3);
            self.console.line(format_args!("final {} iters avg: {ms}ms", times.len()));
        }
        let shown = peak.map_or("n/a".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        self.console.line(format_args!("peak memory consumption: {shown}"));
    }

    /// Reports an update that was skipped because of an outlier.
    pub fn skipped(&mut self, what: &str, z: f64) {
        self.console.skipped(what, z);
    }

    /// Reports an update that was skipped because gradients overflowed fp16, in the tensor `first`
    /// if that is known.
    pub fn overflowed(&mut self, next_scale: f32, first: Option<String>) {
        if let Some(first) = first {
            self.console.line(format_args!("first not finite: {first}"));
        }
        self.console.warning(format_args!(
            "gradients overflowed fp16; the update is skipped and the loss scaled by {next_scale} from now on"
        ));
    }

    pub fn validation(&mut self, step: usize, loss: f32) -> Result<()> {
        self.summary.validation(step, loss);
        self.console.val_loss(loss);
        self.console.line(format_args!("val perplexity {:.4}", perplexity(loss)));
        let Some(files) = &mut self.files else { return Ok(()) };
        files.main_log.val(step, loss)?;
        files.log_txt.as_mut().map_or(Ok(()), |log| log.val(step, loss))?;
        files.jsonl.val(step, loss)
    }

    /// Reports llm.c's HellaSwag, in its words.
    pub fn hellaswag(&mut self, step: usize, score: Score, truncated: usize) -> Result<()> {
        self.console.hellaswag(score.correct_norm, score.total);
        self.truncated(truncated);
        let Some(files) = &mut self.files else { return Ok(()) };
        let accuracy = score.correct_norm as f32 / score.total as f32;
        files.main_log.eval(step, accuracy)?;
        files.log_txt.as_mut().map_or(Ok(()), |log| log.hella(step, accuracy))?;
        files.jsonl.task(
            step,
            Task::HellaSwagLlmc.key(),
            &score.measures(Task::HellaSwagLlmc),
            score.chance(),
        )
    }

    /// Reports the score of a task of `--task`.
    pub fn task(&mut self, step: usize, task: Task, score: Score, truncated: usize) -> Result<()> {
        score.lines(task).iter().for_each(|line| self.console.line(line));
        self.truncated(truncated);
        let Some(files) = &mut self.files else { return Ok(()) };
        files.jsonl.task(step, task.key(), &score.measures(task), score.chance())
    }

    fn truncated(&mut self, examples: usize) {
        if examples > 0 {
            let examples = count(examples, "example");
            self.console
                .warning(format_args!("{examples} cut at the start of the context, to fit the model"));
        }
    }

    /// The progress of an evaluation.
    pub fn progress(&self, label: &'static str, unit: &'static str) -> Passing {
        Passing::new(label, unit, self.quiet)
    }

    /// Prints a sample. Each rank prints its own, those that are quiet otherwise too.
    pub fn sample(&mut self, rank: usize, index: usize, text: &str) {
        match self.quiet {
            true => Console::stdout(self.style).sample(rank, index, text),
            false => self.console.sample(rank, index, text),
        }
    }

    /// Writes a whole sample, with its prompt, to the log; `index` counts those of all ranks.
    pub fn log_sample(&mut self, step: usize, index: usize, text: &str) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.jsonl.sample(step, index, text))
    }

    /// Writes the end of the process to the log. A run that resumes drops it.
    pub fn end(&mut self, end: End) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |files| files.jsonl.end(self.steps, end))
    }

    /// The console, for samples, which are shown token by token.
    pub fn console(&mut self) -> &mut Console<Box<dyn Write>> {
        &mut self.console
    }

    /// Reports the mean time of a step, and the memory of the run.
    pub fn finish(&mut self, memory: &Conclusion) {
        self.console.average(self.throughput.mean_ms());
        self.console.line(memory);
    }
}

impl Files {
    fn open(dir: &Path, resumed_step: Option<usize>, style: LogStyle) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("-o {}: cannot create the directory", dir.display()))?;
        let nanogpt = style == LogStyle::Nanogpt;
        let log_txt = || resumed_step.map_or_else(|| LogTxt::create(dir), |step| LogTxt::resume(dir, step));
        let log_txt = nanogpt.then(log_txt).transpose()?;
        Ok(match resumed_step {
            Some(step) => {
                Files { main_log: MainLog::resume(dir, step)?, log_txt, jsonl: Jsonl::resume(dir, step)? }
            }
            None => Files { main_log: MainLog::create(dir)?, log_txt, jsonl: Jsonl::create(dir)? },
        })
    }
}
