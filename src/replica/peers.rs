//! The ranks of a run, as one of them sees them.

use crate::model::GPT2;
use crate::ops::{Ops, download_f32, upload_f32};
use crate::parallel::environment::Process;
use crate::parallel::{Collective, Communicator, Operation, Work, WorkTime};
use crate::tensor::Tensor;
use anyhow::Result;
use std::collections::VecDeque;

/// This process, and its communicator with the others.
pub struct Peers {
    pub process: Process,
    /// `None` for a single process.
    communicator: Option<Box<dyn Communicator>>,
    /// The tensors that pending operations have borrowed from the device.
    lent: VecDeque<(Work, Vec<Tensor>)>,
}

impl Peers {
    pub fn alone() -> Self {
        Peers { process: Process::ALONE, communicator: None, lent: VecDeque::new() }
    }

    pub fn new(process: Process, communicator: Box<dyn Communicator>) -> Self {
        Peers { process, communicator: Some(communicator), lent: VecDeque::new() }
    }

    /// Whether there is no other rank to communicate with.
    pub fn is_alone(&self) -> bool {
        self.communicator.is_none()
    }

    /// The number of processes, their transport and their launcher.
    pub fn describe(&self) -> Option<String> {
        let launcher = self.process.launcher.name();
        self.communicator.as_ref().map(|c| format!("{}, by {launcher}", c.describe()))
    }

    /// The library of the transport, if one was loaded: its name, and its version and path.
    pub fn library(&self) -> Option<(&'static str, String)> {
        self.communicator.as_ref().and_then(|c| c.library())
    }

    /// Starts operations of all ranks, in place, and lends them their tensors: nothing else may
    /// touch these before the returned handle is waited for. A single process has nothing to wait
    /// for.
    ///
    /// # Errors
    /// As [`Communicator::start`].
    pub fn start(&mut self, dev: &mut dyn Ops, operations: &[(Collective, Tensor)]) -> Result<Option<Work>> {
        let Some(communicator) = &mut self.communicator else { return Ok(None) };
        let operation = |&(collective, tensor)| Operation { collective, buffer: dev.lend(tensor) };
        let work = communicator.start(operations.iter().map(operation).collect())?;
        self.lent.push_back((work, operations.iter().map(|&(_, tensor)| tensor).collect()));
        Ok(Some(work))
    }

    /// Waits for all operations up to and including `work`, and reclaims their tensors.
    ///
    /// # Errors
    /// One line that names the rank that is gone or out of step.
    pub fn wait(&mut self, dev: &mut dyn Ops, work: Option<Work>) -> Result<()> {
        let (Some(communicator), Some(work)) = (&mut self.communicator, work) else { return Ok(()) };
        communicator.wait(work)?;
        while self.lent.front().is_some_and(|(lent, _)| *lent <= work) {
            let (_, tensors) = self.lent.pop_front().expect("looked at");
            tensors.into_iter().for_each(|tensor| dev.reclaim(tensor));
        }
        Ok(())
    }

    /// Waits for all operations, and notes from then on when others run.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn note_times(&mut self) -> Result<()> {
        self.communicator.as_mut().map_or(Ok(()), |communicator| communicator.note_times())
    }

    /// Waits for all operations, and returns when those since [`Self::note_times`] ran.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn take_times(&mut self) -> Result<Vec<WorkTime>> {
        self.communicator.as_mut().map_or(Ok(Vec::new()), |communicator| communicator.take_times())
    }

    /// All-reduces tensors in place, and waits.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn all_reduce(&mut self, dev: &mut dyn Ops, tensors: &[Tensor]) -> Result<()> {
        let operations: Vec<_> = tensors.iter().map(|&tensor| (Collective::AllReduce, tensor)).collect();
        let work = self.start(dev, &operations)?;
        self.wait(dev, work)
    }

    /// Sums numbers on the host over all ranks.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn sum(&mut self, dev: &mut dyn Ops, model: &GPT2, values: &mut [f32]) -> Result<()> {
        if self.communicator.is_none() {
            return Ok(());
        }
        let scalars = model.acts.scalars;
        for values in values.chunks_mut(scalars.len) {
            let some = scalars.slice(0, values.len());
            upload_f32(dev, some, values)?;
            self.all_reduce(dev, &[some])?;
            download_f32(dev, values, some)?;
        }
        Ok(())
    }
}
