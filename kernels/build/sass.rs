//! The instructions of compiled kernels: counts of what the disassembler shows, and rules for what must be there.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use warpsmith::roofline::clocks::listing::{self, Instruction};

/// The architectures whose machine code is looked at. sm_80 stands for all that run the `mma.sync` and `cp.async` kernels: they
/// come from the same source, and their code differs little. sm_90a has kernels of its own. Disassembling takes up to a second a
/// file and architecture; registers, stack and spills of the others are in the compiler's log all the same.
pub const SASS_ARCHES: [&str; 2] = ["80", "90a"];

/// What is counted, and what it is. Global loads and stores are `.128` if they move at least so many bits.
pub const CLASSES: [(&str, &str); 9] = [
    ("HMMA", "tensor core products of a warp"),
    ("HGMMA", "tensor core products of a warpgroup"),
    ("LDSM", "ldmatrix"),
    ("LDGSTS", "asynchronous copies"),
    ("UTMALDG", "asynchronous copies of tiles"),
    ("LDG.128", "global loads of 128 bits"),
    ("LDG.narrow", "global loads of fewer than 128 bits"),
    ("STG.128", "global stores of 128 bits"),
    ("STG.narrow", "global stores of fewer than 128 bits"),
];

/// The machine code of one kernel for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// Under `kernels/`.
    pub file: String,
    pub floatx: String,
    /// `sm_90a`
    pub arch: String,
    pub kernel: String,
    /// All of them, so that a text of which nothing was understood is noticed.
    pub instructions: usize,
    /// Loads and stores of local memory.
    pub local: usize,
    /// How many there are of each of `CLASSES`; what there is none of is not listed.
    pub counts: BTreeMap<String, usize>,
}

/// Reads what `cuobjdump -sass` printed of one file's kernels.
pub fn parse(text: &str, file: &str, floatx: &str) -> Vec<Code> {
    let code = |kernel: listing::Listing| {
        let [file, floatx] = [file, floatx].map(str::to_string);
        let instructions = kernel.instructions.len();
        let mut code =
            Code { file, floatx, arch: kernel.arch, kernel: kernel.kernel, instructions, ..Code::default() };
        for class in kernel.instructions.iter().filter_map(class) {
            match class {
                "local" => code.local += 1,
                class => *code.counts.entry(class.to_string()).or_default() += 1,
            }
        }
        code
    };
    listing::parse(text).into_iter().map(code).collect()
}

/// One of `CLASSES`, or "local". `LD` and `ST` do not know the kind of memory they access, which in kernels that name all
/// shared and local memory is global.
fn class(instruction: &Instruction) -> Option<&'static str> {
    let (name, wide) = (instruction.name(), instruction.bits() >= 128);
    Some(match name {
        "LDL" | "STL" => "local",
        "LDG" | "LD" if wide => "LDG.128",
        "LDG" | "LD" => "LDG.narrow",
        "STG" | "ST" if wide => "STG.128",
        "STG" | "ST" => "STG.narrow",
        _ => CLASSES.iter().find(|(class, _)| *class == name)?.0,
    })
}

const ANY: &str = "bf16 f16 f32";
const TILES: &str = "matmul_forward_*x* matmul_dgrad_*x* matmul_wgrad_*x*";
const ATTENTION: &str = "attention_forward_hs* attention_backward_keys_hs* attention_backward_queries_hs*";

/// What kernels are made for: these (`*` is anything), compiled for these `floatX` and architectures, must have these
/// instructions. Unlike the budget, it does not change because a kernel did. For what is not listed, a kernel is empty.
#[rustfmt::skip]
const RULES: [(&str, &str, &[&str], &str); 10] = [
    (TILES, "bf16 f16", &SASS_ARCHES, "HMMA LDSM LDGSTS LDG.128 STG.128"),
    // ldmatrix cannot transpose numbers of 32 bits.
    (TILES, "f32", &SASS_ARCHES, "HMMA LDGSTS LDG.128 STG.128"),
    ("matmul_f32_*", "f32", &SASS_ARCHES, "LDGSTS LDG.128 STG.128"),
    ("matmul_hopper_*", "bf16 f16", &["90a"], "HGMMA UTMALDG LDG.128 STG.128"),
    (ATTENTION, "bf16 f16", &SASS_ARCHES, "HMMA LDSM LDGSTS STG.128"),
    (ATTENTION, "f32", &SASS_ARCHES, "LDG.128 STG.128"),
    ("matmul_*_reduce adamw add_* classifier encoder_* gelu_* layernorm_forward* layernorm_backward layernorm_backward_wide \
      residual_layernorm_forward*", ANY, &SASS_ARCHES, "LDG.128 STG.128"),
    // A number or two is all that these write, each a thread or block.
    ("attention_decode attention_backward_stats layernorm_backward_sum norm_squared_partials sum_partials",
     ANY, &SASS_ARCHES, "LDG.128"),
    // As many numbers as there were blocks.
    ("sum_of_partials", ANY, &SASS_ARCHES, ""),
    // ptxas makes narrow stores of a wide one whose parts are all the same register.
    ("fill_x fill_f32", ANY, &SASS_ARCHES, ""),
];

/// What must not be, or is not there: a line for each.
pub fn faults(code: &[Code]) -> Vec<String> {
    code.iter().flat_map(faults_of).collect()
}

fn faults_of(code: &Code) -> Vec<String> {
    let name = format!("{} in {} ({}, {})", code.kernel, code.file, code.floatx, code.arch);
    if code.instructions == 0 {
        return vec![format!("{name}: no instruction was read; has the disassembler's text changed?")];
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
            faults.push(format!("{name} has no {class} ({}), for which it is made", describe(class)));
        }
    }
    if !known {
        faults.push(format!("{name}: RULES in kernels/build/sass.rs do not say what it must have"));
    }
    faults
}

/// What one of `CLASSES` is.
pub fn describe(class: &str) -> &str {
    CLASSES.iter().find(|(name, _)| *name == class).map_or(class, |(_, what)| *what)
}
