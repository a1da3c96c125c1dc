//! Functions that move words, or return addresses.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::{Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};

const FILE: &str = "probes.cu";

#[test]
fn copies_of_128_bits() {
    let words = random_words(3, 4 * 256 + 4);
    probe("copy_u128", Needs::Any, |device| {
        ["copy_u128", "copy_u128_streaming"]
            .map(|kernel| {
                Case::exact(kernel, Format::Bits, device.each((FILE, kernel), &words), words.clone())
            })
            .into()
    });
}

/// Numbers whose sums are exact in any order.
#[test]
fn additions_of_many_threads() {
    let numbers: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let sum = |start: usize| (7.0 + numbers[start..].iter().step_by(8).sum::<f32>()).to_bits();
    let expected: Vec<u32> = (0..8).map(sum).collect();
    let words: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    probe("red", Needs::Any, |device| {
        let args = (device.words(&[7f32.to_bits(); 8]), device.words(&words), words.len() as i32);
        let launch = Launch::new(words.len().div_ceil(256), 256);
        device.launch((FILE, "red_adds"), launch, &[Arg::new(&args.0), Arg::new(&args.1), Arg::new(&args.2)]);
        vec![Case::exact("sums", Format::F32, device.read(args.0, 8), expected.clone())]
    });
}

#[test]
fn opaque() {
    let words = random_words(4, 256);
    probe("opaque", Needs::Any, |device| {
        vec![Case::exact("ints", Format::Bits, device.each((FILE, "opaque_int"), &words), words.clone())]
    });
}

/// Rows are 16 bytes apart, and start at a multiple of 1024.
#[test]
fn addresses_in_shared_memory() {
    let expected: Vec<u32> = (0..32).map(|row| 16 * row).chain([0]).collect();
    probe("addresses", Needs::Any, |device| {
        let out = device.words(&[0xdead_beef; 33]);
        device.launch((FILE, "addresses"), Launch::new(1, 32).shared(512), &[Arg::new(&out)]);
        vec![Case::exact("rows", Format::Bits, device.read(out, 33), expected.clone())]
    });
}

/// Lane l gets element (l / 4, 2 (l % 4)) of matrix i, or of its transpose, and the next in the
/// row. Row r of matrix i is the one that lane 8 i + r names; lanes name rows in order, and then in
/// another order.
#[test]
fn ldmatrix() {
    let rows = random_words(5, 128);
    let element =
        |row: usize, column: usize| rows[row * 4 + column / 2] >> (16 * (column as u32 % 2)) & 0xffff;
    let orders = [("in order", [1, 0]), ("in disorder", [13, 5])];
    probe("ldmatrix", Needs::Any, |device| {
        let mut cases = Vec::new();
        for kernel in ["ldmatrix", "ldmatrix_trans"] {
            for (name, [step, first]) in orders {
                let row_of: Vec<u32> = (0..32).map(|lane| (lane * step + first) % 32).collect();
                let args = [device.words(&[0xdead_beef; 128]), device.words(&rows), device.words(&row_of)];
                device.launch((FILE, kernel), Launch::new(1, 32), &args.each_ref().map(Arg::new));
                let expected = (0..128).map(|i| {
                    let (lane, matrix) = (i / 4, i % 4);
                    let at = |first: usize, second: usize| match kernel {
                        "ldmatrix" => element(row_of[matrix * 8 + first] as usize, second),
                        _ => element(row_of[matrix * 8 + second] as usize, first),
                    };
                    at(lane / 4, lane % 4 * 2) | at(lane / 4, lane % 4 * 2 + 1) << 16
                });
                let found = device.read(args[0], 128);
                cases.push(Case::exact(&format!("{kernel} {name}"), Format::Bits, found, expected.collect()));
            }
        }
        cases
    });
}
