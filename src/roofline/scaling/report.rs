//! The printed form of a plan.

use super::links::Link;
use super::{Batch, Outcome, Plan, Row};
use crate::params::ParamLayout;
use crate::roofline::report::grouped;
use std::fmt::{self, Display, Formatter};

const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

impl Display for Plan<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_heading(f)?;
        writeln!(
            f,
            "{:>4} {:>5} {:>5} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>11} {:>6} {:>7} {:>6} {:>6} {:>7} {:>6} {:>7} {:>7} {:>4}",
            "ZeRO",
            "GPUs",
            "micro",
            "compute",
            "all-red",
            "red-scat",
            "all-gath",
            "exposed",
            "step ms",
            "tokens/s",
            "eff %",
            "params",
            "grads",
            "state",
            "buffers",
            "acts",
            "GiB",
            "saved",
            "fits"
        )?;
        for (i, row) in self.rows.iter().enumerate() {
            if i > 0 && self.rows[i - 1].stage != row.stage {
                writeln!(f)?;
            }
            write_row(f, row)?;
        }
        Ok(())
    }
}

impl Plan<'_> {
    fn write_heading(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let question = &self.question;
        let (c, r, cluster) = (&question.config, &question.step, &question.cluster);
        let parameters = grouped(ParamLayout::new(c).len());
        writeln!(f, "L {}, NH {}, C {}, Vp {}: {parameters} parameters", c.L, c.NH, c.C, c.Vp)?;
        let tokens = match question.batch {
            Batch::Total(tokens) => format!("{} tokens a step", grouped(tokens)),
            Batch::MicroBatchEach => "one micro-batch per GPU and step".to_owned(),
        };
        writeln!(
            f,
            "B {}, T {}: {tokens}; recompute {}; {} rows of logits at a time",
            r.B,
            r.T,
            r.recompute as usize,
            r.logits_chunk()
        )?;
        writeln!(
            f,
            "{}: {:.1} GiB, {:.1} GiB usable; {} GPUs per machine",
            question.gpu.full_name,
            self.question.gpu.memory_mib * MIB / GIB,
            self.question.gpu.usable_bytes() / GIB,
            cluster.per_node
        )?;
        write_link(f, "within a machine", &cluster.within)?;
        write_link(f, "between machines", &cluster.across)?;
        let (kernels, measured) = self.kernels;
        let times = match measured {
            0 => "Everything is predicted, nothing measured".to_owned(),
            _ => format!("{measured} of {kernels} kernels' times are measured, all others are predicted"),
        };
        writeln!(f, "{times}. Times are ms per step, memory is GiB per GPU\n")
    }
}

fn write_link(f: &mut Formatter<'_>, place: &str, link: &Link) -> fmt::Result {
    writeln!(
        f,
        "{place}: {}, {} of {} GB/s per GPU and direction, {} us per hop",
        link.full_name, link.bus_gbs, link.peak_gbs, link.hop_us
    )
}

fn write_row(f: &mut Formatter<'_>, row: &Row) -> fmt::Result {
    let (stage, m) = (row.stage as usize, &row.memory);
    write!(f, "{stage:>4} {:>5} ", row.gpus)?;
    match &row.outcome {
        Ok(outcome) => write_outcome(f, outcome)?,
        Err(why) => return writeln!(f, "      {why}"),
    }
    let [parameters, gradients, state, buffers, activations] =
        [m.parameters, m.gradients, m.state, m.buffers, m.activations].map(|bytes| bytes / GIB);
    writeln!(
        f,
        " {parameters:>7.2} {gradients:>6.2} {state:>6.2} {buffers:>7.2} {activations:>6.2} {:>7.2} {:>7.2} {:>4}",
        m.total() / GIB,
        row.saved / GIB,
        if row.fits { "yes" } else { "no" }
    )
}

fn write_outcome(f: &mut Formatter<'_>, outcome: &Outcome) -> fmt::Result {
    let t = &outcome.times;
    write!(
        f,
        "{:>5} {:>9.2} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>11} {:>6.1}",
        outcome.micro_steps,
        t.compute_ms,
        t.all_reduce_ms,
        t.reduce_scatter_ms,
        t.all_gather_ms,
        t.exposed_ms(),
        t.step_ms,
        grouped(outcome.tokens_per_s.round() as usize),
        100.0 * outcome.efficiency
    )
}
