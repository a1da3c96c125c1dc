//! This process among those that train together.

use crate::model::GPT2;
use crate::ops::{Ops, download_f32, upload_f32};
use crate::parallel::environment::Process;
use crate::parallel::{Collective, Communicator, Operation, Work};
use crate::tensor::Tensor;
use anyhow::Result;
use std::collections::VecDeque;

/// All ranks of a run, seen from one of them.
pub struct Peers {
    pub process: Process,
    /// `None` for a process alone.
    communicator: Option<Box<dyn Communicator>>,
    /// What the device has lent for operations that are under way.
    lent: VecDeque<(Work, Vec<Tensor>)>,
}

impl Peers {
    pub fn alone() -> Self {
        Peers { process: Process::ALONE, communicator: None, lent: VecDeque::new() }
    }

    pub fn new(process: Process, communicator: Box<dyn Communicator>) -> Self {
        Peers { process, communicator: Some(communicator), lent: VecDeque::new() }
    }

    /// How many there are, and how they are connected.
    pub fn describe(&self) -> Option<String> {
        let launcher = self.process.launcher.name();
        self.communicator.as_ref().map(|c| format!("{}, by {launcher}", c.describe()))
    }

    /// What connects them, if it was loaded for that: its name, and version and place.
    pub fn library(&self) -> Option<(&'static str, String)> {
        self.communicator.as_ref().and_then(|c| c.library())
    }

    /// Begins operations of all ranks, in place. Until they are waited for, nothing else may touch the tensors. Says what to wait for;
    /// for a process alone all is done.
    ///
    /// # Errors
    /// As [`Communicator::start`].
    pub fn start(&mut self, dev: &mut dyn Ops, operations: &[(Collective, Tensor)]) -> Result<Option<Work>> {
        let Some(communicator) = &mut self.communicator else { return Ok(None) };
        let operation = |&(collective, tensor)| Operation { collective, buffer: dev.lend(tensor) };
        let ticket = communicator.start(operations.iter().map(operation).collect())?;
        self.lent.push_back((ticket, operations.iter().map(|&(_, tensor)| tensor).collect()));
        Ok(Some(ticket))
    }

    /// Waits for what was begun up to and including `ticket`.
    ///
    /// # Errors
    /// One line that names the rank that is gone or out of step.
    pub fn wait(&mut self, dev: &mut dyn Ops, ticket: Option<Work>) -> Result<()> {
        let (Some(communicator), Some(ticket)) = (&mut self.communicator, ticket) else { return Ok(()) };
        communicator.wait(ticket)?;
        while self.lent.front().is_some_and(|(lent, _)| *lent <= ticket) {
            let (_, tensors) = self.lent.pop_front().expect("looked at");
            tensors.into_iter().for_each(|tensor| dev.reclaim(tensor));
        }
        Ok(())
    }

    /// Adds up tensors over all ranks, each in its place, and waits for it.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn sum_tensors(&mut self, dev: &mut dyn Ops, tensors: &[Tensor]) -> Result<()> {
        let sums: Vec<_> = tensors.iter().map(|&tensor| (Collective::AllReduce, tensor)).collect();
        let ticket = self.start(dev, &sums)?;
        self.wait(dev, ticket)
    }

    /// Adds up some numbers of the host's over all ranks.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn sum(&mut self, dev: &mut dyn Ops, model: &GPT2, values: &mut [f32]) -> Result<()> {
        if self.communicator.is_none() {
            return Ok(());
        }
        let scalars = model.acts.scalars.slice(0, values.len());
        upload_f32(dev, scalars, values)?;
        self.sum_tensors(dev, &[scalars])?;
        download_f32(dev, values, scalars)
    }
}
