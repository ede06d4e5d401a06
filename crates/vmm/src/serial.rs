//! The guest's serial port: a 16550 on COM1.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_superio::serial::{NoEvents, SerialState as Registers};
use vm_superio::{Serial, Trigger};

use crate::Console;
use crate::layout::COM1_IRQ;

/// Input that waits for the guest to take it; more is refused.
const INPUT_LIMIT: usize = 64 << 10;

/// Why input is not taken; the guest gets nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InputRefused {
    /// The guest doesn't read, or more slowly than it is typed.
    #[error("the guest has not read the input before; {INPUT_LIMIT} bytes wait already")]
    Full,
    /// The port's state is on its way to another host, and what came later would stay behind.
    #[error("the guest is on its way to another host")]
    Leaving,
}

/// Raises an edge on the interrupt controller.
///
/// Through KVM_IRQ_LINE and not an irqfd: an irqfd may deliver later, from a kernel thread, and an
/// interrupt on its way while the controller is being saved would be lost by the migration.
#[derive(Debug)]
struct IrqLine(Arc<VmFd>);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.set_irq_line(COM1_IRQ, true)?;
        self.0.set_irq_line(COM1_IRQ, false)?;
        Ok(())
    }
}

/// Output that goes to the console.
#[derive(Debug)]
struct ToConsole(Arc<Console>);

impl io::Write for ToConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port, and input that its FIFO has no room for yet.
#[derive(Debug)]
pub(crate) struct SerialPort {
    vm: Arc<VmFd>,
    console: Arc<Console>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    uart: Serial<IrqLine, NoEvents, ToConsole>,
    input: VecDeque<u8>,
    /// The state was saved, and the guest has not run here since.
    saved: bool,
}

/// The port's state as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    fifo: Vec<u8>,
    input: Vec<u8>,
}

impl SerialPort {
    pub(crate) fn new(vm: Arc<VmFd>, console: Arc<Console>) -> Self {
        let uart = Serial::new(IrqLine(vm.clone()), ToConsole(console.clone()));
        Self { vm, console, inner: Mutex::new(Inner { uart, input: VecDeque::new(), saved: false }) }
    }

    /// The guest writes a register.
    pub(crate) fn write(&self, register: u8, value: u8) {
        // The interrupt line of a VM that exists can't fail, nor can the console.
        if let Err(error) = self.inner.lock().uart.write(register, value) {
            tracing::warn!("serial port: {error}");
        }
    }

    /// The guest reads a register.
    pub(crate) fn read(&self, register: u8) -> u8 {
        let mut inner = self.inner.lock();
        let value = inner.uart.read(register);
        inner.feed();
        value
    }

    /// Gives the guest input: all of it, or nothing.
    pub(crate) fn write_input(&self, bytes: &[u8]) -> Result<(), InputRefused> {
        let mut inner = self.inner.lock();
        if inner.saved {
            return Err(InputRefused::Leaving);
        }
        if bytes.len() > INPUT_LIMIT - inner.input.len() {
            return Err(InputRefused::Full);
        }
        inner.input.extend(bytes);
        inner.feed();
        Ok(())
    }

    /// The guest goes on here with the state that was saved.
    pub(crate) fn stay(&self) {
        self.inner.lock().saved = false;
    }

    /// What the guest wrote.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// The state; no input is taken until the guest [stays](Self::stay).
    pub(crate) fn save(&self) -> SerialState {
        let mut inner = self.inner.lock();
        inner.saved = true;
        let uart = inner.uart.state();
        SerialState {
            baud_divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            fifo: uart.in_buffer,
            input: inner.input.iter().copied().collect(),
        }
    }

    /// # Errors
    /// In words, when the state can't be a serial port's.
    pub(crate) fn restore(&self, state: SerialState) -> Result<(), String> {
        if state.input.len() > INPUT_LIMIT {
            return Err(format!("{} bytes of input wait, the limit is {INPUT_LIMIT}", state.input.len()));
        }
        let registers = Registers {
            baud_divisor_low: state.baud_divisor[0],
            baud_divisor_high: state.baud_divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo,
        };
        let out = ToConsole(self.console.clone());
        let uart = Serial::from_state(&registers, IrqLine(self.vm.clone()), NoEvents, out)
            .map_err(|error| error.to_string())?;
        *self.inner.lock() = Inner { uart, input: state.input.into(), saved: false };
        Ok(())
    }
}

impl Inner {
    /// Moves waiting input into the FIFO as far as that has room.
    fn feed(&mut self) {
        let room = self.uart.fifo_capacity().min(self.input.len());
        if room == 0 {
            return;
        }
        let bytes: Vec<u8> = self.input.iter().take(room).copied().collect();
        match self.uart.enqueue_raw_bytes(&bytes) {
            // Fewer only in loop-back mode, in which a UART is deaf: the input waits.
            Ok(taken) => drop(self.input.drain(..taken)),
            Err(error) => tracing::warn!("serial port: {error}"),
        }
    }
}
