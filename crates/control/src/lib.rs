//! What a daemon and a guest's VM process say to each other, and how.
//!
//! The daemon starts one VM process per guest and leaves it a directory ([`VmDir`]): how to begin
//! ([`VmStart`]), a listening socket, the console's ring, and at the end why it ended. They talk over
//! that socket in typed messages ([`Request`], [`Response`], [`Event`]), one message a packet, so a
//! daemon that was killed connects again and goes on.
//!
//! The VM process serves with blocking threads ([`serve`]): it has no runtime, and a message must
//! get through while every core copies pages. The daemon asks with [`ControlClient`], on tokio.

mod client;
mod codec;
mod console;
mod dir;
mod epoch;
mod message;
mod network;
mod plan;
mod sample;
mod server;
mod socket;
mod spec;
mod status;
mod text;

pub use client::{ClientError, ControlClient};
pub use codec::{CodecError, MAX_MESSAGE, decode, encode};
pub use console::{ConsoleChunk, ConsoleFile, ConsoleRange};
pub use dir::{ExitReport, FileError, VmDir, write_atomic};
pub use epoch::{EpochRecord, EpochState, read_epoch};
pub use message::{
    CONTROL_VERSION, ControlError, ControlHello, ErrorKind, Event, FromVm, Request, Resolution, Response,
    ToVm,
};
pub use network::{MacAddr, MacAddrError, NetworkPlan, NetworkSpec};
pub use plan::{
    BootPlan, GuestDescription, IncomingPlan, Limits, MigratePlan, OtherAddress, PortRange, SectionRef,
    StartedAt, TlsFiles, TransportKind, VmStart,
};
pub use sample::{GuestSample, WriteWindow};
pub use server::{EventSink, VmService, serve};
pub use socket::{bind_control, connect_control, listener_from_stdin};
pub use spec::*;
pub use status::{Balloon, PendingResolution, Status, VmState, WorkloadCounters};
