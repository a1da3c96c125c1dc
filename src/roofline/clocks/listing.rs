//! Parses the output of `cuobjdump -sass`: instructions, and the compiler's control codes for each.
//!
//! An instruction is 128 bits, printed after its text as two 64-bit words, low word first. Bits 105
//! to 125 control its issue; the hardware checks nothing else. Their layout was found by Scott Gray
//! (maxas, for Maxwell) and Jia et al. 2018 (for Volta), and is the same on sm_90: the stalls of 4
//! or 5 clocks between dependent additions show it.

use std::collections::BTreeMap;

/// The control codes of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Minimum clocks until the warp's next instruction.
    pub stall: u32,
    /// The scoreboard (of six) that tracks it until its result is written.
    pub writes: Option<u8>,
    /// The scoreboard that tracks it until its operands are read.
    pub reads: Option<u8>,
    /// A bit per scoreboard that must be zero before it issues.
    pub waits: u8,
}

impl Control {
    /// Decodes the high word: stall 41-44, yield 45, write 46-48, read 49-51, wait 52-57, reuse
    /// 58-61.
    pub fn of(high_word: u64) -> Self {
        let bits = |from: u32, count: u32| (high_word >> from) as u8 & ((1 << count) - 1);
        let scoreboard = |number: u8| (number < 6).then_some(number);
        Control {
            stall: u32::from(bits(41, 4)),
            writes: scoreboard(bits(46, 3)),
            reads: scoreboard(bits(49, 3)),
            waits: bits(52, 6),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Byte offset from the start of the kernel.
    pub address: u32,
    /// Its guard predicate: `P0`, `!UP1`.
    pub guard: Option<String>,
    /// The opcode with its modifiers: `LDG.E.128`.
    pub opcode: String,
    /// The text after the opcode: `R4, desc[UR4][R2.64]`.
    pub operands: String,
    /// Missing if the listing shows no encoding.
    pub control: Option<Control>,
}

impl Instruction {
    /// The opcode without modifiers.
    pub fn name(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Whether it has this modifier.
    pub fn has(&self, modifier: &str) -> bool {
        self.opcode.split('.').skip(1).any(|m| m == modifier)
    }

    /// Bits loaded or stored per thread.
    pub fn bits(&self) -> u32 {
        let widths = ["U8", "S8", "U16", "S16", "64", "128", "256"];
        let bits = [8, 8, 16, 16, 64, 128, 256];
        widths.iter().zip(bits).find(|(width, _)| self.has(width)).map_or(32, |(_, bits)| bits)
    }

    /// The target address of a jump.
    pub fn target(&self) -> Option<u32> {
        let jumps = matches!(self.name(), "BRA" | "CALL");
        let last = self.operands.rsplit([' ', ',']).next().filter(|_| jumps)?;
        u32::from_str_radix(last.strip_prefix("0x")?, 16).ok()
    }
}

/// The machine code of one kernel for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Such as `sm_90a`.
    pub arch: String,
    pub kernel: String,
    /// Registers per thread, and bytes of static shared memory per block including the system's; 0
    /// if the listing does not say.
    pub registers: usize,
    pub shared_bytes: usize,
    pub instructions: Vec<Instruction>,
}

/// Returns all kernels of a listing.
pub fn parse(text: &str) -> Vec<Listing> {
    let (mut kernels, mut arch) = (Vec::<Listing>::new(), "");
    // Registers and shared memory come before all machine code.
    let (mut takes, mut taker) = (BTreeMap::<&str, (usize, usize)>::new(), "");
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            arch = name.trim();
        } else if let Some(name) = line.strip_prefix("Function : ") {
            let [arch, kernel] = [arch, name.trim()].map(str::to_string);
            let (registers, shared_bytes) = takes.get(name.trim()).copied().unwrap_or_default();
            kernels.push(Listing { arch, kernel, registers, shared_bytes, instructions: Vec::new() });
        } else if let Some(name) = line.strip_prefix("Function ").and_then(|rest| rest.strip_suffix(':')) {
            taker = name;
        } else if line.starts_with("REG:") {
            let number = |what: &str| line.split(' ').find_map(|word| word.strip_prefix(what)?.parse().ok());
            takes.insert(taker, (number("REG:").unwrap_or_default(), number("SHARED:").unwrap_or_default()));
        } else if let Some(kernel) = kernels.last_mut() {
            if let Some(instruction) = instruction(line) {
                kernel.instructions.push(instruction);
            } else if let (Some(last), Some(word)) = (kernel.instructions.last_mut(), encoding(line)) {
                last.control = Some(Control::of(word));
            }
        }
    }
    kernels
}

/// Parses `/*0150*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;  /* 0x0000000402047981 */`. Returns
/// `None` for lines with nothing but an encoding.
fn instruction(line: &str) -> Option<Instruction> {
    let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let text = rest.split(';').next()?.trim();
    let (guard, text) = match text.strip_prefix('@') {
        Some(text) => text.split_once(char::is_whitespace).map(|(guard, rest)| (Some(guard), rest.trim()))?,
        None => (None, text),
    };
    let (opcode, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    opcode.starts_with(|c: char| c.is_ascii_uppercase()).then(|| Instruction {
        address,
        guard: guard.map(str::to_string),
        opcode: opcode.to_string(),
        operands: operands.trim().to_string(),
        control: None,
    })
}

/// Parses `/* 0x000fe20000000800 */`.
fn encoding(line: &str) -> Option<u64> {
    let word = line.strip_prefix("/*")?.strip_suffix("*/")?.trim().strip_prefix("0x")?;
    u64::from_str_radix(word, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two instructions and a jump as the disassembler prints them.
    const TEXT: &str = "
Resource usage:
 Function scale:
  REG:16 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
\tcode for sm_90a
\t\tFunction : scale
\t.headerflags\t@\"EF_CUDA_SM90\"
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64+0x10] ;         /* 0x0000100402048981 */
                                                                                 /* 0x000ea8000c1e1d00 */
        /*0020*/                   FADD R5, R4.reuse, R6 ;                       /* 0x0000000604057221 */
                                                                                 /* 0x044fc60000000000 */
        /*0030*/               @P1 BRA P0, 0x20 ;                                /* 0xfffffffc00f80947 */
                                                                                 /* 0x000fea000383ffff */
";

    #[test]
    fn text_and_control_codes_are_read() {
        let [kernel] = &parse(TEXT)[..] else { panic!("one kernel") };
        assert_eq!((&*kernel.arch, &*kernel.kernel), ("sm_90a", "scale"));
        assert_eq!((kernel.registers, kernel.shared_bytes), (16, 1024));
        let [load, add, jump] = &kernel.instructions[..] else { panic!("three instructions") };
        assert_eq!((load.address, load.guard.as_deref(), load.bits()), (0x10, Some("!P0"), 128));
        assert_eq!((&*load.opcode, load.name()), ("LDG.E.128", "LDG"));
        assert_eq!(load.operands, "R4, desc[UR4][R2.64+0x10]");
        // The load is tracked by scoreboard 2, which the addition waits for.
        let control = Control { stall: 4, writes: Some(2), reads: None, waits: 0 };
        assert_eq!(load.control, Some(control));
        assert_eq!(add.control, Some(Control { stall: 3, writes: None, reads: None, waits: 1 << 2 }));
        assert_eq!((jump.target(), jump.control.unwrap().stall), (Some(0x20), 5));
        assert_eq!((load.target(), add.target()), (None, None));
    }

    #[test]
    fn what_has_no_encoding_has_no_control_codes() {
        let text = TEXT.lines().filter(|line| !line.trim().starts_with("/* ")).collect::<Vec<_>>().join("\n");
        let kernels = parse(&text);
        assert_eq!(kernels[0].instructions.len(), 3);
        assert!(kernels[0].instructions.iter().all(|i| i.control.is_none()));
    }
}
