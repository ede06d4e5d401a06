use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{bail, ensure};

/// Whether the lab may write into a folder of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A folder of the host's that the lab sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the two sides call it: up to 31 letters, digits, `-` and `_`.
    pub tag: String,
    pub host: PathBuf,
    pub lab: String,
    pub access: Access,
}

impl FromStr for Share {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (tag, host, lab, access) = match parts[..] {
            [tag, host, lab] => (tag, host, lab, Access::ReadWrite),
            [tag, host, lab, "ro"] => (tag, host, lab, Access::ReadOnly),
            _ => bail!("write TAG:HOSTDIR:GUESTDIR, or TAG:HOSTDIR:GUESTDIR:ro"),
        };
        let is_tag = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        ensure!(
            (1..=31).contains(&tag.len()) && tag.chars().all(is_tag),
            "{tag:?}: a tag has 1 to 31 letters, digits, `-` and `_`"
        );
        ensure!(lab.starts_with('/') && !lab.contains(char::is_whitespace), "{lab:?}: not a path in the lab");
        let host = PathBuf::from(host).canonicalize()?;
        ensure!(host.is_dir(), "{}: not a folder", host.display());
        Ok(Self { tag: tag.to_owned(), host, lab: lab.to_owned(), access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_said_in_three_or_four_words() {
        let share: Share = "work:/tmp:/work".parse().unwrap();
        assert_eq!(
            (share.tag.as_str(), share.lab.as_str(), share.access),
            ("work", "/work", Access::ReadWrite)
        );
        assert_eq!("w:/tmp:/work:ro".parse::<Share>().unwrap().access, Access::ReadOnly);
        for wrong in
            ["", "w", "w:/tmp", "w:/tmp:/w:rw", "w w:/tmp:/w", ":/tmp:/w", "w:/tmp:w", "w:/no-such:/w"]
        {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
