//! A device that names the operations of a run for profilers, and times those of some steps for a
//! trace.
//!
//! [`Tracer`] observes another device. In a step that is traced it also queues a time stamp before
//! and after each operation and copy, so that the times are the device's own and the host waits no
//! more than without it.

mod describe;
mod names;
mod step;
mod table;
mod tracer;

pub use describe::{Description, bytes, describe};
pub use names::Names;
pub use step::StepTrace;
pub use table::table;
pub use tracer::{HostTime, Traced, Tracer};

use crate::ops::Call;
use crate::parallel::{Operation, Work};
use crate::report::chrome::Row;
use crate::tensor::Tensor;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// One thing that a device was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Call(Box<Call>),
    Copy { dst: Tensor, src: Tensor },
    Upload { dst: Tensor },
    Download { src: Tensor },
}

/// The argument of an operation that says how long it was predicted to take.
const PREDICTED: &str = "predicted us";

/// Returns the row, the name and the arguments with which collectives that start together are
/// shown.
pub fn show_work(work: Work, operations: &[Operation]) -> (Row, String, Map<String, Value>) {
    let name = operations.first().map_or_else(String::new, |first| first.collective.to_string());
    let lens: Vec<String> =
        operations.iter().map(|o| format!("{} {}", o.buffer.len, o.buffer.dtype)).collect();
    let bytes: usize = operations.iter().map(|o| o.buffer.size_bytes()).sum();
    let args = [("elements", json!(lens.join(", "))), ("bytes", json!(bytes)), ("work", json!(work.0))];
    (Row::Communication, name, args.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Adds the rates at which `args` were achieved: TFLOP/s of products, and GB/s of all bytes.
pub fn add_rates(args: &mut Map<String, Value>, elapsed: Duration) {
    for (of, rate, unit) in [("flops", "TFLOP/s", 1e12), ("bytes", "GB/s", 1e9)] {
        let count = args.get(of).and_then(Value::as_f64);
        if let Some(count) = count.filter(|_| !elapsed.is_zero()) {
            // Four digits are more than clocks are worth.
            let digits = format!("{:.3e}", count / elapsed.as_secs_f64() / unit);
            args.insert(rate.to_owned(), json!(digits.parse::<f64>().unwrap_or_default()));
        }
    }
}
