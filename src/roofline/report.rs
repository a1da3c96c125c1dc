//! The budget of a step: kernels, their times, sums, and the printed table.

use super::calls::step;
use super::gpu::Gpu;
use super::kernels::{Class, Kernel, StepShape};
use super::predict::{Prediction, STEP_GAP_US, predict};
use super::record::Records;
use crate::config::ModelConfig;
use crate::gpus::flops_per_token;
use crate::params::ParamLayout;
use std::fmt::{self, Display, Formatter};

/// A kernel with its times.
#[derive(Clone, Debug)]
pub struct Row {
    pub kernel: Kernel,
    pub prediction: Prediction,
    /// Whether the emulated device has counts for the kernel.
    pub counted: bool,
    /// Measured time per call, if there is a record.
    pub measured_us: Option<f64>,
}

impl Row {
    fn floor_ms(&self) -> f64 {
        self.prediction.floor_us * self.kernel.calls as f64 / 1e3
    }

    fn realistic_ms(&self) -> f64 {
        self.prediction.realistic_us * self.kernel.calls as f64 / 1e3
    }
}

/// Milliseconds of a step, or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Milliseconds {
    pub floor: f64,
    pub realistic: f64,
}

/// A step of a model on a GPU.
#[derive(Clone, Debug)]
pub struct Budget {
    pub config: ModelConfig,
    pub step: StepShape,
    pub gpu: Gpu,
    pub rows: Vec<Row>,
}

impl Budget {
    /// Predicts a step and attaches the measured times.
    pub fn new(config: &ModelConfig, shape: &StepShape, gpu: &Gpu, records: &Records) -> Self {
        let row = |kernel: Kernel| {
            let limits = |tiles| records.counted.limits(&kernel, tiles, gpu);
            let prediction = predict(&kernel, gpu, limits);
            Row {
                prediction,
                counted: limits(prediction.tiles).is_some(),
                measured_us: records.us(kernel.name, &kernel.shape),
                kernel,
            }
        };
        let rows = step(config, shape).into_iter().map(row).collect();
        Budget { config: *config, step: *shape, gpu: *gpu, rows }
    }

    pub fn class_ms(&self, class: Class) -> Milliseconds {
        self.sum_ms(|row| row.kernel.class == class)
    }

    fn sum_ms(&self, chosen: impl Fn(&Row) -> bool) -> Milliseconds {
        self.rows.iter().filter(|row| chosen(row)).fold(Milliseconds::default(), |sum, row| Milliseconds {
            floor: sum.floor + row.floor_ms(),
            realistic: sum.realistic + row.realistic_ms(),
        })
    }

    /// Milliseconds that a call takes, with the gaps at its launches: measured where there is a
    /// record, realistic elsewhere. A kernel that this step has at another length takes its share
    /// of the bytes.
    pub fn call_ms(&self, kernel: &Kernel) -> f64 {
        let named = |row: &&Row| row.kernel.name == kernel.name;
        let exact = self.rows.iter().find(|row| named(row) && row.kernel.shape == kernel.shape);
        let us = |row: &Row| row.measured_us.unwrap_or(row.prediction.realistic_us);
        let us = match (exact, self.rows.iter().find(named)) {
            (Some(row), _) => us(row),
            (None, Some(row)) => us(row) * kernel.bytes / row.kernel.bytes,
            (None, None) => predict(kernel, &self.gpu, |_| None).realistic_us,
        };
        (us + kernel.launches as f64 * STEP_GAP_US) / 1e3
    }

    pub fn launches(&self) -> usize {
        self.rows.iter().map(|row| row.kernel.calls * row.kernel.launches).sum()
    }

    /// Time between kernels.
    pub fn gaps_ms(&self) -> Milliseconds {
        Milliseconds { floor: 0.0, realistic: self.launches() as f64 * STEP_GAP_US / 1e3 }
    }

    pub fn total_ms(&self) -> Milliseconds {
        let (kernels, gaps) = (self.sum_ms(|_| true), self.gaps_ms());
        Milliseconds { floor: kernels.floor + gaps.floor, realistic: kernels.realistic + gaps.realistic }
    }

    pub fn tokens_per_s(&self, step_ms: f64) -> f64 {
        self.step.tokens() as f64 / step_ms * 1e3
    }

    /// Share of the data sheet's peak, of 1.
    pub fn mfu(&self, step_ms: f64) -> f64 {
        let c = &self.config;
        flops_per_token(ParamLayout::new(c).len(), c.L, c.C, self.step.T) * self.tokens_per_s(step_ms)
            / (self.gpu.peak_tflops() * 1e12)
    }
}

impl Display for Budget {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_heading(f)?;
        self.write_kernels(f)?;
        self.write_classes(f)
    }
}

impl Budget {
    fn write_heading(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (c, r, g) = (&self.config, &self.step, &self.gpu);
        let parameters = grouped(ParamLayout::new(c).len());
        writeln!(f, "L {}, NH {}, C {}, Vp {}: {parameters} parameters", c.L, c.NH, c.C, c.Vp)?;
        let tokens = grouped(r.tokens());
        writeln!(
            f,
            "B {}, T {}, {} micro-step(s): {tokens} tokens a step; recompute {}; {} rows of logits at a time",
            r.B,
            r.T,
            r.micro_steps,
            r.recompute as usize,
            r.logits_chunk()
        )?;
        writeln!(
            f,
            "{}: {:.0} of {} TFLOP/s bf16, {:.2} of {} TB/s, {} SMs\n",
            g.full_name,
            g.matmul_ceiling() / 1e12,
            g.peak_tflops(),
            g.copy_ceiling() / 1e12,
            g.peak_tbs,
            g.SMs
        )
    }

    fn write_kernels(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let recorded = self.rows.iter().any(|row| row.measured_us.is_some());
        let counted = self.rows.iter().any(|row| row.counted);
        write!(
            f,
            "{:18} {:>18} {:>5} {:>9} {:>8} {:>7} {:>7} {:>7} {:>9} {:>9}",
            "kernel", "shape", "calls", "GFLOP", "MB", "tile", "tiles", "waves", "floor us", "real us"
        )?;
        if counted {
            write!(f, " {:>9} {:>9} {:>6} {:>11}", "L2 us", "shared us", "binds", "bytes ratio")?;
        }
        if recorded {
            write!(f, " {:>9} {:>7} {:>6}", "measured", "/ floor", "/ real")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write_row(f, row)?;
            if counted {
                write_limits(f, row)?;
            }
            if recorded {
                write_measured(f, row)?;
            }
            writeln!(f)?;
        }
        writeln!(f)?;
        if recorded { self.write_coverage(f) } else { Ok(()) }
    }

    /// Writes the sum over the measured kernels next to their prediction.
    fn write_coverage(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let measured: f64 =
            self.rows.iter().filter_map(|r| Some(r.measured_us? * r.kernel.calls as f64)).sum();
        let predicted = self.sum_ms(|row| row.measured_us.is_some());
        writeln!(
            f,
            "measured kernels: {:.1} ms a step, predicted {:.1} (floor {:.1}): {:.2} of the prediction\n",
            measured / 1e3,
            predicted.realistic,
            predicted.floor,
            measured / 1e3 / predicted.realistic
        )
    }

    fn write_classes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let total = self.total_ms();
        writeln!(f, "{:34} {:>9} {:>6} {:>13} {:>6}", "ms a step", "floor", "%", "realistic", "%")?;
        let line = |f: &mut Formatter<'_>, title: &str, ms: Milliseconds| {
            let share = |part: f64, whole: f64| 100.0 * part / whole;
            let (floor, realistic) = (share(ms.floor, total.floor), share(ms.realistic, total.realistic));
            writeln!(f, "{title:34} {:>9.2} {floor:>6.1} {:>13.2} {realistic:>6.1}", ms.floor, ms.realistic)
        };
        for class in Class::ALL {
            let ms = self.class_ms(class);
            if ms.realistic > 0.0 {
                line(f, class.title(), ms)?;
            }
        }
        line(f, &format!("gaps of {} launches", grouped(self.launches())), self.gaps_ms())?;
        line(f, "total", total)?;
        let rate = |ms| grouped(self.tokens_per_s(ms).round() as usize);
        writeln!(f, "{:34} {:>9} {:>20}", "tokens a second", rate(total.floor), rate(total.realistic))?;
        let mfu = |ms| 100.0 * self.mfu(ms);
        writeln!(f, "{:34} {:>9.1} {:>20.1}", "MFU, %", mfu(total.floor), mfu(total.realistic))
    }
}

/// Writes all columns except those of the record, without a newline.
fn write_row(f: &mut Formatter<'_>, row: &Row) -> fmt::Result {
    let (k, p) = (&row.kernel, &row.prediction);
    let (tile, count, waves) = match p.tiles {
        Some(t) => (format!("{}x{}", t.size.0, t.size.1), t.count.to_string(), format!("{:.1}", t.waves)),
        None => Default::default(),
    };
    let flops = if k.flops > 0.0 { format!("{:.2}", k.flops / 1e9) } else { String::new() };
    write!(
        f,
        "{:18} {:>18} {:>5} {flops:>9} {:>8.1} {tile:>7} {count:>7} {waves:>7} {:>9.1} {:>9.1}",
        k.name,
        k.shape,
        k.calls,
        k.bytes / 1e6,
        p.floor_us,
        p.realistic_us
    )
}

/// Writes the times derived from counts, the resource that binds, and the ratio of bytes touched to
/// bytes that must be.
fn write_limits(f: &mut Formatter<'_>, row: &Row) -> fmt::Result {
    let p = &row.prediction;
    let us = |us: Option<f64>| us.map_or("-".to_owned(), |us| format!("{us:.1}"));
    let ratio = if row.counted { format!("{:.2}", p.limits.bytes_ratio) } else { "-".to_owned() };
    let (l2, shared) = (us(p.limits.l2_us), us(p.limits.shared_us));
    write!(f, " {l2:>9} {shared:>9} {:>6} {ratio:>11}", p.bound().name())
}

/// Writes the measured time and its ratio to the predicted ones.
fn write_measured(f: &mut Formatter<'_>, row: &Row) -> fmt::Result {
    let p = &row.prediction;
    match row.measured_us {
        Some(us) => write!(f, " {us:>9.1} {:>7.2} {:>6.2}", us / p.floor_us, us / p.realistic_us),
        None => write!(f, " {:>9} {:>7} {:>6}", "-", "-", "-"),
    }
}

/// Formats 1234567 as 1,234,567.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
