// f32 matmuls without operand rounding: fused multiply-adds on the ordinary units, in the order of
// K. See matmul.cuh.
//
// A lane has 8 x 8 sums and reads 8 + 8 numbers per 64 multiply-adds, 128 bits at a time: half of
// what shared memory delivers in that time. A tensor core would be eight times as fast, but only on
// operands truncated to 19 bits.
//
// These kernels are empty for a 16-bit floatX, whose products are exact on tensor cores.
#include "common.cuh"
#include "matmul_tiles.cuh"

using ExactTile128x128 = matmul::Tile<floatX, matmul::ExactSums, 128, 128, 2, 4, sizeof(floatX) != 4>;
using ExactTile64x64 = matmul::Tile<floatX, matmul::ExactSums, 64, 64, 1, 2, sizeof(floatX) != 4>;

MATMUL_KERNELS(matmul_f32, 128x128, ExactTile128x128)
MATMUL_KERNELS(matmul_f32, 64x64, ExactTile64x64)
