//! Random numbers that agree with PyTorch's CPU generator draw for draw.
