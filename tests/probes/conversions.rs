//! Conversions between number types, and the approximations of four functions.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::{Needs, probe};
use half::{bf16, f16};

const FILE: &str = "probes.cu";

/// Every exponent and sign, each with mantissas on, just below and just above every possible tie,
/// and 8192 random words. They include zeros, subnormal numbers, infinities, NaNs, and numbers that
/// overflow in 16 bits.
fn hard_numbers() -> Vec<u32> {
    let mut mantissas = vec![0];
    for bit in 0..23 {
        let tie = 1u32 << bit;
        mantissas.extend([tie - 1, tie, tie + 1, 0x7f_ffff - tie, 3 * tie, 3 * tie - 1, 3 * tie + 1]);
    }
    mantissas.iter_mut().for_each(|m| *m &= 0x7f_ffff);
    mantissas.sort_unstable();
    mantissas.dedup();
    let exponents = 0..512u32;
    let mut words: Vec<u32> =
        exponents.flat_map(|e| mantissas.iter().map(move |m| e.rotate_right(9) | m)).collect();
    words.extend(random_words(1, 8192));
    words
}

fn each(words: &[u32], of: impl Fn(f32) -> u32) -> Vec<u32> {
    words.iter().map(|&word| of(f32::from_bits(word))).collect()
}

fn to_bf16(v: f32) -> u32 {
    u32::from(bf16::from_f32(v).to_bits())
}

fn to_f16(v: f32) -> u32 {
    u32::from(f16::from_f32(v).to_bits())
}

/// Every 16-bit pattern is widened, and f32 narrowed. bf16 is the upper half of an f32, so all bits
/// are kept.
#[test]
fn bf16_and_back() {
    let (patterns, numbers): (Vec<u32>, _) = ((0..=0xffff).collect(), hard_numbers());
    probe("bf16", Needs::Any, |device| {
        let widened = device.each((FILE, "bf16_to_f32"), &patterns);
        let narrowed = device.each((FILE, "bf16_from_f32"), &numbers);
        vec![
            Case::exact("to_f32", Format::Bits, widened, patterns.iter().map(|x| x << 16).collect()),
            Case::exact("from_f32", Format::Bf16, narrowed, each(&numbers, to_bf16)),
        ]
    });
}

#[test]
fn f16_and_back() {
    let (patterns, numbers): (Vec<u32>, _) = ((0..=0xffff).collect(), hard_numbers());
    let wide = |&x: &u32| f16::from_bits(x as u16).to_f32().to_bits();
    probe("f16", Needs::Any, |device| {
        let widened = device.each((FILE, "f16_to_f32"), &patterns);
        let narrowed = device.each((FILE, "f16_from_f32"), &numbers);
        vec![
            Case::exact("to_f32", Format::F32, widened, patterns.iter().map(wide).collect()),
            Case::exact("from_f32", Format::F16, narrowed, each(&numbers, to_f16)),
        ]
    });
}

/// The identity must not change a bit.
#[test]
fn f32_is_unchanged() {
    let numbers = hard_numbers();
    probe("f32", Needs::Any, |device| {
        ["float_to_f32", "float_from_f32"]
            .map(|kernel| {
                Case::exact(kernel, Format::Bits, device.each((FILE, kernel), &numbers), numbers.clone())
            })
            .into()
    });
}

#[test]
fn pack2() {
    let numbers = hard_numbers();
    let pairs = |of: fn(f32) -> u32| -> Vec<u32> {
        let halves = each(&numbers, of);
        halves.iter().zip(halves.iter().rev()).map(|(lo, hi)| lo | hi << 16).collect()
    };
    probe("pack2", Needs::Any, |device| {
        vec![
            Case::exact("bf16", Format::Bf16, device.each((FILE, "bf16_pack2"), &numbers), pairs(to_bf16)),
            Case::exact("f16", Format::F16, device.each((FILE, "f16_pack2"), &numbers), pairs(to_f16)),
        ]
    });
}

/// The larger of two 16-bit numbers, which `widen` turns into f32.
fn larger(a: u16, b: u16, widen: fn(u16) -> f32) -> u32 {
    let (x, y) = (widen(a), widen(b));
    let found = match () {
        () if x.is_nan() && y.is_nan() => 0x7fff,
        () if y.is_nan() || x > y => a,
        () if x.is_nan() || x < y => b,
        // Equal: of two zeros the positive one.
        () => a & b,
    };
    u32::from(found)
}

/// Every pattern in the low half, against others.
#[test]
fn max2() {
    let words: Vec<u32> = (0..1 << 16).map(|low: u32| low | low.wrapping_mul(40_503) << 16).collect();
    let expected = |widen: fn(u16) -> f32| -> Vec<u32> {
        let of = |(&a, &b): (&u32, &u32)| {
            let half = |shift: u32| larger((a >> shift) as u16, (b >> shift) as u16, widen);
            half(0) | half(16) << 16
        };
        words.iter().zip(words.iter().rev()).map(of).collect()
    };
    probe("max2", Needs::Any, |device| {
        let (of_bf16, of_f16) =
            (expected(|x| bf16::from_bits(x).to_f32()), expected(|x| f16::from_bits(x).to_f32()));
        vec![
            Case::exact("bf16", Format::Bits, device.each((FILE, "bf16_max2"), &words), of_bf16),
            Case::exact("f16", Format::Bits, device.each((FILE, "f16_max2"), &words), of_f16),
        ]
    });
}

/// Rounds to 10 fraction bits, ties away from zero. It computes in f64, which has all numbers and
/// steps that occur. PTX leaves NaNs open; Hopper drops their low bits, so some become infinity.
fn to_tf32(v: f32) -> u32 {
    if !v.is_finite() {
        return v.to_bits() & !0x1fff;
    }
    let exponent = (v.to_bits() >> 23 & 0xff).max(1) as i32 - 127;
    let step = 2f64.powi(exponent - 10);
    let rounded = (f64::from(v) / step).round() * step;
    (rounded as f32).to_bits()
}

#[test]
fn tf32() {
    let numbers = hard_numbers();
    probe("tf32", Needs::Any, |device| {
        let found = device.each((FILE, "tf32_of"), &numbers);
        vec![Case::exact("rounded", Format::F32, found, each(&numbers, to_tf32))]
    });
}

/// Numbers from `low` to `high`, evenly spaced, and some random ones.
fn sweep(low: f64, high: f64, count: usize) -> Vec<u32> {
    let even = (0..=count).map(|i| (low + (high - low) * i as f64 / count as f64) as f32);
    let random = random_words(2, count / 4).into_iter().map(|word| {
        let share = f64::from(word) / 2f64.powi(32);
        (low + (high - low) * share) as f32
    });
    even.chain(random).map(f32::to_bits).collect()
}

/// Both zeros, subnormal numbers, infinities and NaNs, as words.
const SPECIAL: [u32; 12] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x7f_ffff,
    0x807f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7f80_0001,
    0x7fff_ffff,
];

/// ex2.approx.ftz.f32: a relative error of 2^-22 at most, and zero below the smallest normal
/// number. By the table of special values it is 1 for zeros and subnormal numbers.
#[test]
fn exp2() {
    const ERROR: f64 = 1.0 / (1u32 << 22) as f64;
    let smallest = f64::from(f32::MIN_POSITIVE);
    let near = |x: f32| {
        let power = f64::from(x).exp2();
        match power {
            // A result that the error makes smaller than that is flushed.
            p if p < smallest * (1.0 - ERROR) => (0.0, 0.0),
            p if p < smallest * (1.0 + ERROR) => (smallest / 2.0, smallest * (0.5 + ERROR)),
            p => (p, p * ERROR),
        }
    };
    let mut inputs = sweep(-160.0, 127.99, 16384);
    inputs.extend(sweep(-2.0, 2.0, 4096));
    inputs.extend([f32::MIN, -126.0, -126.00001, -127.0, -149.0].map(f32::to_bits));
    let expected = inputs.iter().map(|&x| near(f32::from_bits(x))).collect::<Vec<_>>();
    let special = each(&SPECIAL, |x| match x {
        x if x.is_nan() || x == f32::INFINITY => x.to_bits(),
        x if x == f32::NEG_INFINITY => 0,
        _ => 1f32.to_bits(),
    });
    let overflows = [128f32, 128.5, 1e30, f32::MAX].map(f32::to_bits);
    probe("exp2", Needs::Any, |device| {
        let mut run = |inputs: &[u32]| device.each((FILE, "exp2_of"), inputs);
        vec![
            Case::near("sweep", run(&inputs), expected.clone()),
            Case::exact("special", Format::F32, run(&SPECIAL), special.clone()),
            Case::exact("overflow", Format::F32, run(&overflows), vec![f32::INFINITY.to_bits(); 4]),
        ]
    });
}

/// tanh.approx.f32: a relative error of 2^-11 at most; zeros and subnormal numbers are unchanged.
/// Far from zero the result is exactly 1: there the derivative of GELU multiplies 1 - tanh^2 by a
/// large number.
#[test]
fn tanh() {
    const ERROR: f64 = 1.0 / (1u32 << 11) as f64;
    let mut inputs = sweep(-12.0, 12.0, 16384);
    inputs.extend((-125..8).flat_map(|e| [1.0, -1.3].map(|m| (m * 2f32.powi(e)).to_bits())));
    let near = |x: f32| {
        let y = f64::from(x).tanh();
        (y, y.abs() * ERROR)
    };
    let expected = inputs.iter().map(|&x| near(f32::from_bits(x))).collect::<Vec<_>>();
    let special = each(&SPECIAL, |x| if x.is_infinite() { x.signum().to_bits() } else { x.to_bits() });
    let far = [16.0, -16.0, 43.0, -1e4, 1e4, f32::MAX, f32::MIN].map(f32::to_bits);
    let saturated = each(&far, |x| x.signum().to_bits());
    probe("tanh", Needs::Any, |device| {
        let mut run = |inputs: &[u32]| device.each((FILE, "tanh_of"), inputs);
        vec![
            Case::near("sweep", run(&inputs), expected.clone()),
            Case::exact("special", Format::F32, run(&SPECIAL), special.clone()),
            Case::exact("far from zero", Format::F32, run(&far), saturated.clone()),
        ]
    });
}

/// Exact twins would let tolerances pass that hardware does not meet.
#[test]
fn the_twins_err_as_hardware_may() {
    let largest = |kernel, inputs: &[u32], of: fn(f64) -> f64, bound: f64| {
        for mut device in crate::device::under_test().into_iter().filter(|device| device.is_emulated()) {
            let found = device.each((FILE, kernel), inputs);
            let share = |(&x, y): (&u32, &u32)| {
                let right = of(f64::from(f32::from_bits(x)));
                (f64::from(f32::from_bits(*y)) / right - 1.0).abs() / bound
            };
            let shares: Vec<f64> = inputs.iter().zip(&found).map(share).collect();
            let most = shares.iter().copied().fold(0.0, f64::max);
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            assert!((0.7..=1.0).contains(&most), "{kernel}: {most}");
            assert!((0.2..0.6).contains(&mean), "{kernel}: {mean}");
        }
    };
    largest("tanh_of", &sweep(0.001, 4.0, 4096), f64::tanh, 2f64.powi(-11));
    // One unit in the last place is the whole tolerance near 1, and half of it near 2.
    largest("exp2_of", &sweep(-100.0, 100.0, 4096), f64::exp2, 2f64.powi(-22));
}

/// Numbers of every exponent of f32, and numbers with an exact root or reciprocal.
fn all_magnitudes() -> Vec<u32> {
    let mut words: Vec<u32> =
        hard_numbers().into_iter().step_by(7).filter(|x| f32::from_bits(*x).is_normal()).collect();
    words.extend([1.0, 2.0, 4.0, 9.0, 0.25, 1.5, 1e-8].map(f32::to_bits));
    words
}

/// sqrt.approx.ftz.f32 and rcp.approx.ftz.f32: a relative error of 2^-23 at most; subnormal numbers
/// count as zero.
#[test]
fn roots_and_reciprocals() {
    const ERROR: f64 = 1.0 / (1u32 << 23) as f64;
    let inputs = all_magnitudes();
    let positive: Vec<u32> = inputs.iter().map(|word| word & 0x7fff_ffff).collect();
    let near = |words: &[u32], of: fn(f64) -> f64| -> Vec<(f64, f64)> {
        let exact = words.iter().map(|&word| of(f64::from(f32::from_bits(word))));
        let smallest = f64::from(f32::MIN_POSITIVE);
        // A result that the error may make subnormal is flushed.
        let flushed = |y: f64| {
            if y.abs() < smallest * (1.0 + ERROR) {
                (0.0, smallest * (1.0 + ERROR))
            } else {
                (y, y.abs() * ERROR)
            }
        };
        exact.map(flushed).collect()
    };
    let roots = near(&positive, f64::sqrt);
    let reciprocals = near(&inputs, |x| 1.0 / x);
    let nan = f32::NAN.to_bits();
    let root = |x: f32| match x {
        x if x == f32::INFINITY => x.to_bits(),
        x if x.is_nan() || x == f32::NEG_INFINITY => nan,
        x => 0f32.copysign(x).to_bits(),
    };
    let reciprocal = |x: f32| match x {
        x if x.is_nan() => nan,
        x if x.is_infinite() => 0f32.copysign(x).to_bits(),
        x => f32::INFINITY.copysign(x).to_bits(),
    };
    probe("roots", Needs::Any, |device| {
        let mut run = |kernel: &'static str, inputs: &[u32]| device.each((FILE, kernel), inputs);
        vec![
            Case::near("sqrt", run("sqrt_of", &positive), roots.clone()),
            Case::exact("sqrt, special", Format::F32, run("sqrt_of", &SPECIAL), each(&SPECIAL, root)),
            Case::near("reciprocal", run("reciprocal_of", &inputs), reciprocals.clone()),
            Case::exact(
                "reciprocal, special",
                Format::F32,
                run("reciprocal_of", &SPECIAL),
                each(&SPECIAL, reciprocal),
            ),
        ]
    });
}
