//! How fast pages move: `throughput both|listen|send ADDR:PORT [plain|tls] [frame KiB] [channels]`.
//!
//! The sender sends 512 MiB of memory sixteen times, dealt out in frames to the channels; the
//! listener receives each frame in place. `listen` and `send` are the two ends in two network namespaces
//! (with `tls` both read and, where missing, make certificates in ./throughput-certs).

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use migrated_tcp::certs::{self, Host};
use migrated_tcp::{TcpTransport, TlsConfig};
use migrated_transport::{Endpoint, Gate, Incoming, MigrationGate, Transport};
use migrated_wire::{ChannelRole, Hello, MigrationId, PROTOCOL, Token};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const MEMORY: usize = 512 << 20;
const ROUNDS: usize = 16;
const MIGRATION: MigrationId = MigrationId([7; 16]);
const TOKEN: Token = Token([9; 32]);
/// Offset of the frame in memory; all ones: no further frame.
const HEAD: usize = 8;

type Failure = Box<dyn Error + Send + Sync>;

struct Plan {
    addr: SocketAddr,
    transport: TcpTransport,
    frame: usize,
    channels: u16,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument =
        |index: usize, default: &'static str| arguments.get(index).map_or(default, String::as_str).to_owned();
    let plan = Plan {
        addr: argument(1, "127.0.0.1:0").parse()?,
        transport: match argument(2, "plain").as_str() {
            "plain" => TcpTransport::plain(),
            "tls" => TcpTransport::tls(certificates()?),
            other => return Err(format!("{other:?} is neither plain nor tls").into()),
        },
        frame: argument(3, "1024").parse::<usize>()? << 10,
        channels: argument(4, "2").parse()?,
    };
    match argument(0, "both").as_str() {
        "listen" => listen(&plan, |_| ()),
        "send" => send(&plan, plan.addr),
        "both" => std::thread::scope(|scope| {
            let (tell, addr) = std::sync::mpsc::channel();
            let plan = &plan;
            let listener = scope.spawn(move || listen(plan, |addr| tell.send(addr).unwrap_or(())));
            send(plan, addr.recv()?)?;
            listener.join().map_err(|_| "the listener panicked")?
        }),
        other => Err(format!("{other:?} is none of both, listen, send").into()),
    }
}

fn certificates() -> Result<TlsConfig, Failure> {
    let dir = Path::new("throughput-certs");
    if !dir.exists() {
        certs::init(dir, &[Host { name: "throughput".to_owned(), reached_as: Vec::new() }])?;
    }
    let file = |name: &str| dir.join(name);
    Ok(TlsConfig::from_files(&file("ca.pem"), &file("throughput.pem"), &file("throughput.key"))?)
}

fn memory(fill: u8) -> Result<GuestMemoryMmap<()>, Failure> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    for page in (0..MEMORY).step_by(4096) {
        memory.write_slice(&[fill ^ (page >> 12) as u8; 64], GuestAddress(page as u64))?;
    }
    Ok(memory)
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn listen(plan: &Plan, tell: impl FnOnce(SocketAddr)) -> Result<(), Failure> {
    let memory = memory(0)?;
    let port = plan.addr.port();
    let mut listener = plan.transport.listen(plan.addr.ip(), port..=port, MIGRATION)?;
    tell(listener.local_addr());
    let gate: Arc<dyn Gate> = Arc::new(MigrationGate::new(MIGRATION, TOKEN, |_| Ok(())));
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..plan.channels {
            let Incoming::Data { mut receiver, .. } = listener.accept(&gate, deadline())? else {
                return Err("a control channel came".into());
            };
            let (memory, frame) = (&memory, plan.frame);
            threads.push(scope.spawn(move || -> Result<(), Failure> {
                let mut head = [0; HEAD];
                loop {
                    receiver.read_exact(&mut head)?;
                    let offset = u64::from_le_bytes(head);
                    if offset == u64::MAX {
                        return Ok(());
                    }
                    receiver.read_payload(&[memory.get_slice(GuestAddress(offset), frame)?])?;
                }
            }));
        }
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

#[allow(clippy::print_stdout, reason = "the result")]
fn send(plan: &Plan, addr: SocketAddr) -> Result<(), Failure> {
    let memory = memory(0x55)?;
    let endpoint = Endpoint { addr, server_name: Some("throughput".to_owned()) };
    let mut senders = Vec::new();
    for index in 0..plan.channels {
        let role = ChannelRole::Page(index);
        let hello = Hello { versions: PROTOCOL, role, migration: MIGRATION, token: TOKEN };
        senders.push(plan.transport.connect_data(&endpoint, &hello, deadline())?);
    }
    let (next, frames) = (AtomicUsize::new(0), MEMORY / plan.frame);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for mut sender in senders {
            let (memory, next) = (&memory, &next);
            threads.push(scope.spawn(move || -> Result<(), Failure> {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= frames * ROUNDS {
                        return Ok(sender.send(&u64::MAX.to_le_bytes(), &[])?);
                    }
                    let offset = (index % frames * plan.frame) as u64;
                    let slice = memory.get_slice(GuestAddress(offset), plan.frame)?;
                    sender.send(&offset.to_le_bytes(), &[slice])?;
                }
            }));
        }
        threads
            .into_iter()
            .try_for_each(|thread| -> Result<(), Failure> { thread.join().map_err(|_| "a thread panicked")? })
    })?;
    let (bytes, seconds) = (frames * plan.frame * ROUNDS, began.elapsed().as_secs_f64());
    println!(
        "{} {} channels, frames of {} KiB: {:.2} Gbit/s",
        plan.transport.name(),
        plan.channels,
        plan.frame >> 10,
        bytes as f64 * 8e-9 / seconds
    );
    Ok(())
}
