//! Collectives over the memory of hosts: CPU devices and the emulated one. Every sum is formed in the order of ranks, so
//! that all ranks, and all runs, get the same bits.

use super::links::Links;
use super::{Collective, Operation};
use crate::ops::{Buffer, Place};
use crate::tensor::Dtype;
use anyhow::Result;
use half::{bf16, f16};
use std::ops::Range;

/// Carries operations out, one after the other.
pub struct HostCollectives<L> {
    links: L,
    /// What came from each rank, kept so that a step allocates nothing.
    received: Vec<Vec<u8>>,
}

impl<L: Links> HostCollectives<L> {
    pub fn new(links: L) -> Self {
        let received = (0..links.world_size()).map(|_| Vec::new()).collect();
        HostCollectives { links, received }
    }

    /// # Errors
    /// As [`Links::exchange`].
    pub fn run(&mut self, operation: &Operation) -> Result<()> {
        let Operation { collective, buffer } = operation;
        let dtype = buffer.dtype;
        // SAFETY: who started the operation left the buffer to it until it ends.
        let bytes = unsafe { host_bytes(buffer) };
        let parts = parts(bytes.len(), dtype.size(), self.links.world_size());
        match *collective {
            Collective::AllReduce => {
                self.reduce_scatter(bytes, dtype, &parts)?;
                self.all_gather(bytes, &parts)
            }
            Collective::ReduceScatter => self.reduce_scatter(bytes, dtype, &parts),
            Collective::AllGather => self.all_gather(bytes, &parts),
            Collective::Broadcast { root } => self.broadcast(bytes, root),
        }
    }

    /// Sends each rank its part and adds up what all have of one's own.
    fn reduce_scatter(&mut self, bytes: &mut [u8], dtype: Dtype, parts: &[Range<usize>]) -> Result<()> {
        let (rank, world_size) = (self.links.rank(), self.links.world_size());
        let own = parts[rank].clone();
        for received in &mut self.received {
            received.resize(own.len(), 0);
        }
        let outgoing: Vec<&[u8]> = parts.iter().map(|part| &bytes[part.clone()]).collect();
        let mut incoming: Vec<&mut [u8]> = self.received.iter_mut().map(Vec::as_mut_slice).collect();
        self.links.exchange(&outgoing, &mut incoming)?;
        self.received[rank].copy_from_slice(&bytes[own.clone()]);
        sum(&mut bytes[own], &self.received[..world_size], dtype);
        Ok(())
    }

    /// Sends one's own part to all, and receives theirs.
    fn all_gather(&mut self, bytes: &mut [u8], parts: &[Range<usize>]) -> Result<()> {
        let rank = self.links.rank();
        let own = bytes[parts[rank].clone()].to_vec();
        let mut incoming = cut(bytes, parts);
        self.links.exchange(&vec![own.as_slice(); parts.len()], &mut incoming)
    }

    fn broadcast(&mut self, bytes: &mut [u8], root: usize) -> Result<()> {
        let (rank, world_size) = (self.links.rank(), self.links.world_size());
        let all = if rank == root { bytes.to_vec() } else { Vec::new() };
        let outgoing = vec![all.as_slice(); world_size];
        let mut nothing: Vec<[u8; 0]> = vec![[]; world_size];
        let mut incoming: Vec<&mut [u8]> = nothing.iter_mut().map(<[u8; 0]>::as_mut_slice).collect();
        if rank != root {
            incoming[root] = bytes;
        }
        self.links.exchange(&outgoing, &mut incoming)
    }
}

/// The buffer as bytes.
///
/// # Safety
/// It is still allocated, and nobody else touches it for as long as the slice lives.
unsafe fn host_bytes<'a>(buffer: &Buffer) -> &'a mut [u8] {
    assert_eq!(buffer.place, Place::Host, "these collectives cannot reach the memory of a GPU");
    // SAFETY: as promised.
    unsafe { std::slice::from_raw_parts_mut(buffer.address as *mut u8, buffer.size_bytes()) }
}

/// The part of each rank: as even as whole elements allow, the first ones the larger.
pub(super) fn parts(bytes: usize, element: usize, world_size: usize) -> Vec<Range<usize>> {
    let len = bytes / element;
    let end = |rank: usize| (len / world_size * rank + rank.min(len % world_size)) * element;
    (0..world_size).map(|rank| end(rank)..end(rank + 1)).collect()
}

/// Slices that lie one behind the other.
fn cut<'a>(mut bytes: &'a mut [u8], parts: &[Range<usize>]) -> Vec<&'a mut [u8]> {
    let mut slices = Vec::with_capacity(parts.len());
    for part in parts {
        let (slice, rest) = bytes.split_at_mut(part.len());
        slices.push(slice);
        bytes = rest;
    }
    slices
}

/// out = sum of the terms in f32, in order, rounded once.
fn sum(out: &mut [u8], terms: &[Vec<u8>], dtype: Dtype) {
    match dtype {
        Dtype::F32 => sum_as(out, terms, |x: f32| x, |x| x),
        Dtype::Bf16 => sum_as(out, terms, bf16::to_f32, bf16::from_f32),
        Dtype::F16 => sum_as(out, terms, f16::to_f32, f16::from_f32),
        Dtype::I32 => unreachable!("nobody adds up integers"),
    }
}

fn sum_as<T: bytemuck::Pod>(
    out: &mut [u8],
    terms: &[Vec<u8>],
    widen: impl Fn(T) -> f32,
    narrow: impl Fn(f32) -> T,
) {
    let element = size_of::<T>();
    for (i, out) in out.chunks_exact_mut(element).enumerate() {
        let term = |bytes: &Vec<u8>| widen(bytemuck::pod_read_unaligned(&bytes[i * element..][..element]));
        let mut sum = term(&terms[0]);
        for bytes in &terms[1..] {
            sum += term(bytes);
        }
        out.copy_from_slice(bytemuck::bytes_of(&narrow(sum)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::links::Threads;
    use std::time::Duration;

    /// Runs an operation on ranks that are threads; rank r starts with `start(r)`.
    fn run<T: bytemuck::Pod + Send>(
        world_size: usize,
        dtype: Dtype,
        collective: Collective,
        start: impl Fn(usize) -> Vec<T> + Sync,
    ) -> Vec<Vec<T>> {
        let start = &start;
        std::thread::scope(|scope| {
            let ranks: Vec<_> = Threads::of(world_size, Duration::from_secs(20))
                .into_iter()
                .map(|links| {
                    scope.spawn(move || {
                        let mut numbers = start(links.rank());
                        let buffer = buffer(&mut numbers, dtype);
                        HostCollectives::new(links).run(&Operation { collective, buffer }).unwrap();
                        numbers
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn buffer<T>(numbers: &mut [T], dtype: Dtype) -> Buffer {
        let (address, len) = (numbers.as_mut_ptr() as u64, numbers.len());
        Buffer { address, len, dtype, place: Place::Host }
    }

    fn numbers(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| (i * 7 + rank * 1000) as f32 * 0.1).collect()
    }

    #[test]
    fn sums_are_formed_in_the_order_of_ranks_whatever_the_lengths() {
        for (world_size, len) in [(1, 5), (2, 7), (3, 2), (4, 64), (4, 1), (5, 13)] {
            let want: Vec<f32> = (0..len)
                .map(|i| (1..world_size).fold(numbers(0, len)[i], |sum, rank| sum + numbers(rank, len)[i]))
                .collect();
            for got in run(world_size, Dtype::F32, Collective::AllReduce, |rank| numbers(rank, len)) {
                assert_eq!(got, want, "{world_size} ranks");
            }
            let got = run(world_size, Dtype::F32, Collective::ReduceScatter, |rank| numbers(rank, len));
            for (part, got) in parts(len * 4, 4, world_size).into_iter().zip(got) {
                let part = part.start / 4..part.end / 4;
                assert_eq!(got[part.clone()], want[part]);
            }
        }
    }

    #[test]
    fn narrow_numbers_are_added_in_f32_and_rounded_once() {
        // In bf16, 256 + 1 is 256 again: only a wider sum gets to 258.
        let start = |rank: usize| vec![bf16::from_f32(if rank == 0 { 256.0 } else { 1.0 }); 3];
        for got in run(3, Dtype::Bf16, Collective::AllReduce, start) {
            assert_eq!(got, [bf16::from_f32(258.0); 3]);
        }
        let got = run(2, Dtype::F16, Collective::AllReduce, |rank| vec![f16::from_f32(rank as f32 + 0.5)]);
        assert_eq!(got, [[f16::from_f32(2.0)]; 2]);
    }

    #[test]
    fn parts_are_gathered_and_broadcast() {
        let (world_size, len) = (3, 8);
        let ends: Vec<_> = parts(len * 4, 4, world_size).iter().map(|part| part.end / 4).collect();
        assert_eq!(ends, [3, 6, 8]);
        for got in run(world_size, Dtype::F32, Collective::AllGather, |rank| numbers(rank, len)) {
            let owner = |i: usize| ends.iter().position(|&end| i < end).unwrap();
            let want: Vec<f32> = (0..len).map(|i| numbers(owner(i), len)[i]).collect();
            assert_eq!(got, want);
        }
        for got in run(world_size, Dtype::F32, Collective::Broadcast { root: 1 }, |rank| numbers(rank, len)) {
            assert_eq!(got, numbers(1, len));
        }
    }

    #[test]
    fn a_rank_that_is_gone_is_named() {
        let mut links = Threads::of(2, Duration::from_millis(50));
        let other = links.pop().unwrap();
        let mut numbers = [1.0f32];
        let mut run = |links: &mut HostCollectives<Threads>| {
            let buffer = buffer(&mut numbers, Dtype::F32);
            links.run(&Operation { collective: Collective::AllReduce, buffer }).unwrap_err().to_string()
        };
        let mut collectives = HostCollectives::new(links.pop().unwrap());
        assert!(run(&mut collectives).starts_with("rank 1 has not been heard of"));
        drop(other);
        assert!(run(&mut collectives).starts_with("rank 1 is gone"));
    }
}
