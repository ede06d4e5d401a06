//! The opening of a channel: a hello of fixed size, and its answer.
//!
//! It is the one message that every version of the protocol can read, so its layout never changes:
//! two hosts that share no version still tell each other so in words.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::WireError;

const MAGIC: [u8; 4] = *b"MGRD";
/// Size of an encoded [`Hello`] in bytes.
pub const HELLO_LEN: usize = 64;
/// Most bytes an encoded [`HelloReply`] may have.
pub const HELLO_REPLY_MAX: usize = 12 + MAX_TEXT;
const MAX_TEXT: usize = 512;

/// The protocol versions this build speaks. In version 2 a guest's CPU has feature MSRs and a baseline; version 3
/// has post-copy. Version 5 only has messages besides those of version 4, which a peer of that version isn't sent: what
/// came for the guest on its way, and when its first packet went. From version 6 on pages may come compressed, which
/// older peers are not sent.
pub const PROTOCOL: VersionRange = VersionRange { min: 4, max: 6 };

/// Protocol versions that one end speaks, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// The newest version that both ends speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

/// Identifies one migration at both ends: 128 random bits, written as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MigrationId {
    type Err = WireError;

    fn from_str(s: &str) -> Result<Self, WireError> {
        parse_hex(s).map(Self)
    }
}

/// The one-shot secret of the prepare step. Compare with [`Token::matches`]; it never prints itself.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Token(pub [u8; 32]);

impl Token {
    /// Compares in time independent of the contents.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.0.ct_eq(&other.0).into()
    }

    /// As 64 hex digits, for the prepare answer.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads 64 hex digits.
    ///
    /// # Errors
    /// [`WireError::Malformed`] on anything else.
    pub fn from_hex(s: &str) -> Result<Self, WireError> {
        parse_hex(s).map(Self)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

fn parse_hex<const N: usize>(s: &str) -> Result<[u8; N], WireError> {
    let malformed = || WireError::Malformed { what: "hex id", reason: format!("want {} hex digits", 2 * N) };
    if s.len() != 2 * N || !s.is_ascii() {
        return Err(malformed());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(s.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| malformed())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
    }
    Ok(bytes)
}

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelRole {
    /// Messages in both directions; opened first.
    Control,
    /// Bulk pages, source to destination; the number tells the channels apart.
    Page(u16),
    /// Pages that a fault waits for, source to destination.
    Urgent,
    /// A source that lost its link asks what became of its commit.
    Resolve,
}

/// The first bytes of every channel, from the source.
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    /// Versions the source speaks.
    pub versions: VersionRange,
    /// What the channel is for.
    pub role: ChannelRole,
    /// Which migration it belongs to.
    pub migration: MigrationId,
    /// The secret from the prepare step.
    pub token: Token,
}

impl Hello {
    /// The hello as it goes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let (role, index) = match self.role {
            ChannelRole::Control => (0u8, 0),
            ChannelRole::Page(index) => (1, index),
            ChannelRole::Urgent => (2, 0),
            ChannelRole::Resolve => (3, 0),
        };
        let mut out = [0; HELLO_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.versions.min.to_le_bytes());
        out[6..8].copy_from_slice(&self.versions.max.to_le_bytes());
        out[8] = role;
        out[10..12].copy_from_slice(&index.to_le_bytes());
        out[16..32].copy_from_slice(&self.migration.0);
        out[32..64].copy_from_slice(&self.token.0);
        out
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// [`WireError::NotOurs`] when something else calls, [`WireError::Undefined`] for a role unknown here.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Result<Self, WireError> {
        check_magic(bytes)?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let role = match bytes[8] {
            0 => ChannelRole::Control,
            1 => ChannelRole::Page(u16_at(10)),
            2 => ChannelRole::Urgent,
            3 => ChannelRole::Resolve,
            other => return Err(WireError::Undefined { what: "channel role", value: other.into() }),
        };
        let mut migration = [0; 16];
        migration.copy_from_slice(&bytes[16..32]);
        let mut token = [0; 32];
        token.copy_from_slice(&bytes[32..64]);
        Ok(Self {
            versions: VersionRange { min: u16_at(4), max: u16_at(6) },
            role,
            migration: MigrationId(migration),
            token: Token(token),
        })
    }
}

fn check_magic(bytes: &[u8]) -> Result<(), WireError> {
    match bytes.first_chunk::<4>() {
        Some(&MAGIC) => Ok(()),
        Some(&other) => Err(WireError::NotOurs(other)),
        None => Err(WireError::Truncated("hello")),
    }
}

/// Why a channel was refused, as a stable number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// No common protocol version.
    Version,
    /// Token or migration id are not the expected ones.
    Token,
    /// The role is not wanted now (a second control channel, a page channel too many).
    Role,
    /// The destination is shutting down or has no place left.
    Busy,
}

/// A refusal with its reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Machine-readable reason.
    pub code: RefusalCode,
    /// For people; at most 512 bytes arrive.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The destination's answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloReply {
    /// The channel is open and speaks this version.
    Accepted {
        /// The newest version that both ends speak.
        version: u16,
    },
    /// The channel is refused and will be closed.
    Refused(Refusal),
}

impl HelloReply {
    /// Bytes of the fixed first part: read these, then [`HelloReply::text_len`] more.
    pub const HEAD_LEN: usize = 12;

    /// The reply as it goes on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (code, version, text) = match self {
            Self::Accepted { version } => (0u16, *version, ""),
            Self::Refused(refusal) => {
                let code = match refusal.code {
                    RefusalCode::Version => 1,
                    RefusalCode::Token => 2,
                    RefusalCode::Role => 3,
                    RefusalCode::Busy => 4,
                };
                let mut end = refusal.text.len().min(MAX_TEXT);
                while !refusal.text.is_char_boundary(end) {
                    end -= 1;
                }
                (code, 0, &refusal.text[..end])
            }
        };
        let mut out = Vec::with_capacity(Self::HEAD_LEN + text.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&code.to_le_bytes());
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&(text.len() as u32).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
        out
    }

    /// How many bytes of text follow the head; bounded.
    ///
    /// # Errors
    /// [`WireError`] when the head is not this protocol's or the text too long.
    pub fn text_len(head: &[u8; Self::HEAD_LEN]) -> Result<usize, WireError> {
        check_magic(head)?;
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if len > MAX_TEXT {
            return Err(WireError::TooLarge {
                what: "refusal text",
                got: len as u64,
                limit: MAX_TEXT as u64,
            });
        }
        Ok(len)
    }

    /// Reads a reply from its head and its text.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not a reply of this protocol.
    pub fn decode(head: &[u8; Self::HEAD_LEN], text: &[u8]) -> Result<Self, WireError> {
        if Self::text_len(head)? != text.len() {
            return Err(WireError::Truncated("hello reply"));
        }
        let code = match u16::from_le_bytes([head[4], head[5]]) {
            0 => return Ok(Self::Accepted { version: u16::from_le_bytes([head[6], head[7]]) }),
            1 => RefusalCode::Version,
            2 => RefusalCode::Token,
            3 => RefusalCode::Role,
            4 => RefusalCode::Busy,
            other => return Err(WireError::Undefined { what: "refusal code", value: other.into() }),
        };
        Ok(Self::Refused(Refusal { code, text: String::from_utf8_lossy(text).into_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_survives_the_wire_and_strangers_are_told_apart() {
        for role in [ChannelRole::Control, ChannelRole::Page(7), ChannelRole::Urgent, ChannelRole::Resolve] {
            let hello = Hello {
                versions: VersionRange { min: 1, max: 3 },
                role,
                migration: MigrationId([0xab; 16]),
                token: Token([7; 32]),
            };
            let back = Hello::decode(&hello.encode()).unwrap();
            assert_eq!((back.versions, back.role, back.migration), (hello.versions, role, hello.migration));
            assert!(back.token.matches(&hello.token) && !back.token.matches(&Token([8; 32])));
        }
        let mut http = [b' '; HELLO_LEN];
        http[..4].copy_from_slice(b"GET ");
        assert_eq!(Hello::decode(&http).unwrap_err(), WireError::NotOurs(*b"GET "));
    }

    #[test]
    fn replies_survive_and_long_texts_are_cut_at_a_character() {
        let long = Refusal { code: RefusalCode::Busy, text: "ü".repeat(400) };
        for reply in [HelloReply::Accepted { version: 1 }, HelloReply::Refused(long)] {
            let bytes = reply.encode();
            let head = bytes.first_chunk().unwrap();
            let text = &bytes[HelloReply::HEAD_LEN..];
            assert_eq!(HelloReply::text_len(head).unwrap(), text.len());
            match (HelloReply::decode(head, text).unwrap(), reply) {
                (HelloReply::Refused(got), HelloReply::Refused(sent)) => {
                    assert!(sent.text.starts_with(&got.text) && got.text.len() <= MAX_TEXT);
                }
                (got, sent) => assert_eq!(got, sent),
            }
        }
    }

    #[test]
    fn ids_parse_what_they_print() {
        let id = MigrationId([0x1f; 16]);
        assert_eq!(id.to_string().parse::<MigrationId>().unwrap(), id);
        assert!("xyz".parse::<MigrationId>().is_err());
        assert!(Token([3; 32]).matches(&Token::from_hex(&Token([3; 32]).to_hex()).unwrap()));
    }

    #[test]
    fn versions_meet_or_do_not() {
        let ours = VersionRange { min: 2, max: 4 };
        assert_eq!(ours.common(VersionRange { min: 1, max: 3 }), Some(3));
        assert_eq!(ours.common(VersionRange { min: 5, max: 6 }), None);
    }
}
