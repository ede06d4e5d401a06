use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use migrated_transport::{
    Caller, Capabilities, DataSender, Door, Endpoint, Listener, OpenedControl, Stream, StreamListener,
    Transport, TransportError, open_control, open_data,
};
use migrated_wire::{ChannelRole, Hello, MigrationId};
use rustix::net::Shutdown;

use crate::tls::{self, TlsConfig};
use crate::{plain, socket};

/// Migration over TCP: one connection for each channel.
#[derive(Clone)]
pub struct TcpTransport {
    security: Security,
}

#[derive(Clone)]
enum Security {
    Plain,
    Tls(TlsConfig),
}

impl TcpTransport {
    /// Without encryption: whoever can reach the wire reads and changes the guest's memory.
    #[must_use]
    pub const fn plain() -> Self {
        Self { security: Security::Plain }
    }

    /// In TLS 1.3, each end with a certificate from an authority that the other trusts.
    #[must_use]
    pub const fn tls(config: TlsConfig) -> Self {
        Self { security: Security::Tls(config) }
    }

    fn dial(&self, peer: &Endpoint, role: ChannelRole, deadline: Instant) -> Result<Stream, TransportError> {
        let socket = socket::connect(peer, deadline)?;
        if role == ChannelRole::Urgent {
            socket::set_urgent(&socket)?;
        }
        match &self.security {
            Security::Plain => Ok(plain::stream(socket, peer.to_string())),
            Security::Tls(config) => tls::connect(config, socket, peer, deadline),
        }
    }
}

impl Security {
    fn greet(
        &self,
        socket: Arc<TcpStream>,
        peer: String,
        deadline: Instant,
    ) -> Result<Stream, TransportError> {
        match self {
            Self::Plain => Ok(plain::stream(socket, peer)),
            Self::Tls(config) => tls::accept(config, socket, peer, deadline),
        }
    }
}

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        match self.security {
            Security::Plain => "tcp",
            Security::Tls(_) => "tcp+tls",
        }
    }

    fn capabilities(&self) -> Capabilities {
        match self.security {
            Security::Plain => Capabilities { secure: false, in_place: true },
            Security::Tls(_) => Capabilities { secure: true, in_place: false },
        }
    }

    fn connect_control(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<OpenedControl, TransportError> {
        open_control(self.dial(peer, hello.role, deadline)?, hello, deadline)
    }

    fn connect_data(
        &self,
        peer: &Endpoint,
        hello: &Hello,
        deadline: Instant,
    ) -> Result<Box<dyn DataSender>, TransportError> {
        open_data(self.dial(peer, hello.role, deadline)?, hello, deadline)
    }

    fn listen(
        &self,
        addr: IpAddr,
        ports: RangeInclusive<u16>,
        _migration: MigrationId,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let listener = socket::listen(addr, ports)?;
        let addr = listener.local_addr().map_err(|source| TransportError::Local {
            what: "can't learn the listening port".to_owned(),
            source,
        })?;
        let door = TcpDoor { listener, security: self.security.clone() };
        Ok(Box::new(StreamListener::new(Box::new(door), addr)?))
    }
}

struct TcpDoor {
    listener: TcpListener,
    security: Security,
}

impl Door for TcpDoor {
    fn next_caller(&self) -> io::Result<Caller> {
        let (socket, addr) = loop {
            match self.listener.accept() {
                Ok(caller) => break caller,
                // Linux reports here what went wrong with the one connection, too: accept(2).
                Err(error) if is_the_callers(&error) => {}
                Err(error) => return Err(error),
            }
        };
        let socket = Arc::new(socket);
        let security = self.security.clone();
        Ok(Caller {
            hangup: socket::hangup(&socket),
            greet: Box::new(move |deadline| {
                let peer = addr.to_string();
                socket::set_options(&socket).map_err(|error| socket::lost(&peer, &error))?;
                security.greet(socket, peer, deadline)
            }),
        })
    }

    fn close(&self) {
        // Ends accept(2), and gives the port back before the last descriptor is closed.
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
    }
}

fn is_the_callers(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::Interrupted
            | Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::HostUnreachable
    )
}
