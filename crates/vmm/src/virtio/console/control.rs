//! What device and driver tell each other about ports (virtio 1.3, section 5.3.6.2).
//!
//! What is still to be said is not queued but follows from what is known: so it is bounded whatever the driver asks,
//! and moves with the guest as a few flags.

use serde::{Deserialize, Serialize};

/// The agent's port. (Port 0 is the one that a driver without multiport knows, and is never added.)
pub(super) const AGENT: u32 = 1;
/// The port's name, for `/dev/virtio-ports`.
pub(super) const NAME: &str = "org.migrated.agent";

/// `struct virtio_console_control` (include/uapi/linux/virtio_console.h): id, event, value.
pub(super) const MESSAGE_LEN: usize = 8;
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// What the device has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    /// There is a port.
    Add,
    /// The port's name.
    Name,
    /// Whether somebody is at the host's end of the port.
    Open(bool),
}

/// What the driver knows of the agent's port, and what it said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    /// The driver is ready for ports and has not been told of this one.
    add_due: bool,
    /// The driver has made the port.
    ready: bool,
    name_due: bool,
    /// What the driver was told last.
    told_open: bool,
    /// A program of the guest's has the port open.
    guest_open: bool,
}

impl Port {
    /// Whether a program of the guest's has the port open.
    pub(super) const fn guest_open(&self) -> bool {
        self.guest_open
    }

    /// Whether the driver has made the port and believes that nobody is at the host's end.
    pub(super) const fn is_vacant(&self) -> bool {
        self.ready && !self.told_open
    }

    /// Takes a message of the driver's. One that says nothing about the agent's port, or nothing at all, is ignored.
    pub(super) fn hear(&mut self, message: [u8; MESSAGE_LEN]) {
        let [i0, i1, i2, i3, e0, e1, v0, v1] = message;
        let id = u32::from_le_bytes([i0, i1, i2, i3]);
        let is_set = u16::from_le_bytes([v0, v1]) != 0;
        match u16::from_le_bytes([e0, e1]) {
            // Its id means nothing.
            DEVICE_READY if is_set => *self = Self { add_due: true, ..Self::default() },
            // The driver's new port is closed and has no name.
            PORT_READY if id == AGENT => *self = Self { ready: is_set, name_due: is_set, ..Self::default() },
            PORT_OPEN if id == AGENT && self.ready => self.guest_open = is_set,
            _ => {}
        }
    }

    /// What is to be said next, when the host's end is open or not.
    pub(super) fn due(&self, open: bool) -> Option<Say> {
        if self.add_due {
            Some(Say::Add)
        } else if self.name_due {
            Some(Say::Name)
        } else {
            (self.ready && self.told_open != open).then_some(Say::Open(open))
        }
    }

    /// It was said.
    pub(super) const fn said(&mut self, say: Say) {
        match say {
            Say::Add => self.add_due = false,
            Say::Name => self.name_due = false,
            Say::Open(open) => self.told_open = open,
        }
    }
}

impl Say {
    /// The message's bytes.
    pub(super) fn bytes(self) -> Vec<u8> {
        let (event, value) = match self {
            Self::Add => (PORT_ADD, 1),
            Self::Name => (PORT_NAME, 1),
            Self::Open(open) => (PORT_OPEN, u16::from(open)),
        };
        let mut bytes = AGENT.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        if self == Self::Name {
            bytes.extend(NAME.as_bytes());
        }
        bytes
    }
}
