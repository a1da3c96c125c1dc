//! Small kernels whose clocks are computed by hand from the table of rates.

use super::listing::{Listing, parse};
use super::machine::{CACHED_LATENCY, Machine, Pipe, RATES};
use super::simulate::{Priced, clocks, clocks_per_iteration, price};
use super::{Bound, Kernel, Launched, Place, Variant, analyze};

/// Lines like `4 W0 R- .1 | LDG.E R4, desc[UR4][R2.64]`: stall clocks, the scoreboards that track
/// the result and the operands, and the scoreboards that are waited for.
fn listing(lines: &[&str]) -> Listing {
    let mut text = "Function f:\n REG:32 SHARED:1024\ncode for sm_90a\nFunction : f\n".to_string();
    for (i, line) in lines.iter().enumerate() {
        let (codes, instruction) = line.split_once(" | ").unwrap();
        let [stall, writes, reads, waits] = codes.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let scoreboard = |code: &str| code[1..].parse::<u64>().unwrap_or(7);
        let waits: u64 = waits.bytes().filter(u8::is_ascii_digit).map(|digit| 1 << (digit - b'0')).sum();
        let word = stall.parse::<u64>().unwrap() << 41
            | scoreboard(writes) << 46
            | scoreboard(reads) << 49
            | waits << 52;
        text += &format!("/*{:04x}*/ {instruction} ; /* 0x0 */\n /* {word:#018x} */\n", 16 * i);
    }
    parse(&text).remove(0)
}

fn priced(lines: &[&str]) -> Vec<Priced> {
    price(&listing(lines).instructions, &Machine::default()).unwrap()
}

/// Clocks of `warps` warps through the lines once.
fn once(lines: &[&str], warps: usize) -> f64 {
    let code = priced(lines);
    clocks(&code.iter().collect::<Vec<_>>(), warps)
}

fn iteration(lines: &[&str], warps: usize) -> f64 {
    let code = priced(lines);
    clocks_per_iteration(&code.iter().collect::<Vec<_>>(), warps)
}

const JUMP: &str = "5 W- R- . | @P0 BRA 0x0";

/// A warp issues one every 4 clocks; four warps fill the gaps, five no longer fit.
#[test]
fn dependent_fmas_wait_for_each_other() {
    let chain = ["4 W- R- . | FFMA R0, R0, R1, R2"; 16];
    assert_eq!([1, 4].map(|warps| once(&chain, warps)), [64.0, 64.0 + 3.0]);
    assert_eq!([1, 4, 8].map(|warps| iteration(&chain, warps)), [64.0, 64.0, 128.0]);
}

/// 32 lanes in two halves issue one per clock; one half alone (integers) every second clock.
#[test]
fn independent_fmas_are_bound_by_issue() {
    let float = ["1 W- R- . | FFMA R0, R3, R1, R2"; 16];
    assert_eq!([1, 8].map(|warps| iteration(&float, warps)), [16.0, 128.0]);
    let integer = ["1 W- R- . | IMAD R0, R3, R1, R2"; 16];
    assert_eq!([1, 8].map(|warps| iteration(&integer, warps)), [32.0, 256.0]);
    // Integers in one half, floats in both: 16 of 32 in the other half.
    let mixed: Vec<_> = float.iter().zip(integer).flat_map(|(f, i)| [*f, i]).collect();
    assert_eq!(iteration(&mixed, 8), 256.0);
}

/// Four lanes: eight clocks each, whichever warp issues.
#[test]
fn transcendental_functions_bind_their_pipe() {
    let mut lines = vec!["1 W0 R- . | MUFU.EX2 R0, R1"; 8];
    lines.push(JUMP);
    assert_eq!([1, 4].map(|warps| iteration(&lines, warps)), [64.0, 256.0]);
}

/// Sixteen round trips of 479 clocks and an addition, against one after fifteen slots of the port.
#[test]
fn loads_in_flight_together_are_waited_for_once() {
    let pair = ["2 W0 R- . | LDG.E R4, desc[UR4][R2.64]", "4 W- R- .0 | FADD R0, R0, R4"];
    assert_eq!(once(&pair.repeat(16), 1), 16.0 * (479.0 + 4.0));
    let mut ahead = vec![pair[0]; 16];
    ahead.extend([pair[1]; 16]);
    assert_eq!(once(&ahead, 1), 15.0 * 8.0 + 479.0 + 16.0 * 4.0);
}

/// One tensor core per scheduler, shared by its warps.
#[test]
fn products_bind_tensor_cores() {
    let mut lines = vec!["6 W- R- . | HMMA.16816.F32.BF16 R4, R8, R12, R4"; 8];
    lines.push(JUMP);
    // A jump may take the issue slot in which an MMA would have started.
    let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.02, "{found}");
    near(iteration(&lines, 2), 2.0 * 8.0 * 6.4);
    let tf32 = ["6 W- R- . | HMMA.1688.F32.TF32 R4, R8, R12, R4"; 10];
    near(iteration(&tf32, 1), 64.0);
}

/// A stage of 64 of K, two warpgroups: 8 x 128 clocks, whatever else is issued, as one group is
/// always in flight.
#[test]
fn products_of_warpgroups_run_beside_other_work() {
    let stage = [
        "1 W- R- . | WARPGROUP.ARRIVE",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24, gsb0",
        "4 W- R- . | IADD3 R0, R0, 0x1, RZ",
        "2 W- R- . | WARPGROUP.DEPBAR.LE gsb0, 0x1",
        JUMP,
    ];
    assert_eq!([1, 2].map(|warps| iteration(&stage, warps)), [512.0, 1024.0]);
    let mut all = stage.to_vec();
    all[6] = "2 W- R- . | WARPGROUP.DEPBAR.LE gsb0, 0x0";
    // Nothing is in flight while the next ones are prepared: 1 + 2 + 5 clocks of a warp alone.
    assert_eq!(iteration(&all, 1), 512.0 + 8.0);
}

/// 512 bytes at 128 per clock and SM: 4 clocks, and a scheduler gets every fourth.
#[test]
fn shared_memory_has_a_width() {
    let mut lines = vec!["1 W0 R- . | LDS.128 R4, [R2]"; 4];
    lines.push("4 W- R- .0 | FADD R0, R0, R4");
    lines.push(JUMP);
    assert_eq!(iteration(&lines, 4), 4.0 * 4.0 * 16.0);
    assert_eq!(once(&["1 W0 R- . | LDSM.16.M88.4 R4, [R2]", "1 W- R- .0 | NOP"], 1), 29.0 + 1.0);
}

/// Two stages ahead, a copy has an iteration to arrive. With one stage, each iteration waits for
/// its own.
#[test]
fn copies_are_waited_for_by_groups() {
    let stage = |ahead: &'static str| {
        let mut lines =
            vec!["2 W- R- . | LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "2 W0 R- . | LDGDEPBAR"];
        lines.push(ahead);
        lines.extend(["4 W- R- . | FFMA R0, R0, R1, R2"; 100]);
        iteration(&lines, 1)
    };
    assert_eq!(stage("1 W- R- . | DEPBAR.LE SB0, 0x0"), 479.0 + 1.0 + 400.0);
    // The previous copy was issued 405 clocks ago.
    assert!(stage("1 W- R- . | DEPBAR.LE SB0, 0x1") <= 479.0 + 10.0);
}

/// All warps start after the last has arrived.
#[test]
fn barriers_gather_warps() {
    let lines = [
        "1 W- R- . | MUFU.EX2 R0, R1",
        "1 W- R- . | BAR.SYNC.DEFER_BLOCKING 0x0",
        "1 W- R- . | FADD R0, R0, R1",
    ];
    let alone = once(&lines, 1);
    // 1 clock for the function, 20 for the barrier, 2 until the addition is done.
    assert_eq!(alone, 1.0 + 20.0 + 2.0);
    // Two of four find their pipe's queue full (16 of 24 clocks): 9 clocks until the last is
    // issued.
    assert!(once(&lines, 4) > alone + 8.0);
}

fn analyzed(lines: &[&str], threads: usize, parameters: &[(u32, &str)]) -> Kernel {
    let parameters = parameters.iter().map(|(offset, name)| (*offset, name.to_string(), true)).collect();
    // Enough shared memory that a block of few threads has the SM to itself.
    let shared_bytes = if threads < 1024 { 200 << 10 } else { 0 };
    analyze(&listing(lines), &Launched { threads, shared_bytes, parameters }, &Machine::default()).unwrap()
}

fn variants(kernel: &Kernel, place: &Place) -> Vec<Variant> {
    kernel
        .parts
        .iter()
        .find(|part| part.place == *place)
        .unwrap_or_else(|| panic!("{place}: {kernel}"))
        .variants
        .clone()
}

/// A loop of MUFU in a loop of FMA, and the code around them.
#[test]
fn nested_loops_are_parts_of_their_own() {
    let lines = [
        "4 W- R- . | MOV R0, RZ",
        "4 W- R- . | FFMA R0, R0, R1, R2",
        "1 W0 R- . | MUFU.EX2 R4, R5",
        "1 W0 R- . | MUFU.EX2 R6, R7",
        "5 W- R- . | @P0 BRA 0x20",
        "4 W- R- .0 | FFMA R0, R0, R4, R6",
        "5 W- R- . | @P1 BRA 0x10",
        "5 W- R- . | EXIT",
    ];
    // 64 warps: 16 per scheduler.
    let kernel = analyzed(&lines, 1024, &[]);
    assert_eq!((kernel.blocks, kernel.parts[0].warps), (2, 16));
    let places: Vec<_> = kernel.parts.iter().map(|part| part.place.to_string()).collect();
    let expected = ["start", "start in loop 1", "loop 1.1", "after loop 1.1 in loop 1", "after loop 1"]
        .map(str::to_string);
    assert_eq!(places, expected);
    let [inner] = &variants(&kernel, &Place::Iteration("1.1".into()))[..] else { panic!("one variant") };
    assert_eq!((inner.issue, inner.clocks, inner.bound), (256.0, 256.0, Bound::Pipe(Pipe::Xu)));
    assert_eq!((inner.latency, inner.counts.all), (16.0, 3));
}

/// An epilogue after a matmul's loop: with a null pointer it stores; otherwise each row waits for
/// its operand, unless all operands were loaded ahead.
#[test]
fn variants_of_an_epilogue_are_told_apart() {
    let setup = [
        "1 W- R- . | ULDC.64 UR8, c[0x0][0x348]",
        "13 W- R- . | ISETP.NE.U32.AND P2, PT, RZ, UR8, PT",
        "4 W- R- . | IADD3 R0, R0, 0x1, RZ",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24, gsb0",
        "5 W- R- . | @P0 BRA 0x30",
        "2 W- R- . | WARPGROUP.DEPBAR.LE gsb0, 0x0",
    ];
    let serial = [
        "5 W- R- . | @!P2 BRA 0xb0",
        "2 W0 R- . | LDG.E.128 R4, desc[UR4][R2.64]",
        "4 W- R- .0 | FADD R24, R24, R4",
        "2 W0 R- . | LDG.E.128 R4, desc[UR4][R2.64]",
        "4 W- R- .0 | FADD R25, R25, R4",
    ];
    let ahead = [serial[0], serial[1], serial[3], serial[2], serial[4]];
    let end = ["1 W- R- . | STG.E.128 desc[UR4][R6.64], R24", "5 W- R- . | @P1 BRA 0x20", "5 W- R- . | EXIT"];
    let epilogue = Place::Epilogue { of: "1".into(), inner: "1.1".into(), number: 1 };
    let of = |rows: &[&str]| {
        let lines: Vec<&str> = setup.iter().chain(rows).chain(&end).copied().collect();
        variants(&analyzed(&lines, 128, &[(0x348, "residual")]), &epilogue)
    };
    let modes = |variants: &[Variant]| variants.iter().map(|v| v.mode.clone()).collect::<Vec<_>>();
    let numbers =
        |v: &[Variant]| v.iter().map(|v| (v.counts.loads, v.counts.stores, v.latency)).collect::<Vec<_>>();
    let one_by_one = of(&serial);
    assert_eq!(modes(&one_by_one), ["!residual", "residual"]);
    // A jump, a store whose addresses take 16 clocks, a jump; and two more round trips.
    let plain = 5.0 + 16.0;
    assert_eq!(numbers(&one_by_one), [(0, 1, plain), (2, 1, plain + 2.0 * (479.0 + 4.0))]);
    // Together: the second arrives 32 clocks after the first, at a quarter of the port.
    assert_eq!(numbers(&of(&ahead))[1], (2, 1, plain + 32.0 + 479.0 + 8.0));
    assert_eq!(one_by_one[1].bound, Bound::Latency);
}

/// A load issued before the last MMAs are waited for: they hide part of its round trip, and it
/// counts.
#[test]
fn what_an_epilogue_loads_ahead_is_its_own() {
    let lines = [
        "4 W- R- . | IADD3 R0, R0, 0x1, RZ",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24, gsb0",
        "5 W- R- . | @P0 BRA 0x10",
        "1 W- R- . | HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16], R24, gsb0",
        "1 W0 R- . | LDG.E R4, desc[UR4][R2.64]",
        "2 W- R- . | WARPGROUP.DEPBAR.LE gsb0, 0x0",
        "4 W- R- .0 | FADD R24, R24, R4",
        "5 W- R- . | @P1 BRA 0x0",
        "5 W- R- . | EXIT",
    ];
    let epilogue = Place::Epilogue { of: "1".into(), inner: "1.1".into(), number: 1 };
    let [one] = &variants(&analyzed(&lines, 128, &[]), &epilogue)[..] else { panic!("one variant") };
    // Issued in clock 1, it arrives in 480; the MMAs are done in 128, and the next instruction
    // comes 2 later.
    assert_eq!((one.counts.loads, one.latency), (1, (1.0 + 479.0) - (128.0 + 2.0) + 4.0 + 5.0));
}

/// Guards select variants as jumps do.
#[test]
fn guarded_instructions_have_variants_too() {
    let lines = [
        "1 W- R- . | ULDC.64 UR8, c[0x0][0x210]",
        "13 W- R- . | ISETP.NE.U32.AND P2, PT, RZ, UR8, PT",
        "2 W0 R- . | @P2 LDG.E R4, desc[UR4][R2.64]",
        "4 W- R- .0 | @P2 FADD R24, R24, R4",
        "5 W- R- . | EXIT",
    ];
    let variants = variants(&analyzed(&lines, 128, &[(0x210, "residual")]), &Place::Start(String::new()));
    let found: Vec<_> = variants.iter().map(|v| (&*v.mode, v.counts.loads, v.counts.all)).collect();
    assert_eq!(found, [("residual", 1, 5), ("!residual", 0, 5)]);
    // Otherwise the load and the addition still take their 2 clocks and 4.
    assert_eq!(variants[0].latency - variants[1].latency, 479.0 - 2.0);
}

#[test]
fn what_a_multiprocessor_keeps_comes_sooner() {
    let lines = [
        "1 W- R- . | ULDC.64 UR8, c[0x0][0x210]",
        "4 W- R- . | LEA R2, P0, R0, UR8, 0x1",
        "2 W0 R- . | LDG.E R4, desc[UR4][R2.64]",
        "4 W- R- .0 | FADD R24, R24, R4",
        "5 W- R- . | EXIT",
    ];
    let latency =
        |name| variants(&analyzed(&lines, 128, &[(0x210, name)]), &Place::Start(String::new()))[0].latency;
    assert_eq!(latency("residual") - latency("bias"), 479.0 - CACHED_LATENCY);
}

#[test]
fn measured_latencies_replace_the_published() {
    let pair = listing(&["2 W0 R- . | LDG.E R4, desc[UR4][R2.64]", "4 W- R- .0 | FADD R0, R0, R4"]);
    let mut machine = Machine::default();
    machine.calibrate(r#"{"LDG": {"latency": 610}, "MUFU": {"clocks": 4}}"#).unwrap();
    let code = price(&pair.instructions, &machine).unwrap();
    assert_eq!(clocks(&code.iter().collect::<Vec<_>>(), 1), 614.0);
    let mut fault = |json: &str| format!("{:#}", machine.calibrate(json).unwrap_err());
    assert!(fault(r#"{"LDX": {}}"#).contains("LDX: expected the first opcode"));
    assert!(fault(r#"{"LDG": {"latency": -1}}"#).contains("expected clocks of 0 or more"));
    assert!(fault(r#"{"LDG": {"delay": 1}}"#).contains("delay"));
}

#[test]
fn what_the_table_does_not_know_is_an_error() {
    let error = |line: &str| {
        let listing = listing(&[line]);
        let launched = Launched { threads: 32, ..Launched::default() };
        format!("{:#}", analyze(&listing, &launched, &Machine::default()).unwrap_err())
    };
    assert_eq!(
        error("1 W- R- . | DMMA.884 R4, R8, R12, R4"),
        "f: DMMA.884: no row of RATES in src/roofline/clocks/machine.rs"
    );
    let mut bare = listing(&["5 W- R- . | EXIT"]);
    bare.instructions[0].control = None;
    let launched = Launched { threads: 32, ..Launched::default() };
    let error = format!("{:#}", analyze(&bare, &launched, &Machine::default()).unwrap_err());
    assert!(error.contains("no encoding of EXIT at 0x0"), "{error}");
}

/// Each opcode has one row, and each row a source.
#[test]
fn rates_are_stated_once() {
    let mut names: Vec<_> = RATES.iter().flat_map(|rate| rate.names).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(RATES.iter().all(|rate| !rate.source.is_empty()));
}
