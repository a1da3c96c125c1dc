//! Collectives of hosts beside other work: a thread carries out, in order, what the training thread starts.

use super::host::HostCollectives;
use super::links::Links;
use super::{Communicator, Operation};
use anyhow::{Result, anyhow};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The communicator of devices whose memory is the host's.
pub struct HostQueue {
    rank: usize,
    world_size: usize,
    links: String,
    /// `None` once the thread is told to end.
    operations: Option<Sender<Vec<Operation>>>,
    results: Receiver<Result<()>>,
    /// Results that are yet to come.
    under_way: usize,
    thread: Option<JoinHandle<()>>,
}

impl HostQueue {
    pub fn new(links: impl Links + 'static) -> Self {
        let (rank, world_size) = (links.rank(), links.world_size());
        let description = links.describe();
        let (operations, queue) = channel::<Vec<Operation>>();
        let (done, results) = channel();
        let thread = std::thread::spawn(move || {
            let mut collectives = HostCollectives::new(links);
            for operations in queue {
                let result = operations.iter().try_for_each(|operation| collectives.run(operation));
                if done.send(result).is_err() {
                    break;
                }
            }
        });
        HostQueue {
            rank,
            world_size,
            links: description,
            operations: Some(operations),
            results,
            under_way: 0,
            thread: Some(thread),
        }
    }
}

impl Communicator for HostQueue {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn describe(&self) -> String {
        self.links.clone()
    }

    fn start(&mut self, operations: Vec<Operation>) -> Result<()> {
        let queue = self.operations.as_ref().expect("open until dropped");
        queue.send(operations).map_err(|_| anyhow!("the thread of communication has ended"))?;
        self.under_way += 1;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let mut result = Ok(());
        while self.under_way > 0 {
            let next = self.results.recv().map_err(|_| anyhow!("the thread of communication has ended"))?;
            self.under_way -= 1;
            // The first failure is the cause of the others.
            result = result.and(next);
        }
        result
    }
}

impl Drop for HostQueue {
    /// Waits for what is under way: it writes to memory that may be gone afterwards. Links time out.
    fn drop(&mut self) {
        self.operations = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
