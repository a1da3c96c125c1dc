//! Flags and turns in global memory, by which the blocks of a launch wait for each other. A thread
//! that waits for one sleeps until nothing else of its block can run. Then its OS thread looks at
//! it again and again, for as long as other blocks run that could change it.

use super::block::{Block, Me, me};
use super::checker::Kind;
use super::cluster::Cluster;
use super::failure::Site;
use std::cell::RefCell;
use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

/// A number in global memory and the least value that a thread waits for: 1 of a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Awaited {
    address: usize,
    least: u32,
}

impl Awaited {
    fn is_reached(&self) -> bool {
        number_at(self.address).load(SeqCst) >= self.least
    }
}

/// A thread that waits.
struct Waiting {
    thread: usize,
    awaited: Awaited,
    site: Site,
}

/// The threads of a block that wait for flags or turns.
#[derive(Default)]
pub struct Flags(RefCell<Vec<Waiting>>);

impl Flags {
    pub fn reset(&self) {
        self.0.borrow_mut().clear();
    }

    /// Describes the waiting threads, for the report of a deadlock.
    pub fn describe(&self) -> Vec<String> {
        let describe = |w: &Waiting| {
            format!(
                "thread {} waits in {} for {} at {:#x}, and no block that runs can raise it (blocks that have not \
                 started only run after this one)",
                w.thread, w.site, w.awaited.least, w.awaited.address
            )
        };
        self.0.borrow().iter().map(describe).collect()
    }

    fn awaited(&self) -> Vec<Awaited> {
        self.0.borrow().iter().map(|w| w.awaited).collect()
    }
}

fn number_at(address: usize) -> &'static AtomicU32 {
    // SAFETY: the kernel vouches for the address, which is aligned; all accesses during a launch
    // are atomic.
    unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(address)) }
}

/// The OS threads that run the blocks of a launch.
#[derive(Default)]
pub struct Progress(Mutex<State>);

#[derive(Default)]
struct State {
    /// OS threads whose block can run.
    running: usize,
    /// The values that the blocks of the others wait for.
    awaited: Vec<Awaited>,
    /// Whether a block has failed, and with it the launch.
    failed: bool,
}

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn start(&self, threads: usize) {
        *self.state() = State { running: threads, ..State::default() };
    }

    /// Records that an OS thread has no more blocks to run, or has failed.
    pub fn end(&self, failed: bool) {
        let mut state = self.state();
        state.running -= 1;
        state.failed |= failed;
    }

    pub fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// Waits until one of these is reached. Returns whether it was: if not, no block can run that
    /// could do that, or the launch has failed.
    fn wait(&self, awaited: &[Awaited]) -> bool {
        {
            let mut state = self.state();
            state.running -= 1;
            state.awaited.extend(awaited);
        }
        loop {
            let mut state = self.state();
            let reached = awaited.iter().any(Awaited::is_reached);
            // A block that has what it waits for counts as one that can run.
            let hopeless =
                state.failed || state.running == 0 && !state.awaited.iter().any(Awaited::is_reached);
            if reached || hopeless {
                state.running += 1;
                for own in awaited {
                    // Other blocks may wait for the same.
                    let place = state.awaited.iter().position(|other| other == own);
                    state.awaited.swap_remove(place.expect("it was added above"));
                }
                return reached;
            }
            drop(state);
            std::thread::yield_now();
        }
    }
}

impl Block {
    /// Makes the threads runnable that have what they wait for.
    fn wake_for_flags(&self) {
        self.flags.0.borrow_mut().retain(|w| {
            let reached = w.awaited.is_reached();
            if reached {
                self.wake(w.thread / 32, 1 << (w.thread % 32));
            }
            !reached
        });
    }
}

impl Cluster {
    /// Waits until a thread can run because another cluster has raised its flag or passed its turn.
    /// Returns whether one can.
    pub fn wait_for_flags(&self, progress: &Progress) -> bool {
        let awaited: Vec<Awaited> = self.blocks().iter().flat_map(|block| block.flags.awaited()).collect();
        let reached = !awaited.is_empty() && progress.wait(&awaited);
        if reached {
            self.wake_for_flags();
        }
        reached
    }

    fn wake_for_flags(&self) {
        self.blocks().iter().for_each(|block| block.wake_for_flags());
    }
}

/// An operation on a flag or a turn.
struct Access {
    me: Me,
    address: usize,
    site: Site,
    /// The place in the source, for counting.
    place: (usize, u32),
}

impl Access {
    fn new(name: &'static str, number: *const u32, file: *const c_char, line: u32) -> Self {
        let (me, site, address) = (me(), Site::new(name, file, line), number.expose_provenance());
        if !address.is_multiple_of(4) {
            me.fail(site, format!("the address {address:#x} is not a multiple of 4"));
        }
        Access { me, address, site, place: (file.addr(), line) }
    }

    /// Waits for a value, and knows what its writer knew.
    fn wait(&self, least: u32, kind: Kind) {
        let &Access { me, address, site, place } = self;
        let awaited = Awaited { address, least };
        // A place outside of all memory is found before it is read.
        me.block.check_bounds(me, address, 4, Kind::Atomic, site);
        while !awaited.is_reached() {
            me.block.flags.0.borrow_mut().push(Waiting { thread: me.thread, awaited, site });
            me.wait();
        }
        me.block.check(|c| c.wait_for_flag(me.cluster_thread(), address));
        me.block.check_access(me, address, 4, Kind::Atomic, site);
        me.block.count_access(me, place, address, 4, kind);
    }

    /// Writes a value, and with it all that the thread knows. Returns the old value.
    fn write(&self, value: u32) -> u32 {
        let &Access { me, address, site, place } = self;
        me.block.check_access(me, address, 4, Kind::Atomic, site);
        me.block.check(|c| c.raise_flag(me.cluster_thread(), address));
        me.block.count_access(me, place, address, 4, Kind::Write);
        number_at(address).swap(value, SeqCst)
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_flag_raise(flag: *mut u32, file: *const c_char, line: u32) {
    let access = Access::new("flag_raise", flag, file, line);
    let Access { me, address, site, .. } = access;
    if access.write(1) != 0 {
        me.fail(
            site,
            format!("the flag at {address:#x} is raised already: a wait would miss one of the two"),
        );
    }
    me.block.cluster().wake_for_flags();
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_flag_wait(flag: *mut u32, file: *const c_char, line: u32) {
    let access = Access::new("flag_wait", flag, file, line);
    let Access { me, address, site, .. } = access;
    if me.block.flags.awaited().iter().any(|awaited| awaited.address == address) {
        me.fail(
            site,
            format!("another thread of the block waits for the flag at {address:#x}: only one may"),
        );
    }
    access.wait(1, Kind::Atomic);
    number_at(address).store(0, SeqCst);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_turn_pass(turn: *mut u32, number: u32, file: *const c_char, line: u32) {
    let access = Access::new("turn_pass", turn, file, line);
    let Access { me, address, site, .. } = access;
    let old = access.write(number);
    if number != 0 && number != old.wrapping_add(1) {
        me.fail(
            site,
            format!("turn {number} at {address:#x} follows turn {old}: turns are passed out of order"),
        );
    }
    me.block.cluster().wake_for_flags();
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_turn_wait(turn: *const u32, number: u32, file: *const c_char, line: u32) {
    Access::new("turn_wait", turn, file, line).wait(number, Kind::Read);
}
