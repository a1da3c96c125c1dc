//! The accesses of copies to and from global memory by TMA. They go through the async proxy, which
//! no fence of our kernels orders with plain accesses to global memory: within one launch, what a
//! copy writes must not be touched again, and what a copy reads must not have been written.

use super::super::block::{Block, Me};
use super::super::failure::Site;
use super::shadow::{Cell, GRAIN};
use super::{Checker, Kind};

impl Checker {
    /// Checks that no copy of this launch writes what a cell describes.
    ///
    /// # Errors
    /// The end of a sentence that begins with the access.
    pub(super) fn refuse_stored(&self, cell: &Cell) -> Result<(), String> {
        if cell.stored && cell.cluster >= self.first_cluster {
            return Err(
                "of global memory that a tma_store of this launch writes, as late as when it ends".to_owned()
            );
        }
        Ok(())
    }

    fn refuse_tma_source(&self, start: usize, bytes: usize) -> Result<(), String> {
        for cell in self.shadow.touched(start, bytes) {
            self.refuse_stored(cell)?;
            if cell.writer.is_some() && cell.cluster >= self.first_cluster {
                return Err("of global memory that plain accesses of this launch have written".to_owned());
            }
        }
        Ok(())
    }

    fn mark_stored(&mut self, start: usize, bytes: usize) {
        for place in (start..start + bytes).step_by(GRAIN) {
            self.shadow.global(place).stored = true;
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
        self.check_lent(user, start, bytes, Kind::Read, site);
        if let Some(Err(message)) = self.check(|c| c.refuse_tma_source(start, bytes)) {
            user.fail(site, format!("a read {message}"));
        }
    }

    /// Checks and records a row of global memory that a copy from shared memory writes.
    pub fn check_tma_destination(&self, user: Me, start: usize, bytes: usize, site: Site) {
        self.check_access(user, start, bytes, Kind::Write, site);
        self.check(|c| c.mark_stored(start, bytes));
    }
}
