//! The texts that the gate reads: the compiler's log, the disassembler's listing, the budget.

use crate::gate::read_listing;
use kernel_build::budget;
use kernel_build::ptxas::{Usage, faults, parse};
use kernel_build::sass;
use warpsmith::device::cuda::disassembler;

const GOOD_LOG: &str = "\
# layernorm.cu bf16
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layernorm_forward' for 'sm_80'
ptxas info    : Function properties for layernorm_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 4.023 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'layernorm_forward' for 'sm_90a'
ptxas info    : Function properties for layernorm_forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 128 bytes smem
";

fn faults_of(log: &str) -> Vec<String> {
    faults(&parse(log), &["layernorm.cu"], &["bf16"], &["80", "90a"])
}

#[test]
fn the_compilers_log_is_read() {
    let report = parse(GOOD_LOG);
    let read: Vec<_> = report.kernels.iter().map(|u| (&*u.kernel, &*u.arch, u.registers, u.shared)).collect();
    assert_eq!(read, [("layernorm_forward", "sm_80", 32, 128), ("layernorm_forward", "sm_90a", 30, 128)]);
    assert_eq!(faults_of(GOOD_LOG), [""; 0]);
}

#[test]
fn the_gate_names_what_it_refuses() {
    let edit = |from: &str, to: &str| {
        assert!(GOOD_LOG.contains(from));
        faults_of(&GOOD_LOG.replacen(from, to, 1))
    };
    let on_80 = "layernorm_forward in layernorm.cu (bf16, sm_80)";
    let spills =
        edit("0 bytes spill stores, 0 bytes spill loads", "8 bytes spill stores, 16 bytes spill loads");
    assert_eq!(spills, [format!("{on_80} spills registers: 8 bytes of stores, 16 of loads")]);
    assert_eq!(edit("0 bytes stack", "624 bytes stack"), [format!("{on_80} uses 624 bytes of local memory")]);
    assert_eq!(
        edit("cmem[0]", "cmem[0], 40 bytes cumulative stack size"),
        [format!("{on_80} uses 40 bytes of local memory")]
    );
    let serialized =
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    assert_eq!(
        edit("ptxas info    : Compile time = 4.023 ms", serialized),
        [format!("layernorm.cu bf16: {serialized}")]
    );
    let warning = "kernels/layernorm.cu(3): warning #177-D: variable \"i\" was declared but never referenced";
    assert_eq!(edit("ptxas info    : 0 bytes gmem", warning), [format!("layernorm.cu bf16: {warning}")]);
    assert_eq!(
        edit("for 'sm_90a'", "for 'sm_90'"),
        ["layernorm_forward in layernorm.cu (bf16): not compiled for sm_90a"]
    );
    assert!(edit("Used 32 registers", "Used some registers")[0].contains("registers are not reported"));
    assert_eq!(
        edit("# layernorm.cu bf16", "# layernorm.cu f16"),
        ["layernorm.cu (bf16): no kernel was compiled"]
    );
}

const LISTING: &str = "\
Fatbin elf code:
================
arch = sm_80
\tcode for sm_80
\t\tFunction : gelu_forward
\t.headerflags\t@\"EF_CUDA_SM80\"
        /*0000*/                   MOV R1, c[0x0][0x28] ;             /* 0x00000a0000017a02 */
                                                                      /* 0x000fe40000000f00 */
        /*0010*/              @!P0 LDG.E.EF.128 R4, [R2.64] ;         /* 0x0000000402047981 */
        /*0020*/                   LDG.E.U16.CONSTANT R8, [R6.64] ;   /* 0x0000000402047981 */
        /*0030*/              @P1  STG.E.64 [R2.64+0x8], R4 ;         /* 0x0000000402047981 */
        /*0040*/                   STG.E.EF.128 [R2.64], R4 ;         /* 0x0000000402047981 */
        /*0050*/              @!PT LDS RZ, [RZ] ;                     /* 0x0000000402047981 */
        /*0060*/                   EXIT ;                             /* 0x000000000000794d */
\t\t..........
\tcode for sm_90a
\t\tFunction : matmul_hopper_forward_128x256
        /*0000*/                   PREEXIT ;
        /*0008*/                   ACQBULK ;
        /*0010*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, !UPT ;
        /*0020*/                   UTMALDG.2D [UR8], [UR6], desc[URZ] ;
        /*0030*/              @P0  LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*0040*/                   UTMASTG.2D [UR8], [UR6] ;
        /*0050*/                   LDSM.16.MT88.4 R4, [R5] ;
        /*0060*/                   STSM.16.M88.4 [R5], R4 ;
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0080*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0090*/                   STG.E.128 desc[UR4][R2.64], R4 ;
";

fn listing(from: &str, to: &str) -> Vec<sass::Code> {
    assert!(LISTING.contains(from));
    read_listing(&LISTING.replacen(from, to, 1), "gelu.cu", "bf16")
}

#[test]
fn the_disassemblers_listing_is_read() {
    let [gelu, matmul] = &listing("", "")[..] else { panic!("two kernels") };
    assert_eq!((&*gelu.kernel, &*gelu.arch, gelu.instructions, gelu.local), ("gelu_forward", "sm_80", 7, 0));
    let counts =
        |code: &sass::Code| code.counts.iter().map(|(class, n)| format!("{class}:{n}")).collect::<Vec<_>>();
    assert_eq!(counts(gelu), ["LDG.128:1", "LDG.narrow:1", "STG.128:1", "STG.narrow:1"]);
    assert_eq!((&*matmul.kernel, &*matmul.arch), ("matmul_hopper_forward_128x256", "sm_90a"));
    assert_eq!(
        counts(matmul),
        [
            "ACQBULK:1",
            "HGMMA:1",
            "HMMA:1",
            "LDG.128:1",
            "LDGSTS:1",
            "LDSM:1",
            "PREEXIT:1",
            "STG.128:1",
            "STSM:1",
            "UTMALDG:1",
            "UTMASTG:1"
        ]
    );
    assert_eq!(sass::faults(&listing("", "")), [""; 0]);
}

#[test]
fn instructions_that_are_missing_or_forbidden_are_named() {
    let gelu = "gelu_forward in gelu.cu (bf16, sm_80)";
    let faults = |from: &str, to: &str| sass::faults(&listing(from, to));
    assert_eq!(
        faults("LDG.E.EF.128", "LDG.E.EF.64"),
        [format!("{gelu} has no LDG.128 (global loads of 128 bits), which it is written for")]
    );
    assert_eq!(faults("LDS RZ", "LDL.LU R4"), [format!("{gelu} accesses local memory in 1 instructions")]);
    assert_eq!(faults("MOV R1, c[0x0][0x28]", "STL [R1], R4").len(), 1);
    let unknown = faults("Function : gelu_forward", "Function : another");
    assert!(
        unknown.len() == 1 && unknown[0].starts_with("another in gelu.cu (bf16, sm_80): RULES"),
        "{unknown:?}"
    );
    let hopper = faults("HGMMA.64x256x16", "IGMMA.64x256x16");
    assert!(hopper.len() == 1 && hopper[0].contains("has no HGMMA"), "{hopper:?}");
    assert!(
        sass::faults(&read_listing("code for sm_80\nFunction : gelu_forward\n", "gelu.cu", "bf16"))[0]
            .contains("no instruction")
    );
}

fn measured() -> budget::Budget {
    let mut report = parse(GOOD_LOG);
    for u in &mut report.kernels {
        (u.file, u.kernel) = ("gelu.cu".into(), "gelu_forward".into());
    }
    for arch in ["sm_86", "sm_89", "sm_100", "sm_120"] {
        report.kernels.push(Usage { arch: arch.into(), ..report.kernels[0].clone() });
    }
    budget::measure(&report, &listing("", "")[..1])
}

#[test]
fn the_budget_is_written_and_read() {
    let text = budget::to_text(&measured());
    let row = "gelu.cu\tgelu_forward\tbf16\t80:32 86:32 89:32 90a:30 100:32 120:32\t128\t\
               LDG.128:1 LDG.narrow:1 STG.128:1 STG.narrow:1\t-";
    assert_eq!(text.lines().last(), Some(row));
    assert_eq!(budget::parse(&text).unwrap(), measured());
    for (from, to, fault) in [
        ("sm_90a\n", "sm_100\n", "expected the columns"),
        ("90a:30 ", "", "no registers of sm_90a"),
        ("\t-", "", "a column for each"),
        ("LDG.128:1", "LDG.96:1", "LDG.96:1 is not a count"),
        ("LDG.128:1", "LDG.128:x", "LDG.128:x is not a count"),
        (row, &format!("{row}\n{row}"), "a second row"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = budget::parse(&text.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(fault) && error.starts_with("kernels/budget.tsv"), "{error}");
    }
}

#[test]
fn differences_from_the_budget_are_named() {
    let differences = |change: &dyn Fn(&mut budget::Budget), arches: &[&str]| {
        let mut found = measured();
        change(&mut found);
        budget::differences(&measured(), &found, arches, &["80"])
    };
    let set = |what: &str, arch: &str, n: usize| {
        let what = (what.to_string(), arch.to_string());
        move |found: &mut budget::Budget| {
            for numbers in found.values_mut() {
                numbers.insert(what.clone(), n);
            }
        }
    };
    let line = |arch: &str, what: &str| {
        format!(
            "gelu_forward in gelu.cu (bf16, sm_{arch}): {what}; if that is intended, `make kernels-budget` writes \
             it into kernels/budget.tsv"
        )
    };
    let all = ["80", "90a"];
    assert_eq!(differences(&|_| {}, &all), [""; 0]);
    let registers = differences(&set(budget::REGISTERS, "90a", 33), &all);
    assert_eq!(registers, [line("90a", "33 registers, budgeted 30, 3 over")]);
    assert_eq!(differences(&set(budget::REGISTERS, "90a", 33), &["80"]), [""; 0]);
    let fewer = differences(&set(budget::REGISTERS, "80", 31), &all);
    assert_eq!(fewer, [line("80", "31 registers, budgeted 32, 1 fewer: an improvement")]);
    let shared = differences(&set(budget::SHARED, "80", 256), &all);
    assert_eq!(shared, [line("80", "256 bytes of static shared memory, budgeted 128, 128 over")]);
    let narrow = differences(&set("LDG.narrow", "80", 5), &all);
    assert_eq!(narrow, [line("80", "5 global loads of fewer than 128 bits, budgeted 1, 4 over")]);
    let wide = differences(&set("LDG.128", "80", 0), &all);
    assert_eq!(wide, [line("80", "0 global loads of 128 bits, budgeted 1, 1 fewer")]);
    let [gone, new] = [(measured(), Default::default()), (Default::default(), measured())]
        .map(|(old, new)| budget::differences(&old, &new, &all, &["80"]).join("\n"));
    assert!(
        gone.contains("gelu_forward in gelu.cu (bf16) is in kernels/budget.tsv, but was not compiled"),
        "{gone}"
    );
    assert!(new.contains("gelu_forward in gelu.cu (bf16) has no row in kernels/budget.tsv"), "{new}");
}

#[test]
fn a_disassembler_is_found_or_asked_for() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [beside, on_path, own] = dirs.each_ref().map(|dir| dir.path().join("nvcc"));
    let find = || disassembler::find(&beside, dirs[1].path().as_os_str(), &own);
    let error = find().unwrap_err();
    assert!(error.contains(beside.to_str().unwrap()) && error.contains("`make nvcc` installs"), "{error}");
    for nvcc in [&own, &on_path, &beside] {
        std::fs::write(nvcc.with_file_name("cuobjdump"), "").unwrap();
        assert_ne!(find().ok(), Some(nvcc.with_file_name("cuobjdump")), "without its nvdisasm");
        std::fs::write(nvcc.with_file_name("nvdisasm"), "").unwrap();
        assert_eq!(find().unwrap(), nvcc.with_file_name("cuobjdump"));
    }
}
