//! `cp.async`: copies from global to shared memory that may land at any time until their thread
//! waits for them. A late copy poisons its destination and lands when the thread waits for its
//! group.

use super::block::{Me, me};
use super::checker::Kind;
use super::failure::Site;
use std::collections::VecDeque;
use std::ffi::{c_char, c_void};

struct Copy {
    /// The number of its group among those of its thread.
    group: u32,
    dst: *mut [u8; 16],
    src: *const u8,
    /// Bytes that are copied; the rest of the destination becomes zero.
    src_bytes: usize,
    /// Whether it landed when it was issued, which the kernel must not rely on.
    landed: bool,
    site: Site,
}

/// The copies of a thread that have not landed, in order.
#[derive(Default)]
pub struct CopyQueue {
    pending: VecDeque<Copy>,
    groups_committed: u32,
}

impl CopyQueue {
    pub fn clear(&mut self) {
        self.pending.clear();
        self.groups_committed = 0;
    }

    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// The next copy that must land for at most `groups_left` groups to stay in flight.
    fn next(&mut self, groups_left: u32) -> Option<Copy> {
        let due = |copy: &Copy| copy.group + groups_left < self.groups_committed;
        self.pending.front().is_some_and(due).then(|| self.pending.pop_front()).flatten()
    }
}

impl Copy {
    fn land(&self) {
        let mut bytes = [0; 16];
        // SAFETY: the kernel vouches for the source, as for its own loads; `cp_async` found the
        // destination to be inside the arena.
        unsafe {
            std::ptr::copy_nonoverlapping(self.src, bytes.as_mut_ptr(), self.src_bytes);
            self.dst.write(bytes);
        }
    }

    /// Completes the copy: its thread waits for it.
    fn finish(&self, me: Me) {
        if !self.landed {
            self.land();
        }
        me.block.check_pending(self.dst.cast(), 16, false);
        me.block.check_access(me, self.dst.addr(), 16, Kind::Write, self.site);
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_cp_async(
    dst: u32,
    src: *const c_void,
    bytes: u32,
    src_bytes: u32,
    file: *const c_char,
    line: u32,
) {
    let me = me();
    let site = Site::new("cp.async", file, line);
    let src: *const u8 = src.cast();
    if !src.addr().is_multiple_of(16) {
        me.fail(site, format!("the source {src:p} is not a multiple of 16"));
    }
    if src_bytes > bytes {
        me.fail(site, format!("{src_bytes} bytes of source for a copy of {bytes}"));
    }
    let dst = me.block.shared_16_bytes(me, dst, site);
    me.block.check_access(me, src.addr(), src_bytes as usize, Kind::Read, site);
    me.block.check_access(me, dst.addr(), 16, Kind::Write, site);
    me.block.check_pending(dst.cast(), 16, true);
    me.block.count_access(me, (file.addr(), line), src.addr(), src_bytes as usize, Kind::Read);
    me.block.count_access(me, (file.addr(), line), dst.addr(), 16, Kind::Write);
    let landed = !me.block.copies_late();
    let mut queue = me.block.threads[me.thread].copies.borrow_mut();
    let copy = Copy { group: queue.groups_committed, dst, src, src_bytes: src_bytes as usize, landed, site };
    if landed {
        copy.land();
    } else {
        // SAFETY: `shared_16_bytes` returned a place inside the arena.
        unsafe { dst.write([0xff; 16]) };
    }
    queue.pending.push_back(copy);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_cp_async_commit() {
    let me = me();
    me.block.threads[me.thread].copies.borrow_mut().groups_committed += 1;
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_cp_async_wait(groups_left: u32) {
    let me = me();
    let queue = &me.block.threads[me.thread].copies;
    loop {
        let Some(copy) = queue.borrow_mut().next(groups_left) else { break };
        copy.finish(me);
    }
}
