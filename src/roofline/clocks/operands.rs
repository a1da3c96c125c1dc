//! The registers that an instruction reads and writes, as far as its text shows.

use super::listing::Instruction;

/// Splits the operands.
pub fn operands(instruction: &Instruction) -> Vec<&str> {
    instruction.operands.split(", ").map(str::trim).collect()
}

pub fn is_predicate(operand: &str) -> bool {
    let digits = operand.strip_prefix("UP").or_else(|| operand.strip_prefix('P'));
    digits.is_some_and(|d| d == "T" || d.parse::<u8>().is_ok())
}

/// Registers that may have changed; errs on the side of one too many.
pub fn written(instruction: &Instruction) -> Vec<String> {
    let writes_none = [
        "STG", "STS", "ST", "BRA", "EXIT", "BAR", "BSSY", "BSYNC", "NOP", "RET", "CALL", "RED", "UTMALDG",
        "LDGSTS",
    ];
    if writes_none.contains(&instruction.name()) {
        return Vec::new();
    }
    let operands = operands(instruction);
    let predicates = operands.iter().take_while(|o| is_predicate(o)).map(|o| o.to_string());
    let mut written: Vec<String> = predicates.collect();
    let rest = &operands[written.len()..];
    if let Some((prefix, number)) = rest.first().and_then(|o| register(o)) {
        written.extend((number..number + width(instruction)).map(|n| format!("{prefix}{n}")));
    }
    // A carry: `IADD3 R16, P0, R13, 0x2, RZ`.
    written.extend(rest.iter().skip(1).take(2).filter(|o| is_predicate(o)).map(|o| o.to_string()));
    written
}

/// Registers named after the result, or in an address.
pub fn read(instruction: &Instruction) -> Vec<String> {
    let operands = operands(instruction);
    let results = operands.iter().take_while(|o| is_predicate(o)).count();
    let stores = matches!(instruction.name(), "STG" | "STS" | "ST" | "LDGSTS");
    let from = if stores { 0 } else { (results + usize::from(results == 0)).min(operands.len()) };
    let words = operands[from..].iter().flat_map(|o| o.split(|c: char| !c.is_ascii_alphanumeric()));
    words.filter(|word| register(word).is_some()).map(str::to_string).collect()
}

/// Splits `UR12` into (`UR`, 12).
fn register(operand: &str) -> Option<(&str, u32)> {
    let prefix = ["UR", "R"].into_iter().find(|prefix| operand.starts_with(prefix))?;
    Some((prefix, operand[prefix.len()..].parse().ok()?))
}

/// Number of registers in a result.
fn width(instruction: &Instruction) -> u32 {
    match instruction.name() {
        "HGMMA" | "WARPGROUP" => 256,
        "HMMA" | "LDSM" => 4,
        "LDG" | "LDS" | "LD" | "LDL" | "LDC" | "ULDC" => instruction.bits().div_ceil(32),
        "CS2R" => 2,
        _ if instruction.has("WIDE") || instruction.opcode.contains("64") => 2,
        _ => 1,
    }
}

/// The offset of `c[0x0][0x210]`.
pub fn parameter(operand: &str) -> Option<u32> {
    u32::from_str_radix(operand.strip_prefix("c[0x0][0x")?.split(']').next()?, 16).ok()
}
