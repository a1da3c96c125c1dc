//! Shared memory: first the dynamic part, then the variables of the kernel, with gaps between them.
//! All of it is 0xff until a block writes it, which is NaN in every floating-point type.

use super::block::{Block, Me, me};
use super::checker::Kind;
use super::failure::Site;
use super::region::{ARENA_BYTES, ARENA_OFFSET};
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};

/// CUDA reserves the first KiB.
pub const DYNAMIC_OFFSET: usize = 1 << 10;
/// The most bytes that a block can have: in variables, and in all.
pub const MAX_STATIC_BYTES: usize = 48 << 10;
pub const MAX_BYTES: usize = 227 << 10;

const POISON: u8 = 0xff;
const SPACE_BETWEEN: usize = 32;

struct Variable {
    key: *const c_void,
    start: usize,
    bytes: usize,
}

pub struct SharedMemory {
    arena: *mut u8,
    dynamic_bytes: Cell<usize>,
    variables: RefCell<Vec<Variable>>,
}

impl SharedMemory {
    pub fn new(arena: *mut u8) -> Self {
        SharedMemory { arena, dynamic_bytes: Cell::new(0), variables: RefCell::default() }
    }

    /// Prepares for a new block.
    pub fn reset(&self, dynamic_bytes: usize) {
        self.dynamic_bytes.set(dynamic_bytes);
        self.variables.borrow_mut().clear();
        // SAFETY: `Job::new` limits dynamic memory to `MAX_BYTES`, so this is inside the arena.
        unsafe { self.arena.add(DYNAMIC_OFFSET).write_bytes(POISON, dynamic_bytes) };
    }

    /// Whether these bytes are inside dynamic memory or one variable.
    pub fn holds(&self, start: usize, bytes: usize) -> bool {
        let inside = |from: usize, len: usize| start >= from && start + bytes <= from + len;
        inside(DYNAMIC_OFFSET, self.dynamic_bytes.get())
            || self.variables.borrow().iter().any(|v| inside(v.start, v.bytes))
    }

    /// The place of a variable, which is allocated when it is first used.
    ///
    /// # Errors
    /// If there is not enough shared memory.
    fn variable(&self, key: *const c_void, bytes: usize) -> Result<*mut u8, String> {
        let mut variables = self.variables.borrow_mut();
        let start = match variables.iter().find(|v| v.key == key) {
            Some(variable) => variable.start,
            None => {
                let dynamic = self.dynamic_bytes.get();
                let end = variables.last().map_or(DYNAMIC_OFFSET + dynamic, |v| v.start + v.bytes);
                let total = variables.iter().map(|v| v.bytes.next_multiple_of(16)).sum::<usize>() + bytes;
                if total > MAX_STATIC_BYTES || total + dynamic > MAX_BYTES {
                    return Err(format!(
                        "{total} bytes of shared variables and {dynamic} of dynamic shared memory; at most \
                         {MAX_STATIC_BYTES} and {MAX_BYTES} in all"
                    ));
                }
                let start = (end + SPACE_BETWEEN).next_multiple_of(16);
                variables.push(Variable { key, start, bytes });
                // SAFETY: the sum was checked, and the arena has room for the first KiB and the
                // gaps, too.
                unsafe { self.arena.add(start).write_bytes(POISON, bytes) };
                start
            }
        };
        Ok(self.arena.wrapping_add(start))
    }
}

impl Block {
    /// The place of 16 bytes at a 32-bit address of shared memory.
    ///
    /// Fails on behalf of the thread that uses the address if they are misaligned or not in shared
    /// memory.
    pub fn shared_16_bytes(&self, user: Me, address: u32, site: Site) -> *mut [u8; 16] {
        user.require_local(address, site);
        let start = address as usize;
        if !start.is_multiple_of(16) {
            user.fail(site, format!("the address {address:#x} in shared memory is not a multiple of 16"));
        }
        if !self.shared.holds(start, 16) {
            let dynamic = self.shared.dynamic_bytes.get();
            let message = format!(
                "16 bytes at {address:#x} are outside of shared memory ({dynamic} bytes of dynamic memory at \
                 {DYNAMIC_OFFSET:#x})"
            );
            user.fail(site, message);
        }
        self.base().wrapping_add(ARENA_OFFSET + start).cast()
    }

    pub fn read_shared(&self, reader: Me, address: u32, site: Site) -> [u8; 16] {
        let place = self.shared_16_bytes(reader, address, site);
        self.check_access(reader, place.addr(), 16, Kind::Read, site);
        // SAFETY: `shared_16_bytes` returned a place inside the arena.
        unsafe { place.read() }
    }

    pub fn write_shared(&self, writer: Me, address: u32, bytes: [u8; 16], site: Site) {
        let place = self.shared_16_bytes(writer, address, site);
        self.check_access(writer, place.addr(), 16, Kind::Write, site);
        // SAFETY: `shared_16_bytes` returned a place inside the arena.
        unsafe { place.write(bytes) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_shared(
    key: *const c_void,
    bytes: u64,
    name: *const c_char,
    file: *const c_char,
    line: u32,
) -> *mut c_void {
    let me = me();
    match me.block.shared.variable(key, bytes as usize) {
        Ok(place) => place.cast(),
        Err(message) => {
            // SAFETY: kernels pass a string literal.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            me.fail(Site::new("", file, line), format!("no room for `{name}`: {message}"))
        }
    }
}

const _: () = assert!(DYNAMIC_OFFSET + MAX_BYTES < ARENA_BYTES);
