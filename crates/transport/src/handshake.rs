use std::time::Instant;

use migrated_wire::{
    ChannelRole, HELLO_LEN, Hello, HelloReply, MigrationId, PROTOCOL, Refusal, RefusalCode, Token, WireError,
};

use crate::{
    DataSender, Gate, OpenedControl, Stream, StreamReader, TransportError, control_halves, data_sender,
};

/// Says hello on a stream just connected and makes a control channel of it: what
/// [`Transport::connect_control`](crate::Transport::connect_control) does last.
///
/// # Errors
/// [`TransportError::Refused`] with the peer's reason, [`TransportError::TimedOut`] at the deadline, and others.
pub fn open_control(
    mut stream: Stream,
    hello: &Hello,
    deadline: Instant,
) -> Result<OpenedControl, TransportError> {
    let version = say_hello(&mut stream, hello, deadline)?;
    let (sender, receiver) = control_halves(stream);
    Ok((sender, receiver, version))
}

/// Says hello on a stream just connected and makes a page channel of it.
///
/// # Errors
/// As [`open_control`].
pub fn open_data(
    mut stream: Stream,
    hello: &Hello,
    deadline: Instant,
) -> Result<Box<dyn DataSender>, TransportError> {
    say_hello(&mut stream, hello, deadline)?;
    Ok(data_sender(stream))
}

fn say_hello(stream: &mut Stream, hello: &Hello, deadline: Instant) -> Result<u16, TransportError> {
    // Where the peer has ended the connection already, what it said before is the better reason: read on.
    let _ = stream.writer.write(&hello.encode(), &[]);
    let peer = stream.peer.clone();
    let wrong = |source| TransportError::Protocol { peer: peer.clone(), source };
    let mut head = [0; HelloReply::HEAD_LEN];
    read_by(stream.reader.as_mut(), &mut head, deadline).map_err(|error| match (&error, head) {
        // Another protocol's answer may be shorter than ours.
        (TransportError::Lost { .. }, [a, b, c, d, ..]) if d != 0 && HelloReply::text_len(&head).is_err() => {
            wrong(WireError::NotOurs([a, b, c, d]))
        }
        _ => error,
    })?;
    let mut text = vec![0; HelloReply::text_len(&head).map_err(wrong)?];
    read_by(stream.reader.as_mut(), &mut text, deadline)?;
    match HelloReply::decode(&head, &text).map_err(wrong)? {
        HelloReply::Accepted { version } => {
            if (hello.versions.min..=hello.versions.max).contains(&version) {
                Ok(version)
            } else {
                Err(wrong(WireError::Undefined { what: "accepted protocol version", value: version.into() }))
            }
        }
        HelloReply::Refused(refusal) => Err(TransportError::Refused { peer, refusal }),
    }
}

/// Reads a caller's hello, asks the gate and answers. `Err` means that the caller is to be dropped.
pub(crate) fn answer_hello(
    stream: &mut Stream,
    gate: &dyn Gate,
    deadline: Instant,
) -> Result<(ChannelRole, u16), TransportError> {
    let mut bytes = [0; HELLO_LEN];
    read_by(stream.reader.as_mut(), &mut bytes, deadline)?;
    let verdict = match Hello::decode(&bytes) {
        Ok(hello) => gate.admit(&hello).map(|version| (hello.role, version)),
        // It speaks our protocol, but has something in it that only a newer version knows: tell it so.
        Err(source @ WireError::Undefined { .. }) => {
            Err(Refusal { code: RefusalCode::Role, text: source.to_string() })
        }
        // A stranger gets no answer.
        Err(source) => return Err(TransportError::Protocol { peer: stream.peer.clone(), source }),
    };
    match verdict {
        Ok((role, version)) => {
            stream.writer.write(&HelloReply::Accepted { version }.encode(), &[])?;
            Ok((role, version))
        }
        Err(refusal) => {
            stream.writer.write(&HelloReply::Refused(refusal.clone()).encode(), &[])?;
            Err(TransportError::Refused { peer: stream.peer.clone(), refusal })
        }
    }
}

fn read_by(reader: &mut dyn StreamReader, buf: &mut [u8], deadline: Instant) -> Result<(), TransportError> {
    let began = Instant::now();
    let mut done = 0;
    while done < buf.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        done += reader.read(&mut buf[done..], Some(left)).map_err(|error| match error {
            TransportError::TimedOut { peer, .. } => {
                TransportError::TimedOut { peer, after: deadline.saturating_duration_since(began) }
            }
            other => other,
        })?;
    }
    Ok(())
}

/// The gate of a destination that waits for one migration: checks version, migration id and token,
/// and leaves which roles are wanted to `wanted`.
pub struct MigrationGate<F> {
    migration: MigrationId,
    token: Token,
    wanted: F,
}

impl<F: Fn(ChannelRole) -> Result<(), Refusal> + Send + Sync> MigrationGate<F> {
    /// A gate for whoever knows `token` of `migration`, and asks for a role that `wanted` lets in.
    /// `wanted` is called once for each caller with the right token, from several threads.
    pub fn new(migration: MigrationId, token: Token, wanted: F) -> Self {
        Self { migration, token, wanted }
    }
}

impl<F: Fn(ChannelRole) -> Result<(), Refusal> + Send + Sync> Gate for MigrationGate<F> {
    fn admit(&self, hello: &Hello) -> Result<u16, Refusal> {
        // The version first: who speaks another one can't know what else a hello should say.
        let version = PROTOCOL.common(hello.versions).ok_or_else(|| Refusal {
            code: RefusalCode::Version,
            text: format!(
                "this host speaks protocol versions {} to {}, the caller {} to {}; upgrade the older one",
                PROTOCOL.min, PROTOCOL.max, hello.versions.min, hello.versions.max
            ),
        })?;
        // One answer for both, so that a guesser doesn't learn which ids exist.
        if hello.migration != self.migration || !self.token.matches(&hello.token) {
            return Err(Refusal {
                code: RefusalCode::Token,
                text: "no migration with this id and token is expected here; prepare it again".to_owned(),
            });
        }
        (self.wanted)(hello.role).map(|()| version)
    }
}
