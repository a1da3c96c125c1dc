//! Tensor maps, encoded by the driver.

use crate::device::cuda::tensor_map::{TensorMap, TiledMatrix};
use anyhow::{Result, ensure};
use cudarc::driver::sys;
use std::ffi::c_void;

pub fn encode(matrix: &TiledMatrix) -> Result<TensorMap> {
    matrix.check()?;
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let dims = [matrix.columns as u64, matrix.rows as u64];
    let strides = [matrix.row_bytes() as u64];
    let boxes = [matrix.box_columns as u32, matrix.box_rows as u32];
    let every_element = [1; 2];
    let swizzle = match matrix.box_row_bytes() {
        32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    // SAFETY: the arrays have an element per dimension (the strides one fewer) and live through the
    // call, which reads nothing at the matrix's address.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            matrix.address as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            every_element.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    let TiledMatrix { address, rows, columns, box_rows, box_columns } = matrix;
    ensure!(
        result == sys::CUresult::CUDA_SUCCESS,
        "cuTensorMapEncodeTiled of {rows} x {columns} elements at {address:#x} in boxes of {box_rows} x {box_columns}: {result:?}"
    );
    Ok(TensorMap(map.opaque))
}
