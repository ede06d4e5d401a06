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
    // Another protocol's answer may be shorter than ours: its first bytes tell.
    let (magic, _) = head.split_at_mut(4);
    read_by(stream.reader.as_mut(), magic, deadline)?;
    HelloReply::text_len(&head).map_err(wrong)?;
    read_by(stream.reader.as_mut(), &mut head[4..], deadline)?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use migrated_wire::{HELLO_REPLY_MAX, VersionRange};
    use proptest::prelude::*;

    use super::*;
    use crate::script;

    const MIGRATION: MigrationId = MigrationId([3; 16]);
    const TOKEN: Token = Token([5; 32]);

    fn hello() -> Hello {
        Hello { versions: PROTOCOL, role: ChannelRole::Control, migration: MIGRATION, token: TOKEN }
    }

    fn gate() -> impl Gate {
        MigrationGate::new(MIGRATION, TOKEN, |_| Ok(()))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    /// Bytes that are nearly right: a good message with some bytes changed, cut or continued.
    fn nearly(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let len = good.len();
        let changes = prop::collection::vec((0..len, any::<u8>()), 0..4);
        let tail = prop::collection::vec(any::<u8>(), 0..700);
        (changes, 0..=len, tail).prop_map(move |(changes, keep, tail)| {
            let mut bytes = good.clone();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(keep);
            bytes.extend(tail);
            bytes
        })
    }

    proptest! {
        #[test]
        fn only_the_token_opens(
            bytes in prop_oneof![nearly(hello().encode().to_vec()), prop::collection::vec(any::<u8>(), 0..200)],
        ) {
            let (mut stream, seen) = script::stream(vec![bytes.clone()], false);
            let result = answer_hello(&mut stream, &gate(), soon());
            let answer = seen.written.lock().unwrap();
            prop_assert!(answer.len() <= HELLO_REPLY_MAX);
            if result.is_ok() {
                prop_assert_eq!(&bytes[16..HELLO_LEN], &hello().encode()[16..]);
            }
        }

        #[test]
        fn only_an_acceptance_is_one(
            bytes in prop_oneof![
                nearly(HelloReply::Accepted { version: 1 }.encode()),
                nearly(HelloReply::Refused(Refusal { code: RefusalCode::Busy, text: "full".into() }).encode()),
            ],
        ) {
            let (stream, seen) = script::stream(vec![bytes.clone()], false);
            let result = open_control(stream, &hello(), soon());
            prop_assert_eq!(&seen.written.lock().unwrap()[..], &hello().encode()[..]);
            if let Ok((.., version)) = result {
                prop_assert_eq!(version, 1);
                prop_assert_eq!(&bytes[4..8], &[0, 0, 1, 0]);
            }
        }
    }

    #[test]
    fn an_answer_in_another_protocol_is_told_from_silence() {
        for (answer, ours) in [(&b"\x15\x03\x03\x00\x02\x02\x0a"[..], false), (b"", true), (b"MGRD", true)] {
            let (stream, _) = script::stream(vec![answer.to_vec()], false);
            match open_data(stream, &hello(), soon()).map(drop) {
                Err(TransportError::Protocol { source: WireError::NotOurs(begin), .. }) => {
                    assert!(!ours && answer.starts_with(&begin));
                }
                Err(TransportError::Lost { .. }) => assert!(ours),
                other => panic!("{answer:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_version_that_was_not_offered_is_not_accepted() {
        let reply = HelloReply::Accepted { version: PROTOCOL.max + 1 };
        let (stream, _) = script::stream(vec![reply.encode()], false);
        let result = open_data(stream, &hello(), soon()).map(drop);
        assert!(matches!(result, Err(TransportError::Protocol { .. })), "{result:?}");
    }

    #[test]
    fn the_gate_asks_for_the_role_last() {
        let gate = MigrationGate::new(MIGRATION, TOKEN, |role| match role {
            ChannelRole::Control => Ok(()),
            _ => Err(Refusal { code: RefusalCode::Role, text: "one control channel first".to_owned() }),
        });
        let code = |hello: Hello| gate.admit(&hello).map_err(|refusal| refusal.code);
        let urgent = Hello { role: ChannelRole::Urgent, ..hello() };
        let old = VersionRange { min: 0, max: 0 };
        assert_eq!(code(hello()), Ok(PROTOCOL.max));
        assert_eq!(code(urgent), Err(RefusalCode::Role));
        assert_eq!(code(Hello { token: Token([6; 32]), ..urgent }), Err(RefusalCode::Token));
        assert_eq!(code(Hello { token: Token([6; 32]), versions: old, ..urgent }), Err(RefusalCode::Version));
    }
}
