//! Barriers in shared memory. A phase ends when all threads have arrived and all expected bytes
//! have landed; waiting threads see its parity. The state is kept outside of shared memory, which
//! has only a word that must not change.

use super::super::block::{Block, Me, me};
use super::super::checker::{Checker, MbarrierClock, Scope};
use super::super::failure::Site;
use std::ffi::c_char;

const MAGIC: u64 = 0x6d62_6172_7269_6572;

pub struct Mbarrier {
    address: u32,
    /// Arrivals per phase.
    arrivals: u32,
    /// Arrivals and bytes that the current phase still waits for. Some bytes may land before the
    /// arrival that expects them.
    pending: u32,
    bytes: i64,
    /// Bytes that have landed in the current phase and may have been early.
    early: i64,
    /// The number of phases that have ended.
    ended: u64,
    /// The waiting lanes, one mask per warp.
    waiting: [u32; 32],
    wait_site: Site,
    /// The thread that initialized it, and how often the block and the cluster had synchronized by
    /// then.
    maker: usize,
    made_after: (usize, usize),
    /// How often the cluster had synchronized when the maker fenced.
    fenced_after: Option<usize>,
    /// The last arrival from another block, and how often the cluster had synchronized by then.
    reached: Option<(Reach, usize)>,
    /// A `store_async` of another block that reports to it.
    stored: Option<Reach>,
    /// The knowledge of the arriving threads, for the checker.
    clock: MbarrierClock,
}

/// An operation of another block, in a phase.
#[derive(Clone, Copy)]
pub struct Reach {
    pub rank: usize,
    pub phase: u64,
    pub site: Site,
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

    /// Whether any warp knows that a phase has ended.
    pub fn is_seen(&self, index: usize, phase: u64) -> bool {
        self.seen[index].iter().any(|seen| *seen > phase)
    }

    /// Whether copies can report to it.
    pub fn is_fenced(&self, index: usize) -> bool {
        self.barriers[index].fenced_after.is_some()
    }

    pub fn clock(&self, index: usize) -> &MbarrierClock {
        &self.barriers[index].clock
    }

    /// Records that a `store_async` of another block reports to it.
    pub fn store(&mut self, index: usize, rank: usize, site: Site) {
        let phase = self.phase(index);
        self.barriers[index].stored = Some(Reach { rank, phase, site });
    }

    /// An arrival from another block that the block cannot know of, after `syncs` cluster_syncs.
    pub fn unseen_arrival(&self, syncs: usize) -> Option<Reach> {
        self.barriers.iter().enumerate().find_map(|(index, barrier)| {
            let (reach, after) = barrier.reached?;
            (after == syncs && !self.is_seen(index, reach.phase)).then_some(reach)
        })
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
        barrier.early = 0;
        std::mem::take(&mut barrier.waiting)
    }

    /// Adds an arrival, which makes the phase wait for more bytes; returns the lanes that continue.
    ///
    /// # Errors
    /// If the phase already has all its arrivals, or now more bytes than it expects.
    fn arrive(&mut self, index: usize, bytes: u32) -> Result<[u32; 32], String> {
        let barrier = &mut self.barriers[index];
        let Mbarrier { address, pending, ended, .. } = *barrier;
        barrier.pending = pending.checked_sub(1).ok_or_else(|| {
            format!("more arrivals in one phase than the mbarrier at {address:#x} was initialized for")
        })?;
        barrier.bytes += i64::from(bytes);
        if barrier.pending == 0 && barrier.bytes < 0 {
            return Err(format!(
                "phase {ended} of the mbarrier at {address:#x} expects {} bytes less than have landed",
                -barrier.bytes
            ));
        }
        Ok(self.settle(index))
    }

    /// Records bytes of copies that have landed; returns the lanes that continue.
    ///
    /// # Errors
    /// If the phase does not expect that many, or may not expect them later.
    pub fn land(&mut self, index: usize, bytes: u32, may_be_early: bool) -> Result<[u32; 32], String> {
        let barrier = &mut self.barriers[index];
        let Mbarrier { address, bytes: expected, ended, .. } = *barrier;
        barrier.bytes -= i64::from(bytes);
        if may_be_early {
            barrier.early += i64::from(bytes);
        }
        let least = if barrier.pending == 0 { 0 } else { -barrier.early };
        if barrier.bytes < least {
            return Err(format!(
                "{bytes} bytes land, but phase {ended} of the mbarrier at {address:#x} expects {expected} more"
            ));
        }
        Ok(self.settle(index))
    }
}

impl Me {
    /// The index of the barrier at an address; fails if there is none that this thread may use.
    pub(super) fn mbarrier(self, address: u32, site: Site) -> usize {
        self.require_local(address, site);
        self.mbarrier_in(self.block, address, site)
    }

    /// The same for a barrier of a block of the cluster.
    pub(super) fn mbarrier_in(self, block: &Block, address: u32, site: Site) -> usize {
        let whose = self.whose(block);
        let Some(index) = block.hopper.barriers.borrow().index(address) else {
            self.fail(site, format!("the mbarrier at {address:#x}{whose} was never initialized"));
        };
        // SAFETY: the barrier was initialized at this address, which is in shared memory and
        // aligned.
        if unsafe { block.word(address).read() } != MAGIC ^ u64::from(address) {
            self.fail(site, format!("the mbarrier at {address:#x}{whose} was overwritten"));
        }
        let (maker, (after_block, after_cluster), fenced_after) = {
            let barriers = block.hopper.barriers.borrow();
            let barrier = &barriers.barriers[index];
            (barrier.maker, barrier.made_after, barrier.fenced_after)
        };
        let syncs = self.block.cluster().syncs();
        let is_own = self.is_in(block);
        let known_to_block = maker / 32 == self.thread / 32 || block.barrier.completed() > after_block;
        if syncs == after_cluster && !(is_own && known_to_block) {
            let (by, to) =
                if is_own { ("__syncthreads", "others") } else { ("cluster_sync", "other blocks") };
            let message = format!(
                "thread {maker}{whose} initialized the mbarrier at {address:#x}, and no {by} has made that known to \
                 {to}"
            );
            self.fail(site, message);
        }
        if !is_own && fenced_after.is_none_or(|after| syncs <= after) {
            let message = format!(
                "the mbarrier at {address:#x}{whose} needs an mbarrier_init_fence between mbarrier_init and cluster_sync"
            );
            self.fail(site, message);
        }
        index
    }
}

impl Block {
    fn word(&self, address: u32) -> *mut u64 {
        self.shared_bytes(address).cast()
    }

    pub(super) fn wake_all(&self, waiting: [u32; 32]) {
        waiting.into_iter().enumerate().for_each(|(warp, lanes)| self.wake(warp, lanes));
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
    me.require_local(address, site);
    me.block.require_shared(me, site, (address, address + 8));
    if hopper.barriers.borrow().index(address).is_some() {
        me.fail(site, format!("the mbarrier at {address:#x} is initialized twice"));
    }
    let Some(clock) = me.block.check(Checker::new_mbarrier).unwrap_or_else(|| Some(MbarrierClock::default()))
    else {
        me.fail(site, "more mbarriers in a cluster than the checker has room for".to_owned());
    };
    // SAFETY: the address was found to be in shared memory and aligned.
    unsafe { me.block.word(address).write(MAGIC ^ u64::from(address)) };
    let mut barriers = hopper.barriers.borrow_mut();
    barriers.seen.push([0; 32]);
    barriers.barriers.push(Mbarrier {
        address,
        arrivals,
        pending: arrivals,
        bytes: 0,
        early: 0,
        ended: 0,
        waiting: [0; 32],
        wait_site: site,
        maker: me.thread,
        made_after: (me.block.barrier.completed(), me.block.cluster().syncs()),
        fenced_after: None,
        reached: None,
        stored: None,
        clock,
    });
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_init_fence() {
    let me = me();
    let syncs = me.block.cluster().syncs();
    let mut barriers = me.block.hopper.barriers.borrow_mut();
    let mine = barriers.barriers.iter_mut().filter(|b| b.maker == me.thread);
    mine.for_each(|b| b.fenced_after = b.fenced_after.or(Some(syncs)));
}

/// Arrives at a barrier of a block of the cluster.
fn arrive(me: Me, block: &Block, address: u32, bytes: u32, site: Site) {
    let index = me.mbarrier_in(block, address, site);
    let waiting = {
        let mut barriers = block.hopper.barriers.borrow_mut();
        let barrier = &mut barriers.barriers[index];
        let scope = if me.is_in(block) { Scope::Block } else { Scope::Cluster };
        if scope == Scope::Cluster {
            let reach = Reach { rank: me.block.rank(), phase: barrier.ended, site };
            barrier.reached = Some((reach, me.block.cluster().syncs()));
        }
        me.block.check(|c| c.mbarrier_arrive(me.cluster_thread(), &mut barrier.clock, scope));
        barriers.arrive(index, bytes)
    };
    match waiting {
        Ok(waiting) => block.wake_all(waiting),
        Err(message) => me.fail(site, message),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_arrive(address: u32, bytes: u32, file: *const c_char, line: u32) {
    let (me, site) = (me(), Site::new("mbarrier_arrive", file, line));
    me.require_local(address, site);
    arrive(me, me.block, address, bytes, site);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_arrive_cluster(address: u32, file: *const c_char, line: u32) {
    let (me, site) = (me(), Site::new("mbarrier_arrive_cluster", file, line));
    let (block, address) = me.reach(address, site);
    arrive(me, block, address, 0, site);
}

/// Waits for a phase, then acquires what is known in this scope.
fn wait(me: Me, address: u32, parity: u32, scope: Scope, site: Site) {
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
    let stored = barriers.borrow().barriers[index].stored;
    if let Some(Reach { rank, site: store, .. }) = stored.filter(|_| scope == Scope::Block) {
        let message = format!(
            "the {store} of block {rank} of the cluster reports to the mbarrier at {address:#x}: use \
             mbarrier_wait_cluster, which makes known what other blocks store"
        );
        me.fail(site, message);
    }
    let mut barriers = barriers.borrow_mut();
    let ended = barriers.phase(index);
    me.block.check(|c| c.mbarrier_wait(me.cluster_thread(), barriers.clock(index), ended, scope));
    barriers.seen[index][me.thread / 32] = ended;
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_wait(address: u32, parity: u32, file: *const c_char, line: u32) {
    wait(me(), address, parity, Scope::Block, Site::new("mbarrier_wait", file, line));
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_mbarrier_wait_cluster(address: u32, parity: u32, file: *const c_char, line: u32) {
    wait(me(), address, parity, Scope::Cluster, Site::new("mbarrier_wait_cluster", file, line));
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_proxy_fence() {
    let me = me();
    me.block.check(|c| c.proxy_fence(me.cluster_thread()));
}
