//! Arenas in host memory, and a run-time borrow checker over them.
//!
//! Tensors are plain handles, so the compiler cannot know whether two of them overlap. An operation
//! takes all its slices from one [`Borrow`]. It refuses a slice that overlaps an earlier one,
//! unless both are read-only, and any slice of memory that is lent to a communicator.

use crate::ops::{Dropout, Mask};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::{Result, anyhow};
use bytemuck::Pod;
use cuda_emulator::Lent;
use half::bf16;
use memmap2::MmapMut;
use std::cell::RefCell;
use std::ops::Range;

/// The arenas of a [`MemoryPlan`], each aligned to a page. They are mapped, so a page takes memory
/// from its first use on: what fills the parameters is freed before activations are there.
#[derive(Default)]
pub struct Memory {
    arenas: Vec<MmapMut>,
    lent: Lent,
}

impl Memory {
    /// Allocates the arenas of a plan.
    ///
    /// # Errors
    /// If the machine refuses the memory.
    pub fn allocate(plan: &MemoryPlan) -> Result<Self> {
        let arenas = plan
            .arenas
            .iter()
            .map(|arena| {
                // A map cannot be empty, nor as large as a saturated size.
                let bytes = arena.size_bytes.clamp(1, isize::MAX as usize);
                MmapMut::map_anon(bytes).map_err(|_| {
                    let mib = arena.size_bytes >> 20;
                    anyhow!(
                        "out of memory: {} need {mib} MiB; a smaller batch (-b) or model (-e) needs less",
                        arena.name
                    )
                })
            })
            .collect::<Result<_>>()?;
        Ok(Memory { arenas, lent: Lent::default() })
    }

    /// Starts the borrows of one operation.
    pub fn borrow(&mut self) -> Borrow<'_> {
        let bases = self.arenas.iter_mut().map(|arena| (arena.as_mut_ptr(), arena.len())).collect();
        Borrow { bases, lent: &self.lent, taken: RefCell::default(), _memory: std::marker::PhantomData }
    }

    /// Lends a tensor to a communicator and returns its address. Operations may not touch it until
    /// it is taken back.
    pub fn lend(&mut self, tensor: Tensor) -> u64 {
        let start = self.borrow().bytes_mut(tensor).as_mut_ptr();
        self.lent.lend(start.expose_provenance(), tensor.size_bytes());
        start as u64
    }

    /// Takes a lent tensor back.
    ///
    /// # Panics
    /// If it was not lent.
    pub fn reclaim(&mut self, tensor: Tensor) {
        let start = self.arenas[tensor.arena].as_ptr().addr() + tensor.offset;
        self.lent.reclaim(start, tensor.size_bytes());
    }
}

/// The slices of one operation.
pub struct Borrow<'a> {
    /// Start and size in bytes of each arena.
    bases: Vec<(*mut u8, usize)>,
    lent: &'a Lent,
    taken: RefCell<Vec<Taken>>,
    _memory: std::marker::PhantomData<&'a mut Memory>,
}

struct Taken {
    arena: usize,
    bytes: Range<usize>,
    writable: bool,
}

impl<'a> Borrow<'a> {
    pub fn read(&self, tensor: Tensor) -> &'a [f32] {
        self.shared(tensor, Dtype::F32)
    }

    pub fn read_i32(&self, tensor: Tensor) -> &'a [i32] {
        self.shared(tensor, Dtype::I32)
    }

    /// The mask of a dropout in its current state.
    pub fn mask(&self, dropout: Dropout) -> Mask {
        dropout.mask(*bytemuck::from_bytes(self.bytes(dropout.state)))
    }

    pub fn write(&self, tensor: Tensor) -> &'a mut [f32] {
        assert_eq!(tensor.dtype, Dtype::F32, "a CPU operation got a tensor of the wrong type");
        bytemuck::cast_slice_mut(self.bytes_mut(tensor))
    }

    pub fn write_bf16(&self, tensor: Tensor) -> &'a mut [bf16] {
        assert_eq!(tensor.dtype, Dtype::Bf16, "a CPU operation got a tensor of the wrong type");
        bytemuck::cast_slice_mut(self.bytes_mut(tensor))
    }

    pub fn bytes(&self, tensor: Tensor) -> &'a [u8] {
        let start = self.take(tensor, false);
        // SAFETY: `take` checked that the range lies inside an arena, which outlives 'a, and that
        // no mutable slice overlaps it; all bytes are valid as u8.
        unsafe { std::slice::from_raw_parts(start, tensor.size_bytes()) }
    }

    pub fn bytes_mut(&self, tensor: Tensor) -> &'a mut [u8] {
        let start = self.take(tensor, true);
        // SAFETY: `take` checked that the range lies inside an arena, which outlives 'a, and that
        // no other slice overlaps it; all bytes are valid as u8.
        unsafe { std::slice::from_raw_parts_mut(start, tensor.size_bytes()) }
    }

    fn shared<T: Pod>(&self, tensor: Tensor, dtype: Dtype) -> &'a [T] {
        assert_eq!(tensor.dtype, dtype, "a CPU operation got a tensor of the wrong type");
        bytemuck::cast_slice(self.bytes(tensor))
    }

    /// Records the borrow and returns its start.
    fn take(&self, tensor: Tensor, writable: bool) -> *mut u8 {
        let (base, size) = self.bases[tensor.arena];
        let bytes = tensor.offset..tensor.offset + tensor.size_bytes();
        assert!(bytes.end <= size, "tensor {tensor:?} ends past its arena of {size} bytes");
        if let Some(refusal) = self.lent.refusal(base.addr() + bytes.start, bytes.len()) {
            panic!("an operation on {tensor:?}, {refusal}");
        }
        let mut taken = self.taken.borrow_mut();
        for other in taken.iter().filter(|o| o.arena == tensor.arena && (o.writable || writable)) {
            assert!(
                bytes.end <= other.bytes.start || other.bytes.end <= bytes.start,
                "an operation got overlapping tensors, one of them writable: {tensor:?} and bytes {:?}",
                other.bytes
            );
        }
        taken.push(Taken { arena: tensor.arena, bytes: bytes.clone(), writable });
        // SAFETY: the range lies inside the arena, as checked above.
        unsafe { base.add(bytes.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (Memory, Tensor) {
        let mut plan = MemoryPlan::new();
        let tensor = plan.add("test", "x", Dtype::F32, 100);
        (Memory::allocate(&plan).unwrap(), tensor)
    }

    #[test]
    fn disjoint_slices_coexist() {
        let (mut memory, x) = memory();
        let borrow = memory.borrow();
        let (a, b) = (borrow.write(x.slice(0, 50)), borrow.read(x.slice(50, 50)));
        a.fill(1.0);
        assert!(b.iter().all(|&v| v == 0.0));
        assert_eq!(borrow.read(x.slice(50, 10)).len(), 10, "two readers may share");
    }

    #[test]
    #[should_panic(expected = "overlapping")]
    fn overlapping_write_is_refused() {
        let (mut memory, x) = memory();
        let borrow = memory.borrow();
        borrow.read(x.slice(0, 51));
        borrow.write(x.slice(50, 50));
    }

    #[test]
    #[should_panic(expected = "an operation on Tensor { arena: 0, offset: 196, len: 2, dtype: F32 }, at ")]
    fn what_is_lent_is_not_read() {
        let (mut memory, x) = memory();
        memory.lend(x.slice(50, 20));
        memory.borrow().read(x.slice(49, 2));
    }

    #[test]
    #[should_panic(expected = ": 80 bytes at ")]
    fn what_is_lent_is_not_lent_again() {
        let (mut memory, x) = memory();
        memory.lend(x.slice(50, 20));
        memory.lend(x.slice(69, 2));
    }

    #[test]
    fn what_is_taken_back_is_as_before() {
        let (mut memory, x) = memory();
        let [a, b] = [x.slice(0, 20), x.slice(20, 20)];
        memory.lend(a);
        memory.lend(b);
        memory.borrow().write(x.slice(40, 60));
        memory.reclaim(a);
        memory.borrow().write(a);
        memory.reclaim(b);
        memory.borrow().write(x);
    }

    #[test]
    #[should_panic(expected = "are reclaimed, but were not lent")]
    fn what_was_not_lent_is_not_taken_back() {
        let (mut memory, x) = memory();
        memory.lend(x.slice(0, 20));
        memory.reclaim(x.slice(0, 19));
    }

    #[test]
    #[should_panic(expected = "past its arena")]
    fn out_of_bounds_is_refused() {
        let (mut memory, x) = memory();
        memory.borrow().read(Tensor { len: 1000, ..x });
    }
}
