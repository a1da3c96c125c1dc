//! The pointer parameter behind each load, followed through all arithmetic and all blocks.

use super::flow::{Block, order, predecessors};
use super::listing::Instruction;
use super::operands::{operands, parameter, read, written};
use std::collections::{BTreeMap, BTreeSet};

/// For each register, the parameters that its value derives from; empty for most.
type From = BTreeMap<String, BTreeSet<u32>>;

/// For each global load, the offsets of the pointers that its address derives from; `pointers`
/// lists all pointer parameters.
pub fn pointers(
    code: &[Instruction],
    blocks: &[Block],
    pointers: &BTreeSet<u32>,
) -> BTreeMap<usize, BTreeSet<u32>> {
    let (order, before) = (order(blocks), predecessors(blocks));
    let mut after = vec![From::new(); blocks.len()];
    loop {
        let mut changed = false;
        for &b in &order {
            let mut from = join(before[b].iter().map(|&p| &after[p]));
            code[blocks[b].range.clone()].iter().for_each(|i| step(i, pointers, &mut from));
            changed |= after[b] != from;
            after[b] = from;
        }
        if !changed {
            break;
        }
    }
    let mut loads = BTreeMap::new();
    for (b, block) in blocks.iter().enumerate() {
        let mut from = join(before[b].iter().map(|&p| &after[p]));
        for i in block.range.clone() {
            if matches!(code[i].name(), "LDG" | "LD") {
                loads.insert(i, sources(&code[i], pointers, &from));
            }
            step(&code[i], pointers, &mut from);
        }
    }
    loads
}

fn join<'a>(all: impl Iterator<Item = &'a From>) -> From {
    let mut joined = From::new();
    for from in all {
        for (register, offsets) in from {
            joined.entry(register.clone()).or_default().extend(offsets);
        }
    }
    joined
}

fn sources(instruction: &Instruction, pointers: &BTreeSet<u32>, from: &From) -> BTreeSet<u32> {
    let operands = operands(instruction);
    let named = operands.iter().filter_map(|o| parameter(o)).filter(|offset| pointers.contains(offset));
    let mut found: BTreeSet<u32> = named.collect();
    found.extend(read(instruction).iter().filter_map(|register| from.get(register)).flatten());
    found
}

fn step(instruction: &Instruction, pointers: &BTreeSet<u32>, from: &mut From) {
    // A loaded value is data.
    let loads = matches!(instruction.name(), "LDG" | "LD" | "LDS" | "LDSM" | "SHFL" | "HMMA" | "HGMMA");
    let sources = if loads { BTreeSet::new() } else { sources(instruction, pointers, from) };
    for register in written(instruction) {
        // Under a guard the old value may stay.
        if sources.is_empty() && instruction.guard.is_none() {
            from.remove(&register);
        } else if instruction.guard.is_none() {
            from.insert(register, sources.clone());
        } else if !sources.is_empty() {
            from.entry(register).or_default().extend(&sources);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::flow::Flow;
    use super::super::listing::parse;
    use super::*;

    #[test]
    fn a_load_goes_by_one_pointer() {
        let lines = [
            "ULDC.64 UR8, c[0x0][0x340]",
            "ULDC.64 UR12, c[0x0][0x348]",
            "LEA R4, P2, R2, UR8, 0x1",
            "LEA.HI.X R5, R2, UR9, R3, 0x1, P2",
            "LEA R6, P2, R2, UR12, 0x1",
            "LDG.E.128 R8, desc[UR10][R4.64]",
            "LDG.E.128 R12, desc[UR10][R6.64+0x10]",
            "IADD3 R6, R8, R9, RZ",
            "LDG.E R12, desc[UR10][R6.64]",
            "EXIT",
        ];
        let mut text = "Function : f\n".to_string();
        lines.iter().enumerate().for_each(|(i, line)| text += &format!("/*{:04x}*/ {line} ;\n", 16 * i));
        let code = &parse(&text)[0].instructions;
        let found = pointers(code, &Flow::of(code).blocks, &BTreeSet::from([0x340, 0x348]));
        let expected = [(5, vec![0x340]), (6, vec![0x348]), (8, vec![])];
        assert_eq!(found, expected.map(|(i, offsets)| (i, offsets.into_iter().collect())).into());
    }
}
