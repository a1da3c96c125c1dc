//! Branches that only a kernel's parameters decide: whether a pointer is null, whether a flag is
//! set. They take the same direction in every thread and every time, so they choose between
//! variants of a kernel, while other branches choose between threads.
//!
//! They are found by following parameters (`c[0x0][...]`) through registers and predicates over all
//! blocks. Values that differ between paths, or depend on a thread, memory or a loop's count, are
//! unknown.

use super::flow::{Block, order, predecessors};
use super::listing::Instruction;
use super::operands::{is_predicate, operands, parameter, written};
use std::collections::BTreeMap;

/// A test of parameters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    /// The comparison as machine code text: equal text means equal test.
    pub text: String,
    /// Offsets of the parameters in the constant bank.
    pub parameters: Vec<u32>,
}

/// The end of a block with two possible successors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mode {
    pub test: Test,
    /// Whether the jump is taken if the test is true.
    pub jumps_if: bool,
}

/// Everything that parameters decide in a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// For each block, the test that decides its successor.
    pub ends: Vec<Option<Mode>>,
    /// For each guarded instruction, the test and the outcome with which it takes effect.
    pub guards: BTreeMap<usize, (Test, bool)>,
}

/// Register contents as text, in terms of parameters.
type Known = BTreeMap<String, String>;

/// Longer texts are dropped: they are arithmetic, not tests.
const LONGEST: usize = 160;

pub fn modes(code: &[Instruction], blocks: &[Block]) -> Modes {
    let before = predecessors(blocks);
    let after = known_after(code, blocks, &before);
    let mut modes = Modes { ends: vec![None; blocks.len()], guards: BTreeMap::new() };
    for (b, block) in blocks.iter().enumerate() {
        let mut known = meet(before[b].iter().filter_map(|&p| after[p].as_ref()));
        for i in block.range.clone() {
            let test = code[i].guard.as_deref().and_then(|guard| test(guard, &known));
            // A jump with a second predicate tests two things.
            let jumps = block.next.len() == 2 && i + 1 == block.range.end && !code[i].operands.contains(',');
            match test {
                Some((test, jumps_if)) if jumps => modes.ends[b] = Some(Mode { test, jumps_if }),
                Some(test) => _ = modes.guards.insert(i, test),
                None => {}
            }
            step(&code[i], &mut known);
        }
    }
    modes
}

/// Known registers at the end of each block.
fn known_after(code: &[Instruction], blocks: &[Block], before: &[Vec<usize>]) -> Vec<Option<Known>> {
    let order = order(blocks);
    let mut after: Vec<Option<Known>> = vec![None; blocks.len()];
    // Blocks not yet visited are ignored, so known registers only shrink.
    loop {
        let mut changed = false;
        for &b in &order {
            let mut known = meet(before[b].iter().filter_map(|&p| after[p].as_ref()));
            code[blocks[b].range.clone()].iter().for_each(|i| step(i, &mut known));
            changed |= after[b].as_ref() != Some(&known);
            after[b] = Some(known);
        }
        if !changed {
            return after;
        }
    }
}

/// The entries on which all agree.
fn meet<'a>(mut all: impl Iterator<Item = &'a Known>) -> Known {
    let Some(mut known) = all.next().cloned() else { return Known::new() };
    all.for_each(|other| known.retain(|register, text| other.get(register) == Some(text)));
    known
}

/// The test of parameters that a guard makes, and the outcome with which it holds.
fn test(guard: &str, known: &Known) -> Option<(Test, bool)> {
    let (name, negated) = guard.strip_prefix('!').map_or((guard, false), |name| (name, true));
    let text = known.get(name)?;
    let (text, of_opposite) = text.strip_prefix('!').map_or((text.as_str(), false), |text| (text, true));
    // Only comparisons with zero; less-than and greater-than are about sizes.
    let is_flag = text.contains(".NE") && text.contains("c[0x0][0x");
    is_flag.then(|| (Test { text: text.to_string(), parameters: parameters(text) }, negated == of_opposite))
}

/// Offsets of all parameters in a text.
fn parameters(text: &str) -> Vec<u32> {
    let offsets = text.split("c[0x0][0x").skip(1).filter_map(|rest| rest.split(']').next());
    let mut offsets: Vec<u32> = offsets.filter_map(|hex| u32::from_str_radix(hex, 16).ok()).collect();
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

/// Opcodes whose result depends only on their operands.
const PURE: [&str; 20] = [
    "MOV", "UMOV", "R2UR", "IMAD", "UIMAD", "IADD3", "UIADD3", "VIADD", "ISETP", "UISETP", "PLOP3", "UPLOP3",
    "LOP3", "ULOP3", "SHF", "USHF", "LEA", "ULEA", "LDC", "ULDC",
];

/// Follows one instruction.
fn step(instruction: &Instruction, known: &mut Known) {
    let operands = operands(instruction);
    let written = written(instruction);
    let text = text(instruction, &operands, known);
    for (i, register) in written.iter().enumerate() {
        match &text {
            Some(text) if i < text.len() && instruction.guard.is_none() => {
                known.insert(register.clone(), text[i].clone())
            }
            _ => known.remove(register),
        };
    }
}

/// The results as texts, if known: both words of a 64-bit parameter load, otherwise only the first.
fn text(instruction: &Instruction, operands: &[&str], known: &Known) -> Option<Vec<String>> {
    let name = instruction.name();
    let pure = PURE.contains(&name) && !instruction.has("WIDE") && !instruction.has("HI");
    if !pure || operands.len() < 2 {
        return None;
    }
    if matches!(name, "LDC" | "ULDC") {
        let offset = parameter(operands[1])?;
        let words = if instruction.has("64") { 2 } else { 1 };
        return Some((0..words).map(|w| format!("c[0x0][{:#x}]", offset + 4 * w)).collect());
    }
    let first = operands.iter().take_while(|o| is_predicate(o)).count().max(1);
    let predicates = matches!(name, "ISETP" | "UISETP" | "PLOP3" | "UPLOP3");
    let sources = if predicates { &operands[2..] } else { &operands[first..] };
    let sources: Vec<String> = sources.iter().map(|o| source(o, known)).collect::<Option<_>>()?;
    if is_copy(instruction, &sources) {
        return Some(vec![sources.iter().find(|s| *s != "0")?.clone()]);
    }
    if let ("PLOP3" | "UPLOP3", [.., only, table, _]) = (name, &sources[..]) {
        // With one predicate, table 0x80 yields the predicate itself and 0x8 its complement.
        match table.as_str() {
            "0x80" => return Some(vec![only.clone()]),
            "0x8" => return Some(vec![opposite(only)]),
            _ => {}
        }
    }
    let equal = instruction.has("EQ");
    let opcode =
        instruction.opcode.replace(".EQ", ".NE").replacen('U', "", usize::from(name.starts_with('U')));
    let text = format!("{opcode}({})", sources.join(","));
    (text.len() <= LONGEST).then(|| vec![if equal { opposite(&text) } else { text }])
}

fn opposite(text: &str) -> String {
    text.strip_prefix('!').map_or_else(|| format!("!{text}"), str::to_string)
}

/// Whether the result is its only nonzero source.
fn is_copy(instruction: &Instruction, sources: &[String]) -> bool {
    let moves = matches!(instruction.name(), "MOV" | "UMOV" | "R2UR")
        || instruction.name() == "IMAD" && (instruction.has("MOV") || instruction.has("U32"));
    moves && sources.iter().filter(|s| *s != "0").count() == 1
}

/// A source operand as text: a constant, a parameter, or the known content of a register.
fn source(operand: &str, known: &Known) -> Option<String> {
    let operand = operand.strip_suffix(".reuse").unwrap_or(operand);
    match operand {
        "RZ" | "URZ" => return Some("0".into()),
        "PT" | "UPT" => return Some("PT".into()),
        "!PT" | "!UPT" => return Some("!PT".into()),
        _ => {}
    }
    let is_number = |text: &str| text.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
    if is_number(operand) || operand.starts_with("c[0x0][0x") {
        return Some(operand.to_string());
    }
    let (name, negated) = operand.strip_prefix('!').map_or((operand, false), |name| (name, true));
    let text = known.get(name)?;
    Some(if negated { opposite(text) } else { text.clone() })
}

#[cfg(test)]
mod tests {
    use super::super::flow::Flow;
    use super::super::listing::parse;
    use super::*;

    fn code(lines: &[&str]) -> Vec<Instruction> {
        let mut text = "Function : f\n".to_string();
        lines.iter().enumerate().for_each(|(i, line)| text += &format!("/*{:04x}*/ {line} ;\n", 16 * i));
        parse(&text).remove(0).instructions
    }

    /// Offsets of the deciding parameters, and whether the jump is taken if they are nonzero.
    fn modes_of(lines: &[&str]) -> Vec<(Vec<u32>, bool)> {
        let code = code(lines);
        let modes = modes(&code, &Flow::of(&code).blocks);
        modes.ends.into_iter().flatten().map(|m| (m.test.parameters, m.jumps_if)).collect()
    }

    /// A null pointer test in two halves, the same inside a loop, and a flag that goes through a
    /// uniform predicate.
    #[test]
    fn parameters_decide() {
        let pointer = [
            "ULDC.64 UR8, c[0x0][0x340]",
            "ISETP.NE.U32.AND P2, PT, RZ, UR8, PT",
            "ISETP.NE.AND.EX P2, PT, RZ, UR9, PT, P2",
            "@!P2 BRA 0x50",
            "FADD R0, R0, R1",
            "IADD3 R3, R3, 0x1, RZ",
            "@P0 BRA 0x30",
            "EXIT",
        ];
        assert_eq!(modes_of(&pointer), [(vec![0x340, 0x344], false)]);
        let flag = [
            "UISETP.EQ.AND UP0, UPT, URZ, c[0x0][0x2a0], UPT",
            "PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0",
            "@P0 BRA 0x40",
            "FADD R0, R0, R1",
            "EXIT",
        ];
        assert_eq!(modes_of(&flag), [(vec![0x2a0], false)]);
    }

    /// The store takes effect where the jump is taken.
    #[test]
    fn guards_are_decided_like_jumps() {
        let lines = [
            "ULDC UR4, c[0x0][0x220]",
            "ISETP.NE.AND P0, PT, RZ, UR4, PT",
            "@P0 STG.E.128 desc[UR6][R2.64], R4",
            "@P0 BRA 0x50",
            "STG.E.128 desc[UR6][R2.64], R8",
            "EXIT",
        ];
        let code = code(&lines);
        let modes = modes(&code, &Flow::of(&code).blocks);
        let end = modes.ends[0].as_ref().unwrap();
        assert_eq!(modes.guards, BTreeMap::from([(2, (end.test.clone(), end.jumps_if))]));
    }

    #[test]
    fn threads_and_memory_do_not() {
        let thread = [
            "S2R R0, SR_TID.X",
            "ISETP.NE.AND P0, PT, R0, RZ, PT",
            "@P0 BRA 0x40",
            "FADD R0, R0, R1",
            "EXIT",
        ];
        assert_eq!(modes_of(&thread), []);
        // One of two paths has another value.
        let merged = [
            "ULDC UR4, c[0x0][0x210]",
            "@P1 BRA 0x30",
            "S2UR UR4, SR_CTAID.X",
            "ISETP.NE.AND P0, PT, RZ, UR4, PT",
            "@P0 BRA 0x60",
            "FADD R0, R0, R1",
            "EXIT",
        ];
        assert_eq!(modes_of(&merged), []);
    }
}
