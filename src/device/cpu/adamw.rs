//! AdamW over all parameters in one pass.

use crate::ops::AdamW;

/// See [`AdamW`].
pub fn update(params: &mut [f32], m: &mut [f32], v: &mut [f32], grads: &[f32], args: &AdamW) {
    let _ = (params, m, v, grads, args);
    todo!()
}
