//! Collectives of hosts beside other work: a thread carries out, in order, what the training thread
//! starts.

use super::host::HostCollectives;
use super::timing::{Started, Times, WorkTime};
use super::transport::Transport;
use super::{Communicator, Operation, Work};
use anyhow::{Context, Result, anyhow};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// The communicator of devices whose memory is the host's.
pub struct HostQueue {
    rank: usize,
    world_size: usize,
    transport: String,
    /// `None` once the thread is told to end.
    operations: Option<Sender<Vec<Operation>>>,
    /// The result of each start, in order: when its operations began and ended.
    results: Receiver<Result<(Instant, Instant)>>,
    /// Starts whose result was not received, in order.
    in_flight: VecDeque<Started>,
    last_started: Work,
    /// The last work whose result was received.
    last_done: Work,
    times: Times,
    failed: Option<String>,
    thread: Option<JoinHandle<()>>,
}

impl HostQueue {
    /// # Errors
    /// If the thread cannot be started.
    pub fn new(transport: impl Transport + 'static) -> Result<Self> {
        let (rank, world_size) = (transport.rank(), transport.world_size());
        let description = transport.describe();
        let (operations, queue) = channel::<Vec<Operation>>();
        let (done, results) = channel();
        let work = move || {
            let mut collectives = HostCollectives::new(transport);
            let mut failed = false;
            for operations in queue {
                // After a failure nothing more is sent: other ranks would take it for the message
                // that they still wait for.
                if failed {
                    continue;
                }
                let start = Instant::now();
                let result = operations.iter().try_for_each(|operation| collectives.run(operation));
                let result = result.map(|()| (start, Instant::now()));
                failed = result.is_err();
                if done.send(result).is_err() {
                    break;
                }
            }
        };
        let thread = Builder::new().name("collectives".to_owned()).spawn(work);
        Ok(HostQueue {
            rank,
            world_size,
            transport: description,
            operations: Some(operations),
            results,
            in_flight: VecDeque::new(),
            last_started: Work(0),
            last_done: Work(0),
            times: Times::default(),
            failed: None,
            thread: Some(thread.context("cannot start the thread for collectives")?),
        })
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
        self.transport.clone()
    }

    fn start(&mut self, operations: Vec<Operation>) -> Result<Work> {
        self.check_failed()?;
        let started = Started::now(&operations, &self.times);
        let queue = self.operations.as_ref().expect("open until dropped");
        queue.send(operations).map_err(|_| ended())?;
        self.in_flight.push_back(started);
        self.last_started.0 += 1;
        Ok(self.last_started)
    }

    fn wait(&mut self, work: Work) -> Result<()> {
        assert!(work <= self.last_started, "{work} was never started");
        while self.failed.is_none() && self.last_done < work {
            match self.results.recv().map_err(|_| ended()).flatten() {
                Ok(span) => {
                    self.last_done.0 += 1;
                    let started = self.in_flight.pop_front().expect("one per result");
                    started.log_end(self.last_done);
                    self.times.note(self.last_done, started, span);
                }
                Err(why) => self.failed = Some(format!("{why:#}")),
            }
        }
        self.check_failed()
    }

    fn finish(&mut self) -> Result<()> {
        self.wait(self.last_started)
    }

    fn note_times(&mut self) -> Result<()> {
        self.finish()?;
        self.times.begin();
        Ok(())
    }

    fn take_times(&mut self) -> Result<Vec<WorkTime>> {
        self.finish()?;
        Ok(self.times.take())
    }
}

fn ended() -> anyhow::Error {
    anyhow!("the communication thread has ended")
}

impl Drop for HostQueue {
    /// Waits for operations in flight, which write to memory that may be freed afterwards.
    /// Transports time out, so this ends.
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

    /// A transport between two ranks whose exchanges end with the results that the test supplies.
    /// It counts them.
    struct Gate {
        answers: Receiver<Result<()>>,
        exchanges: Arc<AtomicUsize>,
    }

    impl Transport for Gate {
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

    /// The queue, the results of exchanges, and how many were begun.
    fn gate() -> (HostQueue, Sender<Result<()>>, Arc<AtomicUsize>) {
        let (answer, answers) = channel();
        let exchanges = Arc::new(AtomicUsize::new(0));
        (HostQueue::new(Gate { answers, exchanges: exchanges.clone() }).unwrap(), answer, exchanges)
    }

    fn broadcasts(number: &mut [f32; 1], count: usize) -> Vec<Operation> {
        let address = number.as_mut_ptr() as u64;
        let buffer = Buffer { address, len: 1, dtype: Dtype::F32, place: Place::Host };
        vec![Operation { collective: Collective::Broadcast { root: 0 }, buffer }; count]
    }

    #[test]
    fn waiting_for_early_work_does_not_wait_for_later_work() {
        let (mut queue, answer, exchanges) = gate();
        let mut number = [1.0];
        let works: Vec<Work> =
            [2, 0, 1].map(|count| queue.start(broadcasts(&mut number, count)).unwrap()).into();
        assert_eq!(works, [Work(1), Work(2), Work(3)]);
        for _ in 0..2 {
            answer.send(Ok(())).unwrap();
        }
        // The third has no result yet: waiting for it would hang.
        queue.wait(works[1]).unwrap();
        queue.wait(works[0]).unwrap();
        let later = std::thread::spawn(move || {
            queue.finish().unwrap();
            queue.wait(Work(3)).unwrap();
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!later.is_finished(), "the third is in flight");
        answer.send(Ok(())).unwrap();
        later.join().unwrap();
        assert_eq!(exchanges.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn work_is_timed_while_that_is_asked_for() {
        let (mut queue, answer, _) = gate();
        let mut number = [1.0];
        let works = |times: Vec<WorkTime>| times.iter().map(|time| time.work).collect::<Vec<_>>();
        (0..4).for_each(|_| answer.send(Ok(())).unwrap());
        queue.start(broadcasts(&mut number, 1)).unwrap();
        queue.note_times().unwrap();
        for count in [1, 2] {
            queue.start(broadcasts(&mut number, count)).unwrap();
        }
        let times = queue.take_times().unwrap();
        assert_eq!(times[1].operations.len(), 2);
        assert!(times[0].start <= times[0].end && times[0].end <= times[1].start);
        assert_eq!(works(times), [Work(2), Work(3)]);
        assert_eq!(works(queue.take_times().unwrap()), []);
    }

    #[test]
    fn after_a_failure_nothing_more_is_sent_and_the_first_cause_stays() {
        let (mut queue, answer, exchanges) = gate();
        let mut number = [1.0];
        answer.send(Ok(())).unwrap();
        answer.send(Err(anyhow!("rank 1 is gone"))).unwrap();
        let works = [1, 2, 1].map(|count| queue.start(broadcasts(&mut number, count)).unwrap());
        queue.wait(works[0]).unwrap();
        let gone = |result: Result<()>| assert_eq!(result.unwrap_err().to_string(), "rank 1 is gone");
        gone(queue.wait(works[1]));
        gone(queue.wait(works[2]));
        gone(queue.wait(works[0]));
        gone(queue.finish());
        gone(queue.start(broadcasts(&mut number, 1)).map(drop));
        assert_eq!(exchanges.load(Ordering::SeqCst), 2);
    }

    #[test]
    #[should_panic(expected = "was never started")]
    fn waiting_for_work_that_was_never_started_is_a_bug() {
        let _ = gate().0.wait(Work(1));
    }
}
