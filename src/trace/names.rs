//! Names of tensors: of parameters by the parameter table, of others by the memory plan.

use super::describe::{bytes, describe};
use super::{Description, Op};
use crate::params::Param;
use crate::report::chrome::Row;
use crate::sharding::ParamBuffer;
use crate::tensor::{MemoryPlan, Tensor};
use serde_json::{Map, Value, json};

/// The names of a rank's tensors.
pub struct Names {
    pub memory: MemoryPlan,
    /// The full parameters that passes work on.
    pub params: ParamBuffer,
    /// The parameters that this rank stores and updates.
    pub stored: ParamBuffer,
}

impl Op {
    /// The method of the device.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Op::Call(call) => describe(call).name,
            Op::Copy { .. } => "copy",
            Op::Upload { .. } => "upload",
            Op::Download { .. } => "download",
        }
    }
}

impl Names {
    /// Returns the name with which an operation is shown: its method, and the tensor that tells it
    /// from others.
    pub fn name(&self, op: &Op) -> String {
        let tensor = match op {
            Op::Call(call) => describe(call).tensor.and_then(|tensor| self.label(tensor).0),
            Op::Copy { dst: tensor, .. } | Op::Upload { dst: tensor } | Op::Download { src: tensor } => {
                Some(self.planned(*tensor))
            }
        };
        [Some(op.verb()), tensor].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// Returns the row, the name and the arguments with which an operation is shown.
    pub fn show(&self, op: &Op) -> (Row, String, Map<String, Value>) {
        let (row, args) = match op {
            Op::Call(call) => {
                let Description { tensor, dims, flops, .. } = describe(call);
                let mut args: Vec<_> = dims.into_iter().map(|(name, value)| (name, json!(value))).collect();
                let layer = tensor.and_then(|tensor| self.label(tensor).1);
                args.push(("bytes", json!(bytes(call) as u64)));
                args.extend(flops.map(|flops| ("flops", json!(flops))));
                args.extend(layer.map(|layer| ("layer", json!(layer))));
                (Row::Compute, args)
            }
            Op::Copy { dst, src } => {
                let from = ("from", json!(self.planned(*src)));
                (Row::Copies, [vec![from], size(*dst)].concat())
            }
            Op::Upload { dst: tensor } | Op::Download { src: tensor } => (Row::Copies, size(*tensor)),
        };
        (row, self.name(op), args.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The name of a tensor, and its layer if it is a parameter of one.
    pub fn label(&self, tensor: Tensor) -> (Option<&'static str>, Option<usize>) {
        if let Some((unit, _)) = self.params.place_of(tensor) {
            let layout = &self.params.layout;
            let layer = Some(unit % layout.count()).filter(|&layer| layer != layout.shared_unit());
            let whole = |param: &Param| {
                layout.find(*param, layer.unwrap_or(0)).is_some_and(|(_, range)| range.len() == tensor.len)
            };
            let found = self.params.param_at(tensor).filter(whole);
            // Layers share memory where parameters are sharded, so only the name is certain.
            let alone = self.params.aliases(unit).len() == 1;
            if let Some(param) = found {
                return (Some(param.spec().name), layer.filter(|_| alone));
            }
        }
        let unit = self.stored.place_of(tensor).map(|(unit, _)| unit);
        let stored = &self.stored.layout;
        let layer = unit.map(|unit| unit % stored.count()).filter(|&layer| layer != stored.shared_unit());
        (Some(self.planned(tensor)), layer)
    }

    /// The planned tensor that a tensor is, or is part of.
    fn planned(&self, tensor: Tensor) -> &'static str {
        let planned = self.memory.arenas.get(tensor.arena).map_or(&[][..], |arena| &arena.tensors);
        let part = planned.iter().rev().find(|(_, planned)| planned.offset <= tensor.offset);
        part.map_or("", |(name, _)| name)
    }
}

fn size(tensor: Tensor) -> Vec<(&'static str, Value)> {
    vec![
        ("elements", json!(tensor.len)),
        ("dtype", json!(tensor.dtype.name())),
        ("bytes", json!(tensor.size_bytes())),
    ]
}
