//! The order of clusters (of blocks, without clusters). A release leaves the knowledge of a thread
//! at an address: an atomic that follows a `__threadfence` leaves that of the fence, and a flag
//! that is raised leaves all. Later atomics at the address, and the wait for the flag, acquire it;
//! barriers pass it on.

use super::super::block::{Block, Me};
use super::super::failure::Site;
use super::shadow::Access;
use super::{Checker, Clock, Kind};
use std::collections::BTreeMap;

/// The number of releases at an address that are known, by address.
pub type Known = BTreeMap<usize, usize>;

/// The knowledge of a thread at one time.
#[derive(Clone)]
pub struct Released {
    pub clock: Clock,
    /// The thread, and how often its warp had synchronized all its lanes.
    thread: usize,
    epoch: u32,
    pub known: Known,
}

/// A release of a cluster; an atomic without a fence before it releases nothing.
pub struct Release {
    cluster: u32,
    released: Option<Released>,
}

impl Release {
    /// Whether it covers an access of its cluster. The accesses of other lanes of its warp count
    /// only if the warp has synchronized since.
    fn covers(&self, cluster: u32, access: Access) -> bool {
        let Some(Released { clock, thread, epoch, .. }) = &self.released else { return false };
        let warp = usize::from(access.warp);
        let other_lane = warp == thread / 32 && usize::from(access.lane) != thread % 32;
        self.cluster == cluster && clock.includes(access) && (!other_lane || access.epoch < *epoch)
    }
}

pub fn join_known(known: &mut Known, other: &Known) {
    for (address, count) in other {
        let mine = known.entry(*address).or_default();
        *mine = (*mine).max(*count);
    }
}

impl Checker {
    fn knowledge(&self, thread: usize) -> Released {
        let warp = thread / 32;
        let (clock, epoch, known) = (self.clocks[warp].clone(), self.epochs[warp], self.known[warp].clone());
        Released { clock, thread, epoch, known }
    }

    pub fn fence(&mut self, thread: usize) {
        let knowledge = self.knowledge(thread);
        self.fences.insert(thread, knowledge);
        self.clocks[thread / 32].tick(thread / 32);
    }

    pub(super) fn acquire(&mut self, thread: usize, address: usize) {
        let warp = thread / 32;
        let Some(releases) = self.releases.get(&address) else { return };
        let seen = self.acquired.insert((warp, address), releases.len()).unwrap_or(0);
        for Release { cluster, released } in &releases[seen..] {
            let Some(released) = released else { continue };
            if *cluster == self.cluster {
                self.clocks[warp].join(&released.clock);
            }
            join_known(&mut self.known[warp], &released.known);
            self.known[warp].insert(address, releases.len());
        }
    }

    pub(super) fn release(&mut self, thread: usize, address: usize) {
        let released = self.fences.get(&thread).cloned();
        self.add_release(thread, address, released);
    }

    fn add_release(&mut self, thread: usize, address: usize, released: Option<Released>) {
        let releases = self.releases.entry(address).or_default();
        releases.push(Release { cluster: self.cluster, released });
        self.acquired.insert((thread / 32, address), releases.len());
        self.clocks[thread / 32].tick(thread / 32);
    }

    /// Releases everything that a thread knows, as a flag that it raises does.
    pub fn raise_flag(&mut self, thread: usize, address: usize) {
        let knowledge = self.knowledge(thread);
        self.add_release(thread, address, Some(knowledge));
    }

    /// Acquires what raised flags at an address have released.
    pub fn wait_for_flag(&mut self, thread: usize, address: usize) {
        self.acquire(thread, address);
    }

    /// Whether a thread's warp knows of an access of another cluster.
    pub(super) fn knows(&self, thread: usize, cluster: u32, access: Access) -> bool {
        self.known[thread / 32].iter().any(|(address, count)| {
            self.releases[address][..*count].iter().any(|release| release.covers(cluster, access))
        })
    }

    /// Gives warps that have met at a barrier the knowledge of each of them.
    pub(super) fn share_known(&mut self, warps: impl Iterator<Item = usize> + Clone) {
        let mut all = Known::new();
        warps.clone().for_each(|warp| join_known(&mut all, &self.known[warp]));
        if !all.is_empty() {
            warps.for_each(|warp| self.known[warp] = all.clone());
        }
    }
}

impl Block {
    /// Fails if an address that is read again and again is not one that may be read.
    pub fn check_bounds(&self, user: Me, start: usize, bytes: usize, kind: Kind, site: Site) {
        self.check_global(user, start, bytes, kind, site);
        let message = match self.check(|c| c.in_allocation(start, bytes)) {
            Some(Err(message)) => message,
            Some(Ok(false)) => format!("of {bytes} bytes at {start:#x}, outside of every allocation"),
            _ => return,
        };
        user.fail(site, format!("{} {message}", kind.name()));
    }
}
