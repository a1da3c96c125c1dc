//! Collectives over host memory, for CPU devices and the emulated device. Every sum is formed in
//! the order of ranks, so that all ranks, and all runs, get the same bits.

use super::transport::Transport;
use super::{Collective, Operation};
use crate::ops::{Buffer, Place};
use crate::tensor::Dtype;
use anyhow::Result;
use half::{bf16, f16};
use std::ops::Range;

/// Bytes that a rank sends, and receives, at a time: large operations go in pieces, so that their
/// buffers do not grow with the model. In unit tests every operation of some length does.
const PIECE_BYTES: usize = if cfg!(test) { 4 << 10 } else { 4 << 20 };

/// Bytes of the buffers of a rank: for what it sends, and what it receives.
pub const BUFFER_BYTES: usize = 2 * PIECE_BYTES;

/// Carries operations out one after another.
pub struct HostCollectives<T> {
    transport: T,
    /// Bytes of a piece that go to one rank.
    piece: usize,
    /// The bytes received from each rank, kept so that a step allocates nothing.
    received: Vec<Vec<u8>>,
}

impl<T: Transport> HostCollectives<T> {
    pub fn new(transport: T) -> Self {
        let ranks = transport.world_size();
        // Whole elements of any type, however many ranks there are.
        let piece = (PIECE_BYTES / ranks + 1).next_multiple_of(size_of::<f32>());
        HostCollectives { piece, received: vec![Vec::new(); ranks], transport }
    }

    /// # Errors
    /// As [`Transport::exchange`].
    pub fn run(&mut self, operation: &Operation) -> Result<()> {
        let Operation { collective, buffer } = operation;
        let dtype = buffer.dtype;
        // SAFETY: the caller that started the operation lends the buffer until it ends.
        let bytes = unsafe { host_bytes(buffer) };
        let partitions = partitions(bytes.len(), dtype.size(), self.transport.world_size());
        match *collective {
            Collective::AllReduce => {
                self.reduce_scatter(bytes, dtype, &partitions)?;
                self.all_gather(bytes, &partitions)
            }
            Collective::ReduceScatter => self.reduce_scatter(bytes, dtype, &partitions),
            Collective::AllGather => self.all_gather(bytes, &partitions),
            Collective::Broadcast { root } => self.broadcast(bytes, root),
        }
    }

    /// Sends each rank its partition, and sums this rank's partition over all ranks.
    fn reduce_scatter(&mut self, bytes: &mut [u8], dtype: Dtype, partitions: &[Range<usize>]) -> Result<()> {
        let (rank, world_size) = (self.transport.rank(), self.transport.world_size());
        for start in self.pieces(partitions) {
            let pieces: Vec<_> = partitions.iter().map(|partition| self.cut(partition, start)).collect();
            let own = pieces[rank].clone();
            for received in &mut self.received {
                received.resize(own.len(), 0);
            }
            let outgoing: Vec<&[u8]> = pieces.into_iter().map(|piece| &bytes[piece]).collect();
            let mut incoming: Vec<&mut [u8]> = self.received.iter_mut().map(Vec::as_mut_slice).collect();
            self.transport.exchange(&outgoing, &mut incoming)?;
            self.received[rank].copy_from_slice(&bytes[own.clone()]);
            sum(&mut bytes[own], &self.received[..world_size], dtype);
        }
        Ok(())
    }

    /// Sends this rank's partition to all ranks, and receives theirs.
    fn all_gather(&mut self, bytes: &mut [u8], partitions: &[Range<usize>]) -> Result<()> {
        let rank = self.transport.rank();
        for start in self.pieces(partitions) {
            let own = bytes[self.cut(&partitions[rank], start)].to_vec();
            let parts = split(bytes, partitions).into_iter().zip(partitions);
            let within = |partition: &Range<usize>| self.cut(&(0..partition.len()), start);
            let mut incoming: Vec<_> = parts.map(|(part, all)| &mut part[within(all)]).collect();
            self.transport.exchange(&vec![own.as_slice(); partitions.len()], &mut incoming)?;
        }
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut [u8], root: usize) -> Result<()> {
        let (rank, world_size) = (self.transport.rank(), self.transport.world_size());
        for bytes in bytes.chunks_mut(self.piece) {
            let all = if rank == root { bytes.to_vec() } else { Vec::new() };
            let outgoing = vec![all.as_slice(); world_size];
            let mut nothing: Vec<[u8; 0]> = vec![[]; world_size];
            let mut incoming: Vec<&mut [u8]> = nothing.iter_mut().map(<[u8; 0]>::as_mut_slice).collect();
            if rank != root {
                incoming[root] = bytes;
            }
            self.transport.exchange(&outgoing, &mut incoming)?;
        }
        Ok(())
    }

    /// Starts of the pieces of partitions, from the start of each.
    fn pieces(&self, partitions: &[Range<usize>]) -> impl Iterator<Item = usize> + use<T> {
        let longest = partitions.iter().map(Range::len).max().unwrap_or(0);
        (0..longest).step_by(self.piece)
    }

    /// The piece of a partition that starts there, which is shorter, or empty, at its end.
    fn cut(&self, partition: &Range<usize>, start: usize) -> Range<usize> {
        let end = partition.len().min(start + self.piece);
        partition.start + start.min(end)..partition.start + end
    }
}

/// Returns the buffer as bytes.
///
/// # Safety
/// The buffer stays allocated, and nothing else accesses it, for as long as the slice lives.
unsafe fn host_bytes<'a>(buffer: &Buffer) -> &'a mut [u8] {
    assert_eq!(buffer.place, Place::Host, "these collectives cannot access the memory of a GPU");
    // SAFETY: the buffer is in host memory, and the caller guarantees exclusive access to it.
    unsafe { std::slice::from_raw_parts_mut(buffer.address as *mut u8, buffer.size_bytes()) }
}

/// Returns the byte range of each rank's partition: as even as whole elements allow, the first ones
/// longer.
pub(super) fn partitions(bytes: usize, element: usize, world_size: usize) -> Vec<Range<usize>> {
    let len = bytes / element;
    let end = |rank: usize| (len / world_size * rank + rank.min(len % world_size)) * element;
    (0..world_size).map(|rank| end(rank)..end(rank + 1)).collect()
}

/// Splits bytes into consecutive slices.
fn split<'a>(mut bytes: &'a mut [u8], partitions: &[Range<usize>]) -> Vec<&'a mut [u8]> {
    let mut slices = Vec::with_capacity(partitions.len());
    for partition in partitions {
        let (slice, rest) = bytes.split_at_mut(partition.len());
        slices.push(slice);
        bytes = rest;
    }
    slices
}

/// `out` = sum of the terms in f32, in order, rounded once.
fn sum(out: &mut [u8], terms: &[Vec<u8>], dtype: Dtype) {
    match dtype {
        Dtype::F32 => sum_as(out, terms, |x: f32| x, |x| x),
        Dtype::Bf16 => sum_as(out, terms, bf16::to_f32, bf16::from_f32),
        Dtype::F16 => sum_as(out, terms, f16::to_f32, f16::from_f32),
        Dtype::I32 => unreachable!("integers are never reduced"),
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
    use crate::parallel::transport::testing::Threads;
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
                .map(|transport| {
                    scope.spawn(move || {
                        let mut numbers = start(transport.rank());
                        let buffer = buffer(&mut numbers, dtype);
                        HostCollectives::new(transport).run(&Operation { collective, buffer }).unwrap();
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
            for (partition, got) in partitions(len * 4, 4, world_size).into_iter().zip(got) {
                let partition = partition.start / 4..partition.end / 4;
                assert_eq!(got[partition.clone()], want[partition]);
            }
        }
    }

    #[test]
    fn narrow_numbers_are_added_in_f32_and_rounded_once() {
        // In bf16, 256 + 1 rounds to 256: only a wider sum reaches 258.
        let start = |rank: usize| vec![bf16::from_f32(if rank == 0 { 256.0 } else { 1.0 }); 3];
        for got in run(3, Dtype::Bf16, Collective::AllReduce, start) {
            assert_eq!(got, [bf16::from_f32(258.0); 3]);
        }
        let got = run(2, Dtype::F16, Collective::AllReduce, |rank| vec![f16::from_f32(rank as f32 + 0.5)]);
        assert_eq!(got, [[f16::from_f32(2.0)]; 2]);
    }

    #[test]
    fn partitions_are_gathered_and_buffers_broadcast() {
        let (world_size, len) = (3, 8);
        let ends: Vec<_> =
            partitions(len * 4, 4, world_size).iter().map(|partition| partition.end / 4).collect();
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
        let mut threads = Threads::of(2, Duration::from_millis(50));
        let other = threads.pop().unwrap();
        let mut numbers = [1.0f32];
        let mut run = |collectives: &mut HostCollectives<Threads>| {
            let buffer = buffer(&mut numbers, Dtype::F32);
            let operation = Operation { collective: Collective::AllReduce, buffer };
            collectives.run(&operation).unwrap_err().to_string()
        };
        let mut collectives = HostCollectives::new(threads.pop().unwrap());
        assert!(run(&mut collectives).starts_with("rank 1 has sent no message for 0 s"));
        drop(other);
        assert!(run(&mut collectives).starts_with("rank 1 is gone"));
    }
}
