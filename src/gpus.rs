//! Peaks of GPUs, and the FLOPs that model FLOPs utilization (MFU) counts: the fraction of the peak
//! that goes into the model.

/// Returns the FLOPs per token, forward and backward: 6 per parameter, including padding and
/// embeddings, and 6 L C T for the causal half of attention. This is llm.c's formula since June
/// 2024.
pub fn flops_per_token(num_parameters: usize, L: usize, C: usize, T: usize) -> f64 {
    6.0 * num_parameters as f64 + 6.0 * L as f64 * C as f64 * T as f64
}

/// Peak dense throughput of a GPU in TFLOP/s, with sums in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Adjacent words of its name. If several rows match, the one with the most words counts.
    gpu: &'static str,
    /// bf16 and fp16, which are equally fast on all of these.
    bf16: f64,
    tf32: f64,
    /// f32 without tensor cores.
    f32: f64,
}

const fn peak(gpu: &'static str, bf16: f64, tf32: f64, f32: f64) -> Peak {
    Peak { gpu, bf16, tf32, f32 }
}

/// Peaks from NVIDIA's data sheets and architecture papers, at boost clocks; half of those quoted
/// "with sparsity". GeForce cards accumulate in f32 at half speed. Kernels need compute capability
/// 8.0, so the table has no older GPUs.
const PEAKS: [Peak; 46] = [
    peak("H100", 989.4, 494.7, 66.9),
    peak("H100 PCIe", 756.0, 378.0, 51.2),
    peak("H100 NVL", 835.5, 417.5, 60.0),
    peak("H800", 989.4, 494.7, 66.9),
    peak("H800 PCIe", 756.0, 378.0, 51.2),
    peak("H200", 989.4, 494.7, 66.9),
    peak("H200 NVL", 835.5, 417.5, 60.0),
    peak("H20", 148.0, 74.0, 44.0),
    peak("GH200", 989.4, 494.7, 66.9),
    peak("B200", 2250.0, 1125.0, 75.0),
    peak("GB200", 2500.0, 1250.0, 80.0),
    peak("B300", 2250.0, 1125.0, 75.0),
    peak("GB300", 2500.0, 1250.0, 80.0),
    peak("A100", 312.0, 156.0, 19.5),
    peak("A100 PCIe", 312.0, 156.0, 19.5),
    peak("A800", 312.0, 156.0, 19.5),
    peak("A30", 165.0, 82.0, 10.3),
    peak("A40", 149.7, 74.8, 37.4),
    peak("A10", 125.0, 62.5, 31.2),
    peak("A10G", 70.0, 35.0, 31.5),
    peak("L4", 121.0, 60.0, 30.3),
    peak("L40", 181.0, 90.5, 90.5),
    peak("L40S", 362.0, 183.0, 91.6),
    peak("RTX A4000", 76.7, 38.3, 19.2),
    peak("RTX A5000", 111.1, 55.5, 27.8),
    peak("RTX A6000", 154.8, 77.4, 38.7),
    peak("RTX 6000 Ada", 364.2, 182.1, 91.1),
    peak("RTX PRO 6000 Blackwell Workstation", 503.8, 251.9, 126.0),
    peak("RTX PRO 6000 Blackwell Server", 480.0, 240.0, 120.0),
    peak("RTX 3070", 40.6, 20.3, 20.3),
    peak("RTX 3080", 59.5, 29.8, 29.8),
    peak("RTX 3080 Ti", 68.2, 34.1, 34.1),
    peak("RTX 3090", 71.2, 35.6, 35.6),
    peak("RTX 3090 Ti", 80.0, 40.0, 40.0),
    peak("RTX 4070", 58.3, 29.1, 29.1),
    peak("RTX 4070 SUPER", 71.0, 35.5, 35.5),
    peak("RTX 4070 Ti", 80.2, 40.1, 40.1),
    peak("RTX 4070 Ti SUPER", 88.2, 44.1, 44.1),
    peak("RTX 4080", 97.5, 48.7, 48.7),
    peak("RTX 4080 SUPER", 104.4, 52.2, 52.2),
    peak("RTX 4090", 165.2, 82.6, 82.6),
    peak("RTX 4090 D", 147.1, 73.5, 73.5),
    peak("RTX 5070", 61.7, 30.9, 30.9),
    peak("RTX 5070 Ti", 87.9, 43.9, 43.9),
    peak("RTX 5080", 112.6, 56.3, 56.3),
    peak("RTX 5090", 209.5, 104.8, 104.8),
];

impl Peak {
    /// Finds the peak of a GPU by the name that its driver reports. `None` for a GPU that is not in
    /// the table: no utilization is better than a wrong one.
    pub fn of_device(name: &str) -> Option<&'static Peak> {
        let words: Vec<&str> = name.split([' ', '-']).collect();
        let row = PEAKS.iter().filter(|row| row.fits(&words)).max_by_key(|row| row.gpu.split(' ').count())?;
        // These share the name of the desktop card, but have other clocks or another chip.
        let is_other = |word: &&str| matches!(*word, "Laptop" | "Max" | "D") && !row.gpu.ends_with(word);
        (!words.iter().any(is_other)).then_some(row)
    }

    fn fits(&self, words: &[&str]) -> bool {
        let wanted: Vec<&str> = self.gpu.split(' ').collect();
        let same = |(a, b): (&&str, &&str)| a.eq_ignore_ascii_case(b);
        words.windows(wanted.len()).any(|window| window.iter().zip(&wanted).all(same))
            || matches_apart(words, &wanted)
    }

    /// TFLOP/s of dense matmuls of `operands`: `bf16`, `fp16`, `tf32`, `f32`.
    pub fn tflops(&self, operands: &str) -> f64 {
        match operands {
            "bf16" | "fp16" => self.bf16,
            "tf32" => self.tf32,
            _ => self.f32,
        }
    }
}

/// Whether the form factor follows the chip with words in between, as in `H800 80GB PCIe`.
fn matches_apart(words: &[&str], wanted: &[&str]) -> bool {
    let [chip, form @ ("PCIe" | "NVL")] = wanted else { return false };
    let has = |wanted: &str| words.iter().any(|word| word.eq_ignore_ascii_case(wanted));
    has(chip) && has(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 803.5 MFLOP per token, and a published rate of 498,141 tokens/s on one H200: 40.5 %.
    #[test]
    fn gpt2_124m_on_an_h200() {
        let flops = flops_per_token(124_475_904, 12, 768, 1024);
        assert_eq!(flops, 803_478_528.0);
        let share = flops * 498_141.0 / (Peak::of_device("NVIDIA H200").unwrap().tflops("bf16") * 1e12);
        assert!((share - 0.405).abs() < 0.0005, "{share}");
    }

    #[test]
    fn gpus_are_known_by_the_names_that_the_driver_gives_them() {
        let cases = [
            ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
            ("NVIDIA H100 PCIe", "fp16", 756.0),
            ("NVIDIA H100 NVL", "bf16", 835.5),
            ("NVIDIA H800 80GB PCIe", "bf16", 756.0),
            ("NVIDIA H20", "bf16", 148.0),
            ("NVIDIA GH200 480GB", "bf16", 989.4),
            ("NVIDIA B200", "bf16", 2250.0),
            ("NVIDIA B300 SXM6 AC", "tf32", 1125.0),
            ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
            ("NVIDIA A100 80GB PCIe", "bf16", 312.0),
            ("NVIDIA A100-PCIE-40GB", "f32", 19.5),
            ("NVIDIA A800-SXM4-80GB", "bf16", 312.0),
            ("NVIDIA A10", "bf16", 125.0),
            ("NVIDIA A10G", "bf16", 70.0),
            ("NVIDIA L40S", "bf16", 362.0),
            ("NVIDIA L4", "bf16", 121.0),
            ("NVIDIA GeForce RTX 3090", "bf16", 71.2),
            ("NVIDIA GeForce RTX 4070 Ti SUPER", "bf16", 88.2),
            ("NVIDIA GeForce RTX 4090", "f32", 82.6),
            ("NVIDIA GeForce RTX 4090 D", "bf16", 147.1),
            ("NVIDIA GeForce RTX 5090", "bf16", 209.5),
            ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2),
            ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "bf16", 503.8),
        ];
        for (name, operands, tera) in cases {
            assert_eq!(
                Peak::of_device(name).map(|peak| peak.tflops(operands)),
                Some(tera),
                "{name} {operands}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let unknown = [
            "NVIDIA H2000",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 5090 D",
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            "NVIDIA GeForce RTX 6090",
            "emulated device",
            "",
        ];
        for name in unknown {
            assert_eq!(Peak::of_device(name), None, "{name}");
        }
    }

    #[test]
    fn no_row_is_there_twice_and_narrow_operands_are_the_faster_ones() {
        for (i, row) in PEAKS.iter().enumerate() {
            assert!(PEAKS[..i].iter().all(|other| other.gpu != row.gpu), "{}", row.gpu);
            assert!(row.bf16 > row.tf32 && row.tf32 >= row.f32, "{}", row.gpu);
        }
    }
}
