//! The flags of `warpsmith scaling`.

use super::StepArgs;
use crate::cli::values;
use crate::roofline::scaling::links::Link;
use crate::sharding::ZeroStage;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct ScalingArgs {
    #[command(flatten)]
    pub step: StepArgs,
    /// Numbers of GPUs
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = values::count,
          default_value = "1,2,4,8,16,32,64,128,256,512,1024")]
    pub gpus: Vec<usize>,
    /// ZeRO stages: 0 shards nothing, 1 the optimizer state, 2 gradients too, 3 parameters too
    #[arg(long, value_enum, value_delimiter = ',', default_value = "0,1,2,3")]
    pub zero: Vec<ZeroStage>,
    /// Links within a machine (nvlink3, nvlink4, nvlink5, pcie4, pcie5), between machines (hdr,
    /// ndr), or both [default: what the GPU usually has]
    #[arg(long, value_name = "LINK,LINK", value_delimiter = ',', value_parser = link)]
    pub links: Vec<&'static Link>,
    /// GPUs per machine, each with a network adapter
    #[arg(long, value_name = "N", default_value = "8", value_parser = values::count)]
    pub gpus_per_node: usize,
    /// Write a timeline of the predicted step, which Perfetto and chrome://tracing open: that of
    /// the table's first row with times; --zero and --gpus choose it
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

pub(super) fn link(text: &str) -> Result<&'static Link, String> {
    Link::named(text).map_err(|error| error.to_string())
}
