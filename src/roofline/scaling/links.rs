//! Links between GPUs: data sheet values, and the share of them that is reachable.

use crate::roofline::gpu::Gpu;
use anyhow::{Result, anyhow};

/// A link from GPU to GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Value of `--links`.
    pub name: &'static str,
    pub full_name: &'static str,
    /// Whether it connects machines rather than GPUs within one. Then there is one adapter per GPU.
    pub across: bool,
    /// The data sheet's GB/s per GPU in one direction; 1e9 bytes.
    pub peak_gbs: f64,
    /// GB/s that rings reach: the bus bandwidth of NCCL's tests, for messages of many MB.
    pub bus_gbs: f64,
    /// Microseconds from one rank of a ring to the next.
    pub hop_us: f64,
}

/// Microseconds that starting and ending a collective takes: NCCL's own model of rings with its
/// simple protocol (NVIDIA/nccl, src/graph/tuning.cc at 01afd20), which also gives the hops of 3.4
/// (NVLink), 5.7 (PCIe) and 9.6 (network).
pub const BASE_US: f64 = 8.4;

/// All known links. "Estimate" marks values that were neither measured by us nor published.
pub const LINKS: [Link; 7] = [
    // NVIDIA A100 data sheet: 600 GB/s in both directions. NCCL's model gives rings 235 there (same
    // file).
    within("nvlink3", "NVLink 3", 300.0, 235.0, 3.4),
    // NVIDIA H100 data sheet: 900 GB/s in both directions. NVIDIA/nccl-tests, issue 212: 370
    // without NVLink SHARP.
    within("nvlink4", "NVLink 4", 450.0, 370.0, 3.4),
    // NVIDIA Blackwell data sheet: 1.8 TB/s in both directions. Estimate: the same share as NVLink
    // 4.
    within("nvlink5", "NVLink 5", 900.0, 740.0, 3.4),
    // 16 lanes of 16 GT/s. Estimate: the same share as PCIe 5.
    within("pcie4", "PCIe 4.0 x16", 31.5, 14.0, 5.7),
    // 16 lanes of 32 GT/s. NVIDIA/nccl, issue 1639: 28 with eight 5090s, whose traffic goes through
    // host memory.
    within("pcie5", "PCIe 5.0 x16", 63.0, 28.0, 5.7),
    // 200 Gb/s. Estimate: the same share as NDR.
    across("hdr", "InfiniBand HDR", 25.0, 23.5, 9.6),
    // 400 Gb/s. NVIDIA/nccl-tests, issue 290: 46 to 48 per adapter.
    across("ndr", "InfiniBand NDR", 50.0, 47.0, 9.6),
];

const fn within(
    name: &'static str,
    full_name: &'static str,
    peak_gbs: f64,
    bus_gbs: f64,
    hop_us: f64,
) -> Link {
    Link { name, full_name, across: false, peak_gbs, bus_gbs, hop_us }
}

const fn across(
    name: &'static str,
    full_name: &'static str,
    peak_gbs: f64,
    bus_gbs: f64,
    hop_us: f64,
) -> Link {
    Link { across: true, ..within(name, full_name, peak_gbs, bus_gbs, hop_us) }
}

impl Link {
    /// Finds a link by its short name.
    ///
    /// # Errors
    /// If it is not in the table; the message lists those that are.
    pub fn named(name: &str) -> Result<&'static Link> {
        LINKS.iter().find(|link| link.name == name).ok_or_else(|| {
            let known = LINKS.map(|link| link.name).join(", ");
            anyhow!("expected one of {known}, found {name}")
        })
    }
}

/// Returns the usual links of a GPU, each replaced by the requested one of its kind, if any.
///
/// # Errors
/// If the GPU does not have such a link, or a kind was requested twice.
pub fn links(gpu: &Gpu, asked: &[&'static Link]) -> Result<[Link; 2]> {
    let usual = gpu.links.map(|name| *Link::named(name).expect("a link of the table"));
    let mut links = usual;
    for (i, link) in asked.iter().enumerate() {
        let place = usize::from(link.across);
        if asked[..i].iter().any(|earlier| earlier.across == link.across) {
            let where_to = if link.across { "between machines" } else { "within a machine" };
            return Err(anyhow!("expected one link {where_to}, found {} too", link.name));
        }
        if link.name.starts_with("nvlink") && *link != &usual[0] {
            return Err(anyhow!(
                "expected a link that {} has, such as {}, found {}",
                gpu.name,
                usual[0].name,
                link.name
            ));
        }
        links[place] = **link;
    }
    Ok(links)
}
