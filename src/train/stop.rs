//! Stopping before the last step: because a signal asked for it, or because `--max-hours` are over.
//!
//! Ranks receive signals at different times but must stop at the same place, so the votes of all
//! ranks are added up: with the loss in every step, and before every pass of an evaluation.

use super::signals::{Doing, Signals};
use crate::model::GPT2;
use crate::model::hooks::{LayerHooks, Pass};
use crate::ops::Ops;
use crate::parallel::environment::MAX_PROCESSES;
use crate::replica::zero::ZeroState;
use crate::report::say;
use anyhow::Result;
use std::cell::Cell;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The reason to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Signal(i32),
    /// The next step, evaluation or checkpoint would end after `--max-hours`.
    TimeUp,
}

/// The vote of a rank that received a signal.
const SIGNALED: f32 = 1.0;

/// The vote of rank 0 when time is up: more than all ranks can have received signals, and exact in
/// a sum.
const TIME_UP: f32 = 2.0 * MAX_PROCESSES as f32;

/// Work whose length is known from the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Step,
    Checkpoint,
    Validation,
    HellaSwag,
    Tasks,
    Sample,
}

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Work::Step => "a step",
            Work::Checkpoint => "a checkpoint",
            Work::Validation => "validation",
            Work::HellaSwag => "HellaSwag",
            Work::Tasks => "the tasks",
            Work::Sample => "the sample",
        }
    }
}

/// The requests to stop, and the reason that all ranks have agreed on.
pub struct Stop {
    pub signals: Signals,
    pub agreed: Option<Reason>,
    /// The directory of checkpoints.
    output_dir: Option<PathBuf>,
    /// Once time was up, it stays so.
    late: Cell<bool>,
    /// The start of the checkpoint that is being written, if there is one.
    pub checkpoint_since: Option<Instant>,
    /// The end of `--max-hours`; only rank 0 looks at its clock.
    deadline: Option<Instant>,
    /// By [`Work`].
    lengths: [Duration; 6],
}

impl Stop {
    /// `checkpoint` is a first guess at the time that a checkpoint takes.
    pub fn new(output_dir: Option<PathBuf>, deadline: Option<Instant>, checkpoint: Duration) -> Self {
        let mut lengths = [Duration::ZERO; 6];
        lengths[Work::Checkpoint as usize] = checkpoint;
        let (signals, late) = (Signals::new(output_dir.clone()), Cell::new(false));
        Stop { signals, agreed: None, output_dir, late, checkpoint_since: None, deadline, lengths }
    }

    /// Notes the length of some work. The longest counts, and is forgotten slowly.
    pub fn measured(&mut self, work: Work, length: Duration) {
        let known = &mut self.lengths[work as usize];
        *known = known.mul_f64(0.9).max(length);
    }

    /// The end of `work` if it begins now.
    pub fn end_of(&self, work: Work) -> Instant {
        Instant::now() + self.lengths[work as usize]
    }

    /// This rank's vote to stop before work that ends at `end`.
    pub fn vote(&self, end: Instant) -> f32 {
        // The last checkpoint has to wait for the one that is being written.
        let checkpoint = self.lengths[Work::Checkpoint as usize];
        let end = end.max(Instant::now());
        let end = self.checkpoint_since.map_or(end, |since| end.max(since + checkpoint));
        if self.deadline.is_some_and(|deadline| end + checkpoint > deadline) {
            self.late.set(true);
        }
        let signaled = self.signals.received().map_or(0.0, |_| SIGNALED);
        signaled + if self.late.get() { TIME_UP } else { 0.0 }
    }

    /// Agrees to stop if the `votes` of all ranks say so.
    pub fn decide(&mut self, votes: f32) {
        self.agreed = self.agreed.or(self.reason(votes));
    }

    /// Says on standard error after which step the run stopped, and how to go on.
    pub fn say_how_to_go_on(&self, step: usize, reason: Reason, resumes: bool) {
        let why = match reason {
            Reason::Signal(_) => "",
            Reason::TimeUp => "--max-hours: ",
        };
        let next = match &self.output_dir {
            Some(_) if resumes => "to continue, run the same command",
            Some(_) => "to continue, run the same command with -y 1",
            None => "without -o nothing was saved",
        };
        say(format_args!("{why}stopped after step {step}; {next}"));
    }

    fn reason(&self, votes: f32) -> Option<Reason> {
        if votes % TIME_UP >= SIGNALED {
            return Some(Reason::Signal(self.signals.received().unwrap_or(signal_hook::consts::SIGTERM)));
        }
        (votes > 0.0).then_some(Reason::TimeUp)
    }
}

/// The error with which an evaluation is cut short.
#[derive(Debug)]
pub struct CutShort(pub Reason);

impl fmt::Display for CutShort {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("cut short")
    }
}

impl std::error::Error for CutShort {}

/// Hooks of an evaluation that all ranks run: before each pass they add up their votes.
pub struct TogetherHooks<'a> {
    zero: &'a mut ZeroState,
    model: &'a GPT2,
    stop: &'a Stop,
    end: Instant,
}

/// Hooks of a sample, which rank 0 alone draws and decides about.
pub struct AloneHooks<'a> {
    hooks: &'a mut dyn LayerHooks,
    model: &'a GPT2,
    stop: &'a Stop,
    end: Instant,
}

impl Stop {
    /// Hooks that end `work` between two passes, with [`CutShort`], if any rank is asked to stop.
    pub fn together<'a>(&'a self, work: Work, zero: &'a mut ZeroState, model: &'a GPT2) -> TogetherHooks<'a> {
        self.signals.note(Doing::Evaluation(work.name()));
        TogetherHooks { zero, model, stop: self, end: self.end_of(work) }
    }

    /// The same for work of rank 0 alone.
    pub fn alone<'a>(&'a self, work: Work, hooks: &'a mut dyn LayerHooks, model: &'a GPT2) -> AloneHooks<'a> {
        self.signals.note(Doing::Evaluation(work.name()));
        AloneHooks { hooks, model, stop: self, end: self.end_of(work) }
    }

    fn cut(&self, votes: f32) -> Result<()> {
        self.reason(votes).map_or(Ok(()), |reason| Err(CutShort(reason).into()))
    }
}

/// Whether a pass begins: it reads the shared unit first.
fn begins(model: &GPT2, unit: usize) -> bool {
    unit == model.weights.params.layout.shared_unit()
}

impl LayerHooks for TogetherHooks<'_> {
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if begins(self.model, unit) {
            let mut votes = [self.stop.vote(self.end)];
            self.zero.peers.sum(dev, self.model, &mut votes)?;
            self.stop.cut(votes[0])?;
        }
        self.zero.before(dev, pass, unit)
    }

    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        self.zero.after(dev, pass, unit)
    }
}

impl LayerHooks for AloneHooks<'_> {
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if begins(self.model, unit) {
            self.stop.cut(self.stop.vote(self.end))?;
        }
        self.hooks.before(dev, pass, unit)
    }

    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        self.hooks.after(dev, pass, unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stop(left: Duration) -> Stop {
        Stop::new(None, Some(Instant::now() + left), 10 * SECOND)
    }

    #[test]
    fn a_signal_of_any_rank_counts_more_than_the_time() {
        let mut decided = stop(SECOND);
        decided.decide(0.0);
        assert_eq!(decided.agreed, None);
        let sigterm = Some(Reason::Signal(signal_hook::consts::SIGTERM));
        for (votes, reason) in
            [(3.0 * SIGNALED, sigterm), (TIME_UP, Some(Reason::TimeUp)), (TIME_UP + 2.0 * SIGNALED, sigterm)]
        {
            let mut decided = stop(SECOND);
            decided.decide(votes);
            assert_eq!(decided.agreed, reason, "{votes}");
            decided.decide(SIGNALED);
            assert_eq!(decided.agreed, reason, "the first reason stays");
        }
    }

    #[test]
    fn time_is_up_when_the_work_and_a_checkpoint_would_end_late() {
        let vote = |stop: &Stop| stop.vote(stop.end_of(Work::Step));
        let mut short = stop(30 * SECOND);
        assert_eq!(vote(&short), 0.0);
        short.measured(Work::Step, 15 * SECOND);
        assert_eq!(vote(&short), 0.0);
        short.measured(Work::Step, 25 * SECOND);
        assert_eq!(vote(&short), TIME_UP);
        assert_eq!(short.vote(Instant::now()), TIME_UP, "all later votes are the same");
        let mut uneven = stop(30 * SECOND);
        uneven.measured(Work::Step, 60 * SECOND);
        (0..30).for_each(|_| uneven.measured(Work::Step, SECOND));
        assert_eq!(vote(&uneven), 0.0, "one slow step is forgotten");
        let mut endless = Stop::new(None, None, SECOND);
        endless.measured(Work::Step, 1_000_000 * SECOND);
        assert_eq!(vote(&endless), 0.0);
    }
}
