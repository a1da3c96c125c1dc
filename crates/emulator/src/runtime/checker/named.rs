//! The order that named barriers make: of the warps that arrive before those that wait. A warp may
//! use a barrier again once it knows that the last use has ended, which a warp that waited knows.

use super::releases::{Known, join_known};
use super::{Checker, Clock};

/// The knowledge that passes through a named barrier.
#[derive(Default)]
pub struct NamedClock {
    released: Clock,
    known: Known,
    /// The warps that waited until the last use ended, and the time of each since then.
    ended: Option<Vec<(usize, u32)>>,
}

impl Checker {
    /// Releases what a warp of the cluster knows.
    ///
    /// # Errors
    /// If the warp cannot know that the last use of the barrier has ended.
    pub fn arrive_at_named(&mut self, warp: usize, barrier: &mut NamedClock) -> Result<(), String> {
        let clock = &mut self.clocks[warp];
        if let Some(ended) = &barrier.ended
            && !ended.iter().any(|(waited, time)| clock.at(*waited) >= *time)
        {
            return Err("is used again, but nothing tells this warp that its last use has ended".to_owned());
        }
        barrier.released.join(clock);
        join_known(&mut barrier.known, &self.known[warp]);
        clock.tick(warp);
        Ok(())
    }

    /// Gives the warps that waited the knowledge of all that arrived.
    pub fn complete_named(&mut self, waited: impl Iterator<Item = usize>, barrier: &mut NamedClock) {
        let mut ended = Vec::new();
        for warp in waited {
            self.clocks[warp].join(&barrier.released);
            join_known(&mut self.known[warp], &barrier.known);
            self.epochs[warp] += 1;
            ended.push((warp, self.clocks[warp].at(warp)));
        }
        *barrier = NamedClock { ended: Some(ended), ..NamedClock::default() };
    }
}
