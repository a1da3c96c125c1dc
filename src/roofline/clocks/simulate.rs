//! The clocks that the warps of one scheduler take through a list of instructions: in order within
//! a warp, by its control codes; one instruction per clock over all warps; each on a pipe that
//! stays busy for a while.

use super::listing::{Control, Instruction};
use super::machine::{Cost, FLIGHT_CLOCKS, Machine, Pipe, QUEUE_CLOCKS, READ_CLOCKS};
use anyhow::{Context, Result};

/// An instruction with its cost.
#[derive(Clone, Debug)]
pub struct Priced {
    pub control: Control,
    pub cost: Cost,
    effect: Effect,
}

/// Effects besides occupying a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    /// An asynchronous copy, and the end of a group of copies.
    Copy,
    CopiesEnd,
    /// Waits until at most this many on this scoreboard are in flight.
    Await(u8, usize),
    /// A warpgroup MMA; whether it ends a group.
    Wgmma {
        ends_group: bool,
    },
    /// Waits until at most this many groups of MMAs are in flight.
    AwaitWgmma(usize),
    /// A barrier for all warps of a block, and so for all warps here.
    Barrier,
    /// A barrier of a warpgroup, or a turn that another warpgroup gives. A scheduler has one warp
    /// of each warpgroup, and those that take turns start apart by themselves, as one of them gets
    /// the tensor cores first. So only its own time passes.
    Named,
}

impl Priced {
    /// An instruction whose guard is false: an issue slot, and the waits of its control codes.
    pub fn nothing(control: Control) -> Self {
        let control = Control { writes: None, reads: None, ..control };
        let cost = Cost { pipe: Pipe::Other, clocks: 0.0, lsu_clocks: 0.0, one_half: false, latency: 0.0 };
        Priced { control, cost, effect: Effect::None }
    }
}

/// Attaches costs to instructions.
///
/// # Errors
/// If the listing has no encodings, or the table of rates lacks an opcode.
pub fn price(code: &[Instruction], machine: &Machine) -> Result<Vec<Priced>> {
    let price = |i: &Instruction| {
        let control = i.control.with_context(|| {
            format!(
                "the listing has no encoding of {} at {:#x}: expected the output of cuobjdump -sass",
                i.opcode, i.address
            )
        })?;
        Ok(Priced { control, cost: machine.cost(i)?, effect: effect(i) })
    };
    code.iter().map(price).collect()
}

fn effect(i: &Instruction) -> Effect {
    let number = || {
        let text = i.operands.rsplit(", ").next().unwrap_or_default();
        usize::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
    };
    let scoreboard = || i.operands.strip_prefix("SB").and_then(|rest| rest.get(..1)?.parse().ok());
    match i.name() {
        "LDGSTS" => Effect::Copy,
        "LDGDEPBAR" => Effect::CopiesEnd,
        "DEPBAR" => scoreboard().map_or(Effect::None, |s| Effect::Await(s, number())),
        "HGMMA" => Effect::Wgmma { ends_group: i.operands.contains("gsb0") },
        "WARPGROUP" if i.has("DEPBAR") => Effect::AwaitWgmma(number()),
        "BAR" if i.has("SYNC") && i.operands == "0x0" => Effect::Barrier,
        "BAR" if i.has("SYNC") => Effect::Named,
        _ => Effect::None,
    }
}

#[derive(Clone, Debug, Default)]
struct Warp {
    next: usize,
    /// Time at which the last instruction's stall count allows the next one to issue.
    ready: f64,
    /// Completion times of the instructions that each scoreboard tracks.
    scoreboards: [Vec<f64>; 6],
    copies_done: f64,
    wgmma_done: f64,
    groups: Vec<f64>,
    barriers: usize,
}

impl Warp {
    /// Time at which all waits of an instruction are over, except those for other warps.
    fn may_issue(&self, next: &Priced) -> f64 {
        let mut at = self.ready;
        for (s, pending) in self.scoreboards.iter().enumerate() {
            if next.control.waits >> s & 1 == 1 {
                at = pending.iter().copied().fold(at, f64::max);
            }
        }
        match next.effect {
            Effect::Await(s, most) => at.max(all_but(&self.scoreboards[usize::from(s).min(5)], most)),
            Effect::AwaitWgmma(most) => at.max(all_but(&self.groups, most)),
            _ => at,
        }
    }
}

/// Time at which all but the last `most` are done.
fn all_but(done: &[f64], most: usize) -> f64 {
    done[..done.len().saturating_sub(most)].iter().copied().fold(0.0, f64::max)
}

/// Time at which each pipe is free again.
#[derive(Clone, Debug, Default)]
struct Pipes {
    free: [f64; Pipe::ALL.len()],
    /// The half of [`Pipe::Fma`] without integer multiplication.
    second_half: f64,
}

impl Pipes {
    /// Time at which an instruction that may issue at `at` finds room.
    fn room(&self, cost: &Cost, at: f64) -> f64 {
        let free = self.free[cost.pipe as usize];
        match cost.pipe {
            Pipe::Fma if !cost.one_half => at.max(free.min(self.second_half)),
            Pipe::Fma | Pipe::Alu | Pipe::Uniform => at.max(free),
            Pipe::Xu | Pipe::Lsu => at.max(free - QUEUE_CLOCKS),
            Pipe::Global => at.max(self.free[Pipe::Lsu as usize] - QUEUE_CLOCKS).max(free - FLIGHT_CLOCKS),
            // Warpgroup MMAs have no latency of their own: they are queued, and waited for in
            // groups.
            Pipe::Tensor if cost.latency > 0.0 => at.max(free),
            Pipe::Tensor | Pipe::Other => at,
        }
    }

    /// Occupies the pipe from `at`; returns the start time.
    fn take(&mut self, cost: &Cost, at: f64) -> f64 {
        let lsu = Pipe::Lsu as usize;
        if cost.pipe == Pipe::Global {
            self.free[lsu] = self.free[lsu].max(at) + cost.lsu_clocks;
        }
        let first = &mut self.free[cost.pipe as usize];
        let pipe = match cost.pipe {
            Pipe::Fma if !cost.one_half && self.second_half <= *first => &mut self.second_half,
            _ => first,
        };
        let start = pipe.max(at);
        *pipe = start + cost.clocks;
        start
    }

    /// Time at which everything is done except memory beyond the SM, which nothing waits for.
    fn drained(&self) -> f64 {
        let inside = Pipe::ALL.into_iter().filter(|&pipe| pipe != Pipe::Global);
        inside.map(|pipe| self.free[pipe as usize]).fold(self.second_half, f64::max)
    }
}

/// Clocks until the last of `warps` warps has issued everything and every pipe except memory's is
/// done. All warps start at once. Among those that could issue, the first one does: warps then fill
/// each other's stalls and do not wait for the same thing at the same time.
pub fn clocks(code: &[&Priced], warps: usize) -> f64 {
    clocks_of(code, code.len(), warps)
}

/// The same for a loop of `len` instructions per iteration: the warp with the fewest iterations
/// goes first.
fn clocks_of(code: &[&Priced], len: usize, warps: usize) -> f64 {
    let mut all = vec![Warp::default(); warps];
    let (mut pipes, mut slot, mut end) = (Pipes::default(), 0.0_f64, 0.0_f64);
    loop {
        let reached: usize = all.iter().map(|w| w.barriers).min().unwrap_or_default();
        let candidate = |(w, warp): (usize, &Warp)| {
            let next = code.get(warp.next)?;
            // A warp passes a barrier only when all warps have arrived.
            let waits =
                warp.next > 0 && code[warp.next - 1].effect == Effect::Barrier && warp.barriers > reached;
            (!waits).then(|| (pipes.room(&next.cost, warp.may_issue(next)).max(slot), w))
        };
        let iterations = |w: usize| all[w].next / len;
        let sooner = |a: &(f64, usize), b: &(f64, usize)| {
            a.0.total_cmp(&b.0).then(iterations(a.1).cmp(&iterations(b.1)))
        };
        let first = all.iter().enumerate().filter_map(candidate).min_by(sooner);
        let Some((at, w)) = first else { break };
        let issued = code[all[w].next];
        issue(issued, &mut all[w], &mut pipes, at);
        if issued.effect == Effect::Barrier {
            release(&mut all, at + issued.cost.latency);
        }
        (slot, end) = (at + 1.0, end.max(all[w].ready));
    }
    end.max(pipes.drained())
}

/// Opens the barrier for all warps at `open`, once the last has arrived.
fn release(all: &mut [Warp], open: f64) {
    if all.iter().all(|w| w.barriers == all[0].barriers) {
        all.iter_mut().for_each(|w| w.ready = w.ready.max(open));
    }
}

fn issue(priced: &Priced, warp: &mut Warp, pipes: &mut Pipes, at: f64) {
    let Priced { control, cost, effect } = priced;
    let start = pipes.take(cost, at);
    let done = start + cost.latency;
    let release = |scoreboards: &mut [Vec<f64>; 6], s: Option<u8>, at: f64| {
        if let Some(s) = s {
            scoreboards[usize::from(s)].push(at);
        }
    };
    match *effect {
        Effect::Copy => warp.copies_done = warp.copies_done.max(done),
        Effect::CopiesEnd => release(&mut warp.scoreboards, control.writes, warp.copies_done.max(at)),
        Effect::Wgmma { ends_group } => {
            warp.wgmma_done = start + cost.clocks;
            if ends_group {
                warp.groups.push(warp.wgmma_done);
            }
        }
        Effect::Barrier => warp.barriers += 1,
        _ => {}
    }
    if *effect != Effect::CopiesEnd {
        release(&mut warp.scoreboards, control.writes, done);
    }
    release(&mut warp.scoreboards, control.reads, start + READ_CLOCKS);
    // Completed instructions no longer count.
    warp.scoreboards
        .iter_mut()
        .chain([&mut warp.groups])
        .for_each(|pending| pending.retain(|&done| done > at));
    warp.ready = at + f64::from(control.stall.max(1));
    if *effect == Effect::Named {
        warp.ready = warp.ready.max(done);
    }
    warp.next += 1;
}

/// Clocks per iteration of a loop in steady state: the extra time of extra iterations.
pub fn clocks_per_iteration(code: &[&Priced], warps: usize) -> f64 {
    const ITERATIONS: usize = 6;
    let clocks = |n: usize| clocks_of(&code.repeat(n), code.len(), warps);
    (clocks(2 * ITERATIONS) - clocks(ITERATIONS)) / ITERATIONS as f64
}
