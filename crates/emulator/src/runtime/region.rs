//! The memory in which one block of threads runs: its state, the stacks of its threads and its
//! shared memory, in one piece aligned to its size. So the stack pointer alone tells which block
//! and which thread is running, without thread-local variables, which a compiler may cache across a
//! switch of stacks. `emulated/runtime.h` has the same constants.

use anyhow::{Result, bail};

pub const REGION_BYTES: usize = 1 << 27;
/// The arguments of the kernel, as many bytes as CUDA allows.
pub const ARGUMENTS_OFFSET: usize = 1 << 16;
pub const ARGUMENTS_BYTES: usize = 4096;
/// The indices of the threads: three numbers each.
pub const INDICES_OFFSET: usize = 1 << 17;
pub const STACKS_OFFSET: usize = 1 << 20;
pub const STACK_BYTES: usize = 1 << 16;
/// Shared memory, aligned to its size: the low bits of an address are the address in shared memory.
pub const ARENA_OFFSET: usize = 96 << 20;
pub const ARENA_BYTES: usize = 256 << 10;
pub const MAX_THREADS: usize = 1024;

const GUARD_BYTES: usize = 4096;

pub struct Region {
    base: *mut u8,
    /// The number of stacks that end in a guard page.
    guarded: usize,
}

// SAFETY: a region owns its memory.
unsafe impl Send for Region {}

impl Region {
    pub fn new() -> Result<Self> {
        // SAFETY: the mapping is new; only the parts of it outside the aligned region are unmapped.
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
            // SAFETY: the page is ours, at the end of a stack that is not in use. If this fails,
            // only the guard is missing.
            unsafe { libc::mprotect(end.cast(), GUARD_BYTES, libc::PROT_NONE) };
        }
        self.guarded = self.guarded.max(threads);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `new` mapped it, and all users borrow or own this region.
        unsafe { libc::munmap(self.base.cast(), REGION_BYTES) };
    }
}

/// The stack pointer, which is that of a CUDA thread if it calls this.
#[inline(always)]
pub fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: this only reads a register.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mov {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags));
    }
    sp
}
