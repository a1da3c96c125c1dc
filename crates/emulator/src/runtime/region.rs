//! The memory that one block of threads runs in: its state, the stacks of its threads, its shared memory, in one piece
//! aligned to its size. So the stack pointer alone says which block and which thread is running, without thread-local
//! variables, which a compiler may cache across a switch of stacks. `kernels/emulated/runtime.h` has the same constants.

use anyhow::{Result, bail};

pub const REGION_BYTES: usize = 1 << 27;
/// Where the arguments of the kernel lie, as long as CUDA allows.
pub const ARGUMENTS_OFFSET: usize = 1 << 16;
pub const ARGUMENTS_BYTES: usize = 4096;
/// Where the indices of the threads lie: three numbers each.
pub const INDICES_OFFSET: usize = 1 << 17;
pub const STACKS_OFFSET: usize = 1 << 20;
pub const STACK_BYTES: usize = 1 << 16;
/// Aligned to its size: the low bits of an address are the address in shared memory.
pub const ARENA_OFFSET: usize = 96 << 20;
pub const ARENA_BYTES: usize = 256 << 10;
pub const MAX_THREADS: usize = 1024;

const GUARD_BYTES: usize = 4096;

pub struct Region {
    base: *mut u8,
    /// So many stacks have a guard page at their end.
    guarded: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for Region {}

impl Region {
    pub fn new() -> Result<Self> {
        // SAFETY: a new mapping, of which the parts off the alignment are given back.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let start = libc::mmap(std::ptr::null_mut(), 2 * REGION_BYTES, protection, flags, -1, 0);
            if start == libc::MAP_FAILED {
                bail!("no {} MiB of address space for an emulated block", REGION_BYTES >> 19);
            }
            let start = start.cast::<u8>();
            let before = start.align_offset(REGION_BYTES);
            let base = start.wrapping_add(before);
            if before > 0 {
                libc::munmap(start.cast(), before);
            }
            libc::munmap(base.wrapping_add(REGION_BYTES).cast(), REGION_BYTES - before);
            Ok(Region { base, guarded: 0 })
        }
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Makes the first `threads` stacks end in a page that faults.
    pub fn guard_stacks(&mut self, threads: usize) {
        for thread in self.guarded..threads {
            let end = self.base.wrapping_add(STACKS_OFFSET + thread * STACK_BYTES);
            // SAFETY: a page of ours, in a stack that is not in use. Without the guard all works but the fault.
            unsafe { libc::mprotect(end.cast(), GUARD_BYTES, libc::PROT_NONE) };
        }
        self.guarded = self.guarded.max(threads);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and whatever used it borrows or owns this.
        unsafe { libc::munmap(self.base.cast(), REGION_BYTES) };
    }
}

/// The stack pointer: of a CUDA thread if called from one.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mov {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags));
    }
    sp
}
