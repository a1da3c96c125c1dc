//! Paths through a loop, or through the kernel: which blocks run in sequence.
//!
//! Where parameters decide, each outcome is a path of its own ([`modes`](super::modes)). Where
//! threads or data decide, the path with more work is taken: a full tile, a lane that has work. An
//! inner loop is a single step, whatever it does.

use super::flow::Flow;
use super::listing::Instruction;
use super::modes::{Mode, Modes, Test};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Block(usize),
    Loop(usize),
}

/// A path from the start of a loop to its next iteration, or from the start of the kernel to its
/// end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    pub steps: Vec<Step>,
    /// The tests that were decided on the path.
    pub tests: BTreeMap<Test, bool>,
}

/// A loop of a kernel, or all of it.
pub struct Region<'a> {
    code: &'a [Instruction],
    flow: &'a Flow,
    modes: &'a Modes,
    of: Option<usize>,
}

/// Limit on paths; a kernel has one or two tests, rarely four.
const MOST_PATHS: usize = 64;

/// Penalty, in instructions, of steps that are not a kernel's main work: a call, a wait, leaving a
/// loop early.
const EXCEPTION: i64 = 100_000;

impl<'a> Region<'a> {
    pub fn new(code: &'a [Instruction], flow: &'a Flow, modes: &'a Modes, of: Option<usize>) -> Self {
        Region { code, flow, modes, of }
    }

    /// Paths that together pass through every direct inner loop, except exceptions.
    pub fn paths(&self) -> Vec<Path> {
        let mut paths = self.through(None);
        for inner in self.flow.children(self.of).filter(|&l| !self.flow.loops[l].is_exception) {
            if !paths.iter().any(|path| path.steps.contains(&Step::Loop(inner))) {
                paths.extend(self.through(Some(inner)));
            }
        }
        paths
    }

    fn first(&self) -> Step {
        Step::Block(self.of.map_or(0, |l| self.flow.loops[l].first))
    }

    /// The step that a block belongs to: itself, or the direct inner loop that contains it.
    fn step(&self, block: usize) -> Step {
        let has = |&l: &usize| self.flow.loops[l].blocks.contains(&block);
        self.flow.children(self.of).find(has).map_or(Step::Block(block), Step::Loop)
    }

    /// The possible next steps, and whether a path may end here: by the next iteration (no
    /// penalty), or by leaving.
    fn next(&self, step: Step) -> (Vec<Step>, Option<i64>) {
        let edges: Vec<usize> = match step {
            Step::Block(b) => self.flow.blocks[b].next.clone(),
            Step::Loop(l) => {
                let inside = &self.flow.loops[l].blocks;
                let edges = inside.iter().flat_map(|&b| &self.flow.blocks[b].next);
                edges.copied().filter(|b| !inside.contains(b)).collect()
            }
        };
        let around = self.of.map(|l| &self.flow.loops[l]);
        let (mut steps, mut ends) = (Vec::new(), edges.is_empty().then_some(0));
        for b in edges {
            match around {
                Some(around) if b == around.first => ends = Some(0),
                Some(around) if !around.blocks.contains(&b) => ends = ends.or(Some(-EXCEPTION)),
                _ if !steps.contains(&self.step(b)) => steps.push(self.step(b)),
                _ => {}
            }
        }
        (steps, ends)
    }

    fn worth(&self, step: Step) -> i64 {
        match step {
            Step::Loop(l) if self.flow.loops[l].is_exception => -EXCEPTION,
            Step::Loop(l) => {
                self.flow.loops[l].blocks.iter().map(|&b| self.flow.blocks[b].range.len() as i64).sum()
            }
            Step::Block(b) => {
                let range = self.flow.blocks[b].range.clone();
                let is_exception = |i: &Instruction| matches!(i.name(), "CALL" | "BPT");
                let calls = self.code[range.clone()].iter().any(is_exception);
                range.len() as i64 - if calls { EXCEPTION } else { 0 }
            }
        }
    }

    /// All paths, through one inner loop if it is given.
    fn through(&self, inner: Option<usize>) -> Vec<Path> {
        let mut walk = Walk { region: self, inner, worth: BTreeMap::new(), paths: Vec::new() };
        walk.follow(Path { steps: Vec::new(), tests: BTreeMap::new() }, self.first());
        walk.paths.into_iter().flat_map(|path| self.with_guards(path)).collect()
    }

    /// A path for each outcome of the tests that no jump decided but that guard instructions on the
    /// path.
    fn with_guards(&self, path: Path) -> Vec<Path> {
        let blocks = path.steps.iter().filter_map(|step| match step {
            Step::Block(b) => Some(self.flow.blocks[*b].range.clone()),
            Step::Loop(_) => None,
        });
        let guards = blocks.flatten().filter_map(|i| self.modes.guards.get(&i));
        let open: BTreeSet<Test> =
            guards.map(|(test, _)| test.clone()).filter(|t| !path.tests.contains_key(t)).collect();
        let mut paths = vec![path];
        // A few suffice; guards that stay undecided are taken as true.
        for test in open.into_iter().take(3) {
            let with = |path: &Path, is: bool| {
                let mut path = path.clone();
                path.tests.insert(test.clone(), is);
                path
            };
            paths = paths.iter().flat_map(|path| [true, false].map(|is| with(path, is))).collect();
        }
        paths
    }
}

struct Walk<'a, 'b> {
    region: &'a Region<'b>,
    inner: Option<usize>,
    /// For each step, the worth of the best path from there to the end, and whether that path can
    /// pass the required loop.
    worth: BTreeMap<Step, (bool, i64)>,
    paths: Vec<Path>,
}

impl Walk<'_, '_> {
    /// Prefers paths that pass the loop, then those that are worth more.
    fn best(&mut self, step: Step) -> (bool, i64) {
        if let Some(&best) = self.worth.get(&step) {
            return best;
        }
        // Loops have a single entry, so this is read only where the code's entry is unknown.
        self.worth.insert(step, (false, -EXCEPTION));
        let (steps, ends) = self.region.next(step);
        let ends = ends.map(|worth| (false, worth));
        let further = steps.into_iter().map(|next| self.best(next)).chain(ends).max().unwrap_or((false, 0));
        let passes = self.inner.is_some_and(|l| step == Step::Loop(l));
        let best = (further.0 || passes, further.1 + self.region.worth(step));
        self.worth.insert(step, best);
        best
    }

    fn follow(&mut self, mut path: Path, mut step: Step) {
        let mut seen: BTreeSet<Step> = path.steps.iter().copied().collect();
        while seen.insert(step) {
            path.steps.push(step);
            let (steps, ends) = self.region.next(step);
            if let Some((mode, [fallthrough, target])) = self.mode(step, &steps) {
                let outcomes = match path.tests.get(&mode.test) {
                    Some(&is) => vec![is],
                    None if self.paths.len() < MOST_PATHS => vec![true, false],
                    None => vec![self.best(target) > self.best(fallthrough)],
                };
                let go = |is: bool| if is == mode.jumps_if { target } else { fallthrough };
                if let [first, second] = outcomes[..] {
                    let mut other = path.clone();
                    other.tests.insert(mode.test.clone(), second);
                    self.follow(other, go(second));
                    path.tests.insert(mode.test.clone(), first);
                }
                step = go(outcomes[0]);
                continue;
            }
            let best = steps.iter().map(|&next| (self.best(next), next)).max_by_key(|(worth, _)| *worth);
            match best {
                Some((worth, next)) if ends.is_none_or(|end| worth >= (false, end)) => step = next,
                _ => break,
            }
        }
        self.paths.push(path);
    }

    /// Returns the test if parameters decide between two inner steps, neither of which is an
    /// exception or misses the required loop.
    fn mode(&mut self, step: Step, steps: &[Step]) -> Option<(Mode, [Step; 2])> {
        let Step::Block(b) = step else { return None };
        let mode = self.region.modes.ends[b].clone()?;
        let [fallthrough, target] = self.region.flow.blocks[b].next[..] else { return None };
        let both = [self.region.step(fallthrough), self.region.step(target)];
        let inside = both.iter().all(|s| steps.contains(s)) && both[0] != both[1];
        let [one, other] = both.map(|s| self.best(s));
        let alike = one.0 == other.0 && (one.1 - other.1).abs() < EXCEPTION / 2;
        (inside && alike).then_some((mode, both))
    }
}
