//! The control flow of a kernel: blocks of instructions, and loops, found from jumps back to a
//! dominator.
//!
//! Not followed: jumps that a warp takes when its lanes diverge (`BRA.DIV`) or again for each
//! further value of an operand (`BRA.U.ANY`), and the code that a `CALL` runs. All are exceptions.

use super::listing::Instruction;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Instructions that run in sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Indices of instructions.
    pub range: Range<usize>,
    /// Successors: the fallthrough block before the target of its jump.
    pub next: Vec<usize>,
}

/// A loop: all blocks from which its first one can be reached again without leaving the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loop {
    pub first: usize,
    pub blocks: BTreeSet<usize>,
    /// The smallest loop around it.
    pub parent: Option<usize>,
    /// Whether it is no part of the kernel's usual work: it only waits, for a barrier in shared
    /// memory or for registers, or it has MMAs of single warps in a kernel of warpgroups, which
    /// repeat what was not accurate enough.
    pub is_exception: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Reachable blocks in address order; the kernel starts with the first.
    pub blocks: Vec<Block>,
    /// In the order of their first blocks, so outer loops come first.
    pub loops: Vec<Loop>,
}

impl Flow {
    pub fn of(code: &[Instruction]) -> Flow {
        let blocks = reachable(blocks(code));
        let loops = loops(code, &blocks);
        Flow { blocks, loops }
    }

    /// Loops directly inside this one, or at the top level.
    pub fn children(&self, parent: Option<usize>) -> impl Iterator<Item = usize> {
        (0..self.loops.len()).filter(move |&l| self.loops[l].parent == parent)
    }
}

/// Whether a jump is one of those not followed.
fn is_exception(jump: &Instruction) -> bool {
    jump.has("DIV") || jump.has("ANY")
}

/// The end of a block: whether the next instruction may follow, and the target of the jump.
fn end(instruction: &Instruction) -> Option<(bool, Option<u32>)> {
    let sometimes = instruction.guard.as_deref().is_some_and(|guard| guard != "PT" && guard != "UPT");
    match instruction.name() {
        "EXIT" | "RET" | "BRX" | "JMX" | "KILL" => Some((sometimes, None)),
        "BRA" | "JMP" if !is_exception(instruction) => {
            let on_second = instruction.operands.contains("P") && instruction.operands.contains(',');
            Some((sometimes || on_second, instruction.target()))
        }
        _ => None,
    }
}

fn blocks(code: &[Instruction]) -> Vec<Block> {
    let index: BTreeMap<u32, usize> = code.iter().enumerate().map(|(i, c)| (c.address, i)).collect();
    let target = |end: (bool, Option<u32>)| end.1.and_then(|address| index.get(&address)).copied();
    let mut starts = BTreeSet::from([0]);
    for (i, instruction) in code.iter().enumerate() {
        if let Some(end) = end(instruction) {
            starts.insert(i + 1);
            starts.extend(target(end));
        }
    }
    let starts: Vec<usize> = starts.into_iter().filter(|&i| i < code.len()).collect();
    let block_of: BTreeMap<usize, usize> = starts.iter().enumerate().map(|(b, &i)| (i, b)).collect();
    let block = |(b, &first): (usize, &usize)| {
        let last = starts.get(b + 1).map_or(code.len(), |&next| next) - 1;
        let (on, jump) = end(&code[last]).map_or((true, None), |end| (end.0, target(end)));
        let fallthrough = (on && last + 1 < code.len()).then_some(b + 1);
        let next = fallthrough.into_iter().chain(jump.map(|i| block_of[&i])).collect();
        Block { range: first..last + 1, next }
    };
    starts.iter().enumerate().map(block).collect()
}

/// Removes unreachable blocks.
fn reachable(blocks: Vec<Block>) -> Vec<Block> {
    let (mut found, mut pending) = (BTreeSet::new(), vec![0]);
    while let Some(b) = pending.pop() {
        if b < blocks.len() && found.insert(b) {
            pending.extend(&blocks[b].next);
        }
    }
    let renumbered: BTreeMap<usize, usize> = found.iter().enumerate().map(|(new, &old)| (old, new)).collect();
    let next = |block: &Block| block.next.iter().map(|b| renumbered[b]).collect();
    found.iter().map(|&b| Block { range: blocks[b].range.clone(), next: next(&blocks[b]) }).collect()
}

/// Blocks in an order where each follows all its predecessors, ignoring back edges.
pub fn order(blocks: &[Block]) -> Vec<usize> {
    let (mut done, mut seen) = (Vec::new(), vec![false; blocks.len()]);
    let mut stack = vec![(0, 0)];
    seen[0] = true;
    while let Some((b, edge)) = stack.pop() {
        match blocks[b].next.get(edge) {
            Some(&next) => {
                stack.push((b, edge + 1));
                if !std::mem::replace(&mut seen[next], true) {
                    stack.push((next, 0));
                }
            }
            None => done.push(b),
        }
    }
    done.reverse();
    done
}

/// The predecessors of each block.
pub fn predecessors(blocks: &[Block]) -> Vec<Vec<usize>> {
    let mut before = vec![Vec::new(); blocks.len()];
    for (b, block) in blocks.iter().enumerate() {
        block.next.iter().for_each(|&next| before[next].push(b));
    }
    before
}

/// The dominators of each block: the blocks that every path from the start passes through,
/// including itself.
fn dominators(blocks: &[Block]) -> Vec<BTreeSet<usize>> {
    let (order, before) = (order(blocks), predecessors(blocks));
    let mut dominators: Vec<Option<BTreeSet<usize>>> = vec![None; blocks.len()];
    dominators[0] = Some(BTreeSet::from([0]));
    loop {
        let mut changed = false;
        for &b in &order[1..] {
            let known = before[b].iter().filter_map(|&p| dominators[p].as_ref());
            let common = known.cloned().reduce(|a, b| &a & &b).map(|mut set| {
                set.insert(b);
                set
            });
            changed |= common != dominators[b];
            dominators[b] = common;
        }
        if !changed {
            return dominators.into_iter().map(Option::unwrap_or_default).collect();
        }
    }
}

fn loops(code: &[Instruction], blocks: &[Block]) -> Vec<Loop> {
    let (dominators, before) = (dominators(blocks), predecessors(blocks));
    let mut bodies = BTreeMap::<usize, BTreeSet<usize>>::new();
    for (b, block) in blocks.iter().enumerate() {
        for &first in block.next.iter().filter(|next| dominators[b].contains(next)) {
            let body = bodies.entry(first).or_insert_with(|| BTreeSet::from([first]));
            let mut pending = vec![b];
            while let Some(b) = pending.pop() {
                if body.insert(b) {
                    pending.extend(&before[b]);
                }
            }
        }
    }
    let all: Vec<_> = bodies.into_iter().collect();
    let parent = |first: usize| {
        let around = all.iter().enumerate().filter(|(_, (of, body))| *of != first && body.contains(&first));
        around.min_by_key(|(_, (_, body))| body.len()).map(|(l, _)| l)
    };
    let of_warpgroups = code.iter().any(|i| i.name() == "HGMMA");
    let is_exception = |body: &BTreeSet<usize>| {
        let all = || body.iter().flat_map(|&b| &code[blocks[b].range.clone()]);
        if of_warpgroups && all().any(|i| i.name() == "HMMA") && !all().any(|i| i.name() == "HGMMA") {
            return true;
        }
        let asks = |i: &Instruction| i.has("PHASECHK") || i.has("TRY_ALLOC");
        all().any(asks)
            && all().count() <= 24
            && !all().any(|i| i.name().ends_with("GMMA") || i.name() == "UTMALDG")
    };
    all.iter()
        .map(|(first, blocks)| Loop {
            first: *first,
            blocks: blocks.clone(),
            parent: parent(*first),
            is_exception: is_exception(blocks),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::listing::parse;
    use super::*;

    /// The flow of a kernel with these instructions, 16 bytes each.
    fn flow(lines: &[&str]) -> Flow {
        let mut text = "Function : f\n".to_string();
        for (i, line) in lines.iter().enumerate() {
            text += &format!("/*{:04x}*/ {line} ;\n", 16 * i);
        }
        Flow::of(&parse(&text)[0].instructions)
    }

    #[test]
    fn nested_loops_are_a_tree() {
        let lines = [
            "MOV R0, RZ",            // 0: start
            "MOV R1, RZ",            // 1: outer loop
            "IADD3 R1, R1, 0x1, RZ", // 2: inner loop
            "@P0 BRA 0x20",
            "@!P1 BRA 0x70",         // 4: jumps over the second inner loop
            "IADD3 R2, R2, 0x1, RZ", // 5: second inner loop
            "@P2 BRA 0x50",
            "@P3 BRA 0x10", // 7
            "EXIT",
            "BRA 0x90", // never reached
        ];
        let flow = flow(&lines);
        let starts: Vec<_> = flow.blocks.iter().map(|b| b.range.start).collect();
        assert_eq!(starts, [0, 1, 2, 4, 5, 7, 8]);
        assert_eq!(flow.blocks[3].next, [4, 5]);
        let loops: Vec<_> = flow.loops.iter().map(|l| (l.first, l.blocks.len(), l.parent)).collect();
        assert_eq!(loops, [(1, 5, None), (2, 1, Some(0)), (4, 1, Some(0))]);
        assert_eq!(flow.children(Some(0)).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_loop_that_only_waits_is_one() {
        let lines = [
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3",
            "@!P0 BRA 0x40",
            "FADD R0, R0, R1",
            "EXIT",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3",
            "@!P0 BRA 0x40",
            "BRA 0x20",
        ];
        let flow = flow(&lines);
        assert_eq!(flow.loops.iter().map(|l| l.is_exception).collect::<Vec<_>>(), [true]);
    }

    /// MMAs of a warp, where warpgroups multiply.
    #[test]
    fn a_loop_that_repeats_is_an_exception() {
        let lines = [
            "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0",
            "@P2 BRA 0x40",
            "HMMA.16816.F32.BF16 R24, R4, R8, R24",
            "@P0 BRA 0x20",
            "@P1 BRA 0x0",
            "EXIT",
        ];
        let exceptions =
            |lines: &[&str]| flow(lines).loops.iter().map(|l| l.is_exception).collect::<Vec<_>>();
        assert_eq!(exceptions(&lines), [false, true]);
        // Without warpgroups, it is the work.
        assert_eq!(exceptions(&lines[2..]), [false]);
    }

    #[test]
    fn exceptions_are_no_jumps() {
        let lines = ["ELECT P1, URZ, PT", "@P0 BRA.U.ANY 0x0", "BRA.DIV UR4, 0x40", "@P0 EXIT", "EXIT"];
        let flow = flow(&lines);
        assert!(flow.loops.is_empty());
        assert_eq!(flow.blocks.len(), 2);
    }
}
