//! Barriers in shared memory. A phase ends when all threads have arrived and all expected bytes
//! have landed; waiting threads see its parity. The state is kept outside of shared memory, which
//! has only a word that must not change.

use super::super::block::{Me, me};
use super::super::checker::MbarrierClock;
use super::super::failure::Site;
use std::ffi::c_char;

const MAGIC: u64 = 0x6d62_6172_7269_6572;

pub struct Mbarrier {
    address: u32,
    /// Arrivals per phase.
    arrivals: u32,
    /// Arrivals and bytes that the current phase still waits for.
    pending: u32,
    bytes: u64,
    /// The number of phases that have ended.
    ended: u64,
    /// The waiting lanes, one mask per warp.
    waiting: [u32; 32],
    wait_site: Site,
    /// The thread that initialized it, and how often the block had synchronized by then.
    maker: usize,
    made_after: usize,
    /// Whether the maker has fenced.
    fenced: bool,
    /// The knowledge of the arriving threads, for the checker.
    clock: MbarrierClock,
}

#[derive(Default)]
pub struct Mbarriers {
    barriers: Vec<Mbarrier>,
    /// The number of ended phases that each warp knows of, per barrier.
    seen: Vec<[u64; 32]>,
}

impl Mbarriers {
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for barrier in &self.barriers {
            let waiting: Vec<String> =
                (0..32).filter(|&w| barrier.waiting[w] != 0).map(|w| w.to_string()).collect();
            if waiting.is_empty() {
                continue;
            }
            let Mbarrier { address, arrivals, pending, bytes, ended, wait_site, .. } = barrier;
            lines.push(format!(
                "warps {} wait in {wait_site} for phase {ended} of the mbarrier at {address:#x}, which lacks {pending} of \
                 {arrivals} arrivals and {bytes} bytes",
                waiting.join(", ")
            ));
        }
        lines
    }

    pub fn address(&self, index: usize) -> u32 {
        self.barriers[index].address
    }

    /// The current phase.
    pub fn phase(&self, index: usize) -> u64 {
        self.barriers[index].ended
    }

    /// Whether a warp knows that a phase has ended.
    pub fn has_seen(&self, warp: usize, index: usize, phase: u64) -> bool {
        self.seen[index][warp] > phase
    }

    /// Whether copies can report to it.
    pub fn is_fenced(&self, index: usize) -> bool {
        self.barriers[index].fenced
    }

    fn index(&self, address: u32) -> Option<usize> {
        self.barriers.iter().position(|b| b.address == address)
    }

    fn sleep(&mut self, index: usize, me: Me, site: Site) {
        let barrier = &mut self.barriers[index];
        barrier.waiting[me.thread / 32] |= 1 << me.lane();
        barrier.wait_site = site;
    }

    /// Ends the phase if nothing is missing; returns the lanes that continue.
    fn settle(&mut self, index: usize) -> [u32; 32] {
        let barrier = &mut self.barriers[index];
        if barrier.pending > 0 || barrier.bytes > 0 {
            return [0; 32];
        }
        barrier.ended += 1;
        barrier.pending = barrier.arrivals;
        std::mem::take(&mut barrier.waiting)
    }

    /// Adds an arrival, which makes the phase wait for more bytes; returns the lanes that continue,
    /// or `None` if the phase already has all its arrivals.
    fn arrive(&mut self, index: usize, bytes: u64) -> Option<[u32; 32]> {
        let barrier = &mut self.barriers[index];
        barrier.pending = barrier.pending.checked_sub(1)?;
        barrier.bytes += bytes;
        Some(self.settle(index))
    }

    /// Records bytes of copies that have landed; returns the lanes that continue.
    ///
    /// # Errors
    /// If the phase does not expect that many.
    pub fn land(&mut self, index: usize, bytes: u64) -> Result<[u32; 32], String> {
        let barrier = &mut self.barriers[index];
        let Mbarrier { address, bytes: expected, ended, .. } = *barrier;
        barrier.bytes = expected.checked_sub(bytes).ok_or_else(|| {
            format!("{bytes} bytes land, but phase {ended} of the mbarrier at {address:#x} expects {expected} more")
        })?;
        Ok(self.settle(index))
    }
}

impl Me {
    fn word(self, address: u32) -> *mut u64 {
        self.block.shared_bytes(address).cast()
    }

    /// The index of the barrier at an address; fails if there is none that this thread may use.
    pub(super) fn mbarrier(self, address: u32, site: Site) -> usize {
        let hopper = &self.block.hopper;
        let Some(index) = hopper.barriers.borrow().index(address) else {
            self.fail(site, format!("the mbarrier at {address:#x} was never initialized"));
        };
        // SAFETY: the barrier was initialized at this address, which is in shared memory and
        // aligned.
        if unsafe { self.word(address).read() } != MAGIC ^ u64::from(address) {
            self.fail(site, format!("the mbarrier at {address:#x} was overwritten"));
        }
        let (maker, made_after) = {
            let barriers = hopper.barriers.borrow();
            (barriers.barriers[index].maker, barriers.barriers[index].made_after)
        };
        if maker / 32 != self.thread / 32 && self.block.barriers[0].completed() == made_after {
            let message = format!(
                "thread {maker} initialized the mbarrier at {address:#x}, and no __syncthreads has made that known to \
                 others"
            );
            self.fail(site, message);
        }
        index
    }

    pub(super) fn wake_all(self, waiting: [u32; 32]) {
        waiting.into_iter().enumerate().for_each(|(warp, lanes)| self.block.wake(warp, lanes));
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_init(address: u32, arrivals: u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("mbarrier_init", file, line);
    let hopper = &me.block.hopper;
    hopper.used.set(true);
    if !address.is_multiple_of(8) || !(1..1 << 20).contains(&arrivals) {
        me.fail(
            site,
            format!("a barrier at {address:#x} for {arrivals} arrivals; it must be 8-byte aligned, for 1 to 2^20 - 1"),
        );
    }
    me.block.require_shared(me, site, (address, address + 8));
    if hopper.barriers.borrow().index(address).is_some() {
        me.fail(site, format!("the mbarrier at {address:#x} is initialized twice"));
    }
    // SAFETY: the address was found to be in shared memory and aligned.
    unsafe { me.word(address).write(MAGIC ^ u64::from(address)) };
    let mut barriers = hopper.barriers.borrow_mut();
    barriers.seen.push([0; 32]);
    barriers.barriers.push(Mbarrier {
        address,
        arrivals,
        pending: arrivals,
        bytes: 0,
        ended: 0,
        waiting: [0; 32],
        wait_site: site,
        maker: me.thread,
        made_after: me.block.barriers[0].completed(),
        fenced: false,
        clock: MbarrierClock::default(),
    });
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_init_fence() {
    let me = me();
    let mut barriers = me.block.hopper.barriers.borrow_mut();
    barriers.barriers.iter_mut().filter(|b| b.maker == me.thread).for_each(|b| b.fenced = true);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_arrive(address: u32, bytes: u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("mbarrier_arrive", file, line);
    let index = me.mbarrier(address, site);
    let waiting = {
        let mut barriers = me.block.hopper.barriers.borrow_mut();
        me.block.check(|c| c.mbarrier_arrive(me.thread, &mut barriers.barriers[index].clock));
        barriers.arrive(index, u64::from(bytes))
    };
    match waiting {
        Some(waiting) => me.wake_all(waiting),
        None => me.fail(
            site,
            format!("more arrivals in one phase than the mbarrier at {address:#x} was initialized for"),
        ),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_wait(address: u32, parity: u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("mbarrier_wait", file, line);
    if parity > 1 {
        me.fail(site, format!("a parity of {parity}"));
    }
    let index = me.mbarrier(address, site);
    let barriers = &me.block.hopper.barriers;
    let phase = barriers.borrow().phase(index);
    if phase & 1 == u64::from(parity) {
        barriers.borrow_mut().sleep(index, me, site);
        me.wait();
        let now = barriers.borrow().phase(index);
        if now > phase + 1 {
            let message = format!(
                "phase {phase} of the mbarrier at {address:#x} ended, and the next one before this thread saw it: it \
                 would keep waiting"
            );
            me.fail(site, message);
        }
    }
    let mut barriers = barriers.borrow_mut();
    me.block.check(|c| c.mbarrier_wait(me.thread, &barriers.barriers[index].clock));
    let ended = barriers.phase(index);
    barriers.seen[index][me.thread / 32] = ended;
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_proxy_fence() {
    let me = me();
    me.block.check(|c| c.proxy_fence(me.thread));
}
