//! What `-fsanitize=thread` makes the compiler insert around every access of a checked kernel. libtsan is never linked: these
//! take its place.

use super::super::block::me;
use super::super::failure::Site;
use super::super::region::{STACK_BYTES, STACKS_OFFSET};
use super::Kind;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

fn access(address: *mut c_void, bytes: usize, kind: Kind) {
    let me = me();
    let own_stack = me.block.base().addr() + STACKS_OFFSET + me.thread * STACK_BYTES;
    if address.addr().wrapping_sub(own_stack) >= STACK_BYTES {
        me.block.check_access(me, address.addr(), bytes, kind, Site::UNKNOWN);
    }
}

/// What an atomic operation on `T` does to what the checker knows.
fn atomic<T>(address: *mut T) -> *mut T {
    let me = me();
    me.block.check_atomic(me, address.addr(), size_of::<T>());
    address
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $unaligned_read:ident, $unaligned_write:ident: $bytes:literal;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $read(address: *mut c_void) {
            access(address, $bytes, Kind::Read);
        }
        #[unsafe(no_mangle)]
        extern "C" fn $write(address: *mut c_void) {
            access(address, $bytes, Kind::Write);
        }
        #[unsafe(no_mangle)]
        extern "C" fn $unaligned_read(address: *mut c_void) {
            access(address, $bytes, Kind::Read);
        }
        #[unsafe(no_mangle)]
        extern "C" fn $unaligned_write(address: *mut c_void) {
            access(address, $bytes, Kind::Write);
        }
    )* };
}
accesses! {
    __tsan_read1, __tsan_write1, __tsan_unaligned_read1, __tsan_unaligned_write1: 1;
    __tsan_read2, __tsan_write2, __tsan_unaligned_read2, __tsan_unaligned_write2: 2;
    __tsan_read4, __tsan_write4, __tsan_unaligned_read4, __tsan_unaligned_write4: 4;
    __tsan_read8, __tsan_write8, __tsan_unaligned_read8, __tsan_unaligned_write8: 8;
    __tsan_read16, __tsan_write16, __tsan_unaligned_read16, __tsan_unaligned_write16: 16;
}

#[unsafe(no_mangle)]
extern "C" fn __tsan_read_range(address: *mut c_void, bytes: usize) {
    access(address, bytes, Kind::Read);
}
#[unsafe(no_mangle)]
extern "C" fn __tsan_write_range(address: *mut c_void, bytes: usize) {
    access(address, bytes, Kind::Write);
}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_entry(_caller: *mut c_void) {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_exit() {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}

macro_rules! atomics {
    ($($kind:ty, $atomic:ty: $load:ident, $store:ident, $add:ident, $or:ident, $and:ident, $exchange:ident, $cas:ident, $cas_strong:ident, $cas_weak:ident;)*) => { $(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $load(address: *mut $kind, _order: i32) -> $kind {
            // SAFETY: the kernel vouches for the address.
            unsafe { <$atomic>::from_ptr(atomic(address)) }.load(SeqCst)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $store(address: *mut $kind, value: $kind, _order: i32) {
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(atomic(address)) }.store(value, SeqCst)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $add(address: *mut $kind, value: $kind, _order: i32) -> $kind {
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(atomic(address)) }.fetch_add(value, SeqCst)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $or(address: *mut $kind, value: $kind, _order: i32) -> $kind {
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(atomic(address)) }.fetch_or(value, SeqCst)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $and(address: *mut $kind, value: $kind, _order: i32) -> $kind {
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(atomic(address)) }.fetch_and(value, SeqCst)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $exchange(address: *mut $kind, value: $kind, _order: i32) -> $kind {
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(atomic(address)) }.swap(value, SeqCst)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $cas(address: *mut $kind, expected: $kind, value: $kind, _order: i32, _failure: i32) -> $kind {
            // SAFETY: as above.
            unsafe { <$atomic>::from_ptr(atomic(address)) }
                .compare_exchange(expected, value, SeqCst, SeqCst)
                .unwrap_or_else(|found| found)
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $cas_strong(address: *mut $kind, expected: *mut $kind, value: $kind, order: i32, failure: i32) -> i32 {
            // SAFETY: as above; `expected` is a variable of the thread.
            unsafe {
                let found = $cas(address, *expected, value, order, failure);
                let same = found == *expected;
                *expected = found;
                i32::from(same)
            }
        }
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $cas_weak(address: *mut $kind, expected: *mut $kind, value: $kind, order: i32, failure: i32) -> i32 {
            // SAFETY: as above.
            unsafe { $cas_strong(address, expected, value, order, failure) }
        }
    )* };
}
atomics! {
    u32, AtomicU32: __tsan_atomic32_load, __tsan_atomic32_store, __tsan_atomic32_fetch_add, __tsan_atomic32_fetch_or, __tsan_atomic32_fetch_and, __tsan_atomic32_exchange, __tsan_atomic32_compare_exchange_val, __tsan_atomic32_compare_exchange_strong, __tsan_atomic32_compare_exchange_weak;
    u64, AtomicU64: __tsan_atomic64_load, __tsan_atomic64_store, __tsan_atomic64_fetch_add, __tsan_atomic64_fetch_or, __tsan_atomic64_fetch_and, __tsan_atomic64_exchange, __tsan_atomic64_compare_exchange_val, __tsan_atomic64_compare_exchange_strong, __tsan_atomic64_compare_exchange_weak;
}
