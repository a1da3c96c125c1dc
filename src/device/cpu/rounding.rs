//! Stochastic rounding to bf16, with the random bits of the CUDA kernels (`RandomBits` in
//! `kernels/common.cuh`, the seeds in `kernels/quads.cuh`).

use half::bf16;

/// Changes the seed of an update's rounding for m, and for v.
pub const SEED_OF_M: u32 = 0x6d00_0000;
pub const SEED_OF_V: u32 = 0x7600_0000;

/// Rounds numbers of the state, the first of which has index `first` among all parameters.
pub fn round_at_random(narrow: &mut [bf16], wide: &[f32], seed: u32, first: u64) {
    for ((narrow, &wide), index) in narrow.iter_mut().zip(wide).zip(first..) {
        *narrow = round(wide, bits(seed, index));
    }
}

/// Rounds to one of the two neighbors in bf16, by 16 random bits: they are added below the last
/// place, which carries as often as the dropped bits say.
fn round(wide: f32, random: u32) -> bf16 {
    let bits = wide.to_bits();
    let sum = if wide.is_nan() { bits } else { bits.wrapping_add(random) };
    bf16::from_bits((sum >> 16) as u16)
}

/// 16 random bits for a number. Two neighbors share a hash.
fn bits(seed: u32, index: u64) -> u32 {
    let pair = index / 2;
    let key = mix(seed ^ ((pair >> 32) as u32).wrapping_mul(0x9e37_79b9));
    let both = mix(key ^ pair as u32);
    if index.is_multiple_of(2) { both & 0xffff } else { both >> 16 }
}

/// One round of MurmurHash3's finalizer.
fn mix(h: u32) -> u32 {
    let h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    let h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_exact_and_special_numbers_stay() {
        let place = 2f32.powi(-7);
        for part in [0.0, 0.25, 0.5, 0.9] {
            let wide = vec![1.0 + part * place; 1 << 16];
            let mut narrow = vec![bf16::ZERO; wide.len()];
            round_at_random(&mut narrow, &wide, 3, 1 << 33);
            assert!(narrow.iter().all(|x| [1.0, 1.0 + place].contains(&x.to_f32())));
            let up = narrow.iter().filter(|x| x.to_f32() > 1.0).count() as f32 / wide.len() as f32;
            // Four standard deviations of 65,536 draws.
            assert!((up - part).abs() <= 4.0 * 0.5 / 256.0, "{up} of {part}");
        }
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let mut narrow = [bf16::ONE; 5];
        round_at_random(&mut narrow, &special, 9, 5);
        for (narrow, wide) in narrow.iter().zip(special) {
            assert_eq!(narrow.to_f32().to_bits(), wide.to_bits());
        }
    }
}
