//! Lines on the first serial port.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::machine::serial_out;

static BUSY: AtomicBool = AtomicBool::new(false);

/// Prints the parts as one line, not mixed with another vCPU's.
pub fn print(parts: &[&str]) {
    while BUSY.swap(true, Ordering::Acquire) {}
    print_anyway(parts);
    BUSY.store(false, Ordering::Release);
}

/// Prints even if another vCPU is at it, or this one was when it failed.
pub fn print_anyway(parts: &[&str]) {
    for byte in parts.iter().flat_map(|part| part.bytes()) {
        serial_out(byte);
    }
}

/// A number in hexadecimal.
pub struct Hex([u8; 16]);

impl Hex {
    pub fn new(value: u64) -> Self {
        Self(core::array::from_fn(|i| b"0123456789abcdef"[(value >> (60 - 4 * i)) as usize & 15]))
    }

    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Without the upper half of the digits.
    pub fn half(&self) -> &str {
        &self.text()[8..]
    }
}
