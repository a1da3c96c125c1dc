//! Vector clocks. The components are the warps of a cluster, then its mbarriers; one that a clock
//! lacks is 0.

use super::shadow::Access;

#[derive(Clone, Debug, Default)]
pub struct Clock(Vec<u32>);

impl Clock {
    /// The clock of a warp that has just started, of `warps` in all.
    pub fn of_warp(warp: usize, warps: usize) -> Self {
        let mut clock = Clock(vec![0; warps]);
        clock.0[warp] = 1;
        clock
    }

    #[inline]
    pub fn at(&self, component: usize) -> u32 {
        self.0.get(component).copied().unwrap_or(0)
    }

    /// Whether it includes the time of an access.
    #[inline]
    pub fn includes(&self, access: Access) -> bool {
        self.at(usize::from(access.warp)) >= access.clock
    }

    pub fn advance(&mut self, component: usize, time: u32) {
        if component >= self.0.len() {
            self.0.resize(component + 1, 0);
        }
        self.0[component] = self.0[component].max(time);
    }

    pub fn tick(&mut self, warp: usize) {
        self.0[warp] += 1;
    }

    pub fn join(&mut self, other: &Clock) {
        if other.0.len() > self.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a = (*a).max(*b));
    }

    /// Becomes another clock, in its own memory.
    pub fn copy_from(&mut self, other: &Clock) {
        self.0.clone_from(&other.0);
    }
}
