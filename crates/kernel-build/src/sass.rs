//! The instructions of compiled kernels: how many there are of each class, and which a kernel must
//! have.

use std::collections::BTreeMap;

/// The text of this file: whatever counts instructions by it may keep the counts under its hash.
pub const SOURCE: &str = include_str!("sass.rs");

/// The architectures whose machine code is checked. sm_80 stands for all that run the `mma.sync`
/// and `cp.async` kernels: they come from the same source, and their code differs little. sm_90a
/// has kernels of its own. Disassembling takes up to a second per file and architecture; registers,
/// stack and spills of the others are in the compiler's log all the same.
pub const SASS_ARCHES: [&str; 2] = ["80", "90a"];

/// The classes that are counted, with a description. Global loads and stores are `.128` if they
/// move 128 bits or more.
pub const CLASSES: [(&str, &str); 13] = [
    ("HMMA", "tensor core MMAs of a warp"),
    ("HGMMA", "tensor core MMAs of a warpgroup"),
    ("LDSM", "ldmatrix"),
    ("STSM", "stmatrix"),
    ("LDGSTS", "asynchronous copies"),
    ("UTMALDG", "asynchronous copies of tiles"),
    ("UTMASTG", "asynchronous copies of tiles to global memory"),
    ("LDG.128", "global loads of 128 bits"),
    ("LDG.narrow", "global loads of fewer than 128 bits"),
    ("STG.128", "global stores of 128 bits"),
    ("STG.narrow", "global stores of fewer than 128 bits"),
    ("PREEXIT", "launch_dependents"),
    ("ACQBULK", "wait_for_dependencies"),
];

/// The machine code of one kernel for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Relative to `kernels/`.
    pub file: String,
    pub floatx: String,
    /// `sm_90a`
    pub arch: String,
    pub kernel: String,
    /// All instructions, so that a listing that was not understood is noticed.
    pub instructions: usize,
    /// Loads and stores of local memory.
    pub local: usize,
    /// Instructions per class of `CLASSES`; classes without any are not listed.
    pub counts: BTreeMap<String, usize>,
}

impl Code {
    /// Counts one instruction: its opcode without modifiers, and the bits that a thread moves.
    pub fn count(&mut self, opcode: &str, bits: u32) {
        self.instructions += 1;
        match class(opcode, bits) {
            Some("local") => self.local += 1,
            Some(class) => *self.counts.entry(class.to_string()).or_default() += 1,
            None => {}
        }
    }
}

/// One of `CLASSES`, or "local". `LD` and `ST` do not name the kind of memory they access; in
/// kernels that name all shared and local memory it is global.
fn class(opcode: &str, bits: u32) -> Option<&'static str> {
    let wide = bits >= 128;
    Some(match opcode {
        "LDL" | "STL" => "local",
        "LDG" | "LD" if wide => "LDG.128",
        "LDG" | "LD" => "LDG.narrow",
        "STG" | "ST" if wide => "STG.128",
        "STG" | "ST" => "STG.narrow",
        _ => CLASSES.iter().find(|(class, _)| *class == opcode)?.0,
    })
}

const ANY: &str = "bf16 f16 f32";
const TILES: &str = "matmul_forward_*x* matmul_dgrad_*x* matmul_wgrad_*x*";
const ATTENTION: &str = "attention_forward_hs* attention_backward_keys_hs* attention_backward_queries_hs* \
    attention_forward_dropout_hs* attention_backward_keys_dropout_hs* attention_backward_queries_dropout_hs*";

/// The instructions that kernels are written for: these kernels (`*` is anything), compiled for
/// these `floatX` and architectures, must have these instructions. Unlike the budget, a rule does
/// not change with a kernel. For types and architectures that are not listed a kernel is empty.
#[rustfmt::skip]
const RULES: [(&str, &str, &[&str], &str); 13] = [
    (TILES, "bf16 f16", &SASS_ARCHES, "HMMA LDSM LDGSTS LDG.128 STG.128"),
    // ldmatrix cannot transpose 32-bit numbers.
    (TILES, "f32", &SASS_ARCHES, "HMMA LDGSTS LDG.128 STG.128"),
    ("matmul_f32_*", "f32", &SASS_ARCHES, "LDGSTS LDG.128 STG.128"),
    ("matmul_hopper_*", "bf16 f16", &["90a"], "HGMMA STSM UTMALDG UTMASTG LDG.128 STG.128"),
    ("attention_hopper_*", "bf16 f16", &["90a"], "HGMMA UTMALDG STG.128"),
    (ATTENTION, "bf16 f16", &SASS_ARCHES, "HMMA LDSM LDGSTS STG.128"),
    (ATTENTION, "f32", &SASS_ARCHES, "LDG.128 STG.128"),
    // In f32 it is empty.
    ("attention_backward_atomic_*", "bf16 f16", &SASS_ARCHES, "HMMA LDSM LDGSTS STG.128"),
    ("matmul_*_reduce adamw adamw_bf16_state muon_momentum muon_normalize muon_polynomial muon_step add_* classifier \
      dropout_backward encoder_* gelu_* layernorm_forward* layernorm_backward layernorm_backward_wide \
      residual_*layernorm_forward* scale_x", ANY, &SASS_ARCHES, "LDG.128 STG.128"),
    // These write only one or two numbers per thread or block.
    ("attention_decode attention_backward_stats layernorm_backward_sum norm_squared_partials sum_partials",
     ANY, &SASS_ARCHES, "LDG.128"),
    // Gradients and momentum are 16-bit quads, unless floatX is f32.
    ("muon_momentum_bf16_state", ANY, &SASS_ARCHES, ""),
    // This reads one number per block.
    ("sum_of_partials", ANY, &SASS_ARCHES, ""),
    // ptxas splits a wide store whose parts are all the same register into narrow ones.
    ("fill_x fill_f32", ANY, &SASS_ARCHES, ""),
];

/// Returns a line for each instruction that must not be there, or must be and is not.
pub fn faults(code: &[Code]) -> Vec<String> {
    code.iter().flat_map(faults_of).collect()
}

fn faults_of(code: &Code) -> Vec<String> {
    let name = format!("{} in {} ({}, {})", code.kernel, code.file, code.floatx, code.arch);
    if code.instructions == 0 {
        return vec![format!("{name}: no instruction was read; has the disassembler's output changed?")];
    }
    let mut faults = Vec::new();
    if code.local > 0 {
        faults.push(format!("{name} accesses local memory in {} instructions", code.local));
    }
    let matches = |pattern: &str| glob::Pattern::new(pattern).is_ok_and(|p| p.matches(&code.kernel));
    let (mut known, arch) = (false, code.arch.trim_start_matches("sm_"));
    for (kernels, floatx, arches, need) in RULES {
        if !kernels.split_whitespace().any(matches) {
            continue;
        }
        known = true;
        if !arches.contains(&arch) || !floatx.split(' ').any(|x| x == code.floatx) {
            continue;
        }
        for class in need.split_whitespace().filter(|class| !code.counts.contains_key(*class)) {
            faults.push(format!("{name} has no {class} ({}), which it is written for", describe(class)));
        }
    }
    // An empty kernel touches no memory.
    if arch == "90a" && !code.counts.is_empty() {
        for class in ["PREEXIT", "ACQBULK"].into_iter().filter(|class| !code.counts.contains_key(*class)) {
            faults
                .push(format!("{name} has no {class} ({}), which every kernel starts with", describe(class)));
        }
    }
    if !known {
        faults.push(format!("{name}: RULES in crates/kernel-build/src/sass.rs do not say what it must have"));
    }
    faults
}

/// Describes one of `CLASSES`.
pub fn describe(class: &str) -> &str {
    CLASSES.iter().find(|(name, _)| *name == class).map_or(class, |(_, what)| *what)
}
