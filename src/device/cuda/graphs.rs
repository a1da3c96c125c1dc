//! Lists of operations that repeat: captured once as a CUDA graph, and from then on queued with a
//! single call.

use super::Cuda;
use super::driver::Graph;
use crate::ops::{GraphKey, Work};
use anyhow::Result;
use std::collections::HashMap;

/// The lists that are ready to be captured, and the graphs of those that were.
pub type Graphs = HashMap<GraphKey, Option<Graph>>;

/// See [`Ops::replay`](crate::ops::Ops::replay). A list runs as it is until all its kernels are
/// loaded and chosen, as neither can be done under capture.
pub fn replay(cuda: &mut Cuda, key: GraphKey, work: &mut Work) -> Result<()> {
    if !cuda.options.graphs {
        return work(cuda);
    }
    let graph = match cuda.graphs.get(&key) {
        Some(Some(graph)) => *graph,
        Some(None) => capture(cuda, key, work)?,
        None => {
            let attempts = |cuda: &Cuda| (cuda.matmul_plans.choices, cuda.attention.attempts);
            let before = attempts(cuda);
            work(cuda)?;
            if attempts(cuda) == before {
                cuda.graphs.insert(key, None);
            }
            return Ok(());
        }
    };
    cuda.driver.launch_graph(graph)
}

fn capture(cuda: &mut Cuda, key: GraphKey, work: &mut Work) -> Result<Graph> {
    cuda.driver.begin_capture()?;
    let worked = work(cuda);
    // After an error, too: what rescues the run is queued plainly.
    let graph = cuda.driver.end_capture();
    let graph = worked.and(graph)?;
    cuda.graphs.insert(key, Some(graph));
    Ok(graph)
}
