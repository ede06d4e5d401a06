//! Power management's fixed hardware: event and control registers (ACPI 6.5, 4.8.3), and the reset register.
//!
//! Two things happen here. The owner presses the power button: a status bit is set, and if the guest has enabled
//! the button, the interrupt line (SCI) is raised until the guest clears the bit. And the guest asks to be switched
//! off, or to be reset.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::layout::{PM_BASE, SCI};
use crate::ports::PortWrite;

/// The event block: the status register, two bytes, and the enable register behind it.
pub(super) const EVENT: u16 = PM_BASE;
/// The control register, two bytes.
pub(super) const CONTROL: u16 = PM_BASE + 4;
/// The reset register, a byte.
pub(super) const RESET: u16 = PM_BASE + 6;
/// What the guest writes to the reset register.
pub(super) const RESET_VALUE: u8 = 1;
/// SLP_TYP of the state S5, in which the machine is off.
pub(super) const SLEEP_TYPE_OFF: u8 = 5;

const STATUS_AT: usize = 0;
const ENABLE_AT: usize = 2;
const CONTROL_AT: usize = 4;
const RESET_AT: usize = 6;

/// PWRBTN_STS and PWRBTN_EN: the one event that this machine has.
const POWER_BUTTON: u16 = 1 << 8;
/// GBL_EN, which kernels set and read back; nobody raises the event, which is for a BIOS to call the kernel.
const GLOBAL: u16 = 1 << 5;
/// SCI_EN: the machine is in ACPI mode, always.
const SCI_ENABLED: u16 = 1 << 0;
/// SLP_TYP begins at this bit of the control register, and has three.
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE: u16 = 0b111 << SLEEP_TYPE_SHIFT;
/// SLP_EN: go there now. Reads as zero.
const SLEEP: u16 = 1 << 13;

/// Why a press of the power button had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PowerButtonError {
    /// Nobody in the guest listens.
    #[error(
        "the guest takes no notice of its power button: it hasn't got that far in its boot, or its kernel has \
         the driver (ACPI button) not loaded; switch it off from inside, or delete the VM"
    )]
    Ignored,
    /// It is paused, has ended, or is elsewhere.
    #[error("the guest does not run here at the moment; resume it if it is paused")]
    NotRunning,
}

/// The registers.
#[derive(Debug)]
pub(crate) struct PowerManagement {
    vm: Arc<VmFd>,
    registers: Mutex<PmState>,
}

/// The registers as they are saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PmState {
    status: u16,
    enable: u16,
    control: u16,
}

impl PmState {
    fn raises_sci(self) -> bool {
        self.status & self.enable != 0
    }

    /// The byte at that offset of the block; what is not a register reads as zero.
    fn byte(self, offset: usize) -> u8 {
        let [status, enable, control] =
            [self.status, self.enable, self.control | SCI_ENABLED].map(u16::to_le_bytes);
        let block = [status, enable, control].concat();
        block.get(offset).copied().unwrap_or(0)
    }

    fn write_byte(&mut self, offset: usize, byte: u8) -> PortWrite {
        let shift = 8 * (offset % 2) as u16;
        let (bits, others) = (u16::from(byte) << shift, !(0xff << shift));
        match offset & !1 {
            // Ones clear what happened.
            STATUS_AT => self.status &= !bits,
            ENABLE_AT => self.enable = self.enable & others | bits & (POWER_BUTTON | GLOBAL),
            CONTROL_AT => {
                self.control = self.control & others | bits & SLEEP_TYPE;
                let asleep = bits & SLEEP != 0;
                if asleep && self.control == u16::from(SLEEP_TYPE_OFF) << SLEEP_TYPE_SHIFT {
                    return PortWrite::PowerOff;
                }
            }
            RESET_AT if offset == RESET_AT && byte == RESET_VALUE => return PortWrite::Reset,
            _ => {}
        }
        PortWrite::Done
    }
}

impl PowerManagement {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, registers: Mutex::default() }
    }

    /// The guest reads at that offset of the block, one register or several.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        let registers = self.registers.lock();
        (usize::from(offset)..).zip(data).for_each(|(offset, byte)| *byte = registers.byte(offset));
    }

    /// The guest writes at that offset of the block, one register or several.
    pub(crate) fn write(&self, offset: u16, data: &[u8]) -> PortWrite {
        let mut registers = self.registers.lock();
        let before = registers.raises_sci();
        let asked = (usize::from(offset)..)
            .zip(data)
            .map(|(offset, byte)| registers.write_byte(offset, *byte))
            .fold(PortWrite::Done, |asked, next| if next == PortWrite::Done { asked } else { next });
        if registers.raises_sci() != before {
            self.drive(*registers);
        }
        asked
    }

    /// Presses the power button of a guest that runs, as `runs` says.
    ///
    /// It is asked under the registers' lock: they are saved under it while the guest stands still, so a press is
    /// either saved or refused.
    ///
    /// # Errors
    /// [`PowerButtonError`]; then nothing has happened.
    pub(crate) fn press_power_button(&self, runs: impl FnOnce() -> bool) -> Result<(), PowerButtonError> {
        let mut registers = self.registers.lock();
        if !runs() {
            return Err(PowerButtonError::NotRunning);
        }
        if registers.enable & POWER_BUTTON == 0 {
            return Err(PowerButtonError::Ignored);
        }
        registers.status |= POWER_BUTTON;
        self.drive(*registers);
        Ok(())
    }

    /// Puts the interrupt line where the registers want it. Under their lock, so that the line is never older.
    fn drive(&self, registers: PmState) {
        if let Err(error) = self.set_line(registers) {
            tracing::warn!("power management's interrupt: {error}");
        }
    }

    fn set_line(&self, registers: PmState) -> io::Result<()> {
        Ok(self.vm.set_irq_line(SCI, registers.raises_sci())?)
    }

    pub(crate) fn state(&self) -> PmState {
        *self.registers.lock()
    }

    /// Also raises the interrupt line if it was: the controller's own state doesn't hold who drives its inputs.
    ///
    /// # Errors
    /// In words, when no guest could have left the registers so.
    pub(crate) fn restore(&self, state: PmState) -> Result<(), String> {
        let PmState { status, enable, control } = state;
        if status & !POWER_BUTTON != 0 || enable & !(POWER_BUTTON | GLOBAL) != 0 || control & !SLEEP_TYPE != 0
        {
            return Err(format!(
                "bits are set that this machine has not: status {status:#x}, enable {enable:#x}, control \
                 {control:#x}"
            ));
        }
        let mut registers = self.registers.lock();
        *registers = state;
        self.set_line(state).map_err(|error| format!("KVM_IRQ_LINE failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(state: &mut PmState, offset: usize, value: u16) -> PortWrite {
        let [low, high] = value.to_le_bytes();
        let first = state.write_byte(offset, low);
        assert_eq!(first, PortWrite::Done);
        state.write_byte(offset + 1, high)
    }

    fn read(state: PmState, offset: usize) -> u16 {
        u16::from_le_bytes([state.byte(offset), state.byte(offset + 1)])
    }

    #[test]
    fn an_enabled_event_raises_the_line_until_it_is_cleared() {
        let mut state = PmState { status: POWER_BUTTON, ..PmState::default() };
        assert!(!state.raises_sci());
        assert_eq!(write(&mut state, ENABLE_AT, 0xffff), PortWrite::Done);
        assert_eq!(read(state, ENABLE_AT), POWER_BUTTON | GLOBAL);
        assert!(state.raises_sci());
        // Zeros clear nothing, nor do ones elsewhere.
        write(&mut state, STATUS_AT, !POWER_BUTTON);
        assert!(state.raises_sci());
        write(&mut state, STATUS_AT, POWER_BUTTON);
        assert_eq!((state.raises_sci(), read(state, STATUS_AT)), (false, 0));
    }

    #[test]
    fn only_sleeping_in_s5_switches_off() {
        let mut state = PmState::default();
        let off = u16::from(SLEEP_TYPE_OFF) << SLEEP_TYPE_SHIFT;
        assert_eq!(write(&mut state, CONTROL_AT, off), PortWrite::Done);
        assert_eq!(read(state, CONTROL_AT), off | SCI_ENABLED);
        assert_eq!(write(&mut state, CONTROL_AT, 1 << SLEEP_TYPE_SHIFT | SLEEP), PortWrite::Done);
        assert_eq!(read(state, CONTROL_AT) & SLEEP, 0);
        assert_eq!(write(&mut state, CONTROL_AT, off | SLEEP), PortWrite::PowerOff);
    }

    #[test]
    fn the_reset_register_is_one_byte_with_one_value() {
        let mut state = PmState::default();
        assert_eq!(state.write_byte(RESET_AT, 0), PortWrite::Done);
        assert_eq!(state.write_byte(RESET_AT + 1, RESET_VALUE), PortWrite::Done);
        assert_eq!(state.write_byte(RESET_AT, RESET_VALUE), PortWrite::Reset);
        assert_eq!(state.byte(RESET_AT), 0);
    }

    #[test]
    fn bytes_outside_the_block_are_nobodys() {
        let mut state = PmState::default();
        for offset in [7, 8, 100] {
            assert_eq!((state.write_byte(offset, 0xff), state.byte(offset)), (PortWrite::Done, 0));
        }
        assert_eq!(state, PmState::default());
    }
}
