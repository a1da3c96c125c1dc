//! Who sees to it that a unit's parameters and gradients are where a pass looks for them.

use crate::ops::Ops;
use anyhow::Result;

/// Which way a pass goes through the units: the rest, then layers 0, 1, …; or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Backward,
}

/// Told by each pass of the units it works on. Between the two calls a unit's memory is the pass's; but for the last unit, which
/// has what is needed at both ends of a pass: that stays until the next one.
pub trait Keeper {
    /// Parameters of `unit` are about to be read and, in a backward pass, its gradients to be written.
    ///
    /// # Errors
    /// If they cannot be had.
    fn fetch(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()>;

    /// Everything is queued that reads the unit's parameters; in a backward pass its gradients are whole.
    ///
    /// # Errors
    /// If what is to be done next with them cannot be queued.
    fn done(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()>;
}

/// Everything is where it belongs all the time.
pub struct InPlace;

impl Keeper for InPlace {
    fn fetch(&mut self, _: &mut dyn Ops, _: Pass, _: usize) -> Result<()> {
        Ok(())
    }

    fn done(&mut self, _: &mut dyn Ops, _: Pass, _: usize) -> Result<()> {
        Ok(())
    }
}
