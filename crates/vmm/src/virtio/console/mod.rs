//! Virtio's console device (virtio 1.3, section 5.3) as a line between a guest's agent and a program on the host: one
//! named port, whose other end is a Unix socket. It has no console; that is the serial port.
//!
//! # Who is connected
//!
//! To the guest the port is open as long as a client is connected, and while there is something of a former client's
//! that the guest has not read. So a client may send a request and leave, and the guest still reads it, then sees
//! the end. The next client is let in when the guest was told of that end, so it never gets the answer to another's request.
//! To the client nothing is said when the guest's program closes the port: what the client sends waits for
//! the next program, as it does before the first. What a client that has left had sent to no program is dropped, and so
//! is what a program says to nobody.
//!
//! # Room
//!
//! From the host to the guest, up to [`ROOM`] bytes are taken from the client and then no more; the client's own
//! writes wait. The other way nothing is kept: a request that finds no room in the socket stays in the queue,
//! and the guest's writes wait.
//!
//! # A migration
//!
//! What was taken from a client and has not reached the guest goes with the guest. The connection does not: it
//! stands still while the guest is on its way, goes on if the guest stays, and else ends with the VM process that the guest left. At the destination the guest reads the rest, then sees the port closed, then open
//! again when a client connects there. What the guest had said to the client of before and is still in the
//! queue is dropped, since the next client is another conversation.

mod client;
mod control;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use super::{DeviceError, DeviceKind, Queues, Served, VirtioDevice, Watched};
use crate::state::section::{decode, encode};

use client::{Client, Door};
use control::{MESSAGE_LEN, Port};

/// There are several ports, and messages about them.
const VIRTIO_CONSOLE_F_MULTIPORT: u64 = 1 << 1;

/// Queues come in pairs, named as the guest sees them: of port 0, of control, of port 1.
const PORT0_OUT: usize = 1;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
const AGENT_IN: usize = 4;
const AGENT_OUT: usize = 5;
const QUEUE_SIZES: [u16; 6] = [16, 16, 32, 32, 64, 64];

/// `struct virtio_console_config`: columns, rows (u16 each), max_nr_ports, emerg_wr (u32 each). Two ports.
const CONFIG: [u8; 12] = [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];

/// Most bytes that wait for the guest, and that are taken from it before others have their turn.
const ROOM: usize = 64 << 10;
/// Bytes that are copied at a time.
const PIECE: usize = 16 << 10;

const DOOR: usize = 0;
const CLIENT: usize = 1;

/// The line to a guest's agent.
#[derive(Debug)]
pub(crate) struct AgentConsole {
    door: Door,
    client: Option<Client>,
    port: Port,
    /// From the host, for the guest.
    input: VecDeque<u8>,
    /// Bytes of the first request in [`AGENT_OUT`] that the client has. Without a client they mean nothing.
    sent: usize,
    /// There is more for the client in [`AGENT_OUT`].
    unsent: bool,
    multiport: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    port: Port,
    input: Vec<u8>,
}

impl AgentConsole {
    /// A line whose host's end is a socket at `path`, which it makes; what is there is replaced.
    ///
    /// # Errors
    /// The kernel's, as for a path of more than 107 bytes.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            door: Door::new(path)?,
            client: None,
            port: Port::default(),
            input: VecDeque::new(),
            sent: 0,
            unsent: false,
            multiport: false,
        })
    }

    fn hears_client(&self) -> bool {
        self.port.guest_open() && self.input.len() < ROOM
    }

    /// Brings everything that can go on as far as it goes, but for what the guest says to the client.
    fn settle(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        self.take_input();
        self.give_input(queues)?;
        self.part();
        self.say(queues)
    }

    fn take_input(&mut self) {
        while self.hears_client() {
            let Some(client) = self.client.as_mut().filter(|client| !client.said_all()) else { return };
            let mut piece = [0; PIECE];
            let room = PIECE.min(ROOM - self.input.len());
            let len = client.read(&mut piece[..room]);
            if len == 0 {
                return;
            }
            self.input.extend(&piece[..len]);
        }
    }

    fn give_input(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let mut given = false;
        while !self.input.is_empty() {
            let Some(chain) = queues.take(AGENT_IN)? else { break };
            let head = chain.head_index();
            let mut writer = chain.writer(queues.memory()).map_err(|_| request(AGENT_IN))?;
            let (front, _) = self.input.as_slices();
            let len = writer.write(front).map_err(|_| request(AGENT_IN))?;
            if len == 0 {
                return Err(request(AGENT_IN));
            }
            self.input.drain(..len);
            queues.complete(AGENT_IN, head, len as u32)?;
            given = true;
        }
        if given { queues.interrupt(AGENT_IN) } else { Ok(()) }
    }

    /// Lets go of a client that has left, when nothing of what it was told is in the queue, and all that it sent is
    /// here or nobody is there to read it.
    fn part(&mut self) {
        let is_read = self.port.guest_open();
        let is_over = |client: &Client| client.is_gone() && !self.unsent && (client.said_all() || !is_read);
        if self.client.as_ref().is_some_and(is_over) {
            self.client = None;
        }
        if self.client.is_none() && !is_read {
            self.input.clear();
        }
    }

    fn say(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        let open = self.client.is_some() || !self.input.is_empty();
        let mut said = false;
        while let Some(say) = self.port.due(open) {
            let Some(chain) = queues.take(CONTROL_IN)? else { break };
            let head = chain.head_index();
            let bytes = say.bytes();
            let mut writer = chain.writer(queues.memory()).map_err(|_| request(CONTROL_IN))?;
            writer.write_all(&bytes).map_err(|_| request(CONTROL_IN))?;
            queues.complete(CONTROL_IN, head, bytes.len() as u32)?;
            self.port.said(say);
            said = true;
        }
        if said { queues.interrupt(CONTROL_IN) } else { Ok(()) }
    }

    fn hear(&mut self, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        let port = &mut self.port;
        let served = queues.serve(CONTROL_OUT, |chain, memory| {
            let mut message = [0; MESSAGE_LEN];
            let read = chain.reader(memory).is_ok_and(|mut from| from.read_exact(&mut message).is_ok());
            if read {
                port.hear(message);
            }
            Ok(0)
        })?;
        self.settle(queues)?;
        Ok(served)
    }

    /// Gives the client what the guest says.
    fn take_output(&mut self, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        let served = match &self.client {
            Some(client) if !client.is_gone() => self.send_output(queues)?,
            _ => {
                let served = drop_all(AGENT_OUT, queues)?;
                (self.sent, self.unsent) = (0, served == Served::More);
                served
            }
        };
        self.settle(queues)?;
        Ok(served)
    }

    fn send_output(&mut self, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        let Some(client) = &mut self.client else { return Ok(Served::All) };
        let (mut budget, mut served, mut taken) = (ROOM, Served::More, false);
        self.unsent = true;
        while budget > 0 {
            let Some(chain) = queues.take(AGENT_OUT)? else {
                (served, self.unsent) = (Served::All, false);
                break;
            };
            let head = chain.head_index();
            let mut from = chain.reader(queues.memory()).map_err(|_| request(AGENT_OUT))?;
            // A driver that made the request shorter meanwhile is done with it.
            let is_done = match from.split_at(self.sent) {
                Ok(mut rest) => {
                    let mut piece = [0; PIECE];
                    let len = rest.read(&mut piece).map_err(|_| request(AGENT_OUT))?;
                    let sent = if len == 0 { 0 } else { client.write(&piece[..len]) };
                    self.sent += sent;
                    if sent < len {
                        queues.put_back(AGENT_OUT);
                        // Until the client has room.
                        served = Served::All;
                        break;
                    }
                    rest.available_bytes() == 0
                }
                Err(_) => true,
            };
            budget = budget.saturating_sub(PIECE);
            if is_done {
                self.sent = 0;
                queues.complete(AGENT_OUT, head, 0)?;
                taken = true;
            } else {
                queues.put_back(AGENT_OUT);
            }
        }
        if taken {
            queues.interrupt(AGENT_OUT)?;
        }
        Ok(served)
    }
}

/// Answers requests whose content nobody wants.
fn drop_all(queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
    queues.serve(queue, |_, _| Ok(0))
}

const fn request(queue: usize) -> DeviceError {
    DeviceError::Request { queue, reason: "a buffer of no use: too small, or not in RAM" }
}

impl VirtioDevice for AgentConsole {
    fn kind(&self) -> DeviceKind {
        // PCI: simple communication controller, other.
        DeviceKind { id: 3, name: "console", pci_class: 0x078000, version: 1 }
    }

    fn features(&self) -> u64 {
        VIRTIO_CONSOLE_F_MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = CONFIG.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(data.len());
        let (known, past) = data.split_at_mut(len);
        known.copy_from_slice(&from[..len]);
        past.fill(0);
    }

    fn activate(&mut self, features: u64) {
        self.multiport = features & VIRTIO_CONSOLE_F_MULTIPORT != 0;
    }

    fn reset(&mut self) {
        self.client = None;
        self.port = Port::default();
        self.input.clear();
        (self.sent, self.unsent) = (0, false);
        self.multiport = false;
    }

    fn serve_queue(&mut self, queue: usize, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        match queue {
            // A driver that knows only one port takes it for a console. Nobody listens.
            PORT0_OUT => drop_all(queue, queues),
            _ if !self.multiport => Ok(Served::All),
            CONTROL_OUT => self.hear(queues),
            AGENT_OUT => self.take_output(queues),
            CONTROL_IN | AGENT_IN => self.settle(queues).map(|()| Served::All),
            _ => Ok(Served::All),
        }
    }

    fn watched(&self, watched: &mut Vec<Watched>) {
        match &self.client {
            Some(client) => {
                let interest = client.interest(self.hears_client(), self.unsent);
                watched.extend(interest.map(|interest| Watched { fd: client.fd(), interest, token: CLIENT }));
            }
            // Who comes now must not take up what a former client said.
            None if self.port.is_vacant() && self.input.is_empty() => {
                watched.push(Watched { fd: self.door.fd(), interest: PollFlags::IN, token: DOOR });
            }
            None => {}
        }
    }

    fn serve_host(&mut self, token: usize, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        match (token, &mut self.client) {
            (DOOR, None) => {
                let accepted = self.door.next();
                self.client = accepted.map_err(|source| DeviceError::Host { operation: "accept", source })?;
                self.settle(queues)
            }
            (CLIENT, Some(client)) => {
                client.look();
                // What others leave no time for now is unsent: the client's room calls again.
                self.take_output(queues).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn arrived(&mut self, queues: &mut Queues<'_>) -> Result<(), DeviceError> {
        if !self.multiport {
            return Ok(());
        }
        // For the client of before, who is not here.
        self.take_output(queues).map(drop)
    }

    fn save(&self) -> Vec<u8> {
        encode(&State { port: self.port, input: self.input.iter().copied().collect() })
    }

    fn restore(&mut self, data: &[u8]) -> Result<(), String> {
        let State { port, input } = decode(data)?;
        if input.len() > ROOM {
            return Err(format!("{} bytes wait for the guest, the limit is {ROOM}", input.len()));
        }
        (self.port, self.input) = (port, input.into());
        (self.client, self.sent, self.unsent) = (None, 0, false);
        Ok(())
    }
}
