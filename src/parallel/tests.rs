//! Ranks that are threads begin random operations and wait for them in random order, on links that are slow at random.

use super::links::{Delayed, Links, Threads};
use super::mesh::{self, Meeting, Mesh};
use super::queue::HostQueue;
use super::{Collective, Communicator, Operation, Ticket};
use crate::ops::{Buffer, Place};
use crate::rng::Mt19937;
use crate::tensor::Dtype;
use anyhow::{Context, Result, anyhow};
use half::{bf16, f16};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Of links, and twice this of everything.
const TIMEOUT: Duration = Duration::from_secs(20);

fn below(rng: &mut Mt19937, end: usize) -> usize {
    rng.randint32() as usize % end
}

/// One operation of all ranks: what their buffers hold before, and after it.
#[derive(Clone)]
struct Planned {
    collective: Collective,
    dtype: Dtype,
    /// By rank, as the type has them.
    before: Vec<Vec<f32>>,
}

impl Planned {
    fn random(rng: &mut Mt19937, world_size: usize) -> Self {
        let collective = match below(rng, 4) {
            0 => Collective::AllReduce,
            1 => Collective::ReduceScatter,
            2 => Collective::AllGather,
            _ => Collective::Broadcast { root: below(rng, world_size) },
        };
        let dtype = [Dtype::F32, Dtype::Bf16, Dtype::F16][below(rng, 3)];
        // Fewer elements than ranks, a few, and more than one packet of TCP's.
        let most = [world_size + 1, 100, 20_000][below(rng, 3)];
        let len = below(rng, most);
        let mut values = || {
            let mut number = || rounded(dtype, (rng.randfloat32() - 0.5) * [1e-3, 1.0, 100.0][below(rng, 3)]);
            (0..len).map(|_| number()).collect()
        };
        Planned { collective, dtype, before: (0..world_size).map(|_| values()).collect() }
    }

    /// Where each element's part is.
    fn owner(&self, element: usize) -> usize {
        let (len, world_size) = (self.before[0].len(), self.before.len());
        let part = |rank: usize| len / world_size + usize::from(rank < len % world_size);
        let mut end = 0;
        (0..world_size)
            .find(|&rank| {
                end += part(rank);
                element < end
            })
            .unwrap()
    }

    /// What a rank's buffer holds afterwards; nothing where that is undefined.
    fn after(&self, rank: usize, element: usize) -> Option<f32> {
        let terms = || self.before.iter().map(|values| values[element]);
        let sum = || rounded(self.dtype, terms().reduce(|sum, term| sum + term).unwrap());
        match self.collective {
            Collective::AllReduce => Some(sum()),
            Collective::ReduceScatter => (self.owner(element) == rank).then(sum),
            Collective::AllGather => Some(self.before[self.owner(element)][element]),
            Collective::Broadcast { root } => Some(self.before[root][element]),
        }
    }

    fn check(&self, rank: usize, bytes: &[u8]) {
        for (element, found) in bytes.chunks_exact(self.dtype.size()).enumerate() {
            let expected = self.after(rank, element).map(|value| bytes_of(self.dtype, value));
            let (what, dtype) = (self.collective, self.dtype);
            assert!(
                expected.as_ref().is_none_or(|expected| expected == found),
                "rank {rank}, {what:?} of {dtype:?}, element {element}: {found:?}, expected {expected:?}"
            );
        }
    }
}

fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::F32 | Dtype::I32 => value,
    }
}

fn bytes_of(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F32 | Dtype::I32 => value.to_le_bytes().to_vec(),
    }
}

/// What all ranks begin: each row at once.
fn plan(seed: u32, world_size: usize, rows: usize) -> Vec<Vec<Planned>> {
    let rng = &mut Mt19937::new(seed);
    let mut row = || (0..below(rng, 4)).map(|_| Planned::random(rng, world_size)).collect();
    (0..rows).map(|_| row()).collect()
}

/// Does what is planned, in its own time; what it waited for must be done.
fn follow(plan: &[Vec<Planned>], queue: HostQueue, seed: u32) -> Result<()> {
    let rank = queue.rank();
    let rng = &mut Mt19937::new(seed);
    let mut buffers: Vec<Vec<Vec<u8>>> = plan
        .iter()
        .map(|row| {
            row.iter().map(|one| one.before[rank].iter().flat_map(|&x| bytes_of(one.dtype, x)).collect())
        })
        .map(Iterator::collect)
        .collect();
    // Dropped before the buffers that it works on.
    let mut queue = queue;
    let check = |buffers: &[Vec<Vec<u8>>]| {
        let done = plan.iter().zip(buffers).flat_map(|(row, buffers)| row.iter().zip(buffers));
        done.for_each(|(planned, bytes)| planned.check(rank, bytes));
    };
    let mut tickets: Vec<Ticket> = Vec::new();
    while tickets.len() < plan.len() {
        match below(rng, 8) {
            0 => std::thread::sleep(Duration::from_micros(below(rng, 3_000) as u64)),
            1 if !tickets.is_empty() => {
                let row = below(rng, tickets.len());
                queue.wait(tickets[row])?;
                check(&buffers[..=row]);
            }
            2 if below(rng, 4) == 0 => {
                queue.finish()?;
                check(&buffers[..tickets.len()]);
            }
            _ => {
                let row = tickets.len();
                let operation = |(planned, bytes): (&Planned, &mut Vec<u8>)| {
                    let (address, dtype) = (bytes.as_mut_ptr() as u64, planned.dtype);
                    let buffer =
                        Buffer { address, len: bytes.len() / dtype.size(), dtype, place: Place::Host };
                    Operation { collective: planned.collective, buffer }
                };
                tickets.push(queue.start(plan[row].iter().zip(&mut buffers[row]).map(operation).collect())?);
            }
        }
    }
    while !tickets.is_empty() {
        let row = below(rng, tickets.len());
        queue.wait(tickets.swap_remove(row))?;
    }
    queue.finish()?;
    check(&buffers);
    Ok(())
}

/// Lets each rank follow the plan, on these links, in a thread. How that ended for each.
fn all_follow<L: Links + 'static>(plan: &[Vec<Planned>], links: Vec<L>, seed: u32) -> Vec<Result<()>> {
    let (world_size, began) = (links.len(), Instant::now());
    let (done, ends) = channel();
    for (rank, links) in links.into_iter().enumerate() {
        let (plan, done) = (plan.to_vec(), done.clone());
        let own = seed * 10 + rank as u32;
        std::thread::spawn(move || {
            let queue = HostQueue::new(Delayed::new(links, own.into()));
            done.send((rank, follow(&plan, queue, own))).unwrap();
        });
    }
    drop(done);
    let mut results: Vec<_> = (0..world_size).map(|_| None).collect();
    for _ in 0..world_size {
        let next = ends.recv_timeout(2 * TIMEOUT).context("a rank hangs, or has panicked");
        let (rank, result) = next.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        results[rank] = Some(result);
    }
    assert!(began.elapsed() < TIMEOUT, "seed {seed}: somebody waited for nothing");
    results.into_iter().map(Option::unwrap).collect()
}

fn meshes(world_size: usize) -> Vec<Mesh> {
    let dir = tempfile::tempdir().unwrap();
    let at = Meeting::File(dir.path().join("rank-0"));
    let patience = mesh::Patience { meet: TIMEOUT, silence: TIMEOUT, lost: TIMEOUT };
    let meet = |rank| Mesh::meet(rank, world_size, "fuzz", &at, patience).unwrap();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || meet(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn whatever_is_begun_and_waited_for_in_whatever_order_the_sums_are_those_of_a_plain_loop() {
    for seed in 0..16 {
        let world_size = seed as usize % 4 + 1;
        let plan = plan(seed, world_size, 24);
        let results = match seed {
            0..8 => all_follow(&plan, Threads::of(world_size, TIMEOUT), seed),
            _ => all_follow(&plan, meshes(world_size), seed),
        };
        for (rank, result) in results.into_iter().enumerate() {
            assert!(result.is_ok(), "seed {seed}, rank {rank}: {result:?}");
        }
    }
}

/// Links of which the last rank's break after so many exchanges, as if its process had ended.
struct Vanishing<L> {
    rank: usize,
    world_size: usize,
    links: Option<L>,
    left: usize,
}

impl<L: Links> Links for Vanishing<L> {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world_size(&self) -> usize {
        self.world_size
    }
    fn describe(&self) -> String {
        "vanishing".to_owned()
    }
    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        if self.left == 0 {
            self.links = None;
        }
        self.left = self.left.saturating_sub(1);
        self.links.as_mut().ok_or_else(|| anyhow!("vanished"))?.exchange(outgoing, incoming)
    }
}

fn vanish<L: Links + 'static>(seed: u32, links: Vec<L>) {
    let (world_size, rng) = (links.len(), &mut Mt19937::new(seed));
    let (victim, exchanges) = (below(rng, world_size), below(rng, 20));
    let vanishing = links.into_iter().enumerate().map(|(rank, links)| {
        let left = if rank == victim { exchanges } else { usize::MAX };
        Vanishing { rank, world_size, links: Some(links), left }
    });
    // Some 36 operations, of an exchange or two.
    let results = all_follow(&plan(seed, world_size, 24), vanishing.collect(), seed);
    for (rank, result) in results.into_iter().enumerate() {
        let error = result.unwrap_err().to_string();
        let expected = match rank == victim {
            true => "vanished".to_owned(),
            false => format!("rank {victim} is gone: its output says why"),
        };
        assert_eq!(error, expected, "seed {seed}, rank {rank} of {world_size}");
    }
}

#[test]
fn a_rank_that_vanishes_is_named_by_all_others() {
    for seed in 100..130 {
        let world_size = seed as usize % 3 + 2;
        match seed % 2 {
            0 => vanish(seed, Threads::of(world_size, TIMEOUT)),
            _ => vanish(seed, meshes(world_size)),
        }
    }
}

/// What three ranks say when one sends another what that one does not expect, and the third hears of it.
fn misled<L: Links>(links: Vec<L>) -> Vec<String> {
    let rank = |mut links: L| {
        let rank = links.rank();
        let wrong: &[u8] = if rank == 2 { &[0] } else { &[] };
        let mut exchange = |outgoing: [&[u8]; 3]| {
            let mut incoming = [[0; 0]; 3];
            links.exchange(&outgoing, &mut incoming.each_mut().map(<[u8; 0]>::as_mut_slice))
        };
        let begun = exchange([wrong, &[], &[]]);
        assert_eq!(begun.is_err(), rank == 0);
        begun.and_then(|()| exchange([&[]; 3])).unwrap_err().to_string()
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = links.into_iter().map(|links| scope.spawn(move || rank(links))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_blame_whom_the_first_one_blames() {
    for said in [misled(Threads::of(3, TIMEOUT)), misled(meshes(3))] {
        assert!(said[0].starts_with("rank 2 sent 1 bytes where 0 were expected"), "{}", said[0]);
        assert_eq!(said[1..], [said[0].as_str(); 2]);
    }
}
