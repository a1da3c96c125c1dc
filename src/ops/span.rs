//! Parts of a run, by which profilers group operations.

use super::Ops;
use std::fmt;

/// A part of a run. Spans nest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// An optimizer step, by its number from 1, as the console shows it.
    Step(usize),
    /// A micro-step of a step, from 1.
    MicroStep(usize),
    /// The wait for the data loader's next batch.
    Batch,
    Forward,
    Backward,
    /// A layer's part of a pass or of the update, from 0.
    Layer(usize),
    /// The sum of the losses and the norm of the gradient, until the host has read them.
    LossAndNorm,
    Optimizer,
    /// Work between steps, by its name: `validation`, `checkpoint`.
    Between(&'static str),
}

impl Span {
    /// Whether it is time of the host: work that the device is not asked for, or not only.
    pub fn is_of_host(self) -> bool {
        matches!(self, Span::Batch | Span::Between(_))
    }
}

/// The name that profilers show: `step 3`, `layer 0`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Span::Step(number) => write!(f, "step {number}"),
            Span::MicroStep(number) => write!(f, "micro-step {number}"),
            Span::Batch => f.write_str("load batch"),
            Span::Forward => f.write_str("forward"),
            Span::Backward => f.write_str("backward"),
            Span::Layer(layer) => write!(f, "layer {layer}"),
            Span::LossAndNorm => f.write_str("loss and norm"),
            Span::Optimizer => f.write_str("optimizer"),
            Span::Between(name) => f.write_str(name),
        }
    }
}

/// Runs `work` as a span of `dev`, which also ends where `work` fails.
pub fn within<T>(dev: &mut dyn Ops, span: Span, work: impl FnOnce(&mut dyn Ops) -> T) -> T {
    dev.enter(span);
    let done = work(dev);
    dev.leave();
    done
}
