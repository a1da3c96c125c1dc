//! Formats numbers like C's `printf`, for scripts that read llm.c's output.

/// Formats like `%.{precision}f`.
pub fn fixed(x: f64, precision: usize) -> String {
    non_finite(x).unwrap_or_else(|| format!("{x:.precision$}"))
}

/// Formats like `%+.{precision}f`.
pub fn signed(x: f64, precision: usize) -> String {
    let text = fixed(x, precision);
    if text.starts_with('-') { text } else { format!("+{text}") }
}

/// Formats like `%.{precision}e`: unlike in Rust, the exponent has a sign and at least two digits.
pub fn scientific(x: f64, precision: usize) -> String {
    non_finite(x).unwrap_or_else(|| {
        let text = format!("{x:.precision$e}");
        let (mantissa, exponent) = text.split_once('e').expect("`{:e}` writes an exponent");
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        format!("{mantissa}e{sign}{digits:0>2}")
    })
}

fn non_finite(x: f64) -> Option<String> {
    let name = match x {
        _ if x.is_nan() => "nan",
        _ if x.is_infinite() => "inf",
        _ => return None,
    };
    Some(format!("{}{name}", if x.is_sign_negative() { "-" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row was printed by glibc 2.36 with `%7.6f %+.2f %6.4f %.2e %.2f %.1f %.0f %e`.
    #[test]
    fn numbers_look_as_in_c() {
        let table: [(f64, &str); 18] = [
            (f64::NAN.copysign(1.0), "    nan|+nan|   nan|nan|nan|nan|nan|nan"),
            (f64::NAN.copysign(-1.0), "   -nan|-nan|  -nan|-nan|-nan|-nan|-nan|-nan"),
            (f64::INFINITY, "    inf|+inf|   inf|inf|inf|inf|inf|inf"),
            (f64::NEG_INFINITY, "   -inf|-inf|  -inf|-inf|-inf|-inf|-inf|-inf"),
            (0.0, "0.000000|+0.00|0.0000|0.00e+00|0.00|0.0|0|0.000000e+00"),
            (-0.0, "-0.000000|-0.00|-0.0000|-0.00e+00|-0.00|-0.0|-0|-0.000000e+00"),
            (1e-10, "0.000000|+0.00|0.0000|1.00e-10|0.00|0.0|0|1.000000e-10"),
            (3e-4, "0.000300|+0.00|0.0003|3.00e-04|0.00|0.0|0|3.000000e-04"),
            (
                123456.0,
                "123456.000000|+123456.00|123456.0000|1.23e+05|123456.00|123456.0|123456|1.234560e+05",
            ),
            (0.5, "0.500000|+0.50|0.5000|5.00e-01|0.50|0.5|0|5.000000e-01"),
            (1.5, "1.500000|+1.50|1.5000|1.50e+00|1.50|1.5|2|1.500000e+00"),
            (2.5, "2.500000|+2.50|2.5000|2.50e+00|2.50|2.5|2|2.500000e+00"),
            (
                999999.5,
                "999999.500000|+999999.50|999999.5000|1.00e+06|999999.50|999999.5|1000000|9.999995e+05",
            ),
            (9.995, "9.995000|+9.99|9.9950|9.99e+00|9.99|10.0|10|9.995000e+00"),
            (-1.25, "-1.250000|-1.25|-1.2500|-1.25e+00|-1.25|-1.2|-1|-1.250000e+00"),
            (0.000125, "0.000125|+0.00|0.0001|1.25e-04|0.00|0.0|0|1.250000e-04"),
            (5e-324, "0.000000|+0.00|0.0000|4.94e-324|0.00|0.0|0|4.940656e-324"),
            (
                9.9999e9,
                "9999900000.000000|+9999900000.00|9999900000.0000|1.00e+10|9999900000.00|9999900000.0|9999900000|\
                 9.999900e+09",
            ),
        ];
        for (x, expected) in table {
            let got = [
                format!("{:>7}", fixed(x, 6)),
                signed(x, 2),
                format!("{:>6}", fixed(x, 4)),
                scientific(x, 2),
                fixed(x, 2),
                fixed(x, 1),
                fixed(x, 0),
                scientific(x, 6),
            ];
            assert_eq!(got.join("|"), expected, "{x:?}");
        }
        assert_eq!(scientific(f64::MAX, 2), "1.80e+308");
    }
}
