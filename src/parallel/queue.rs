//! Collectives of hosts beside other work: a thread carries out, in order, what the training thread starts.

use super::host::HostCollectives;
use super::links::Links;
use super::{Communicator, Operation, Ticket};
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
    /// Of what was started, in order.
    results: Receiver<Result<()>>,
    last_started: Ticket,
    /// Of which, and of all before it, the result is here.
    last_done: Ticket,
    failed: Option<String>,
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
            let mut failed = false;
            for operations in queue {
                // After a failure nothing more is sent: others would take it for what they still wait for.
                if failed {
                    continue;
                }
                let result = operations.iter().try_for_each(|operation| collectives.run(operation));
                failed = result.is_err();
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
            last_started: Ticket(0),
            last_done: Ticket(0),
            failed: None,
            thread: Some(thread),
        }
    }

    fn check_failed(&self) -> Result<()> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(anyhow!("{why}")))
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

    fn start(&mut self, operations: Vec<Operation>) -> Result<Ticket> {
        self.check_failed()?;
        let queue = self.operations.as_ref().expect("open until dropped");
        queue.send(operations).map_err(|_| ended())?;
        self.last_started.0 += 1;
        Ok(self.last_started)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<()> {
        assert!(ticket <= self.last_started, "{ticket:?} was not given out");
        while self.failed.is_none() && self.last_done < ticket {
            match self.results.recv().map_err(|_| ended()).flatten() {
                Ok(()) => self.last_done.0 += 1,
                Err(why) => self.failed = Some(format!("{why:#}")),
            }
        }
        self.check_failed()
    }

    fn finish(&mut self) -> Result<()> {
        self.wait(self.last_started)
    }
}

fn ended() -> anyhow::Error {
    anyhow!("the thread of communication has ended")
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Two ranks, of which the other one answers as often as it is let; counts what is asked of it.
    struct Gate {
        answers: Receiver<Result<()>>,
        exchanges: Arc<AtomicUsize>,
    }

    impl Links for Gate {
        fn rank(&self) -> usize {
            0
        }
        fn world_size(&self) -> usize {
            2
        }
        fn describe(&self) -> String {
            "a gate".to_owned()
        }
        fn exchange(&mut self, _outgoing: &[&[u8]], _incoming: &mut [&mut [u8]]) -> Result<()> {
            self.exchanges.fetch_add(1, Ordering::SeqCst);
            self.answers.recv().expect("an answer for each")
        }
    }

    /// The queue, the other rank's answers, and how many were asked for.
    fn gate() -> (HostQueue, Sender<Result<()>>, Arc<AtomicUsize>) {
        let (answer, answers) = channel();
        let exchanges = Arc::new(AtomicUsize::new(0));
        (HostQueue::new(Gate { answers, exchanges: exchanges.clone() }), answer, exchanges)
    }

    fn broadcasts(number: &mut [f32; 1], count: usize) -> Vec<Operation> {
        let address = number.as_mut_ptr() as u64;
        let buffer = Buffer { address, len: 1, dtype: Dtype::F32, place: Place::Host };
        vec![Operation { collective: Collective::Broadcast { root: 0 }, buffer }; count]
    }

    #[test]
    fn an_early_ticket_is_not_kept_by_later_ones() {
        let (mut queue, answer, exchanges) = gate();
        let mut number = [1.0];
        let tickets: Vec<Ticket> =
            [2, 0, 1].map(|count| queue.start(broadcasts(&mut number, count)).unwrap()).into();
        assert_eq!(tickets, [Ticket(1), Ticket(2), Ticket(3)]);
        for _ in 0..2 {
            answer.send(Ok(())).unwrap();
        }
        // The third has no answer yet: this would hang if it were waited for.
        queue.wait(tickets[1]).unwrap();
        queue.wait(tickets[0]).unwrap();
        let later = std::thread::spawn(move || {
            queue.finish().unwrap();
            queue.wait(Ticket(3)).unwrap();
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!later.is_finished(), "the third is under way");
        answer.send(Ok(())).unwrap();
        later.join().unwrap();
        assert_eq!(exchanges.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn after_a_failure_nothing_more_is_sent_and_the_first_cause_stays() {
        let (mut queue, answer, exchanges) = gate();
        let mut number = [1.0];
        answer.send(Ok(())).unwrap();
        answer.send(Err(anyhow!("rank 1 is gone"))).unwrap();
        let tickets = [1, 2, 1].map(|count| queue.start(broadcasts(&mut number, count)).unwrap());
        queue.wait(tickets[0]).unwrap();
        let gone = |result: Result<()>| assert_eq!(result.unwrap_err().to_string(), "rank 1 is gone");
        gone(queue.wait(tickets[1]));
        gone(queue.wait(tickets[2]));
        gone(queue.wait(tickets[0]));
        gone(queue.finish());
        gone(queue.start(broadcasts(&mut number, 1)).map(drop));
        assert_eq!(exchanges.load(Ordering::SeqCst), 2);
    }

    #[test]
    #[should_panic(expected = "was not given out")]
    fn a_ticket_of_nobody_is_a_bug() {
        let _ = gate().0.wait(Ticket(1));
    }
}
