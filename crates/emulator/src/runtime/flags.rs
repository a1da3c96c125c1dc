//! Flags in global memory, by which the blocks of a launch wait for each other. A thread that waits
//! for a flag sleeps until nothing else of its block can run. Then its OS thread looks at the flag
//! again and again, for as long as other blocks run that could raise it.

use super::block::{Block, Me, me};
use super::checker::Kind;
use super::cluster::Cluster;
use super::failure::Site;
use std::cell::RefCell;
use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

/// A thread that waits for a flag.
struct Waiting {
    thread: usize,
    flag: usize,
    site: Site,
}

/// The threads of a block that wait for flags.
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
                "thread {} waits in {} for the flag at {:#x}, and no block that runs can raise it (blocks that have not \
                 started only run after this one)",
                w.thread, w.site, w.flag
            )
        };
        self.0.borrow().iter().map(describe).collect()
    }

    fn addresses(&self) -> Vec<usize> {
        self.0.borrow().iter().map(|w| w.flag).collect()
    }
}

fn flag_at(address: usize) -> &'static AtomicU32 {
    // SAFETY: the kernel vouches for the address, which is aligned; all accesses during a launch
    // are atomic.
    unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(address)) }
}

fn is_raised(address: &usize) -> bool {
    flag_at(*address).load(SeqCst) != 0
}

/// The OS threads that run the blocks of a launch.
#[derive(Default)]
pub struct Progress(Mutex<State>);

#[derive(Default)]
struct State {
    /// OS threads whose block can run.
    running: usize,
    /// The flags that the blocks of the others wait for.
    flags: Vec<usize>,
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

    /// Waits until one of these flags is raised. Returns whether it was: if not, no block can run
    /// that could raise it, or the launch has failed.
    fn wait(&self, flags: &[usize]) -> bool {
        {
            let mut state = self.state();
            state.running -= 1;
            state.flags.extend(flags);
        }
        loop {
            let mut state = self.state();
            let raised = flags.iter().any(is_raised);
            // A block whose flag is raised counts as one that can run.
            let hopeless = state.failed || state.running == 0 && !state.flags.iter().any(is_raised);
            if raised || hopeless {
                state.running += 1;
                state.flags.retain(|flag| !flags.contains(flag));
                return raised;
            }
            drop(state);
            std::thread::yield_now();
        }
    }
}

impl Block {
    /// Makes the threads runnable whose flags are raised.
    fn wake_for_flags(&self) {
        self.flags.0.borrow_mut().retain(|w| {
            let raised = is_raised(&w.flag);
            if raised {
                self.wake(w.thread / 32, 1 << (w.thread % 32));
            }
            !raised
        });
    }
}

impl Cluster {
    /// Waits until a thread can run because another cluster has raised its flag. Returns whether
    /// one can.
    pub fn wait_for_flags(&self, progress: &Progress) -> bool {
        let flags: Vec<usize> = self.blocks().iter().flat_map(|block| block.flags.addresses()).collect();
        let raised = !flags.is_empty() && progress.wait(&flags);
        if raised {
            self.wake_for_flags();
        }
        raised
    }

    fn wake_for_flags(&self) {
        self.blocks().iter().for_each(|block| block.wake_for_flags());
    }
}

/// The address of a flag, found to be one.
fn checked(me: Me, flag: *mut u32, site: Site) -> usize {
    let address = flag.expose_provenance();
    if !address.is_multiple_of(4) {
        me.fail(site, format!("the flag at {address:#x} is not a multiple of 4"));
    }
    address
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_flag_raise(flag: *mut u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("flag_raise", file, line);
    let address = checked(me, flag, site);
    me.block.check_access(me, address, 4, Kind::Atomic, site);
    me.block.check(|c| c.raise_flag(me.cluster_thread(), address));
    me.block.count_access(me, (file.addr(), line), address, 4, Kind::Write);
    if flag_at(address).swap(1, SeqCst) != 0 {
        me.fail(
            site,
            format!("the flag at {address:#x} is raised already: a wait would miss one of the two"),
        );
    }
    me.block.cluster().wake_for_flags();
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_flag_wait(flag: *mut u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("flag_wait", file, line);
    let address = checked(me, flag, site);
    if me.block.flags.addresses().contains(&address) {
        me.fail(
            site,
            format!("another thread of the block waits for the flag at {address:#x}: only one may"),
        );
    }
    // A flag outside of all memory is found before it is read.
    me.block.check_bounds(me, address, 4, Kind::Atomic, site);
    while !is_raised(&address) {
        me.block.flags.0.borrow_mut().push(Waiting { thread: me.thread, flag: address, site });
        me.wait();
    }
    me.block.check(|c| c.wait_for_flag(me.cluster_thread(), address));
    me.block.check_access(me, address, 4, Kind::Atomic, site);
    me.block.count_access(me, (file.addr(), line), address, 4, Kind::Atomic);
    flag_at(address).store(0, SeqCst);
}
