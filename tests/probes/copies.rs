//! Asynchronous copies of 16 bytes, the barriers that copies report to, those among some warps, the
//! wait for earlier launches, and the transfer of registers.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::{Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};

#[test]
fn cp_async() {
    let words = random_words(6, 3 * 128);
    // Lane l copies l bytes and clears the others; all 16 from lane 16 on.
    let cut: Vec<u32> = (0..128)
        .map(|i| match usize::min(i / 4, 16).saturating_sub(i % 4 * 4) {
            bytes @ 0..4 => words[i] & ((1 << (8 * bytes)) - 1),
            _ => words[i],
        })
        .collect();
    probe("cp_async", Needs::Any, |device| {
        [("cp_async_bytes", &cut[..]), ("cp_async_groups", &words)]
            .map(|(kernel, expected)| {
                let args = [device.words(&vec![0xdead_beef; expected.len()]), device.words(&words)];
                device.launch(("probes.cu", kernel), Launch::new(1, 32), &args.each_ref().map(Arg::new));
                let found = device.read(args[0], expected.len());
                Case::exact(kernel, Format::Bits, found, expected.to_vec())
            })
            .into()
    });
}

/// In every phase a thread sees what its opposite left in the same phase.
#[test]
fn mbarrier() {
    const PHASES: usize = 7;
    let words = random_words(7, PHASES * 64);
    let opposite: Vec<u32> = (0..PHASES * 64).map(|i| words[i / 64 * 64 + 63 - i % 64]).collect();
    probe("mbarrier", Needs::Hopper, |device| {
        [64i32, 16, 2]
            .map(|arrivals| {
                let out = device.words(&[0xdead_beef; PHASES * 64]);
                let input = device.words(&words);
                let args =
                    [Arg::new(&out), Arg::new(&input), Arg::new(&(PHASES as i32)), Arg::new(&arrivals)];
                device.launch(("probes_hopper.cu", "mbarrier_phases"), Launch::new(1, 64), &args);
                let found = device.read(out, PHASES * 64);
                Case::exact(&format!("{arrivals} arrivals"), Format::Bits, found, opposite.clone())
            })
            .into()
    });
}

/// Half of a block hands numbers over to the other half, in reverse.
#[test]
fn named_barriers() {
    const PHASES: usize = 7;
    let words = random_words(9, PHASES * 64);
    let reversed: Vec<u32> = (0..PHASES * 64).map(|i| words[i / 64 * 64 + 63 - i % 64]).collect();
    probe("named_barriers", Needs::Any, |device| {
        let (out, input) = (device.words(&[0xdead_beef; PHASES * 64]), device.words(&words));
        let args = [Arg::new(&out), Arg::new(&input), Arg::new(&(PHASES as i32))];
        device.launch(("probes.cu", "named_barriers"), Launch::new(1, 128), &args);
        vec![Case::exact("reversed", Format::Bits, device.read(out, PHASES * 64), reversed.clone())]
    });
}

/// Each launch reads what the one before wrote, though it may start before that has ended.
#[test]
fn dependencies() {
    const LAUNCHES: u32 = 9;
    const LEN: usize = 256 * 256;
    let words = random_words(14, LEN);
    let expected: Vec<u32> = words.iter().map(|word| word.wrapping_add(LAUNCHES)).collect();
    probe("dependencies", Needs::Any, |device| {
        let (out, mut input) = (device.words(&vec![0xdead_beef; LEN]), device.words(&words));
        let buffers = [out, device.words(&vec![0xdead_beef; LEN])];
        for launch in 0..LAUNCHES {
            let out = buffers[launch as usize % 2];
            let args = [Arg::new(&out), Arg::new(&input)];
            device.launch(("probes.cu", "dependent"), Launch::new(LEN / 256, 256).programmatic(), &args);
            input = out;
        }
        vec![Case::exact("incremented", Format::Bits, device.read(input, LEN), expected.clone())]
    });
}

/// Registers keep their values while their number changes, and a thread can hold more values
/// afterwards.
#[test]
fn registers() {
    const HELD: usize = 192;
    let words = random_words(8, 384 + HELD);
    let sum =
        |t: usize| (0..HELD).fold(0u32, |sum, i| sum.wrapping_mul(31).wrapping_add(words[t + HELD - 1 - i]));
    let expected: Vec<u32> = (0..384).map(|t| if t < 128 { words[t] } else { sum(t) }).collect();
    probe("registers", Needs::Hopper, |device| {
        let args = [device.words(&[0xdead_beef; 384]), device.words(&words)];
        let launch = Launch::new(1, 384);
        device.launch(("probes_hopper.cu", "registers_moved"), launch, &args.each_ref().map(Arg::new));
        vec![Case::exact("moved", Format::Bits, device.read(args[0], 384), expected.clone())]
    });
}
