//! Operations of a warp. Each lane brings its argument and waits; the last one to arrive carries
//! the operation out for all of them and continues.

use super::block::{Block, Me, me};
use super::failure::Site;
use super::hopper::{self, Wgmma};
use super::named_barrier::{self, Arrival};
use super::tensor_core::{self, Bf16, F16, Ldmatrix, Mma, Stmatrix};
use std::cell::Cell;
use std::ffi::{c_char, c_void};

/// An operation, in the order of `emulated::Op` in `emulated/runtime.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    Syncwarp,
    Shfl,
    ShflUp,
    ShflDown,
    ShflXor,
    Ballot,
    ReduceAdd,
    ReduceMin,
    ReduceMax,
    ReduceMinSigned,
    ReduceMaxSigned,
    ReduceAnd,
    ReduceOr,
    ReduceXor,
    Ldmatrix,
    LdmatrixTrans,
    Stmatrix,
    MmaBf16,
    MmaF16,
    MmaTf32,
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait,
    WgmmaBf16,
    WgmmaF16,
    BarrierSync,
    BarrierArrive,
}

const OPS: [(Op, &str); 27] = [
    (Op::Syncwarp, "__syncwarp"),
    (Op::Shfl, "__shfl_sync"),
    (Op::ShflUp, "__shfl_up_sync"),
    (Op::ShflDown, "__shfl_down_sync"),
    (Op::ShflXor, "__shfl_xor_sync"),
    (Op::Ballot, "a vote"),
    (Op::ReduceAdd, "__reduce_add_sync"),
    (Op::ReduceMin, "__reduce_min_sync"),
    (Op::ReduceMax, "__reduce_max_sync"),
    (Op::ReduceMinSigned, "__reduce_min_sync"),
    (Op::ReduceMaxSigned, "__reduce_max_sync"),
    (Op::ReduceAnd, "__reduce_and_sync"),
    (Op::ReduceOr, "__reduce_or_sync"),
    (Op::ReduceXor, "__reduce_xor_sync"),
    (Op::Ldmatrix, "ldmatrix"),
    (Op::LdmatrixTrans, "ldmatrix.trans"),
    (Op::Stmatrix, "stmatrix"),
    (Op::MmaBf16, "mma.m16n8k16"),
    (Op::MmaF16, "mma.m16n8k16"),
    (Op::MmaTf32, "mma.m16n8k8"),
    (Op::WgmmaFence, "wgmma_fence"),
    (Op::WgmmaCommit, "wgmma_commit"),
    (Op::WgmmaWait, "wgmma_wait"),
    (Op::WgmmaBf16, "wgmma"),
    (Op::WgmmaF16, "wgmma"),
    (Op::BarrierSync, "barrier_sync"),
    (Op::BarrierArrive, "barrier_arrive"),
];

#[repr(C)]
struct Shuffle {
    value: u64,
    result: u64,
    source: u32,
}

#[repr(C)]
struct Vote {
    value: u32,
    result: u32,
}

/// Lanes of a warp that wait at an operation for the others in its mask.
#[derive(Default)]
struct Group {
    mask: Cell<u32>,
    arrived: Cell<u32>,
    op: Cell<u32>,
    site: Cell<Option<Site>>,
    arguments: [Cell<*mut c_void>; 32],
}

#[derive(Default)]
pub struct Warp {
    /// Lanes that have not ended.
    pub alive: Cell<u32>,
    pub runnable: Cell<u32>,
    /// Several, as lanes with disjoint masks may wait at the same time.
    groups: [Group; 8],
}

impl Warp {
    pub fn reset(&self, lanes: usize) {
        let mask = u32::MAX.checked_shr(32 - lanes as u32).unwrap_or(0);
        self.alive.set(mask);
        self.runnable.set(0);
        self.groups.iter().for_each(|group| group.arrived.set(0));
    }

    /// Describes every waiting group, for the report of a deadlock.
    pub fn describe(&self, number: usize) -> Vec<String> {
        let waiting = self.groups.iter().filter(|group| group.arrived.get() != 0);
        let text = waiting.map(|group| {
            let (arrived, mask) = (group.arrived.get(), group.mask.get());
            let site = group.site.get().unwrap_or(Site::UNKNOWN);
            format!("lanes {arrived:#010x} of warp {number} wait in {site} for the others of {mask:#010x}")
        });
        text.collect()
    }

    /// The group that waits for this mask, or a free one.
    fn group(&self, mask: u32) -> Option<&Group> {
        let first = &self.groups[0];
        if first.arrived.get() != 0 && first.mask.get() == mask {
            return Some(first);
        }
        let waiting = self.groups.iter().find(|g| g.arrived.get() != 0 && g.mask.get() == mask);
        waiting.or_else(|| self.groups.iter().find(|g| g.arrived.get() == 0))
    }

    /// Carries out the operations that waited only for a lane that has ended.
    pub fn complete_without(&self, me: Me) {
        for group in &self.groups {
            let arrived = group.arrived.get();
            if arrived != 0 && arrived == group.mask.get() & self.alive.get() {
                group.complete(me);
            }
        }
    }
}

impl Group {
    fn complete(&self, me: Me) {
        let arrived = self.arrived.take();
        let lanes =
            Lanes { me, arrived, arguments: &self.arguments, site: self.site.get().unwrap_or(Site::UNKNOWN) };
        run(OPS[self.op.get() as usize].0, &lanes);
        if self.mask.get() == u32::MAX {
            me.block.count(|c| c.close(me.cluster_warp()));
        }
        me.block.wake(me.thread / 32, arrived);
    }
}

/// The lanes that carry out an operation.
pub struct Lanes<'a> {
    /// The lane that carries it out.
    me: Me,
    arrived: u32,
    arguments: &'a [Cell<*mut c_void>; 32],
    pub site: Site,
}

impl Lanes<'_> {
    pub fn block(&self) -> &'static Block {
        self.me.block
    }

    /// Another lane of this warp, as if it were running.
    pub fn as_lane(&self, lane: usize) -> Me {
        Me { block: self.me.block, thread: self.me.thread & !31 | lane }
    }

    fn each(&self) -> impl Iterator<Item = usize> + use<> {
        let mut left = self.arrived;
        std::iter::from_fn(move || {
            let lane = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (lane < 32).then_some(lane)
        })
    }

    /// The arguments of all 32 lanes, which must all have arrived.
    fn all<T>(&self) -> [*mut T; 32] {
        if self.arrived != u32::MAX {
            let message = format!("needs all lanes of the warp, but only {:#010x} arrived", self.arrived);
            self.me.fail(self.site, message);
        }
        std::array::from_fn(|lane| self.of(lane))
    }

    /// The argument of a participating lane: a variable on its stack.
    fn of<T>(&self, lane: usize) -> *mut T {
        self.arguments[lane].get().cast()
    }
}

fn run(op: Op, lanes: &Lanes) {
    // SAFETY: `cuda.h`, `ptx.h` and `hopper.h` pass arguments of these types to these operations,
    // and they live on the stacks of lanes that wait here.
    unsafe {
        match op {
            Op::Syncwarp => {
                if lanes.arrived == lanes.me.warp().alive.get() {
                    lanes.block().check(|c| c.sync_warp(lanes.me.cluster_warp()));
                }
            }
            Op::Shfl | Op::ShflUp | Op::ShflDown | Op::ShflXor => shuffle(lanes),
            Op::Ballot => {
                let bits =
                    lanes.each().map(|lane| u32::from((*lanes.of::<Vote>(lane)).value != 0) << lane).sum();
                lanes.each().for_each(|lane| (*lanes.of::<Vote>(lane)).result = bits);
            }
            Op::ReduceAdd => reduce(lanes, |a, b| a.wrapping_add(b)),
            Op::ReduceMin => reduce(lanes, u32::min),
            Op::ReduceMax => reduce(lanes, u32::max),
            Op::ReduceMinSigned => reduce(lanes, |a, b| (a as i32).min(b as i32) as u32),
            Op::ReduceMaxSigned => reduce(lanes, |a, b| (a as i32).max(b as i32) as u32),
            Op::ReduceAnd => reduce(lanes, |a, b| a & b),
            Op::ReduceOr => reduce(lanes, |a, b| a | b),
            Op::ReduceXor => reduce(lanes, |a, b| a ^ b),
            Op::Ldmatrix => {
                tensor_core::ldmatrix(lanes, lanes.all::<Ldmatrix>().map(|lane| &mut *lane), false)
            }
            Op::LdmatrixTrans => {
                tensor_core::ldmatrix(lanes, lanes.all::<Ldmatrix>().map(|lane| &mut *lane), true)
            }
            Op::Stmatrix => tensor_core::stmatrix(lanes, lanes.all::<Stmatrix>().map(|lane| &*lane)),
            Op::MmaBf16 => {
                lanes.block().count(|c| c.mma(16, 8, 16));
                tensor_core::mma_m16n8k16::<Bf16>(lanes.all::<Mma>().map(|lane| &mut *lane));
            }
            Op::MmaF16 => {
                lanes.block().count(|c| c.mma(16, 8, 16));
                tensor_core::mma_m16n8k16::<F16>(lanes.all::<Mma>().map(|lane| &mut *lane));
            }
            Op::MmaTf32 => {
                lanes.block().count(|c| c.mma(16, 8, 8));
                tensor_core::mma_m16n8k8_tf32(lanes.all::<Mma>().map(|lane| &mut *lane));
            }
            Op::WgmmaFence => hopper::fence(lanes),
            Op::WgmmaCommit => hopper::commit(lanes),
            Op::WgmmaWait => hopper::wait(lanes, *lanes.all::<u32>()[0]),
            Op::WgmmaBf16 => hopper::issue::<Bf16>(lanes, lanes.all::<Wgmma>().map(|lane| &mut *lane)),
            Op::WgmmaF16 => hopper::issue::<F16>(lanes, lanes.all::<Wgmma>().map(|lane| &mut *lane)),
            Op::BarrierSync => {
                named_barrier::arrive(lanes, lanes.all::<Arrival>().map(|lane| &mut *lane), true)
            }
            Op::BarrierArrive => {
                named_barrier::arrive(lanes, lanes.all::<Arrival>().map(|lane| &mut *lane), false)
            }
        }
    }
}

/// Gives each lane the value of its source.
///
/// # Safety
/// The arguments of the lanes are [`Shuffle`]s.
unsafe fn shuffle(lanes: &Lanes) {
    for lane in lanes.each() {
        // SAFETY: the caller's promise holds for `lane`, and for `source` once it is known to have
        // arrived.
        unsafe {
            let source = (*lanes.of::<Shuffle>(lane)).source as usize;
            if lanes.arrived >> source & 1 == 0 {
                let message = format!("reads from lane {source}, which does not take part");
                lanes.as_lane(lane).fail(lanes.site, message);
            }
            (*lanes.of::<Shuffle>(lane)).result = (*lanes.of::<Shuffle>(source)).value;
        }
    }
}

/// Gives all lanes the combination of their values.
///
/// # Safety
/// The arguments of the lanes are [`Vote`]s.
unsafe fn reduce(lanes: &Lanes, combine: impl Fn(u32, u32) -> u32) {
    // SAFETY: the caller promises the type, and `each` only names lanes that arrived.
    unsafe {
        let values = lanes.each().map(|lane| (*lanes.of::<Vote>(lane)).value);
        let result = values.reduce(combine).unwrap_or_default();
        lanes.each().for_each(|lane| (*lanes.of::<Vote>(lane)).result = result);
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_collective(
    op: u32,
    mask: u32,
    argument: *mut c_void,
    file: *const c_char,
    line: u32,
) {
    let me = me();
    let warp = me.warp();
    let bit = 1 << me.lane();
    let site = Site::new(OPS[op as usize].1, file, line);
    if mask & bit == 0 {
        me.fail(site, format!("the mask {mask:#010x} lacks the lane itself"));
    }
    let Some(group) = warp.group(mask) else {
        me.fail(site, "more than 8 groups of lanes of a warp wait with different masks".to_owned());
    };
    if group.arrived.get() == 0 {
        group.mask.set(mask);
        group.op.set(op);
        group.site.set(Some(site));
    } else {
        let other = group.site.get().unwrap_or(Site::UNKNOWN);
        if !other.is_same(&site) {
            me.fail(site, format!("the lanes of a warp diverge: others wait in {other}"));
        }
    }
    group.arguments[me.lane()].set(argument);
    group.arrived.set(group.arrived.get() | bit);
    if group.arrived.get() == mask & warp.alive.get() {
        group.complete(me);
    } else {
        me.wait();
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_fail(
    message: *const c_char,
    address: *const c_void,
    file: *const c_char,
    line: u32,
) -> ! {
    // SAFETY: kernels pass a string literal.
    let mut message = unsafe { std::ffi::CStr::from_ptr(message) }.to_string_lossy().into_owned();
    if !address.is_null() {
        message += &format!(" ({address:p})");
    }
    me().fail(Site::new("", file, line), message)
}

/// `__threadfence`: the next atomics of the thread release everything it knows now.
#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_fence() {
    let me = me();
    me.block.check(|c| c.fence(me.cluster_thread()));
}
