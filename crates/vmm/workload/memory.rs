//! Guest memory by address: one to one, all of it ours.
//!
//! Here the program is the whole machine, so any mapped address may be read and written. What these
//! functions are used on are the counters, the arena and the processor's tables; Rust's own objects lie in the image.

use core::ptr;

/// The word at `address`.
///
/// Volatile, so that what is compared is what memory holds now, not what was just written.
pub fn load(address: u64) -> u64 {
    // SAFETY: callers pass aligned addresses of mapped RAM, on which Rust keeps no objects.
    unsafe { ptr::read_volatile(ptr::with_exposed_provenance(address as usize)) }
}

/// Writes the word at `address`.
pub fn store(address: u64, value: u64) {
    // SAFETY: callers pass aligned addresses of mapped RAM, on which Rust keeps no objects.
    unsafe { ptr::write_volatile(ptr::with_exposed_provenance_mut(address as usize), value) }
}

/// Called by compiler-generated code.
///
/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `length` bytes at `to`; the direction flag is clear.
    unsafe {
        core::arch::asm!("rep stosb", inout("rdi") to => _, inout("rcx") length => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    to
}

/// Called by compiler-generated code.
///
/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear.
    unsafe {
        core::arch::asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") length => _, options(nostack, preserves_flags));
    }
    to
}

/// Called by compiler-generated code.
///
/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for i in 0..length {
        // SAFETY: the caller vouches for `length` bytes at both. Volatile, lest this becomes a call of itself.
        let (l, r) = unsafe { (left.add(i).read_volatile(), right.add(i).read_volatile()) };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// Called by compiler-generated code.
///
/// # Safety
/// As C's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, length) }
}
