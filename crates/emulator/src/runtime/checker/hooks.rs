//! The calls that `-fsanitize=thread` inserts around every access of an instrumented kernel.
//! libtsan is never linked: these functions take its place. Each jumps to the function that does
//! the work, with one more argument, the return address in the kernel.

use super::super::block::me;
use super::super::failure::Site;
use super::super::region::{STACK_BYTES, STACKS_OFFSET};
use super::Kind;
use std::arch::naked_asm;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Jumps to a function whose sixth argument is the return address.
#[cfg(target_arch = "x86_64")]
macro_rules! jump_to {
    ($work:expr) => {
        naked_asm!("mov r9, [rsp]", "jmp {}", sym $work)
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! jump_to {
    ($work:expr) => {
        naked_asm!("mov x5, x30", "b {}", sym $work)
    };
}

macro_rules! hook {
    ($name:ident, $work:expr) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            jump_to!($work)
        }
    };
}

fn access(address: usize, bytes: usize, kind: Kind, from: usize) {
    let me = me();
    let own_stack = me.block.base().addr() + STACKS_OFFSET + me.thread * STACK_BYTES;
    if address.wrapping_sub(own_stack) >= STACK_BYTES {
        me.block.check_access(me, address, bytes, kind, Site::UNKNOWN);
        me.block.count_access(me, (from, 0), address, bytes, kind);
    }
}

extern "C" fn read<const BYTES: usize>(address: usize, _: usize, _: usize, _: usize, _: usize, from: usize) {
    access(address, BYTES, Kind::Read, from);
}
extern "C" fn write<const BYTES: usize>(address: usize, _: usize, _: usize, _: usize, _: usize, from: usize) {
    access(address, BYTES, Kind::Write, from);
}
extern "C" fn read_range(address: usize, bytes: usize, _: usize, _: usize, _: usize, from: usize) {
    access(address, bytes, Kind::Read, from);
}
extern "C" fn write_range(address: usize, bytes: usize, _: usize, _: usize, _: usize, from: usize) {
    access(address, bytes, Kind::Write, from);
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $unaligned_read:ident, $unaligned_write:ident: $bytes:literal;)*) => { $(
        hook!($read, read::<$bytes>);
        hook!($write, write::<$bytes>);
        hook!($unaligned_read, read::<$bytes>);
        hook!($unaligned_write, write::<$bytes>);
    )* };
}
accesses! {
    __tsan_read1, __tsan_write1, __tsan_unaligned_read1, __tsan_unaligned_write1: 1;
    __tsan_read2, __tsan_write2, __tsan_unaligned_read2, __tsan_unaligned_write2: 2;
    __tsan_read4, __tsan_write4, __tsan_unaligned_read4, __tsan_unaligned_write4: 4;
    __tsan_read8, __tsan_write8, __tsan_unaligned_read8, __tsan_unaligned_write8: 8;
    __tsan_read16, __tsan_write16, __tsan_unaligned_read16, __tsan_unaligned_write16: 16;
}
hook!(__tsan_read_range, read_range);
hook!(__tsan_write_range, write_range);

#[unsafe(no_mangle)]
extern "C" fn __tsan_func_entry(_caller: *mut c_void) {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_exit() {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}

/// Reports an atomic operation on `T` to the checker.
fn atomic<T>(address: *mut T) -> *mut T {
    let me = me();
    me.block.check_atomic(me, address.addr(), size_of::<T>());
    address
}

/// Reports an atomic operation that changes memory to the checker and to the counter. Loads are not
/// counted: they begin the loops that stand for some of CUDA's atomics here.
fn update<T>(address: *mut T, from: usize) -> *mut T {
    let me = me();
    me.block.count_access(me, (from, 0), address.addr(), size_of::<T>(), Kind::Atomic);
    atomic(address)
}

macro_rules! updates {
    ($kind:ty, $atomic:ty: $($hook:ident = $method:ident;)*) => { $( const _: () = {
        unsafe extern "C" fn work(address: *mut $kind, value: $kind, _order: i32, _: usize, _: usize, from: usize) -> $kind {
            // SAFETY: the kernel vouches for the address.
            unsafe { <$atomic>::from_ptr(update(address, from)) }.$method(value, SeqCst)
        }
        hook!($hook, work);
    }; )* };
}
updates! { u32, AtomicU32:
    __tsan_atomic32_fetch_add = fetch_add;
    __tsan_atomic32_fetch_or = fetch_or;
    __tsan_atomic32_fetch_and = fetch_and;
    __tsan_atomic32_exchange = swap;
}
updates! { u64, AtomicU64:
    __tsan_atomic64_fetch_add = fetch_add;
    __tsan_atomic64_fetch_or = fetch_or;
    __tsan_atomic64_fetch_and = fetch_and;
    __tsan_atomic64_exchange = swap;
}

macro_rules! atomics {
    ($kind:ty, $atomic:ty: $load:ident, $store:ident, $cas:ident, $cas_strong:ident, $cas_weak:ident;) => {
        const _: () = {
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $load(address: *mut $kind, _order: i32) -> $kind {
                // SAFETY: the kernel vouches for the address.
                unsafe { <$atomic>::from_ptr(atomic(address)) }.load(SeqCst)
            }
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $store(address: *mut $kind, value: $kind, _order: i32) {
                // SAFETY: the kernel vouches for the address.
                unsafe { <$atomic>::from_ptr(atomic(address)) }.store(value, SeqCst)
            }
            unsafe extern "C" fn exchange(
                address: *mut $kind,
                expected: $kind,
                value: $kind,
                _: i32,
                _: i32,
                from: usize,
            ) -> $kind {
                // SAFETY: the kernel vouches for the address.
                unsafe { <$atomic>::from_ptr(update(address, from)) }
                    .compare_exchange(expected, value, SeqCst, SeqCst)
                    .unwrap_or_else(|found| found)
            }
            unsafe extern "C" fn try_exchange(
                address: *mut $kind,
                expected: *mut $kind,
                value: $kind,
                order: i32,
                failure: i32,
                from: usize,
            ) -> i32 {
                // SAFETY: the kernel vouches for the address; `expected` is a variable of the
                // thread.
                unsafe {
                    let found = exchange(address, *expected, value, order, failure, from);
                    let same = found == *expected;
                    *expected = found;
                    i32::from(same)
                }
            }
            hook!($cas, exchange);
            hook!($cas_strong, try_exchange);
            hook!($cas_weak, try_exchange);
        };
    };
}
atomics! {
    u32, AtomicU32: __tsan_atomic32_load, __tsan_atomic32_store, __tsan_atomic32_compare_exchange_val, __tsan_atomic32_compare_exchange_strong, __tsan_atomic32_compare_exchange_weak;
}
atomics! {
    u64, AtomicU64: __tsan_atomic64_load, __tsan_atomic64_store, __tsan_atomic64_compare_exchange_val, __tsan_atomic64_compare_exchange_strong, __tsan_atomic64_compare_exchange_weak;
}
