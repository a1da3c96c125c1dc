//! Token and position embeddings.
#![allow(non_snake_case)]

pub fn forward(encoded: &mut [f32], tokens: &[i32], wte: &[f32], wpe: &[f32], T: usize, C: usize) {
    let _ = (encoded, tokens, wte, wpe, T, C);
    todo!()
}

pub fn backward(dwte: &mut [f32], dwpe: &mut [f32], dout: &[f32], tokens: &[i32], T: usize, C: usize) {
    let _ = (dwte, dwpe, dout, tokens, T, C);
    todo!()
}
