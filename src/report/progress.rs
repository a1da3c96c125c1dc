//! Progress of something long: a bar that moves on a terminal, a line now and then elsewhere.

use super::throughput;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Cells of the bar.
const WIDTH: usize = 30;
/// Time between two pictures of the bar.
const FRAME: Duration = Duration::from_millis(100);
/// Without a terminal: no two lines closer than this …
const LINE_MIN: Duration = Duration::from_secs(1);
/// … and none further apart than this, however slow the work.
const LINE_MAX: Duration = Duration::from_secs(10);

/// Reports on standard error, which leaves standard output to results.
pub struct Progress<W: Write = io::Stderr> {
    out: W,
    terminal: bool,
    label: String,
    unit: &'static str,
    total: u64,
    done: u64,
    start: Instant,
    /// When something was last shown, and how much was done then.
    shown: Option<(Duration, u64)>,
}

impl Progress {
    /// `total` things called `unit` (`tokens`, `questions`) are to be done; 0 if nobody knows how many.
    pub fn new(label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        Progress::to(io::stderr(), io::stderr().is_terminal(), label, total, unit)
    }
}

impl<W: Write> Progress<W> {
    fn to(out: W, terminal: bool, label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        let (label, start) = (label.into(), Instant::now());
        Progress { out, terminal, label, unit, total, done: 0, start, shown: None }
    }

    /// `n` more are done.
    pub fn advance(&mut self, n: u64) {
        self.set(self.done.saturating_add(n));
    }

    /// `done` are done in all.
    pub fn set(&mut self, done: u64) {
        self.done = done;
        self.show_if_due(self.start.elapsed());
    }

    /// Everything is done: shows the last state, however recent the one before it.
    pub fn finish(mut self) {
        self.show(self.start.elapsed(), true);
    }

    fn show_if_due(&mut self, now: Duration) {
        let (then, before) = self.shown.unwrap_or_default();
        let waited = now.saturating_sub(then);
        let tenth = |done: u64| (u128::from(done) * 10).checked_div(u128::from(self.total)).unwrap_or(0);
        let due = match self.terminal {
            true => self.shown.is_none() || waited >= FRAME,
            false => waited >= LINE_MAX || (waited >= LINE_MIN && tenth(self.done) > tenth(before)),
        };
        if due {
            self.show(now, false);
        }
    }

    fn show(&mut self, now: Duration, last: bool) {
        self.shown = Some((now, self.done));
        let state = self.state(now, last);
        // A terminal that is gone takes nothing from the work.
        let _ = match self.terminal {
            // "\x1b[K" clears what a longer state left behind.
            true => write!(self.out, "\r{state}\x1b[K{}", if last { "\n" } else { "" }),
            false => writeln!(self.out, "{state}"),
        }
        .and_then(|()| self.out.flush());
    }

    fn state(&self, now: Duration, last: bool) -> String {
        let Progress { label, unit, done, total, .. } = self;
        let rate = *done as f64 / now.as_secs_f64().max(1e-9);
        let speed = format!("{}/s", compact(rate));
        if last {
            return format!("{label}: {done} {unit} in {}, {speed}", throughput::short(now));
        }
        if *total == 0 {
            return format!("{label}: {done} {unit}, {speed}");
        }
        let share = (*done as f64 / *total as f64).min(1.0);
        let left = throughput::eta(1, 1, rate / total.saturating_sub(*done).max(1) as f64);
        let eta = left.map_or(String::new(), |left| format!(", ETA {}", throughput::short(left)));
        let bar = match self.terminal {
            true => {
                let full = (share * WIDTH as f64) as usize;
                format!(" [{}{}]", "=".repeat(full), " ".repeat(WIDTH - full))
            }
            false => String::new(),
        };
        format!("{label}:{bar} {:.0}% {done}/{total} {unit}, {speed}{eta}", (100.0 * share).floor())
    }
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

    /// What is shown when `steps` of (seconds, done) happen.
    fn shown(terminal: bool, total: u64, steps: &[(f64, u64)]) -> String {
        let mut out = Vec::new();
        let mut progress = Progress::to(&mut out, terminal, "reading", total, "tokens");
        for &(seconds, done) in steps {
            progress.done = done;
            progress.show_if_due(Duration::from_secs_f64(seconds));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_file_gets_a_line_at_every_tenth() {
        let steps: Vec<(f64, u64)> = (1..=1000).map(|i| (f64::from(i) * 0.05, u64::from(i as u32))).collect();
        let text = shown(false, 1000, &steps);
        assert_eq!(text.lines().count(), 10, "{text}");
        assert_eq!(text.lines().next(), Some("reading: 10% 100/1000 tokens, 20.0/s, ETA 45s"));
        assert!(!text.contains(['\r', '\x1b']));
    }

    #[test]
    fn slow_work_gets_a_line_every_ten_seconds_and_fast_work_no_flood() {
        let slow: Vec<(f64, u64)> = (1..=60).map(|s| (f64::from(s), 1)).collect();
        assert_eq!(shown(false, 1_000_000, &slow).lines().count(), 6);
        let fast: Vec<(f64, u64)> = (1..=100).map(|i| (f64::from(i) * 0.009, i as u64)).collect();
        assert_eq!(shown(false, 100, &fast), "");
    }

    #[test]
    fn a_terminal_gets_a_bar_in_one_line() {
        let text = shown(true, 200, &[(0.5, 50), (0.55, 60), (1.0, 100)]);
        let frames: Vec<&str> = text.split('\r').filter(|f| !f.is_empty()).collect();
        assert_eq!(frames.len(), 2, "{text:?}");
        assert_eq!(
            frames[1],
            "reading: [===============               ] 50% 100/200 tokens, 100/s, ETA 1s\x1b[K"
        );
        assert!(!text.contains('\n'));
    }

    #[test]
    fn an_unknown_or_wrong_total_does_no_harm() {
        assert!(shown(true, 0, &[(2.0, 5000)]).contains("reading: 5000 tokens, 2.50k/s"));
        assert!(shown(true, 10, &[(1.0, 30)]).contains(" 100% 30/10 tokens"));
        assert!(shown(true, 10, &[(0.0, 0)]).contains(" 0% 0/10 tokens"));
        shown(false, u64::MAX, &[(0.0, 0), (20.0, u64::MAX)]);
    }

    #[test]
    fn the_end_is_always_shown() {
        for terminal in [false, true] {
            let mut out = Vec::new();
            let mut progress = Progress::to(&mut out, terminal, "reading", 2, "tokens");
            progress.advance(1);
            progress.advance(1);
            progress.finish();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("reading: 2 tokens in 0s, ") && text.ends_with('\n'), "{text:?}");
        }
    }

    #[test]
    fn rates_have_three_digits() {
        assert_eq!(
            [0.5, 7.25, 42.0, 850.4, 12_345.0, 4.56e6, 2e9].map(compact),
            ["0.50", "7.25", "42.0", "850", "12.3k", "4.56M", "2.00G"]
        );
    }
}
