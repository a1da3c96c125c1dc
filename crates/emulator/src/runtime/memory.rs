//! Global memory: allocations on the host.

use crate::lent::Lent;
use anyhow::{Result, bail};
use std::alloc::{Layout, alloc_zeroed, dealloc};

const ALIGN: usize = 256;

struct Allocation {
    address: usize,
    bytes: usize,
    /// The memory that the system allocated, and its start.
    layout: Layout,
    start: usize,
}

/// The allocations of a device, in the order of their addresses.
#[derive(Default)]
pub struct GlobalMemory {
    allocations: Vec<Allocation>,
    pub lent: Lent,
}

impl GlobalMemory {
    /// Allocates zeroed memory. It is aligned here, because the system's allocator clears what is
    /// to be aligned, and so touches every page.
    pub fn allocate(&mut self, bytes: usize) -> Result<u64> {
        let layout = Layout::array::<u8>(bytes.saturating_add(ALIGN))?;
        // SAFETY: the layout has at least one byte.
        let start = unsafe { alloc_zeroed(layout) }.expose_provenance();
        let address = start.next_multiple_of(ALIGN);
        if start == 0 {
            bail!("{} MiB of memory for the emulated device: this machine does not have enough", bytes >> 20);
        }
        let place = self.allocations.partition_point(|a| a.address < address);
        self.allocations.insert(place, Allocation { address, bytes, layout, start });
        Ok(address as u64)
    }

    /// Start and end of every allocation, in order.
    pub fn bounds(&self) -> Vec<(usize, usize)> {
        self.allocations.iter().map(|a| (a.address, a.address + a.bytes)).collect()
    }

    /// The place of bytes on which the host is to work.
    ///
    /// # Errors
    /// If they are not inside one allocation.
    ///
    /// # Panics
    /// If some of them are lent.
    pub fn touch(&self, address: u64, bytes: usize, what: &str) -> Result<*mut u8> {
        if let Some(refusal) = self.lent.refusal(address as usize, bytes) {
            panic!("{what} {bytes} bytes {refusal}");
        }
        self.place(address, bytes)
    }

    /// The place of bytes in the memory of the host.
    ///
    /// # Errors
    /// If they are not inside one allocation.
    pub fn place(&self, address: u64, bytes: usize) -> Result<*mut u8> {
        let start = address as usize;
        let before = self.allocations.partition_point(|a| a.address <= start);
        let found = before.checked_sub(1).map(|i| &self.allocations[i]);
        match found {
            Some(a) if start - a.address + bytes <= a.bytes => {
                Ok(std::ptr::with_exposed_provenance_mut(start))
            }
            _ => bail!("{bytes} bytes at {start:#x} are not inside an allocation of the emulated device"),
        }
    }
}

impl Drop for GlobalMemory {
    fn drop(&mut self) {
        for a in &self.allocations {
            // SAFETY: `allocate` allocated it with this layout, and it is freed only here.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(a.start), a.layout) };
        }
    }
}
