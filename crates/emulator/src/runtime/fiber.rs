//! Switches an OS thread from one stack to another: a CUDA thread is a stack on which its kernel
//! runs.

use std::arch::naked_asm;

/// Saves the callee-saved registers on the running stack and its stack pointer in `save`, then
/// continues with the stack whose stack pointer is `to`.
///
/// # Safety
/// `to` comes from [`prepare`] or was saved by a switch, and was not continued since.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut *mut u8, to: *mut u8) {
    // A jump and not `ret`: the processor predicts returns by calls and would be wrong every time.
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
    )
}

/// Prepares the empty stack below `top` so that a [`switch`] to the result starts `start`.
///
/// # Safety
/// `top` is a multiple of 16, and the 64 bytes below it can be written.
#[cfg(target_arch = "x86_64")]
pub unsafe fn prepare(top: *mut u8, start: extern "C" fn() -> !) -> *mut u8 {
    // Six registers, the address to continue at, and the return address of `start`: zero, where
    // backtraces end.
    let frame: [usize; 8] = [0, 0, 0, 0, 0, 0, start as *const () as usize, 0];
    let end = top.wrapping_sub(size_of_val(&frame));
    // SAFETY: the caller promises that the frame, which is as long as they say, can be written.
    unsafe { end.cast::<[usize; 8]>().write(frame) };
    end
}

/// Does the same as on x86-64.
///
/// # Safety
/// `to` comes from [`prepare`] or was saved by a switch, and was not continued since.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut *mut u8, to: *mut u8) {
    naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp, #0]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "ldp x19, x20, [sp, #0]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "br x30",
    )
}

/// Does the same as on x86-64.
///
/// # Safety
/// `top` is a multiple of 16, and the 160 bytes below it can be written.
#[cfg(target_arch = "aarch64")]
pub unsafe fn prepare(top: *mut u8, start: extern "C" fn() -> !) -> *mut u8 {
    let mut frame = [0; 20];
    frame[11] = start as *const () as usize;
    let end = top.wrapping_sub(size_of_val(&frame));
    // SAFETY: the caller promises that the frame, which is as long as they say, can be written.
    unsafe { end.cast::<[usize; 20]>().write(frame) };
    end
}
