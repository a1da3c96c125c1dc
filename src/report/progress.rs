//! Progress of long work: a bar on a terminal, a line now and then in files and pipes.

use super::throughput;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::cell::RefCell;
use std::fmt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Redraws of the bar per second.
const HZ: u8 = 10;
/// Shortest time between two lines without a terminal.
const LINE_MIN: Duration = Duration::from_secs(1);
/// Longest time between them, however slow the work.
const LINE_MAX: Duration = Duration::from_secs(10);

/// Runs `work` that reads bytes. It says how many so far, and how many there are (0 if unknown).
///
/// # Errors
/// Those of `work`, after which there is no summary.
pub fn counting<T>(label: &str, work: impl FnOnce(&dyn Fn(u64, u64)) -> Result<T>) -> Result<T> {
    let progress = RefCell::new(None);
    let result = work(&|done, total| {
        progress.borrow_mut().get_or_insert_with(|| Progress::new(label, total, "bytes")).set(done);
    })?;
    if let Some(progress) = progress.into_inner() {
        progress.finish();
    }
    Ok(result)
}

/// Reports on standard error, which leaves standard output to results.
pub struct Progress {
    /// Hidden without a terminal; counts all the same.
    bar: ProgressBar,
    unit: &'static str,
    /// Shortest time between two lines without a terminal.
    min: Duration,
    /// Time and count of the last line without a terminal.
    line: (Duration, u64),
}

impl Progress {
    /// Begins `total` things called `unit` (`tokens`, `questions`); a total of 0 is unknown.
    pub fn new(label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        Self::on(ProgressDrawTarget::stderr_with_hz(HZ), label, total, unit)
    }

    fn on(target: ProgressDrawTarget, label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        let template = if total == 0 { "{prefix}: {status}" } else { "{prefix}: [{wide_bar}] {status}" };
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        let write_status = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let _ = out.write_str(&status(state.pos(), total, unit, state.elapsed()));
        };
        let style = style.progress_chars("=> ").with_key("status", write_status);
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        Progress { bar: bar.with_prefix(label.into()), unit, min: LINE_MIN, line: (Duration::ZERO, 0) }
    }

    /// Sets how much is done in all.
    pub fn set(&mut self, done: u64) {
        self.bar.set_position(done);
        let (now, total) = (self.bar.elapsed(), self.bar.length().unwrap_or(0));
        if self.bar.is_hidden() && line_is_due(total, self.min, self.line, (now, done)) {
            self.line = (now, done);
            super::say(format_args!("{}: {}", self.bar.prefix(), status(done, total, self.unit, now)));
        }
    }

    /// Removes the bar, without a summary.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Replaces the bar by a summary.
    pub fn finish(self) {
        let summary = self.summary();
        self.bar.finish_and_clear();
        super::say(summary);
    }

    fn summary(&self) -> String {
        let (done, elapsed) = (self.bar.position(), self.bar.elapsed());
        let (time, speed) = (throughput::short(elapsed), compact(rate(done, elapsed)));
        format!("{}: {done} {} in {time}, {speed}/s", self.bar.prefix(), self.unit)
    }
}

/// Progress of an evaluation: a bar on a terminal, and else a line every ten
/// seconds. It leaves nothing behind.
pub struct Passing {
    label: &'static str,
    unit: &'static str,
    /// `None` on ranks that show nothing.
    progress: Option<Option<Progress>>,
}

impl Passing {
    /// Begins things called `unit`; a process that is `quiet` shows nothing.
    pub fn new(label: &'static str, unit: &'static str, quiet: bool) -> Self {
        Passing { label, unit, progress: (!quiet).then_some(None) }
    }

    /// Sets how much is done, of how much.
    pub fn show(&mut self, done: usize, total: usize) {
        let Some(progress) = &mut self.progress else { return };
        let new = || Progress { min: LINE_MAX, ..Progress::new(self.label, total as u64, self.unit) };
        progress.get_or_insert_with(new).set(done as u64);
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.progress.iter().flatten().for_each(Progress::clear);
    }
}

/// Runs `work`, and says on standard error what it is if it takes longer than a second.
pub fn saying<T>(what: &str, quiet: bool, work: impl FnOnce() -> T) -> T {
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        if !quiet {
            let say = move || {
                if wait.recv_timeout(LINE_MIN) == Err(RecvTimeoutError::Timeout) {
                    super::say(format_args!("{what} …"));
                }
            };
            // Without a thread the work is done in silence.
            let _ = std::thread::Builder::new().spawn_scoped(scope, say);
        }
        let result = work();
        drop(done);
        result
    })
}

/// Whether a line is due `now` after the `last` one; both are a time and how much was done. `min`
/// is the shortest time between lines.
fn line_is_due(total: u64, min: Duration, last: (Duration, u64), now: (Duration, u64)) -> bool {
    let tenth = |done: u64| (u128::from(done) * 10).checked_div(total.into()).unwrap_or(0);
    let waited = now.0.saturating_sub(last.0);
    waited >= LINE_MAX || (waited >= min && tenth(now.1) > tenth(last.1))
}

/// `50% 100/200 tokens, 100/s, ETA 1s`.
fn status(done: u64, total: u64, unit: &str, elapsed: Duration) -> String {
    let rate = rate(done, elapsed);
    let speed = compact(rate);
    if total == 0 {
        return format!("{done} {unit}, {speed}/s");
    }
    let percent = u128::from(done.min(total)) * 100 / u128::from(total);
    let left = throughput::eta(1, rate / total.saturating_sub(done).max(1) as f64);
    let eta = left.map_or(String::new(), |left| format!(", ETA {}", throughput::short(left)));
    format!("{percent}% {done}/{total} {unit}, {speed}/s{eta}")
}

fn rate(done: u64, elapsed: Duration) -> f64 {
    done as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// `7.3`, `850`, `12.3k`, `4.56M`: three digits.
fn compact(x: f64) -> String {
    let (x, suffix) = match x {
        _ if x >= 1e9 => (x / 1e9, "G"),
        _ if x >= 1e6 => (x / 1e6, "M"),
        _ if x >= 1e3 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    let decimals = if x >= 100.0 {
        0
    } else if x >= 10.0 {
        1
    } else {
        2
    };
    format!("{x:.decimals$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// The lines that appear in a file when `steps` of (seconds, done) happen.
    fn lines(total: u64, steps: &[(f64, u64)]) -> Vec<String> {
        let (mut last, mut lines) = ((Duration::ZERO, 0), Vec::new());
        for &(seconds, done) in steps {
            let now = (Duration::from_secs_f64(seconds), done);
            if line_is_due(total, LINE_MIN, last, now) {
                lines.push(status(done, total, "tokens", now.0));
                last = now;
            }
        }
        lines
    }

    #[test]
    fn a_file_gets_a_line_at_every_tenth() {
        let steps: Vec<(f64, u64)> = (1..=1000).map(|i| (f64::from(i) * 0.05, u64::from(i as u32))).collect();
        let lines = lines(1000, &steps);
        assert_eq!(lines.len(), 10, "{lines:?}");
        assert_eq!(lines[0], "10% 100/1000 tokens, 20.0/s, ETA 45s");
    }

    #[test]
    fn slow_work_gets_a_line_every_ten_seconds_and_fast_work_no_flood() {
        let slow: Vec<(f64, u64)> = (1..=60).map(|s| (f64::from(s), 1)).collect();
        assert_eq!(lines(1_000_000, &slow).len(), 6);
        let fast: Vec<(f64, u64)> = (1..=100).map(|i| (f64::from(i) * 0.009, i as u64)).collect();
        assert!(lines(100, &fast).is_empty());
    }

    /// A terminal that keeps the text written to it, and no cursor.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\r")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the text on a terminal when `done` tokens of `total` are read after 10 seconds, and
    /// the summary.
    fn shown(total: u64, done: u64) -> (String, String) {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), HZ);
        let mut progress = Progress::on(target, "reading", total, "tokens");
        progress.bar = progress.bar.with_elapsed(Duration::from_secs(10));
        progress.bar.set_position(done);
        progress.bar.tick();
        let text = screen.0.lock().unwrap().clone();
        (text, progress.summary())
    }

    #[test]
    fn a_terminal_gets_a_bar_in_one_line() {
        let (text, _) = shown(200, 60);
        let bar =
            format!("reading: [{}>{}] 30% 60/200 tokens, 6.00/s, ETA 23s", "=".repeat(16), " ".repeat(37));
        assert!(text.contains(&bar) && !text.contains('\n'), "{text:?}");
    }

    #[test]
    fn an_unknown_or_wrong_total_does_no_harm() {
        assert!(shown(0, 25_000).0.contains("reading: 25000 tokens, 2.50k/s"));
        assert!(shown(10, 30).0.contains(" 100% 30/10 tokens"));
        assert!(shown(10, 0).0.contains(" 0% 0/10 tokens"));
        assert!(shown(u64::MAX, u64::MAX).0.contains(" 100% "));
        assert!(lines(u64::MAX, &[(0.0, 0), (20.0, u64::MAX)])[0].starts_with("100% "));
    }

    #[test]
    fn an_evaluation_gets_few_lines() {
        let steps: Vec<(f64, u64)> = (1..=100).map(|i| (f64::from(i), u64::from(i as u32))).collect();
        let mut last = (Duration::ZERO, 0);
        let mut due = |&(seconds, done): &(f64, u64)| {
            let now = (Duration::from_secs_f64(seconds), done);
            let due = line_is_due(100, LINE_MAX, last, now);
            last = if due { now } else { last };
            due
        };
        assert_eq!(steps.iter().filter(|step| due(step)).count(), 10);
    }

    #[test]
    fn the_summary_says_how_much_and_how_long() {
        assert_eq!(shown(200, 150).1, "reading: 150 tokens in 10s, 15.0/s");
    }

    #[test]
    fn rates_have_three_digits() {
        assert_eq!(
            [0.5, 7.25, 42.0, 850.4, 12_345.0, 4.56e6, 2e9].map(compact),
            ["0.50", "7.25", "42.0", "850", "12.3k", "4.56M", "2.00G"]
        );
    }
}
