//! Shipped kernels made worse, compiled as in the build and held to the same gate, which must
//! refuse each by name.

use crate::{clocks, gate};
use kernel_build::{budget, nvcc, ptxas, sass};
use std::process::Command;

/// Edits of files under `kernels/`: the file, a text that occurs in it once, and the replacement.
type Edits<'a> = &'a [(&'a str, &'a str, &'a str)];

/// The faults that the gate finds in one kernel file in bf16 for one architecture, after the
/// edits.
fn faults(file: &str, arch: &str, edits: Edits) -> Vec<String> {
    let compiler = gate::nvcc();
    let dir = tempfile::tempdir().unwrap();
    write_edited(dir.path(), file, edits);
    let output = Command::new(&compiler.path)
        .current_dir(dir.path())
        .args(nvcc::FLAGS.split(' '))
        .args(nvcc::gencode(&(vec![arch.to_string()], false)))
        .args(["-o", "mutant.fatbin", &format!("kernels/{file}")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");

    let report = ptxas::parse(&format!("# {file} bf16\n{said}"));
    let image = std::fs::read(dir.path().join("mutant.fatbin")).unwrap();
    let code = gate::disassemble(&[(file, "bf16", &image)], &[arch]);
    let mut budgeted = gate::budget().unwrap();
    budgeted.retain(|(of, _, floatx), _| of == file && floatx == "bf16");
    let mut faults = ptxas::faults(&report, &[file], &["bf16"], &[arch]);
    faults.extend(sass::faults(&code));
    faults.extend(budget::differences(&budgeted, &budget::measure(&report, &code), &[arch], &[arch]));
    if arch == clocks::ARCH {
        faults.extend(clocks::differences(file, &image));
    }
    faults
}

/// Writes the kernel file and all headers, edited, into `kernels/` of `dir`.
fn write_edited(dir: &std::path::Path, file: &str, edits: Edits) {
    std::fs::create_dir(dir.join("kernels")).unwrap();
    let mut made = 0;
    for entry in std::fs::read_dir(gate::root().join("kernels")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != file && !name.ends_with(".cuh") {
            continue;
        }
        let mut text = std::fs::read_to_string(gate::root().join("kernels").join(&name)).unwrap();
        for (_, from, to) in edits.iter().filter(|(of, ..)| *of == name) {
            assert_eq!(text.matches(from).count(), 1, "kernels/{name} must have this once: {from}");
            text = text.replacen(from, to, 1);
            made += 1;
        }
        std::fs::write(dir.join("kernels").join(&name), text).unwrap();
    }
    assert_eq!(made, edits.len(), "not all edits were made");
}

/// The gate refuses the mutant with each of these faults: the kernel, and a pattern for the line,
/// with `*` for anything.
fn refused(file: &str, arch: &str, edits: Edits, expected: &[(&str, &str)]) {
    let faults = faults(file, arch, edits);
    for (kernel, fault) in expected {
        let name = format!("{kernel} in {file} (bf16, sm_{arch})");
        let pattern = glob::Pattern::new(&format!("*{fault}*")).unwrap();
        let found = faults.iter().find(|line| line.starts_with(&name) && pattern.matches(line));
        let found = found.unwrap_or_else(|| panic!("no line {name} … {fault} in\n{}\n", faults.join("\n")));
        println!("refused: {found}");
    }
}

#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn kernels_as_they_are_pass() {
    for file in ["gelu.cu", "reduce.cu"] {
        assert_eq!(faults(file, "80", &[]), [""; 0]);
    }
}

/// Room for a second block per SM takes half of the registers.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn a_spill() {
    let bounds = "__launch_bounds__(512)\n    layernorm_backward(";
    let edit = ("layernorm.cu", bounds, "__launch_bounds__(512, 2)\n    layernorm_backward(");
    let expected = [
        ("layernorm_backward", "spills registers"),
        ("layernorm_backward", "accesses local memory"),
        ("layernorm_backward", " registers, budgeted * fewer"),
    ];
    refused("layernorm.cu", "80", &[edit], &expected);
}

/// A loop that is not unrolled would index registers, which is impossible.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn an_access_to_local_memory() {
    let rolled = "widen(x, load128_streaming(inp + i));\n#pragma unroll\n";
    let edit = ("gelu.cu", rolled, "widen(x, load128_streaming(inp + i));\n#pragma unroll 1\n");
    let expected = [("gelu_forward", "bytes of local memory"), ("gelu_forward", "accesses local memory")];
    refused("gelu.cu", "80", &[edit], &expected);
}

#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn narrow_loads_for_a_wide_one() {
    let wide = "uint4 load_u128(const void* p) { return *static_cast<const uint4*>(p); }";
    let narrow = "uint4 load_u128(const void* p) {
        const volatile uint32_t* word = static_cast<const uint32_t*>(p);
        return {word[0], word[1], word[2], word[3]};
    }";
    let expected = [
        ("gelu_backward_inplace", "global loads of 128 bits, *1 fewer"),
        ("gelu_backward_inplace", "global loads of fewer than 128 bits, *4 over"),
    ];
    refused("gelu.cu", "80", &[("ptx.cuh", wide, narrow)], &expected);
    let expected = [("encoder_forward", "has no LDG.128"), ("encoder_backward_wpe", "has no LDG.128")];
    refused("encoder.cu", "90a", &[("ptx.cuh", wide, narrow)], &expected);
}

/// A loop over the elements of a pack: the compiler cannot know that they are aligned to 16 bytes.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn a_load_for_each_element() {
    let pack = "return unpack_bits<T>(load_u128(address));";
    let elements = "Pack<T> pack;
    for (int k = 0; k < Pack<T>::size; k++) pack.v[k] = address[k];
    return pack;";
    let expected = [
        ("encoder_forward", "has no LDG.128"),
        ("encoder_forward", "global loads of fewer than 128 bits, * 16 over"),
    ];
    refused("encoder.cu", "80", &[("common.cuh", pack, elements)], &expected);
}

/// Its results would be read before they are there, and it would read too early itself.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn a_kernel_that_does_not_wait_for_the_one_before() {
    let edits = [("common.cuh", "    launch_dependents();\n    wait_for_dependencies();\n", "")];
    let expected = [("gelu_forward", "has no PREEXIT"), ("gelu_forward", "has no ACQBULK")];
    refused("gelu.cu", "90a", &edits, &expected);
}

/// More loads in flight at once, or fewer.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn registers_over_and_under_the_budget() {
    let quads = "constexpr int QUADS = PackX::size / 4;";
    for (edited, verdict) in [
        (
            "constexpr int QUADS = PackX::size / 2;",
            "registers, budgeted * over; if that is intended, `make kernels-budget`",
        ),
        ("constexpr int QUADS = PackX::size / 8;", "registers, budgeted * fewer: an improvement"),
    ] {
        refused("adamw.cu", "80", &[("quads.cuh", quads, edited)], &[("adamw", verdict)]);
    }
}

/// A function of some ten instructions instead of one: no count of the budget shows it.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn a_slower_way_to_the_same_result() {
    let exact = ("gelu.cuh", "if constexpr (sizeof(floatX) == 4) return tanhf(u);", "return tanhf(u);");
    refused("gelu.cu", "90a", &[exact], &[("gelu_forward", ", start, path 1 (-): * longer")]);
}

/// Tiles that pass through registers on their way to shared memory, ordinary loads of them, and
/// multiplications of single numbers.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn no_asynchronous_copies_no_ldmatrix_no_tensor_cores() {
    let copy = r#""cp.async.cg.shared.global [%0], [%1], 16, %2;""#;
    let through_registers = r#""{ .reg .b32 r<4>; ld.global.v4.b32 {r0, r1, r2, r3}, [%1]; st.shared.v4.b32 [%0], {r0, r1, r2, r3}; }""#;
    let product = r#""mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};""#;
    let of_one = r#""{ .reg .f32 a, b; mov.b32 a, %4; mov.b32 b, %8; fma.rn.f32 %0, a, b, %0; }""#;
    let edits = [
        ("ptx.cuh", copy, through_registers),
        ("ptx.cuh", "ldmatrix.sync.aligned.m8n8.x4.shared.b16", "ld.shared.v4.u32"),
        ("ptx.cuh", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "ld.shared.v4.u32"),
        ("ptx.cuh", product, of_one),
    ];
    let expected = [
        ("attention_forward_hs64", "has no LDGSTS (asynchronous copies)"),
        ("attention_forward_hs64", "has no LDSM (ldmatrix)"),
        ("attention_forward_hs64", "has no HMMA (tensor core MMAs of a warp)"),
    ];
    refused("attention_forward.cu", "80", &edits, &expected);
}

/// A macro that nvcc does not define leaves the kernels for Hopper empty, and they compile
/// silently.
#[test]
#[cfg_attr(not(has_gate), ignore = "needs the tools of the gate (make nvcc)")]
fn kernels_for_hopper_that_are_empty() {
    let edit = ("hopper.cuh", "defined(__CUDA_ARCH_FEAT_SM90_ALL)", "defined(__CUDA_ARCH_FEAT_SM90A_ALL)");
    let expected = [
        ("matmul_hopper_forward_128x256", "has no HGMMA"),
        ("matmul_hopper_wgrad_128x256", "has no UTMALDG"),
    ];
    refused("matmul_hopper.cu", "90a", &[edit], &expected);
}
