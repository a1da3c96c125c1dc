//! A kernel's parts as a printed table.

use super::machine::Pipe;
use super::parts::Kernel;
use std::fmt::{self, Display, Formatter};

impl Display for Kernel {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Kernel { name, blocks, threads, parts } = self;
        writeln!(f, "{name}: {threads} threads, {blocks} block(s) per SM")?;
        for part in parts {
            let (from, to) = part.addresses;
            let (place, role, warps) = (&part.place, part.role, part.warps);
            let indent = "  ".repeat(place.depth());
            writeln!(f, "\n{indent}{place} ({from:#06x} to {to:#06x}), {warps} warp(s) per scheduler{role}")?;
            write!(f, "  {:>7} {:>8} {:>7} {:>8} {:>7}", "issue", "latency", "clocks", "binds", "instr.")?;
            Pipe::ALL.iter().try_for_each(|pipe| write!(f, " {:>7}", pipe.name()))?;
            writeln!(f, "  mode")?;
            for v in &part.variants {
                let (issue, latency, clocks) = (v.issue, v.latency, v.clocks);
                let bound = v.bound.name();
                write!(f, "  {issue:>7.0} {latency:>8.0} {clocks:>7.0} {bound:>8} {:>7}", v.counts.all)?;
                v.counts.pipes.iter().try_for_each(|n| write!(f, " {n:>7}"))?;
                let c = &v.counts;
                writeln!(
                    f,
                    "  {} (LDG {} STG {} TANH {} F2F {})",
                    v.mode, c.loads, c.stores, c.tanh, c.conversions
                )?;
            }
        }
        Ok(())
    }
}
