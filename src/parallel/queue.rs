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
            let mut failed: Option<String> = None;
            for operations in queue {
                // After a failure nothing more is sent: others would take it for what they still wait for.
                let result = match &failed {
                    Some(why) => Err(anyhow!("{why}")),
                    None => operations.iter().try_for_each(|operation| collectives.run(operation)),
                };
                if let Err(why) = &result {
                    failed.get_or_insert_with(|| format!("{why:#}"));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Buffer, Place};
    use crate::parallel::Collective;
    use crate::tensor::Dtype;
    use std::sync::{Arc, Mutex};

    /// Two ranks, of which the other one is gone; counts what is asked of it.
    struct Broken(Arc<Mutex<usize>>);

    impl Links for Broken {
        fn rank(&self) -> usize {
            0
        }
        fn world_size(&self) -> usize {
            2
        }
        fn describe(&self) -> String {
            "broken".to_owned()
        }
        fn exchange(&mut self, _outgoing: &[&[u8]], _incoming: &mut [&mut [u8]]) -> Result<()> {
            *self.0.lock().unwrap() += 1;
            Err(anyhow!("rank 1 is gone"))
        }
    }

    #[test]
    fn after_a_failure_nothing_more_is_sent() {
        let exchanges = Arc::new(Mutex::new(0));
        let mut queue = HostQueue::new(Broken(exchanges.clone()));
        let mut number = [1.0f32];
        let address = number.as_mut_ptr() as u64;
        let buffer = Buffer { address, len: 1, dtype: Dtype::F32, place: Place::Host };
        for _ in 0..3 {
            queue.start(vec![Operation { collective: Collective::AllReduce, buffer }; 2]).unwrap();
        }
        assert_eq!(queue.finish().unwrap_err().to_string(), "rank 1 is gone");
        queue.start(vec![Operation { collective: Collective::AllReduce, buffer }]).unwrap();
        assert_eq!(queue.finish().unwrap_err().to_string(), "rank 1 is gone");
        assert_eq!(*exchanges.lock().unwrap(), 1);
    }
}
