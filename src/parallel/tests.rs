//! Ranks that are threads start random operations and wait for them in random order, over
//! transports with random delays.

use super::mesh::{self, Meeting, Rendezvous, TcpMesh};
use super::queue::HostQueue;
use super::secret::Secret;
use super::transport::Transport;
use super::transport::testing::{Delayed, Threads};
use super::{Collective, Communicator, Operation, Work};
use crate::ops::{Buffer, Place};
use crate::rng::Mt19937;
use crate::tensor::Dtype;
use anyhow::{Context, Result, anyhow};
use half::{bf16, f16};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Timeout of transports. A whole test has twice this.
const TIMEOUT: Duration = Duration::from_secs(20);

fn below(rng: &mut Mt19937, end: usize) -> usize {
    rng.randint32() as usize % end
}

/// One operation of all ranks, with the contents of their buffers before it.
#[derive(Clone)]
struct Planned {
    collective: Collective,
    dtype: Dtype,
    /// Values of each rank, rounded to the type.
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
        // Fewer elements than ranks, a few, and more than one TCP packet.
        let most = [world_size + 1, 100, 20_000][below(rng, 3)];
        let len = below(rng, most);
        let mut values = || {
            let mut number = || rounded(dtype, (rng.randfloat32() - 0.5) * [1e-3, 1.0, 100.0][below(rng, 3)]);
            (0..len).map(|_| number()).collect()
        };
        Planned { collective, dtype, before: (0..world_size).map(|_| values()).collect() }
    }

    /// The rank whose partition has the element.
    fn owner(&self, element: usize) -> usize {
        let (len, world_size) = (self.before[0].len(), self.before.len());
        let partition = |rank: usize| len / world_size + usize::from(rank < len % world_size);
        let mut end = 0;
        (0..world_size)
            .find(|&rank| {
                end += partition(rank);
                element < end
            })
            .unwrap()
    }

    /// The value in a rank's buffer afterwards; `None` where that is undefined.
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

/// The operations of all ranks, a row per start.
fn plan(seed: u32, world_size: usize, rows: usize) -> Vec<Vec<Planned>> {
    let rng = &mut Mt19937::new(seed);
    let mut row = || (0..below(rng, 4)).map(|_| Planned::random(rng, world_size)).collect();
    (0..rows).map(|_| row()).collect()
}

/// Executes the plan with random pauses, and checks everything that it waited for.
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
    let mut works: Vec<Work> = Vec::new();
    while works.len() < plan.len() {
        match below(rng, 8) {
            0 => std::thread::sleep(Duration::from_micros(below(rng, 3_000) as u64)),
            1 if !works.is_empty() => {
                let row = below(rng, works.len());
                queue.wait(works[row])?;
                check(&buffers[..=row]);
            }
            2 if below(rng, 4) == 0 => {
                queue.finish()?;
                check(&buffers[..works.len()]);
            }
            _ => {
                let row = works.len();
                let operation = |(planned, bytes): (&Planned, &mut Vec<u8>)| {
                    let (address, dtype) = (bytes.as_mut_ptr() as u64, planned.dtype);
                    let buffer =
                        Buffer { address, len: bytes.len() / dtype.size(), dtype, place: Place::Host };
                    Operation { collective: planned.collective, buffer }
                };
                works.push(queue.start(plan[row].iter().zip(&mut buffers[row]).map(operation).collect())?);
            }
        }
    }
    while !works.is_empty() {
        let row = below(rng, works.len());
        queue.wait(works.swap_remove(row))?;
    }
    queue.finish()?;
    check(&buffers);
    Ok(())
}

/// Lets each rank follow the plan in a thread. Returns the outcome of each.
fn all_follow<T: Transport + 'static>(
    plan: &[Vec<Planned>],
    transports: Vec<T>,
    seed: u32,
) -> Vec<Result<()>> {
    let (world_size, began) = (transports.len(), Instant::now());
    let (done, ends) = channel();
    for (rank, transport) in transports.into_iter().enumerate() {
        let (plan, done) = (plan.to_vec(), done.clone());
        let own = seed * 10 + rank as u32;
        std::thread::spawn(move || {
            let queue = HostQueue::new(Delayed::new(transport, own.into())).unwrap();
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
    assert!(began.elapsed() < TIMEOUT, "seed {seed}: a rank waited in vain");
    results.into_iter().map(Option::unwrap).collect()
}

fn meshes(world_size: usize) -> Vec<TcpMesh> {
    let dir = tempfile::tempdir().unwrap();
    let at = Rendezvous::File(dir.path().join("rank-0"));
    let timeouts = mesh::Timeouts { connect: TIMEOUT, message: TIMEOUT, heartbeat: TIMEOUT };
    let connect = |rank| {
        let (run, size_from, at) = ("fuzz".to_owned(), "a test".to_owned(), at.clone());
        let meeting = Meeting { rank, world_size, size_from, run, secret: Secret::NONE, at };
        TcpMesh::connect(&meeting, timeouts).unwrap()
    };
    let connect = &connect;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || connect(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn operations_in_any_order_give_the_sums_of_a_plain_loop() {
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

/// A transport that breaks after `left` exchanges, as if the process had ended.
struct Vanishing<T> {
    rank: usize,
    world_size: usize,
    transport: Option<T>,
    left: usize,
}

impl<T: Transport> Transport for Vanishing<T> {
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
            self.transport = None;
        }
        self.left = self.left.saturating_sub(1);
        self.transport.as_mut().ok_or_else(|| anyhow!("vanished"))?.exchange(outgoing, incoming)
    }
}

fn vanish<T: Transport + 'static>(seed: u32, transports: Vec<T>) {
    let (world_size, rng) = (transports.len(), &mut Mt19937::new(seed));
    let (victim, exchanges) = (below(rng, world_size), below(rng, 20));
    let vanishing = transports.into_iter().enumerate().map(|(rank, transport)| {
        let left = if rank == victim { exchanges } else { usize::MAX };
        Vanishing { rank, world_size, transport: Some(transport), left }
    });
    // About 36 operations of one or two exchanges each.
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

/// Rank 2 sends rank 0 a message of the wrong length. Returns the error of each rank.
fn misled<T: Transport>(transports: Vec<T>) -> Vec<String> {
    let rank = |mut transport: T| {
        let rank = transport.rank();
        let wrong: &[u8] = if rank == 2 { &[0] } else { &[] };
        let mut exchange = |outgoing: [&[u8]; 3]| {
            let mut incoming = [[0; 0]; 3];
            transport.exchange(&outgoing, &mut incoming.each_mut().map(<[u8; 0]>::as_mut_slice))
        };
        let first = exchange([wrong, &[], &[]]);
        assert_eq!(first.is_err(), rank == 0);
        first.and_then(|()| exchange([&[]; 3])).unwrap_err().to_string()
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> =
            transports.into_iter().map(|transport| scope.spawn(move || rank(transport))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_name_the_same_culprit() {
    for said in [misled(Threads::of(3, TIMEOUT)), misled(meshes(3))] {
        assert!(said[0].starts_with("rank 2 sent 1 bytes where 0 were expected"), "{}", said[0]);
        assert_eq!(said[1..], [said[0].as_str(); 2]);
    }
}
