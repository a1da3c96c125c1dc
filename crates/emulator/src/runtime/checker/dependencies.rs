//! Launches whose blocks may start before earlier launches have ended. Global memory is theirs
//! until a thread has waited for them, or has synchronized with one that has.

use super::super::block::me;
use super::Checker;
use super::shadow::Access;

#[derive(Default)]
pub struct Dependencies {
    /// Whether the launch is such a one.
    programmatic: bool,
    /// The waits of the cluster's threads.
    waits: Vec<Access>,
    /// The threads that are known to come after a wait.
    after: Vec<bool>,
}

impl Dependencies {
    pub fn start_launch(&mut self, programmatic: bool) {
        self.programmatic = programmatic;
    }

    /// Prepares for blocks that run together, with so many threads.
    pub fn start_cluster(&mut self, threads: usize) {
        self.waits.clear();
        self.after.clear();
        self.after.resize(threads, false);
    }
}

impl Checker {
    fn wait_for_dependencies(&mut self, thread: usize) {
        if !std::mem::replace(&mut self.dependencies.after[thread], true) {
            let now = self.now(thread);
            self.dependencies.waits.push(now);
        }
    }

    /// Refuses an access of a thread that comes before the end of earlier launches.
    pub(super) fn refuse_early(&mut self, thread: usize, address: usize) -> Option<String> {
        if !self.dependencies.programmatic || self.dependencies.after[thread] {
            return None;
        }
        if self.dependencies.waits.iter().any(|wait| self.before(*wait, thread)) {
            self.dependencies.after[thread] = true;
            return None;
        }
        // Constants are not in an allocation.
        let is_memory = !matches!(self.in_allocation(address, 1), Ok(false));
        is_memory.then(|| {
            "of global memory before a wait_for_dependencies: earlier launches may still run".to_owned()
        })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_wait_for_dependencies() {
    let me = me();
    me.block.has_waited.set(true);
    me.block.check(|c| c.wait_for_dependencies(me.cluster_thread()));
}
