//! Console output of a run, in llm.c's words and columns, so that scripts for llm.c's output can
//! read ours.
//!
//! A run outlives its terminal: once standard output is closed, further output is dropped.
//! `main.log` and `metrics.jsonl` have all of it.

use super::cformat::{fixed, scientific, signed};
use super::{LogStyle, throughput};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// The line of a training step:
///
/// `step    1/10 | loss 5.270009 (n/a)| norm 30.1234 (n/a)| lr 3.00e-04 | 1234.57 ms | n/a MFU
/// | 830 tok/s`
///
/// While there are too few steps for a z-score, llm.c prints `(+nanz)`, and this `(n/a)`.
/// llm.c prints a utilization of -100 % if it does not know the peak of the device. The peak of a
/// CPU depends on clocks and on other load, so here the field is `n/a` and keeps its place. The
/// remaining time is an extra field after those of llm.c.
#[derive(Clone, Debug)]
pub struct StepLine {
    /// Index of the step, from 0; the line counts from 1.
    pub step: usize,
    pub total_steps: usize,
    pub loss: f32,
    /// z-score of the loss over recent steps; NaN while there are too few.
    pub loss_z: f64,
    /// Norm of the gradient before clipping.
    pub norm: f32,
    pub norm_z: f64,
    pub lr: f32,
    /// Duration of the step in milliseconds.
    pub ms: f64,
    /// Fraction of the device's peak in use, and the type that the peak is for; `None` if unknown.
    pub mfu: Option<(f64, &'static str)>,
    /// Tokens in the step, over all processes.
    pub tokens: usize,
    /// Tokens per second, smoothed over recent steps.
    pub tok_per_s: f64,
    /// Estimated time to the end of the run.
    pub eta: Option<Duration>,
}

impl fmt::Display for StepLine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "step {:>4}/{}", self.step + 1, self.total_steps)?;
        let score = |z: f64| if z.is_nan() { "n/a".to_owned() } else { format!("{}z", signed(z, 2)) };
        write!(f, " | loss {:>7} ({})", fixed(self.loss.into(), 6), score(self.loss_z))?;
        write!(f, "| norm {:>6} ({})", fixed(self.norm.into(), 4), score(self.norm_z))?;
        write!(f, "| lr {} | {} ms | ", scientific(self.lr.into(), 2), fixed(self.ms, 2))?;
        match self.mfu {
            Some((share, dtype)) => write!(f, "{}% {dtype} MFU", fixed(100.0 * share, 1))?,
            None => f.write_str("n/a MFU")?,
        }
        write!(f, " | {} tok/s", fixed(self.tok_per_s, 0))?;
        match self.eta {
            Some(eta) => write!(f, " | ETA {}", throughput::short(eta)),
            None => Ok(()),
        }
    }
}

/// The same step in build-nanogpt's words, where steps count from 0:
///
/// `step     0 | loss: 10.955103 | lr 8.3916e-07 | norm: 13.4646 | dt: 1234.57ms | tok/sec: 830.00`
struct NanogptLine<'a>(&'a StepLine);

impl fmt::Display for NanogptLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let line = self.0;
        write!(f, "step {:>5} | loss: {}", line.step, fixed(line.loss.into(), 6))?;
        write!(f, " | lr {} | norm: {}", scientific(line.lr.into(), 4), fixed(line.norm.into(), 4))?;
        let tok_per_s = line.tokens as f64 / line.ms * 1e3;
        write!(f, " | dt: {}ms | tok/sec: {}", fixed(line.ms, 2), fixed(tok_per_s, 2))
    }
}

#[derive(Clone, Copy)]
enum Color {
    Red,
    Yellow,
    Bold,
    Plain,
}

/// Steps with a higher z-score are highlighted on a terminal.
const OUTLIER_Z: f64 = 3.0;

/// Standard output, or another writer that a run reports to.
pub struct Console<W: Write> {
    out: W,
    colors: bool,
    style: LogStyle,
    gone: bool,
}

impl Console<Box<dyn Write>> {
    /// Returns a console on standard output, with colors if it is a terminal and `NO_COLOR` is not
    /// set.
    pub fn stdout(style: LogStyle) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let colors = wanted && io::stdout().is_terminal();
        Console { style, ..Self::new(Box::new(io::stdout()), colors) }
    }

    /// Returns a console without output, for all ranks but one.
    pub fn quiet() -> Self {
        Self::new(Box::new(io::sink()), false)
    }
}

impl<W: Write> Console<W> {
    /// Returns a console in llm.c's style.
    pub fn new(out: W, colors: bool) -> Self {
        Console { out, colors, style: LogStyle::Llmc, gone: false }
    }

    /// Prints a line of text.
    pub fn line(&mut self, text: impl fmt::Display) {
        self.paint(Color::Plain, text);
    }

    /// Prints a warning, highlighted on a terminal.
    pub fn warning(&mut self, text: impl fmt::Display) {
        self.paint(Color::Yellow, format_args!("WARNING: {text}"));
    }

    /// Prints the head of llm.c's table of parameters.
    pub fn table_head(&mut self) {
        self.rule();
        self.row("Parameter", "Value");
        self.rule();
    }

    /// Prints a section of that table, and the rule below it.
    pub fn table(&mut self, rows: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<str>)>) {
        for (name, value) in rows {
            self.row(name.as_ref(), value.as_ref());
        }
        self.rule();
    }

    fn row(&mut self, name: &str, value: &str) {
        self.line(format_args!("| {:<21} | {:<50} |", printable(name), printable(value)));
    }

    fn rule(&mut self) {
        self.line(format_args!("+{:-<23}+{:-<52}+", "", ""));
    }

    /// Prints a training step, in red if its loss or norm is not finite or far above recent ones.
    pub fn step(&mut self, line: &StepLine) {
        let strange = !line.loss.is_finite() || !line.norm.is_finite();
        let outlier = line.loss_z > OUTLIER_Z || line.norm_z > OUTLIER_Z;
        let color = if strange || outlier { Color::Red } else { Color::Plain };
        match self.style {
            LogStyle::Llmc => self.paint(color, line),
            LogStyle::Nanogpt => self.paint(color, NanogptLine(line)),
        }
    }

    /// Prints a step of forward passes as llm.c's `train_gpt2.py` does, with the norm of no
    /// gradients.
    pub fn forward_only(
        &mut self,
        (step, steps): (usize, usize),
        loss: f32,
        lr: f32,
        ms: f64,
        tok_per_s: f64,
    ) {
        self.line(format_args!(
            "step {:>4}/{steps} | train loss {} | norm 0.0000 | lr {} | ({} ms | {} tok/s)",
            step + 1,
            fixed(loss.into(), 6),
            scientific(lr.into(), 2),
            fixed(ms, 2),
            fixed(tok_per_s, 0)
        ));
    }

    /// Prints the mean loss over the validation batches.
    pub fn val_loss(&mut self, loss: f32) {
        match self.style {
            LogStyle::Llmc => self.paint(Color::Bold, format_args!("val loss {}", fixed(loss.into(), 6))),
            LogStyle::Nanogpt => {
                self.paint(Color::Bold, format_args!("validation loss: {}", fixed(loss.into(), 4)));
            }
        }
    }

    /// Prints the number of correct answers, chosen by mean loss over an ending.
    pub fn hellaswag(&mut self, correct: usize, total: usize) {
        let share = |digits| fixed(correct as f64 / total as f64, digits);
        let line = match self.style {
            LogStyle::Llmc => format!("HellaSwag: {correct}/{total} = {}", share(6)),
            LogStyle::Nanogpt => format!("HellaSwag accuracy: {correct}/{total}={}", share(4)),
        };
        self.paint(Color::Bold, line);
    }

    /// Prints that an update is skipped because `what`, the loss or the gradient, has the z-score
    /// `score`.
    pub fn skipped(&mut self, what: &str, score: f64) {
        self.paint(
            Color::Yellow,
            format_args!("skipping update due to {what} z-score of {}", fixed(score, 6)),
        );
    }

    /// Begins a sample. Pieces of its text follow, then [`Console::sample_end`].
    pub fn sample_begin(&mut self) {
        self.line("generating:\n---");
    }

    /// Prints a piece of a sample at once, without control characters, which a barely trained model
    /// often writes.
    pub fn sample_piece(&mut self, text: &str) {
        self.write(&printable(text));
    }

    pub fn sample_end(&mut self) {
        self.line("\n---");
    }

    /// Prints a whole sample as build-nanogpt does, in one piece, as other ranks print theirs.
    pub fn sample(&mut self, rank: usize, index: usize, text: &str) {
        self.line(format_args!("rank {rank} sample {index}: {}", printable(text)));
    }

    /// Prints the last line of a run, or nothing if the run was too short for a mean.
    pub fn average(&mut self, mean_ms: Option<f64>) {
        if let Some(ms) = mean_ms {
            self.line(format_args!("total average iteration time: {} ms", fixed(ms, 6)));
        }
    }

    fn paint(&mut self, color: Color, text: impl fmt::Display) {
        let code = match color {
            Color::Plain => "",
            _ if !self.colors => "",
            Color::Red => "\x1b[31m",
            Color::Yellow => "\x1b[33m",
            Color::Bold => "\x1b[1m",
        };
        let reset = if code.is_empty() { "" } else { "\x1b[0m" };
        self.write(&format!("{code}{text}{reset}\n"));
    }

    fn write(&mut self, text: &str) {
        if !self.gone {
            self.gone = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).is_err();
        }
    }
}

/// Removes control characters, which would move the cursor or ring the bell, from `text`.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(colors: bool, print: impl FnOnce(&mut Console<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        print(&mut Console::new(&mut out, colors));
        String::from_utf8(out).unwrap()
    }

    fn first() -> StepLine {
        StepLine {
            step: 0,
            total_steps: 10,
            loss: 5.270009,
            loss_z: f64::NAN.copysign(1.0),
            norm: 30.1234,
            norm_z: f64::NAN.copysign(1.0),
            lr: 3e-4,
            ms: 1234.5678,
            mfu: Some((-1.0, "bf16")),
            tokens: 256,
            tok_per_s: 207.3,
            eta: None,
        }
    }

    /// C printed both lines with llm.c's format, and `(+nanz)` for a score that there is not yet.
    #[test]
    fn a_step_looks_as_in_llmc() {
        assert_eq!(
            first().to_string(),
            "step    1/10 | loss 5.270009 (n/a)| norm 30.1234 (n/a)| lr 3.00e-04 | 1234.57 ms | -100.0% bf16 \
             MFU | 207 tok/s"
        );
        let last = StepLine {
            step: 19072,
            total_steps: 19073,
            loss: 0.000123456,
            loss_z: -1.25,
            norm: 0.27,
            norm_z: 3.456,
            lr: 6e-5,
            ms: 344.56,
            mfu: Some((0.5126, "bf16")),
            tokens: 524_288,
            tok_per_s: 1_521_615.2,
            eta: None,
        };
        assert_eq!(
            last.to_string(),
            "step 19073/19073 | loss 0.000123 (-1.25z)| norm 0.2700 (+3.46z)| lr 6.00e-05 | 344.56 ms | 51.3% bf16 \
             MFU | 1521615 tok/s"
        );
    }

    /// Python printed the line with build-nanogpt's format string.
    #[test]
    fn a_step_looks_as_in_build_nanogpt() {
        let text = shown(false, |c| {
            c.style = LogStyle::Nanogpt;
            c.step(&StepLine { step: 7, loss: 10.955103, lr: 8.3916e-7, norm: 13.4646, ..first() });
            c.step(&StepLine {
                step: 19072,
                loss: 3.0,
                lr: 6e-5,
                norm: 0.27,
                ms: 344.56,
                tokens: 524_288,
                ..first()
            });
            c.val_loss(3.2924);
            c.hellaswag(2968, 10042);
        });
        assert_eq!(
            text,
            "step     7 | loss: 10.955103 | lr 8.3916e-07 | norm: 13.4646 | dt: 1234.57ms | tok/sec: 207.36\n\
             step 19072 | loss: 3.000000 | lr 6.0000e-05 | norm: 0.2700 | dt: 344.56ms | tok/sec: 1521615.97\n\
             validation loss: 3.2924\nHellaSwag accuracy: 2968/10042=0.2956\n"
        );
    }

    /// llm.c's loss checker looks for `step    1/10` and reads columns 20 to 28.
    #[test]
    fn the_loss_is_where_scripts_look_for_it() {
        let line = StepLine { mfu: None, eta: Some(Duration::from_secs(4980)), ..first() }.to_string();
        assert!(line.contains("step    1/10"));
        assert_eq!(line[20..28].trim().parse::<f32>().unwrap(), 5.270009);
        assert!(line.ends_with("| 1234.57 ms | n/a MFU | 207 tok/s | ETA 1h23m"), "{line}");
        assert_eq!(line.matches('|').count(), first().to_string().matches('|').count() + 1);
    }

    #[test]
    fn tables_have_the_columns_of_llmc() {
        let text = shown(false, |c| {
            c.table_head();
            c.table([("micro batch size B", "4")]);
        });
        let rule = "+-----------------------+----------------------------------------------------+\n";
        let head = "| Parameter             | Value                                              |\n";
        let row = "| micro batch size B    | 4                                                  |\n";
        assert_eq!(text, format!("{rule}{head}{rule}{row}{rule}"));
    }

    #[test]
    fn evaluations_and_samples_have_their_lines() {
        let text = shown(false, |c| {
            c.val_loss(3.2924);
            c.hellaswag(2968, 10042);
            c.sample_begin();
            c.sample_piece("Once\x1b[2J upon\r\n");
            c.sample_piece("a tïme\u{7}");
            c.sample_end();
            c.sample(1, 3, "Hello\x1b[1m, I");
            c.skipped("loss", 7.5);
            c.average(Some(12.25));
            c.average(None);
            c.warning("T is short");
        });
        assert_eq!(
            text,
            "val loss 3.292400\nHellaSwag: 2968/10042 = 0.295559\ngenerating:\n---\nOnce[2J upon\na tïme\n---\n\
             rank 1 sample 3: Hello[1m, I\n\
             skipping update due to loss z-score of 7.500000\ntotal average iteration time: 12.250000 ms\n\
             WARNING: T is short\n"
        );
    }

    #[test]
    fn colors_are_for_terminals_and_for_what_stands_out() {
        let bad = StepLine { loss: f32::NAN, ..first() };
        assert!(shown(true, |c| c.step(&bad)).starts_with("\x1b[31mstep"));
        assert!(shown(true, |c| c.step(&StepLine { norm_z: 5.0, ..first() })).starts_with("\x1b[31m"));
        assert!(!shown(true, |c| c.step(&first())).contains('\x1b'));
        assert!(!shown(false, |c| c.step(&bad)).contains('\x1b'));
    }

    #[test]
    fn a_closed_terminal_does_not_end_a_run() {
        struct Closed(usize);
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut console = Console::new(Closed(0), false);
        console.line("one");
        console.line("two");
        assert_eq!(console.out.0, 1);
    }
}
