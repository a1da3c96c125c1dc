//! `cp.async`: copies from global to shared memory that land when nobody knows, but no later than they are waited for. A late
//! copy poisons its destination and lands when its thread waits for its group.

use super::block::{Me, me};
use super::failure::Site;
use std::collections::VecDeque;
use std::ffi::{c_char, c_void};

struct Copy {
    /// Of the groups of its thread, counted from the first.
    group: u32,
    dst: *mut [u8; 16],
    src: *const u8,
    /// The other bytes of the destination become zero.
    src_bytes: usize,
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

    /// The next copy that lands before at most `groups_left` groups are under way.
    fn next(&mut self, groups_left: u32) -> Option<Copy> {
        let due = |copy: &Copy| copy.group + groups_left < self.groups_committed;
        self.pending.front().is_some_and(due).then(|| self.pending.pop_front()).flatten()
    }
}

impl Copy {
    fn land(&self, _me: Me) {
        let mut bytes = [0; 16];
        // SAFETY: the kernel vouches for the source, as for its own loads; the destination is inside the arena.
        unsafe {
            std::ptr::copy_nonoverlapping(self.src, bytes.as_mut_ptr(), self.src_bytes);
            self.dst.write(bytes);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn warpsmith_emulated_cp_async(
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
    let queue = &me.block.threads[me.thread].copies;
    let group = queue.borrow().groups_committed;
    let copy = Copy { group, dst, src, src_bytes: src_bytes as usize };
    if me.block.copies_late() {
        // SAFETY: inside the arena.
        unsafe { dst.write([0xff; 16]) };
        queue.borrow_mut().pending.push_back(copy);
    } else {
        copy.land(me);
    }
}

#[unsafe(no_mangle)]
extern "C" fn warpsmith_emulated_cp_async_commit() {
    let me = me();
    me.block.threads[me.thread].copies.borrow_mut().groups_committed += 1;
}

#[unsafe(no_mangle)]
extern "C" fn warpsmith_emulated_cp_async_wait(groups_left: u32) {
    let me = me();
    let queue = &me.block.threads[me.thread].copies;
    loop {
        let Some(copy) = queue.borrow_mut().next(groups_left) else { break };
        copy.land(me);
    }
}
