//! Divides a kernel into parts and computes the numbers of each.

use super::flow::Flow;
use super::listing::{Instruction, Listing};
use super::machine::{CACHED, CACHED_LATENCY, Machine, Pipe};
use super::modes::{Modes, modes};
use super::paths::{Path, Region, Step};
use super::pointers::pointers;
use super::simulate::{Priced, clocks, clocks_per_iteration, price};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The launch of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launched {
    /// Threads per block.
    pub threads: usize,
    /// Bytes of dynamic shared memory per block.
    pub shared_bytes: usize,
    /// Offset in the constant bank, name, and whether it is a pointer, per parameter.
    pub parameters: Vec<(u32, String, bool)>,
}

impl Launched {
    /// `parameters` gives the offset, the name and whether it is a pointer, per parameter.
    pub fn new<'a>(
        threads: u32,
        shared_bytes: u32,
        parameters: impl IntoIterator<Item = (u32, &'a str, bool)>,
    ) -> Self {
        let named = |(address, name, is_pointer): (u32, &str, bool)| (address, name.to_string(), is_pointer);
        let [threads, shared_bytes] = [threads, shared_bytes].map(|n| n as usize);
        Launched { threads, shared_bytes, parameters: parameters.into_iter().map(named).collect() }
    }
}

/// Offset of a kernel's first parameter in the constant bank of sm_90.
pub const PARAMETERS_START: u32 = 0x210;

/// Blocks that fit on an SM of sm_90 (CUDA programming guide, compute capability 9.0).
fn blocks(listing: &Listing, launched: &Launched) -> usize {
    const THREADS: usize = 2048;
    const BLOCKS: usize = 32;
    const REGISTERS: usize = 65_536;
    const SHARED_BYTES: usize = 228 * 1024;
    let threads = launched.threads.next_multiple_of(32).max(32);
    let registers = threads * listing.registers.next_multiple_of(8).max(8);
    let shared = (listing.shared_bytes + launched.shared_bytes).max(1);
    [THREADS / threads, REGISTERS / registers, SHARED_BYTES / shared, BLOCKS]
        .into_iter()
        .min()
        .unwrap_or_default()
}

/// Warps per scheduler that run a part with this role.
fn warps(blocks: usize, threads: usize, role: Role) -> usize {
    const SCHEDULERS: usize = 4;
    const WARPGROUP: usize = 128;
    let threads = match role {
        Role::All => threads,
        Role::Consumer => threads.saturating_sub(WARPGROUP),
        Role::Producer => 32,
    };
    (blocks * threads.div_ceil(32)).div_ceil(SCHEDULERS).max(1)
}

/// The warps that run a part of a kernel. Where warpgroups hand over registers, the producer is one
/// thread of the giving warpgroup, and consumers are all that receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    All,
    Consumer,
    Producer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::All => "",
            Role::Consumer => " (consumers)",
            Role::Producer => " (producer)",
        })
    }
}

/// The location of a part. Loops are numbered by address: 1.2 is the second loop inside the first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// One iteration of a loop without inner loops.
    Iteration(String),
    /// The code before the first inner loop of a loop, or of the kernel (an empty name).
    Start(String),
    /// The code after an inner loop, up to the next one or the end of the iteration.
    After { of: String, inner: String },
    /// The epilogue of a tile: the rest of that code, from where all tensor core work of the tile
    /// has been waited for. Loads issued before that point count as the epilogue's, which waits for
    /// the rest of their latency. After each further wait, the next one begins.
    Epilogue { of: String, inner: String, number: usize },
}

impl Place {
    /// Number of loops around it, including itself if it is one.
    pub fn depth(&self) -> usize {
        match self {
            Place::Iteration(name)
            | Place::Start(name)
            | Place::After { of: name, .. }
            | Place::Epilogue { of: name, .. } => name.split('.').filter(|number| !number.is_empty()).count(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |of: &str| if of.is_empty() { String::new() } else { format!(" in loop {of}") };
        match self {
            Place::Iteration(name) => write!(f, "loop {name}"),
            Place::Start(name) => write!(f, "start{}", of(name)),
            Place::After { of: name, inner } => write!(f, "after loop {inner}{}", of(name)),
            Place::Epilogue { of: name, inner, number } => {
                let nth = if *number == 1 { String::new() } else { format!(" {number}") };
                let after = if inner.is_empty() { String::new() } else { format!(" after loop {inner}") };
                write!(f, "epilogue{nth}{after}{}", of(name))
            }
        }
    }
}

/// Instruction counts of a part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub all: usize,
    /// Counts per pipe, in the order of [`Pipe::ALL`].
    pub pipes: [usize; Pipe::ALL.len()],
    /// Global loads and stores, `MUFU.TANH`, and conversions on the pipe of transcendental
    /// functions.
    pub loads: usize,
    pub stores: usize,
    pub tanh: usize,
    pub conversions: usize,
}

/// The resource that sets the clocks of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A pipe that is nearly always busy.
    Pipe(Pipe),
    /// The scheduler, which issues nearly every clock.
    Issue,
    /// Waiting for results.
    Latency,
}

impl Bound {
    pub fn name(self) -> &'static str {
        match self {
            Bound::Pipe(pipe) => pipe.name(),
            Bound::Issue => "issue",
            Bound::Latency => "latency",
        }
    }
}

/// A path through a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Parameters that are nonzero on this path, or zero (with `!`); `-` if none is tested.
    pub mode: String,
    pub counts: Counts,
    pub issue: f64,
    pub latency: f64,
    pub clocks: f64,
    pub bound: Bound,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub place: Place,
    pub role: Role,
    /// Warps per scheduler.
    pub warps: usize,
    /// Addresses of its first and last instruction.
    pub addresses: (u32, u32),
    pub variants: Vec<Variant>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    pub name: String,
    /// Blocks per SM.
    pub blocks: usize,
    pub threads: usize,
    pub parts: Vec<Part>,
}

/// Predicts the clocks of a kernel's parts.
///
/// # Errors
/// If the listing has no encodings, or the table of rates lacks an opcode.
pub fn analyze(listing: &Listing, launched: &Launched, machine: &Machine) -> Result<Kernel> {
    let fault = || listing.kernel.clone();
    let (blocks, threads) = (blocks(listing, launched), launched.threads);
    ensure!(blocks > 0, "{}: an SM has no room for a block of {threads} threads", listing.kernel);
    let code = &listing.instructions;
    let flow = Flow::of(code);
    let modes = modes(code, &flow.blocks);
    let mut priced = price(code, machine).with_context(fault)?;
    let pointing = launched.parameters.iter().filter(|(.., is_pointer)| *is_pointer);
    let by_offset: BTreeMap<u32, &str> = pointing.map(|(offset, name, _)| (*offset, &**name)).collect();
    for (i, from) in pointers(code, &flow.blocks, &by_offset.keys().copied().collect()) {
        let mut names = from.iter().map(|offset| by_offset[offset]);
        if !from.is_empty() && names.all(|name| CACHED.contains(&name)) {
            priced[i].cost.latency = CACHED_LATENCY;
        }
    }
    let names = names(&flow);
    let roles = roles(code, &flow);
    let analysis = Analysis { code, flow: &flow, modes: &modes, priced, names, roles, launched, blocks };
    let regions =
        std::iter::once(None).chain((0..flow.loops.len()).filter(|&l| !flow.loops[l].is_exception).map(Some));
    let mut parts: Vec<Part> = regions.flat_map(|of| analysis.region(of)).collect();
    parts.sort_by_key(|part| part.addresses);
    Ok(Kernel { name: listing.kernel.clone(), blocks, threads, parts })
}

/// The number of each loop, such as 1.2; empty for exceptions.
fn names(flow: &Flow) -> Vec<String> {
    let mut names = vec![String::new(); flow.loops.len()];
    let mut counts = BTreeMap::<Option<usize>, usize>::new();
    for (l, of) in flow.loops.iter().enumerate().filter(|(_, of)| !of.is_exception) {
        let count = counts.entry(of.parent).or_default();
        *count += 1;
        let around = of.parent.map(|p| format!("{}.", names[p])).unwrap_or_default();
        names[l] = format!("{around}{count}");
    }
    names
}

/// The role of each block.
fn roles(code: &[Instruction], flow: &Flow) -> Vec<Role> {
    let mut roles = vec![Role::All; flow.blocks.len()];
    for (asks, role) in [("TRY_ALLOC", Role::Consumer), ("DEALLOC", Role::Producer)] {
        let has = |b: &usize| code[flow.blocks[*b].range.clone()].iter().any(|i| i.has(asks));
        let mut pending: Vec<usize> = (0..flow.blocks.len()).filter(has).collect();
        let mut seen = BTreeSet::new();
        while let Some(b) = pending.pop() {
            if seen.insert(b) {
                roles[b] = role;
                pending.extend(&flow.blocks[b].next);
            }
        }
    }
    roles
}

struct Analysis<'a> {
    code: &'a [Instruction],
    flow: &'a Flow,
    modes: &'a Modes,
    priced: Vec<Priced>,
    names: Vec<String>,
    roles: Vec<Role>,
    launched: &'a Launched,
    blocks: usize,
}

/// Instructions of a path between two loops, and whether each takes effect: its guard may be known
/// to be false.
struct Stretch {
    place: Place,
    role: Role,
    code: Vec<(usize, bool)>,
    /// The code before an epilogue since the last loop.
    before: Vec<(usize, bool)>,
}

impl Analysis<'_> {
    fn region(&self, of: Option<usize>) -> Vec<Part> {
        let paths = Region::new(self.code, self.flow, self.modes, of).paths();
        let mut parts = BTreeMap::<(Place, Role), Vec<(Stretch, Vec<&Path>)>>::new();
        for path in &paths {
            for stretch in self.stretches(of, path) {
                let variants = parts.entry((stretch.place.clone(), stretch.role)).or_default();
                match variants
                    .iter_mut()
                    .find(|(known, _)| known.code == stretch.code && known.before == stretch.before)
                {
                    Some((_, same)) => same.push(path),
                    None => variants.push((stretch, vec![path])),
                }
            }
        }
        parts.into_iter().map(|((place, role), variants)| self.part(place, role, &variants)).collect()
    }

    /// Cuts a path at inner loops, and where tensor core work has been waited for.
    fn stretches(&self, of: Option<usize>, path: &Path) -> Vec<Stretch> {
        let name = of.map(|l| self.names[l].clone()).unwrap_or_default();
        let innermost = of.is_some() && self.flow.children(of).all(|l| self.flow.loops[l].is_exception);
        let start = if innermost { Place::Iteration(name.clone()) } else { Place::Start(name.clone()) };
        let stretch = |place: Place| Stretch { place, role: Role::All, code: Vec::new(), before: Vec::new() };
        let (mut stretches, mut now, mut inner) = (Vec::new(), stretch(start), String::new());
        for step in &path.steps {
            match *step {
                Step::Loop(l) if self.flow.loops[l].is_exception => {}
                Step::Loop(l) => {
                    inner = self.names[l].clone();
                    let place = Place::After { of: name.clone(), inner: inner.clone() };
                    stretches.push(std::mem::replace(&mut now, stretch(place)));
                }
                Step::Block(b) => {
                    now.role = now.role.max(self.roles[b]);
                    for i in self.flow.blocks[b].range.clone() {
                        now.code.push((i, self.takes_effect(i, path)));
                        let done = self.code[i].opcode == "WARPGROUP.DEPBAR.LE"
                            && self.code[i].operands.ends_with("0x0");
                        if done && !innermost {
                            let number = match now.place {
                                Place::Epilogue { number, .. } => number + 1,
                                _ => 1,
                            };
                            let place = Place::Epilogue { of: name.clone(), inner: inner.clone(), number };
                            let before = std::mem::replace(&mut now, stretch(place));
                            now.before = before.code.clone();
                            now.role = self.roles[b];
                            stretches.push(before);
                        }
                    }
                }
            }
        }
        stretches.push(now);
        stretches.retain(|s| !s.code.is_empty());
        stretches
    }

    fn takes_effect(&self, i: usize, path: &Path) -> bool {
        let decided =
            self.modes.guards.get(&i).and_then(|(test, holds)| Some(path.tests.get(test)? == holds));
        decided.unwrap_or(true)
    }

    fn part(&self, place: Place, role: Role, variants: &[(Stretch, Vec<&Path>)]) -> Part {
        let all =
            || variants.iter().flat_map(|(stretch, _)| &stretch.code).map(|&(i, _)| self.code[i].address);
        let addresses = (all().min().unwrap_or_default(), all().max().unwrap_or_default());
        let warps = warps(self.blocks, self.launched.threads, role);
        let variant = |(stretch, paths): &(Stretch, Vec<&Path>)| {
            let others = variants.iter().flat_map(|(_, paths)| paths).copied();
            self.variant(stretch, warps, self.mode(paths, &others.collect::<Vec<_>>()))
        };
        Part { addresses, role, warps, variants: variants.iter().map(variant).collect(), place }
    }

    /// The tests that all of `paths` decided alike, and others differently.
    fn mode(&self, paths: &[&Path], others: &[&Path]) -> String {
        let Some(first) = paths.first() else { return "-".into() };
        let decides = |test: &_, is: &bool| {
            paths.iter().all(|p| p.tests.get(test) == Some(is))
                && !others.iter().all(|p| p.tests.get(test) == Some(is))
        };
        let name = |offsets: &[u32]| {
            let named = |offset: &u32| self.launched.parameters.iter().find(|(o, ..)| o == offset);
            let names: Vec<_> =
                offsets.iter().filter_map(|o| named(o).map(|(_, name, _)| name.clone())).collect();
            if names.is_empty() {
                format!("{:#x}", offsets.first().copied().unwrap_or_default())
            } else {
                names.join("/")
            }
        };
        let tests = first.tests.iter().filter(|(test, is)| decides(test, is));
        let texts =
            tests.map(|(test, &is)| format!("{}{}", if is { "" } else { "!" }, name(&test.parameters)));
        let texts: Vec<String> = texts.collect();
        if texts.is_empty() { "-".into() } else { texts.join(" ") }
    }

    fn variant(&self, stretch: &Stretch, warps: usize, mode: String) -> Variant {
        let priced = |code: &[(usize, bool)]| -> Vec<Priced> {
            let one = |&(i, does): &(usize, bool)| match does {
                true => self.priced[i].clone(),
                false => Priced::nothing(self.priced[i].control),
            };
            code.iter().map(one).collect()
        };
        let (before, code) = (priced(&stretch.before), priced(&stretch.code));
        let whole: Vec<&Priced> = before.iter().chain(&code).collect();
        let (before, code) = whole.split_at(before.len());
        let mut counts = self.counts(&stretch.code);
        counts.loads += self.counts(&stretch.before).loads;
        let run = |warps| match stretch.place {
            Place::Iteration(_) => clocks_per_iteration(code, warps),
            _ => clocks(&whole, warps) - clocks(before, warps),
        };
        let (latency, together) = (run(1), run(warps));
        let (fullest, busy) = fullest(code);
        let issue = warps as f64 * busy.max(code.len() as f64);
        /// Share of its clocks in which the pipe that sets them is busy.
        const BUSY: f64 = 0.85;
        let bound = match warps as f64 * busy >= issue {
            _ if issue < BUSY * together => Bound::Latency,
            true => Bound::Pipe(fullest),
            false => Bound::Issue,
        };
        Variant { mode, counts, issue, latency, clocks: together.max(issue), bound }
    }

    fn counts(&self, code: &[(usize, bool)]) -> Counts {
        let mut counts = Counts { all: code.len(), ..Counts::default() };
        for &(i, takes_effect) in code {
            if !takes_effect {
                counts.pipes[Pipe::Other as usize] += 1;
                continue;
            }
            let (instruction, priced) = (&self.code[i], &self.priced[i]);
            counts.pipes[priced.cost.pipe as usize] += 1;
            match instruction.name() {
                "LDG" | "LD" => counts.loads += 1,
                "STG" | "ST" => counts.stores += 1,
                "MUFU" if instruction.has("TANH") => counts.tanh += 1,
                "F2F" | "F2I" | "I2F" => counts.conversions += 1,
                _ => {}
            }
        }
        counts
    }
}

/// The pipe that one warp keeps busy the longest, and for how many clocks.
fn fullest(code: &[&Priced]) -> (Pipe, f64) {
    let mut busy = [0.0; Pipe::ALL.len()];
    let mut one_half = 0.0;
    for cost in code.iter().map(|priced| priced.cost) {
        busy[cost.pipe as usize] += cost.clocks;
        busy[Pipe::Lsu as usize] += cost.lsu_clocks;
        one_half += if cost.one_half { cost.clocks } else { 0.0 };
    }
    // Two halves, only one of which executes integer instructions.
    let fma = &mut busy[Pipe::Fma as usize];
    *fma = (*fma / 2.0).max(one_half);
    // These take only an issue slot.
    busy[Pipe::Other as usize] = 0.0;
    Pipe::ALL.into_iter().zip(busy).max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are pipes")
}
