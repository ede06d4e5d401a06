use std::fmt;
use std::str::FromStr;

/// The key that leaves a console, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escape(Option<u8>);

impl Escape {
    /// What was typed before the key, and whether it was typed.
    pub fn split(self, typed: &[u8]) -> (&[u8], bool) {
        match self.0.and_then(|key| typed.iter().position(|byte| *byte == key)) {
            Some(at) => (&typed[..at], true),
            None => (typed, false),
        }
    }

    /// Whether there is a key.
    pub const fn is_some(self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Display for Escape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(key @ ..0x20) => write!(f, "Ctrl-{}", char::from(key | 0x40)),
            Some(key) => write!(f, "{}", char::from(key)),
        }
    }
}

impl FromStr for Escape {
    type Err = String;

    fn from_str(key: &str) -> Result<Self, String> {
        match key.as_bytes() {
            b"none" => Ok(Self(None)),
            // A control character is its letter without bits 5 and 6.
            [b'^', letter @ (b'@'..=b'_' | b'a'..=b'z')] => Ok(Self(Some(letter & 0x1f))),
            [key @ b' '..=b'~'] => Ok(Self(Some(*key))),
            _ => Err(format!("{key:?} is no key; write e.g. ^] for Ctrl-], ^A, a character, or none")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_typed_as_people_write_them() {
        let parse = |key: &str| key.parse::<Escape>().map(|escape| (escape.0, escape.to_string()));
        assert_eq!(parse("^]"), Ok((Some(0x1d), "Ctrl-]".into())));
        assert_eq!(parse("^a"), Ok((Some(1), "Ctrl-A".into())));
        assert_eq!(parse("^^"), Ok((Some(0x1e), "Ctrl-^".into())));
        assert_eq!(parse("~"), Ok((Some(b'~'), "~".into())));
        assert_eq!(parse("none"), Ok((None, "none".into())));
        for wrong in ["", "^", "^1x", "ab", "é", "\x1d", "^~"] {
            // A lone caret is a character as well.
            assert_eq!(parse(wrong).is_err(), wrong != "^", "{wrong:?}");
        }
    }

    #[test]
    fn what_was_typed_before_the_key_counts() {
        let escape = Escape(Some(0x1d));
        assert_eq!(escape.split(b"ls\r\x1dmore"), (&b"ls\r"[..], true));
        assert_eq!(escape.split(b"\x1d"), (&b""[..], true));
        assert_eq!(escape.split(b"ls"), (&b"ls"[..], false));
        assert_eq!(Escape(None).split(b"\x1d"), (&b"\x1d"[..], false));
    }
}
