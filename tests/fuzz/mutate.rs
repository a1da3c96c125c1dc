//! Small damage to a file, as disks, editors and half-finished copies do it.

use crate::random::Random;

/// Numbers at which readers go wrong: the ends of integer types, and what overflows them.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967296",
    "9223372036854775807",
    "18446744073709551616",
    "1e308",
    "5e-324",
    "1e999",
];

/// Returns `seed` with one to four changes.
pub fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        change(&mut bytes, random);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + random.below(16)).min(bytes.len());
    let Some(&byte) = bytes.get(at) else {
        bytes.extend((0..random.below(64)).map(|_| random.below(256) as u8));
        return;
    };
    match random.below(11) {
        0 => bytes[at] = byte ^ (1 << random.below(8)),
        1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let again = bytes[at..end].to_vec();
            drop(bytes.splice(at..at, again));
        }
        5 => {
            let other = random.below(bytes.len());
            bytes.swap(at, other);
        }
        // A field of a header, which begins at a multiple of four.
        6 if at + 4 <= bytes.len() => {
            let field = [i32::MIN, -1, 0, 1, 0xffff, i32::MAX][random.below(6)];
            let at = at / 4 * 4;
            bytes[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        7 => number(bytes, at, random),
        8 => drop(bytes.splice(at..at, [[0xef, 0xbb, 0xbf], *b"\xff\xfe\x00", *b"\r\n\t"][random.below(3)])),
        9 => drop(bytes.splice(
            at..end,
            (0..random.below(16)).map(|_| b"{}[]\",:\\-.0eEntfu "[random.below(18)]).collect::<Vec<_>>(),
        )),
        _ => bytes[at] = random.below(256) as u8,
    }
}

/// Replaces the next number in a text.
fn number(bytes: &mut Vec<u8>, from: usize, random: &mut Random) {
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|i| from + i) else { return };
    let digits = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    bytes.splice(start..start + digits, NUMBERS[random.below(NUMBERS.len())].bytes());
}
