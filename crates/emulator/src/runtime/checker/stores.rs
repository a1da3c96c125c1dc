//! The accesses of copies to and from global memory by TMA. They go through the async proxy, which
//! no fence of our kernels orders with plain accesses to global memory. So within one launch,
//! memory that a copy writes must not be touched before the thread that issued it has waited for
//! the write, and what a copy reads, or adds to, must not have been written by plain accesses. It
//! may have been written by a copy that is known to have ended. Additions may meet: each is atomic.

use super::super::block::{Block, Me};
use super::super::counting::Span;
use super::super::failure::Site;
use super::shadow::{Access, Cell, GRAIN};
use super::{Checker, Kind, Space};

impl Checker {
    fn is_of_launch(&self, cell: &Cell) -> bool {
        cell.cluster >= self.first_cluster
    }

    /// Checks that no copy of this launch may still write what a cell describes.
    ///
    /// # Errors
    /// The end of a sentence that begins with the access.
    pub(super) fn refuse_stored(&self, cell: &Cell) -> Result<(), String> {
        if cell.stores > 0 && self.is_of_launch(cell) {
            let copy = if cell.added { "bulk_reduce_add" } else { "tma_store" };
            return Err(format!(
                "of global memory that a {copy} of this launch writes, as late as when it ends"
            ));
        }
        Ok(())
    }

    fn refuse_written(&self, cell: &Cell) -> Result<(), String> {
        if cell.writer.is_some() && !cell.copied && self.is_of_launch(cell) {
            return Err("of global memory that plain accesses of this launch have written".to_owned());
        }
        Ok(())
    }

    /// Checks that a thread knows of all additions to a cell.
    ///
    /// # Errors
    /// The end of a sentence that begins with the access.
    pub(super) fn refuse_unknown_addition(&self, cell: &Cell, thread: usize) -> Result<(), String> {
        match cell.added_by {
            Some((cluster, access))
                if cluster >= self.first_cluster && !self.knows(thread, cluster, access) =>
            {
                Err(self.conflict(cluster, "added to"))
            }
            _ => Ok(()),
        }
    }

    /// The addition that a thread which adds to a cell leaves behind, as it does not know of it.
    fn unknown_addition(&self, cell: &Cell, thread: usize) -> Option<(u32, Access)> {
        let last = cell.writer.map(|writer| (cell.cluster, writer));
        let unknown = |&(cluster, access): &(u32, Access)| {
            (self.first_cluster..self.cluster).contains(&cluster) && !self.knows(thread, cluster, access)
        };
        cell.added_by.into_iter().chain(last.filter(|_| cell.added)).find(unknown)
    }

    fn refuse_tma_source(&mut self, start: usize, bytes: usize, thread: usize) -> Result<(), String> {
        let mut copied = false;
        for cell in self.shadow.touched(start, bytes) {
            self.refuse_stored(cell)?;
            self.refuse_written(cell)?;
            copied |= cell.copied && self.is_of_launch(cell);
        }
        if copied { self.visit_all(Space::Global, start, bytes, thread, Kind::Read) } else { Ok(()) }
    }

    /// Checks and records a copy that a thread issues.
    fn store(&mut self, start: usize, bytes: usize, thread: usize, adds: bool) -> Result<(), String> {
        for place in (start..start + bytes).step_by(GRAIN) {
            let cell = self.shadow.global(place);
            let old = *cell;
            if adds && old.added {
                // Additions meet earlier ones as if those were written and known.
                (cell.stores, cell.added_by) = (0, None);
            }
            if adds && !old.added {
                self.refuse_stored(&old)?;
                self.refuse_written(&old)?;
            }
            self.visit(Space::Global, place, thread, if adds { Kind::Atomic } else { Kind::Write })?;
            let meets = adds && old.added && self.is_of_launch(&old);
            let added_by = if meets { self.unknown_addition(&old, thread) } else { None };
            let earlier = if meets { old.stores } else { 0 };
            let cell = self.shadow.global(place);
            (cell.stores, cell.added, cell.added_by) = (earlier + 1, adds, added_by);
        }
        Ok(())
    }

    /// Records that a copy is written, which its thread sees.
    fn end_store(&mut self, start: usize, bytes: usize, thread: usize) {
        let now = self.now(thread);
        for place in (start..start + bytes).step_by(GRAIN) {
            let cluster = self.cluster;
            let cell = self.shadow.global(place);
            cell.stores -= 1;
            (cell.cluster, cell.writer, cell.copied) = (cluster, Some(now), true);
        }
    }
}

impl Block {
    /// Refuses an access that changes shared memory which a copy may still be reading.
    pub(super) fn refuse_change(&self, shared: usize, bytes: usize, kind: Kind) -> Option<String> {
        let span = (shared as u32, (shared + bytes) as u32);
        let site = if kind == Kind::Read { None } else { self.hopper.read_by_store(span) };
        Some(format!("of shared memory at {shared:#x} that the {} may still be reading", site?))
    }

    /// Checks a row of global memory that a copy to shared memory reads.
    pub fn check_tma_source(&self, user: Me, start: usize, bytes: usize, site: Site) {
        self.check_global(user, start, bytes, Kind::Read, site);
        if let Some(Err(message)) = self.check(|c| c.refuse_tma_source(start, bytes, user.cluster_thread())) {
            user.fail(site, format!("a read {message}"));
        }
    }

    /// Checks and records a row of global memory that a copy from shared memory writes or adds to.
    pub fn check_tma_destination(&self, user: Me, row: Span, adds: bool, site: Site) {
        let Span { address, bytes, .. } = row;
        let kind = if adds { Kind::Atomic } else { Kind::Write };
        self.check_bounds(user, address, bytes, kind, site);
        if let Some(Err(message)) = self.check(|c| c.store(address, bytes, user.cluster_thread(), adds)) {
            user.fail(site, format!("{} {message}", kind.name()));
        }
    }

    /// Records that such a row is written, which the thread sees.
    pub fn check_tma_written(&self, user: Me, row: Span) {
        self.check(|c| c.end_store(row.address, row.bytes, user.cluster_thread()));
    }
}
